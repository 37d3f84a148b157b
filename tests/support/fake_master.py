# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A scripted master behind a control socket. The real `ssh -O` accepts it: see its own test.

It runs on Python 3.8, since the tests of module_utils do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Set, Tuple, Type, Union

HELLO = 0x00000001
NEW_SESSION = 0x10000002
ALIVE_CHECK = 0x10000004
TERMINATE = 0x10000005
OPEN_FORWARD = 0x10000006
CLOSE_FORWARD = 0x10000007
NEW_STDIO_FORWARD = 0x10000008
STOP_LISTENING = 0x10000009
INFO = 0x20000001

OK = 0x80000001
PERMISSION_DENIED = 0x80000002
FAILURE = 0x80000003
EXIT_MESSAGE = 0x80000004
ALIVE = 0x80000005
SESSION_OPENED = 0x80000006
REMOTE_PORT = 0x80000007
TTY_ALLOC_FAIL = 0x80000008
EXT_INFO = 0x90000001

Value = Union[int, str, bytes]

# What follows the id of a request: `i` a number, `s` a string. More strings may follow.
_BODIES = {
    NEW_SESSION: "siiiiiss",
    ALIVE_CHECK: "",
    TERMINATE: "",
    OPEN_FORWARD: "isisi",
    CLOSE_FORWARD: "isisi",
    NEW_STDIO_FORWARD: "ssi",
    STOP_LISTENING: "",
    INFO: "s",
}


def message(*values: Value) -> bytes:
    """A message, without its frame, of numbers and strings."""
    parts = []
    for value in values:
        if isinstance(value, int):
            parts.append(struct.pack("!I", value))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(struct.pack("!I", len(content)) + content)
    return b"".join(parts)


def frame(*values: Value) -> bytes:
    """A message in its frame."""
    body = message(*values)
    return struct.pack("!I", len(body)) + body


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    type: int
    id: int
    values: Tuple[Union[int, bytes], ...]


class Gone(Exception):
    """The client hung up, or the test is over."""


class Peer:
    """The master's end of one client's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def hello(
        self, version: int = 4, extensions: Optional[Mapping[str, Value]] = None
    ) -> Tuple[Union[int, bytes], ...]:
        """Exchange hellos. Returns what the client's held."""
        named = [value for pair in (extensions or {}).items() for value in pair]
        self.send(HELLO, version, *named)
        return _parse(self.message(), "ii")

    def send(self, *values: Value) -> None:
        """Send a message."""
        self.raw(frame(*values))

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        try:
            self.connection.sendall(data)
        except OSError:
            raise Gone from None

    def read(self, count: int) -> bytes:
        """Read exactly so many bytes, and not one more: descriptors come with the next one."""
        data = b""
        while len(data) < count:
            try:
                part = self.connection.recv(count - len(data))
            except OSError:
                part = b""
            if not part:
                raise Gone
            data += part
        return data

    def message(self) -> bytes:
        """Read a message."""
        (size,) = struct.unpack("!I", self.read(4))
        return self.read(size)

    def request(self) -> Asked:
        """Read a request."""
        content = self.message()
        kind, request_id = struct.unpack_from("!II", content)
        return Asked(kind, request_id, _parse(content[8:], _BODIES[kind]))

    def descriptors(self, count: int, keep: bool = True) -> List[int]:
        """Receive descriptors, each with one byte. Those kept are the caller's to close."""
        found: List[int] = []
        for _each in range(count):
            data, rights, _flags, _address = self.connection.recvmsg(1, socket.CMSG_SPACE(4))
            if data != b"\0":
                raise Gone
            ((level, kind, descriptor),) = rights
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            found += struct.unpack("@i", descriptor)
        if not keep:
            for each in found:
                os.close(each)
        return found

    def hang_up(self) -> None:
        """Close the connection."""
        self.connection.close()

    def hold(self) -> None:
        """Say no more, until the client hangs up."""
        while True:
            self.read(1)


Script = Callable[[Peer], None]
Answer = Callable[[Peer, Asked], None]


