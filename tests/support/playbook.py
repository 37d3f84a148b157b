# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run ansible-playbook on the collection of this checkout, and read its results as data."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.preloaded import Run

CHECKOUT = Path(__file__).resolve().parents[2]
PLUGINS = Path(__file__).resolve().parent / "callback_plugins"


def collections_path() -> Path:
    """The folder with `ansible_collections/bastion/mux` in it.

    That is where the checkout lies in such a tree; else the tree of symlinks that `make setup`
    makes; else ANSIBLE_COLLECTIONS_PATH.
    """
    if CHECKOUT.parts[-3:] == ("ansible_collections", "bastion", "mux"):
        return CHECKOUT.parents[2]
    places = [str(CHECKOUT / ".tree")]
    places += os.environ.get("ANSIBLE_COLLECTIONS_PATH", "").split(os.pathsep)
    for place in filter(None, places):
        if (Path(place) / "ansible_collections/bastion/mux").is_dir():
            return Path(place)
    raise AssertionError("no tree ansible_collections/bastion/mux: run 'make setup'")


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What one task did on one host. `event` is ok, failed, unreachable or skipped."""

    host: str
    task: str
    action: str
    event: str
    ignored: bool
    result: dict[str, Any]

    @property
    def changed(self) -> bool:
        return bool(self.result.get("changed", False))

    @property
    def failed(self) -> bool:
        return self.event in ("failed", "unreachable")

    @property
    def msg(self) -> str:
        return str(self.result.get("msg", ""))

    def __getitem__(self, key: str) -> Any:
        return self.result[key]


@dataclasses.dataclass(frozen=True)
class PlaybookResult:
    """What a run of ansible-playbook did. `stdout` is what its user saw.

    `processor` are the seconds that it used, with all that it started and waited for.
    """

    rc: int
    stdout: str
    stderr: str
    results: list[TaskResult]
    stats: dict[str, dict[str, int]]
    processor: float

    @property
    def failed(self) -> bool:
        return self.rc != 0

    def tasks(self, name: str | None = None, host: str | None = None) -> list[TaskResult]:
        """The results in order, of the task called `name` and of `host` where these are given."""
        return [
            one
            for one in self.results
            if (name is None or one.task == name) and (host is None or one.host == host)
        ]

    def task(self, name: str, host: str | None = None) -> TaskResult:
        """The one result of the task called `name`."""
        found = self.tasks(name, host)
        assert len(found) == 1, f"{len(found)} results of {name!r}\n{self}"
        return found[0]

    def changed(self, host: str | None = None) -> int:
        """How many tasks changed something, on `host` or on all of them."""
        hosts = self.stats if host is None else [host]
        return sum(self.stats[one]["changed"] for one in hosts)

    def ok(self) -> PlaybookResult:
        """Itself, after an assertion that the run succeeded."""
        assert self.rc == 0, str(self)
        return self

    def __str__(self) -> str:
        return f"ansible-playbook ended with {self.rc}\n{self.stdout}\n{self.stderr}"


def ansible_environment(directory: Path, **more: str) -> dict[str, str]:
    """An environment for Ansible's commands which leaves everything of this user's alone."""
    home = directory / "h"
    home.mkdir(mode=0o700, exist_ok=True)
    config = directory / "ansible.cfg"
    config.touch()
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ANSIBLE_", "SSH_", "LC_", "PYTEST_")) and key != "PYTHONPATH"
    }
    return {
        **kept,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_CONFIG": str(config),
        "ANSIBLE_COLLECTIONS_PATH": str(collections_path()),
        "ANSIBLE_CALLBACK_PLUGINS": str(PLUGINS),
        "ANSIBLE_CALLBACKS_ENABLED": "record",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
        # Its discovery would cost each play a second ssh session.
        "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
        "BASTION_MUX_RECORD": str(directory / "record.jsonl"),
        **more,
    }


Plays = str | Path | Mapping[str, Any] | Sequence[Mapping[str, Any]]
Inventory = str | Path | Mapping[str, Any]


def run_playbook(
    directory: Path,
    plays: Plays,
    *,
    inventory: Inventory | None = None,
    extra_vars: Mapping[str, Any] | None = None,
    check: bool = False,
    diff: bool = False,
    verbosity: int = 0,
    forks: int | None = None,
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    timeout: float = 120.0,
    fresh: bool = False,
) -> PlaybookResult:
    """Run `plays` from `directory`, which also gets HOME (`h`) and ansible.cfg.

    `plays` is the text of a playbook, one play or several as data, a file, or the FQCN of a
    playbook in a collection (`str` with no newline). `inventory` is the text of an INI inventory,
    data as in a YAML one, or a file; without it there is localhost over a local connection.
    A `fresh` run has loaded nothing before its start, as a user's (see tests.support.preloaded).
    """
    run = _Numbered(directory)
    record = run.file("record", "jsonl")
    arguments = ["-i", str(_inventory(run, inventory))]
    if extra_vars is not None:
        variables = run.file("vars", "json")
        variables.write_text(json.dumps(extra_vars))
        arguments += ["-e", f"@{variables}"]
    if check:
        arguments.append("--check")
    if diff:
        arguments.append("--diff")
    if verbosity:
        arguments.append("-" + "v" * verbosity)
    if forks is not None:
        arguments += ["--forks", str(forks)]
    arguments += [*args, str(_playbook(run, plays))]
    world = ansible_environment(directory, **{"BASTION_MUX_RECORD": str(record), **(env or {})})
    fresh = fresh or any(name.startswith("PYTHON") for name in env or {})
    rc, stdout, stderr, processor = Run(arguments, directory, world, fresh).communicate(timeout)
    results, stats = _read(record)
    return PlaybookResult(rc, stdout, stderr, results, stats, processor)


class _Numbered:
    """Names for the files of one run, so that each run's are left to look at."""

    def __init__(self, directory: Path) -> None:
        # Runs may begin at the same time.
        for number in itertools.count(1):
            self.directory = directory / f"play-{number}"
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir()
                break

    def file(self, stem: str, suffix: str) -> Path:
        return self.directory / f"{stem}.{suffix}"


def _inventory(run: _Numbered, inventory: Inventory | None) -> Path:
    if inventory is None:
        inventory = "localhost ansible_connection=local\n"
    if isinstance(inventory, Path):
        return inventory
    if isinstance(inventory, str):
        path = run.file("inventory", "ini")
        path.write_text(inventory)
    else:
        path = run.file("inventory", "json")
        path.write_text(json.dumps(inventory))
    return path


def _playbook(run: _Numbered, plays: Plays) -> str | Path:
    if isinstance(plays, Path) or (isinstance(plays, str) and "\n" not in plays):
        return plays
    path = run.file("playbook", "yml")
    if isinstance(plays, str):
        path.write_text(plays)
    else:
        # JSON is YAML.
        path.write_text(json.dumps([plays] if isinstance(plays, Mapping) else list(plays)))
    return path


def _read(record: Path) -> tuple[list[TaskResult], dict[str, dict[str, int]]]:
    results: list[TaskResult] = []
    stats: dict[str, dict[str, int]] = {}
    if record.exists():
        for line in record.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry.pop("event") == "stats":
                stats = entry["stats"]
            else:
                results.append(TaskResult(event=json.loads(line)["event"], **entry))
    return results, stats
