# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward: how it fails, each reason of the contract, and what is left as it was."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.client import Ssh, listeners
from tests.support.services import Echo, free_port, listens, talk
from tests.support.sshd import Sshd, make_key
from tests.support.tasks import CHANGES, STAYS, Tasks
from tests.support.waiting import wait_for

HOST = "127.0.0.1"

Login = dict[str, Any]
MakeMaster = Callable[..., int]


@pytest.fixture
def make_master(make_sshd: Callable[..., Sshd], closing: None, path: Path) -> MakeMaster:
    """`make_master(**sshd_config)` opens a master to such a server."""

    def make(**options: str) -> int:
        server = make_sshd(options=options, name="strict")
        path.parent.mkdir(mode=0o700)
        return Ssh(server.ssh_config(), "strict").open(path)

    return make


#: Parameters that are refused, and what the failure names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"local": ["80"]}, "'80'"),
    ({"local": ["80:web"]}, "'80:web'"),
    ({"local": ["80:web:0"]}, "port of the far end"),
    ({"local": ["http:web:80"]}, "'http' is not a port"),
    ({"local": ["70000:web:80"]}, "'70000' is not a port"),
    ({"local": ["::1:80:web:80"]}, "brackets"),
    ({"local": ["a:/s"]}, "'a' is not a port"),
    ({"local": ["relative/s:/s"]}, "not absolute"),
    ({"local": ["/" + "p" * 107 + ":/s"]}, "107 bytes"),
    ({"local": ["80:-oProxyCommand=x:80"]}, "not a host name"),
    ({"local": ["80:a\nb:80"]}, "control character"),
    ({"local": ["80:${HOME}:80"]}, "environment variables"),
    ({"dynamic": ["0"]}, "needs a port"),
    ({"dynamic": ["80:web:80"]}, "bind_address"),
    ({"remote": [""]}, "empty"),
    ({"state": "there"}, "state"),
    ({"verify": "all"}, "verify"),
    ({"on_conflict": "steal"}, "on_conflict"),
    ({"timeout": 0}, "timeout"),
    ({"persist": "yes"}, "persist"),
]


class TestInvalid:
    def test_parameters(self, tasks: Tasks) -> None:
        """Told before anything is looked at: there is no master here."""
        result = tasks.play(
            *(
                {**tasks.task(str(number), **params), "ignore_errors": True}
                for number, (params, _named) in enumerate(REFUSED)
            )
        )
        for number, (_params, named) in enumerate(REFUSED):
            failed = result.task(str(number))
            assert failed.failed
            assert failed["reason"] == "invalid"
            assert named in failed.msg
        assert "Traceback" not in result.stdout + result.stderr

    def test_one_bad_spelling_changes_nothing(self, tasks: Tasks, master: int, echo: Echo) -> None:
        failed = tasks.fails(local=[f"{HOST}:{free_port()}:{HOST}:{echo.port}", "80"])
        assert failed["reason"] == "invalid"
        assert not listeners(master)

    def test_what_contradicts_itself(self, tasks: Tasks, master: int) -> None:
        one, other = f"{HOST}:8080:web:80", f"{HOST}:8080:other:80"
        for check in (True, False):
            failed = tasks.fails(check=check, local=[one, other])
            assert failed["reason"] == "forward_conflict"
            assert one in failed.msg
            assert other in failed.msg
        assert not listeners(master)

    def test_a_socket_that_is_no_masters(self, tasks: Tasks, path: Path) -> None:
        path.parent.mkdir(mode=0o700)
        with Echo(path):
            failed = tasks.fails(dynamic=["1080"], timeout=2)
            assert failed["reason"] == "invalid"
            assert str(path) in failed.msg


class TestNotRunning:
    @pytest.mark.parametrize("left", ["nothing", "a stale socket"])
    def test_present(self, tasks: Tasks, path: Path, left: str) -> None:
        path.parent.mkdir(mode=0o700)
        if left == "a stale socket":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))
        for check in (True, False):
            failed = tasks.fails(check=check, local=["1:a:1"])
            assert failed["reason"] == "not_running"
            assert str(path) in failed.msg
            assert ("stale" in failed.msg) == (left != "nothing")
        rows = tasks.rows(local=["1:a:1"], state="absent")
        assert rows.changed == STAYS
        assert rows.do["forwards"][0]["state"] == "absent"
        path.unlink(missing_ok=True)

    def test_open_without_a_host(self, tasks: Tasks) -> None:
        assert tasks.fails(dynamic=["1080"], open=True)["reason"] == "not_running"


