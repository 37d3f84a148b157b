# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages of the mux protocol, version 4: requests to encode, replies to decode.

PROTOCOL.mux names them; where it differs from `mux.c`, the latter counts. Private to the
collection: no promise is made about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, ClassVar, Dict, Generic, Mapping, Tuple, Type, TypeVar, Union

from .errors import ProtocolError
from .wire import Reader, frame, string, text, u32

VERSION = 4

LOCAL, REMOTE, DYNAMIC = 1, 2, 3

#: As a port it says that the host beside it is the path of a unix socket.
STREAMLOCAL = 0xFFFFFFFE

#: What ssh sends as the far end's host, with port 0, of a dynamic forwarding and of remote SOCKS
#: (readconf.c, parse_forward). Forwardings match by exact strings, so `ssh -O cancel` needs it.
SOCKS = "socks"

#: The extension of a master (OpenSSH 10.3 and later) that answers :class:`Info`.
INFO_EXTENSION = "info"

_HELLO = 0x00000001
_NO_ESCAPE_CHARACTER = 0xFFFFFFFF


@dataclass(frozen=True)
class Hello:
    """What each side says first."""

    version: int
    extensions: Mapping[str, bytes]

    def encode(self) -> bytes:
        """Return the frame to send."""
        named = b"".join(text(name) + string(value) for name, value in self.extensions.items())
        return frame(u32(_HELLO) + u32(self.version) + named)

    @classmethod
    def decode(cls, message: bytes) -> Hello:
        """Read the peer's.

        :raises ProtocolError: it is no hello.
        """
        reader = Reader(message)
        kind = reader.u32()
        if kind != _HELLO:
            raise ProtocolError("a message of type 0x%08x instead of a hello" % kind)
        version = reader.u32()
        extensions = {}
        while reader:
            name = reader.text()
            extensions[name] = reader.string()
        return cls(version, extensions)


# Replies


@dataclass(frozen=True)
class Ok:
    """Done."""


@dataclass(frozen=True)
class PermissionDenied:
    """The user at the master said no (ControlMaster=ask)."""

    reason: str


@dataclass(frozen=True)
class Failure:
    """The master could not."""

    reason: str


@dataclass(frozen=True)
class ExitMessage:
    """A session's command ended. The id of this reply is the session's."""

    status: int


@dataclass(frozen=True)
class Alive:
    """The master's process id."""

    pid: int


@dataclass(frozen=True)
class SessionOpened:
    """A session, or a stdio forwarding, is connected."""

    session: int


@dataclass(frozen=True)
class RemotePort:
    """The server chose this port to listen on.

    It is 0 when another client asked for the same and the server has not answered it yet.
    """

    port: int


@dataclass(frozen=True)
class TtyAllocFail:
    """The server gave a session no terminal. The id of this reply is the session's."""


@dataclass(frozen=True)
class ExtInfo:
    """The answer to :class:`Info`; `known` is false when the master does not know the name."""

    known: bool
    content: str


Reply = Union[
    Ok,
    PermissionDenied,
    Failure,
    ExitMessage,
    Alive,
    SessionOpened,
    RemotePort,
    TtyAllocFail,
    ExtInfo,
]


def _port(reader: Reader) -> RemotePort:
    port = reader.u32()
    if port > 65535:
        raise ProtocolError("%d is no port" % port)
    return RemotePort(port)


_REPLIES: Dict[int, Callable[[Reader], Reply]] = {
    0x80000001: lambda _: Ok(),
    0x80000002: lambda reader: PermissionDenied(reader.text()),
    0x80000003: lambda reader: Failure(reader.text()),
    0x80000004: lambda reader: ExitMessage(reader.u32()),
    0x80000005: lambda reader: Alive(reader.u32()),
    0x80000006: lambda reader: SessionOpened(reader.u32()),
    0x80000007: _port,
    0x80000008: lambda _: TtyAllocFail(),
    0x90000001: lambda reader: ExtInfo(bool(reader.u32()), reader.text()),
}


def decode_reply(message: bytes) -> Tuple[int, Reply]:
    """Read a reply and the id that it is for.

    :raises ProtocolError: it is of no known type, or ends early.
    """
    reader = Reader(message)
    kind = reader.u32()
    if kind not in _REPLIES:
        raise ProtocolError("a message of unknown type 0x%08x" % kind)
    return reader.u32(), _REPLIES[kind](reader)


# Requests

R = TypeVar("R")


