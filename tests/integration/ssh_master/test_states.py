# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master: its states, each in check mode, for real and again; what it returns."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.client import Ssh, alive, clients
from tests.support.services import Echo, free_port, listens, talk
from tests.support.sshd import Sshd, openssh_version
from tests.support.tasks import ALWAYS, CHANGES, STAYS, Tasks
from tests.support.waiting import stays, wait_for


def pid_of(tasks: Tasks, **params: Any) -> int:
    """Open a master and return its process."""
    return int(tasks.one(**params)["master"]["pid"])


class TestPresent:
    def test_opens_once(self, tasks: Tasks, ssh: Ssh, bastion: Sshd, path: Path) -> None:
        rows = tasks.rows(control_path=str(path))
        assert rows.changed == CHANGES
        before, after = rows.diff()
        assert (before, after) == ("no master\n", "master, new process\n")
        assert ssh.master_pid(path) == rows.do["master"]["pid"] == rows.again["master"]["pid"]
        assert (bastion.logins(), bastion.connections()) == (1, 1)

    def test_check_mode_touches_nothing(self, tasks: Tasks, bastion: Sshd, path: Path) -> None:
        foretold = tasks.one(check=True, control_path=str(path))
        assert foretold.changed
        assert foretold["master"]["alive"] is False
        assert not path.parent.exists()
        assert bastion.connections() == 0

    def test_returns_the_master(self, tasks: Tasks, bastion: Sshd, path: Path) -> None:
        result = tasks.one(control_path=str(path), persist="10m")
        assert result["control_path"] == str(path)
        assert result["ssh_args"] == ["-o", "ControlMaster=no", "-o", f"ControlPath={path}"]
        master = dict(result["master"])
        started = dt.datetime.fromisoformat(master.pop("started").replace("Z", "+00:00"))
        assert abs(started.timestamp() - psutil.Process(master["pid"]).create_time()) < 1.1
        assert master.pop("openssh").startswith("OpenSSH_%d.%d" % openssh_version())
        assert master.pop("pid") == clients(bastion.port)[0].pid
        assert master == {
            "control_path": str(path),
            "alive": True,
            "managed": True,
            "host": "bastion",
            "port": bastion.port,
            "user": bastion.user,
            "jump": [],
            "persist": "600",
            "forwards": [],
            "reason": None,
        }

    def test_makes_private_directories(self, tasks: Tasks, work: Path) -> None:
        path = work / "a" / "b" / "s"
        tasks.one(control_path=str(path))
        for directory in (path.parent, path.parent.parent):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.with_name("s.json").stat().st_mode) == 0o600
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]

    def test_without_a_path_it_is_below_the_home(self, tasks: Tasks, work: Path) -> None:
        path = Path(tasks.one()["control_path"])
        assert path.parent == work / "h" / ".ansible" / "mux"
        assert path.is_socket()

    def test_names_host_port_user_and_key_itself(
        self, tasks: Tasks, bastion: Sshd, work: Path
    ) -> None:
        tasks.params = {
            "host": "127.0.0.1",
            "port": bastion.port,
            "user": bastion.user,
            "identity_file": str(bastion.identity_file),
            "known_hosts_file": str(bastion.known_hosts),
            "ssh_config": "none",
            "ssh_options": bastion.ssh_options(),
        }
        assert tasks.rows().changed == CHANGES
        assert bastion.logins() == 1

    def test_with_forwardings(self, tasks: Tasks, echo: Echo, path: Path) -> None:
        port, far = free_port(), f"127.0.0.1:{echo.port}"
        rows = tasks.rows(control_path=str(path), local=[f"127.0.0.1:{port}:{far}"])
        assert rows.changed == CHANGES
        assert rows.diff() == (
            "no master\n",
            f"master, new process\n-L 127.0.0.1:{port}:{far}\n",
        )
        assert talk(("127.0.0.1", port)) == b"hello"
        more = tasks.rows(control_path=str(path), dynamic=[f"127.0.0.1:{free_port()}"])
        assert more.changed == CHANGES
        assert more.do["master"]["pid"] == rows.do["master"]["pid"]
        assert len(more.do["master"]["forwards"]) == 2

    def test_a_stale_socket_is_replaced(
        self, tasks: Tasks, ssh: Ssh, bastion: Sshd, path: Path
    ) -> None:
        os.kill(pid_of(tasks, control_path=str(path)), signal.SIGKILL)
        wait_for(lambda: not clients(bastion.port), "the end of the master")
        assert path.is_socket()
        rows = tasks.rows(control_path=str(path))
        assert rows.changed == CHANGES
        assert rows.diff() == ("no master, stale socket\n", "master, new process\n")
        assert ssh.master_pid(path) == rows.again["master"]["pid"]
        assert len(clients(bastion.port)) == 1

    def test_a_configured_forwarding_is_not_opened_with_it(
        self, tasks: Tasks, bastion: Sshd, path: Path, work: Path
    ) -> None:
        port = free_port()
        options = {"LocalForward": f"{port} 127.0.0.1:1", "RemoteCommand": "true"}
        config = bastion.ssh_config(work / "config", options=options)
        tasks.one(control_path=str(path), ssh_config=str(config))
        assert not listens(("127.0.0.1", port))


