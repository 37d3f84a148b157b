# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets of a master's process, as the kernel knows them.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import socket
import stat
import struct
import threading
from dataclasses import dataclass
from typing import Callable, Dict, FrozenSet, Iterable, Iterator, List, Mapping, Optional, Tuple

from . import processes

try:
    import psutil
except ImportError:
    pass  # processes.PSUTIL_ERROR tells the edges

_SOCKET_LINK = re.compile(r"socket:\[([0-9]+)\]\Z")

# The kernel's include/uapi/linux/{netlink,sock_diag}.h and include/net/tcp_states.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_DONE = 3
_TCP_LISTEN = 10
_HEADER = struct.Struct("=IHHII")

#: __SO_ACCEPTCON of the kernel's include/linux/net.h: the socket listens.
_ACCEPTING = 0x10000


@dataclass(frozen=True)
class Listener:
    """One listening socket: a numeric address and port, or a path and port -1."""

    address: str
    port: int
    inode: Optional[int] = None


def socket_inodes(pid: int) -> Optional[FrozenSet[int]]:
    """Every socket that the process has open, by inode; ``None`` where the system has no names.

    Two readings that are equal are the same sockets: Linux hands the numbers out in turn. This is
    the whole cost of finding a master unchanged, a tenth of asking for its addresses.
    """
    directory = "/proc/%d/fd" % pid
    found = []
    try:
        for name in os.listdir(directory):
            try:
                match = _SOCKET_LINK.match(os.readlink(directory + "/" + name))
            except FileNotFoundError:
                continue
            if match:
                found.append(int(match.group(1)))
    except OSError:
        return None
    return frozenset(found)


def listening(pid: int, inodes: Optional[FrozenSet[int]] = None) -> Optional[Tuple[Listener, ...]]:
    """The listening sockets of a process; ``None`` where we may not see them.

    :param inodes: all its sockets, where they were read just now.
    """
    return _look(pid, _table, inodes)


def snapshot() -> Callable[[int], Optional[Tuple[Listener, ...]]]:
    """As :func:`listening`, from one look at all sockets that is taken when it is first asked."""
    table = functools.lru_cache(maxsize=None)(_table)
    guard = threading.Lock()

    def look(pid: int) -> Optional[Tuple[Listener, ...]]:
        with guard:
            return _look(pid, table)

    return look


def _look(
    pid: int,
    table: Callable[[], Optional[Mapping[int, Listener]]],
    inodes: Optional[FrozenSet[int]] = None,
) -> Optional[Tuple[Listener, ...]]:
    if _network(pid) != _network(os.getpid()):
        return None  # neither the kernel nor psutil tells us of another one
    known = table()
    if known is None:
        return _by_psutil(pid)
    mine = socket_inodes(pid) if inodes is None else inodes
    if mine is None:
        return None
    return tuple(known[inode] for inode in sorted(mine.intersection(known)))


def _network(pid: int) -> Optional[str]:
    """The network that a process is in, where a system can have several."""
    try:
        return os.readlink("/proc/%d/ns/net" % pid)
    except OSError:
        return None


def _by_psutil(pid: int) -> Optional[Tuple[Listener, ...]]:
    """On any system. The unix sockets are all that have a name."""
    try:
        process = psutil.Process(pid)
        return (
            *(
                Listener(one.laddr.ip, one.laddr.port)
                for one in processes.connections(process, "tcp")
                if one.status == psutil.CONN_LISTEN
            ),
            *(
                Listener(str(one.laddr), -1)
                for one in processes.connections(process, "unix")
                if one.laddr
            ),
        )
    except (psutil.Error, OSError):
        return None


def _table() -> Optional[Dict[int, Listener]]:
    """Every socket that listens, by inode; ``None`` where the system does not tell.

    psutil reads the tables of /proc instead, which take the kernel as long for every connection
    that there could be (inet_diag.c walks the listening ones alone).
    """
    paths = _listening_paths(os.getpid())
    if paths is None or not hasattr(socket, "AF_NETLINK"):
        return None
    found = {inode: Listener(path, -1, inode) for inode, path in paths.items()}
    try:
        for family in (socket.AF_INET, socket.AF_INET6):
            for listener in _diagnosed(family):
                found[listener.inode or 0] = listener
    except (OSError, struct.error):
        return None
    return found


def _diagnosed(family: int) -> Iterator[Listener]:
    """The TCP sockets of a family that listen (sock_diag(7)).

    :raises OSError: the kernel has no answer.
    """
    request = struct.pack("=BBBxI48x", family, socket.IPPROTO_TCP, 0, 1 << _TCP_LISTEN)
    flags = _NLM_F_REQUEST | _NLM_F_DUMP
    header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, flags, 1, 0)
    size = 4 if family == socket.AF_INET else 16
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.sendto(header + request, (0, 0))
        while True:
            data = kernel.recv(1 << 16)
            while data:
                length, kind, _flags, _number, _port = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if kind == _NLMSG_DONE:
                    return
                if kind != _SOCK_DIAG_BY_FAMILY:
                    raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
                (port,) = struct.unpack_from("!H", message, 4)
                (inode,) = struct.unpack_from("=I", message, 68)
                yield Listener(socket.inet_ntop(family, message[8 : 8 + size]), port, inode)