class Request(Generic[R]):
    """One question. `R` is what a yes looks like, :attr:`LEGAL` is every reply that may come."""

    TYPE: ClassVar[int]
    LEGAL: ClassVar[Tuple[Type[Any], ...]]

    def body(self) -> bytes:
        """Return what follows the request's id."""
        return b""

    def encode(self, request_id: int) -> bytes:
        """Return the frame to send.

        :raises ValueError: a master could not read it.
        """
        return frame(u32(self.TYPE) + u32(request_id) + self.body())


@dataclass(frozen=True)
class NewSession(Request[SessionOpened]):
    """Run a command, a subsystem or, with an empty command, a shell; three descriptors follow."""

    TYPE = 0x10000002
    LEGAL = (SessionOpened, PermissionDenied, Failure)

    command: str
    environment: Tuple[Tuple[str, str], ...] = ()
    subsystem: bool = False
    agent: bool = False
    x11: bool = False

    def body(self) -> bytes:
        """Return what follows the request's id: no terminal, so no type of one either."""
        flags = (False, self.x11, self.agent, self.subsystem)
        return (
            text("")
            + b"".join(u32(flag) for flag in flags)
            + u32(_NO_ESCAPE_CHARACTER)
            + text("")
            + text(self.command)
            + b"".join(text("%s=%s" % pair) for pair in self.environment)
        )


@dataclass(frozen=True)
class NewStdioForward(Request[SessionOpened]):
    """Connect two descriptors, which follow, to an address that the server can reach."""

    TYPE = 0x10000008
    LEGAL = (SessionOpened, PermissionDenied, Failure)

    host: str
    port: int

    def body(self) -> bytes:
        """Return what follows the request's id."""
        return text("") + text(self.host) + u32(_checked_port(self.port))


@dataclass(frozen=True)
class AliveCheck(Request[Alive]):
    """Ask for the master's process id."""

    TYPE = 0x10000004
    LEGAL = (Alive, Failure)


@dataclass(frozen=True)
class Terminate(Request[Ok]):
    """End the master. It may exit before its reply is out."""

    TYPE = 0x10000005
    LEGAL = (Ok, PermissionDenied, Failure)


@dataclass(frozen=True)
class StopListening(Request[Ok]):
    """Take no more clients."""

    TYPE = 0x10000009
    LEGAL = (Ok, PermissionDenied, Failure)


@dataclass(frozen=True)
class Info(Request[ExtInfo]):
    """Ask about the `connection` or its `channels` (mux.c, mux_master_process_ext_info)."""

    TYPE = 0x20000001
    LEGAL = (ExtInfo, Failure)

    name: str

    def body(self) -> bytes:
        """Return what follows the request's id."""
        return text(self.name)


@dataclass(frozen=True)
class WireForward:
    """A forwarding exactly as it goes over the socket.

    An empty listen host leaves it to GatewayPorts, `*` is every address. Port
    :data:`STREAMLOCAL` makes the host beside it a unix socket's path.

    :raises ValueError: a master could not take it; an unknown kind even ends one
        (mux.c, format_forward).
    """

    kind: int
    listen_host: str
    listen_port: int
    connect_host: str
    connect_port: int

    def __post_init__(self) -> None:
        if self.kind not in (LOCAL, REMOTE, DYNAMIC):
            raise ValueError("%r is no kind of forwarding" % (self.kind,))
        self.encode()

    def encode(self) -> bytes:
        """Return the five fields."""
        return (
            u32(self.kind)
            + text(self.listen_host)
            + u32(_checked_port(self.listen_port))
            + text(self.connect_host)
            + u32(_checked_port(self.connect_port))
        )


@dataclass(frozen=True)
class OpenForward(Request[Union[Ok, RemotePort]]):
    """Begin to forward. One that is there already is answered like a new one."""

    TYPE = 0x10000006
    LEGAL = (Ok, RemotePort, PermissionDenied, Failure)

    forward: WireForward

    def body(self) -> bytes:
        """Return what follows the request's id."""
        return self.forward.encode()


@dataclass(frozen=True)
class CloseForward(Request[Ok]):
    """Forward no longer. It must be spelled as it was opened: port 0 stays port 0."""

    TYPE = 0x10000007
    LEGAL = (Ok, PermissionDenied, Failure)

    forward: WireForward

    def body(self) -> bytes:
        """Return what follows the request's id."""
        return self.forward.encode()


def _checked_port(port: int) -> int:
    if not 0 <= port <= 65535 and port != STREAMLOCAL:
        raise ValueError("%r is no port" % (port,))
    return port