class FakeMaster:
    """Listens at `path` from `with` to its end, and has each client's `Peer` to the script.

    The script that is there unless one is given behaves like a master with a perfect server:
    `forwards` are the forwardings it has, as they were asked for, `allocated` the ports it chose.
    `answers` replaces what it does for one type of request, `requests` are all that it got.
    """

    def __init__(
        self,
        path: Path,
        script: Optional[Script] = None,
        *,
        pid: int = 4242,
        extensions: Optional[Mapping[str, Value]] = None,
        answers: Optional[Mapping[int, Answer]] = None,
    ) -> None:
        self.path = path
        self.pid = pid
        self.extensions = extensions
        self.output = b"output\n"
        self.exit_status = 0
        self.requests: List[Asked] = []
        self.forwards: List[Tuple[Union[int, bytes], ...]] = []
        self.allocated: Dict[Tuple[Union[int, bytes], ...], int] = {}
        self.answers: Dict[int, Answer] = {
            NEW_SESSION: self._session,
            ALIVE_CHECK: lambda peer, asked: peer.send(ALIVE, asked.id, self.pid),
            TERMINATE: self._terminate,
            OPEN_FORWARD: self._open,
            CLOSE_FORWARD: self._close,
            NEW_STDIO_FORWARD: self._stdio,
            STOP_LISTENING: self._stop_listening,
            INFO: self._info,
            **(answers or {}),
        }
        self._script = script or self.behave
        self._connections: Set[socket.socket] = set()
        self._threads: List[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> FakeMaster:
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.stop_listening()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "a script of the fake master hangs"

    def stop_listening(self) -> None:
        """Take no more clients, and remove the path."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        # Closing alone would not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    # Scripts

    def behave(self, peer: Peer) -> None:
        """Answer every request as a master does."""
        peer.hello(extensions=self.extensions)
        while True:
            asked = peer.request()
            self.requests.append(asked)
            self.answers[asked.type](peer, asked)

    # Answers

    def _open(self, peer: Peer, asked: Asked) -> None:
        kind, _listen_host, listen_port = asked.values[:3]
        if asked.values not in self.forwards:
            taken = any(forward[:3] == asked.values[:3] for forward in self.forwards)
            if taken and listen_port != 0:
                peer.send(FAILURE, asked.id, "Port forwarding failed")
                return
            self.forwards.append(asked.values)
        if kind == 2 and listen_port == 0:
            port = self.allocated.setdefault(asked.values, 40000 + len(self.allocated))
            peer.send(REMOTE_PORT, asked.id, port)
        else:
            peer.send(OK, asked.id)

    def _close(self, peer: Peer, asked: Asked) -> None:
        if asked.values in self.forwards:
            self.forwards.remove(asked.values)
            peer.send(OK, asked.id)
        else:
            peer.send(FAILURE, asked.id, "port not forwarded")

    def _terminate(self, peer: Peer, _asked: Asked) -> None:
        self.stop_listening()
        peer.connection.shutdown(socket.SHUT_RDWR)

    def _stop_listening(self, peer: Peer, asked: Asked) -> None:
        self.stop_listening()
        peer.send(OK, asked.id)

    def _session(self, peer: Peer, asked: Asked) -> None:
        with _closing(peer.descriptors(3)) as (_stdin, stdout, _stderr):
            peer.send(SESSION_OPENED, asked.id, 7)
            os.write(stdout, self.output)
        peer.send(EXIT_MESSAGE, 7, self.exit_status)
        raise Gone

    def _stdio(self, peer: Peer, asked: Asked) -> None:
        with _closing(peer.descriptors(2)) as (_stdin, stdout):
            peer.send(SESSION_OPENED, asked.id, 7)
            with contextlib.suppress(BrokenPipeError):  # who asked may want no more than the reply
                os.write(stdout, self.output)
        raise Gone

    def _info(self, peer: Peer, asked: Asked) -> None:
        (name,) = asked.values
        known = name in (b"connection", b"channels")
        text = b"about the %s\n" % name if known and isinstance(name, bytes) else b"not supported"
        peer.send(EXT_INFO, asked.id, int(known), text)

    # Threads

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(Gone):
            self._script(Peer(connection))
        self._connections.discard(connection)


def _parse(content: bytes, body: str) -> Tuple[Union[int, bytes], ...]:
    values: List[Union[int, bytes]] = []
    while content or body:
        (number,) = struct.unpack_from("!I", content)
        content = content[4:]
        if body[:1] == "i":
            values.append(number)
        else:
            assert len(content) >= number, "a string is cut short"
            values.append(content[:number])
            content = content[number:]
        body = body[1:]
    return tuple(values)


@contextlib.contextmanager
def _closing(descriptors: List[int]) -> Iterator[List[int]]:
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
