# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master: a master as the state of a socket.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Optional, Tuple

from ..model import plan as plans
from ..model.errors import MuxError
from ..model.forward import Forward, parse_all
from ..model.plan import ForwardPlan, MasterView, Resolve
from ..model.target import Difference, drift, lasting, ssh_args
from ..system import ledger_file, listeners
from ..system.ledger_file import Lock
from . import forwarding, lifecycle, observe
from .forwarding import Wish
from .observe import Observation
from .place import Context, Place, locate


@dataclass(frozen=True)
class _Plan:
    """All that one run does: to the master first, to its forwardings then."""

    steps: Tuple[str, ...]
    forwards: ForwardPlan
    wish: Wish
    drift: Tuple[Difference, ...] = ()
    cut_off: Optional[str] = None

    @property
    def actions(self) -> bool:
        return bool(self.steps) or self.forwards.actions

    @property
    def why(self) -> str:
        reasons = [str(difference) for difference in self.drift]
        return "; ".join(reasons + ([self.cut_off] if self.cut_off else []))


@dataclass(frozen=True)
class _Outcome:
    """What was there, what was decided about it, and what is there now."""

    before: Observation
    decided: _Plan
    after: Observation


def run(params: Mapping[str, Any], context: Context) -> Dict[str, Any]:
    """Bring a master into the state that the parameters name.

    :returns: what the module returns.
    :raises MuxError: with any of its reasons.
    """
    state = params["state"]
    wish = Wish(parse_all(params["local"], params["remote"], params["dynamic"]))
    if wish.desired and state in (plans.ABSENT, plans.STOPPED):
        raise MuxError("invalid", "state %s ends every forwarding; name none" % state)
    place = locate(params, context, login=state in (plans.PRESENT, plans.RESTARTED))
    resolve = listeners.resolver()
    if lifecycle.is_interrupted(place.control_path) and not context.check_mode:
        return _result(place, _apply(params, place, wish, context, resolve))
    written = ledger_file.stamp(place.control_path)
    found = _look(place, wish, context, resolve)
    if found.alive and (
        ledger_file.settles(place.control_path, timeout=lifecycle.lock_bound(place))
        or ledger_file.stamp(place.control_path) != written
    ):
        # Another run has only just opened it: without a ledger, or without its forwardings yet.
        found = _look(place, wish, context, resolve)
    outcome = _Outcome(found, _decide(params, place, wish, found, context, resolve), found)
    if outcome.decided.actions and not context.check_mode:
        outcome = _apply(params, place, wish, context, resolve)
    return _result(place, outcome)


def _look(place: Place, wish: Wish, context: Context, resolve: Resolve) -> Observation:
    return observe.observe(
        place.control_path, context, timeout=place.timeout, desired=wish.desired, resolve=resolve
    )


def _decide(
    params: Mapping[str, Any],
    place: Place,
    wish: Wish,
    found: Observation,
    context: Context,
    resolve: Resolve,
) -> _Plan:
    state = params["state"]
    lives_on = state in (plans.PRESENT, plans.RESTARTED)
    cut_off = None
    if found.alive and lives_on:
        cut_off = lifecycle.cut_off(place.control_path, context, timeout=place.timeout)
    differences: Tuple[Difference, ...] = ()
    if found.ledger is not None and place.effective:
        differences = tuple(drift(found.ledger.effective, lasting(place.effective)))
    steps = plans.plan_master(
        MasterView(
            condition=found.condition,
            managed=found.managed,
            leftover=found.lost is not None,
            cut_off=cut_off,
            drift=tuple(str(difference) for difference in differences),
        ),
        state=state,
        on_drift=params["on_drift"],
        force=params["force"],
    )
    if place.target is None and set(plans.OPENING) & set(steps):
        raise MuxError(
            "invalid" if found.alive else "not_running",
            "to open a master at %s, host is needed" % place.control_path,
            control_path=place.control_path,
        )
    there = forwarding.plan(Wish(()), found, resolve).before
    if not lives_on:
        return _Plan(steps, ForwardPlan(before=there), wish)
    if steps:
        # What the old one has, the new one gets; what the task asks for comes first.
        wish = _with_restored(wish, found, params["restore"], resolve)
        fresh = forwarding.plan(wish, Observation(observe.ALIVE), resolve)
        decided = replace(fresh, before=there)
        return _Plan(steps, decided, wish, differences, cut_off)
    return _Plan(steps, forwarding.plan(wish, found, resolve), wish)


def _with_restored(wish: Wish, found: Observation, restore: bool, resolve: Resolve) -> Wish:
    """The wish and, as far as nothing of it is in their way, the forwardings that were there."""
    records = found.records
    if not found.alive and found.lost is not None:
        records = found.lost.records
    desired = list(wish.desired)
    preferred: Dict[Forward, int] = {}
    for record in records:
        if record.automatic:
            preferred[record.asked] = record.forward.listen_port or 0
        if not restore or any(record.satisfies(forward) for forward in desired):
            continue
        if not plans.contradictions([*wish.desired, record.forward], resolve):
            desired.append(record.asked)
    return replace(wish, desired=tuple(desired), preferred=preferred)


