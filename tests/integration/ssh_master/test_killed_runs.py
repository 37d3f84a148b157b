# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run leaves that is killed with -9: the next one finishes its work, and nothing stays.

ansible-playbook forks a worker for each host of a task, and that is where these modules work.
Either can be killed, or both; a worker that is alone goes on to the end of its task.
"""

from __future__ import annotations

import json
import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive, clients, listeners
from tests.support.preloaded import Run
from tests.support.services import Echo, free_port, free_ports, listens, talk
from tests.support.sshd import Sshd
from tests.support.tasks import CHANGES, SSH_FORWARD, Tasks
from tests.support.waiting import wait_for

MANY = 1500


@pytest.fixture
def tasks(tasks: Tasks, path: Path) -> Tasks:
    tasks.params["control_path"] = str(path)
    return tasks


@pytest.fixture
def tunnel(echo: Echo) -> str:
    return f"127.0.0.1:{free_port()}:127.0.0.1:{echo.port}"


def works(tunnel: str) -> bool:
    return talk(("127.0.0.1", int(tunnel.split(":")[1]))) == b"hello"


@pytest.fixture
def killer(work: Path) -> Path:
    """An ssh that kills, before or after the login of a master, who opens it."""
    program = work / "killer"
    program.write_text(
        "#!/bin/sh\n"
        'ansible=$(ps -o ppid= -p "$PPID")\n'
        "case $WHO in\n"
        "    worker) them=$PPID ;;\n"
        "    ansible) them=$ansible ;;\n"
        '    both) them="$ansible $PPID" ;;\n'
        "esac\n"
        'case "$MOMENT $* " in before*" -N "*) kill -9 $them ;; esac\n'
        'case "$WHO $MOMENT $* " in worker\\ before*" -N "*|both\\ before*" -N "*) exit ;; esac\n'
        'ssh "$@"\n'
        "status=$?\n"
        'case "$MOMENT $* " in after*" -N "*) kill -9 $them ;; esac\n'
        "exit $status\n"
    )
    program.chmod(stat.S_IRWXU)
    return program


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("who", ["worker", "ansible", "both"])
class TestLogin:
    """Before or after the login of a new master."""

    @pytest.fixture
    def kill(self, tasks: Tasks, killer: Path, who: str, moment: str) -> Any:
        def kill(**params: Any) -> None:
            task = tasks.task(ssh_executable=str(killer), **params)
            assert tasks.play(task, env={"WHO": who, "MOMENT": moment}).failed

        return kill

    def test_opening(self, tasks: Tasks, kill: Any, tunnel: str, path: Path, bastion: Sshd) -> None:
        kill(local=[tunnel])
        rows = tasks.rows(local=[tunnel])
        assert rows.changed[2:] == (False, False)
        assert rows.again["master"]["managed"] is True
        assert works(tunnel)
        assert len(clients(bastion.port)) == 1
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]
        assert tasks.rows(state="absent").changed == CHANGES
        assert not clients(bastion.port)
        assert os.listdir(path.parent) == []

    def test_opening_before_a_forwarding(
        self, tasks: Tasks, kill: Any, tunnel: str, path: Path, bastion: Sshd
    ) -> None:
        kill()
        forward = tasks.task("forward", SSH_FORWARD, local=[tunnel], open=True)
        assert tasks.play(forward, tasks.task("after")).ok().task("after")["master"]["managed"]
        assert works(tunnel)
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]
        assert tasks.rows(state="absent").changed == CHANGES
        assert not clients(bastion.port)

    def test_handing_over(
        self, tasks: Tasks, kill: Any, tunnel: str, path: Path, bastion: Sshd, ssh: Ssh
    ) -> None:
        old = tasks.one(local=[tunnel])["master"]["pid"]
        with ssh.session(path) as session:
            kill(state="restarted")
            rows = tasks.rows()
            assert rows.changed[2:] == (False, False)
            assert rows.again["master"]["managed"] is True
            assert ssh.master_pid(path) == rows.again["master"]["pid"]
            assert works(tunnel)
            assert session.echoes()
            assert session.end() == 0
        if rows.again["master"]["pid"] != old:
            wait_for(lambda: not alive(old), "the end of the old master")
        assert works(tunnel)
        assert len(clients(bastion.port)) == 1
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]


@pytest.mark.parametrize("state", ["present", "absent"])
def test_changing_forwardings(tasks: Tasks, work: Path, path: Path, state: str) -> None:
    """In the middle of them, whoever knows of it and whatever is written down."""
    # An address on which no other test listens.
    host = "127.9.9.9"
    ports = free_ports(MANY, host)
    params: dict[str, Any] = {
        "module": SSH_FORWARD,
        "local": [f"{host}:{port}:a:1" for port in ports],
    }
    pid = tasks.one()["master"]["pid"]
    if state == "absent":
        tasks.one(**params)
    before = len(listeners(pid))
    middle = (host, ports[MANY // 2])
    params["state"] = state
    with ThreadPoolExecutor() as pool:
        run = pool.submit(tasks.play, tasks.task(**params))
        wait_for(lambda: listens(middle) is (state == "present"), "half of them")
        os.kill(pid, signal.SIGSTOP)  # it would be faster than we are
        for one in Run.running.copy():
            one.kill()
        os.kill(pid, signal.SIGCONT)
        assert run.result().failed
    recorded = len(json.loads(Path(f"{path}.json").read_text())["forwards"])
    assert recorded == before
    rows = tasks.rows(**params)
    assert rows.changed[2:] == (False, False)
    assert len(listeners(pid)) == (MANY if state == "present" else 0)
    assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]
    assert tasks.one(state="absent").changed
    assert not listens((host, ports[0]))
    assert os.listdir(path.parent) == []
