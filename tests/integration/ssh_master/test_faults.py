# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master when things go wrong: logins that fail, masters that die, hang or are not ours."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive, clients
from tests.support.services import Echo, free_port, listens, talk
from tests.support.sshd import Sshd, make_key, public_key
from tests.support.tasks import CHANGES, STAYS, Tasks
from tests.support.waiting import wait_for

MakeSshd = Callable[..., Sshd]


@pytest.fixture
def tasks(tasks: Tasks, path: Path) -> Tasks:
    tasks.params["control_path"] = str(path)
    return tasks


#: Why none is opened: parameters, reason, what the message has to say.
LOGINS: dict[str, tuple[dict[str, Any], str, str]] = {
    "refused": ({"port": "$closed"}, "unreachable", "port $closed: Connection refused"),
    "no name": (
        {"host": "none.invalid", "ssh_config": "none"},
        "unreachable",
        "Could not resolve hostname none.invalid",
    ),
    "silent": ({"port": "$silent", "connect_timeout": 1}, "timeout", "timed out"),
    "login": (
        {"ssh_options": {"PubkeyAuthentication": False}},
        "auth_failed",
        "$user@127.0.0.1: Permission denied (publickey)",
    ),
    "unknown": (
        {"known_hosts_file": "/dev/null"},
        "host_key_unknown",
        "No ED25519 host key is known for [127.0.0.1]:$port and you have requested strict",
    ),
    "changed": (
        {"known_hosts_file": "$changed"},
        "host_key_changed",
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
    ),
    "changed, new ones accepted": (
        {"known_hosts_file": "$changed", "host_key_checking": "accept-new"},
        "host_key_changed",
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
    ),
    "jump": ({"jump": ["127.0.0.1:$closed"]}, "unreachable", "Connection refused"),
    "no ssh": ({"ssh_executable": "/nowhere/ssh"}, "ssh_missing", "'/nowhere/ssh'"),
    "no ssh in PATH": ({"ssh_executable": "no-such-ssh"}, "ssh_missing", "'no-such-ssh'"),
    "no program": ({"ssh_executable": "/etc/passwd"}, "ssh_missing", "'/etc/passwd'"),
    "no config": ({"ssh_config": "/nowhere"}, "invalid", "/nowhere"),
    "keyword": (
        {"ssh_options": {"Nonsense": 1}},
        "invalid",
        "Bad configuration option: nonsense",
    ),
    "value": ({"ssh_options": {"Ciphers": "rot13"}}, "invalid", "Bad SSH2 cipher spec 'rot13'"),
    "keyword of ours": ({"ssh_options": {"ControlPath": "x"}}, "invalid", "control_path"),
    "host as an option": ({"host": "-oProxyCommand=id"}, "invalid", "begins with a dash"),
    "host in two lines": ({"host": "a\nb"}, "invalid", "control character"),
    "user as an option": ({"user": "-x"}, "invalid", "begins with a dash"),
    "hops in one": ({"jump": ["a,b"]}, "invalid", "give a list"),
    "no port": ({"port": 65536}, "invalid", "65536 is not between 1 and 65535"),
    "no port at all": ({"port": "ssh"}, "invalid", "port"),
    "persist": ({"persist": "soon"}, "invalid", "persist: 'soon'"),
    "count": ({"alive_count_max": 0}, "invalid", "alive_count_max: must be at least 1"),
    "patience": ({"timeout": 0}, "invalid", "timeout: must be at least 1"),
    "forwarding": ({"local": ["nonsense"]}, "invalid", "nonsense"),
    "empty path": ({"control_path": ""}, "invalid", "control_path: is empty"),
    "no path": ({"control_path": "none"}, "invalid", "control_path: none is no socket"),
    "whose path": ({"control_path": "~nobody-here/s"}, "invalid", "nobody-here"),
    "long path": (
        {"control_path": "/tmp/" + 86 * "x"},
        "control_path_too_long",
        "ssh can bind",
    ),
    "path alone": ({"control_path": "$work/none", "host": None}, "not_running", "host"),
}


