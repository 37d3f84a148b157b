# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hundred targets behind one bastion, none of them connected yet, fifty at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.client import belonging
from tests.support.playbook import run_playbook
from tests.support.sshd import Sshd
from tests.support.targets import SERVER, Targets

COUNT, FORKS = 100, 50


@pytest.fixture
def targets(work: Path, bastion: Sshd, make_sshd: Callable[..., Sshd]) -> Targets:
    """The bastion's MaxStartups is sshd's own, 10:30:100."""
    return Targets(work, bastion, make_sshd(**SERVER), COUNT)


def test_all_are_reached_by_one_login(work: Path, targets: Targets) -> None:
    inventory = targets.inventory(ansible_connection="bastion.mux.ssh", ansible_bastion="bastion")
    task = {"name": "which", "raw": "echo $SSH_CONNECTION"}
    play = {"hosts": "targets", "gather_facts": False, "tasks": [task]}
    run = run_playbook(work, play, inventory=inventory, forks=FORKS).ok()
    for host, address in targets.addresses.items():
        # Ports and addresses of the client and of the server.
        assert run.task("which", host)["stdout"].split()[2] == address
    assert targets.bastion.logins() == 1
    assert targets.bastion.connections() == 1
    # One for each target, the bastion's master, and none whose work is done.
    left = belonging(work)
    assert COUNT < len(left) <= COUNT + 2, [process.cmdline() for process in left]
