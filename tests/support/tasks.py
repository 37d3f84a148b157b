# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tasks of the modules under test, run by ansible-playbook, and how they repeat."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.playbook import PlaybookResult, TaskResult, run_playbook

SSH_MASTER = "bastion.mux.ssh_master"
SSH_MASTER_INFO = "bastion.mux.ssh_master_info"
SSH_FORWARD = "bastion.mux.ssh_forward"


@dataclasses.dataclass(frozen=True)
class Rows:
    """One task four times: in check mode, for real, again, again in check mode."""

    check: TaskResult
    do: TaskResult
    again: TaskResult
    again_check: TaskResult

    @property
    def changed(self) -> tuple[bool, bool, bool, bool]:
        return (
            self.check.changed,
            self.do.changed,
            self.again.changed,
            self.again_check.changed,
        )

    def diff(self) -> tuple[str, str]:
        """What --check --diff foretold, which is what --diff then showed."""
        assert self.check["diff"] == self.do["diff"]
        assert self.again["diff"]["before"] == self.again["diff"]["after"]
        return self.do["diff"]["before"], self.do["diff"]["after"]


CHANGES = (True, True, False, False)
STAYS = (False, False, False, False)
ALWAYS = (True, True, True, True)


class Tasks:
    """Runs tasks of `module` on localhost; each gets `params` and what it adds to them.

    A parameter that is None is left out.
    """

    def __init__(self, work: Path, params: Mapping[str, Any], module: str = SSH_MASTER) -> None:
        self.work = work
        self.params = dict(params)
        self.module = module

    def task(
        self, name: str = "do", module: str | None = None, *, check: bool = False, **params: Any
    ) -> dict[str, Any]:
        given = {**self.params, **params}
        arguments = {key: value for key, value in given.items() if value is not None}
        task = {"name": name, module or self.module: arguments, "diff": True}
        return {**task, "check_mode": True} if check else task

    def play(self, *tasks: Mapping[str, Any], **how: Any) -> PlaybookResult:
        """Run the tasks; `how` is for run_playbook."""
        play = {"hosts": "localhost", "gather_facts": False, "tasks": list(tasks)}
        return run_playbook(self.work, play, **how)

    def one(self, *, check: bool = False, **params: Any) -> TaskResult:
        """Run one task, which has to succeed."""
        result = self.play(self.task(check=check, **params))
        return result.ok().task("do")

    def fails(self, *, check: bool = False, **params: Any) -> TaskResult:
        """Run one task, which has to fail, and to say why as every failure does."""
        result = self.play(self.task(check=check, **params))
        failed = result.task("do")
        assert failed.event == "failed", result
        assert failed.msg, result
        assert failed["reason"], result
        assert "Traceback" not in result.stdout + result.stderr, result
        return failed

    def rows(self, **params: Any) -> Rows:
        """Run one task four times in one play."""
        names = [field.name for field in dataclasses.fields(Rows)]
        tasks = [self.task(name, check=name.endswith("check"), **params) for name in names]
        result = self.play(*tasks).ok()
        return Rows(**{name: result.task(name) for name in names})


def close_all(directory: Path) -> None:
    """End every master that listens below `directory`. An orphan is not found this way."""
    for path in sorted(directory.rglob("*")):
        if path.is_socket():
            name = str(path).replace("%", "%%")
            command = ["ssh", "-F", "none", "-S", name, "-O", "exit", "--", "any"]
            subprocess.run(command, capture_output=True, timeout=10, check=False)
            # Its master may be about to remove it.
            path.unlink(missing_ok=True)
