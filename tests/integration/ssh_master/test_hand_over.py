# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master while somebody works: a new master in the place of an old one, and one that stops."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Session, Ssh, alive, clients
from tests.support.services import Echo, connect, free_port, listens, socks5, talk
from tests.support.sshd import Sshd
from tests.support.tasks import ALWAYS, CHANGES, SSH_FORWARD, STAYS, Tasks
from tests.support.waiting import stays, wait_for


@pytest.fixture
def tasks(tasks: Tasks, path: Path) -> Tasks:
    tasks.params["control_path"] = str(path)
    return tasks


class Tunnels:
    """A forwarding of every kind to one far end."""

    def __init__(self, work: Path, echo: Echo) -> None:
        self.port, self.proxy, self.published = free_port(), free_port(), free_port()
        self.socket = work / "f"
        self.echo = echo
        far = f"127.0.0.1:{echo.port}"
        self.params: dict[str, Any] = {
            "local": [f"127.0.0.1:{self.port}:{far}", f"{self.socket}:{far}", f"0:{far}"],
            "remote": [f"127.0.0.1:{self.published}:{far}"],
            "dynamic": [f"127.0.0.1:{self.proxy}"],
        }

    def work(self) -> bool:
        """Whether each of them reaches the far end."""
        for address in ("127.0.0.1", self.port), ("127.0.0.1", self.published), self.socket:
            assert talk(address) == b"hello", address
        with socks5(("127.0.0.1", self.proxy), "127.0.0.1", self.echo.port) as connection:
            connection.sendall(b"a")
            return connection.recv(1) == b"a"


@pytest.fixture
def tunnels(work: Path, echo: Echo) -> Tunnels:
    return Tunnels(work, echo)


@pytest.fixture
def old(tasks: Tasks, tunnels: Tunnels) -> Any:
    """What was returned of a master with a forwarding of every kind."""
    return tasks.one(**tunnels.params)["master"]


@pytest.fixture
def session(ssh: Ssh, path: Path, old: Any) -> Iterator[Session]:
    """A session through it."""
    with ssh.session(path) as session:
        yield session


#: Two ways to a new master.
RENEWING: dict[str, dict[str, Any]] = {
    "restarted": {"state": "restarted"},
    "drift": {"alive_interval": 7},
}


@pytest.mark.parametrize("params", RENEWING.values(), ids=RENEWING)
class TestHandOver:
    def test_nothing_is_cut_and_everything_moves(
        self,
        tasks: Tasks,
        ssh: Ssh,
        path: Path,
        bastion: Sshd,
        tunnels: Tunnels,
        old: Any,
        session: Session,
        params: dict[str, Any],
    ) -> None:
        with connect(("127.0.0.1", tunnels.port)) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            new = tasks.one(**params)["master"]
            assert new["pid"] != old["pid"]
            assert ssh.master_pid(path) == new["pid"]
            assert session.echoes()
            connection.sendall(b"b")
            assert connection.recv(1) == b"b"
        keys = ("type", "listen_host", "listen_port", "listen_socket", "allocated_port")
        before, after = (
            {tuple(one[key] for key in keys) for one in master["forwards"]} for master in (old, new)
        )
        assert after == before
        assert len(after) == 5
        assert tunnels.work()
        with ssh.session(path) as another:
            assert another.echoes()
            assert bastion.logins() == 2
            assert session.end() == 0
            wait_for(lambda: not alive(old["pid"]), "the end of the old master")
            assert another.echoes()
        assert tunnels.work()
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]

    def test_is_foretold(
        self, tasks: Tasks, old: Any, bastion: Sshd, params: dict[str, Any]
    ) -> None:
        rows = tasks.rows(**params)
        assert rows.changed == (ALWAYS if "state" in params else CHANGES)
        assert rows.check["diff"] == rows.do["diff"]
        before, after = (rows.do["diff"][side].splitlines() for side in ("before", "after"))
        assert before[0] == f"master, process {old['pid']}"
        assert after[0] == "master, new process"
        if "state" not in params:
            assert (before.pop(1), after.pop(1)) == (
                "serveraliveinterval 15",
                "serveraliveinterval 7",
            )
        assert len(before) == len(after) == 6
        assert rows.check["master"]["pid"] == old["pid"]
        assert bastion.logins() == 1 + sum(rows.changed[1:3])

    def test_drain_timeout_ends_the_old_one(
        self, tasks: Tasks, old: Any, session: Session, tunnels: Tunnels, params: dict[str, Any]
    ) -> None:
        began = time.monotonic()
        tasks.one(drain_timeout=1, **params)
        assert time.monotonic() - began >= 1
        assert not alive(old["pid"])
        assert session.wait() == 255
        assert tunnels.work()

    def test_a_login_that_fails_changes_nothing(
        self,
        tasks: Tasks,
        ssh: Ssh,
        path: Path,
        bastion: Sshd,
        old: Any,
        session: Session,
        tunnels: Tunnels,
        params: dict[str, Any],
    ) -> None:
        key = bastion.authorized_keys.read_text()
        bastion.authorized_keys.write_text("")
        failed = tasks.fails(**params)
        assert failed["reason"] == "auth_failed"
        assert "Permission denied" in failed.msg
        assert ssh.master_pid(path) == old["pid"]
        assert session.echoes()
        assert tunnels.work()
        assert not tasks.one().changed
        bastion.authorized_keys.write_text(key)
        assert tasks.one(**params)["master"]["pid"] != old["pid"]
        assert session.echoes()
        assert tunnels.work()