def test_wedged(tasks: Tasks, master: int, echo: Echo, login: Login) -> None:
    local = [f"{HOST}:{free_port()}:{HOST}:{echo.port}"]
    tasks.one(local=local)
    process = psutil.Process(master)
    process.suspend()
    try:
        for params in ({}, {"state": "absent"}, {"open": True, **login}):
            failed = tasks.fails(local=local, timeout=1, **params)
            assert failed["reason"] == "wedged"
    finally:
        process.resume()
    assert tasks.rows(local=local).changed == STAYS


class TestLogin:
    """`open: true` fails as ssh_master does."""

    @pytest.fixture
    def login(self, login: Login, work: Path) -> Login:
        return {**login, "open": True, "local": [f"{HOST}:{free_port()}:{HOST}:1"]}

    @pytest.mark.parametrize(
        ("reason", "options"),
        [
            ("unreachable", {"Port": "1"}),
            ("auth_failed", {"PubkeyAuthentication": "no"}),
            ("host_key_unknown", {"UserKnownHostsFile": "/dev/null"}),
            ("invalid", {"NoSuchKeyword": "yes"}),
            ("invalid", {"LocalForward": "1 a:1"}),
        ],
    )
    def test_by_its_options(
        self, tasks: Tasks, login: Login, path: Path, reason: str, options: dict[str, str]
    ) -> None:
        failed = tasks.fails(ssh_options=options, **login)
        assert (failed["reason"], failed.changed) == (reason, False)
        assert not path.exists()

    def test_host_key_changed(self, tasks: Tasks, login: Login, bastion: Sshd, work: Path) -> None:
        make_key(work / "other")
        known = bastion.known_hosts.read_text().split()[0]
        key = (work / "other.pub").read_text()
        (work / "known_hosts").write_text(f"{known} {key}")
        failed = tasks.fails(known_hosts_file=str(work / "known_hosts"), **login)
        assert failed["reason"] == "host_key_changed"

    def test_timeout(self, tasks: Tasks, login: Login) -> None:
        with socket.create_server((HOST, 0)) as silent:
            silent.listen(1)
            options = {"Port": str(silent.getsockname()[1])}
            failed = tasks.fails(ssh_options=options, connect_timeout=1, timeout=1, **login)
        assert failed["reason"] == "timeout"

    def test_ssh_missing(self, tasks: Tasks, login: Login, work: Path) -> None:
        failed = tasks.fails(ssh_executable=str(work / "ssh"), **login)
        assert failed["reason"] == "ssh_missing"

    def test_control_path_too_long(self, tasks: Tasks, login: Login, work: Path) -> None:
        failed = tasks.fails(**{**login, "control_path": str(work / ("p" * 90))})
        assert failed["reason"] == "control_path_too_long"

    def test_control_dir_insecure(self, tasks: Tasks, login: Login, path: Path) -> None:
        path.parent.mkdir()
        path.parent.chmod(0o777)
        assert tasks.fails(**login)["reason"] == "control_dir_insecure"
        del tasks.params["control_path"]
        alone = tasks.fails(control_path=str(path), dynamic=["1080"])
        assert alone["reason"] == "control_dir_insecure"


