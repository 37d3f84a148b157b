# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The embedded bastion of the demo, of both kinds, under the installed ssh."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.client import Ssh, alive
from tests.support.playbook import CHECKOUT
from tests.support.services import Echo, connect, free_port, has_ipv6, listens, socks5, talk
from tests.support.sshd import sshd_path
from tests.support.waiting import wait_for
from tests.support.workdir import short_dir

PROGRAM = CHECKOUT / "playbooks/files/embedded_bastion.py"


def call(directory: Path, *options: str) -> dict[str, Any]:
    """Run the program to its end. Returns what it printed."""
    argv = [sys.executable, str(PROGRAM), "--directory", str(directory), *options]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False)
    assert said.returncode == 0, said
    answer: dict[str, Any] = json.loads(said.stdout)
    return answer


class Bastion:
    """A running embedded bastion and an ssh for it."""

    def __init__(self, directory: Path, state: dict[str, Any]) -> None:
        self.directory = directory
        self.state = state
        self.ssh = Ssh(directory / "ssh_config", state["alias"])
        self.service = f"{state['service_host']}:{state['service_port']}"


@pytest.fixture(scope="module", params=["paramiko", "sshd"])
def bastion(request: pytest.FixtureRequest) -> Iterator[Bastion]:
    if request.param == "sshd" and sshd_path() is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    with short_dir() as path:
        directory = path / "b"
        state = call(directory, "--background", "--server", request.param, "--lifetime", "120")
        assert state["server"] == request.param
        yield Bastion(directory, state)
        call(directory, "--stop")
        assert not directory.exists()


@pytest.fixture
def work() -> Iterator[Path]:
    with short_dir() as path:
        yield path


@pytest.fixture
def master(bastion: Bastion, work: Path) -> Iterator[Path]:
    """The socket of an open master."""
    path = work / "m"
    pid = bastion.ssh.open(path)
    yield path
    bastion.ssh.control(path, "exit")
    wait_for(lambda: not alive(pid), "the master's end")


