# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is really there: the master behind a socket and the forwardings that it holds.

Changes nothing. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field, replace
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from ..model.errors import MuxError
from ..model.forward import DYNAMIC, LOCAL, REMOTE, Forward
from ..model.ledger import Ledger, Record
from ..model.plan import Foreign, Resolve
from ..protocol import messages
from ..protocol.errors import ProtocolError
from ..protocol.messages import WireForward
from ..system import ledger_file, listeners, processes
from ..system.listeners import Listener
from ..system.mux_client import (
    MuxClient,
    MuxClientError,
    MuxClosed,
    MuxTimeout,
    SocketMissing,
    SocketStale,
)
from .place import Context

ALIVE = "alive"
ABSENT = "absent"
STALE = "stale"
WEDGED = "wedged"

#: How the existence of a forwarding is known.
BY_LISTENER = "listener"
BY_LEDGER = "ledger"
BY_MASTER = "master"

#: A master may hold so many listeners that nobody recorded; more are not tried one by one for a
#: forwarding whose port was left to be chosen.
_MOST_GUESSES = 256

#: How many questions a master is asked at once: what they could bind is kept occupied meanwhile.
_AT_ONCE = 128

#: How long a master that ends may go on to accept connections and hang up, in seconds.
_ENDING = 1.0


@dataclass(frozen=True)
class Observation:
    """One look at one socket.

    :ivar condition: one of ``alive``, ``absent``, ``stale`` and ``wedged``.
    :ivar ledger: the ledger, where it is about this process.
    :ivar lost: the ledger of a master that is gone, with the forwardings that it had.
    :ivar records: the forwardings it holds, with ``evidence`` for each.
    :ivar foreign: its listeners that no record explains.
    :ivar broken: those of the records that cannot be reached where they should listen.
    :ivar visible: whether its listening sockets could be seen at all.
    """

    condition: str
    pid: Optional[int] = None
    started: Optional[float] = None
    ledger: Optional[Ledger] = None
    lost: Optional[Ledger] = None
    records: Tuple[Record, ...] = ()
    foreign: Tuple[Foreign, ...] = ()
    broken: FrozenSet[Record] = frozenset()
    evidence: Mapping[Forward, str] = field(default_factory=dict)
    visible: bool = True
    message: str = ""

    @property
    def alive(self) -> bool:
        """Whether a master answers."""
        return self.condition == ALIVE

    @property
    def managed(self) -> bool:
        """Whether this collection opened the master."""
        return self.ledger is not None and self.ledger.managed


def observe(
    control_path: str,
    context: Context,
    *,
    timeout: float,
    desired: Sequence[Forward] = (),
    resolve: Optional[Resolve] = None,
) -> Observation:
    """Look at one socket.

    :param timeout: seconds for each answer of the master.
    :param desired: forwardings to look for where the ledger does not know them.
    :raises MuxError: ``invalid`` where something answers that is no master, or one of another
        container.
    """
    deadline = time.monotonic() + _ENDING
    while True:
        try:
            return _look(control_path, context, timeout, desired, resolve)
        except MuxClosed as error:
            # mux.c, mux_master_control_cleanup_cb: a master that ends closes what is connected,
            # and nobody can connect a moment later.
            if time.monotonic() >= deadline:
                raise _no_master(control_path, error) from None
            time.sleep(processes.POLL)


def _no_master(control_path: str, error: Exception) -> MuxError:
    return MuxError(
        "invalid", "%s is not the control socket of a master: %s" % (control_path, error)
    )


