# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a master: opened, closed, stopped, handed over. Called under its lock.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
from dataclasses import replace
from typing import Iterator, Optional, Sequence, Tuple

from ..model.errors import MuxError
from ..model.forward import LOCAL
from ..model.ledger import Ledger, Record
from ..model.target import lasting, open_arguments
from ..protocol.errors import ProtocolError
from ..system import control_dir, ledger_file, listeners, master_log, processes
from ..system.ledger_file import Lock
from ..system.mux_client import (
    MuxClientError,
    MuxClosed,
    MuxRefused,
    SocketMissing,
    SocketStale,
)
from ..system.ssh import LostRace
from . import far_end, observe
from .observe import Observation, to_wire
from .place import Context, Place

#: A process by its id and its start time.
Process = Tuple[int, float]

#: A destination that every bastion refuses at once: the refusal has crossed the network.
_NOWHERE = ("127.0.0.1", 1)

#: How long a master may take to end after it was asked to, before it is told to, in seconds.
_GRACE = 2.0

#: How long one that has nothing to wait for takes to end, generously.
_AT_ONCE = 0.2

#: What the connection plugin leaves beside a socket.
_OF_CONNECTIONS = (".slots", ".nounix")

#: Names beside a socket while another master takes its place.
_OLD = ".old"
_NEW = ".new"


def login_bound(place: Place) -> float:
    """The longest that opening this master may take, in seconds: connect_timeout for each hop."""
    if place.target is None:
        return place.timeout
    hops = 1 + len(place.summary()["jump"])
    return place.target.connect_timeout * hops + place.timeout


def lock_bound(place: Place) -> float:
    """How long others may hold the lock, in seconds: two logins, with all that belongs to them."""
    return 2 * (login_bound(place) + place.timeout)


def prepare(place: Place) -> None:
    """Make the directory for a master that is about to be opened.

    :raises MuxError: ``control_dir_insecure`` or ``invalid``.
    """
    control_dir.make(os.path.dirname(place.control_path))


def open_master(place: Place, context: Context, lock: Lock) -> Observation:
    """Open a master where none is, and begin its ledger.

    :raises MuxError: why not; whoever would only repeat the attempt shares it.
    """
    if place.target is None:
        raise MuxError(
            "not_running",
            "no master at %s, and without a host none can be opened" % place.control_path,
        )
    key, round_ = _attempt(place, context)
    earlier = lock.failure(key, round_)
    if earlier is not None:
        raise earlier
    lock.find_room(os.path.dirname(place.control_path))
    ours = True
    try:
        place.ssh.open_master(
            [
                *open_arguments(
                    place.control_path,
                    place.target.persist,
                    log=master_log.path_of(place.control_path),
                ),
                *place.arguments,
            ],
            place.target.host,
            control_path=place.control_path,
            secrets=place.secrets,
            timeout=login_bound(place),
        )
    except LostRace:
        ours = False  # what the other program opened is used, and reported as such
    except MuxError as error:
        lock.fail(key, round_, error)
        _forget_log(place.control_path)
        raise
    found = observe.observe(place.control_path, context, timeout=place.timeout)
    if not found.alive or found.pid is None:
        raise MuxError(
            "unreachable",
            "ssh opened a master at %s, and it was gone at once: %s"
            % (place.control_path, found.message or found.condition),
        )
    try:
        return _adopt(place, found, ours=ours)
    except MuxError as error:
        if ours:
            # Without a ledger the next run would take it for somebody else's.
            lock.fail(key, round_, error)
            close(place, found, context)
            _forget_log(place.control_path)
        raise


def _forget_log(control_path: str) -> None:
    """Remove the log of a master that did not come to be, but not that of a former one."""
    if ledger_file.read(control_path) is None:
        master_log.remove(control_path)


def _adopt(place: Place, found: Observation, *, ours: bool = True) -> Observation:
    """Begin the ledger of a master that was opened for this place.

    :param ours: whether this collection opened it.
    """
    if found.pid is None or found.started is None:
        return found
    ledger = Ledger(
        pid=found.pid,
        started=found.started,
        booted=processes.boot_time(),
        managed=ours,
        openssh=place.ssh.version() if ours else None,
        target=place.summary(),
        effective=lasting(place.effective) if ours else {},
        inodes=listeners.socket_inodes(found.pid) or frozenset(),
        foreign=found.foreign,
    )
    ledger_file.write(place.control_path, ledger)
    return replace(found, ledger=ledger, lost=None)