def holder_of(control_path: str) -> Optional[int]:
    """The ssh that listens on a control socket, for one which does not answer; or ``None``.

    ssh binds ``<path>.<random>`` and links it to its place (mux.c, muxserver_listen), so that is
    the name the system knows.
    """

    look = snapshot()
    for process in psutil.process_iter():
        try:
            if process.name() == "ssh" and any(
                listener.port == -1 and processes.names_socket(listener.address, control_path)
                for listener in look(process.pid) or ()
            ):
                return int(process.pid)
        except (psutil.Error, OSError):
            continue
    return None


def connected_unix_inodes(pid: int) -> FrozenSet[int]:
    """The unix sockets that do not listen: of a master, those of the clients that it serves now."""
    return frozenset(
        inode for inode, (accepts, _path) in (_unix_sockets(pid) or {}).items() if not accepts
    )


def _listening_paths(pid: int) -> Optional[Dict[int, str]]:
    """Every unix socket that listens, by inode; ``None`` where the system has no such table."""
    table = _unix_sockets(pid)
    if table is None:
        return None
    return {inode: path for inode, (accepts, path) in table.items() if accepts}


def _unix_sockets(pid: int) -> Optional[Dict[int, Tuple[bool, str]]]:
    """Every unix socket: whether it listens, and its path (proc_pid_net(5)).

    psutil tells neither: an accepted connection has its listener's path, and a path with a space
    in it has none.
    """
    found: Dict[int, Tuple[bool, str]] = {}
    try:
        with open("/proc/%d/net/unix" % pid, "rb") as table:
            for line in table:
                fields = os.fsdecode(line.rstrip(b"\n")).split(None, 7)
                # The rest of a line whose path had a newline in it is no socket.
                if len(fields) > 6 and fields[6].isdigit():
                    with contextlib.suppress(ValueError):
                        accepts = bool(int(fields[3], 16) & _ACCEPTING)
                        found[int(fields[6])] = (accepts, fields[7] if len(fields) > 7 else "")
    except OSError:
        return None
    return found


def by_address(listeners: Iterable[Listener]) -> Dict[Tuple[str, int], Listener]:
    """Listeners by their address and port."""
    return {(listener.address, listener.port): listener for listener in listeners}


def resolver() -> Callable[[str], FrozenSet[str]]:
    """A function from host names to addresses that asks the system once for each name."""
    known: Dict[str, FrozenSet[str]] = {}

    def resolve(host: str) -> FrozenSet[str]:
        if host not in known:
            try:
                entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                known[host] = frozenset(str(entry[4][0]) for entry in entries)
            except (OSError, UnicodeError):
                known[host] = frozenset()
        return known[host]

    return resolve


def _bound(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # As ssh does (channels.c, set_reuseaddr): a port in TIME_WAIT is no obstacle.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((address, port))
        bound.listen(1)
    except BaseException:
        bound.close()
        raise
    return bound


def bind_error(address: str, port: int) -> Optional[int]:
    """The ``errno`` that binding a listener here and now gives; ``None`` where it would work."""
    try:
        _bound(address, port).close()
    except OSError as error:
        return error.errno or errno.EINVAL
    return None


@contextlib.contextmanager
def occupied(places: Iterable[Tuple[str, int]]) -> Iterator[bool]:
    """Keep others from listening at these addresses and ports; whether that worked for each.

    Unix sockets among them (port -1) are left alone.
    """
    complete = True
    with contextlib.ExitStack() as stack:
        for address, port in places:
            try:
                if port >= 0:
                    stack.enter_context(_bound(address, port))
            except OSError as error:
                # Anything else is an address that nobody can have now.
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    complete = False
        yield complete


@contextlib.contextmanager
def dummy(path: str) -> Iterator[bool]:
    """Listen on a unix socket for a moment; whether that worked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            remove_dead_socket(path)
            listener.bind(path)
            listener.listen(1)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def free_port(addresses: Iterable[str]) -> Optional[int]:
    """A port that is free on all of these addresses, or on those which exist here."""
    wanted = sorted(addresses)
    for _attempt in range(20):
        taken: List[int] = []
        port = 0
        for address in wanted:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            if port == 0:
                try:
                    with socket.socket(family, socket.SOCK_STREAM) as probe:
                        probe.bind((address, 0))
                        port = int(probe.getsockname()[1])
                except OSError:
                    continue
            elif bind_error(address, port) == errno.EADDRINUSE:
                taken.append(port)
        if port and not taken:
            return port
    return None


def is_socket(path: str) -> bool:
    """Whether there is a socket at this path, a live one or a dead one."""
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def remove_dead_socket(path: str) -> bool:
    """Unlink a socket file on which nobody listens; whether there was one.

    ssh leaves the file of a cancelled forwarding behind and then cannot bind it again.
    A live socket, and anything that is no socket, stays.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(path)
    except ConnectionRefusedError:
        try:
            os.unlink(path)
        except OSError:
            return False
        return True
    except OSError:
        return False
    return False
