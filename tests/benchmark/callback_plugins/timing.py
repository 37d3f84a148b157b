# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A callback that writes when each task began: it costs every task the same."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: timing
type: notification
short_description: Write when tasks begin
description: For benchmarks. The file's name is in the environment variable BASTION_MUX_TIMING.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc, unused-ignore]
    """Appends to the file named by BASTION_MUX_TIMING."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "timing"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, task: str | None, **more: Any) -> None:
        with open(os.environ["BASTION_MUX_TIMING"], "a", encoding="utf-8") as record:
            record.write(json.dumps({"at": time.monotonic(), "task": task, **more}) + "\n")

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self._write(None)

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self._write(task.get_name())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        hosts = [stats.summarize(host) for host in stats.processed]
        failed = sum(bool(host["unreachable"] or host["failures"]) for host in hosts)
        self._write(None, changed=sum(host["changed"] for host in hosts), failed=failed)
