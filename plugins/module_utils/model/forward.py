# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Port forwardings as values: OpenSSH's spelling in, one canonical form out.

Two spellings that make the same listener with the same far end are equal here, and two that
differ in either are not. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

from .errors import MuxError

LOCAL = "local"
REMOTE = "remote"
DYNAMIC = "dynamic"

#: The listeners of "no address" and of "every address": OpenSSH binds one socket for each family
#: (channels.c, channel_setup_fwd_listener_tcpip, with IPV6_V6ONLY set).
LOOPBACK = frozenset({"127.0.0.1", "::1"})
WILDCARD = frozenset({"0.0.0.0", "::"})

#: Longest host OpenSSH takes (NI_MAXHOST less the terminator) and longest unix socket path
#: (sun_path of Linux, less the terminator); readconf.c, parse_forward.
MAX_HOST = 1024
MAX_SOCKET_PATH = 107

_ZONE = re.compile(r"[\w.-]+\Z")
_CONTROL_CHARACTER = re.compile(r"[\0-\x1f\x7f-\x9f]")  # Unicode's category Cc

#: What no host name holds and what would be read differently where we spell it.
_NOT_IN_A_HOST = re.compile(r"[\s%:/\[\]\\\ud800-\udfff]|\A-")


@dataclass(frozen=True)
class Forward:
    """One forwarding, normalised: ``==`` means the same listener to the same far end.

    ``listen_port`` 0 asks for a port to be chosen. For ``dynamic`` and for remote SOCKS every
    ``connect_…`` is ``None``. Unix sockets are in ``…_socket`` and leave host and port ``None``.
    """

    type: str
    listen_host: Optional[str] = None
    listen_port: Optional[int] = None
    listen_socket: Optional[str] = None
    connect_host: Optional[str] = None
    connect_port: Optional[int] = None
    connect_socket: Optional[str] = None

    @property
    def side(self) -> str:
        """Where it listens: ``local`` for local and dynamic forwardings, else ``remote``."""
        return REMOTE if self.type == REMOTE else LOCAL

    @property
    def automatic(self) -> bool:
        """Whether the listening port is left to be chosen."""
        return self.listen_port == 0

    @property
    def listen(self) -> str:
        """The listener as OpenSSH spells it."""
        if self.listen_socket is not None:
            return _escape(self.listen_socket)
        return "%s:%d" % (_bracket(self.listen_host or ""), self.listen_port or 0)

    @property
    def connect(self) -> Optional[str]:
        """The far end as OpenSSH spells it; ``None`` for SOCKS."""
        if self.connect_socket is not None:
            return _escape(self.connect_socket)
        if self.connect_host is None:
            return None
        return "%s:%d" % (_bracket(self.connect_host), self.connect_port or 0)

    @property
    def spelling(self) -> str:
        """The forwarding as OpenSSH spells it: :func:`parse` reads the same from it."""
        far_end = self.connect
        return self.listen if far_end is None else self.listen + ":" + far_end

    def __str__(self) -> str:
        return {LOCAL: "-L", REMOTE: "-R", DYNAMIC: "-D"}[self.type] + " " + self.spelling

    def with_port(self, port: int) -> Forward:
        """The same forwarding, listening on another port."""
        return replace(self, listen_port=port)

    def as_dict(self) -> Dict[str, Any]:
        """The forwarding's own part of the ``forwards`` return value."""
        return {
            "type": self.type,
            "listen_host": self.listen_host,
            "listen_port": self.listen_port,
            "listen_socket": self.listen_socket,
            "connect_host": self.connect_host,
            "connect_port": self.connect_port,
            "connect_socket": self.connect_socket,
        }

    @classmethod
    def from_dict(cls, values: Dict[str, Any]) -> Forward:
        """Rebuild a forwarding from :meth:`as_dict`; other keys are ignored.

        :raises ValueError: it is none that :func:`parse` could have read.
        """
        fields: Dict[str, Any] = {name: values.get(name) for name in cls.__dataclass_fields__}
        claimed = cls(**fields)
        if claimed.type in (LOCAL, REMOTE, DYNAMIC):
            with contextlib.suppress(
                MuxError, ArithmeticError, AttributeError, TypeError, ValueError
            ):
                forward = parse(claimed.type, claimed.spelling)
                if forward == claimed:
                    return forward
        raise ValueError("not a forwarding: %r" % (values,))

    def addresses(self, resolve: Callable[[str], FrozenSet[str]]) -> FrozenSet[str]:
        """The numeric addresses this listener binds.

        :param resolve: gives the addresses of a host name; asked for names other than
            ``localhost`` alone (channels.c, channel_fwd_bind_addr).
        """
        if self.listen_host is None:
            return frozenset()
        if self.listen_host == "localhost":
            return LOOPBACK
        if self.listen_host == "*":
            return WILDCARD
        if is_address(self.listen_host):
            return frozenset({self.listen_host})
        return resolve(self.listen_host)


