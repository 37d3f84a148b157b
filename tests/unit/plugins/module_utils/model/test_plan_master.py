# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is decided about a master, by what is there and what is asked for."""

from __future__ import annotations

import itertools
from typing import Any, Dict, Optional, Tuple

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.plan import (
    ABSENT,
    CLEAN,
    CLOSE,
    HAND_OVER,
    KILL,
    OPEN,
    OPENING,
    PRESENT,
    REPLACE,
    RESTARTED,
    STOP,
    STOPPED,
    MasterView,
    plan_master,
)

STATES = (PRESENT, ABSENT, STOPPED, RESTARTED)
NOTHING: Tuple[str, ...] = ()
DRIFT = {"drift": ("user: a -> b",)}
DEAD = {"cut_off": "no answer"}
OURS = {"managed": True}
FORCE = {"force": True}
IGNORE = {"on_drift": "ignore"}
FAIL = {"on_drift": "fail"}


@pytest.mark.parametrize(
    ("condition", "facts", "outcomes"),
    [
        # What becomes of it for: present, absent, stopped, restarted.
        ("absent", {}, [(OPEN,), NOTHING, NOTHING, (OPEN,)]),
        ("absent", {"leftover": True}, [(OPEN,), (CLEAN,), (CLEAN,), (OPEN,)]),
        ("stale", {}, [(CLEAN, OPEN), (CLEAN,), (CLEAN,), (CLEAN, OPEN)]),
        ("wedged", {}, ["wedged"] * 4),
        ("wedged", OURS, ["wedged"] * 4),
        ("wedged", FORCE, [(KILL, OPEN), (KILL,), (KILL,), (KILL, OPEN)]),
        ("alive", OURS, [NOTHING, (CLOSE,), (STOP,), (HAND_OVER,)]),
        ("alive", {}, [NOTHING, "unmanaged", "unmanaged", "unmanaged"]),
        ("alive", FORCE, [NOTHING, (CLOSE,), (STOP,), (HAND_OVER,)]),
        ("alive", {**OURS, **DEAD}, [(REPLACE,), (CLOSE,), (STOP,), (REPLACE,)]),
        ("alive", DEAD, ["unreachable", "unmanaged", "unmanaged", "unmanaged"]),
        ("alive", {**DEAD, **FORCE}, [(REPLACE,), (CLOSE,), (STOP,), (REPLACE,)]),
        ("alive", {**OURS, **DRIFT}, [(HAND_OVER,), (CLOSE,), (STOP,), (HAND_OVER,)]),
        ("alive", {**OURS, **DRIFT, **IGNORE}, [NOTHING, (CLOSE,), (STOP,), (HAND_OVER,)]),
        ("alive", {**OURS, **DRIFT, **FAIL}, ["drift", (CLOSE,), (STOP,), (HAND_OVER,)]),
        ("alive", {**OURS, **FAIL}, [NOTHING, (CLOSE,), (STOP,), (HAND_OVER,)]),
        # A dead connection is a reason to open anew whatever is said about a difference.
        ("alive", {**OURS, **DEAD, **DRIFT, **FAIL}, [(REPLACE,), (CLOSE,), (STOP,), (REPLACE,)]),
        # Nobody knows what another program's master was opened with.
        ("alive", DRIFT, [NOTHING, "unmanaged", "unmanaged", "unmanaged"]),
    ],
)
def test_a_master(condition: str, facts: Dict[str, Any], outcomes: Any) -> None:
    assert [decide(state, condition=condition, **facts) for state in STATES] == outcomes


def decide(state: str, *, on_drift: str = "restart", force: bool = False, **view: Any) -> object:
    """The steps, or the reason to take none."""
    try:
        return plan_master(MasterView(**view), state=state, on_drift=on_drift, force=force)
    except MuxError as error:
        return error.reason


def every_view() -> Any:
    conditions = ("absent", "stale", "wedged", "alive")
    yes_no = (False, True)
    for condition, managed, leftover, cut_off, drift in itertools.product(
        conditions, yes_no, yes_no, (None, "no answer"), ((), ("user: a -> b",))
    ):
        yield MasterView(condition, managed, leftover, cut_off, drift)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("force", [False, True])
def test_no_plan_does_what_may_not_be_done(state: str, force: bool) -> None:
    for view, on_drift in itertools.product(every_view(), ("restart", "fail", "ignore")):
        try:
            steps = plan_master(view, state=state, on_drift=on_drift, force=force)
        except MuxError:
            assert view.condition in ("wedged", "alive")
            assert not (force and on_drift != "fail")
            continue
        # There is one afterwards where one is wanted, and none where none is.
        last: Optional[str] = steps[-1] if steps else None
        if state in (PRESENT, RESTARTED):
            assert last in OPENING or (last is None and view.condition == "alive")
        else:
            assert last not in OPENING
        if view.condition == "alive" and not (view.managed or force):
            assert steps == ()
        assert (KILL in steps) == (view.condition == "wedged")
        assert not {CLEAN, OPEN} & set(steps) or view.condition != "alive"


def test_what_may_not_be_done_is_explained() -> None:
    drifted = MasterView("alive", managed=True, drift=("user: a -> b", "port: 1 -> 2"))
    with pytest.raises(MuxError, match="user: a -> b; port: 1 -> 2"):
        plan_master(drifted, state=PRESENT, on_drift="fail")
    with pytest.raises(MuxError, match=r"\(no answer\).*force: true"):
        plan_master(MasterView("alive", cut_off="no answer"), state=PRESENT)
    with pytest.raises(MuxError, match="force: true"):
        plan_master(MasterView("alive"), state=ABSENT)
    with pytest.raises(MuxError, match="force: true"):
        plan_master(MasterView("wedged"), state=ABSENT)