def _attempt(place: Place, context: Context) -> Tuple[str, Optional[str]]:
    """What tells this login from others, and this task's from those of other runs.

    What is written down of a secret means something to this run alone.
    """
    key = hashlib.sha256(repr((place.target, sorted(place.effective.items()))).encode("utf-8"))
    round_ = None
    if context.run_key:
        text = repr((context.round, place.secrets.password, place.secrets.passphrase))
        round_ = hmac.new(
            context.run_key, text.encode("utf-8", "backslashreplace"), "sha256"
        ).hexdigest()
    if place.secrets:
        key.update((round_ or os.urandom(16).hex()).encode("ascii"))
    return key.hexdigest(), round_


def cut_off(control_path: str, context: Context, *, timeout: float) -> Optional[str]:
    """Why the connection behind a master is dead; ``None`` where it lives.

    The master answers an alive check by itself, for as long as its keep-alives have not given up;
    a forwarding that the server refuses is an answer of the server.
    """
    master_log.size(control_path)  # its log gets a line of the refusal
    try:
        with far_end.reached(context.connector(control_path, timeout), *_NOWHERE):
            return None
    except MuxRefused:
        return None
    except (MuxClientError, ProtocolError) as error:
        return str(error)


def forget(control_path: str) -> None:
    """Remove what lies beside the socket of a master that was ended."""
    ledger_file.remove(control_path)
    master_log.remove(control_path)
    for suffix in _OF_CONNECTIONS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(control_path + suffix)


def clean(control_path: str, found: Observation) -> None:
    """Remove the sockets of a master that is gone: its own, and those of its forwardings."""
    listeners.remove_dead_socket(control_path)
    if found.lost is not None:
        _remove_sockets(found.lost.records)


def close(place: Place, found: Observation, context: Context) -> None:
    """End a master and whatever runs through it; wait until it is gone."""
    with contextlib.suppress(MuxClientError):
        _cancel(place.control_path, found.records, context, timeout=place.timeout)
    with contextlib.suppress(MuxClientError), context.connect(
        place.control_path, timeout=place.timeout
    ) as client:
        client.terminate()
    _gone(place.control_path, found, patience=_GRACE)


def kill(place: Place, found: Observation) -> None:
    """End a master that does not answer; its ledger stays for the next one."""
    _gone(place.control_path, found, patience=0.0)


def _gone(control_path: str, found: Observation, *, patience: float) -> None:
    process = process_of(found)
    if process is not None and not _ends(process, patience) and not _end(process):
        raise MuxError("wedged", "the process %d of the master cannot be ended" % process[0])
    _remove_sockets(found.records)
    listeners.remove_dead_socket(control_path)
    if os.path.lexists(control_path):
        raise MuxError(
            "wedged",
            "the master at %s still listens, and its process cannot be found" % control_path,
        )


def process_of(found: Observation) -> Optional[Process]:
    """The process of a master, where it can be seen."""
    if found.pid is None or found.started is None:
        return None
    return found.pid, found.started


def _ends(process: Process, patience: float) -> bool:
    return processes.wait_until(lambda: not processes.is_running(*process), patience)


def _end(process: Process) -> bool:
    return processes.end(*process, grace=_GRACE)


def drain(process: Process, seconds: float) -> None:
    """Give a master that takes no new session this long to end by itself, then end it."""
    if not _ends(process, seconds):
        _end(process)


def stop(control_path: str, found: Observation, context: Context, *, timeout: float) -> None:
    """Let a master take no new session and end by itself after its last one.

    Its forwardings are cancelled first: afterwards nobody could. It ends when the last session
    does (clientloop.c, client_stop_mux).
    """
    with contextlib.suppress(MuxClientError):
        _cancel(control_path, found.records, context, timeout=timeout)
    with contextlib.suppress(SocketMissing, SocketStale, MuxClosed), context.connect(
        control_path, timeout=timeout
    ) as client:
        client.stop_listening()
    process = process_of(found)
    if process is not None:
        # Nothing runs through most masters: those are gone at once, and so reported.
        _ends(process, _AT_ONCE)


