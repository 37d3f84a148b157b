# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A target's stream through a bastion's master, handed to ssh as a descriptor.

ssh knows where a target is, and is told to ask for the stream by ProxyUseFdpass and a ProxyCommand
that is ssh itself: ``ssh -F none -q -S SOCKET -W [%h]:%p``, as if a master listened there. It is a
thread of the worker that does. What a client sends with its request are its standard input and
output, and so the descriptor over which the other ssh wants the stream. No program of our own would
start as fast, or be there wherever ssh is; and it ends at once.

The first of the masters that reaches the target forwards a unix socket to it for as long as it
takes to connect there. The stream lives on, and is the master's from then on: a stdio forwarding
would end with its client.

All of it is done for each target. The collection's own client of masters takes longer to import
than that: its bytes are compared with these in a unit test. Private to the collection: no promise
is made about it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from time import monotonic

#: Messages of PROTOCOL.mux.
_HELLO = 0x00000001
_OPEN_FORWARD = 0x10000006
_CLOSE_FORWARD = 0x10000007
_ALIVE_CHECK = 0x10000004
_NEW_STDIO_FORWARD = 0x10000008
_OK = 0x80000001
_ALIVE = 0x80000005
_LOCAL = 1
_UNIX = 0xFFFFFFFE

#: No message of a client that asks for a stream is longer, in bytes: a host's name is in it.
_LONGEST = 4096

#: Beside a master's socket: what it writes, and that it forwards no unix sockets.
LOG = ".log"
NO_UNIX = ".nounix"

#: Names of the sockets that are there while a stream is set up.
PREFIX = ".way-"


class Failed(Exception):
    """Why there is no stream: a reason of the collection, and words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def u32(number: int) -> bytes:
    """A number as the protocol has it."""
    return number.to_bytes(4, "big")


def string(content: bytes) -> bytes:
    """A counted string."""
    return u32(len(content)) + content


def hello() -> bytes:
    """What is said first."""
    return string(u32(_HELLO) + u32(4))


def forward(kind: int, number: int, path: bytes, host: bytes, port: int) -> bytes:
    """The request to listen at a path for one far end, or no longer."""
    listen, connect = string(path) + u32(_UNIX), string(host) + u32(port)
    return string(u32(kind) + u32(number) + u32(_LOCAL) + listen + connect)


def alive_check(number: int) -> bytes:
    """The request for the master's process id."""
    return string(u32(_ALIVE_CHECK) + u32(number))


def alive(number: int, pid: int) -> bytes:
    """The reply to it."""
    return string(u32(_ALIVE) + u32(number) + u32(pid))


class _Dialogue:
    """Messages over a connection, until a deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline

    def wait(self, connection: socket.socket) -> None:
        """Let this one block until the deadline."""
        connection.settimeout(max(0.01, self.deadline - monotonic()))

    def send(self, *messages: bytes) -> None:
        """Send what is said."""
        self.wait(self.connection)
        self.connection.sendall(b"".join(messages))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self.wait(self.connection)
            more = self.connection.recv(size - len(data))
            if not more:
                raise ConnectionError("it hung up")
            data += more
        return data

    def message(self) -> bytes:
        """What the other side says next."""
        size = int.from_bytes(self._read(4), "big")
        if size > _LONGEST:
            raise ConnectionError("a message of %d bytes" % size)
        return self._read(size)

    def descriptor(self) -> int:
        """The descriptor that the other side passes next."""
        self.wait(self.connection)
        given = socket.recv_fds(self.connection, 1, 1)[1]
        if not given:
            raise ConnectionError("it hung up")
        return given[0]


class Master:
    """A dialogue with a master.

    :param ssh: what stays with a stream where the master forwards no unix sockets.
    """

    def __init__(self, control: str, deadline: float, ssh: str = "ssh") -> None:
        self.control = control
        self._ssh = ssh
        self._dialogue = _Dialogue(socket.socket(socket.AF_UNIX), deadline)
        try:
            self._dialogue.wait(self._dialogue.connection)
            self._dialogue.connection.connect(control)
            self._dialogue.send(hello())
            self._dialogue.message()
        except TimeoutError:
            raise Failed("wedged", "the master does not answer") from None
        except OSError as error:
            raise Failed("not_running", "no master answers: %s" % error) from None

    def _accepts(self, kind: int, number: int, path: str, host: bytes, port: int) -> bool:
        self._dialogue.send(forward(kind, number, os.fsencode(path), host, port))
        return self._dialogue.message()[:4] == u32(_OK)

    def pid(self) -> int:
        """The process that it says it is.

        :raises OSError: it does not answer.
        """
        self._dialogue.send(alive_check(1))
        return int.from_bytes(self._dialogue.message()[8:12], "big")

    def stream(self, host: bytes, port: int) -> socket.socket:
        """A stream on which the target has begun to speak.

        :raises Failed: why there is none.
        """
        # Before the master is asked to connect: a refusal may be in its log at once.
        said = self._log_size()
        try:
            stream = self._connection(host, port) or self._without_unix(host, port)
        except TimeoutError:
            raise Failed("wedged", "the master does not answer") from None
        except OSError as error:
            raise Failed("not_running", "the master ended in the meantime: %s" % error) from None
        return self._spoken(stream, host, port, said)

    def _connection(self, host: bytes, port: int) -> socket.socket | None:
        """A connection that the master leads to the target; ``None`` where it may not forward."""
        path = passing_name(self.control)
        if not self._accepts(_OPEN_FORWARD, 1, path, host, port):
            return None
        try:
            stream = socket.socket(socket.AF_UNIX)
            self._dialogue.wait(stream)
            stream.connect(path)
            # A connection that it has not accepted when it stops listening would be cut off. It
            # serves in one go whatever was there when it looked: channels.c, channel_after_poll.
            self.pid()
        finally:
            # A master leaves the file of what it forwards no longer.
            os.unlink(path)
            self._accepts(_CLOSE_FORWARD, 2, path, host, port)
        return stream

    def _spoken(self, stream: socket.socket, host: bytes, port: int, said: int) -> socket.socket:
        """The stream, once its far end is known to be there: ssh's server speaks first.

        :param said: how much the master had written before it was asked.
        """
        self._dialogue.wait(stream)
        target = "%s port %d" % (host.decode("utf-8", "replace"), port)
        try:
            if stream.recv(1, socket.MSG_PEEK):
                stream.settimeout(None)
                return stream
        except TimeoutError:
            raise Failed(
                "timeout", "%s said nothing in time through the bastion" % target
            ) from None
        except ConnectionError:
            pass
        reason = self._refusal(said) or "the connection was closed"
        raise Failed("destination_unreachable", "the bastion reaches no %s: %s" % (target, reason))

    def _log_size(self) -> int:
        try:
            return os.stat(self.control + LOG).st_size
        except OSError:
            return 0

    def _refusal(self, position: int) -> str:
        """The server's words, which are in the master's log alone (channels.c)."""
        try:
            with open(self.control + LOG, "rb") as log:
                log.seek(position)
                lines = log.read(65536).decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        # Others may be refused at the same time, and no line says of which one it speaks.
        parts = [line.partition("open failed: ")[2] for line in lines]
        return " or ".join(dict.fromkeys(part for part in parts if part))

    def _without_unix(self, host: bytes, port: int) -> socket.socket:
        """A stream through an ``ssh -W`` of its own, which stays as long as the stream does."""
        os.close(os.open(self.control + NO_UNIX, os.O_WRONLY | os.O_CREAT, 0o600))
        # Psutil comes with it, which no other stream has to pay for.
        from ansible_collections.bastion.mux.plugins.module_utils.system import processes

        ours, theirs = socket.socketpair()
        command = [*client(self._ssh, self.control), "[%s]:%d" % (os.fsdecode(host), port)]
        with theirs:
            processes.start_detached([*command, "--", "bastion"], os.environ, theirs.fileno())
        return ours


def passing_name(control: str) -> str:
    """A name for a socket beside a master's, for a moment."""
    return "%s/%s%s" % (os.path.dirname(control), PREFIX, os.urandom(5).hex())


