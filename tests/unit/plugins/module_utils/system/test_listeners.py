# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The listening sockets of a process, and the ones in the way of a new listener."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, ContextManager, Iterator, Optional, Set, Tuple, Union

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.system import listeners
from ansible_collections.bastion.mux.plugins.module_utils.system.listeners import Listener
from ansible_collections.bastion.mux.tests.support.workdir import short_dir

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux names sockets by inode")


@pytest.fixture
def work() -> Iterator[Path]:
    with short_dir() as directory:
        yield directory


def inode(one: socket.socket) -> int:
    return os.fstat(one.fileno()).st_ino


@contextlib.contextmanager
def listen(address: Any, family: int = socket.AF_INET, backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(backlog)
        yield one


def listen_unix(path: Path, backlog: int = 5) -> ContextManager[socket.socket]:
    return listen(os.fsencode(path), socket.AF_UNIX, backlog)


def has_ipv6() -> bool:
    return listeners.bind_error("::1", 0) is None


def look_at_all(pid: int) -> Optional[Tuple[Listener, ...]]:
    return listeners.snapshot()(pid)


LOOKS = [listeners.listening, look_at_all]


@pytest.mark.parametrize("look", LOOKS, ids=["process", "snapshot"])
def test_what_a_process_listens_on(
    work: Path, look: Callable[[int], Optional[Tuple[Listener, ...]]]
) -> None:
    before = set(look(os.getpid()) or ())
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(listen(("127.0.0.1", 0)))
        every = stack.enter_context(listen(("0.0.0.0", 0)))
        unix = stack.enter_context(listen_unix(work / "a"))
        # None of these listens.
        stack.enter_context(socket.socket()).bind(("127.0.0.1", 0))
        stack.enter_context(socket.create_connection(tcp.getsockname()))
        stack.enter_context(tcp.accept()[0])
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(work / "a"))
        stack.enter_context(unix.accept()[0])
        datagram = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        if sys.platform == "linux":
            datagram.bind(str(work / "d"))
        expected = {
            ("127.0.0.1", tcp.getsockname()[1]),
            ("0.0.0.0", every.getsockname()[1]),
            (str(work / "a"), -1),
        }
        if has_ipv6():
            six = stack.enter_context(listen(("::1", 0), socket.AF_INET6))
            expected.add(("::1", six.getsockname()[1]))
        seen = set(look(os.getpid()) or ()) - before
        assert {(one.address, one.port) for one in seen} == expected
        if sys.platform == "linux":
            by_inode = {one.inode: (one.address, one.port) for one in seen}
            assert by_inode[inode(tcp)] == ("127.0.0.1", tcp.getsockname()[1])
            assert by_inode[inode(unix)] == (str(work / "a"), -1)
    assert set(look(os.getpid()) or ()) == before


