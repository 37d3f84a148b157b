# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master by many at once: twenty hosts of one play, two playbooks, another program's ssh."""

from __future__ import annotations

import os
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive, clients
from tests.support.playbook import PlaybookResult, TaskResult, run_playbook
from tests.support.services import Echo, free_port, talk
from tests.support.sshd import Sshd
from tests.support.tasks import Tasks
from tests.support.waiting import wait_for

MANY = 20


def all_at_once(tasks: Tasks, work: Path | None = None, **params: Any) -> PlaybookResult:
    """The task for each of many hosts, all of them at the same time."""
    return run_playbook(
        work or tasks.work,
        {"hosts": "all", "gather_facts": False, "tasks": [tasks.task(**params)]},
        inventory={"all": {"hosts": {f"host{number}": None for number in range(MANY)}}},
        forks=MANY,
    )


def the_same(run: PlaybookResult, *keys: str) -> TaskResult:
    """The result of one of the hosts, after an assertion that all were told the same."""
    results = run.tasks("do")
    assert len(results) == MANY
    told = [{key: one.result.get(key) for key in keys} for one in results]
    for one in told:
        for forward in (one.get("master") or {}).get("forwards", []):
            del forward["evidence"]  # says how that one look found it
    assert all(one == told[0] for one in told), told
    return results[0]


@pytest.fixture
def port(echo: Echo) -> int:
    return free_port()


@pytest.fixture
def forwarded(tasks: Tasks, path: Path, echo: Echo, port: int) -> Tasks:
    """Tasks for one path, each with the forwarding."""
    tasks.params |= {
        "control_path": str(path),
        "local": [f"127.0.0.1:{port}:127.0.0.1:{echo.port}"],
    }
    return tasks


class TestTwentyHosts:
    def test_log_in_once(self, forwarded: Tasks, bastion: Sshd, port: int) -> None:
        run = all_at_once(forwarded).ok()
        assert run.changed() == 1
        assert len(the_same(run, "master", "ssh_args")["master"]["forwards"]) == 1
        assert (bastion.connections(), bastion.logins()) == (1, 1)
        assert len(clients(bastion.port)) == 1
        assert talk(("127.0.0.1", port)) == b"hello"
        assert all_at_once(forwarded).ok().changed() == 0

    def test_without_a_path(self, tasks: Tasks, bastion: Sshd) -> None:
        run = all_at_once(tasks).ok()
        assert run.changed() == 1
        the_same(run, "control_path", "master")
        assert (bastion.connections(), bastion.logins()) == (1, 1)

    def test_reopen_a_lost_one_with_its_forwardings(
        self, forwarded: Tasks, bastion: Sshd, port: int
    ) -> None:
        lost = forwarded.one()["master"]["pid"]
        os.kill(lost, signal.SIGKILL)
        wait_for(lambda: not alive(lost), "the end of the master")
        run = all_at_once(forwarded, local=None).ok()
        assert run.changed() == 1
        assert len(the_same(run, "master")["master"]["forwards"]) == 1
        assert bastion.logins() == len(clients(bastion.port)) + 1 == 2
        assert talk(("127.0.0.1", port)) == b"hello"

    def test_hand_over_once(self, forwarded: Tasks, bastion: Sshd, port: int) -> None:
        forwarded.one()
        run = all_at_once(forwarded, alive_interval=7).ok()
        assert run.changed() == 1
        the_same(run, "master")
        assert bastion.logins() == 2
        assert talk(("127.0.0.1", port)) == b"hello"
        wait_for(lambda: len(clients(bastion.port)) == 1, "the end of the old one")

    def test_end_it_once(self, forwarded: Tasks, bastion: Sshd, path: Path) -> None:
        forwarded.one()
        run = all_at_once(forwarded, state="absent", local=None).ok()
        assert run.changed() == 1
        assert not clients(bastion.port)
        assert os.listdir(path.parent) == []


class TestAFailure:
    def test_is_shared_by_all_who_wait_for_it(
        self, tasks: Tasks, bastion: Sshd, path: Path
    ) -> None:
        bastion.authorized_keys.write_text("")
        for attempts in (1, 2):
            run = all_at_once(tasks, control_path=str(path))
            failed = the_same(run, "msg", "reason", "changed")
            assert failed["reason"] == "auth_failed"
            assert "Permission denied (publickey)" in failed.msg
            assert bastion.connections() == attempts
        assert not path.exists()

    def test_of_a_password_is_one_attempt(self, tasks: Tasks, bastion: Sshd, path: Path) -> None:
        bastion.authorized_keys.write_text("")
        run = all_at_once(tasks, control_path=str(path), password="no such word")
        assert the_same(run, "msg", "reason")["reason"] == "auth_failed"
        assert bastion.connections() == 1

    def test_is_not_shared_with_a_retry(self, tasks: Tasks, bastion: Sshd, path: Path) -> None:
        bastion.authorized_keys.write_text("")
        task = tasks.task(control_path=str(path)) | {"retries": 2, "delay": 0, "until": False}
        assert tasks.play(task).failed
        assert bastion.connections() == 3

    def test_does_not_outlive_its_cause(self, tasks: Tasks, bastion: Sshd, path: Path) -> None:
        bastion.stop()
        failed = the_same(all_at_once(tasks, control_path=str(path)), "msg", "reason")
        assert failed["reason"] == "unreachable"
        assert "Connection refused" in failed.msg
        bastion.start()
        assert all_at_once(tasks, control_path=str(path)).ok().changed() == 1
        assert bastion.connections() == 1
        assert sorted(os.listdir(path.parent)) == ["s", "s.json", "s.log"]


def test_two_playbooks_log_in_once(forwarded: Tasks, work: Path, bastion: Sshd, port: int) -> None:
    folders = [work / "one", work / "two"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor() as threads:
        runs = list(threads.map(lambda folder: all_at_once(forwarded, folder).ok(), folders))
    assert sum(run.changed() for run in runs) == 1
    assert the_same(runs[0], "master")["master"] == the_same(runs[1], "master")["master"]
    assert (bastion.connections(), bastion.logins()) == (1, 1)
    assert talk(("127.0.0.1", port)) == b"hello"


@pytest.fixture
def overtaken(work: Path, path: Path, bastion: Sshd) -> Path:
    """An ssh which another program is ahead of, by so little that our look did not see it."""
    program = work / "overtaken"
    other = f"ssh -F {bastion.ssh_config()} -fN -M -S {path} -o ControlPersist=yes bastion"
    program.write_text(f'#!/bin/sh\ncase " $* " in *" -N "*) {other} ;; esac\nexec ssh "$@"\n')
    program.chmod(stat.S_IRWXU)
    return program


@pytest.mark.parametrize("persist", ["yes", "10m"])
def test_a_race_that_is_lost_leaves_no_orphan(
    tasks: Tasks, ssh: Ssh, bastion: Sshd, path: Path, overtaken: Path, persist: str
) -> None:
    tasks.params |= {"control_path": str(path), "persist": persist}
    result = tasks.one(ssh_executable=str(overtaken))
    assert result["master"]["alive"] is True
    assert result["master"]["managed"] is False
    assert ssh.master_pid(path) == result["master"]["pid"]
    wait_for(lambda: len(clients(bastion.port)) == 1, "the end of ours")
    assert not tasks.one().changed