def _cancel(
    control_path: str, records: Sequence[Record], context: Context, *, timeout: float
) -> None:
    """Cancel all forwardings; unix socket files go too, OpenSSH leaves them."""
    if records:
        with context.connect(control_path, timeout=timeout) as client:
            client.close_forwards([to_wire(record) for record in records])
        _remove_sockets(records)


def _remove_sockets(records: Sequence[Record]) -> None:
    for record in records:
        if record.forward.side == LOCAL and record.forward.listen_socket is not None:
            listeners.remove_dead_socket(record.forward.listen_socket)


def hand_over(
    place: Place, found: Observation, context: Context, lock: Lock, *, dead: bool
) -> Observation:
    """Open a new master in the place of one that goes on with the sessions it has.

    The old socket steps aside under another name, where its master still answers; it comes back
    when the new login fails.

    :param dead: whether the old one's connection is: it is ended then.
    :returns: the new master, without forwardings.
    """
    aside = place.control_path + _OLD
    if found.ledger is not None:
        ledger_file.write(aside, found.ledger)  # for who has to finish this
    os.rename(place.control_path, aside)
    try:
        new = open_master(place, context, lock)
    except BaseException:
        if not os.path.lexists(place.control_path):
            os.rename(aside, place.control_path)
            ledger_file.remove(aside)
        raise
    process = process_of(found)
    with _protected(place.control_path):
        if dead and process is not None:
            _end(process)
            _remove_sockets(found.records)
        else:
            stop(aside, found, context, timeout=place.timeout)
    _tidy(place.control_path)
    return new


def _tidy(control_path: str) -> None:
    for other in (control_path + _NEW, control_path + _OLD):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(other)
        ledger_file.remove(other)


@contextlib.contextmanager
def _protected(control_path: str) -> Iterator[None]:
    """Keep a socket at its path while another master goes.

    Whether it is stopped or ends, a master unlinks the path that it was given (clientloop.c,
    client_stop_mux and cleanup_exit), which is the new one's by then.
    """
    kept = control_path + _NEW
    os.link(control_path, kept)
    try:
        yield
    finally:
        os.rename(kept, control_path)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(kept)  # two names of one file stay both (rename(2))


def finish_opening(place: Place, context: Context) -> Tuple[Record, ...]:
    """Begin the ledger of a master whose opener was killed before it could.

    :returns: the forwardings that the one before it had.
    """
    found = observe.observe(place.control_path, context, timeout=place.timeout)
    if not found.alive or found.ledger is not None or found.pid is None:
        return ()
    if not master_log.is_kept_by(place.control_path, found.pid):
        return ()  # somebody else's
    _adopt(place, found)
    return () if found.lost is None else found.lost.records


def is_interrupted(control_path: str) -> bool:
    """Whether a hand-over is under way, or a run was killed half way."""
    beside = (control_path + _NEW, control_path + _OLD)
    return any(map(os.path.lexists, beside)) or ledger_file.is_left(control_path)


def recover(place: Place, context: Context, lock: Lock) -> Tuple[Record, ...]:
    """Finish what was killed half way: a hand-over with the new master, where there is one.

    :returns: the forwardings that the old one had, and the new one has not got.
    """
    control_path, aside = place.control_path, place.control_path + _OLD
    records = finish_opening(place, context) if lock.left else ()
    if not is_interrupted(control_path):
        return records
    listeners.remove_dead_socket(control_path)
    for other in (control_path + _NEW, aside):
        if not os.path.lexists(other) or listeners.remove_dead_socket(other):
            continue
        if not os.path.lexists(control_path):
            os.rename(other, control_path)
        elif other == aside:
            old = observe.observe(aside, context, timeout=place.timeout)
            new = observe.observe(control_path, context, timeout=place.timeout)
            records = old.records
            with _protected(control_path):
                stop(aside, old, context, timeout=place.timeout)
            if old.managed and new.alive and new.ledger is None:
                _adopt(place, new)
    _tidy(control_path)
    return records
