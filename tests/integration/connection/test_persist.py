# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a bastion's master when the last run ends that uses it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.client import clients
from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.preloaded import Run
from tests.support.sshd import Sshd
from tests.support.waiting import stays, wait_for

NO: dict[str, Any] = {"ansible_bastion_persist": False}


class Runs:
    """Runs that wait on their target until they are let go."""

    def __init__(self, work: Path, target: Sshd, bastion: Sshd) -> None:
        self.work = work
        self.bastion = bastion
        hosts = {
            "target": {
                **target.variables(),
                "ansible_connection": "bastion.mux.ssh",
                "ansible_bastion": "bastion",
            },
            "bastion": bastion.variables(),
        }
        self.inventory = {"all": {"hosts": hosts}}
        self.threads: dict[str, threading.Thread] = {}
        self.results: dict[str, PlaybookResult] = {}

    def run(self, *tasks: dict[str, Any], **variables: Any) -> PlaybookResult:
        play = {"hosts": "target", "gather_facts": False, "vars": variables, "tasks": list(tasks)}
        return run_playbook(self.work, play, inventory=self.inventory)

    def start(self, name: str, end: str = "true", **variables: Any) -> None:
        """A run that has begun its second task, over the connection of the first one."""
        here = self.work / name
        wait = f"touch {here}; while ! test -e {here}.go; do sleep 0.05; done; {end}"
        tasks = {"name": "first", "raw": "true"}, {"name": "wait", "raw": wait}

        def run() -> None:
            self.results[name] = self.run(*tasks, **variables)

        self.threads[name] = threading.Thread(target=run)
        self.threads[name].start()
        wait_for((self.work / name).exists, f"{name} has begun", 30)

    def let_go(self, name: str) -> PlaybookResult:
        (self.work / f"{name}.go").touch()
        self.threads[name].join()
        return self.results[name]

    def masters(self) -> list[psutil.Process]:
        """The bastion's clients."""
        return clients(self.bastion.port)


@pytest.fixture
def runs(work: Path, make_sshd: Callable[..., Sshd], bastion: Sshd) -> Runs:
    return Runs(work, make_sshd(name="target"), bastion)


def closed(runs: Runs) -> bool:
    return not runs.masters() and not list((runs.work / "h/.ansible/mux").iterdir())


def test_the_last_run_closes_it(runs: Runs) -> None:
    runs.start("one", **NO)
    # It says nothing of an end, and its connection to the target is there already.
    runs.start("other", end="false")
    runs.let_go("one").ok()
    stays(runs.masters, "the master, which another run uses", 1.0)
    assert runs.let_go("other").failed
    wait_for(lambda: closed(runs), "the master has been closed")
    assert runs.bastion.logins() == 1
    # One that was there before is none of its own.
    runs.run({"name": "do", "raw": "true"}).ok()
    runs.run({"name": "do", "raw": "true"}, **NO).ok()
    stays(runs.masters, "the master that another run has left", 1.0)
    assert not (runs.work / "h/.cache/bastion.mux.runs").exists()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended(runs: Runs, how: signal.Signals) -> None:
    runs.start("one", **NO)
    (run,) = Run.running
    ansible = psutil.Process(run.pid)
    workers = ansible.children(recursive=True)
    ansible.send_signal(how)
    runs.threads["one"].join(20)
    for worker in workers:
        if worker.is_running():
            worker.kill()
    wait_for(lambda: closed(runs), "the master has been closed")