class TestPartly:
    def test_nine_of_ten(self, tasks: Tasks, master: int, echo: Echo) -> None:
        """The one that fails costs none of the others, and the second run finishes the job."""
        ports = [free_port() for _number in range(9)]
        with Echo() as blocker:
            taken = f"{HOST}:{blocker.port}:{HOST}:{echo.port}"
            local = [f"{HOST}:{port}:{HOST}:{echo.port}" for port in ports]
            local.insert(4, taken)
            tasks.one(local=local[:1])
            for changed in (True, False):
                failed = tasks.fails(local=local)
                assert (failed["reason"], failed.changed) == ("listen_in_use", changed)
                assert failed.msg.startswith(f"-L {taken}: another process listens on")
                told = {one["listen_port"]: one for one in failed["forwards"]}
                assert sorted(told) == sorted([*ports, blocker.port])
                bad = told.pop(blocker.port)
                assert (bad["state"], bad["reason"]) == ("failed", "listen_in_use")
                assert bad["msg"] in failed.msg
                assert {one["state"] for one in told.values()} == {"present"}
                assert {one["evidence"] for one in told.values()} == {"listener"}
                assert all(f"-L {HOST}:{port}:" in failed.msg for port in ports)
                assert listeners(master) == {(HOST, port) for port in ports}
        rows = tasks.rows(local=local)
        assert rows.changed == CHANGES
        for port in [*ports, blocker.port]:
            assert talk((HOST, port)) == b"hello"

    def test_of_several_kinds_each_is_told(
        self, tasks: Tasks, master: int, echo: Echo, work: Path
    ) -> None:
        (work / "file").write_text("mine")
        bad: dict[str, Any] = {
            "local": [f"{HOST}:{echo.port}:a:1", f"{work}/file:a:1", "no.such.host.invalid:1:a:1"],
            "remote": [f"{HOST}:{echo.port}:{HOST}:1"],
            "dynamic": ["192.0.2.7:1080"],
        }
        good = f"{HOST}:{free_port()}:{HOST}:{echo.port}"
        failed = tasks.fails(**{**bad, "local": [*bad["local"], good]})
        reasons = [one.get("reason") for one in failed["forwards"]]
        assert reasons[0] is None
        assert sorted(reasons[1:]) == 3 * ["forward_refused"] + 2 * ["listen_in_use"]
        for spelling in (one for many in bad.values() for one in many):
            assert f" {spelling}: " in f" {failed.msg}"
        assert "Cannot assign requested address" in failed.msg
        assert "no.such.host.invalid has no address here" in failed.msg
        assert (work / "file").read_text() == "mine"
        assert tasks.rows(local=[good]).changed == STAYS

    def test_what_cannot_be_replaced_stays(self, tasks: Tasks, master: int, echo: Echo) -> None:
        """The new one would listen where somebody else does as well: the old one goes on."""
        port = free_port()
        old = f"{HOST}:{port}:{HOST}:{echo.port}"
        tasks.one(local=[old])
        with Echo(host="127.0.0.2", port=port):
            params: dict[str, Any] = {"local": [f"*:{port}:{HOST}:{echo.port}"]}
            failed = tasks.fails(on_conflict="replace", **params)
            assert (failed["reason"], failed.changed) == ("listen_in_use", False)
            assert talk((HOST, port)) == b"hello"
            assert tasks.rows(local=[old]).changed == STAYS
        assert tasks.rows(on_conflict="replace", **params).changed == CHANGES

    def test_what_the_server_does_not_answer(
        self, tasks: Tasks, master: int, echo: Echo, bastion: Sshd
    ) -> None:
        """What was opened before it fell silent is told and known, the rest comes later."""
        one, two = (f"{HOST}:{free_port()}:{HOST}:{echo.port}" for _number in range(2))
        params: dict[str, Any] = {"local": [one], "remote": [two], "dynamic": [str(free_port())]}
        frozen = bastion.processes()
        for process in frozen:
            process.suspend()
        try:
            failed = tasks.fails(timeout=1, **params)
        finally:
            for process in frozen:
                process.resume()
        assert (failed["reason"], failed.changed) == ("timeout", True)
        told = [(forward["type"], forward["state"]) for forward in failed["forwards"]]
        assert told == [("local", "present"), ("remote", "failed"), ("dynamic", "failed")]
        assert f"in place: -L {one}" in failed.msg
        assert tasks.rows(local=[one]).changed == STAYS
        assert tasks.rows(**params).changed == CHANGES
        assert talk((HOST, int(two.split(":")[1]))) == b"hello"


