# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Polling with a deadline, so that no test sleeps a guessed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(probe: Callable[[], T], what: str, timeout: float = 10.0) -> T:
    """Call `probe` until it answers something true, and return that answer.

    Raises AssertionError naming `what` when `timeout` seconds have passed.
    """
    deadline = time.monotonic() + timeout
    while True:
        began = time.monotonic()
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        _pause(began)


def stays(probe: Callable[[], object], what: str, seconds: float = 0.5) -> None:
    """Assert that `probe` answers something true during all of `seconds`, and once after them."""
    deadline = time.monotonic() + seconds
    over = False
    while not over:
        began = time.monotonic()
        over = began > deadline
        assert probe(), f"did not stay: {what}"
        _pause(began)


def _pause(began: float) -> None:
    """Sleep, longer after a probe that took longer: what is waited for needs the processor, too."""
    time.sleep(min(0.25, max(0.01, 3 * (time.monotonic() - began))))