def test_a_kernel_that_tells_nothing(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listen(("127.0.0.1", 0)) as tcp, listen_unix(work / "a"):
        expected = {(one.address, one.port) for one in listeners.listening(os.getpid()) or ()}
        assert tcp.getsockname() in expected
        # A protocol of netlink that there is not.
        monkeypatch.setattr(listeners, "_NETLINK_SOCK_DIAG", 255)
        seen = {(one.address, one.port) for one in listeners.listening(os.getpid()) or ()}
        assert expected <= seen


@on_linux
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a network")
def test_a_process_in_another_network_cannot_be_seen() -> None:
    command = ["unshare", "--net", "sh", "-c", "echo; read line"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [look(process.pid) for look in LOOKS] == [None, None]
        process.communicate(b"\n")


@on_linux
@pytest.mark.parametrize("name", ["a b", " a", "a  b", "ü:1", "a\rb", "[x]", "a\\b", b"\xff\xfe"])
@pytest.mark.parametrize("look", LOOKS, ids=["process", "snapshot"])
def test_a_path_may_hold_anything(
    work: Path, look: Callable[[int], Optional[Tuple[Listener, ...]]], name: Union[str, bytes]
) -> None:
    path = work / os.fsdecode(name)
    with listen_unix(path) as one:
        assert Listener(str(path), -1, inode(one)) in (look(os.getpid()) or ())


@on_linux
def test_a_line_break_in_a_path_hides_no_other(work: Path) -> None:
    with listen_unix(work / "x\n1 2 3 zz 5 6 7 8"), listen_unix(work / "a") as one:
        assert Listener(str(work / "a"), -1, inode(one)) in (listeners.listening(os.getpid()) or ())


def test_a_process_that_is_gone_cannot_be_seen() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert listeners.listening(pid) is None
    assert listeners.snapshot()(pid) is None
    assert listeners.socket_inodes(pid) is None
    assert listeners.connected_unix_inodes(pid) == frozenset()


@on_linux
def test_the_inodes_are_all_sockets_of_a_process() -> None:
    before = listeners.socket_inodes(os.getpid())
    assert before is not None
    with socket.socket() as one, open(os.devnull, encoding="ascii"):
        assert listeners.socket_inodes(os.getpid()) == before | {inode(one)}
    assert listeners.socket_inodes(os.getpid()) == before


@on_linux
def test_connected_unix_sockets_are_those_that_do_not_listen(work: Path) -> None:
    one, other = socket.socketpair()
    with one, other, listen_unix(work / "a") as listener:
        found = listeners.connected_unix_inodes(os.getpid())
        assert {inode(one), inode(other)} <= found
        assert inode(listener) not in found


# Names


def test_a_name_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def getaddrinfo(host: str, *_more: object, **_named: object) -> object:
        asked.append(host)
        if host == "bad":
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        if host == "worse":
            raise UnicodeError("label too long")
        return [(0, 0, 0, "", ("192.0.2.1", 0)), (0, 0, 0, "", ("2001:db8::1", 0, 0, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    resolve = listeners.resolver()
    for _repeat in range(2):
        assert resolve("box") == {"192.0.2.1", "2001:db8::1"}
        assert resolve("bad") == frozenset()
        assert resolve("worse") == frozenset()
    assert asked == ["box", "bad", "worse"]


# Whether a listener could be had


@pytest.mark.parametrize(
    ("taken", "wanted", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", errno.EADDRINUSE),
        ("0.0.0.0", "0.0.0.0", errno.EADDRINUSE),
        ("127.0.0.1", "192.0.2.77", errno.EADDRNOTAVAIL),
    ],
)
def test_why_an_address_cannot_be_bound(taken: str, wanted: str, expected: int) -> None:
    with listen((taken, 0)) as one:
        assert listeners.bind_error(wanted, one.getsockname()[1]) == expected


def test_an_address_that_is_free_and_is_so_afterwards() -> None:
    with listen(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
        if has_ipv6():
            assert listeners.bind_error("::1", port) is None
    # Of a connection that was closed here, the port stays in TIME_WAIT.
    with listen(("127.0.0.1", port)) as one, socket.create_connection(("127.0.0.1", port)) as two:
        one.accept()[0].close()
        assert two.recv(1) == b""
    assert listeners.bind_error("127.0.0.1", port) is None
    assert listeners.bind_error("127.0.0.1", port) is None


def test_a_free_port_is_free_on_every_address() -> None:
    addresses: Set[str] = {"127.0.0.1", "::1"} if has_ipv6() else {"127.0.0.1"}
    port = listeners.free_port(addresses)
    assert port
    for address in addresses:
        assert listeners.bind_error(address, port) is None


def test_a_port_is_chosen_where_one_address_is_none_of_ours() -> None:
    assert listeners.free_port(["127.0.0.1", "192.0.2.77"])
    assert listeners.free_port(["192.0.2.77"]) is None
    assert listeners.free_port([]) is None


# Socket files


def test_a_dead_socket_goes(work: Path) -> None:
    with listen_unix(work / "a"):
        pass
    assert listeners.remove_dead_socket(str(work / "a"))
    assert not os.path.lexists(str(work / "a"))


def test_a_live_socket_stays(work: Path) -> None:
    with listen_unix(work / "a"):
        assert not listeners.remove_dead_socket(str(work / "a"))
        assert (work / "a").is_socket()


@on_linux
def test_a_live_socket_that_is_too_busy_stays(work: Path) -> None:
    with listen_unix(work / "a", backlog=0), contextlib.ExitStack() as stack:
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(work / "a"))
        assert not listeners.remove_dead_socket(str(work / "a"))
        assert (work / "a").is_socket()


def test_a_socket_of_another_kind_stays(work: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(str(work / "a"))
        assert not listeners.remove_dead_socket(str(work / "a"))
    assert (work / "a").is_socket()


def test_what_is_no_socket_stays(work: Path) -> None:
    (work / "file").write_text("mine", encoding="ascii")
    (work / "directory").mkdir()
    with listen_unix(work / "dead"):
        pass
    (work / "link").symlink_to(work / "dead")
    for name in ("file", "directory", "link", "missing", "missing/a"):
        assert not listeners.remove_dead_socket(str(work / name))
    assert sorted(one.name for one in work.iterdir()) == ["dead", "directory", "file", "link"]


# Whose control socket it is

LISTEN = """\
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen()
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def running(path: Path, name: str) -> Iterator[int]:
    """A process of that name which listens at the path."""
    program = path.with_name(name)
    program.symlink_to(os.path.realpath(sys.executable))
    command = [str(program), "-I", "-S", "-c", LISTEN, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.mark.parametrize(
    ("name", "bound", "found"),
    [
        ("ssh", "s", True),
        ("ssh", "a b/s", True),
        ("ssh", "s.abcdefghijklmnop", True),
        ("ssh", "s.json", False),
        ("other", "s", False),
    ],
)
def test_the_ssh_that_listens_on_a_socket(work: Path, name: str, bound: str, found: bool) -> None:
    path = work / bound
    path.parent.mkdir(exist_ok=True)
    with running(path, name) as pid:
        assert listeners.holder_of(str(path.with_name("s"))) == (pid if found else None)


def test_nobody_holds_a_stale_one(work: Path) -> None:
    with listen_unix(work / "s"):
        pass
    assert (work / "s").exists()
    assert listeners.holder_of(str(work / "s")) is None
