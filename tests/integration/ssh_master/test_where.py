# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master where it runs: in the controller's worker, and as a module on another host."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.playbook import run_playbook
from tests.support.services import Echo, free_port, talk
from tests.support.sshd import Sshd
from tests.support.tasks import SSH_FORWARD, SSH_MASTER, SSH_MASTER_INFO, Tasks


def of_inventory(bastion: Sshd) -> dict[str, Any]:
    """A host whose variables say all that ssh has to know."""
    return {
        "ansible_host": "127.0.0.1",
        "ansible_port": bastion.port,
        "ansible_user": bastion.user,
        "ansible_ssh_private_key_file": str(bastion.identity_file),
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={bastion.known_hosts}",
        "ansible_ssh_extra_args": "-o ServerAliveInterval=44",
    }


root = pytest.mark.skipif(os.getuid() != 0, reason="only root becomes root without a password")
become = {"connection": "local", "become": True, "become_method": "ansible.builtin.su"}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"delegate_to": "localhost"}, id="delegated"),
        pytest.param(become, id="become", marks=root),
    ],
)
def test_as_a_module(
    tasks: Tasks, bastion: Sshd, path: Path, echo: Echo, how: dict[str, Any]
) -> None:
    port = free_port()
    tasks.params |= {
        "control_path": str(path),
        "local": [f"127.0.0.1:{port}:127.0.0.1:{echo.port}"],
    }
    several = [
        tasks.task("check", check=True) | how,
        tasks.task("do") | how,
        tasks.task("again") | how,
        tasks.task("fails", port=1, on_drift="fail") | how | {"ignore_errors": True},
        # What a module opened is known to the action, too.
        tasks.task("in the worker"),
    ]
    run = tasks.play(*several).ok()
    names = ("check", "do", "again", "in the worker")
    assert [run.task(name).changed for name in names] == [True, True, False, False]
    assert run.task("check")["diff"] == run.task("do")["diff"]
    assert run.task("do")["master"]["pid"] == run.task("in the worker")["master"]["pid"]
    assert run.task("fails")["reason"] == "drift"
    assert "Traceback" not in run.stdout + run.stderr
    assert talk(("127.0.0.1", port)) == b"hello"
    assert bastion.logins() == 1
    tasks.play(tasks.task(state="absent", local=None) | how).ok()
    assert os.listdir(path.parent) == []


def test_a_bare_task_takes_everything_from_the_inventory_host(work: Path, bastion: Sshd) -> None:
    play = {
        "hosts": "all",
        "gather_facts": False,
        # It does not apply: the connection is the controller's.
        "become": True,
        "become_user": "nobody",
        "tasks": [{"name": name, SSH_MASTER: None} for name in ("do", "again")],
    }
    hosts = {"one": of_inventory(bastion)}
    run = run_playbook(work, play, inventory={"all": {"hosts": hosts}}).ok()
    master = run.task("do")["master"]
    assert (master["host"], master["port"], master["user"]) == (
        "127.0.0.1",
        bastion.port,
        bastion.user,
    )
    assert (run.task("do").changed, run.task("again").changed) == (True, False)
    assert bastion.logins() == 1
    hosts["one"]["ansible_ssh_extra_args"] = "-o ServerAliveInterval=55 -o TCPKeepAlive=no"
    run = run_playbook(work, play, inventory={"all": {"hosts": hosts}}).ok()
    # A parameter's default counts more than the inventory's arguments.
    assert run.task("do")["diff"]["after"] == "master, new process\ntcpkeepalive no\n"


def test_with_a_host_nothing_is_taken_from_the_inventory(
    work: Path, tasks: Tasks, bastion: Sshd
) -> None:
    hosts = {"one": {**of_inventory(bastion), "ansible_port": 1, "ansible_user": "nobody"}}
    play = {"hosts": "all", "gather_facts": False, "tasks": [tasks.task()]}
    run = run_playbook(work, play, inventory={"all": {"hosts": hosts}}).ok()
    master = run.task("do")["master"]
    assert (master["host"], master["port"], master["user"]) == (
        "bastion",
        bastion.port,
        bastion.user,
    )


def test_a_module_takes_nothing_from_the_inventory(work: Path, bastion: Sshd) -> None:
    task = {"name": "do", SSH_MASTER: None, "delegate_to": "localhost"}
    play = {"hosts": "all", "gather_facts": False, "tasks": [task]}
    run = run_playbook(work, play, inventory={"all": {"hosts": {"one": of_inventory(bastion)}}})
    assert run.task("do")["reason"] == "invalid"
    assert "host or control_path is needed" in run.task("do").msg
    assert bastion.connections() == 0


def test_defaults_of_the_action_group(work: Path, tasks: Tasks, bastion: Sshd) -> None:
    play = {
        "hosts": "localhost",
        "gather_facts": False,
        "module_defaults": {"group/bastion.mux.mux": tasks.params},
        "tasks": [{"name": "do", SSH_MASTER: None}, {"name": "again", SSH_MASTER: {}}],
    }
    run = run_playbook(work, play).ok()
    assert (run.task("do").changed, run.task("again").changed) == (True, False)
    assert run.task("do")["master"]["host"] == "bastion"


@pytest.fixture
def elsewhere(work: Path) -> dict[str, Any]:
    """Variables with which a delegated module runs as if in another container."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can have processes of its own that do not see the others")
    python = work / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.join([*unshare, sys.executable])} "$@"\n')
    python.chmod(0o755)
    return {"ansible_python_interpreter": str(python)}


def test_a_master_of_another_container_is_not_mistaken(
    tasks: Tasks, elsewhere: dict[str, Any], bastion: Sshd
) -> None:
    """They share a directory, and so the socket. Its process id is another process's here."""
    master = tasks.one()["master"]
    rows: list[dict[str, Any]] = [
        tasks.task("present"),
        tasks.task("absent", state="absent", force=True),
        tasks.task("forward", SSH_FORWARD, local=[f"{free_port()}:localhost:{bastion.port}"]),
    ]
    how = {"delegate_to": "localhost", "ignore_errors": True}
    run = tasks.play(*({**row, **how} for row in rows), extra_vars=elsewhere)
    for row in rows:
        assert run.task(row["name"])["reason"] == "invalid", run
        assert "another container" in run.task(row["name"]).msg
    info = tasks.task("info", SSH_MASTER_INFO)
    seen = tasks.play({**info, "delegate_to": "localhost"}, extra_vars=elsewhere).ok()
    (told,) = seen.task("info")["masters"]
    assert (told["alive"], told["pid"], told["reason"]) == (False, None, "invalid")
    assert tasks.one(check=True)["master"]["pid"] == master["pid"]
    assert bastion.logins() == 1
