# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays whose tasks are timed one by one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.playbook import Inventory, collections_path, run_playbook

PLUGINS = Path(__file__).resolve().parent / "callback_plugins"

ASSERT = {"ansible.builtin.assert": {"that": "true", "quiet": True}}
"""The least that a task does: in the controller's worker process, nothing read or started."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """One run of ansible-playbook: all of it, its tasks by name, the hosts that failed.

    `processor` are the seconds of a processor that it used.
    """

    seconds: float
    processor: float
    tasks: dict[str, list[float]]
    changed: int
    failed: int


def play(*tasks: Mapping[str, Any], hosts: str = "all", **more: Any) -> dict[str, Any]:
    """A play that gathers no facts."""
    return {"hosts": hosts, "gather_facts": False, "tasks": list(tasks), **more}


def run(
    work: Path,
    plays: Sequence[Mapping[str, Any]],
    *,
    inventory: Inventory | None = None,
    forks: int | None = None,
    collections: Sequence[Path] = (),
    env: Mapping[str, str] | None = None,
    failing: bool = False,
) -> Timed:
    """Run plays, which have to succeed unless `failing`. A task lasts until the next one begins.

    `collections` are folders with peers in them, beside the one with this collection.
    """
    record = work / "timing.jsonl"
    record.unlink(missing_ok=True)
    given = {
        "ANSIBLE_CALLBACK_PLUGINS": str(PLUGINS),
        "ANSIBLE_CALLBACKS_ENABLED": "timing",
        "BASTION_MUX_TIMING": str(record),
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(map(str, [collections_path(), *collections])),
        **(env or {}),
    }
    began = time.monotonic()
    result = run_playbook(
        work, plays, inventory=inventory, forks=forks, env=given, timeout=600, fresh=True
    )
    seconds = time.monotonic() - began
    if not failing:
        result.ok()
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    tasks: dict[str, list[float]] = {}
    for entry, following in itertools.pairwise(entries):
        if entry["task"] is not None:
            tasks.setdefault(entry["task"], []).append(following["at"] - entry["at"])
    return Timed(seconds, result.processor, tasks, entries[-1]["changed"], entries[-1]["failed"])
