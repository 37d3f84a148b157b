# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mux client against the installed ssh as master, and a real sshd behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ansible_collections.bastion.mux.plugins.module_utils.protocol.messages import (
    DYNAMIC,
    LOCAL,
    REMOTE,
    SOCKS,
    STREAMLOCAL,
    WireForward,
)
from ansible_collections.bastion.mux.plugins.module_utils.system.mux_client import (
    MuxClient,
    MuxClosed,
    MuxRefused,
    MuxTimeout,
    MuxUnsupported,
    SessionLost,
    SocketMissing,
)
from tests.support.client import Ssh, alive, listeners
from tests.support.services import Echo, free_port, free_ports, listens, socks5, talk
from tests.support.sshd import Sshd, openssh_version
from tests.support.waiting import stays, wait_for

LOOPBACK = "127.0.0.1"


@pytest.fixture
def bastion(make_sshd: Callable[..., Sshd]) -> Sshd:
    return make_sshd(options={"AcceptEnv": "MUX_*", "MaxSessions": 3})


@pytest.fixture
def path(work: Path) -> Path:
    return work / "s"


@pytest.fixture
def ssh(bastion: Sshd) -> Ssh:
    return Ssh(bastion.ssh_config(), bastion.name)


@pytest.fixture
def master(ssh: Ssh, path: Path) -> Iterator[int]:
    """The pid of a master at `path`."""
    pid = ssh.open(path, "-o", "SendEnv=MUX_*")
    process = psutil.Process(pid)
    yield pid
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    path.unlink(missing_ok=True)


Connect = Callable[[], MuxClient]


@pytest.fixture
def connect(master: int, path: Path) -> Iterator[Connect]:
    """Connects to the master; what is open at the end is closed."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(MuxClient.connect(str(path), timeout=10))


@pytest.fixture
def client(connect: Connect) -> MuxClient:
    return connect()


@contextlib.contextmanager
def stream() -> Iterator[tuple[socket.socket, int]]:
    """A socket, and the descriptor of its other end: closed when the block ends at the latest."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        yield ours, theirs.fileno()


def rest(ours: socket.socket) -> bytes:
    """All that still comes."""
    return b"".join(iter(lambda: ours.recv(65536), b""))


