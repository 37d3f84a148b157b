# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of ssh_forward: a master, and tasks that name it by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh
from tests.support.sshd import Sshd
from tests.support.tasks import SSH_FORWARD, Tasks


@pytest.fixture
def master(ssh: Ssh, path: Path) -> int:
    """The pid of a master at `path` which nobody but ssh itself opened."""
    path.parent.mkdir(mode=0o700)
    return ssh.open(path)


@pytest.fixture
def login(bastion: Sshd, closing: None) -> dict[str, Any]:
    """What a task has to say so that a master can be opened."""
    return {"host": "bastion", "ssh_config": str(bastion.ssh_config())}


@pytest.fixture
def tasks(work: Path, path: Path) -> Tasks:
    """Tasks of ssh_forward for the master at `path`."""
    return Tasks(work, {"control_path": str(path)}, SSH_FORWARD)
