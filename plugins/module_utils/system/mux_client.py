# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of a master's control socket: every call ends within its deadline.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import stat
import struct
import time
from collections import deque
from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
    Union,
    cast,
)

from ..protocol import messages
from ..protocol.errors import ProtocolError
from ..protocol.messages import WireForward
from ..protocol.wire import Frames

R = TypeVar("R")
Self = TypeVar("Self", bound="_Passenger")

#: How many requests are made before they are sent.
_AT_ONCE = 50

#: How often to knock again at a listener whose backlog is full, in seconds.
_KNOCK = 0.01


@dataclass(frozen=True)
class ForwardOutcome:
    """What became of one forwarding of a batch.

    `port` is the one that the server chose, where it was asked to. `message` is the master's
    reason when not `ok`; `permission_denied` says that its user refused (ControlMaster=ask).
    """

    forward: WireForward
    ok: bool
    port: Optional[int] = None
    message: str = ""
    permission_denied: bool = False


class MuxClientError(Exception):
    """The base of what this client raises, beside :class:`ProtocolError`.

    `outcomes` is what a batch of forwardings had reached before it broke off.
    """

    outcomes: Tuple[ForwardOutcome, ...] = ()


class SocketMissing(MuxClientError):
    """There is nothing at the path."""


class SocketStale(MuxClientError):
    """Nobody listens at the path.

    On macOS that is also what a listener with a full backlog looks like (unp_connect).
    """


class SocketUnusable(MuxClientError):
    """The path cannot be used at all: not permitted, too long, not a master's kind of socket."""


class MuxTimeout(MuxClientError):
    """The master did not answer in time."""


class MuxClosed(MuxClientError):
    """The master closed the connection before it had answered."""


class MuxRefused(MuxClientError):
    """The master answered that it could not; the text is its reason."""


class MuxDenied(MuxRefused):
    """The user at the master refused (ControlMaster=ask)."""


class MuxUnsupported(MuxClientError):
    """This master does not know the request."""


class TerminalRefused(MuxClientError):
    """A terminal was to be passed on: the master would leave it non-blocking for everyone."""


class SessionLost(MuxClientError):
    """A session ended without an exit status: a signal, a failed request or a lost connection."""


