# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The harness itself: what the other tests trust it to notice."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.accounts import Account, throwaway_accounts
from tests.support.client import Ssh, alive
from tests.support.leaks import LeakWatch
from tests.support.playbook import run_playbook
from tests.support.services import Echo, Page, connect, free_port, free_ports, listens, talk
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for


def test_a_master_left_behind_is_noticed_and_ended(
    watch: LeakWatch, work: Path, bastion: Sshd
) -> None:
    pid = Ssh(bastion.ssh_config()).open(work / "s")
    spared = {process.pid for process in bastion.processes(listener=True)}
    said = " ".join(watch.settle(spared, timeout=0))
    assert f"process {pid}:" in said
    assert f"socket {work / 's'}" in said
    wait_for(lambda: not alive(pid), "its end")
    assert not watch.settle(spared, timeout=0)


def test_a_stopped_master_left_behind_is_noticed(
    watch: LeakWatch, work: Path, bastion: Sshd
) -> None:
    ssh = Ssh(bastion.ssh_config())
    pid = ssh.open(work / "s")
    with ssh.started("-S", str(work / "s"), command="echo up; exec cat") as session:
        assert session.stdout
        assert session.stdout.readline() == b"up\n"
        assert ssh.control(work / "s", "stop").rc == 0
        spared = {process.pid for process in bastion.processes(listener=True)}
        said = " ".join(watch.settle({*spared, session.pid}, timeout=0))
        assert f"process {pid}: " in said
    assert not watch.settle(spared)


def test_an_orphan_of_another_folder_is_noticed_by_its_environment(
    watch: LeakWatch, work: Path
) -> None:
    script = "cd / && sleep 30 >/dev/null 2>&1 & echo $!"
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert f"process {int(said.stdout)}: " in " ".join(watch.settle(timeout=0))
    assert not watch.settle()


def test_a_bastion_counts_connections_and_logins_over_a_restart(bastion: Sshd) -> None:
    ssh = Ssh(bastion.ssh_config())
    port = bastion.port
    assert ssh.run(command="true").rc == 0
    assert ssh.run("-o", "PubkeyAuthentication=no", "-o", "BatchMode=yes").rc == 255
    bastion.restart()
    assert bastion.port == port
    assert ssh.run(command="true").rc == 0
    assert (bastion.connections(), bastion.logins()) == (3, 2)
    bastion.stop()
    assert ssh.run(command="true").rc == 255


def test_a_run_says_what_it_used(work: Path) -> None:
    busy = "import time\nwhile time.process_time() < 1: pass"
    task = {"command": {"argv": [sys.executable, "-c", busy]}}
    play = {"hosts": "localhost", "gather_facts": False, "tasks": [task]}
    for fresh in (False, True):
        assert run_playbook(work, play, fresh=fresh).ok().processor > 1


def test_a_stop_can_spare_the_connections(bastion: Sshd, work: Path) -> None:
    ssh = Ssh(bastion.ssh_config())
    ssh.open(work / "s")
    bastion.stop(connections=False)
    assert not listens((bastion.host, bastion.port))
    assert ssh.run("-S", str(work / "s"), command="echo still").out == "still\n"
    bastion.start()
    bastion.stop()
    wait_for(lambda: ssh.master_pid(work / "s") is None, "the end of the master")


@pytest.mark.parametrize(
    "options",
    [
        {"PasswordAuthentication": "yes"},
        {"KbdInteractiveAuthentication": "yes", "UsePAM": "yes"},
    ],
)
def test_an_account_logs_in_with_its_password(
    work: Path, account: Account, make_sshd: Callable[..., Sshd], options: dict[str, str]
) -> None:
    bastion = make_sshd(user=account.name, options={**options, "PubkeyAuthentication": "no"})
    ask = work / "ask"
    ask.write_text(f"#!/bin/sh\necho '{account.password}'\n")
    ask.chmod(0o700)
    env = {"SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"}
    said = Ssh(bastion.ssh_config(), env=env).run(command="id -un; pwd")
    assert said.out.split() == [account.name, str(account.home)]
    assert bastion.logins() == 1


