# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guide's thousand hosts behind one bastion, with three of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.guide import GUIDE, blocks_of, plays_of
from tests.support.playbook import run_playbook
from tests.support.sshd import Sshd
from tests.support.targets import SERVER, Targets

COUNT = 3


def test_a_thousand_hosts(work: Path, bastion: Sshd, make_sshd: Callable[..., Sshd]) -> None:
    server = make_sshd(**SERVER)
    targets = Targets(work, bastion, server, COUNT)
    text = (GUIDE / "guide_thousand.rst").read_text(encoding="utf-8")
    inventory: dict[str, Any] = next(one for one in blocks_of(text) if "all" in one)
    bastions, fleet = (inventory["all"]["children"][name] for name in ("bastions", "fleet"))
    there = targets.inventory()
    bastions["hosts"] = there["bastions"]["hosts"]
    fleet["hosts"] = there["targets"]["hosts"]
    fleet["vars"] |= there["targets"]["vars"]
    (keys,), (play,) = plays_of(text)
    # No name of a target is known here, and no port is the usual one.
    server.known_hosts.write_text("")
    keys["tasks"][1]["bastion.mux.ssh_known_hosts"] = {
        "hosts": [f"{address}:{server.port}" for address in targets.addresses.values()],
        "path": str(server.known_hosts),
    }
    tasks: list[dict[str, Any]] = [
        {"name": "look", "bastion.mux.ssh_master_info": {}},
        {"name": "end", "bastion.mux.ssh_master": {"state": "absent"}},
    ]
    look = {"hosts": "bastion", "gather_facts": False, "tasks": tasks}
    recommended = {"ANSIBLE_PIPELINING": "1"}
    done = run_playbook(work, [keys, play, look], inventory=inventory, env=recommended).ok()
    assert done.task("Learn the keys of the fleet").changed
    assert len(done.tasks("Reach it")) == COUNT
    (found,) = done.task("look")["masters"]
    assert (found["alive"], found["managed"]) == (True, True)
    assert done.task("end").changed
    assert bastion.logins() == 1