class MuxClient:
    """A connection to a master.

    Each call takes at most `timeout` seconds, a batch that long for each reply. A request that a
    master could not read is a ValueError, and nothing of it is sent. An error in the dialogue
    itself (:class:`MuxTimeout`, :class:`MuxClosed`, :class:`ProtocolError`) closes the connection,
    since nobody knows what would be read from it next.

    :ivar extensions: what the master announced in its hello.
    """

    def __init__(
        self, connection: socket.socket, *, timeout: float, deadline: Optional[float] = None
    ) -> None:
        """Take over a connected socket on which nothing was said yet, and say hello.

        :param deadline: when the hello must be over, if sooner than after `timeout`.
        :raises MuxTimeout, MuxClosed, ProtocolError: the peer is no master that we can talk to.
        """
        self._timeout = timeout
        self._socket = connection
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket)
        self._ids = itertools.count(1)
        self._frames = Frames()
        self._outgoing: Deque[Tuple[memoryview, Sequence[int]]] = deque()
        self._deaf = False
        try:
            self.extensions = self._hello(self._deadline() if deadline is None else deadline)
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: str, *, timeout: float) -> MuxClient:
        """Connect to the master that listens at `path`.

        :raises SocketMissing, SocketStale, SocketUnusable: nobody can be reached there.
        :raises MuxTimeout, MuxClosed, ProtocolError: who was reached is no working master.
        """
        deadline = time.monotonic() + timeout
        return cls(_connected(path, deadline), timeout=timeout, deadline=deadline)

    def close(self) -> None:
        """Hang up. A session or stdio forwarding of this connection ends with it."""
        self._socket.close()

    def __enter__(self) -> MuxClient:
        """Return the client itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()

    # One request

    def check(self) -> int:
        """Return the process id that the master says it has."""
        return self._exchange(messages.AliveCheck()).pid

    def is_elsewhere(self) -> bool:
        """Whether the master is a process of another container, whose ids mean nothing here."""
        return peer_of(self._socket) == 0

    def open_forward(self, forward: WireForward) -> Optional[int]:
        """Begin to forward, and return the port that the server chose if it was asked to.

        :raises MuxRefused: it is not forwarded.
        """
        return _accepted(self.open_forwards([forward]))

    def close_forward(self, forward: WireForward) -> None:
        """Forward no longer.

        :raises MuxRefused: it was not forwarded in exactly this spelling.
        """
        _accepted(self.close_forwards([forward]))

    def terminate(self) -> None:
        """End the master and all that runs through it.

        :raises MuxDenied: its user refused.
        :raises MuxClosed: it had hung up before it could be asked.
        """
        try:
            self._exchange(messages.Terminate())
        except MuxClosed:
            # It exits before its reply is out (mux.c, mux_master_process_terminate).
            if self._deaf:
                raise

    def stop_listening(self) -> None:
        """Have the master take no more clients; its socket's path is gone then.

        :raises MuxDenied: its user refused.
        """
        self._exchange(messages.StopListening())

    def info(self, name: str) -> str:
        """Return the master's text about its `connection` or its `channels`.

        :raises MuxUnsupported: it is older than OpenSSH 10.3, or does not know `name`.
        """
        if messages.INFO_EXTENSION not in self.extensions:
            raise MuxUnsupported("the master answers no information requests")
        reply = self._exchange(messages.Info(name))
        if not reply.known:
            raise MuxUnsupported(reply.content)
        return reply.content

    # Many forwardings

    def open_forwards(self, forwards: Iterable[WireForward]) -> List[ForwardOutcome]:
        """Begin to forward each, in order, without waiting in between."""
        return self._batch(messages.OpenForward, forwards)

    def close_forwards(self, forwards: Iterable[WireForward]) -> List[ForwardOutcome]:
        """Forward each no longer, without waiting in between."""
        return self._batch(messages.CloseForward, forwards)

    # What takes the connection over

    def session(
        self,
        command: Union[str, bytes],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        environment: Sequence[Tuple[str, str]] = (),
        subsystem: bool = False,
        agent: bool = False,
        x11: bool = False,
    ) -> MuxSession:
        """Run a command on these descriptors, which stay the caller's to close.

        The master makes them non-blocking, for everyone who shares them. Only the variables of
        `environment` that its own SendEnv names reach the server. A connection holds one session:
        this client is good for nothing else afterwards.

        :raises MuxRefused: there is no session, for one because of the server's MaxSessions.
        :raises TerminalRefused: a descriptor is a terminal.
        """
        if isinstance(command, bytes):
            command = command.decode("utf-8", "surrogateescape")
        request = messages.NewSession(command, tuple(environment), subsystem, agent, x11)
        return MuxSession(self, self._pass(request, (stdin, stdout, stderr)))

    def stdio_forward(self, host: str, port: int, *, stdin: int, stdout: int) -> StdioForward:
        """Connect these descriptors to an address that the server reaches.

        They stay the caller's to close. With port :data:`messages.STREAMLOCAL` the host is the
        path of a unix socket. This client is good for nothing else afterwards.

        :raises MuxRefused: the server did not connect.
        :raises TerminalRefused: a descriptor is a terminal.
        """
        request = messages.NewStdioForward(host, port)
        return StdioForward(self, self._pass(request, (stdin, stdout)))

    def _pass(
        self, request: messages.Request[messages.SessionOpened], descriptors: Sequence[int]
    ) -> int:
        if any(os.isatty(descriptor) for descriptor in descriptors):
            raise TerminalRefused("a terminal cannot be passed to a session of a master")
        return self._exchange(request, descriptors).session

    # The dialogue

    def _hello(self, deadline: float) -> Mapping[str, bytes]:
        self._queue(messages.Hello(messages.VERSION, {}).encode())
        hello = messages.Hello.decode(self.read_message(deadline))
        if hello.version != messages.VERSION:
            raise ProtocolError("version %d of the mux protocol is not known" % hello.version)
        return hello.extensions

    def _exchange(self, request: messages.Request[R], descriptors: Sequence[int] = ()) -> R:
        """Ask, and return the answer unless it is a refusal."""
        _index, reply = next(self._replies([request], descriptors))
        if isinstance(reply, messages.PermissionDenied):
            raise MuxDenied(reply.reason)
        if isinstance(reply, messages.Failure):
            raise MuxRefused(reply.reason)
        return cast("R", reply)

    def _batch(
        self,
        request: Callable[[WireForward], messages.Request[Any]],
        forwards: Iterable[WireForward],
    ) -> List[ForwardOutcome]:
        asked: List[WireForward] = []
        outcomes: Dict[int, ForwardOutcome] = {}

        def requests() -> Iterator[messages.Request[Any]]:
            for forward in forwards:
                asked.append(forward)
                yield request(forward)

        try:
            for index, reply in self._replies(requests()):
                outcomes[index] = _outcome(asked[index], reply)
        except MuxClientError as error:
            error.outcomes = tuple(outcomes[index] for index in sorted(outcomes))
            raise
        return [outcomes[index] for index in sorted(outcomes)]

    def _replies(
        self, requests: Iterable[messages.Request[Any]], descriptors: Sequence[int] = ()
    ) -> Iterator[Tuple[int, messages.Reply]]:
        """Send the requests, and yield each reply with the index of its request."""
        waiting: Dict[int, Tuple[int, messages.Request[Any]]] = {}
        frames = []
        for index, request in enumerate(requests):
            request_id = next(self._ids)
            waiting[request_id] = (index, request)
            frames.append(request.encode(request_id))
            if len(frames) == _AT_ONCE:
                # The master works on these while the next ones are made.
                self._queue(b"".join(frames))
                frames.clear()
                if not self._deaf:
                    self._write()
        self._queue(b"".join(frames))
        for descriptor in descriptors:
            # One each, as the master takes them, and never with other bytes, which it reads in a
            # way that drops descriptors (monitor_fdpass.c, mm_receive_fd; channels.c, read_mux).
            self._queue(b"\0", [descriptor])
        while waiting:
            yield self._reply(waiting)

    def _reply(
        self, waiting: Dict[int, Tuple[int, messages.Request[Any]]]
    ) -> Tuple[int, messages.Reply]:
        try:
            reply_id, reply = messages.decode_reply(self.read_message(self._deadline()))
            if reply_id not in waiting:
                raise ProtocolError("a reply to request %d, which is not open" % reply_id)
            index, request = waiting.pop(reply_id)
            if not isinstance(reply, request.LEGAL):
                raise ProtocolError("%r is no answer to %r" % (reply, request))
        except BaseException:
            self.close()
            raise
        return index, reply

    # The socket

    def _queue(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        if data:
            self._outgoing.append((memoryview(data), descriptors))

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def read_message(self, deadline: float) -> bytes:
        """Return the next message of the peer, sending meanwhile what is queued.

        Sending never waits for the peer to read while its messages wait to be read: that would
        be a deadlock as soon as the buffers of both directions are full.
        """
        if self._socket.fileno() < 0:
            raise MuxClientError("this connection to the master was closed before")
        message = self._frames.next()
        while message is None:
            left = deadline - time.monotonic()
            self._transfer(max(0.0, left))
            message = self._frames.next()
            if message is None and left <= 0:
                raise MuxTimeout("the master did not answer in time")
        return message

    def _transfer(self, seconds: float) -> None:
        """Wait until the socket is ready, then write and read what goes without waiting."""
        writing = self._outgoing and not self._deaf
        self._poll.modify(self._socket, select.POLLIN | (select.POLLOUT if writing else 0))
        for _descriptor, events in self._poll.poll(seconds * 1000):
            if events & select.POLLOUT:
                self._write()
            if events & ~select.POLLOUT:
                self._read()

    def _write(self) -> None:
        data, descriptors = self._outgoing[0]
        try:
            sent = _send(self._socket, data, descriptors)
        except BlockingIOError:
            pass
        except ConnectionError:
            # Why it hung up may still be there to be read; if it is not, reading will say so.
            self._deaf = True
        except OSError as error:
            raise MuxClientError("cannot send to the master: %s" % error) from error
        else:
            self._outgoing.popleft()
            if sent < len(data):
                self._outgoing.appendleft((data[sent:], ()))

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise MuxClosed("the master closed the connection")
        self._frames.feed(data)


class _Passenger:
    """What a connection carries from its request on, until either side closes it.

    :ivar id: the master's number for it.
    """

    def __init__(self, client: MuxClient, session: int) -> None:
        self.id = session
        self._client = client

    def close(self) -> None:
        """Hang up, which ends it (mux.c, mux_master_control_cleanup_cb)."""
        self._client.close()

    def __enter__(self: Self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close."""
        self.close()


