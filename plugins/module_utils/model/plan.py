# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Decisions: what has to be done so that what is observed becomes what is desired.

Check mode, diff and apply all read the same plan. Private to the collection: no promise is made
about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Collection, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from .errors import MuxError
from .forward import LOCAL, Forward, overlaps
from .ledger import Record

PRESENT = "present"
ABSENT = "absent"
STOPPED = "stopped"
RESTARTED = "restarted"

#: What can be done to a master. A plan is a sequence of these, and of what happens to forwardings.
OPEN = "open"
CLEAN = "clean"
CLOSE = "close"
KILL = "kill"
STOP = "stop"
HAND_OVER = "hand over"
REPLACE = "replace"

#: The steps after which there is a new master.
OPENING = (OPEN, HAND_OVER, REPLACE)


@dataclass(frozen=True)
class MasterView:
    """What :func:`plan_master` has to know about a socket.

    :ivar condition: ``alive``, ``absent``, ``stale`` or ``wedged``.
    :ivar leftover: whether a ledger of a master that is gone lies there.
    :ivar cut_off: why the network behind an alive master is dead; ``None`` where it is not.
    :ivar drift: how the master differs from what is wanted.
    """

    condition: str
    managed: bool = False
    leftover: bool = False
    cut_off: Optional[str] = None
    drift: Tuple[str, ...] = ()


def plan_master(
    view: MasterView, *, state: str, on_drift: str = "restart", force: bool = False
) -> Tuple[str, ...]:
    """Decide about one master.

    :raises MuxError: ``wedged``, ``unmanaged``, ``unreachable`` or ``drift``, where nothing may be
        done without being told so.
    """
    if view.condition == "absent":
        if state in (PRESENT, RESTARTED):
            return (OPEN,)
        return (CLEAN,) if view.leftover else ()
    if view.condition == "stale":
        return (CLEAN, OPEN) if state in (PRESENT, RESTARTED) else (CLEAN,)
    if view.condition == "wedged":
        if not force:
            raise MuxError(
                "wedged",
                "the master does not answer; force: true ends its process and whatever runs"
                " through it",
            )
        return (KILL, OPEN) if state in (PRESENT, RESTARTED) else (KILL,)
    mine = view.managed or force
    if state == PRESENT:
        if view.cut_off is not None:
            if not mine:
                raise MuxError(
                    "unreachable",
                    "the master answers but its connection is dead (%s), and another program opened"
                    " it; force: true ends it and opens a new one" % view.cut_off,
                )
            return (REPLACE,)
        if not view.drift or on_drift == "ignore" or not view.managed:
            return ()
        if on_drift == "fail":
            raise MuxError("drift", "the master was opened differently: " + "; ".join(view.drift))
        return (HAND_OVER,)
    if not mine:
        raise MuxError(
            "unmanaged",
            "another program opened this master; force: true treats it as ours",
        )
    if state == RESTARTED:
        return (REPLACE,) if view.cut_off is not None else (HAND_OVER,)
    return (STOP,) if state == STOPPED else (CLOSE,)


Resolve = Callable[[str], FrozenSet[str]]
#: A listening address and port that no record explains.
Foreign = Tuple[str, int]


@dataclass(frozen=True)
class Conflict:
    """A forwarding that is wanted where this master already listens for another."""

    desired: Forward
    #: ``None``: the listener was opened by another tool and its far end cannot be known.
    held: Optional[Record]


@dataclass(frozen=True)
class ForwardPlan:
    """What to cancel, then what to open; ``kept`` pairs what is desired with what is there."""

    close: Tuple[Record, ...] = ()
    #: Listeners without a record which have to go: only a guess of what they are can be cancelled.
    close_foreign: Tuple[Foreign, ...] = ()
    open: Tuple[Forward, ...] = ()
    kept: Tuple[Tuple[Forward, Record], ...] = ()
    conflicts: Tuple[Conflict, ...] = ()
    before: Tuple[str, ...] = ()
    after: Tuple[str, ...] = ()

    @property
    def actions(self) -> bool:
        """Whether anything has to be done."""
        return bool(self.close or self.close_foreign or self.open)


