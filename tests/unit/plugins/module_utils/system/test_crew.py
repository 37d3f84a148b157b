# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs in processes of their own: what they return, how they fail, that none holds up others."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.system import crew

# Threads of pytest-xdist; a module has none.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")


def fail() -> Any:
    raise MuxError("wedged", "a sentence", shadowed=[1])


def fail_below() -> Any:
    return os.listdir("/nowhere")


def die() -> Any:
    os._exit(3)


def test_answers_come_in_the_order_of_the_jobs() -> None:
    def job(number: int) -> Any:
        time.sleep(0.02 * (5 - number))
        return {"number": number, "text": "\udcff\n", "process": os.getpid() == me}

    me = os.getpid()
    jobs = [lambda number=number: job(number) for number in range(5)]
    expected = [{"number": number, "text": "\udcff\n", "process": False} for number in range(5)]
    assert crew.run(jobs, timeout=30, at_once=3) == expected
    assert crew.run([], timeout=30, at_once=3) == []


def test_long_answers_arrive_whole() -> None:
    assert crew.run([lambda: "x" * 300000] * 3, timeout=30, at_once=2) == ["x" * 300000] * 3


def test_failures_are_answers_too() -> None:
    failed, below, died, fine = crew.run([fail, fail_below, die, lambda: 1], timeout=30, at_once=4)
    assert (failed.reason, failed.message, failed.details) == (
        "wedged",
        "a sentence",
        {"shadowed": [1]},
    )
    assert (below.reason, "/nowhere" in below.message) == ("invalid", True)
    assert (died.reason, fine) == ("invalid", 1)
    with pytest.raises(MuxError, match="a sentence"):
        crew.alone(fail, timeout=30)
    assert crew.alone(lambda: [None], timeout=30) == [None]


def test_who_hangs_is_ended_and_holds_up_nobody() -> None:
    begin = time.monotonic()
    jobs = [lambda: time.sleep(3600), lambda: 1, lambda: 2]
    hung, *others = crew.run(jobs, timeout=2, at_once=2)
    assert (hung.reason, others) == ("timeout", [1, 2])
    assert time.monotonic() - begin < 30