def client(ssh: str, control: str) -> list[str]:
    """A client of the master at a socket and of nothing else; a place to be led to follows."""
    alone = ["-F", "none", "-q", "-o", "ProxyCommand=false"]
    return [ssh, *alone, "-S", control.replace("%", "%%"), "-W"]


class Passing:
    """Where a ProxyCommand finds the stream for its ssh."""

    def __init__(self, controls: Sequence[str], seconds: float, ssh: str) -> None:
        """Listen.

        :param controls: the sockets of the masters to try, in order.
        :param seconds: for the stream to be there.
        :param ssh: the program to be the client.
        :raises OSError: there cannot be a socket.
        """
        self._controls = controls
        self._seconds = seconds
        self._ssh = ssh
        #: Why there was no stream, and why which of the masters gave none.
        self.failure: Failed | None = None
        self.failed: dict[str, Failed] = {}
        self._path = passing_name(controls[0])
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self._path)
        self._listener.listen(1)

    @property
    def command(self) -> list[str]:
        """The ProxyCommand's words but for the place."""
        return client(self._ssh, self._path)

    def serve(self) -> None:
        """Wait for the ProxyCommand, and let it have the stream; or for :meth:`end`."""
        try:
            with self._listener:
                connection, _address = self._listener.accept()
                # Whoever comes late is to find nobody at once.
                self._remove()
            with connection:
                self._serve(_Dialogue(connection, monotonic() + self._seconds))
        except Failed as failure:
            self.failure = failure
        except OSError:
            pass  # there is no ProxyCommand, or it has gone, which its ssh can tell

    def _serve(self, dialogue: _Dialogue) -> None:
        dialogue.send(hello())
        dialogue.message()
        while (message := dialogue.message())[:4] == u32(_ALIVE_CHECK):
            dialogue.send(alive(int.from_bytes(message[4:8], "big"), os.getpid()))
        host, port = stdio_forward(message)
        os.close(dialogue.descriptor())  # its standard input
        output = socket.socket(fileno=dialogue.descriptor())
        with output, self._stream(host, port, dialogue.deadline) as stream:
            socket.send_fds(output, [b"\0"], [stream.fileno()])

    def _stream(self, host: bytes, port: int, end: float) -> socket.socket:
        for number, control in enumerate(self._controls):
            # One that is cut off must not use up the time of the next one.
            deadline = monotonic() + (end - monotonic()) / (len(self._controls) - number)
            try:
                return Master(control, deadline, self._ssh).stream(host, port)
            except Failed as failure:
                self.failed[control] = last = failure
        raise Failed(last.reason, "; ".join(map(str, self.failed.values())))

    def end(self) -> None:
        """Wait no longer."""
        # A thread that accepts is not woken by the end of its socket.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as nobody:
            nobody.connect(self._path)
        self._remove()

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def stdio_forward(message: bytes) -> tuple[bytes, int]:
    """The host and the port that a client asks for.

    :raises ConnectionError: it asks for something else.
    """
    if message[:4] != u32(_NEW_STDIO_FORWARD):
        raise ConnectionError("a request of another kind")
    # The number of the request, and a string that is reserved.
    host = 12 + int.from_bytes(message[8:12], "big")
    port = host + 4 + int.from_bytes(message[host : host + 4], "big")
    return message[host + 4 : port], int.from_bytes(message[port : port + 4], "big")