def run(client: MuxClient, command: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """The exit status, output and error output of a command."""
    (read, write), (out, out_end), (err, err_end) = os.pipe(), os.pipe(), os.pipe()
    os.write(write, stdin)
    os.close(write)
    session = client.session(command, stdin=read, stdout=out_end, stderr=err_end)
    for end in (read, out_end, err_end):
        os.close(end)
    status = session.wait(10)
    with open(out, "rb") as output, open(err, "rb") as errors:
        return status, output.read(), errors.read()


def test_check(client: MuxClient, master: int) -> None:
    assert [client.check(), client.check()] == [master, master]


# Forwardings


def test_a_local_forwarding(client: MuxClient, master: int, echo: Echo) -> None:
    port = free_port()
    forward = WireForward(LOCAL, LOOPBACK, port, LOOPBACK, echo.port)
    assert client.open_forward(forward) is None
    assert client.open_forward(forward) is None
    assert listeners(master) == {(LOOPBACK, port)}
    assert talk((LOOPBACK, port)) == b"hello"
    client.close_forward(forward)
    assert listeners(master) == set()
    with pytest.raises(MuxRefused, match="port not forwarded"):
        client.close_forward(forward)


def test_a_taken_listener(client: MuxClient, master: int) -> None:
    port = free_port()
    first = WireForward(LOCAL, LOOPBACK, port, LOOPBACK, 1)
    client.open_forward(first)
    for second in (
        WireForward(LOCAL, LOOPBACK, port, LOOPBACK, 2),
        WireForward(DYNAMIC, LOOPBACK, port, SOCKS, 0),
    ):
        with pytest.raises(MuxRefused, match="Port forwarding failed"):
            client.open_forward(second)
    assert listeners(master) == {(LOOPBACK, port)}


@pytest.mark.parametrize("kind", [LOCAL, REMOTE])
def test_unix_sockets_at_both_ends(client: MuxClient, work: Path, kind: int, echo: Echo) -> None:
    near, far = work / "near", work / "far"
    with Echo(far):
        for forward in (
            WireForward(kind, str(near), STREAMLOCAL, str(far), STREAMLOCAL),
            WireForward(kind, str(near), STREAMLOCAL, LOOPBACK, echo.port),
        ):
            assert client.open_forward(forward) is None
            assert talk(near) == b"hello"
            client.close_forward(forward)
            # Neither ssh nor sshd removes the file of a listener that they closed.
            wait_for(lambda: not listens(near), "it listens no more")
            near.unlink(missing_ok=True)
        port = free_port()
        client.open_forward(WireForward(kind, LOOPBACK, port, str(far), STREAMLOCAL))
        assert talk((LOOPBACK, port)) == b"hello"


def test_a_remote_forwarding(client: MuxClient, echo: Echo) -> None:
    port = free_port()
    forward = WireForward(REMOTE, LOOPBACK, port, LOOPBACK, echo.port)
    assert client.open_forward(forward) is None
    assert client.open_forward(forward) is None
    assert talk((LOOPBACK, port)) == b"hello"
    with pytest.raises(MuxRefused, match=f"failed for listen port {port}"):
        client.open_forward(WireForward(REMOTE, LOOPBACK, port, LOOPBACK, 1))
    client.close_forward(forward)
    wait_for(lambda: not listens((LOOPBACK, port)), "it listens no more")
    with pytest.raises(MuxRefused, match="port not forwarded"):
        client.close_forward(forward)


def test_an_allocated_port_is_repeated(client: MuxClient, echo: Echo) -> None:
    forward = WireForward(REMOTE, LOOPBACK, 0, LOOPBACK, echo.port)
    port = client.open_forward(forward)
    assert port
    assert client.open_forward(forward) == port
    other = client.open_forward(WireForward(REMOTE, LOOPBACK, 0, LOOPBACK, 1))
    assert other not in (None, port)
    assert talk((LOOPBACK, port)) == b"hello"
    # It is known by the port that was asked for, not by the one that it got.
    with pytest.raises(MuxRefused, match="port not forwarded"):
        client.close_forward(WireForward(REMOTE, LOOPBACK, port, LOOPBACK, echo.port))
    client.close_forward(forward)
    wait_for(lambda: not listens((LOOPBACK, port)), "it listens no more")


@pytest.mark.parametrize("kind", [DYNAMIC, REMOTE])
def test_a_socks_proxy(client: MuxClient, kind: int, echo: Echo) -> None:
    port = free_port()
    client.open_forward(WireForward(kind, LOOPBACK, port, SOCKS, 0))
    with socks5((LOOPBACK, port), LOOPBACK, echo.port) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"


@pytest.mark.parametrize(
    ("kind", "option", "tail"),
    [(LOCAL, "-L", ":web:80"), (REMOTE, "-R", ":web:80"), (REMOTE, "-R", ""), (DYNAMIC, "-D", "")],
)
def test_ssh_cancels_what_we_opened_and_we_what_it_did(
    client: MuxClient, ssh: Ssh, path: Path, kind: int, option: str, tail: str
) -> None:
    port = free_port()
    far = ("web", 80) if tail else (SOCKS, 0)
    forward = WireForward(kind, LOOPBACK, port, *far)
    spelled = f"{LOOPBACK}:{port}{tail}"
    client.open_forward(forward)
    assert ssh.control(path, "cancel", option, spelled).err == ""
    with pytest.raises(MuxRefused, match="port not forwarded"):
        client.close_forward(forward)
    wait_for(lambda: not listens((LOOPBACK, port)), "it listens no more")
    assert ssh.control(path, "forward", option, spelled).rc == 0
    client.close_forward(forward)


def test_five_hundred_forwardings_and_remote_ones_among_them(
    client: MuxClient, master: int, bastion: Sshd, echo: Echo
) -> None:
    ports = free_ports(500)
    batch = [WireForward(LOCAL, LOOPBACK, port, LOOPBACK, echo.port) for port in ports]
    for place in (0, 100, 499):
        batch.insert(place, WireForward(REMOTE, LOOPBACK, 0, LOOPBACK, 1 + place))
    taken = WireForward(LOCAL, LOOPBACK, ports[0], LOOPBACK, 1)
    outcomes = client.open_forwards([*batch, taken])
    assert [outcome.forward for outcome in outcomes] == [*batch, taken]
    assert [outcome.ok for outcome in outcomes] == [True] * 503 + [False]
    assert outcomes[-1].message == "Port forwarding failed"
    assert all((o.port is not None) == (o.forward.kind == REMOTE) for o in outcomes[:-1])
    assert listeners(master) == {(LOOPBACK, port) for port in ports}
    assert talk((LOOPBACK, ports[-1])) == b"hello"

    outcomes = client.close_forwards([*batch, taken])
    assert [outcome.ok for outcome in outcomes] == [True] * 503 + [False]
    assert outcomes[-1].message == "port not forwarded"
    assert listeners(master) == set()
    assert bastion.logins() == 1


# Sessions


def test_a_session(client: MuxClient) -> None:
    assert run(client, "cat; echo err >&2; exit 3", b"in") == (3, b"in", b"err\n")


def test_a_long_output_is_complete_when_the_session_is_over(client: MuxClient) -> None:
    with stream() as (ours, theirs):
        session = client.session(
            "head -c 3000000 /dev/zero", stdin=theirs, stdout=theirs, stderr=theirs
        )
        read = 0
        while read < 3000000:
            read += len(ours.recv(1 << 20))
        assert session.wait(10) == 0


def test_the_environment_that_both_sides_let_through(client: MuxClient) -> None:
    with stream() as (ours, theirs):
        session = client.session(
            b'echo "$MUX_A,$OTHER"',
            environment=[("MUX_A", "b c=d"), ("OTHER", "x")],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        assert session.wait(10) == 0
        assert ours.recv(100) == b"b c=d,\n"


def test_the_sftp_subsystem(client: MuxClient) -> None:
    with stream() as (ours, theirs):
        client.session("sftp", subsystem=True, stdin=theirs, stdout=theirs, stderr=theirs)
        # SSH_FXP_INIT, version 3, and its answer.
        ours.sendall(b"\0\0\0\x05\x01\0\0\0\x03")
        assert ours.recv(100)[4:9] == b"\x02\0\0\0\x03"


@pytest.mark.parametrize(("command", "subsystem"), [("kill -9 $$", False), ("none", True)])
def test_a_session_without_a_status(client: MuxClient, command: str, subsystem: bool) -> None:
    with stream() as (_ours, theirs):
        session = client.session(
            command, subsystem=subsystem, stdin=theirs, stdout=theirs, stderr=theirs
        )
        with pytest.raises(SessionLost):
            session.wait(10)


def test_a_session_is_lost_with_its_master(client: MuxClient, master: int) -> None:
    with stream() as (_ours, theirs):
        session = client.session("sleep 60", stdin=theirs, stdout=theirs, stderr=theirs)
        os.kill(master, signal.SIGKILL)
        with pytest.raises(SessionLost):
            session.wait(10)


def test_closing_ends_a_session(client: MuxClient, connect: Connect) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            descriptor = theirs.fileno()
            session = client.session("cat", stdin=descriptor, stdout=descriptor, stderr=descriptor)
        ours.settimeout(10)
        ours.sendall(b"still there")
        assert ours.recv(100) == b"still there"
        session.close()
        assert rest(ours) == b""
    assert connect().check()


def test_more_sessions_than_the_server_allows(connect: Connect) -> None:
    with stream() as (_ours, theirs):
        for _number in range(3):
            connect().session("sleep 60", stdin=theirs, stdout=theirs, stderr=theirs)
        client = connect()
        with pytest.raises(MuxRefused, match="Session open refused by peer"):
            client.session("true", stdin=theirs, stdout=theirs, stderr=theirs)
        # The master ends this connection, but no other.
        with pytest.raises(MuxClosed):
            client.check()
        assert connect().check()


# Stdio forwardings


def test_a_stdio_forwarding(client: MuxClient, echo: Echo) -> None:
    far = (LOOPBACK, echo.port)
    with stream() as pair, client.stdio_forward(*far, stdin=pair[1], stdout=pair[1]):
        pair[0].sendall(b"hello")
        assert pair[0].recv(100) == b"hello"


def test_a_stdio_forwarding_to_a_unix_socket(client: MuxClient, work: Path) -> None:
    with stream() as (ours, theirs), Echo(work / "echo") as echo:
        if openssh_version() < (9, 4):
            with pytest.raises(MuxRefused):
                client.stdio_forward(str(echo.path), STREAMLOCAL, stdin=theirs, stdout=theirs)
        else:
            client.stdio_forward(str(echo.path), STREAMLOCAL, stdin=theirs, stdout=theirs)
            ours.sendall(b"hello")
            assert ours.recv(100) == b"hello"


def test_a_stdio_forwarding_to_nobody(client: MuxClient, connect: Connect) -> None:
    # The server's reason is in the master's log alone (mux.c, mux_stdio_confirm).
    refused = pytest.raises(MuxRefused, match=r"^Session open refused by peer$")
    with stream() as (_ours, theirs), refused:
        client.stdio_forward(LOOPBACK, free_port(), stdin=theirs, stdout=theirs)
    assert connect().check()


# The master's life


def test_terminate(client: MuxClient, master: int, path: Path) -> None:
    client.terminate()
    wait_for(lambda: not alive(master), "the master ends")
    assert not path.exists()


def test_stop_listening(client: MuxClient, connect: Connect, master: int, path: Path) -> None:
    with stream() as (ours, theirs):
        session = connect().session("cat", stdin=theirs, stdout=theirs, stderr=theirs)
        client.stop_listening()
        with pytest.raises(SocketMissing):
            MuxClient.connect(str(path), timeout=10)
        assert client.check() == master
        client.close()
        ours.sendall(b"hello")
        assert ours.recv(100) == b"hello"
        session.close()
    wait_for(lambda: not alive(master), "the master ends with its last client")


def test_a_wedged_master(client: MuxClient, master: int, path: Path, ssh: Ssh) -> None:
    assert ssh.master_pid(path) == master
    os.kill(master, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(MuxTimeout):
            MuxClient.connect(str(path), timeout=0.3)
        assert 0.29 < time.monotonic() - start < 2
    finally:
        os.kill(master, signal.SIGCONT)
    assert client.check() == master


def test_a_dead_network_is_no_wedged_master(
    client: MuxClient, path: Path, master: int, bastion: Sshd, echo: Echo
) -> None:
    forward = WireForward(REMOTE, LOOPBACK, 0, LOOPBACK, echo.port)
    bastion.freeze()
    with MuxClient.connect(str(path), timeout=0.3) as hasty, pytest.raises(MuxTimeout):
        hasty.open_forward(forward)
    assert client.check() == master
    # The first request is on its way still: there is no port to tell.
    with pytest.raises(MuxRefused, match="earlier request"):
        client.open_forward(forward)
    bastion.thaw()

    def port() -> int:
        with contextlib.suppress(MuxRefused):
            return client.open_forward(forward) or 0
        return 0

    assert talk((LOOPBACK, wait_for(port, "the server's answer"))) == b"hello"
    stays(lambda: alive(master), "the master", 0.2)


def test_info(client: MuxClient, master: int) -> None:
    if openssh_version() < (10, 3):
        with pytest.raises(MuxUnsupported):
            client.info("connection")
    else:
        assert f"pid {master}\r\n" in client.info("connection")
        assert "mux-control" in client.info("channels")
        with pytest.raises(MuxUnsupported):
            client.info("weather")
    assert client.check() == master
