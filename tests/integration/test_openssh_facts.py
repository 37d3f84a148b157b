# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection believes about OpenSSH, asked of the OpenSSH that is installed.

Nothing of the collection takes part: a failure here means that OpenSSH changed, or that we were
wrong, and says which decision of ours to look at.
"""

from __future__ import annotations

import array
import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.client import Said, Ssh, alive, clients, listeners
from tests.support.playbook import run_playbook
from tests.support.services import Echo, connect, free_port, has_ipv6, listens, socks5, talk
from tests.support.sshd import Sshd, openssh_version, sshd_path
from tests.support.waiting import stays, wait_for

LOOPBACK = {"127.0.0.1", "::1"} if has_ipv6() else {"127.0.0.1"}
EVERYWHERE = {"0.0.0.0", "::"} if has_ipv6("::") else {"0.0.0.0"}

MakeSshd = Callable[..., Sshd]
MakeSsh = Callable[[Sshd], Ssh]


@pytest.fixture
def make_ssh(work: Path, make_sshd: MakeSshd) -> Iterator[MakeSsh]:
    """`make_ssh(server)`: an ssh for it. Whatever is connected to it at the end is killed.

    By needing `make_sshd` it ends before that one looks for leftovers.
    """
    servers: list[Sshd] = []

    def make(server: Sshd) -> Ssh:
        servers.append(server)
        return Ssh(server.ssh_config(), server.name)

    yield make
    for server in servers:
        for process in clients(server.port):
            process.kill()
    for path in work.rglob("*"):
        if path.is_socket():
            path.unlink()


@pytest.fixture
def ssh(make_ssh: MakeSsh, bastion: Sshd) -> Ssh:
    return make_ssh(bastion)


@pytest.fixture
def path(work: Path) -> Path:
    """Where the master's socket is."""
    return work / "s"


@pytest.fixture
def master(ssh: Ssh, path: Path) -> int:
    """The pid of a master at `path`."""
    return ssh.open(path)


# The socket's protocol, as far as the facts need it.

HELLO = 0x00000001
NEW_SESSION = 0x10000002
TERMINATE = 0x10000005
CLOSE_FWD = 0x10000007
NEW_STDIO_FWD = 0x10000008
S_OK = 0x80000001
S_FAILURE = 0x80000003
S_EXIT_MESSAGE = 0x80000004
S_SESSION_OPENED = 0x80000006
LOCAL, REMOTE = 1, 2


class Mux:
    """A control connection."""

    def __init__(self, path: Path) -> None:
        self.socket = connect(path)
        self.send(HELLO, 4)
        assert self.receive()[:2] == (HELLO, 4)

    def close(self) -> None:
        self.socket.close()

    def send(self, *fields: int | str) -> None:
        body = b""
        for field in fields:
            if isinstance(field, int):
                body += struct.pack("!I", field)
            else:
                body += struct.pack("!I", len(field)) + field.encode()
        self.socket.sendall(struct.pack("!I", len(body)) + body)

    def send_descriptors(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))
            self.socket.sendmsg([b"\0"], [rights])

    def receive(self) -> tuple[int, int, bytes]:
        """A message: its type, its first number, the rest."""
        body = self._read(struct.unpack("!I", self._read(4))[0])
        kind, first = struct.unpack("!II", body[:8])
        return kind, first, body[8:]

    def at_end(self) -> bool:
        return self.socket.recv(1) == b""

    def _read(self, count: int) -> bytes:
        data = self.socket.recv(count, socket.MSG_WAITALL)
        assert len(data) == count, "the master closed the connection"
        return data


def allocated(said: Said) -> int:
    """The port which the server chose, as `ssh -O forward -R 0:…` prints it."""
    assert said.rc == 0, said
    return int(said.out.strip())


def bound(pid: int, port: int) -> set[str]:
    """The addresses at which process `pid` listens on `port`."""
    return {address for address, number in listeners(pid) if number == port}


def holding(ssh: Ssh, path: Path) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """A session over the socket, for `session_began`. It ends when its stdin does."""
    return ssh.started("-S", str(path), command="echo up; exec cat")