def _look(
    control_path: str,
    context: Context,
    timeout: float,
    desired: Sequence[Forward],
    resolve: Optional[Resolve],
) -> Observation:
    ledger = ledger_file.read(control_path)
    # Before the connection, which is a socket of the process as well.
    inodes = None if ledger is None else listeners.socket_inodes(ledger.pid)
    try:
        with context.connect(control_path, timeout=timeout) as client:
            pid = client.check()
            if client.is_elsewhere():
                raise MuxError(
                    "invalid",
                    "control_path: the master at %s runs in another container that shares this"
                    " directory, and what it forwards listens there; name a directory of this"
                    " container's own" % control_path,
                )
            started = processes.start_time(pid)
            valid = ledger if _is_about(ledger, pid, started) else None
            base = Observation(ALIVE, pid, started, valid, None if valid else ledger)
            if valid is not None and inodes is not None and _unchanged(valid, inodes):
                known = _Known(valid.records, valid.foreign)
                if not _unknown(desired, known.records) or not valid.foreign:
                    return _with(base, known)
            known = _look_closer(
                client, control_path, pid, valid, desired, resolve or listeners.resolver(), context
            )
            return _with(base, known)
    except SocketMissing:
        return Observation(ABSENT, lost=ledger)
    except SocketStale:
        return Observation(STALE, lost=ledger)
    except MuxTimeout as error:
        return _wedged(control_path, ledger, str(error))
    except MuxClosed:
        raise
    except ProtocolError as error:
        raise _no_master(control_path, error) from None
    except MuxClientError as error:
        raise MuxError("invalid", "%s: %s" % (control_path, error)) from None


def _is_about(ledger: Optional[Ledger], pid: int, started: Optional[float]) -> bool:
    return ledger is not None and ledger.is_about(pid, started, processes.boot_time)


@dataclass(frozen=True)
class _Known:
    records: Tuple[Record, ...]
    foreign: Tuple[Foreign, ...] = ()
    broken: FrozenSet[Record] = frozenset()
    evidence: Mapping[Forward, str] = field(default_factory=dict)
    visible: bool = True


def _with(base: Observation, known: _Known) -> Observation:
    complete = {
        record.forward: known.evidence.get(
            record.forward, BY_LEDGER if record.forward.side == REMOTE else BY_LISTENER
        )
        for record in known.records
    }
    return replace(
        base,
        records=known.records,
        foreign=known.foreign,
        broken=known.broken,
        visible=known.visible,
        evidence=complete,
    )


def _unchanged(ledger: Ledger, inodes: FrozenSet[int]) -> bool:
    """Whether the process has the very listeners that the ledger was written about.

    It may serve other clients meanwhile: their connections are sockets of its own.
    """
    recorded = all(
        record.inodes and record.inodes <= inodes and _has_its_file(record.forward)
        for record in ledger.records
        if record.forward.side == LOCAL
    )
    more = inodes - ledger.inodes
    return recorded and (not more or more <= listeners.connected_unix_inodes(ledger.pid))


def _unknown(desired: Sequence[Forward], records: Sequence[Record]) -> List[Forward]:
    known: Set[Forward] = set()
    for record in records:
        known.update((record.forward, record.asked))
    return [forward for forward in desired if forward not in known]


def _look_closer(
    client: MuxClient,
    control_path: str,
    pid: int,
    ledger: Optional[Ledger],
    desired: Sequence[Forward],
    resolve: Resolve,
    context: Context,
) -> _Known:
    """Compare the ledger with the listening sockets, and ask the master where they leave doubt."""
    recorded = ledger.records if ledger is not None else ()
    seen = context.listening(pid)
    if seen is None:
        evidence = {record.forward: BY_LEDGER for record in recorded}
        return _Known(recorded, evidence=evidence, visible=False)
    free = {
        key: listener
        for key, listener in listeners.by_address(seen).items()
        if not is_control_socket(listener, control_path)
    }
    records: List[Record] = [record for record in recorded if record.forward.side == REMOTE]
    settled: Set[Record] = set()
    doubtful: List[Record] = []
    for record in recorded:
        if record.forward.side != LOCAL:
            continue
        sockets = _sockets_of(record.forward, free, resolve)
        if not sockets:
            continue  # cancelled behind our back
        if record.inodes and record.inodes == {listener.inode for listener in sockets.values()}:
            records.append(record)
            settled.add(record)
            for key in sockets:
                del free[key]
        else:
            doubtful.append(record)
    candidates = doubtful + _candidates(_unknown(desired, records), free, resolve)
    evidence = {}
    for record in _ask(client, candidates, control_path, resolve):
        sockets = _sockets_of(record.forward, free, resolve)
        if sockets:
            inodes = frozenset(s.inode for s in sockets.values() if s.inode is not None)
            records.append(replace(record, inodes=inodes))
            evidence[record.forward] = BY_MASTER
            for key in sockets:
                del free[key]
    there = frozenset(listeners.by_address(seen)) - frozenset(free)
    broken = frozenset(
        record
        for record in records
        if _is_broken(record.forward, there, resolve, settled=record in settled)
    )
    # What was recorded of a broken one is never enough to find it unchanged.
    kept = tuple(replace(r, inodes=frozenset()) if r in broken else r for r in records)
    return _Known(
        kept,
        foreign=tuple(sorted(free)),
        broken=frozenset(replace(record, inodes=frozenset()) for record in broken),
        evidence=evidence,
    )