class TestPersist:
    @pytest.mark.parametrize("persist", ["yes", "no"])
    def test_it_stays(self, tasks: Tasks, path: Path, ssh: Ssh, persist: str) -> None:
        rows = tasks.rows(control_path=str(path), persist=persist)
        assert rows.changed == CHANGES
        assert rows.do["master"]["persist"] == persist
        assert ssh.run("-S", str(path), command="true").rc == 0
        stays(lambda: alive(rows.do["master"]["pid"]), "the master", 1.5)

    def test_it_ends_after_a_time_without_a_session(
        self, tasks: Tasks, path: Path, bastion: Sshd
    ) -> None:
        pid = pid_of(tasks, control_path=str(path), persist="1s")
        wait_for(lambda: not alive(pid), "the end of the master", 5)
        assert not path.exists()
        assert tasks.rows(control_path=str(path), persist="30s").changed == CHANGES


class TestAbsent:
    def test_ends_it_and_leaves_nothing(
        self, tasks: Tasks, echo: Echo, path: Path, bastion: Sshd
    ) -> None:
        port = free_port()
        local = f"127.0.0.1:{port}:127.0.0.1:{echo.port}"
        socket = path.with_name("f")
        tasks.one(control_path=str(path), local=[local, f"{socket}:127.0.0.1:{echo.port}"])
        rows = tasks.rows(control_path=str(path), state="absent")
        assert rows.changed == CHANGES
        pid = rows.check["master"]["pid"]
        assert rows.diff() == (
            f"master, process {pid}\n-L {socket}:127.0.0.1:{echo.port}\n-L {local}\n",
            "no master\n",
        )
        assert rows.do["master"]["alive"] is False
        assert rows.do["master"]["reason"] == "not_running"
        assert not alive(pid)
        assert os.listdir(path.parent) == []
        assert not listens(("127.0.0.1", port))

    def test_nothing_to_do(self, tasks: Tasks, path: Path) -> None:
        assert tasks.rows(control_path=str(path), state="absent").changed == STAYS
        assert not path.parent.exists()

    def test_cuts_what_runs_through_it(self, tasks: Tasks, path: Path, ssh: Ssh) -> None:
        tasks.one(control_path=str(path))
        with ssh.started("-S", str(path), command="echo up; cat") as session:
            assert session.stdout
            assert session.stdout.readline() == b"up\n"
            tasks.one(control_path=str(path), state="absent")
            assert session.wait(5) != 0

    def test_removes_a_stale_socket(self, tasks: Tasks, path: Path, bastion: Sshd) -> None:
        os.kill(pid_of(tasks, control_path=str(path)), signal.SIGKILL)
        wait_for(lambda: not clients(bastion.port), "the end of the master")
        rows = tasks.rows(control_path=str(path), state="absent")
        assert rows.changed == CHANGES
        assert rows.diff() == ("no master, stale socket\n", "no master\n")
        assert os.listdir(path.parent) == []

    def test_by_path_alone(self, tasks: Tasks, path: Path) -> None:
        tasks.one(control_path=str(path))
        tasks.params = {}
        assert tasks.rows(control_path=str(path), state="absent").changed == CHANGES