def plan_forwards(
    desired: Sequence[Forward],
    records: Sequence[Record],
    foreign: Sequence[Foreign],
    *,
    resolve: Resolve,
    state: str = PRESENT,
    exclusive: bool = False,
    replace: bool = False,
    broken: Collection[Record] = (),
) -> ForwardPlan:
    """Decide about the forwardings of one master.

    :param desired: the forwardings of the task.
    :param records: those the master is known to hold.
    :param foreign: its listeners that no record explains.
    :param resolve: addresses of a host name.
    :param exclusive: whether all that is not desired goes (``present`` alone).
    :param replace: whether a forwarding in the way goes, instead of being a conflict.
    :param broken: those of the records that do not work: what is desired of them is opened anew.
    """
    by_forward: Dict[Forward, Record] = {}
    for record in records:
        by_forward.setdefault(record.asked, record)
        by_forward[record.forward] = record
    kept: List[Tuple[Forward, Record]] = []
    missing: List[Forward] = []
    for forward in desired:
        held = by_forward.get(forward)
        if held is None:
            missing.append(forward)
        else:
            kept.append((forward, held))

    kept_records = {held for _wanted, held in kept}
    if state == ABSENT:
        gone = tuple(record for record in records if record in kept_records)
        return _with_diff(ForwardPlan(close=gone), records, foreign, broken)

    # Dictionaries for their order and their quick lookup: a thousand of each is normal.
    close = dict.fromkeys(held for _wanted, held in kept if held in broken)
    close_foreign: Dict[Foreign, None] = {}
    if exclusive:
        close.update(dict.fromkeys(record for record in records if record not in kept_records))
        close_foreign = dict.fromkeys(foreign)
    conflicts: List[Conflict] = []
    held_index = _index(records)
    foreign_index = _foreign_index(foreign)
    for forward in missing:
        for record in _in_the_way(forward, held_index, resolve):
            if replace or exclusive:
                close[record] = None
            elif record not in close:
                conflicts.append(Conflict(forward, record))
        for listener in _foreign_in_the_way(forward, foreign_index, resolve):
            if replace or exclusive:
                close_foreign[listener] = None
            else:
                conflicts.append(Conflict(forward, None))
    # One whose port was left to be chosen may be in the way of another: it moves. One that does
    # not work comes back.
    moved = [forward for forward, held in kept if held in close]
    plan = ForwardPlan(
        close=tuple(close),
        close_foreign=tuple(close_foreign),
        open=(*missing, *moved),
        kept=tuple(pair for pair in kept if pair[1] not in close),
        conflicts=tuple(conflicts),
    )
    return _with_diff(plan, records, foreign, broken)


def contradictions(desired: Sequence[Forward], resolve: Resolve) -> List[Tuple[Forward, Forward]]:
    """Pairs of one task that claim the same listener for different far ends."""
    found = []
    seen: Dict[Tuple[str, object], List[Forward]] = {}
    for forward in desired:
        if forward.automatic:
            continue
        for other in seen.setdefault(_place(forward), []):
            if _same_listener(forward, other, resolve):
                found.append((other, forward))
        seen[_place(forward)].append(forward)
    return found


def _place(forward: Forward) -> Tuple[str, object]:
    """Listeners can only be in each other's way within one place: a port or a path of one side."""
    return (forward.side, forward.listen_socket or forward.listen_port)


def _same_listener(one: Forward, other: Forward, resolve: Resolve) -> bool:
    if one.listen_socket is not None:
        return one.listen_socket == other.listen_socket
    if one.listen_host == other.listen_host:
        return True
    return overlaps(one.addresses(resolve), other.addresses(resolve))


def _index(records: Sequence[Record]) -> Mapping[Tuple[str, object], List[Record]]:
    index: Dict[Tuple[str, object], List[Record]] = {}
    for record in records:
        index.setdefault(_place(record.forward), []).append(record)
    return index


def _in_the_way(
    forward: Forward, index: Mapping[Tuple[str, object], List[Record]], resolve: Resolve
) -> List[Record]:
    if forward.automatic:
        return []
    return [
        record
        for record in index.get(_place(forward), [])
        if _same_listener(forward, record.forward, resolve)
    ]


def _foreign_index(foreign: Sequence[Foreign]) -> Mapping[int, List[str]]:
    index: Dict[int, List[str]] = {}
    for address, port in foreign:
        index.setdefault(port, []).append(address)
    return index


def _foreign_in_the_way(
    forward: Forward, index: Mapping[int, List[str]], resolve: Resolve
) -> List[Foreign]:
    """Unknown listeners where this one would listen; a unix socket has port -1 and its path."""
    if forward.side != LOCAL or forward.automatic:
        return []
    if forward.listen_socket is not None:
        return [(path, -1) for path in index.get(-1, []) if path == forward.listen_socket]
    port = forward.listen_port or 0
    wanted = forward.addresses(resolve)
    return [
        (address, port) for address in index.get(port, []) if overlaps(wanted, frozenset({address}))
    ]


def _with_diff(
    plan: ForwardPlan,
    records: Sequence[Record],
    foreign: Sequence[Foreign],
    broken: Collection[Record],
) -> ForwardPlan:
    gone = set(plan.close)
    gone_foreign = set(plan.close_foreign)
    lines = {record: str(record.forward) + " (broken)" * (record in broken) for record in records}
    before = [*lines.values()] + [_unknown(item) for item in foreign]
    after = [line for record, line in lines.items() if record not in gone]
    after += [_unknown(item) for item in foreign if item not in gone_foreign]
    after += [str(forward) for forward in plan.open]
    return ForwardPlan(
        close=plan.close,
        close_foreign=plan.close_foreign,
        open=plan.open,
        kept=plan.kept,
        conflicts=plan.conflicts,
        before=tuple(sorted(before)),
        after=tuple(sorted(after)),
    )


def _unknown(foreign: Foreign) -> str:
    address, port = foreign
    return "%s (opened by another tool)" % (address if port < 0 else "%s port %d" % foreign)