def test_what_is_not_restored_is_gone(tasks: Tasks, old: Any, tunnels: Tunnels) -> None:
    assert tasks.one(state="restarted", restore=False)["master"]["forwards"] == []
    for address in ("127.0.0.1", tunnels.port), ("127.0.0.1", tunnels.published), tunnels.socket:
        assert not listens(address)


def test_what_the_task_names_wins_over_what_was_there(
    tasks: Tasks, old: Any, tunnels: Tunnels, work: Path
) -> None:
    with Echo(work / "e") as other:
        again = f"127.0.0.1:{tunnels.port}:{other.path}"
        forwards = tasks.one(state="restarted", local=[again])["master"]["forwards"]
        assert [
            one["connect_socket"] for one in forwards if one["listen_port"] == tunnels.port
        ] == [str(other.path)]
        assert len(forwards) == 5
        tunnels.work()
        assert other.seen


def test_ssh_forward_waits_for_the_new_one(
    tasks: Tasks, old: Any, tunnels: Tunnels, work: Path
) -> None:
    slow, begun = work / "slow", work / "begun"
    slow.write_text(
        f'#!/bin/sh\ncase " $* " in *" -N "*) : >{begun}; sleep 3 ;; esac\nexec ssh "$@"\n'
    )
    slow.chmod(stat.S_IRWXU)
    more = [f"127.0.0.1:{free_port()}:127.0.0.1:{tunnels.echo.port}"]
    with ThreadPoolExecutor() as pool:
        restarted = pool.submit(tasks.one, state="restarted", ssh_executable=str(slow))
        wait_for(begun.exists, "the new login")
        added = tasks.play(tasks.task("do", SSH_FORWARD, local=more)).ok().task("do")
        new = restarted.result()["master"]["pid"]
    assert added.changed
    assert tasks.one(local=more)["master"]["pid"] == new != old["pid"]
    assert tunnels.work()


@pytest.fixture
def killer(work: Path) -> Path:
    """An ssh that kills the run which starts a master with it, after the login or before it."""
    program = work / "killer"
    kill = "kill -9 $PPID"
    program.write_text(
        "#!/bin/sh\n"
        f'case "$MOMENT $* " in before*" -N "*) {kill}; exit ;; esac\n'
        f'case "$MOMENT $* " in after*" -N "*) ssh "$@"; {kill}; exit ;; esac\n'
        'exec ssh "$@"\n'
    )
    program.chmod(stat.S_IRWXU)
    return program


class TestKilledHalfWay:
    """The next run finishes what a run began that was killed."""

    def killed(self, tasks: Tasks, killer: Path, moment: str) -> None:
        task = tasks.task(state="restarted", ssh_executable=str(killer))
        assert tasks.play(task, env={"MOMENT": moment}).failed
        assert Path(tasks.params["control_path"] + ".old").is_socket()

    def test_before_the_login(
        self, tasks: Tasks, killer: Path, path: Path, old: Any, session: Session, tunnels: Tunnels
    ) -> None:
        self.killed(tasks, killer, "before")
        assert not path.exists()
        result = tasks.one()
        assert not result.changed
        assert result["master"]["pid"] == old["pid"]
        assert tunnels.work()
        assert session.echoes()
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]

    def test_after_the_login(
        self,
        tasks: Tasks,
        ssh: Ssh,
        killer: Path,
        path: Path,
        old: Any,
        session: Session,
        tunnels: Tunnels,
    ) -> None:
        self.killed(tasks, killer, "after")
        rows = tasks.rows()
        assert (rows.do.changed, rows.again.changed) == (True, False)
        new = rows.again["master"]
        assert new["managed"] is True
        assert ssh.master_pid(path) == new["pid"] != old["pid"]
        assert tunnels.work()
        assert session.echoes()
        assert session.end() == 0
        wait_for(lambda: not alive(old["pid"]), "the end of the old master")
        assert tunnels.work()
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_and_then_closed(
        self, tasks: Tasks, killer: Path, path: Path, old: Any, bastion: Sshd, moment: str
    ) -> None:
        self.killed(tasks, killer, moment)
        assert tasks.one(state="absent").changed
        wait_for(lambda: not clients(bastion.port), "the end of both")
        assert os.listdir(path.parent) == []


# What drift is: (parameters, changed).