class TestStopped:
    def test_an_idle_one_is_gone_with_its_forwardings(
        self, tasks: Tasks, echo: Echo, path: Path, bastion: Sshd
    ) -> None:
        port = free_port()
        local = f"127.0.0.1:{port}:127.0.0.1:{echo.port}"
        pid = pid_of(tasks, control_path=str(path), local=[local])
        rows = tasks.rows(control_path=str(path), state="stopped")
        assert rows.changed == CHANGES
        assert rows.diff() == (f"master, process {pid}\n-L {local}\n", "no master\n")
        assert not alive(pid)
        assert not listens(("127.0.0.1", port))
        assert os.listdir(path.parent) == []

    def test_a_session_goes_on_without_listeners_and_is_the_last(
        self, tasks: Tasks, ssh: Ssh, echo: Echo, path: Path, bastion: Sshd
    ) -> None:
        port = free_port()
        local = f"127.0.0.1:{port}:127.0.0.1:{echo.port}"
        pid = pid_of(tasks, control_path=str(path), local=[local])
        with ssh.started("-S", str(path), command="echo up; cat") as session:
            assert session.stdout
            assert session.stdin
            assert session.stdout.readline() == b"up\n"
            result = tasks.one(control_path=str(path), state="stopped")
            assert result["master"]["alive"] is False
            assert not path.exists()
            assert not listens(("127.0.0.1", port))
            stays(lambda: alive(pid), "the master", 0.3)
            session.stdin.write(b"still here\n")
            session.stdin.flush()
            assert session.stdout.readline() == b"still here\n"
            session.stdin.close()
            assert session.wait(5) == 0
        wait_for(lambda: not alive(pid), "the end of the master")

    def test_drain_timeout_ends_it(self, tasks: Tasks, ssh: Ssh, path: Path) -> None:
        pid = pid_of(tasks, control_path=str(path))
        with ssh.started("-S", str(path), command="echo up; cat") as session:
            assert session.stdout
            assert session.stdout.readline() == b"up\n"
            began = time.monotonic()
            tasks.one(control_path=str(path), state="stopped", drain_timeout=1)
            assert 1 <= time.monotonic() - began < 6
            assert not alive(pid)
            assert session.wait(5) != 0

    def test_forwardings_cannot_be_asked_for(self, tasks: Tasks, path: Path) -> None:
        for state in ("stopped", "absent"):
            failed = tasks.fails(control_path=str(path), state=state, local=["1:a:1"])
            assert failed["reason"] == "invalid"


class TestRestarted:
    def test_is_always_a_new_one(self, tasks: Tasks, ssh: Ssh, path: Path, bastion: Sshd) -> None:
        old = pid_of(tasks, control_path=str(path))
        rows = tasks.rows(control_path=str(path), state="restarted")
        assert rows.changed == ALWAYS
        assert rows.do["diff"]["before"] == f"master, process {old}\n"
        assert rows.do["diff"]["after"] == "master, new process\n"
        assert len({old, rows.do["master"]["pid"], rows.again["master"]["pid"]}) == 3
        assert ssh.master_pid(path) == rows.again["master"]["pid"]
        assert bastion.logins() == 3
        wait_for(lambda: len(clients(bastion.port)) == 1, "the end of the old ones")
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]

    def test_opens_where_none_is(self, tasks: Tasks, path: Path) -> None:
        assert tasks.rows(control_path=str(path), state="restarted").changed == ALWAYS


class TestLedger:
    """What is written down is a help: without it the run goes on from what can be seen."""

    @pytest.fixture
    def ledger(self, tasks: Tasks, path: Path, echo: Echo) -> Path:
        """The ledger of a master with a forwarding."""
        tasks.params["control_path"] = str(path)
        tasks.params["local"] = [f"127.0.0.1:{free_port()}:127.0.0.1:{echo.port}"]
        tasks.one()
        return path.with_name("s.json")

    @pytest.mark.parametrize("text", [None, "", "{", "[]", '{"version": 1}', "\0\xff"])
    def test_lost_or_damaged(self, tasks: Tasks, ledger: Path, text: str | None) -> None:
        if text is None:
            ledger.unlink()
        else:
            ledger.write_text(text)
        rows = tasks.rows()
        assert rows.changed == STAYS
        assert rows.do["master"]["alive"] is True
        assert rows.do["master"]["managed"] is False
        assert len(rows.do["master"]["forwards"]) == 1

    @pytest.mark.parametrize("key", ["pid", "started"])
    def test_of_another_process(self, tasks: Tasks, ledger: Path, key: str) -> None:
        values = json.loads(ledger.read_text())
        values[key] = values[key] - 100
        ledger.write_text(json.dumps(values))
        rows = tasks.rows()
        assert rows.changed == STAYS
        assert rows.do["master"]["managed"] is False

    def test_after_the_clock_was_set(self, tasks: Tasks, ledger: Path) -> None:
        values = json.loads(ledger.read_text())
        values["started"] -= 3600.0
        values["booted"] -= 3600.0
        ledger.write_text(json.dumps(values))
        assert tasks.one()["master"]["managed"] is True

    def test_of_another_user_counts_for_nothing(self, tasks: Tasks, ledger: Path) -> None:
        if os.getuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(ledger, 12345, -1)
        assert tasks.one()["master"]["managed"] is False