class StdioForward(_Passenger):
    """Two descriptors connected to an address that the server reaches."""


class MuxSession(_Passenger):
    """A command that runs on the server."""

    _status: Optional[int] = None
    _over = False

    def wait(self, timeout: float) -> int:
        """Return the exit status when the session is over, its output all written.

        :raises MuxTimeout: it is not over; waiting again is fine.
        :raises SessionLost: it ended without a status.
        """
        deadline = time.monotonic() + timeout
        # The status comes first, but only when the master hangs up has it written all output
        # (mux.c, mux_client_request_session).
        with contextlib.suppress(MuxClosed):
            while not self._over:
                self._hear(*messages.decode_reply(self._client.read_message(deadline)))
        self._over = True
        self.close()
        if self._status is None:
            raise SessionLost("the session ended without an exit status")
        return self._status

    def _hear(self, session: int, reply: messages.Reply) -> None:
        if session != self.id:
            raise ProtocolError("%r is about session %d, not %d" % (reply, session, self.id))
        if isinstance(reply, messages.ExitMessage) and self._status is None:
            self._status = reply.status
        elif not isinstance(reply, messages.TtyAllocFail):
            raise ProtocolError("%r is nothing to say about a session" % (reply,))


def peer_of(connection: socket.socket) -> int:
    """The process at the other end of a unix socket; where that listened, the one that began to.

    It is 0 where there is no such process for this one to see (unix(7), SO_PEERCRED; pid_vnr of
    the kernel): it belongs to another container.
    """
    if hasattr(socket, "SO_PEERCRED"):
        size = struct.calcsize("3i")
        packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", packed)[0])
    # macOS: <sys/un.h> SOL_LOCAL and LOCAL_PEERPID.
    return int(connection.getsockopt(0, 0x002))