def session_began(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"


def end_session(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0


def at_end_of_stderr(process: subprocess.Popen[bytes]) -> bool:
    """Whether nobody holds the other end of a process's stderr any more."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    while said := process.stderr.read():
        del said
    return said == b""


def behind(bastion: Sshd, target: Sshd) -> Ssh:
    """An ssh to `target` which jumps over `bastion`."""
    jump = {"ProxyJump": bastion.name}
    config = target.ssh_config(options=jump, more=bastion.ssh_config().read_text())
    return Ssh(config, target.name)


def exits(pid: int) -> None:
    wait_for(lambda: not alive(pid), f"the end of process {pid}")


# Forwardings


@pytest.mark.parametrize("option", ["-L", "-R", "-D"])
def test_a_repeated_request_answers_ok_like_a_new_one(
    ssh: Ssh, path: Path, master: int, echo: Echo, option: str
) -> None:
    spec = f"127.0.0.1:{free_port()}" + ("" if option == "-D" else f":127.0.0.1:{echo.port}")
    first = ssh.control(path, "forward", option, spec)
    second = ssh.control(path, "forward", option, spec)
    assert first.rc == 0
    assert second == first


def test_cancel_exits_0_although_it_failed_and_the_protocol_tells(
    ssh: Ssh, path: Path, master: int
) -> None:
    port = free_port()
    said = ssh.control(path, "cancel", "-L", f"127.0.0.1:{port}:127.0.0.1:1")
    assert said.rc == 0
    assert "port not forwarded" in said.err or "port not found" in said.err, said
    mux = Mux(path)
    for kind, listen_host in ((LOCAL, "127.0.0.1"), (REMOTE, "127.0.0.1")):
        mux.send(CLOSE_FWD, 7, kind, listen_host, port, "127.0.0.1", 1)
        reply, request, reason = mux.receive()
        assert (reply, request) == (S_FAILURE, 7)
        assert reason[4:] in (b"port not forwarded", b"port not found")
    mux.close()


@pytest.mark.parametrize(
    ("opened", "spelled"),
    [("127.0.0.1", "localhost"), ("localhost", "127.0.0.1"), ("localhost", ""), ("", "localhost")],
)
def test_forwardings_are_told_apart_by_the_spelling(
    ssh: Ssh, path: Path, master: int, opened: str, spelled: str
) -> None:
    port = free_port()

    def spec(host: str) -> str:
        return f"{host}:{port}:127.0.0.1:1" if host else f"{port}:127.0.0.1:1"

    assert ssh.control(path, "forward", "-L", spec(opened)).rc == 0
    before = bound(master, port)
    assert before
    ssh.control(path, "cancel", "-L", spec(spelled))
    assert bound(master, port) == before
    ssh.control(path, "cancel", "-L", spec(opened))
    assert not bound(master, port)


@pytest.mark.parametrize("other", ["LOCALHOST", "Localhost"])
def test_letter_case_makes_another_forwarding(
    ssh: Ssh, path: Path, master: int, other: str
) -> None:
    port = free_port()
    assert ssh.control(path, "forward", "-L", f"localhost:{port}:127.0.0.1:1").rc == 0
    ssh.control(path, "cancel", "-L", f"{other}:{port}:127.0.0.1:1")
    assert bound(master, port) == LOOPBACK


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
def test_localhost_binds_what_is_left_of_it(ssh: Ssh, path: Path, master: int, echo: Echo) -> None:
    port = free_port()
    assert ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:1").rc == 0
    said = ssh.control(path, "forward", "-L", f"localhost:{port}:127.0.0.1:{echo.port}")
    assert said.rc == 0
    # Two forwardings now, and which one answers is up to the family.
    assert talk(("::1", port)) == b"hello"
    assert talk(("127.0.0.1", port)) == b""


@pytest.mark.parametrize(
    ("gateway_ports", "listen_host", "expected"),
    [
        ("no", "", LOOPBACK),
        ("no", "localhost", LOOPBACK),
        ("no", "127.0.0.1", {"127.0.0.1"}),
        ("no", "127.0.0.2", {"127.0.0.2"}),
        ("no", "[::1]", {"::1"}),
        ("no", "*", EVERYWHERE),
        ("no", "0.0.0.0", {"0.0.0.0"}),
        ("no", "[::]", {"::"}),
        ("yes", "", EVERYWHERE),
        ("yes", "localhost", LOOPBACK),
        ("yes", "127.0.0.1", {"127.0.0.1"}),
        ("yes", "*", EVERYWHERE),
    ],
)
def test_where_a_local_spelling_listens(
    ssh: Ssh, path: Path, gateway_ports: str, listen_host: str, expected: set[str]
) -> None:
    if any(":" in address and not has_ipv6(address) for address in expected):
        pytest.skip(f"this machine cannot bind {expected}")
    port = free_port()
    pid = ssh.open(path, "-o", f"GatewayPorts={gateway_ports}")
    where = f"{listen_host}:{port}" if listen_host else str(port)
    said = ssh.control(path, "forward", "-L", f"{where}:127.0.0.1:1")
    assert (said.rc, bound(pid, port)) == (0, expected)


@pytest.mark.parametrize(
    ("gateway_ports", "listen_host", "expected"),
    [
        ("no", "", LOOPBACK),
        ("no", "*", LOOPBACK),
        ("no", "0.0.0.0", LOOPBACK),
        ("no", "localhost", LOOPBACK),
        ("clientspecified", "", LOOPBACK),
        ("clientspecified", "127.0.0.2", {"127.0.0.2"}),
        ("clientspecified", "*", EVERYWHERE),
        ("yes", "127.0.0.1", EVERYWHERE),
    ],
)
def test_where_a_remote_spelling_listens(
    make_sshd: MakeSshd,
    make_ssh: MakeSsh,
    path: Path,
    gateway_ports: str,
    listen_host: str,
    expected: set[str],
) -> None:
    bastion = make_sshd(options={"GatewayPorts": gateway_ports})
    ssh = make_ssh(bastion)
    ssh.open(path)
    port = free_port()
    where = f"{listen_host}:{port}" if listen_host else str(port)
    assert ssh.control(path, "forward", "-R", f"{where}:127.0.0.1:1").rc == 0
    served = [bound(process.pid, port) for process in bastion.processes()]
    assert set().union(*served) == expected


def test_another_destination_for_the_same_listener_fails(
    ssh: Ssh, path: Path, master: int, echo: Echo
) -> None:
    port = free_port()
    assert ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:{echo.port}").rc == 0
    said = ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:1")
    assert said.rc != 0
    assert "Port forwarding failed" in said.err
    assert talk(("127.0.0.1", port)) == b"hello"


def test_what_the_server_refused_stays_permitted_and_is_connected_first(
    ssh: Ssh, path: Path, master: int, echo: Echo
) -> None:
    port = free_port()
    with Echo() as refused:
        with Echo(port=port):
            spec = f"127.0.0.1:{port}:127.0.0.1:{refused.port}"
            assert ssh.control(path, "forward", "-R", spec).rc != 0
        spec = f"127.0.0.1:{port}:127.0.0.1:{echo.port}"
        assert ssh.control(path, "forward", "-R", spec).rc == 0
        assert talk(("127.0.0.1", port)) == b"hello"
        assert (len(refused.seen), len(echo.seen)) == (1, 0)


def test_an_allocated_remote_port_is_given_again_and_cancelled_as_0(
    ssh: Ssh, path: Path, master: int, echo: Echo
) -> None:
    spec = f"127.0.0.1:0:127.0.0.1:{echo.port}"
    port = allocated(ssh.control(path, "forward", "-R", spec))
    assert allocated(ssh.control(path, "forward", "-R", spec)) == port
    assert talk(("127.0.0.1", port)) == b"hello"
    ssh.control(path, "cancel", "-R", f"127.0.0.1:{port}:127.0.0.1:{echo.port}")
    stays(lambda: listens(("127.0.0.1", port)), "the listener", 0.2)
    ssh.control(path, "cancel", "-R", spec)
    wait_for(lambda: not listens(("127.0.0.1", port)), "the end of the listener")


def test_there_is_no_local_port_0(ssh: Ssh, path: Path, master: int) -> None:
    assert ssh.control(path, "forward", "-L", "127.0.0.1:0:127.0.0.1:1").rc != 0
    assert not listeners(master)


def test_a_remote_forwarding_without_destination_is_a_socks_proxy(
    ssh: Ssh, path: Path, master: int, echo: Echo
) -> None:
    port = free_port()
    assert ssh.control(path, "forward", "-R", f"127.0.0.1:{port}").rc == 0
    with socks5(("127.0.0.1", port), "127.0.0.1", echo.port) as connection:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"hello"


def test_exit_on_forward_failure_is_not_for_requests_over_the_socket(
    ssh: Ssh, path: Path, echo: Echo
) -> None:
    pid = ssh.open(path, "-o", "ExitOnForwardFailure=yes")
    taken = f"127.0.0.1:{echo.port}:127.0.0.1:1"
    assert ssh.control(path, "forward", "-L", taken).rc != 0
    assert ssh.master_pid(path) == pid


def test_configured_forwardings_join_every_forward_and_leave_with_every_cancel(
    bastion: Sshd, make_ssh: MakeSsh, path: Path, echo: Echo
) -> None:
    make_ssh(bastion).open(path)
    configured, own = free_port(), free_port()
    line = f"127.0.0.1:{configured} 127.0.0.1:{echo.port}"
    ssh = Ssh(bastion.ssh_config(options={"LocalForward": line}))
    spec = f"127.0.0.1:{own}:127.0.0.1:{echo.port}"
    assert ssh.control(path, "forward", "-L", spec).rc == 0
    assert talk(("127.0.0.1", configured)) == b"hello"
    ssh.control(path, "cancel", "-L", spec)
    assert not listens(("127.0.0.1", configured))


def test_clear_all_forwardings_drops_the_forwarding_that_was_asked_for(
    bastion: Sshd, make_ssh: MakeSsh, path: Path
) -> None:
    pid = make_ssh(bastion).open(path)
    ssh = Ssh(bastion.ssh_config(options={"ClearAllForwardings": "yes"}))
    ssh.control(path, "forward", "-L", f"127.0.0.1:{free_port()}:127.0.0.1:1")
    assert not listeners(pid)


@pytest.mark.parametrize("unlink", ["no", "yes"])
def test_a_cancelled_unix_socket_leaves_its_file_in_the_way(
    ssh: Ssh, path: Path, work: Path, echo: Echo, unlink: str
) -> None:
    ssh.open(path, "-o", f"StreamLocalBindUnlink={unlink}")
    spec = f"{work}/u:127.0.0.1:{echo.port}"
    assert ssh.control(path, "forward", "-L", spec).rc == 0
    assert talk(work / "u") == b"hello"
    ssh.control(path, "cancel", "-L", spec)
    assert (work / "u").is_socket()
    assert not listens(work / "u")
    # The option of the client that asks changes nothing.
    again = ssh.control(path, "forward", "-o", "StreamLocalBindUnlink=yes", "-L", spec)
    assert (again.rc == 0) == (unlink == "yes")


def test_a_listening_port_proves_nothing_and_a_stdio_forwarding_does(
    ssh: Ssh, path: Path, master: int, bastion: Sshd
) -> None:
    port, nobody = free_port(), free_port()
    assert ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:{nobody}").rc == 0
    assert listens(("127.0.0.1", port))
    mux = Mux(path)
    mux.send(NEW_STDIO_FWD, 3, "", "127.0.0.1", nobody)
    with open(os.devnull, "r+b") as null:
        mux.send_descriptors(null.fileno(), null.fileno())
        kind, request, reason = mux.receive()
    mux.close()
    assert (kind, request) == (S_FAILURE, 3)
    # mux_stdio_confirm() says no more; the server's own words go to the master's log.
    assert reason[4:] == b"Session open refused by peer"


def test_the_kernel_shows_local_listeners_in_the_master_and_remote_ones_in_sshd(
    ssh: Ssh, path: Path, master: int, bastion: Sshd
) -> None:
    local, remote, dynamic = free_port(), free_port(), free_port()
    assert ssh.control(path, "forward", "-L", f"127.0.0.1:{local}:h:1").rc == 0
    assert ssh.control(path, "forward", "-R", f"127.0.0.1:{remote}:h:1").rc == 0
    assert ssh.control(path, "forward", "-D", f"127.0.0.1:{dynamic}").rc == 0
    assert listeners(master) == {("127.0.0.1", local), ("127.0.0.1", dynamic)}
    assert ("127.0.0.1", remote) in set().union(
        *(listeners(process.pid) for process in bastion.processes())
    )


@pytest.mark.skipif(openssh_version() >= (10, 3), reason="this OpenSSH has -O channels")
@pytest.mark.parametrize("verb", ["conninfo", "channels"])
def test_before_10_3_a_master_cannot_tell_about_itself(
    ssh: Ssh, path: Path, master: int, verb: str
) -> None:
    said = ssh.control(path, verb)
    assert said.rc != 0
    assert "Invalid multiplex command" in said.err


@pytest.mark.skipif(openssh_version() < (10, 3), reason="-O channels came with OpenSSH 10.3")
def test_the_list_of_channels_has_no_listeners(ssh: Ssh, path: Path, master: int) -> None:
    port = free_port()
    assert ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:1").rc == 0
    said = ssh.control(path, "channels")
    assert said.rc == 0
    assert str(port) not in said.out + said.err
    assert ssh.control(path, "conninfo").rc == 0


# Masters


def test_a_second_explicit_master_is_an_orphan(
    ssh: Ssh, path: Path, master: int, bastion: Sshd
) -> None:
    said = ssh.run("-M", "-S", str(path), "-fN", "-o", "ControlPersist=no")
    assert said.rc == 0
    assert f"ControlSocket {path} already exists, disabling multiplexing" in said.err
    assert bastion.logins() == 2
    assert ssh.master_pid(path) == master
    orphans = [process.pid for process in clients(bastion.port) if process.pid != master]
    assert len(orphans) == 1
    assert ssh.control(path, "exit").rc == 0
    exits(master)
    assert alive(orphans[0])
    assert ssh.master_pid(path) is None


def test_two_automatic_masters_that_open_at_once_log_in_twice(
    ssh: Ssh, path: Path, bastion: Sshd
) -> None:
    bastion.freeze(listener=True)
    options = ("-S", str(path), "-fN", "-o", "ControlMaster=auto", "-o", "ControlPersist=yes")
    with ssh.started(*options), ssh.started(*options):
        # Neither has found a socket, and both are on their way to the server.
        wait_for(lambda: len(clients(bastion.port)) == 2, "two TCP connections")
        bastion.thaw()
        wait_for(lambda: bastion.logins() == 2, "two logins")
        pid = wait_for(lambda: ssh.master_pid(path), "a master")
        orphans = [process.pid for process in clients(bastion.port) if process.pid != pid]
        assert len(orphans) == 1
        stays(lambda: alive(orphans[0]), "the orphan", 0.3)


@pytest.mark.parametrize(("mode", "becomes_master"), [("yes", False), ("auto", True)])
def test_a_stale_socket_makes_an_orphan_of_an_explicit_master_only(
    ssh: Ssh, path: Path, master: int, bastion: Sshd, mode: str, becomes_master: bool
) -> None:
    os.kill(master, signal.SIGKILL)
    exits(master)
    assert path.is_socket()
    said = ssh.run("-S", str(path), "-fN", "-o", f"ControlMaster={mode}", "-o", "ControlPersist=no")
    assert said.rc == 0
    assert len(clients(bastion.port)) == 1
    assert (ssh.master_pid(path) is not None) == becomes_master
    assert ("already exists, disabling multiplexing" in said.err) != becomes_master


@pytest.mark.parametrize("options", [("-o", "ControlPersist=yes"), ("-f",)])
def test_the_foreground_ends_when_all_is_established(
    ssh: Ssh, path: Path, echo: Echo, options: tuple[str, ...]
) -> None:
    remote, local = free_port(), free_port()
    said = ssh.run(
        *("-M", "-S", str(path), "-N", *options),
        *("-R", f"127.0.0.1:{remote}:127.0.0.1:{echo.port}"),
        *("-L", f"127.0.0.1:{local}:127.0.0.1:{echo.port}"),
    )
    assert said.rc == 0
    assert path.is_socket()
    assert talk(("127.0.0.1", remote)) == b"hello"
    assert talk(("127.0.0.1", local)) == b"hello"


def test_without_persist_the_foreground_stays(ssh: Ssh, path: Path) -> None:
    with ssh.started("-M", "-S", str(path), "-N", "-o", "ControlPersist=no") as process:
        pid = wait_for(lambda: ssh.master_pid(path), "a master")
        assert pid == process.pid


@pytest.mark.parametrize("session", ["-N", "-fN"])
def test_persist_without_f_ran_a_shell_before_8_7(
    ssh: Ssh, path: Path, bastion: Sshd, session: str
) -> None:
    # Then -N is for the master alone, and the foreground becomes an ordinary client of it.
    said = ssh.run("-M", "-S", str(path), session, "-o", "ControlPersist=yes")
    assert said.rc == 0
    a_shell = session == "-N" and openssh_version() < (8, 7)
    assert ("Starting session: shell" in bastion.log()) == a_shell


@pytest.mark.usefixtures("master")
def test_without_a_session_is_not_for_clients_of_a_master(
    ssh: Ssh, path: Path, bastion: Sshd
) -> None:
    assert ssh.run("-S", str(path), "-N").rc == 0
    assert "Starting session: shell" in bastion.log()


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("options", [("-N", "yes"), ("-fN", "yes"), ("-fN", "no")])
def test_the_background_process_keeps_the_stderr_when_verbose(
    ssh: Ssh, path: Path, options: tuple[str, str], verbose: bool
) -> None:
    session, persist = options
    more = ("-v",) if verbose else ()
    # fork_postauth() of OpenSSH before 8.5 redirects stdout twice and stderr never.
    keeps = verbose or ("f" in session and openssh_version() < (8, 5))
    with ssh.started(
        "-M", "-S", str(path), session, "-n", "-o", f"ControlPersist={persist}", *more
    ) as process:
        assert process.wait(10) == 0
        if keeps:
            stays(lambda: not at_end_of_stderr(process), "stderr", 0.3)
            assert ssh.control(path, "exit").rc == 0
        wait_for(lambda: at_end_of_stderr(process), "the end of stderr")


@pytest.mark.parametrize("persist", ["no", "yes"])
def test_a_jump_keeps_the_stderr_unless_persist_discards_it(
    bastion: Sshd, make_sshd: MakeSshd, make_ssh: MakeSsh, path: Path, persist: str
) -> None:
    make_ssh(bastion)
    ssh = behind(bastion, make_sshd(name="target"))
    options = ("-M", "-S", str(path), "-fN", "-o", f"ControlPersist={persist}")
    with ssh.started(*options) as process:
        assert process.wait(10) == 0
        if persist == "no" or openssh_version() < (8, 5):
            stays(lambda: not at_end_of_stderr(process), "stderr", 0.3)
            assert ssh.control(path, "exit").rc == 0
        wait_for(lambda: at_end_of_stderr(process), "the end of stderr")
    ssh.control(path, "exit")


@pytest.mark.parametrize(("persist", "told"), [("no", True), ("yes", False)])
def test_persist_hides_why_a_jump_failed(
    bastion: Sshd, make_sshd: MakeSshd, path: Path, persist: str, told: bool
) -> None:
    ssh = behind(bastion, make_sshd(name="target"))
    bastion.known_hosts.write_text("")
    said = ssh.run("-M", "-S", str(path), "-fN", "-o", f"ControlPersist={persist}")
    assert said.rc != 0
    assert ("Host key verification failed" in said.err) == told


@pytest.mark.parametrize("persist", ["no", "yes"])
def test_a_log_file_goes_on_in_the_background_and_has_the_reasons(
    ssh: Ssh, path: Path, work: Path, persist: str
) -> None:
    ssh.open(path, "-E", str(work / "log"), persist=persist)
    said = ssh.run("-S", str(path), "-W", f"127.0.0.1:{free_port()}")
    assert said.rc != 0
    assert "Session open refused by peer" in said.err
    assert "open failed: connect failed: Connection refused" in (work / "log").read_text()


def test_the_idle_clock_does_not_count_listeners(ssh: Ssh, path: Path) -> None:
    port = free_port()
    pid = ssh.open(path, "-L", f"127.0.0.1:{port}:127.0.0.1:1", persist="2")
    assert listens(("127.0.0.1", port))
    exits(pid)
    assert not listens(("127.0.0.1", port))
    assert not path.exists()


def test_the_idle_clock_waits_for_forwarded_connections(ssh: Ssh, path: Path, echo: Echo) -> None:
    port = free_port()
    pid = ssh.open(path, "-L", f"127.0.0.1:{port}:127.0.0.1:{echo.port}", persist="2")
    with connect(("127.0.0.1", port)):
        stays(lambda: alive(pid), "the master", 3)


def test_the_idle_clock_waits_for_sessions(ssh: Ssh, path: Path) -> None:
    pid = ssh.open(path, persist="2")
    with holding(ssh, path) as session:
        session_began(session)
        stays(lambda: alive(pid), "the master", 3)
        end_session(session)


# Stopping


@pytest.mark.parametrize(
    "options",
    [
        ("-N", "-o", "ControlPersist=yes"),
        ("-N", "-o", "ControlPersist=60"),
        ("-fN", "-o", "ControlPersist=no"),
    ],
)
class TestStop:
    """`-O stop` of masters that are started with -N, in the background by either way."""

    @pytest.fixture
    def master(self, ssh: Ssh, path: Path, options: tuple[str, ...]) -> int:
        assert ssh.run("-M", "-S", str(path), *options).rc == 0
        pid = ssh.master_pid(path)
        assert pid
        return pid

    @pytest.fixture
    def port(self, ssh: Ssh, path: Path, master: int, echo: Echo) -> int:
        """The port of a local forwarding."""
        port = free_port()
        assert ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:{echo.port}").rc == 0
        return port

    def test_an_idle_master_goes_and_takes_its_forwardings(
        self, ssh: Ssh, path: Path, master: int, port: int
    ) -> None:
        assert ssh.control(path, "stop").rc == 0
        assert not path.exists()
        exits(master)
        assert not listens(("127.0.0.1", port))

    def test_one_with_a_session_keeps_its_listeners_until_the_session_ends(
        self, ssh: Ssh, path: Path, master: int, port: int
    ) -> None:
        with holding(ssh, path) as session:
            session_began(session)
            assert ssh.control(path, "stop").rc == 0
            assert not path.exists()
            stays(lambda: alive(master), "the master", 0.3)
            assert talk(("127.0.0.1", port)) == b"hello"
            end_session(session)
            exits(master)
        assert not listens(("127.0.0.1", port))

    def test_one_with_a_forwarded_connection_waits_for_its_end(
        self, ssh: Ssh, path: Path, master: int, port: int
    ) -> None:
        with connect(("127.0.0.1", port)) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            with holding(ssh, path) as session:
                session_began(session)
                assert ssh.control(path, "stop").rc == 0
                end_session(session)
            stays(lambda: alive(master), "the master", 0.3)
            connection.sendall(b"b")
            assert connection.recv(1) == b"b"
            # Who comes now is served still, and makes it last longer.
            assert talk(("127.0.0.1", port)) == b"hello"
        exits(master)
        assert not listens(("127.0.0.1", port))

    def test_its_path_belongs_to_the_next_one(self, ssh: Ssh, path: Path, master: int) -> None:
        with holding(ssh, path) as session:
            session_began(session)
            assert ssh.control(path, "stop").rc == 0
            heir = ssh.open(path)
            end_session(session)
        exits(master)
        assert ssh.master_pid(path) == heir

    def test_its_title_no_longer_names_the_socket(self, ssh: Ssh, path: Path, master: int) -> None:
        with holding(ssh, path) as session:
            session_began(session)
            assert ssh.control(path, "stop").rc == 0
            title = " ".join(psutil.Process(master).cmdline())
            assert "[stopped mux]" in title
            assert str(path) not in title


def test_a_stopped_foreground_master_lives_as_long_as_its_own_session(
    ssh: Ssh, path: Path, bastion: Sshd
) -> None:
    with ssh.started("-M", "-S", str(path), command="echo up; exec cat") as process:
        session_began(process)
        assert ssh.control(path, "stop").rc == 0
        assert not path.exists()
        stays(lambda: process.poll() is None, "the session", 0.3)
        end_session(process)


def test_the_end_of_a_master_removes_whatever_socket_is_at_its_path(
    ssh: Ssh, path: Path, work: Path, master: int
) -> None:
    path.rename(work / "old")
    ssh.open(path)
    assert ssh.control(work / "old", "exit").rc == 0
    exits(master)
    assert not path.exists()


def test_terminate_is_answered_by_the_end_of_the_connection(path: Path, master: int) -> None:
    mux = Mux(path)
    mux.send(TERMINATE, 1)
    rest = b""
    while part := mux.socket.recv(4096):
        rest += part
    assert rest in (b"", struct.pack("!III", 8, S_OK, 1))
    mux.close()
    exits(master)
    assert not path.exists()


def test_ansibles_reset_connection_stops_the_master(
    ssh: Ssh, path: Path, bastion: Sshd, work: Path, master: int
) -> None:
    plays = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [{"name": "use it", "raw": "true"}, {"meta": "reset_connection"}],
    }
    host = {
        "ansible_host": bastion.name,
        "ansible_ssh_args": f"-F {ssh.config} -o ControlMaster=auto -o ControlPersist=60",
        "ansible_control_path": str(path),
    }
    run = run_playbook(work, plays, inventory={"all": {"hosts": {"target": host}}}).ok()
    assert run.task("use it").event == "ok"
    assert bastion.logins() == 1
    exits(master)
    assert not path.exists()


# Masters that lie or hang


def test_the_alive_check_does_not_ask_the_network(
    ssh: Ssh, path: Path, bastion: Sshd, master: int
) -> None:
    bastion.freeze()
    assert ssh.control(path, "check").rc == 0
    with pytest.raises(subprocess.TimeoutExpired):
        ssh.run("-S", str(path), command="true", timeout=0.5)
    bastion.thaw()
    assert ssh.run("-S", str(path), command="true").rc == 0


def test_server_alive_ends_a_master_whose_network_died(ssh: Ssh, path: Path, bastion: Sshd) -> None:
    pid = ssh.open(path, "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    bastion.freeze()
    exits(pid)
    assert not path.exists()


def test_the_end_of_the_servers_process_ends_the_master_at_once(
    path: Path, bastion: Sshd, master: int
) -> None:
    bastion.stop()
    exits(master)
    assert not path.exists()


def test_a_wedged_master_hangs_the_check_or_makes_it_log_in(
    ssh: Ssh, path: Path, bastion: Sshd, master: int
) -> None:
    os.kill(master, signal.SIGSTOP)
    options = ("-o", "ConnectTimeout=1")
    if openssh_version() < (9, 4):
        with pytest.raises(subprocess.TimeoutExpired):
            ssh.control(path, "check", *options, timeout=2.5)
        assert bastion.logins() == 1
    else:
        # After muxclient() gave up, ssh.c goes on as if there were no -O.
        assert "hello exchange failed" in ssh.control(path, "check", *options).err
        assert bastion.logins() == 2


@pytest.mark.usefixtures("master")
@pytest.mark.parametrize(("mode", "logins"), [("no", 1), ("auto", 1), ("yes", 2)])
def test_with_an_explicit_master_configured_a_check_logs_in(
    ssh: Ssh, path: Path, bastion: Sshd, mode: str, logins: int
) -> None:
    said = ssh.control(path, "check", "-o", f"ControlMaster={mode}")
    assert said.rc == 0
    assert ("Master running" in said.err) == (mode != "yes")
    assert bastion.logins() == logins


def test_max_startups_drops_who_comes_while_others_log_in(
    make_sshd: MakeSshd, make_ssh: MakeSsh
) -> None:
    bastion = make_sshd(options={"MaxStartups": "1:100:1"})
    ssh = make_ssh(bastion)
    with connect((bastion.host, bastion.port)):
        wait_for(bastion.connections, "the connection that never logs in")
        assert ssh.run(command="true").rc == 255
        assert "maxstartups" in bastion.log().lower()
        assert bastion.logins() == 0


# Sessions and streams


def test_past_max_sessions_ssh_logs_in_again_in_silence(
    make_sshd: MakeSshd, make_ssh: MakeSsh, path: Path, echo: Echo
) -> None:
    bastion = make_sshd(options={"MaxSessions": 1})
    ssh = make_ssh(bastion)
    ssh.open(path)
    with holding(ssh, path) as session:
        session_began(session)
        assert bastion.logins() == 1
        # A forwarding, a stdio forwarding: neither counts as a session.
        port = free_port()
        assert ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:{echo.port}").rc == 0
        assert talk(("127.0.0.1", port)) == b"hello"
        with ssh.started("-S", str(path), "-W", f"127.0.0.1:{echo.port}") as stream:
            assert stream.stdin
            assert stream.stdout
            stream.stdin.write(b"hello\n")
            stream.stdin.flush()
            assert stream.stdout.readline() == b"hello\n"
        assert bastion.logins() == 1
        said = ssh.run("-S", str(path), command="echo done")
        assert (said.rc, said.out) == (0, "done\n")
        assert bastion.logins() == 2


def test_a_stdio_forwarding_ends_with_the_connection_that_asked_for_it(
    path: Path, master: int, echo: Echo
) -> None:
    mux = Mux(path)
    mux.send(NEW_STDIO_FWD, 1, "", "127.0.0.1", echo.port)
    ours, theirs = socket.socketpair()
    with ours:
        ours.settimeout(5)
        with theirs:
            mux.send_descriptors(theirs.fileno(), theirs.fileno())
            assert mux.receive()[:2] == (S_SESSION_OPENED, 1)
        ours.sendall(b"hello")
        assert ours.recv(5) == b"hello"
        mux.close()
        assert ours.recv(5) == b""


def test_a_session_uses_its_control_connection_up(path: Path, master: int) -> None:
    mux = Mux(path)
    mux.send(NEW_SESSION, 1, "", 0, 0, 0, 0, 0xFFFFFFFF, "xterm", "exit 3")
    with open(os.devnull, "r+b") as null:
        mux.send_descriptors(null.fileno(), null.fileno(), null.fileno())
        kind, request, number = mux.receive()
    assert (kind, request) == (S_SESSION_OPENED, 1)
    kind, session, status = mux.receive()
    assert (kind, session, status) == (S_EXIT_MESSAGE, *struct.unpack("!I", number), b"\0\0\0\3")
    assert mux.at_end()
    mux.close()


PASS_DESCRIPTOR = """
import array, os, socket, subprocess, sys
control, listener, host, port, *ssh = sys.argv[1:]
def command(verb):
    subprocess.run([*ssh, "-S", control, "-O", verb, "-L", f"{listener}:{host}:{port}", "bastion"],
                   check=True)
command("forward")
connection = socket.socket(socket.AF_UNIX)
connection.connect(listener)
rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))
socket.socket(fileno=os.dup(1)).sendmsg([b"\\0"], [rights])
command("cancel")
os.unlink(listener)
"""


def test_proxy_use_fdpass_takes_a_unix_socket_forwarding(
    bastion: Sshd, make_sshd: MakeSshd, make_ssh: MakeSsh, path: Path, work: Path
) -> None:
    hop = make_ssh(bastion)
    hop.open(path)
    target = make_sshd(name="target")
    helper = work / "pass.py"
    helper.write_text(PASS_DESCRIPTOR)
    proxy = f"{sys.executable} {helper} {path} {work}/u %h %p ssh -F {hop.config}"
    ssh = Ssh(
        target.ssh_config(options={"ProxyCommand": proxy, "ProxyUseFdpass": "yes"}), target.name
    )
    with ssh.started(command="echo up; exec cat") as session:
        session_began(session)
        # The helper, its listener and its file are gone, the stream lives.
        assert not psutil.Process(session.pid).children()
        assert not (work / "u").exists()
        end_session(session)
    assert target.logins() == 1
    assert bastion.logins() == 1


def test_a_changed_sshd_is_not_seen_through_the_master(
    make_sshd: MakeSshd, make_ssh: MakeSsh, path: Path
) -> None:
    bastion = make_sshd(options={"ForceCommand": "echo old"})
    ssh = make_ssh(bastion)
    ssh.open(path)
    bastion.options["ForceCommand"] = "echo new"
    bastion.restart(connections=False)
    assert ssh.run("-S", str(path), command="true").out == "old\n"
    assert ssh.run("-S", "none", command="true").out == "new\n"


@pytest.fixture
def agent(work: Path) -> Iterator[Path]:
    """The socket of an empty ssh-agent."""
    path = work / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as agent:
        try:
            wait_for(path.exists, "the agent's socket")
            yield path
        finally:
            agent.terminate()


@pytest.mark.parametrize(
    ("of_master", "of_session", "forwarded"),
    [("yes", "yes", True), ("no", "yes", False), ("yes", "no", False), ("no", "no", False)],
)
def test_an_agent_is_forwarded_where_master_and_session_ask(
    request: pytest.FixtureRequest,
    make_sshd: MakeSshd,
    make_ssh: MakeSsh,
    path: Path,
    agent: Path,
    of_master: str,
    of_session: str,
    forwarded: bool,
) -> None:
    user = None
    if openssh_version(sshd_path() or "sshd") >= (10, 1):
        # From then on sshd puts the socket into the account's home: not into a real one.
        user = request.getfixturevalue("account").name
    bastion = make_sshd(user=user)
    make_ssh(bastion)
    ssh = Ssh(bastion.ssh_config(options={"IdentityAgent": str(agent)}))
    ssh.open(path, "-o", f"ForwardAgent={of_master}")
    said = ssh.run(
        *("-S", str(path), "-o", f"ForwardAgent={of_session}"), command="echo $SSH_AUTH_SOCK"
    )
    assert bastion.logins() == 1
    assert bool(said.out.strip()) == forwarded


# Configuration and paths


def effective(ssh: Ssh, *options: str) -> dict[str, str]:
    """What `ssh -G` prints."""
    said = ssh.run("-G", *options)
    assert said.rc == 0, said
    return dict(line.split(" ", 1) for line in said.out.splitlines() if " " in line)


def test_the_first_value_wins(bastion: Sshd) -> None:
    text = "Host *\n    ConnectTimeout 7\nHost bastion\n    ConnectTimeout 8\n"
    ssh = Ssh(bastion.ssh_config(more=text))
    assert effective(ssh)["connecttimeout"] == "7"


@pytest.mark.parametrize(
    ("spelled", "printed"),
    [
        ("/d/%h", "/d/127.0.0.1"),
        ("/d/%n", "/d/bastion"),
        ("/d/%r-%p", "/d/{user}-{port}"),
        ("/d/100%%", "/d/100%"),
        ("/d/${BM_TOKEN}/s", "/d/value/s"),
        ("~/d", "{home}/d"),
        ("%d/d", "{home}/d"),
    ],
)
def test_ssh_g_prints_the_control_path_expanded(bastion: Sshd, spelled: str, printed: str) -> None:
    ssh = Ssh(bastion.ssh_config(), env={"BM_TOKEN": "value"})
    home = os.path.expanduser(f"~{bastion.user}")
    expected = printed.format(user=bastion.user, port=bastion.port, home=home)
    assert effective(ssh, "-o", f"ControlPath={spelled}")["controlpath"] == expected


@pytest.mark.parametrize("option", [(), ("-o", "ControlPath=none"), ("-S", "none")])
def test_without_a_control_path_ssh_g_prints_no_line(
    bastion: Sshd, option: tuple[str, ...]
) -> None:
    assert "controlpath" not in effective(Ssh(bastion.ssh_config()), *option)


def test_the_hash_of_a_control_path_has_the_jump_since_9_6(bastion: Sshd) -> None:
    ssh = Ssh(bastion.ssh_config())
    option = ("-o", "ControlPath=/d/%C")
    direct = effective(ssh, *option)["controlpath"]
    assert re.fullmatch("/d/[0-9a-f]{40}", direct)
    jumping = effective(ssh, *option, "-J", "elsewhere")["controlpath"]
    assert (jumping != direct) == (openssh_version() >= (9, 6))


def test_the_longest_path_of_a_master(ssh: Ssh, work: Path) -> None:
    longest = 90 if sys.platform == "linux" else 86
    path = work / ("s" * (longest - len(str(work)) - 1))
    assert len(str(path)) == longest
    ssh.open(path)
    longer = path.with_name(path.name + "s")
    said = ssh.run("-M", "-S", str(longer), "-fN", "-o", "ControlPersist=yes")
    assert said.rc != 0
    assert "too long" in said.err