def test_services_answer_and_end(work: Path) -> None:
    port = free_port()
    with Echo(port=port) as echo, Echo(work / "e") as unix, Page() as page:
        assert talk(echo.address) == talk(unix.address) == b"hello"
        assert talk(page.address, b"GET / HTTP/1.0\r\n\r\n").endswith(b"behind the bastion\n")
        assert len(echo.seen) == 1
        connect(echo.address).close()
        wait_for(lambda: len(echo.seen) == 2, "a second connection")
    assert not listens(("127.0.0.1", port))
    assert not (work / "e").exists()


def test_a_playbook_is_read_back_as_data(work: Path) -> None:
    tasks = [
        {"name": "changes", "command": "echo {{ word }}"},
        {"name": "fails", "fail": {"msg": "no"}, "ignore_errors": True},
        {"name": "skips", "debug": {"msg": "a"}, "when": False},
        {"name": "undefined", "debug": {"msg": "{{ nowhere }}"}},
    ]
    plays = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
    run = run_playbook(work, plays, extra_vars={"word": "héllo"})
    assert run.task("changes")["stdout"] == "héllo"
    assert run.task("changes").action.endswith("command")
    assert (run.task("fails").failed, run.task("fails").ignored) == (True, True)
    assert run.task("fails").msg == "no"
    assert run.task("skips").event == "skipped"
    assert run.task("undefined").failed
    assert run.failed
    assert run.changed("localhost") == run.changed() == 1
    assert run.stats["localhost"]["failures"] == 1
    assert run_playbook(work, plays, extra_vars={"word": "x"}, check=True).changed() == 0


def test_a_playbook_has_a_home_of_its_own_and_the_collection(work: Path) -> None:
    text = """
- hosts: all
  gather_facts: false
  tasks:
    - name: home
      command: printenv HOME
    - name: collection
      debug:
        msg: "{{ lookup('config', 'COLLECTIONS_PATHS') }}"
"""
    inventory = "one ansible_connection=local\ntwo ansible_connection=local\n"
    run = run_playbook(work, text, inventory=inventory, forks=2).ok()
    assert [one["stdout"] for one in run.tasks("home")] == [str(work / "h")] * 2
    (place,) = run.task("collection", "two")["msg"]
    assert (Path(place) / "ansible_collections/bastion/mux").is_dir()


def test_an_unreachable_host_is_such(work: Path) -> None:
    inventory = (
        f"far ansible_host=127.0.0.1 ansible_port={free_port()} ansible_ssh_args=-F/dev/null\n"
    )
    plays = {"hosts": "all", "gather_facts": False, "tasks": [{"name": "try", "raw": "true"}]}
    run = run_playbook(work, plays, inventory=inventory)
    assert run.task("try").event == "unreachable"
    assert run.stats["far"]["unreachable"] == 1


def test_a_playbook_that_takes_too_long_is_ended(work: Path) -> None:
    plays = {"hosts": "localhost", "gather_facts": False, "tasks": [{"command": "sleep 60"}]}
    with pytest.raises(TimeoutError, match="took more than"):
        run_playbook(work, plays, timeout=2)
    assert os.getcwd() == str(work)


def test_many_accounts_are_removed_even_after_an_interruption(work: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make accounts")
    names = []

    def interrupted() -> None:
        with throwaway_accounts(work, 2) as accounts:
            for account in accounts:
                assert account.home.stat().st_uid == pwd.getpwnam(account.name).pw_uid
                names.append(account.name)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(names) == 2
    assert not {one.pw_name for one in pwd.getpwall()} & set(names)


def test_no_port_is_given_twice_within_a_test() -> None:
    ports = [free_port() for _time in range(500)] + free_ports(500)
    assert len(set(ports)) == 1000