class TestLogin:
    def test_fails_with_what_ssh_said(
        self, tasks: Tasks, work: Path, bastion: Sshd, path: Path
    ) -> None:
        changed = work / "changed"
        names = bastion.known_hosts.read_text().split()[0]
        changed.write_text(f"{names} {public_key(make_key(work / 'other'))}\n")
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            known = {
                "closed": free_port(),
                "silent": silent.getsockname()[1],
                "changed": changed,
                "user": bastion.user,
                "port": bastion.port,
                "work": work,
            }

            def real(value: Any) -> Any:
                if isinstance(value, dict):
                    return {key: real(one) for key, one in value.items()}
                if isinstance(value, list):
                    return [real(one) for one in value]
                if isinstance(value, str):
                    for name, one in known.items():
                        value = value.replace(f"${name}", str(one))
                return value

            several = [
                tasks.task(name, **real(params)) | {"ignore_errors": True}
                for name, (params, _reason, _text) in LOGINS.items()
            ]
            run = tasks.play(*several, verbosity=3).ok()
        for name, (_params, reason, text) in LOGINS.items():
            failed = run.task(name)
            assert failed.failed, name
            assert failed["reason"] == reason, (name, failed.msg)
            assert real(text) in failed.msg, (name, failed.msg)
            assert failed["changed"] is False
        assert "Traceback" not in run.stdout + run.stderr
        assert bastion.logins() == 0
        assert not path.exists()

    def test_a_path_that_is_too_long_tells_what_would_fit(self, tasks: Tasks, work: Path) -> None:
        directory = work / ("x" * 60)
        path = directory / ("n" * 30)
        failed = tasks.fails(control_path=str(path))
        assert failed["reason"] == "control_path_too_long"
        length, limit = len(str(path)), failed["limit"]
        assert failed["length"] == length
        assert f"has {length} bytes, ssh can bind {limit} here" in failed.msg
        assert f"fits in a directory of up to {limit - 31} bytes" in failed.msg
        assert not directory.exists()
        fits = str(path)[:limit]
        assert tasks.one(control_path=fits)["master"]["alive"] is True

    @pytest.mark.parametrize("checking", ["accept-new", "off"])
    def test_an_unknown_host_key_may_be_accepted(
        self, tasks: Tasks, bastion: Sshd, work: Path, checking: str
    ) -> None:
        known = work / "known"
        tasks.params |= {"host_key_checking": checking, "known_hosts_file": str(known)}
        assert tasks.rows().changed == CHANGES
        assert public_key(bastion.host_key) in known.read_text()

    def test_a_login_that_hangs_is_bounded(self, tasks: Tasks, bastion: Sshd, path: Path) -> None:
        bastion.freeze(listener=True)
        failed = tasks.fails(connect_timeout=1, timeout=1)
        assert failed["reason"] == "timeout"
        bastion.thaw()
        assert tasks.one()["master"]["alive"] is True

    def test_a_server_that_forwards_nothing_is_no_dead_one(
        self, work: Path, make_sshd: MakeSshd, path: Path
    ) -> None:
        bastion = make_sshd(options={"DisableForwarding": "yes"})
        config = str(bastion.ssh_config())
        tasks = Tasks(work, {"host": "bastion", "ssh_config": config, "control_path": str(path)})
        assert tasks.rows().changed == CHANGES
        assert bastion.logins() == 1


@pytest.mark.parametrize("persist", ["yes", "no", "10m"])
def test_what_is_started_holds_nothing_of_ansible(
    tasks: Tasks, make_sshd: MakeSshd, persist: str
) -> None:
    """Its pipes, above all: who reads them would wait for the end of the master (ansible#7417)."""
    hop = make_sshd(name="hop")
    config = Path(tasks.params["ssh_config"])
    config.write_text(config.read_text() + hop.ssh_config().read_text())
    # Waits for the end of its output; a pipe that is held would be a timeout.
    run = tasks.play(tasks.task(persist=persist, jump=["hop"]), verbosity=5, timeout=60).ok()
    (jump,) = clients(hop.port)
    for pid in (run.task("do")["master"]["pid"], jump.pid):
        mode = Path(f"/proc/{pid}/fd/2").stat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISCHR(mode), "no file, and not /dev/null"


class Tunnel:
    """A local forwarding."""

    def __init__(self, echo: Echo) -> None:
        self.port = free_port()
        self.local = f"127.0.0.1:{self.port}:127.0.0.1:{echo.port}"

    def works(self) -> bool:
        return talk(("127.0.0.1", self.port)) == b"hello"


@pytest.fixture
def tunnel(echo: Echo) -> Tunnel:
    return Tunnel(echo)


@pytest.fixture
def opened(tasks: Tasks, tunnel: Tunnel) -> Any:
    """What was returned of a master with the tunnel; no later task names the tunnel."""
    return tasks.one(local=[tunnel.local])["master"]