# A thousand forwardings name the same few hosts, and most of the work is to read those.
@functools.lru_cache(maxsize=1024)
def is_address(host: str) -> bool:
    """Whether ``host`` is a numeric address; a zone may follow one of IPv6 (``fe80::1%eth0``)."""
    address, percent, zone = host.partition("%")
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return False
    return not percent or (version == 6 and bool(_ZONE.match(zone)))


def overlaps(one: FrozenSet[str], other: FrozenSet[str]) -> bool:
    """Whether two sets of addresses, on one port, claim a common listener."""
    return bool(one & other) or any(
        wildcard in mine and any((":" in address) == (":" in wildcard) for address in theirs)
        for mine, theirs in ((one, other), (other, one))
        for wildcard in WILDCARD
    )


def parse_all(
    local: Sequence[str], remote: Sequence[str], dynamic: Sequence[str]
) -> Tuple[Forward, ...]:
    """The forwardings of a task, each once, in the order given.

    :raises MuxError: ``invalid``, naming the spelling and what is wrong with it.
    """
    found: Dict[Forward, None] = {}
    for type_, spellings in ((LOCAL, local), (REMOTE, remote), (DYNAMIC, dynamic)):
        for spelling in spellings:
            found[parse(type_, spelling)] = None
    return tuple(found)


def parse(type_: str, spelling: str) -> Forward:
    """Read one ``-L``, ``-R`` or ``-D`` argument as ssh(1) does (readconf.c, parse_forward).

    :raises MuxError: ``invalid``, naming the spelling and what is wrong with it.
    """
    try:
        fields = _fields(spelling.strip())
        return _assemble(type_, fields)
    except ValueError as error:
        raise MuxError("invalid", "%s forwarding %r: %s" % (type_, spelling, error)) from None


def _fields(spelling: str) -> List[Tuple[str, bool]]:
    """Split at colons outside brackets: (text, is a path). A backslash escapes one character."""
    if not spelling:
        raise ValueError("it is empty")
    if _CONTROL_CHARACTER.search(spelling):
        raise ValueError("it contains a control character")
    if "${" in spelling:
        # ssh would expand it from its own environment; a playbook has templates for that.
        raise ValueError("environment variables are not expanded here, use a lookup")
    fields: List[Tuple[str, bool]] = []
    rest: Optional[str] = spelling
    while rest is not None:
        if rest.startswith("["):
            text, bracket, after = rest[1:].partition("]")
            if not bracket or after[:1] not in ("", ":"):
                raise ValueError("the brackets do not match")
            rest = after[1:] if after else None
        else:
            text, rest = _plain_field(rest)
        fields.append((text, "/" in text))
    return fields


def _plain_field(rest: str) -> Tuple[str, Optional[str]]:
    if "\\" not in rest:
        text, colon, after = rest.partition(":")
        return text, after if colon else None
    text = ""
    position = 0
    while position < len(rest):
        char = rest[position]
        if char == ":":
            return text, rest[position + 1 :]
        if char == "\\":
            position += 1
            if position == len(rest):
                raise ValueError("it ends in a backslash")
            char = rest[position]
        text += char
        position += 1
    return text, None