class TestServerSays:
    def test_no_forwarding(self, tasks: Tasks, make_master: MakeMaster, echo: Echo) -> None:
        """It is asked for remote listeners at once, and for a far end when somebody connects."""
        make_master(AllowTcpForwarding="no")
        local = [f"{HOST}:{free_port()}:{HOST}:{echo.port}"]
        failed = tasks.fails(remote=[f"{HOST}:{free_port()}:{HOST}:{echo.port}"])
        assert failed["reason"] == "forward_refused"
        failed = tasks.fails(local=local, verify="connect")
        assert failed["reason"] == "destination_unreachable"
        assert tasks.rows(local=local).changed == CHANGES
        assert not echo.seen

    def test_permit_open(
        self, make_sshd: Callable[..., Sshd], closing: None, tasks: Tasks, echo: Echo
    ) -> None:
        server = make_sshd(options={"PermitOpen": f"{HOST}:{echo.port}"}, name="strict")
        tasks.params.update(host="strict", ssh_config=str(server.ssh_config()), open=True)
        with Echo() as other:
            good, bad = (f"{HOST}:{free_port()}:{HOST}:{far.port}" for far in (echo, other))
            tasks.one(local=[good], verify="connect")
            failed = tasks.fails(local=[good, bad], verify="connect")
            assert failed["reason"] == "destination_unreachable"
            assert f"{HOST}:{other.port} cannot be reached from the bastion: administratively" in (
                failed.msg
            )
            assert not other.seen

    def test_permit_listen(self, tasks: Tasks, make_master: MakeMaster, echo: Echo) -> None:
        allowed, other = free_port(), free_port()
        make_master(PermitListen=f"{HOST}:{allowed}")
        good, bad = (f"{HOST}:{port}:{HOST}:{echo.port}" for port in (allowed, other))
        failed = tasks.fails(remote=[bad, good])
        assert (failed["reason"], failed.changed) == ("forward_refused", True)
        assert f"-R {bad}" in failed.msg
        assert "PermitListen" in failed.msg
        assert f"in place: -R {good}" in failed.msg
        assert not listens((HOST, other))
        assert talk((HOST, allowed)) == b"hello"
        assert tasks.rows(remote=[good]).changed == STAYS

    @pytest.mark.parametrize("where", ["{port}", "0", "{work}/r"])
    def test_no_remote_forwarding(
        self, tasks: Tasks, make_master: MakeMaster, echo: Echo, work: Path, where: str
    ) -> None:
        make_master(AllowTcpForwarding="local", AllowStreamLocalForwarding="local")
        at = where.format(port=free_port(), work=work)
        spelling = f"{at}:{HOST}:{echo.port}"
        failed = tasks.fails(remote=[spelling])
        assert (failed["reason"], failed.changed) == ("forward_refused", False)
        assert tasks.rows(remote=[spelling], state="absent").changed == STAYS

    def test_a_port_in_use_there(self, tasks: Tasks, master: int, echo: Echo) -> None:
        failed = tasks.fails(remote=[f"{HOST}:{echo.port}:{HOST}:1"])
        assert failed["reason"] == "forward_refused"
        assert str(echo.port) in failed.msg

    def test_a_socket_that_was_left_there(
        self, tasks: Tasks, master: int, echo: Echo, work: Path
    ) -> None:
        """The server removes it only where StreamLocalBindUnlink tells it to."""
        params: dict[str, Any] = {"remote": [f"{work}/r:{HOST}:{echo.port}"]}
        tasks.one(**params)
        tasks.one(state="absent", **params)
        wait_for(lambda: not listens(work / "r"), "the end of the listener")
        failed = tasks.fails(**params)
        assert failed["reason"] == "forward_refused"
        assert "StreamLocalBindUnlink" in failed.msg
        (work / "r").unlink()
        assert tasks.rows(**params).changed == CHANGES
        assert talk(work / "r") == b"hello"


def test_the_lock_is_held_by_another(tasks: Tasks, master: int, path: Path) -> None:
    """A run that does not end holds up no other for ever."""
    with open(f"{path}.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        failed = tasks.fails(dynamic=[str(free_port())], timeout=1)
    assert failed["reason"] == "timeout"
    assert not listeners(master)
    os.unlink(f"{path}.lock")
