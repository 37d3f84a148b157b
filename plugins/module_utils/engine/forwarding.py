# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forwardings: the plan for a master's forwardings, carried out and checked.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, Iterable, List, Mapping, Optional, Sequence, Tuple

from ..model.errors import MuxError
from ..model.forward import DYNAMIC, LOCAL, REMOTE, Forward
from ..model.ledger import Ledger, Record, settle
from ..model.plan import ABSENT, ForwardPlan, Resolve, contradictions, plan_forwards
from ..protocol.messages import STREAMLOCAL
from ..system import ledger_file, listeners, processes
from ..system.listeners import Listener
from ..system.mux_client import (
    ForwardOutcome,
    MuxClient,
    MuxClientError,
    MuxRefused,
    MuxTimeout,
)
from . import far_end, observe
from .observe import Observation, forward_result, places, to_wire, wire_hosts
from .place import Context

#: Far ends that are tried at once: those which do not answer then cost one timeout together.
_AT_ONCE = 64

#: How often another free port is tried when somebody took the chosen one in the meantime.
_PORT_ATTEMPTS = 5


@dataclass(frozen=True)
class Wish:
    """What a task says about the forwardings of a master.

    :ivar preferred: ports to take again for forwardings whose port was chosen before.
    """

    desired: Tuple[Forward, ...]
    state: str = "present"
    exclusive: bool = False
    replace: bool = False
    verify: str = "listen"
    preferred: Mapping[Forward, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """One forwarding that could not be had.

    :ivar unexplained: whether the server has a reason that it was not asked for.
    """

    forward: Forward
    reason: str
    message: str
    unexplained: bool = False


def plan(wish: Wish, observation: Observation, resolve: Resolve) -> ForwardPlan:
    """Decide, and refuse what cannot be decided.

    :raises MuxError: ``forward_conflict``.
    """
    for one, other in contradictions(wish.desired, resolve):
        raise MuxError(
            "forward_conflict", "%s and %s want the same listener in one task" % (one, other)
        )
    decided = plan_forwards(
        wish.desired,
        observation.records,
        observation.foreign,
        resolve=resolve,
        state=wish.state,
        exclusive=wish.exclusive,
        replace=wish.replace,
        broken=() if wish.verify == "none" else observation.broken,
    )
    if decided.conflicts:
        first = decided.conflicts[0]
        held = "a forwarding of another tool" if first.held is None else str(first.held.forward)
        raise MuxError(
            "forward_conflict",
            "%s: this master already holds %s there; cancel it, or set on_conflict to replace"
            % (first.desired, held),
            forwards=observe.forward_results(observation.records, observation.evidence),
        )
    return decided


def carry_out(
    client: MuxClient,
    decided: ForwardPlan,
    wish: Wish,
    observation: Observation,
    control_path: str,
    resolve: Resolve,
) -> Tuple[Tuple[Record, ...], Dict[Forward, Record], List[Failure]]:
    """Cancel and open what the plan says, over one connection, and write the ledger.

    :returns: what the master holds now, the record of each desired forwarding that is in place,
        and what failed.
    """
    failures: List[Failure] = []
    refused = list(() if observation.ledger is None else observation.ledger.refused)
    gone = _close(client, decided.close, failures)
    _close_foreign(client, decided, observation, failures)
    in_place = dict(decided.kept)
    preferred = {**_former_ports(observation), **wish.preferred}
    opened = _open(client, decided.open, preferred, resolve, failures, refused)
    in_place.update(opened)
    held = [record for record in observation.records if record not in gone]
    held += opened.values()
    inodes = None if observation.pid is None else listeners.socket_inodes(observation.pid)
    seen = None if observation.pid is None else listeners.listening(observation.pid, inodes)
    if seen is not None:
        held, in_place = _with_inodes(held, in_place, seen, resolve)
        partial = _partly_bound(list(opened), in_place, seen, resolve)
        halves = [in_place[failure.forward] for failure in partial]
        held = [record for record in held if record not in halves]
        if wish.verify == "none":
            # Not as it should be: without inodes the next look is a closer one.
            held += [replace(record, inodes=frozenset()) for record in halves]
        else:
            _close(client, halves, failures)
            failures += partial
            for failure in partial:
                del in_place[failure.forward]
    if not wish.exclusive:
        held += _reopen(
            [record for record in decided.close if record in gone], client, failures, resolve
        )
    try:
        write_ledger(
            control_path, observation, tuple(held), seen or (), inodes, resolve, tuple(refused)
        )
    except MuxError as error:
        error.details["changed"] = True
        raise
    return tuple(held), in_place, failures


def _reopen(
    closed: Sequence[Record], client: MuxClient, failures: Sequence[Failure], resolve: Resolve
) -> List[Record]:
    """What made room in vain comes back, as far as it does; without the inodes that it had."""
    in_vain = [
        replace(record, inodes=frozenset())
        for record in closed
        if any(contradictions((record.forward, failure.forward), resolve) for failure in failures)
    ]
    return [record for record, outcome in _ask_to_open(client, in_vain, []) if outcome.ok]


def _former_ports(observation: Observation) -> Dict[Forward, int]:
    """The ports that were chosen before, by a master that is gone or for what was cancelled."""
    ledger = observation.ledger or observation.lost
    records = () if ledger is None else ledger.records
    return {r.asked: r.forward.listen_port or 0 for r in records if r.automatic}


def ask_about_remote(client: MuxClient, wish: Wish, observation: Observation) -> Observation:
    """What a master holds, after it was asked about the remote forwardings of a task.

    Their listeners are on the server and cannot be seen, and the only question that there is asks
    for what is wanted anyway: what is recorded and was cancelled behind our back is open again
    afterwards, what is unwanted and was never recorded is cancelled.
    """
    known = {wanted: r for r in observation.records for wanted in (r.forward, r.asked)}
    remote = [forward for forward in wish.desired if forward.side == REMOTE]
    if wish.state == ABSENT:
        unseen = [_to_open(forward, None) for forward in remote if forward not in known]
        outcomes = client.close_forwards([to_wire(record) for record in unseen])
        found = (record for record, outcome in zip(unseen, outcomes) if outcome.ok)
        return replace(observation, records=(*observation.records, *found))
    recorded = list(dict.fromkeys(known[forward] for forward in remote if forward in known))
    lost = set()
    ledger = observation.ledger
    for record, outcome in zip(recorded, client.open_forwards([to_wire(r) for r in recorded])):
        if not outcome.ok or outcome.port not in (None, record.forward.listen_port):
            lost.add(record)
        if not outcome.ok and not record.automatic and ledger is not None:
            ledger = replace(ledger, refused=(*ledger.refused, record))
    held = tuple(record for record in observation.records if record not in lost)
    return replace(observation, records=held, ledger=ledger)


def carry_out_or_fail(
    client: MuxClient,
    decided: ForwardPlan,
    wish: Wish,
    observation: Observation,
    control_path: str,
    resolve: Resolve,
) -> Dict[Forward, Record]:
    """As :func:`carry_out`; the records of the desired forwardings, all of them in place.

    :raises MuxError: the reason of the first one that is not; ``forwards`` tells of each.
    """
    held, in_place, failures = carry_out(client, decided, wish, observation, control_path, resolve)
    if failures:
        before = {record.forward for record in observation.records}
        mended = any(
            wanted in decided.open and record.forward in before
            for wanted, record in in_place.items()
        )
        foreign = len(decided.close_foreign) - len(
            [failure for failure in failures if failure.reason == "forward_conflict"]
        )
        changed = mended or foreign > 0 or before != {record.forward for record in held}
        raise failed(failures, in_place, observation.evidence, changed=changed)
    return in_place


def failed(
    failures: Sequence[Failure],
    in_place: Mapping[Forward, Record],
    evidence: Mapping[Forward, str],
    *,
    changed: bool,
) -> MuxError:
    """The failure of a task, naming each forwarding that failed and those that are in place."""
    lines = ["%s: %s" % (failure.forward, failure.message) for failure in failures]
    there = ", ".join(str(record.forward) for record in in_place.values()) or "none"
    return MuxError(
        failures[0].reason,
        "%s; in place: %s" % ("; ".join(lines), there),
        changed=changed,
        forwards=[
            *present_results(in_place.values(), evidence),
            *(
                dict(
                    forward_result(Record(failure.forward), "failed", None),
                    reason=failure.reason,
                    msg=failure.message,
                )
                for failure in failures
            ),
        ],
    )


def present_results(
    records: Iterable[Record], evidence: Mapping[Forward, str]
) -> List[Dict[str, Any]]:
    """The ``forwards`` return value for what is in place.

    :param evidence: of what was there before; what was not is known by the master's answer, and by
        its listener where that was seen.
    """
    return [
        forward_result(
            record,
            "present",
            evidence.get(
                record.forward, observe.BY_LISTENER if record.inodes else observe.BY_MASTER
            ),
        )
        for record in records
    ]


def write_ledger(
    control_path: str,
    observation: Observation,
    records: Tuple[Record, ...],
    seen: Sequence[Listener],
    inodes: Optional[FrozenSet[int]],
    resolve: Resolve,
    refused: Tuple[Record, ...],
) -> None:
    """Record what the master holds now; also for a master that somebody else opened.

    :param seen: the listening sockets of its process, and ``inodes`` all of its sockets.
    """
    if observation.pid is None or observation.started is None:
        return  # a process that we cannot see: nothing could be checked against it later
    known = observation.ledger or Ledger(
        observation.pid, observation.started, processes.boot_time()
    )
    explained = {key for record in records for key in places(record.forward, resolve)}
    foreign = {
        (listener.address, listener.port)
        for listener in seen
        if not observe.is_control_socket(listener, control_path)
    }
    ledger_file.write(
        control_path,
        replace(
            known,
            records=records,
            foreign=tuple(sorted(foreign - explained)),
            inodes=inodes or frozenset(),
            refused=refused,
        ),
    )


def _close(client: MuxClient, records: Sequence[Record], failures: List[Failure]) -> set[Record]:
    gone = set()
    for record, outcome in zip(records, client.close_forwards([to_wire(r) for r in records])):
        # "port not forwarded": somebody was faster, which is what was wanted.
        if outcome.ok or "not forwarded" in outcome.message:
            gone.add(record)
            if record.forward.side == LOCAL and record.forward.listen_socket is not None:
                listeners.remove_dead_socket(record.forward.listen_socket)
        else:
            failures.append(
                Failure(
                    record.forward, "forward_refused", "cannot be cancelled: " + outcome.message
                )
            )
    return gone


def _close_foreign(
    client: MuxClient, decided: ForwardPlan, observation: Observation, failures: List[Failure]
) -> None:
    """Cancel listeners of unknown purpose, as far as one can: only SOCKS has no far end to name."""
    guesses = []
    for address, port in decided.close_foreign:
        if port > 0:
            forward = Forward(DYNAMIC, listen_host=address, listen_port=port)
            hosts = dict.fromkeys((address, "localhost", "", "*"))
            guesses += [Record(forward, wire_host=host) for host in hosts]
    if not decided.close_foreign:
        return
    client.close_forwards([to_wire(guess) for guess in guesses])
    seen = () if observation.pid is None else listeners.listening(observation.pid) or ()
    left = listeners.by_address(seen)
    for address, port in decided.close_foreign:
        if (address, port) in left:
            forward = (
                Forward("local", listen_socket=address)
                if port < 0
                else Forward("dynamic", listen_host=address, listen_port=port)
            )
            failures.append(
                Failure(
                    forward,
                    "forward_conflict",
                    "another tool opened the listener %s and OpenSSH cancels a forwarding only by"
                    " its far end, which it does not tell; ssh_master with state restarted drops it"
                    % (address if port < 0 else "%s port %d" % (address, port)),
                )
            )


def _open(
    client: MuxClient,
    wanted: Sequence[Forward],
    preferred: Mapping[Forward, int],
    resolve: Resolve,
    failures: List[Failure],
    refused: List[Record],
) -> Dict[Forward, Record]:
    """Open forwardings, all in one go; the records of those that the master accepted.

    :param refused: as in the ledger; changed here.
    """
    opened: Dict[Forward, Record] = {}
    pending = [
        _to_open(forward, _port_for(forward, preferred.get(forward), resolve)) for forward in wanted
    ]
    for attempt in range(_PORT_ATTEMPTS):
        for record in pending:
            if record.forward.side == LOCAL and record.forward.listen_socket is not None:
                listeners.remove_dead_socket(record.forward.listen_socket)
        again = []
        for record, outcome in _ask_to_open(client, pending, failures):
            if outcome.ok:
                settled = _settled(record, outcome.port)
                if _leads_to_its_far_end(client, settled, refused, failures):
                    opened[record.asked] = settled
            elif record.automatic and record.forward.side == LOCAL and attempt < _PORT_ATTEMPTS - 1:
                again.append(_to_open(record.asked, _port_for(record.asked, None, resolve)))
            elif record.wire_host != wire_hosts(record.forward)[-1]:
                # Perhaps another tool asked for it, in ssh's own spelling of "no address".
                again.append(replace(record, wire_host=wire_hosts(record.forward)[-1]))
            else:
                failures.append(_refused(record, outcome.message, resolve))
                if record.forward.side == REMOTE and not record.automatic:
                    refused.append(record)
        pending = again
        if not pending:
            break
    return opened


def _ask_to_open(
    client: MuxClient, records: Sequence[Record], failures: List[Failure]
) -> List[Tuple[Record, ForwardOutcome]]:
    """Ask for all of them; those without an answer fail, and what has one stays known."""
    try:
        return list(zip(records, client.open_forwards(map(to_wire, records))))
    except MuxClientError as error:
        answers = {outcome.forward: outcome for outcome in error.outcomes}
        reason = "timeout" if isinstance(error, MuxTimeout) else "not_running"
        failures += [
            Failure(record.asked, reason, str(error))
            for record in records
            if to_wire(record) not in answers
        ]
        return [(r, answers[to_wire(r)]) for r in records if to_wire(r) in answers]


def _settled(record: Record, port: Optional[int]) -> Record:
    return replace(record, forward=record.forward.with_port(port)) if port else record


def _leads_to_its_far_end(
    client: MuxClient, record: Record, refused: List[Record], failures: List[Failure]
) -> bool:
    """Open a remote forwarding anew until it does: see :func:`settle`."""
    if record.forward.side != REMOTE or record.automatic:
        return True
    turns, refused[:] = settle(record, refused)
    request = to_wire(record)
    for _turn in range(turns):
        client.close_forwards([request])
        (outcome,) = client.open_forwards([request])
        if not outcome.ok:
            failures.append(Failure(record.asked, "forward_refused", outcome.message))
            return False
    return True


def _to_open(forward: Forward, port: Optional[int]) -> Record:
    chosen = forward if port is None else forward.with_port(port)
    return Record(chosen, automatic=forward.automatic, wire_host=wire_hosts(forward)[0])


def _port_for(forward: Forward, former: Optional[int], resolve: Resolve) -> Optional[int]:
    """A port for a local forwarding that leaves it open: the former one, where it is free.

    OpenSSH has no -L 0 (readconf.c, parse_forward).
    """
    if not forward.automatic or forward.side == REMOTE:
        return None
    addresses = forward.addresses(resolve)
    if former and all(listeners.bind_error(a, former) != errno.EADDRINUSE for a in addresses):
        return former
    return listeners.free_port(addresses)


def _refused(record: Record, message: str, resolve: Resolve) -> Failure:
    """Why: the master says little, for a local listener the system tells more."""
    forward = record.forward
    if forward.side == REMOTE:
        hint = "the port may be in use there, below 1024, or not permitted by PermitListen"
        if forward.listen_socket is not None:
            hint = (
                "a socket file may be left there from before, which the server removes by itself"
                " only with StreamLocalBindUnlink yes in its sshd_config"
            )
        return Failure(
            record.asked, "forward_refused", "the server refuses it (%s): %s" % (message, hint)
        )
    if forward.listen_socket is not None:
        if os.path.lexists(forward.listen_socket):
            return Failure(
                record.asked, "listen_in_use", "%s exists already" % forward.listen_socket
            )
        return Failure(record.asked, "forward_refused", message)
    port = forward.listen_port or 0
    addresses = sorted(forward.addresses(resolve))
    if not addresses:
        return Failure(
            record.asked, "forward_refused", "%s has no address here" % forward.listen_host
        )
    codes = {address: listeners.bind_error(address, port) for address in addresses}
    for address, code in codes.items():
        if code == errno.EADDRINUSE:
            return Failure(
                record.asked,
                "listen_in_use",
                "another process listens on %s port %d" % (address, port),
            )
    for address, code in codes.items():
        if code is not None:
            return Failure(
                record.asked,
                "forward_refused",
                "%s port %d: %s" % (address, port, os.strerror(code)),
            )
    return Failure(record.asked, "forward_refused", message)


def _with_inodes(
    held: Sequence[Record],
    in_place: Mapping[Forward, Record],
    seen: Sequence[Listener],
    resolve: Resolve,
) -> Tuple[List[Record], Dict[Forward, Record]]:
    by_address = listeners.by_address(seen)
    renewed: Dict[Record, Record] = {}
    for record in held:
        found = (by_address.get(place) for place in places(record.forward, resolve))
        inodes = frozenset(item.inode for item in found if item and item.inode is not None)
        renewed[record] = replace(record, inodes=inodes)
    return (
        list(renewed.values()),
        {wanted: renewed.get(record, record) for wanted, record in in_place.items()},
    )


def _partly_bound(
    opened: Sequence[Forward],
    in_place: Mapping[Forward, Record],
    seen: Sequence[Listener],
    resolve: Resolve,
) -> List[Failure]:
    """Forwardings that the master calls open but which somebody else holds in part.

    With 127.0.0.1 taken, "localhost" binds ::1 alone and reports success (channels.c,
    channel_setup_fwd_listener_tcpip): a connection would reach the other program.
    """
    by_address = listeners.by_address(seen)
    found = []
    for forward in opened:
        for address, port in places(in_place[forward].forward, resolve):
            if (address, port) in by_address or port < 0:
                continue
            if listeners.bind_error(address, port) == errno.EADDRINUSE:
                found.append(
                    Failure(
                        forward,
                        "listen_in_use",
                        "another process listens on %s port %d" % (address, port),
                    )
                )
                break
    return found


def can_be_tried(forward: Forward, openssh: Optional[str]) -> bool:
    """Whether :func:`unreachable` can tell anything about a forwarding.

    A master opens a stdio forwarding to a unix socket since OpenSSH 9.4; an older one asks the
    server for a host of that name (channels.c, channel_connect_stdio_fwd).

    :param openssh: the version of the master, where it is known.
    """
    if forward.connect is None:
        return False
    if forward.type == REMOTE or forward.connect_socket is None:
        return True
    version = re.match(r"OpenSSH_(\d+)\.(\d+)", openssh or "")
    return version is not None and (int(version.group(1)), int(version.group(2))) >= (9, 4)


def unreachable(
    wanted: Sequence[Forward],
    control_path: str,
    context: Context,
    *,
    openssh: Optional[str],
    timeout: float,
) -> List[Failure]:
    """Try the far end of each forwarding: through the master, or from here for remote ones."""
    tried = [forward for forward in wanted if can_be_tried(forward, openssh)]
    with ThreadPoolExecutor(max_workers=max(1, min(len(tried), _AT_ONCE))) as threads:
        found = threads.map(lambda f: _try_far_end(f, control_path, context, timeout), tried)
        failed = [failure for failure in found if failure is not None]
    return [_explained(failure, control_path, context, timeout) for failure in failed]


def _explained(failure: Failure, control_path: str, context: Context, timeout: float) -> Failure:
    if not failure.unexplained:
        return failure
    place = _wire_far_end(failure.forward)
    why = far_end.refusal(control_path, context.connector(control_path, timeout), *place)
    return failure if why is None else _far_end_failure(failure.forward, why)


def _try_far_end(
    forward: Forward, control_path: str, context: Context, timeout: float
) -> Optional[Failure]:
    try:
        if forward.type == REMOTE:
            _connect_here(forward, timeout)
        else:
            # A listening port proves nothing about the far end.
            connect = context.connector(control_path, timeout)
            with far_end.reached(connect, *_wire_far_end(forward)):
                pass
    except (OSError, MuxClientError) as error:
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, (MuxTimeout, socket.timeout)):
            why = "no answer within %g seconds" % timeout
        return _far_end_failure(forward, why, unexplained=isinstance(error, MuxRefused))
    return None


def _far_end_failure(forward: Forward, why: str, *, unexplained: bool = False) -> Failure:
    place = "from here" if forward.type == REMOTE else "from the bastion"
    message = "%s cannot be reached %s: %s" % (forward.connect, place, why)
    return Failure(forward, "destination_unreachable", message, unexplained)


def _connect_here(forward: Forward, timeout: float) -> None:
    if forward.connect_socket is not None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(timeout)
            probe.connect(forward.connect_socket)
        return
    address = (forward.connect_host or "", forward.connect_port or 0)
    socket.create_connection(address, timeout).close()


def _wire_far_end(forward: Forward) -> Tuple[str, int]:
    if forward.connect_socket is not None:
        return forward.connect_socket, STREAMLOCAL
    return forward.connect_host or "", forward.connect_port or 0
