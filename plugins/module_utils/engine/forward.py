# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward: the forwardings of a running master.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, Mapping, Tuple

from ..model.errors import MuxError
from ..model.forward import REMOTE, Forward, parse_all
from ..model.ledger import Record
from ..model.plan import ABSENT, PRESENT, ForwardPlan, Resolve
from ..model.target import ssh_args
from ..system import ledger_file, listeners
from . import forwarding, lifecycle, master, observe, spec
from .forwarding import Wish
from .observe import Observation, forward_result
from .place import Context, Place, locate


@dataclass(frozen=True)
class _Outcome:
    """What was found, what was decided about it, and what is in place if it was carried out."""

    found: Observation
    decided: ForwardPlan
    in_place: Mapping[Forward, Record]


def run(params: Mapping[str, Any], context: Context) -> Dict[str, Any]:
    """Bring the forwardings that the parameters name into their state.

    :returns: what the module returns.
    :raises MuxError: with any of its reasons.
    """
    wish = Wish(
        parse_all(params["local"], params["remote"], params["dynamic"]),
        state=params["state"],
        exclusive=params["exclusive"],
        replace=params["on_conflict"] == "replace",
        verify=params["verify"],
    )
    if wish.exclusive and wish.state == ABSENT:
        raise MuxError("invalid", "exclusive: goes with state present; absent names what goes")
    place = locate(params, context, login=params["open"])
    resolve = listeners.resolver()
    found = _look(place, wish, context, resolve)
    if not found.alive and ledger_file.settles(
        place.control_path, timeout=lifecycle.lock_bound(place)
    ):
        # Another run was opening it, or handing it over.
        found = _look(place, wish, context, resolve)
    if found.alive:
        return _result(place, wish, _bring_about(place, wish, found, context, resolve))
    if not _without_master(params, place, wish, found, context):
        return _result(place, wish, _Outcome(found, ForwardPlan(), {}))
    if context.check_mode:
        return _result(place, wish, _forecast(wish, found, resolve), opened=True)
    try:
        found = _look(place, wish, context, resolve)
        if not found.alive:
            raise _not_running(place, found)
        outcome = _bring_about(place, wish, found, context, resolve)
    except MuxError as error:
        error.details["changed"] = True
        raise
    return _result(place, wish, outcome, opened=True)


def _bring_about(
    place: Place, wish: Wish, found: Observation, context: Context, resolve: Resolve
) -> _Outcome:
    outcome = _Outcome(found, forwarding.plan(wish, found, resolve), {})
    if wish.verify == "connect" and wish.state == PRESENT:
        _verify(place, wish, outcome, context)
    asks = any(forward.side == REMOTE for forward in wish.desired) and (
        wish.verify != "none" or wish.state == ABSENT
    )
    left = ledger_file.is_left(place.control_path)
    if not context.check_mode and (outcome.decided.actions or asks or left):
        # Another run may change the same master: look again once it is kept out.
        with ledger_file.lock(place.control_path, timeout=lifecycle.lock_bound(place)) as lock:
            if lock.left:
                lifecycle.finish_opening(place, context)
            found = _look(place, wish, context, resolve)
            if not found.alive:
                raise _not_running(place, found)
            outcome = _carry_out(place, wish, found, context, resolve, asks=asks)
    return outcome


def _look(place: Place, wish: Wish, context: Context, resolve: Resolve) -> Observation:
    return observe.observe(
        place.control_path, context, timeout=place.timeout, desired=wish.desired, resolve=resolve
    )


def _carry_out(
    place: Place,
    wish: Wish,
    found: Observation,
    context: Context,
    resolve: Resolve,
    *,
    asks: bool,
) -> _Outcome:
    in_place: Mapping[Forward, Record] = {}
    with context.connect(place.control_path, timeout=place.timeout) as client:
        if asks:
            found = forwarding.ask_about_remote(client, wish, found)
        decided = forwarding.plan(wish, found, resolve)
        if decided.actions:
            in_place = forwarding.carry_out_or_fail(
                client, decided, wish, found, place.control_path, resolve
            )
    return _Outcome(found, decided, in_place)


def _without_master(
    params: Mapping[str, Any], place: Place, wish: Wish, found: Observation, context: Context
) -> bool:
    """What there is to do without a running master; whether one had to be opened.

    :raises MuxError: ``not_running`` or ``wedged``.
    """
    if found.condition == observe.WEDGED:
        raise MuxError("wedged", "the master at %s does not answer" % place.control_path)
    if wish.state == ABSENT:
        return False
    if not params["open"]:
        raise _not_running(place, found)
    defaults = {name: option.get("default") for name, option in spec.SSH_MASTER.items()}
    shared = {name: value for name, value in params.items() if name in _OPENING}
    master.run({**defaults, **shared}, context)
    return True


_OPENING = {*spec.MASTER, *spec.SECRETS, spec.EXTRA_ARGUMENTS}


def _not_running(place: Place, found: Observation) -> MuxError:
    return MuxError(
        "not_running",
        "no master at %s%s; open one with ssh_master, or set open: true"
        % (place.control_path, " (stale socket)" if found.condition == observe.STALE else ""),
        control_path=place.control_path,
    )


def _forecast(wish: Wish, found: Observation, resolve: Resolve) -> _Outcome:
    """What would be done where a master has to be opened, which gets what a lost one had."""
    if found.lost is not None:
        found = replace(found, records=found.lost.records)
    return _Outcome(found, forwarding.plan(wish, found, resolve), {})


def _verify(place: Place, wish: Wish, outcome: _Outcome, context: Context) -> None:
    """Before anything is changed: what leads nowhere is not opened."""
    found = outcome.found
    failures = forwarding.unreachable(
        wish.desired,
        place.control_path,
        context,
        openssh=None if found.ledger is None else found.ledger.openssh,
        timeout=place.timeout,
    )
    if failures:
        failed = {failure.forward for failure in failures}
        kept = {wanted: held for wanted, held in outcome.decided.kept if wanted not in failed}
        raise forwarding.failed(failures, kept, found.evidence, changed=False)


def _result(place: Place, wish: Wish, outcome: _Outcome, *, opened: bool = False) -> Dict[str, Any]:
    decided, found = outcome.decided, outcome.found
    in_place = {**dict(decided.kept), **outcome.in_place}
    closed = {wanted: r for r in decided.close for wanted in (r.asked, r.forward)}
    forwards = []
    for forward in wish.desired:
        if wish.state == ABSENT:
            record = closed.pop(forward, None) or _planned(forward)
            forwards.append(forward_result(record, "absent", None))
        elif forward in in_place:
            forwards += forwarding.present_results([in_place[forward]], found.evidence)
        else:
            forwards.append(forward_result(_planned(forward), "present", None))
    if wish.state == PRESENT:
        back = {record.forward for record in in_place.values()}.union(decided.open)
        gone = (record for record in decided.close if record.forward not in back)
        forwards += [forward_result(record, "absent", None) for record in gone]
    header = place.control_path
    return {
        "changed": opened or decided.actions,
        "control_path": place.control_path,
        "ssh_args": ssh_args(place.control_path),
        "forwards": forwards,
        "diff": {
            "before_header": header,
            "after_header": header,
            "before": _lines(() if opened else decided.before),
            "after": _lines(decided.after),
        },
    }


def _planned(forward: Forward) -> Record:
    return Record(forward, automatic=forward.automatic)


def _lines(lines: Tuple[str, ...]) -> str:
    return "".join(line + "\n" for line in lines)
