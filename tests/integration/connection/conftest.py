# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of the connection plugin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.sshd import Sshd
from tests.support.trio import HOSTS, Trio


@pytest.fixture(autouse=True)
def closed(closing: None) -> None:
    """Whatever a test opens is closed."""


@pytest.fixture
def make_trio(work: Path, make_sshd: Callable[..., Sshd], bastion: Sshd) -> Callable[..., Trio]:
    """`make_trio(**arguments of Sshd)`: an sshd with an address for each host of a trio."""

    def make(**arguments: Any) -> Trio:
        addresses = [host["ansible_host"] for host in HOSTS.values()]
        options = {"AcceptEnv": "BM_*", **arguments.pop("options", {})}
        sshd = make_sshd(name="target", addresses=addresses, options=options, **arguments)
        return Trio(work, sshd, bastion)

    return make
