# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of ssh_master: its tasks, and the end of what they opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.client import Ssh
from tests.support.services import Echo
from tests.support.sshd import Sshd
from tests.support.tasks import Tasks, close_all


@pytest.fixture(autouse=True)
def closing(work: Path, make_sshd: Callable[..., Sshd]) -> Iterator[None]:
    """Ends the masters that can be reached; others are left behind, and found by the watch."""
    yield
    close_all(work)


@pytest.fixture
def path(work: Path) -> Path:
    """A control path."""
    return work / "c" / "s"


@pytest.fixture
def tasks(work: Path, bastion: Sshd, closing: None) -> Tasks:
    """Tasks of ssh_master for the bastion."""
    return Tasks(work, {"host": "bastion", "ssh_config": str(bastion.ssh_config())})


@pytest.fixture
def ssh(bastion: Sshd, tasks: Tasks) -> Ssh:
    """The installed ssh, with the same configuration."""
    return Ssh(Path(tasks.params["ssh_config"]))


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as service:
        yield service
