# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward: the forwardings of a running master.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple

from ..model.errors import MuxError
from ..model.forward import Forward, parse_all
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
    opened = False
    if not found.alive:
        opened = _without_master(params, place, wish, found, context)
        if opened and not context.check_mode:
            found = _look(place, wish, context, resolve)
    if not found.alive:
        return _result(place, wish, _forecast(wish, found, resolve), opened)
    if wish.verify == "connect" and wish.state == PRESENT:
        _verify(wish, place, found, context)
    outcome = _Outcome(found, forwarding.plan(wish, found, resolve), {})
    if outcome.decided.actions and not context.check_mode:
        # Another run may change the same master: look again once it is kept out.
        bound = 2 * (lifecycle.login_bound(place) + place.timeout)
        with ledger_file.lock(place.control_path, timeout=bound):
            found = _look(place, wish, context, resolve)
            if not found.alive:
                raise _not_running(place, found)
            outcome = _carry_out(place, wish, found, context, resolve)
    return _result(place, wish, outcome, opened)


def _look(place: Place, wish: Wish, context: Context, resolve: Resolve) -> Observation:
    return observe.observe(
        place.control_path, context, timeout=place.timeout, desired=wish.desired, resolve=resolve
    )


def _carry_out(
    place: Place, wish: Wish, found: Observation, context: Context, resolve: Resolve
) -> _Outcome:
    decided = forwarding.plan(wish, found, resolve)
    with context.connect(place.control_path, timeout=place.timeout) as client:
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
    """What would be done, where no master runs: in check mode, or to end what is not there."""
    return _Outcome(found, forwarding.plan(wish, found, resolve), {})


def _verify(wish: Wish, place: Place, found: Observation, context: Context) -> None:
    """Before anything is changed: what leads nowhere is not opened."""
    failures = forwarding.unreachable(
        wish.desired,
        place.control_path,
        context,
        openssh=None if found.ledger is None else found.ledger.openssh,
        timeout=place.timeout,
    )
    if failures:
        raise forwarding.failed(failures, {}, changed=False)


def _result(place: Place, wish: Wish, outcome: _Outcome, opened: bool) -> Dict[str, Any]:
    decided, found = outcome.decided, outcome.found
    forwards: List[Dict[str, Any]] = []
    kept = dict(decided.kept)
    state = "absent" if wish.state == ABSENT else "present"
    for forward in wish.desired:
        record = outcome.in_place.get(forward) or kept.get(forward) or _planned(forward)
        evidence = found.evidence.get(record.forward)
        if forward in outcome.in_place and forward not in kept:
            evidence = observe.BY_LISTENER if record.inodes else observe.BY_MASTER
        forwards.append(forward_result(record, state, evidence))
    if wish.state == PRESENT:
        forwards += [forward_result(record, "absent", None) for record in decided.close]
    header = place.control_path
    return {
        "changed": opened or decided.actions,
        "control_path": place.control_path,
        "ssh_args": ssh_args(place.control_path),
        "forwards": forwards,
        "diff": {
            "before_header": header,
            "after_header": header,
            "before": _lines(decided.before),
            "after": _lines(decided.after),
        },
    }


def _planned(forward: Forward) -> Record:
    return Record(forward, automatic=forward.automatic)


def _lines(lines: Tuple[str, ...]) -> str:
    return "".join(line + "\n" for line in lines)
