# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several bastions: in order with fail-over, or spread; bastions that are lost."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for

OURS = {"ansible_connection": "bastion.mux.ssh"}

#: Two of these names belong to either of two bastions.
TARGETS = {f"t{number}": f"127.0.0.{number}" for number in range(2, 6)}

#: Those of them that try again where they cannot be reached.
AGAIN = ("t3", "t5")


class Fleet:
    """Targets behind several bastions, b0, b1, and so on."""

    def __init__(self, work: Path, make_sshd: Callable[..., Sshd], bastions: int = 2) -> None:
        self.work = work
        self.bastions = [make_sshd(name=f"b{number}") for number in range(bastions)]
        self.targets = make_sshd(name="target", addresses=list(TARGETS.values()))

    def run(
        self, *tasks: dict[str, Any], hosts: str = "targets", **variables: Any
    ) -> PlaybookResult:
        """Run tasks on hosts."""
        names = [bastion.name for bastion in self.bastions]
        targets = {
            name: {**self.targets.variables(address), "ansible_ssh_retries": int(name in AGAIN)}
            for name, address in TARGETS.items()
        }
        inventory = {
            # The variable of a group that the bastions belong to: none is behind itself.
            "all": {"vars": {**OURS, "ansible_bastion": names, **variables}},
            "targets": {"hosts": targets},
            "bastions": {"hosts": {one.name: one.variables() for one in self.bastions}},
        }
        play = {"hosts": hosts, "gather_facts": False, "tasks": list(tasks)}
        return run_playbook(self.work, play, inventory=inventory, forks=len(TARGETS))

    def logins(self) -> list[int]:
        return [bastion.logins() for bastion in self.bastions]


def test_lost_in_the_middle(work: Path, make_sshd: Callable[..., Sshd]) -> None:
    fleet = Fleet(work, make_sshd)
    # Each host says that it has begun, once for each time.
    slow = (
        f"echo x >> {work}/began-{{{{ inventory_hostname }}}};"
        f" while ! test -e {work}/go; do sleep 0.05; done"
    )

    def lose() -> None:
        wait_for(lambda: len(list(work.glob("began-*"))) == len(TARGETS), "all have begun", 60)
        fleet.bastions[0].stop()
        (work / "go").touch()

    thread = threading.Thread(target=lose)
    thread.start()
    try:
        run = fleet.run(
            {"name": "lost", "raw": slow, "ignore_unreachable": True},
            {"name": "where", "raw": "true"},
        )
    finally:
        thread.join()
    for name in TARGETS:
        again = name in AGAIN
        lost = run.task("lost", name)
        assert lost.event == ("ok" if again else "unreachable"), run
        assert lost.changed == again, run
        assert (work / f"began-{name}").read_text() == "x\n" * (1 + again)
        assert run.task("where", name).event == "ok", run
    assert fleet.logins() == [1, 1]


def test_spread(work: Path, make_sshd: Callable[..., Sshd]) -> None:
    fleet = Fleet(work, make_sshd)
    one, other = fleet.bastions
    task = {"name": "do", "raw": "true"}
    fleet.run(task, hosts="all", ansible_bastion_strategy="spread").ok()
    # One through itself is one more: each bastion is a host of the play as well.
    assert fleet.logins() == [2, 2]
    one.restart()
    other.stop()
    fleet.run(task, ansible_bastion_strategy="spread").ok()
    assert fleet.logins() == [3, 2]
    one.stop()
    run = fleet.run({**task, "ignore_unreachable": True}, ansible_bastion_strategy="spread")
    assert len(run.tasks("do")) == len(TARGETS)
    for result in run.tasks("do"):
        assert result.event == "unreachable"
        assert "bastion 127.0.0.1: " in result.msg, result
        assert result.msg.count("Connection refused") >= 2, result


def test_each_waits_for_its_own(work: Path, make_sshd: Callable[..., Sshd]) -> None:
    # Their logs also have what they connect to.
    fleet = Fleet(work, lambda **how: make_sshd(options={"LogLevel": "DEBUG1"}, **how))
    task = {"name": "do", "raw": "true"}
    fleet.run(task, hosts="t2", ansible_bastion_strategy="spread").ok()
    # The other one is there, and theirs is not yet: while the first of them logs in, others wait.
    fleet.run(task, ansible_bastion_strategy="spread").ok()
    reached = [
        re.findall(r"direct_tcpip: .* target (\S+) port", one.log()) for one in fleet.bastions
    ]
    assert sorted(map(sorted, reached)) == [["127.0.0.2", "127.0.0.3"], ["127.0.0.4", "127.0.0.5"]]


def test_cut_off(work: Path, make_sshd: Callable[..., Sshd]) -> None:
    fleet = Fleet(work, make_sshd, bastions=1)
    (bastion,) = fleet.bastions
    how: dict[str, Any] = {"ansible_timeout": 2, "ansible_ssh_args": "-o ControlMaster=no"}
    task = {"name": "do", "raw": "true"}
    fleet.run(task, hosts="t2", **how).ok()
    bastion.freeze()
    try:
        # Its master has not noticed. Who tries again does not take its word for it.
        run = fleet.run(task, hosts="t2:t3", **how)
    finally:
        bastion.thaw()
    assert run.task("do", "t2").event == "unreachable"
    assert "(reason: timeout)" in run.task("do", "t2").msg
    assert run.task("do", "t3").event == "ok", run
    assert bastion.logins() == 2