DRIFTS: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing": ({}, False),
    "user": ({"user": "another"}, True),
    "port": ({"port": 1}, True),
    "jump": ({"jump": ["elsewhere"]}, True),
    "forward_agent": ({"forward_agent": True}, True),
    "forward_x11": ({"forward_x11": True}, True),
    "compression": ({"compression": True}, True),
    "alive_count_max": ({"alive_count_max": 9}, True),
    "identity_file": ({"identity_file": "/dev/null"}, True),
    "known_hosts_file": ({"known_hosts_file": "/nowhere"}, True),
    "another option": ({"ssh_options": {"Ciphers": "aes256-ctr"}}, True),
    "a new variable": ({"ssh_options": {"SetEnv": "A=1"}}, True),
    "the same in other words": ({"persist": "0", "compression": False}, False),
    "how to log in": (
        {"connect_timeout": 3, "timeout": 3, "host_key_checking": "accept-new", "password": "x"},
        False,
    ),
}


class TestDrift:
    def test_is_what_a_master_cannot_change(self, tasks: Tasks, bastion: Sshd) -> None:
        opened = tasks.task("open")
        looks = [tasks.task(name, check=True, **params) for name, (params, _said) in DRIFTS.items()]
        run = tasks.play(opened, *looks).ok()
        found = {name: run.task(name).changed for name in DRIFTS}
        assert found == {name: changes for name, (_params, changes) in DRIFTS.items()}
        assert bastion.connections() == 1

    def test_of_the_configuration(self, tasks: Tasks, bastion: Sshd) -> None:
        old = tasks.one()["master"]["pid"]
        bastion.ssh_config(options={"ServerAliveInterval": 44, "TCPKeepAlive": "no"})
        rows = tasks.rows()
        assert rows.changed == CHANGES
        # The parameters of the task win over the configuration.
        assert rows.diff() == (
            f"master, process {old}\ntcpkeepalive yes\n",
            "master, new process\ntcpkeepalive no\n",
        )

    def test_can_fail(self, tasks: Tasks, ssh: Ssh, path: Path, bastion: Sshd) -> None:
        old = tasks.one()["master"]["pid"]
        for check in (True, False):
            failed = tasks.fails(check=check, on_drift="fail", forward_agent=True)
            assert failed["reason"] == "drift"
            assert "forwardagent: no -> yes" in failed.msg
        assert ssh.master_pid(path) == old
        assert bastion.logins() == 1

    def test_can_be_ignored(self, tasks: Tasks, bastion: Sshd) -> None:
        old = tasks.one()["master"]["pid"]
        rows = tasks.rows(on_drift="ignore", forward_agent=True)
        assert rows.changed == STAYS
        assert rows.do["master"]["pid"] == old
        assert bastion.logins() == 1


class TestStopped:
    @pytest.mark.parametrize("persist", ["yes", "no", "10m"])
    def test_no_orphan_and_no_listener_is_left(
        self,
        tasks: Tasks,
        ssh: Ssh,
        path: Path,
        bastion: Sshd,
        tunnels: Tunnels,
        persist: str,
    ) -> None:
        old = tasks.one(persist=persist, **tunnels.params)["master"]
        with ssh.session(path) as session, connect(("127.0.0.1", tunnels.port)) as connection:
            connection.sendall(b"a")
            assert connection.recv(1) == b"a"
            rows = tasks.rows(state="stopped")
            assert rows.changed == CHANGES
            assert rows.do["master"]["alive"] is False
            assert os.listdir(path.parent) == []
            places = ("127.0.0.1", tunnels.port), ("127.0.0.1", tunnels.published), tunnels.socket
            for address in (*places, ("127.0.0.1", tunnels.proxy)):
                assert not listens(address)
            assert not tunnels.socket.exists()
            assert session.echoes()
            connection.sendall(b"b")
            assert connection.recv(1) == b"b"
            assert session.end() == 0
            stays(lambda: alive(old["pid"]), "the master, for the connection", 0.3)
        wait_for(lambda: not alive(old["pid"]), "the end of the master")
        assert not clients(bastion.port)

    def test_check_mode_stops_nothing(
        self, tasks: Tasks, ssh: Ssh, path: Path, old: Any, tunnels: Tunnels
    ) -> None:
        assert tasks.one(check=True, state="stopped").changed
        assert ssh.master_pid(path) == old["pid"]
        assert tunnels.work()

    def test_the_next_one_does_not_wait_for_it(
        self, tasks: Tasks, ssh: Ssh, path: Path, old: Any, session: Session, tunnels: Tunnels
    ) -> None:
        tasks.one(state="stopped")
        new = tasks.one(**tunnels.params)["master"]
        assert tunnels.work()
        assert session.end() == 0
        wait_for(lambda: not alive(old["pid"]), "the end of the old master")
        assert ssh.master_pid(path) == new["pid"]
        assert tunnels.work()

    def test_drain_timeout_is_no_longer_than_the_session(
        self, tasks: Tasks, ssh: Ssh, path: Path, old: Any
    ) -> None:
        with ssh.started("-S", str(path), command="echo up; sleep 2") as process:
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
            began = time.monotonic()
            tasks.one(state="stopped", drain_timeout=60)
            assert time.monotonic() - began < 40
            assert process.wait(10) == 0
        assert not alive(old["pid"])