def fetch(connection: socket.socket, path: str = "/") -> dict[str, Any]:
    """GET over a connection."""
    client = http.client.HTTPConnection("service", timeout=30)
    client.sock = connection
    try:
        client.request("GET", path)
        answer: dict[str, Any] = json.loads(client.getresponse().read())
    finally:
        client.close()
    return answer


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a service on this side."""
    with Echo() as service:
        yield service.port


def test_a_command_has_its_output_its_errors_and_its_status(bastion: Bastion) -> None:
    said = bastion.ssh.run(command="echo out; echo err >&2; exit 3")
    assert (said.rc, said.out, said.err) == (3, "out\n", "err\n")


def test_a_command_takes_and_gives_more_than_a_window(bastion: Bastion) -> None:
    data = os.urandom(5_000_000)
    argv = bastion.ssh.argv(command="cat")
    said = subprocess.run(argv, input=data, capture_output=True, timeout=40, check=True)
    assert said.stdout == data


def test_another_key_is_refused(bastion: Bastion, work: Path) -> None:
    key = work / "key"
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", str(key)], check=True)
    config = work / "config"
    text = (bastion.directory / "ssh_config").read_text()
    config.write_text(text.replace(bastion.state["identity_file"], str(key)))
    said = Ssh(config, bastion.state["alias"]).run(command="true")
    assert said.rc == 255
    assert "Permission denied (publickey)" in said.err


def test_the_services_drop_everybody_but_the_bastion(bastion: Bastion) -> None:
    http_service = ("127.0.0.1", bastion.state["service_port"])
    for address in (http_service, bastion.state["service_socket"]):
        with pytest.raises((OSError, http.client.HTTPException)):
            fetch(connect(address))


def test_a_command_on_the_bastion_reaches_the_service(bastion: Bastion) -> None:
    script = (
        "import socket; s = socket.create_connection(('127.0.0.1', {service_port}));"
        "s.sendall(b'GET /c HTTP/1.0\\r\\n\\r\\n'); print(s.makefile().read())"
    ).format(**bastion.state)
    said = bastion.ssh.run(command=f'{sys.executable} -c "{script}"')
    assert '"path": "/c"' in said.out


def test_a_local_forwarding_reaches_the_service(bastion: Bastion, master: Path) -> None:
    port = free_port()
    said = bastion.ssh.control(master, "forward", "-L", f"{port}:{bastion.service}")
    assert said.rc == 0, said
    answer = fetch(connect(("127.0.0.1", port), 30), "/hello")
    assert answer.pop("logins") > 0
    assert answer == {"service": "embedded-bastion", "listener": "tcp", "path": "/hello"}


def test_the_service_counts_the_logins(bastion: Bastion, master: Path) -> None:
    port = free_port()
    assert bastion.ssh.control(master, "forward", "-L", f"{port}:{bastion.service}").rc == 0
    before = fetch(connect(("127.0.0.1", port), 30))["logins"]
    assert fetch(connect(("127.0.0.1", port), 30))["logins"] == before
    assert bastion.ssh.run(command="true").rc == 0
    assert fetch(connect(("127.0.0.1", port), 30))["logins"] == before + 1


@pytest.mark.parametrize("listen", ["port", "socket"])
def test_a_local_forwarding_reaches_the_unix_socket(
    bastion: Bastion, master: Path, work: Path, listen: str
) -> None:
    port = free_port()
    address = ("127.0.0.1", port) if listen == "port" else work / "l"
    mine = port if listen == "port" else address
    said = bastion.ssh.control(master, "forward", "-L", f"{mine}:{bastion.state['service_socket']}")
    assert said.rc == 0, said
    assert fetch(connect(address))["listener"] == "unix"


def test_many_connections_at_once(bastion: Bastion, master: Path) -> None:
    port = free_port()
    assert bastion.ssh.control(master, "forward", "-L", f"{port}:{bastion.service}").rc == 0
    paths = [f"/{number}" for number in range(40)]
    with ThreadPoolExecutor(40) as pool:
        answers = list(
            pool.map(lambda path: fetch(connect(("127.0.0.1", port), 30), path)["path"], paths)
        )
    assert answers == paths


def test_a_dynamic_forwarding_reaches_the_service(bastion: Bastion, master: Path) -> None:
    port = free_port()
    assert bastion.ssh.control(master, "forward", "-D", str(port)).rc == 0

    connection = socks5(("127.0.0.1", port), "127.0.0.1", bastion.state["service_port"])
    assert fetch(connection, "/socks")["path"] == "/socks"


def test_a_remote_forwarding_comes_back_and_can_be_cancelled(
    bastion: Bastion, master: Path, echo: int
) -> None:
    port = free_port()
    spec = f"{port}:127.0.0.1:{echo}"
    assert bastion.ssh.control(master, "forward", "-R", spec).rc == 0
    assert talk(("127.0.0.1", port), b"word") == b"word"
    assert bastion.ssh.control(master, "cancel", "-R", spec).rc == 0
    wait_for(lambda: not listens(("127.0.0.1", port)), "the end of the remote listener")
    assert bastion.ssh.control(master, "forward", "-R", spec).rc == 0
    assert talk(("127.0.0.1", port), b"again") == b"again"


def test_a_remote_port_is_allocated(bastion: Bastion, master: Path, echo: int) -> None:
    said = bastion.ssh.control(master, "forward", "-R", f"0:127.0.0.1:{echo}")
    assert said.rc == 0, said
    port = int(said.out)
    assert talk(("127.0.0.1", port), b"word") == b"word"
    assert bastion.ssh.control(master, "cancel", "-R", f"0:127.0.0.1:{echo}").rc == 0


@pytest.mark.skipif(not has_ipv6(), reason="a listener on ::1 is part of it")
def test_a_taken_remote_port_is_refused(bastion: Bastion, master: Path, echo: int) -> None:
    # sshd is content with one of the two loopback addresses.
    with Echo(host="::1", port=echo):
        said = bastion.ssh.control(master, "forward", "-R", f"{echo}:127.0.0.1:{echo}")
    assert said.rc != 0
    assert "forwarding" in said.err


def test_a_remote_unix_socket_comes_back_and_can_be_cancelled(
    bastion: Bastion, master: Path, work: Path, echo: int
) -> None:
    path = work / "r"
    for word in (b"word", b"again"):
        assert bastion.ssh.control(master, "forward", "-R", f"{path}:127.0.0.1:{echo}").rc == 0
        assert talk(path, word) == word
        assert bastion.ssh.control(master, "cancel", "-R", f"{path}:127.0.0.1:{echo}").rc == 0


def test_a_remote_dynamic_forwarding(bastion: Bastion, master: Path, echo: int) -> None:
    said = bastion.ssh.control(master, "forward", "-R", "0")
    assert said.rc == 0, said
    with socks5(("127.0.0.1", int(said.out)), "127.0.0.1", echo) as connection:
        connection.sendall(b"word")
        assert connection.recv(10) == b"word"


def test_a_refused_destination_says_why(bastion: Bastion) -> None:
    said = bastion.ssh.run("-W", f"127.0.0.1:{free_port()}")
    assert "open failed: connect failed: Connection refused" in said.err


def test_a_refused_unix_socket_says_so(bastion: Bastion, work: Path) -> None:
    port = free_port()
    with bastion.ssh.started("-N", "-L", f"{port}:{work}/nothing") as process:
        wait_for(lambda: listens(("127.0.0.1", port)), "the forwarding")
        assert process.stderr
        assert b"open failed: connect failed" in process.stderr.readline()


def test_masters_come_and_go(bastion: Bastion, work: Path) -> None:
    path = work / "m"
    # Keep-alives at this rate show that the server answers them, else the master would give up.
    pid = bastion.ssh.open(path, "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1")
    assert bastion.ssh.master_pid(path) == pid
    with bastion.ssh.started("-S", str(path), command="sleep 2.5; echo still here") as session:
        assert session.communicate(timeout=10)[0] == b"still here\n"
    assert bastion.ssh.control(path, "exit").rc == 0
    wait_for(lambda: not path.exists() and not alive(pid), "the master's end")


def test_a_lost_client_takes_its_remote_listeners_along(
    bastion: Bastion, work: Path, echo: int
) -> None:
    path = work / "m"
    pid = bastion.ssh.open(path)
    port = int(bastion.ssh.control(path, "forward", "-R", f"0:127.0.0.1:{echo}").out)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not listens(("127.0.0.1", port)), "the end of the remote listener")


# Its own life


def test_the_second_start_finds_the_first(bastion: Bastion) -> None:
    again = call(bastion.directory, "--background")
    assert again == {**bastion.state, "changed": False}
    assert json.loads((bastion.directory / "bastion.json").read_text())["pid"] == again["pid"]


def test_simultaneous_starts_end_with_one(work: Path) -> None:
    directory = work / "b"
    options = ("--background", "--server", "paramiko", "--lifetime", "60")
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda _number: call(directory, *options), range(4)))
    assert len({state["pid"] for state in states}) == 1
    assert sorted(state["changed"] for state in states) == [False, False, False, True]
    assert call(directory, "--stop") == {"changed": True}


def test_stop_ends_all_and_leaves_what_was_there(work: Path) -> None:
    (work / "mine").write_text("kept")
    state = call(work, "--background", "--lifetime", "60")
    ssh = Ssh(work / "ssh_config", state["alias"])
    with ssh.started(command="echo on; sleep 60") as session:
        assert session.stdout
        assert session.stdout.readline() == b"on\n"
        family = [psutil.Process(state["pid"])]
        family += family[0].children(recursive=True)
        assert call(work, "--stop") == {"changed": True}
        assert session.wait(10) == 255
    wait_for(lambda: not any(alive(process.pid) for process in family), "everyone's end")
    assert [path.name for path in work.iterdir()] == ["mine"]
    assert call(work, "--stop") == {"changed": False}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(work: Path, number: signal.Signals) -> None:
    directory = work / "b"
    argv = [sys.executable, str(PROGRAM), "--directory", str(directory)]
    with subprocess.Popen([*argv, "--lifetime", "60"]) as process:
        wait_for((directory / "bastion.json").exists, "the bastion")
        process.send_signal(number)
        assert process.wait(20) == 0
    assert not directory.exists()


def test_its_lifetime_ends(work: Path) -> None:
    directory = work / "b"
    options = ("--background", "--server", "paramiko", "--lifetime", "2")
    pid = call(directory, *options)["pid"]
    wait_for(lambda: not alive(pid), "the end of its lifetime")
    assert not directory.exists()


def test_it_ends_with_the_process_that_started_it(work: Path) -> None:
    directory = work / "b"
    starter = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, {str(PROGRAM)!r}, '--directory', {str(directory)!r}]);"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", starter]) as process:
        wait_for((directory / "bastion.json").exists, "the bastion")
        pid = json.loads((directory / "bastion.json").read_text())["pid"]
        process.kill()
    wait_for(lambda: not alive(pid), "the end of the bastion")
    assert not directory.exists()


def test_a_directory_too_deep_for_a_socket_is_refused(work: Path) -> None:
    argv = [sys.executable, str(PROGRAM), "--directory", str(work / ("x" * 100)), "--background"]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert said.returncode == 1
    assert "too long" in said.stderr
    assert "Traceback" not in said.stderr


def test_auto_takes_paramiko_where_sshd_is_unusable(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("embedded_bastion", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.shutil, "which", lambda *_a, **_k: "/bin/false")
    keys = module.Keys(work)
    service = module.TcpService(("127.0.0.1", 0), module.Answer)
    threading.Thread(target=service.serve_forever, args=(0.1,), daemon=True).start()
    try:
        with pytest.raises(module.Unusable, match="no usable sshd"):
            module.start_server("sshd", keys, service.server_address)
        kind, server = module.start_server("auto", keys, service.server_address)
        server.close()
    finally:
        service.shutdown()
        service.server_close()
    assert kind == "paramiko"