def _assemble(type_: str, fields: List[Tuple[str, bool]]) -> Forward:
    kinds = "".join("p" if is_path else "w" for _text, is_path in fields)
    texts = [text for text, _is_path in fields]
    socks = type_ in (DYNAMIC, REMOTE)
    listen: Dict[str, Any]
    connect: Dict[str, Any] = {}
    if kinds == "w" and socks:
        listen = _listen_tcp(None, texts[0], type_)
    elif kinds == "ww" and socks:
        listen = _listen_tcp(texts[0], texts[1], type_)
    elif kinds == "p" and type_ == REMOTE:
        listen = _listen_socket(texts[0])
    elif type_ == DYNAMIC:
        raise ValueError("expected [bind_address:]port")
    elif kinds == "pp":
        listen, connect = _listen_socket(texts[0]), _connect_socket(texts[1])
    elif kinds == "wp":
        listen, connect = _listen_tcp(None, texts[0], type_), _connect_socket(texts[1])
    elif kinds == "pww":
        listen, connect = _listen_socket(texts[0]), _connect_tcp(texts[1], texts[2])
    elif kinds == "wwp":
        listen, connect = _listen_tcp(texts[0], texts[1], type_), _connect_socket(texts[2])
    elif kinds == "www":
        listen, connect = _listen_tcp(None, texts[0], type_), _connect_tcp(texts[1], texts[2])
    elif kinds == "wwww":
        listen, connect = _listen_tcp(texts[0], texts[1], type_), _connect_tcp(texts[2], texts[3])
    else:
        raise ValueError(
            "expected [bind_address:]port:host:hostport, or an absolute socket path on either side;"
            " an IPv6 address stands in brackets"
        )
    return Forward(type_, **listen, **connect)


def _listen_tcp(host: Optional[str], port: str, type_: str) -> Dict[str, Any]:
    number = _port(port)
    if number == 0 and type_ == DYNAMIC:
        raise ValueError("a dynamic forwarding needs a port")
    if host is None:
        # Sent as "localhost", never as "no address": that would be every address under
        # GatewayPorts (channels.c, channel_fwd_bind_addr).
        return {"listen_host": "localhost", "listen_port": number}
    # ssh(1): an empty address or "*" is every interface.
    return {"listen_host": _host(host) if host else "*", "listen_port": number}


def _connect_tcp(host: str, port: str) -> Dict[str, Any]:
    number = _port(port)
    if number == 0:
        raise ValueError("the port of the far end cannot be 0")
    if not host:
        raise ValueError("the far end has no host")
    return {"connect_host": _host(host), "connect_port": number}


def _listen_socket(path: str) -> Dict[str, Any]:
    return {"listen_socket": _socket_path(path)}


def _connect_socket(path: str) -> Dict[str, Any]:
    return {"connect_socket": _socket_path(path)}


def _port(text: str) -> int:
    # ssh also takes a service name (misc.c, a2port); which number it means depends on the machine.
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError("%r is not a port number" % text)
    return int(text)


@functools.lru_cache(maxsize=1024)
def _host(text: str) -> str:
    if len(text.encode("utf-8", "replace")) > MAX_HOST:
        raise ValueError("the host name is longer than %d bytes" % MAX_HOST)
    if is_address(text):
        address, percent, zone = text.partition("%")
        return str(ipaddress.ip_address(address)) + percent + zone
    if _NOT_IN_A_HOST.search(text):
        raise ValueError("%r is not a host name" % text)
    return text.lower()


def _socket_path(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError("the socket path %r is not absolute" % path)
    # "/a//b" and "/a/./b" are "/a/b"; what ".." means is up to symlinks.
    path = re.sub(r"/(\.?/)+", "/", path)
    if path != path.strip():
        raise ValueError("the socket path %r ends in white space" % path)
    try:
        length = len(path.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise ValueError("%r is not a file name" % path) from None
    if length > MAX_SOCKET_PATH:
        raise ValueError("a socket path may have %d bytes" % MAX_SOCKET_PATH)
    return path


def _bracket(host: str) -> str:
    return "[%s]" % host if ":" in host else host


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:")