def _outcome(forward: WireForward, reply: messages.Reply) -> ForwardOutcome:
    if isinstance(reply, (messages.PermissionDenied, messages.Failure)):
        denied = isinstance(reply, messages.PermissionDenied)
        return ForwardOutcome(forward, False, message=reply.reason, permission_denied=denied)
    if not isinstance(reply, messages.RemotePort):
        return ForwardOutcome(forward, True)
    if reply.port == 0:
        return ForwardOutcome(
            forward, False, message="the server has not answered an earlier request for the same"
        )
    return ForwardOutcome(forward, True, port=reply.port)


def _accepted(outcomes: Sequence[ForwardOutcome]) -> Optional[int]:
    (outcome,) = outcomes
    if outcome.permission_denied:
        raise MuxDenied(outcome.message)
    if not outcome.ok:
        raise MuxRefused(outcome.message)
    return outcome.port


def _connected(path: str, deadline: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        while True:
            try:
                connection.connect(path)
                return connection
            except BlockingIOError:
                # Its backlog is full, and poll cannot tell when it no longer is (unix(7), EAGAIN).
                left = deadline - time.monotonic()
                if left <= 0:
                    raise MuxTimeout("%s: too many wait for the master already" % path) from None
                time.sleep(min(_KNOCK, left))
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise _unreachable(path, error) from error
        raise


def _unreachable(path: str, error: OSError) -> MuxClientError:
    # A file that is no socket is "refused" on Linux, and a link to nowhere "no such file".
    if os.path.lexists(path) and not _is_socket(path):
        return SocketUnusable("%s: is not a socket" % path)
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return SocketMissing("%s: there is no control socket" % path)
    if error.errno == errno.ECONNREFUSED:
        return SocketStale("%s: nobody listens there" % path)
    return SocketUnusable("%s: %s" % (path, error.strerror or error))


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _send(connection: socket.socket, data: memoryview, descriptors: Sequence[int]) -> int:
    """Send what fits; a reader who is gone is an error, whatever the process does on SIGPIPE."""
    rights = [
        (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", descriptor))
        for descriptor in descriptors
    ]
    return connection.sendmsg([data], rights, getattr(socket, "MSG_NOSIGNAL", 0))
