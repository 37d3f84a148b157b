# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of ssh_master: its tasks, and the end of what they opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sshd import Sshd
from tests.support.tasks import Tasks


@pytest.fixture(autouse=True)
def closed(closing: None) -> None:
    """Whatever a test opens is closed."""


@pytest.fixture
def tasks(work: Path, bastion: Sshd) -> Tasks:
    """Tasks of ssh_master for the bastion."""
    return Tasks(work, {"host": "bastion", "ssh_config": str(bastion.ssh_config())})