def _ask(
    client: MuxClient, candidates: Sequence[Record], control_path: str, resolve: Resolve
) -> Iterator[Record]:
    """Those of the candidates that the master has.

    A repeated request answers OK, and changes nothing (mux.c, mux_master_process_open_fwd). A new
    one fails as long as there is nothing that it could bind.
    """
    unix = [record for record in candidates if record.forward.listen_socket is not None]
    if not unix or not _leaves_sockets_alone(client, control_path):
        candidates = [record for record in candidates if record not in unix]
    for start in range(0, len(candidates), _AT_ONCE):
        some = candidates[start : start + _AT_ONCE]
        tcp = {place for record in some for place in places(record.forward, resolve)}
        with listeners.occupied(tcp) as complete:
            asked = [
                record
                for record in some
                if (complete if record.forward.listen_socket is None else True)
                and _has_its_file(record.forward)
            ]
            outcomes = client.open_forwards([to_wire(record) for record in asked])
        yield from (record for record, outcome in zip(asked, outcomes) if outcome.ok)


def _leaves_sockets_alone(client: MuxClient, control_path: str) -> bool:
    """Whether the master would fail to listen where another socket is.

    With StreamLocalBindUnlink it takes the path from the other one (misc.c, unix_listener), so that
    a question would be an answer.
    """
    path = control_path + ".ask"
    request = WireForward(messages.LOCAL, path, messages.STREAMLOCAL, "127.0.0.1", 1)
    with listeners.dummy(path) as made:
        if not made or client.open_forwards([request])[0].ok:
            client.close_forwards([request])
            return False
    return True


def _has_its_file(forward: Forward) -> bool:
    return forward.listen_socket is None or listeners.is_socket(forward.listen_socket)


def _is_broken(
    forward: Forward, there: FrozenSet[Tuple[str, int]], resolve: Resolve, *, settled: bool
) -> bool:
    """Whether a connection to where a forwarding listens would not reach the master.

    With 127.0.0.1 taken, "localhost" binds ::1 alone and reports success (channels.c,
    channel_setup_fwd_listener_tcpip). A unix socket's file can be removed.

    :param settled: whether it listens as it did when it was recorded. An address that is free and
        that it does not listen on is then none of its own, for one because of AddressFamily.
    """
    if forward.side == REMOTE:
        return False
    if forward.listen_socket is not None:
        return not _has_its_file(forward)
    missing = [place for place in places(forward, resolve) if place not in there]
    could = {listeners.bind_error(*place) for place in missing}
    return errno.EADDRINUSE in could or (None in could and not settled)