def _apply(
    params: Mapping[str, Any], place: Place, wish: Wish, context: Context, resolve: Resolve
) -> _Outcome:
    """Do it, under the lock and from what is there by then: another run may have been first."""
    lifecycle.prepare(place)
    with ledger_file.lock(place.control_path, timeout=lifecycle.lock_bound(place)) as lock:
        left = lifecycle.recover(place, context, lock)
        found = _look(place, wish, context, resolve)
        if left and params["state"] in (plans.PRESENT, plans.RESTARTED):
            wish = _with_restored(wish, replace(found, records=left), params["restore"], resolve)
        decided = _decide(params, place, wish, found, context, resolve)
        after = found
        if decided.actions:
            after = _carry_out(place, decided, found, context, lock, resolve)
    outcome = _Outcome(found, decided, after)
    _drain(params["drain_timeout"], outcome)
    return outcome


def _carry_out(
    place: Place,
    decided: _Plan,
    found: Observation,
    context: Context,
    lock: Lock,
    resolve: Resolve,
) -> Observation:
    path = place.control_path
    for step in decided.steps:
        context.log("%s: %s%s" % (path, step, decided.why and " (%s)" % decided.why))
        if step == plans.KILL:
            lifecycle.kill(place, found)
        elif step == plans.CLOSE:
            lifecycle.close(place, found, context)
        elif step == plans.STOP:
            lifecycle.stop(path, found, context, timeout=place.timeout)
        elif step == plans.CLEAN:
            lifecycle.clean(path, found)
        elif step == plans.OPEN:
            found = lifecycle.open_master(place, context, lock)
        else:
            dead = step == plans.REPLACE
            found = lifecycle.hand_over(place, found, context, lock, dead=dead)
    if decided.steps and decided.steps[-1] not in plans.OPENING:
        # Not sooner: a login that fails leaves what the next one is to restore.
        lifecycle.forget(path)
    if decided.forwards.actions:
        try:
            with context.connect(path, timeout=place.timeout) as client:
                forwarding.carry_out_or_fail(
                    client, decided.forwards, decided.wish, found, path, resolve
                )
        except MuxError as error:
            if decided.steps:
                error.details["changed"] = True
            raise
    return _look(place, decided.wish, context, resolve)


def _drain(seconds: Optional[int], outcome: _Outcome) -> None:
    """Wait for what was stopped, outside of the lock: it may take as long as a session does."""
    process = lifecycle.process_of(outcome.before)
    stopped = outcome.decided.steps[-1:] in ((plans.STOP,), (plans.HAND_OVER,))
    if stopped and seconds is not None and process is not None:
        lifecycle.drain(process, float(seconds))


def _result(place: Place, outcome: _Outcome) -> Dict[str, Any]:
    before, after = _pictures(outcome.before, outcome.decided)
    return {
        "changed": outcome.decided.actions,
        "control_path": place.control_path,
        "ssh_args": ssh_args(place.control_path),
        "master": describe(place, outcome.after),
        "diff": {
            "before_header": place.control_path,
            "after_header": place.control_path,
            "before": before,
            "after": after,
        },
    }


def _pictures(before: Observation, decided: _Plan) -> Tuple[str, str]:
    """What was there and what will be, as lines of text for a diff."""
    if before.alive:
        headline = "master, process %s%s" % (before.pid, "" if before.managed else ", not ours")
    elif before.condition == observe.WEDGED:
        headline = "master that does not answer, process %s" % before.pid
    else:
        headline = "no master" + (", stale socket" if before.condition == observe.STALE else "")
    after = headline
    if decided.steps:
        opened = decided.steps[-1] in plans.OPENING
        after = "master, new process" if opened else "no master"
    lost = () if before.lost is None else before.lost.records
    return (
        _lines(
            headline,
            *("%s %s" % (one.keyword, one.before) for one in decided.drift),
            *decided.forwards.before,
            *sorted("lost: %s" % record.forward for record in lost),
        ),
        _lines(
            after,
            *("%s %s" % (one.keyword, one.after) for one in decided.drift),
            *decided.forwards.after,
        ),
    )


def _lines(*lines: str) -> str:
    return "".join(line + "\n" for line in lines)


def describe(place: Place, found: Observation) -> Dict[str, Any]:
    """The ``master`` return value."""
    ledger = found.ledger
    target = dict(place.summary())
    if ledger is not None and ledger.target:
        target = {key: ledger.target.get(key, value) for key, value in target.items()}
    reason = None
    if found.condition == observe.WEDGED:
        reason = "wedged"
    elif not found.alive:
        reason = "not_running"
    return {
        "control_path": place.control_path,
        "pid": found.pid,
        "alive": found.alive,
        "managed": found.managed,
        **target,
        # The ledger's does not move when the system's clock is set.
        "started": _timestamp(found.started if ledger is None else ledger.started),
        "openssh": None if ledger is None else ledger.openssh,
        "forwards": observe.forward_results(found.records, found.evidence),
        "reason": reason,
    }


def _timestamp(seconds: Optional[float]) -> Optional[str]:
    if seconds is None:
        return None
    moment = dt.datetime.fromtimestamp(seconds, tz=dt.timezone.utc)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