class TestLost:
    def test_one_that_was_killed_comes_back_with_its_forwardings(
        self, tasks: Tasks, opened: Any, tunnel: Tunnel, bastion: Sshd
    ) -> None:
        os.kill(opened["pid"], signal.SIGKILL)
        wait_for(lambda: not alive(opened["pid"]), "the end of the master")
        rows = tasks.rows()
        assert rows.changed == CHANGES
        assert rows.diff() == (
            f"no master, stale socket\nlost: -L {tunnel.local}\n",
            f"master, new process\n-L {tunnel.local}\n",
        )
        assert tunnel.works()
        assert len(clients(bastion.port)) == 1

    def test_restore_may_be_declined(
        self, tasks: Tasks, opened: Any, tunnel: Tunnel, bastion: Sshd
    ) -> None:
        os.kill(opened["pid"], signal.SIGKILL)
        wait_for(lambda: not clients(bastion.port), "the end of the master")
        assert tasks.one(restore=False)["master"]["forwards"] == []
        assert not listens(("127.0.0.1", tunnel.port))

    def test_one_that_is_closed_instead_leaves_nothing(
        self, tasks: Tasks, work: Path, path: Path
    ) -> None:
        socket = work / "f"
        pid = tasks.one(local=[f"{socket}:a:1"])["master"]["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), "the end of the master")
        assert socket.exists()
        assert tasks.rows(state="absent").changed == CHANGES
        assert not socket.exists()
        assert os.listdir(path.parent) == []

    def test_a_bastion_that_was_rebooted(
        self, tasks: Tasks, opened: Any, tunnel: Tunnel, bastion: Sshd
    ) -> None:
        bastion.stop()
        wait_for(lambda: not alive(opened["pid"]), "the end of the master")
        for _attempt in range(2):
            failed = tasks.fails()
            assert failed["reason"] == "unreachable"
            assert "Connection refused" in failed.msg
        bastion.start()
        assert tasks.rows().changed == CHANGES
        assert tunnel.works()

    def test_a_network_that_died_is_not_taken_for_alive(
        self, tasks: Tasks, ssh: Ssh, path: Path, opened: Any, tunnel: Tunnel, bastion: Sshd
    ) -> None:
        bastion.freeze()
        # The master itself says that all is well.
        assert ssh.master_pid(path) == opened["pid"]
        rows = tasks.rows(timeout=1)
        assert rows.changed == CHANGES
        assert rows.do["diff"]["after"].startswith("master, new process\n")
        assert not alive(opened["pid"])
        assert tunnel.works()
        assert len(clients(bastion.port)) == 1

    def test_nobody_is_cut_off_where_no_login_succeeds(
        self, tasks: Tasks, ssh: Ssh, path: Path, opened: Any, tunnel: Tunnel, bastion: Sshd
    ) -> None:
        bastion.freeze(listener=True)
        assert tasks.fails(timeout=1, connect_timeout=1)["reason"] == "timeout"
        bastion.thaw()
        rows = tasks.rows()
        assert rows.changed == STAYS
        assert rows.do["master"]["pid"] == opened["pid"]
        assert tunnel.works()

    def test_somebody_elses_is_reported_and_left(
        self, tasks: Tasks, ssh: Ssh, path: Path, bastion: Sshd
    ) -> None:
        path.parent.mkdir(mode=0o700)
        pid = ssh.open(path)
        bastion.freeze()
        failed = tasks.fails(timeout=1)
        assert failed["reason"] == "unreachable"
        assert ssh.master_pid(path) == pid
        assert tasks.one(timeout=1, force=True)["master"]["managed"] is True
        assert not alive(pid)


class TestWedged:
    @pytest.fixture
    def wedged(self, opened: Any) -> Iterator[int]:
        os.kill(opened["pid"], signal.SIGSTOP)
        yield opened["pid"]
        if alive(opened["pid"]):
            os.kill(opened["pid"], signal.SIGCONT)

    @pytest.mark.parametrize("state", ["present", "restarted", "stopped", "absent"])
    def test_is_a_failure_that_says_so(self, tasks: Tasks, wedged: int, state: str) -> None:
        for check in (True, False):
            failed = tasks.fails(check=check, state=state, timeout=1)
            assert failed["reason"] == "wedged"
            assert "force" in failed.msg
        assert alive(wedged)

    @pytest.mark.parametrize("state", ["present", "restarted"])
    def test_force_ends_it_and_opens_another(
        self, tasks: Tasks, wedged: int, state: str, tunnel: Tunnel, bastion: Sshd
    ) -> None:
        foretold = tasks.one(check=True, state=state, timeout=1, force=True)
        assert foretold["master"]["reason"] == "wedged"
        assert alive(wedged)
        result = tasks.one(state=state, timeout=1, force=True)
        assert foretold["diff"] == result["diff"]
        assert (foretold.changed, result.changed) == (True, True)
        assert not alive(wedged)
        assert tunnel.works()
        assert len(clients(bastion.port)) == 1

    @pytest.mark.parametrize("state", ["stopped", "absent"])
    def test_force_ends_it(self, tasks: Tasks, wedged: int, state: str, path: Path) -> None:
        assert tasks.rows(state=state, timeout=1, force=True).changed == CHANGES
        assert not alive(wedged)
        assert os.listdir(path.parent) == []

    def test_somebody_elses_is_found_by_its_socket(
        self, tasks: Tasks, ssh: Ssh, path: Path
    ) -> None:
        path.parent.mkdir(mode=0o700)
        pid = ssh.open(path)
        os.kill(pid, signal.SIGSTOP)
        assert tasks.fails(timeout=1)["reason"] == "wedged"
        result = tasks.one(timeout=1, force=True)
        assert not alive(pid)
        assert ssh.master_pid(path) == result["master"]["pid"]


class TestUnmanaged:
    """A master of another program is used, and neither ended nor replaced."""

    @pytest.fixture
    def foreign(self, ssh: Ssh, path: Path, tunnel: Tunnel) -> int:
        path.parent.mkdir(mode=0o700)
        return ssh.open(path, "-L", tunnel.local)

    def test_is_used(
        self, tasks: Tasks, foreign: int, bastion: Sshd, echo: Echo, tunnel: Tunnel
    ) -> None:
        rows = tasks.rows(alive_interval=99)
        assert rows.changed == STAYS
        assert rows.do["master"]["pid"] == foreign
        assert rows.do["master"]["managed"] is False
        port = free_port()
        more = tasks.rows(local=[tunnel.local, f"127.0.0.1:{port}:127.0.0.1:{echo.port}"])
        assert more.changed == CHANGES
        assert len(more.do["master"]["forwards"]) == 2
        assert talk(("127.0.0.1", port)) == b"hello"
        assert bastion.logins() == 1

    @pytest.mark.parametrize("state", ["restarted", "stopped", "absent"])
    def test_needs_force_to_go(
        self, tasks: Tasks, ssh: Ssh, foreign: int, path: Path, state: str, tunnel: Tunnel
    ) -> None:
        for check in (True, False):
            failed = tasks.fails(check=check, state=state)
            assert failed["reason"] == "unmanaged"
            assert "force" in failed.msg
        assert ssh.master_pid(path) == foreign
        assert tunnel.works()
        result = tasks.one(state=state, force=True)
        assert result.changed
        assert result["master"]["alive"] is (state == "restarted")
        wait_for(lambda: not alive(foreign), "the end of the master")
        # Nobody can tell where it led to.
        assert not listens(("127.0.0.1", tunnel.port))
        unknown = f"127.0.0.1 port {tunnel.port} (opened by another tool)\n"
        assert unknown in result["diff"]["before"]


class TestInTheWay:
    """Something at the control path that is no master is neither used nor removed."""

    @pytest.fixture
    def path(self, path: Path) -> Path:
        path.parent.mkdir(mode=0o700)
        return path

    @pytest.mark.parametrize("kind", ["file", "directory", "link", "pipe"])
    def test_no_socket(self, tasks: Tasks, path: Path, bastion: Sshd, kind: str) -> None:
        make: dict[str, Callable[[], object]] = {
            "file": lambda: path.write_text("mine"),
            "directory": lambda: (path / "d").mkdir(parents=True),
            "link": lambda: path.symlink_to("nowhere"),
            "pipe": lambda: os.mkfifo(path),
        }
        make[kind]()
        before = (path.lstat().st_mode, path.lstat().st_ino)
        for state in ("present", "absent"):
            failed = tasks.fails(state=state, force=True)
            assert failed["reason"] == "invalid"
            assert str(path) in failed.msg
        assert (path.lstat().st_mode, path.lstat().st_ino) == before
        assert bastion.connections() == 0

    def test_another_programs_socket(self, tasks: Tasks, path: Path, bastion: Sshd) -> None:
        with Echo(path) as service:
            for state in ("present", "absent"):
                failed = tasks.fails(state=state, force=True)
                assert failed["reason"] == "invalid"
                assert "not the control socket of a master" in failed.msg
            assert talk(service.path) == b"hello"
        assert bastion.connections() == 0

    def test_another_programs_silent_socket(self, tasks: Tasks, path: Path, bastion: Sshd) -> None:
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(path))
            silent.listen()
            for force in (False, True):
                failed = tasks.fails(timeout=1, force=force)
                assert failed["reason"] == "wedged"
            assert listens(path)
        path.unlink()
        assert bastion.connections() == 0

    def test_another_programs_socket_that_hangs_up(
        self, tasks: Tasks, path: Path, bastion: Sshd, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Echo(path) as service:
            monkeypatch.setattr(service.server, "verify_request", lambda *_who: False)
            failed = tasks.fails(timeout=1)
            assert failed["reason"] == "invalid"
            assert "not the control socket of a master" in failed.msg
            assert listens(path)
        assert not clients(bastion.port)


class TestDirectory:
    """One in which others could replace the socket is refused; nothing is changed there."""

    def refused(self, tasks: Tasks, path: Path, why: str) -> None:
        for check in (True, False):
            failed = tasks.fails(check=check, control_path=str(path))
            assert failed["reason"] == "control_dir_insecure"
            assert str(path.parent) in failed.msg
            assert why in failed.msg
        assert not path.exists()

    @pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
    def test_writable_by_others(self, tasks: Tasks, path: Path, mode: int) -> None:
        path.parent.mkdir()
        path.parent.chmod(mode)
        self.refused(tasks, path, "is writable by others")
        assert stat.S_IMODE(path.parent.stat().st_mode) == mode

    def test_below_one_that_is(self, tasks: Tasks, path: Path) -> None:
        path.parent.mkdir()
        path.parent.chmod(0o777)
        (path.parent / "d").mkdir(mode=0o700)
        self.refused(tasks, path.parent / "d" / "s", "is writable by others")

    def test_no_directory(self, tasks: Tasks, path: Path) -> None:
        path.parent.write_text("")
        self.refused(tasks, path, "is not a directory")

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
    def test_somebody_elses(self, tasks: Tasks, path: Path) -> None:
        path.parent.mkdir(mode=0o700)
        os.chown(path.parent, 12345, -1)
        self.refused(tasks, path, "belongs to user id 12345")

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a link away")
    def test_over_somebody_elses_link(self, tasks: Tasks, path: Path, work: Path) -> None:
        (work / "d").mkdir(mode=0o700)
        path.parent.symlink_to(work / "d")
        assert tasks.one()["master"]["alive"] is True
        tasks.one(state="absent")
        os.lchown(path.parent, 12345, -1)
        self.refused(tasks, path, "symbolic link")

    def test_that_cannot_be_made(self, tasks: Tasks) -> None:
        failed = tasks.fails(control_path="/proc/none/s")
        assert failed["reason"] == "invalid"
        assert "/proc/none" in failed.msg


class TestForwardings:
    """The master is open when one of its forwardings fails: that is told, and is changed."""

    @pytest.fixture
    def taken(self, echo: Echo) -> int:
        return echo.port

    @pytest.mark.parametrize(
        ("option", "spelled", "reason", "text"),
        [
            ("local", "127.0.0.1:{taken}:a:1", "listen_in_use", "127.0.0.1:{taken}:a:1"),
            ("remote", "127.0.0.1:{taken}:a:1", "forward_refused", "127.0.0.1:{taken}:a:1"),
        ],
    )
    def test_one_that_fails(
        self,
        tasks: Tasks,
        taken: int,
        bastion: Sshd,
        option: str,
        spelled: str,
        reason: str,
        text: str,
    ) -> None:
        good = f"127.0.0.1:{free_port()}"
        params: dict[str, Any] = {option: [spelled.format(taken=taken)], "dynamic": [good]}
        failed = tasks.fails(**params)
        assert failed["reason"] == reason
        assert text.format(taken=taken) in failed.msg
        assert failed["changed"] is True
        states = {one["listen_port"]: one["state"] for one in failed["forwards"]}
        assert states[int(good.split(":")[1])] == "present"
        assert states[taken] != "present"
        again = tasks.fails(**params)
        assert again["reason"] == reason
        assert again["changed"] is False
        assert bastion.logins() == 1

    def test_the_only_one(self, tasks: Tasks, taken: int, bastion: Sshd) -> None:
        params: dict[str, Any] = {"local": [f"127.0.0.1:{taken}:a:1"]}
        assert [tasks.fails(**params)["changed"] for _run in range(2)] == [True, False]
        assert bastion.logins() == 1

    def test_two_in_each_others_way(self, tasks: Tasks, bastion: Sshd) -> None:
        failed = tasks.fails(local=["18080:a:1", "18080:b:1"])
        assert failed["reason"] == "forward_conflict"
        assert bastion.connections() == 0