def _candidates(
    forwards: Sequence[Forward], free: Dict[Tuple[str, int], Listener], resolve: Resolve
) -> List[Record]:
    """What unrecorded listeners could be, if they were what is desired."""
    found = []
    for forward in forwards:
        if forward.side != LOCAL:
            continue
        places = [forward]
        if forward.automatic:
            ports = sorted({port for _address, port in free if port > 0})[:_MOST_GUESSES]
            places = [forward.with_port(port) for port in ports]
        for place in places:
            if _sockets_of(place, free, resolve):
                found += [
                    Record(place, automatic=forward.automatic, wire_host=host)
                    for host in wire_hosts(place)
                ]
    return found


def wire_hosts(forward: Forward) -> List[str]:
    """The texts that a listening host may have been given as, the one that we use first.

    ``ssh -L 8080:…`` sends none, the master keeps that apart from "localhost", and it would be
    every address under GatewayPorts (channels.c, channel_fwd_bind_addr). A server is told
    "localhost" for both (channel_rfwd_bind_host): there we send what ``ssh -O`` sends.
    """
    if forward.listen_host is None:
        return [""]
    if forward.type == REMOTE:
        return ["" if forward.listen_host == "localhost" else forward.listen_host]
    if forward.listen_host in ("localhost", "*"):
        return [forward.listen_host, ""]
    return [forward.listen_host]


def to_wire(record: Record) -> WireForward:
    """The request that opens or cancels exactly this forwarding."""
    forward = record.forward
    kind = {LOCAL: messages.LOCAL, REMOTE: messages.REMOTE, DYNAMIC: messages.DYNAMIC}[forward.type]
    listen: Tuple[str, int]
    if forward.listen_socket is not None:
        listen = (forward.listen_socket, messages.STREAMLOCAL)
    elif forward.type == REMOTE and record.automatic:
        listen = (record.wire_host, 0)  # its cancel must spell 0 again
    else:
        listen = (record.wire_host, forward.listen_port or 0)
    if forward.connect_socket is not None:
        connect = (forward.connect_socket, messages.STREAMLOCAL)
    elif forward.connect_host is not None:
        connect = (forward.connect_host, forward.connect_port or 0)
    else:
        connect = (messages.SOCKS, 0)
    return WireForward(kind, *listen, *connect)


def places(forward: Forward, resolve: Resolve) -> List[Tuple[str, int]]:
    """Where the forwarding listens on this machine, as :class:`Listener` names it."""
    if forward.side == REMOTE:
        return []
    if forward.listen_socket is not None:
        return [(forward.listen_socket, -1)]
    port = forward.listen_port or 0
    return [(address, port) for address in sorted(forward.addresses(resolve))]


def _sockets_of(
    forward: Forward, free: Dict[Tuple[str, int], Listener], resolve: Resolve
) -> Dict[Tuple[str, int], Listener]:
    return {key: free[key] for key in places(forward, resolve) if key in free}


def is_control_socket(listener: Listener, control_path: str) -> bool:
    """Whether a listener of the process is the master's control socket itself."""
    return listener.port == -1 and processes.names_socket(listener.address, control_path)


def _wedged(control_path: str, ledger: Optional[Ledger], message: str) -> Observation:
    if ledger is not None:
        started = processes.start_time(ledger.pid)
        if _is_about(ledger, ledger.pid, started):
            return Observation(
                WEDGED, ledger.pid, started, ledger, records=ledger.records, message=message
            )
    pid = listeners.holder_of(control_path)
    started = None if pid is None else processes.start_time(pid)
    return Observation(WEDGED, pid, started, lost=ledger, message=message)


def forward_results(
    records: Sequence[Record], evidence: Mapping[Forward, str]
) -> List[Dict[str, Any]]:
    """The ``forwards`` return value for what a master holds."""
    return [forward_result(record, "present", evidence.get(record.forward)) for record in records]


def forward_result(record: Record, state: str, evidence: Optional[str]) -> Dict[str, Any]:
    """One element of ``forwards``."""
    return dict(
        record.forward.as_dict(),
        allocated_port=(record.forward.listen_port or None) if record.automatic else None,
        state=state,
        evidence=evidence,
    )
