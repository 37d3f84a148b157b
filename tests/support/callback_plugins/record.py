# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A callback that writes each task's result for each host as one line of JSON."""

from __future__ import annotations

import json
import os
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: record
type: notification
short_description: Write every result to a file
description: For tests. The file's name is in the environment variable BASTION_MUX_RECORD.
"""


class CallbackModule(CallbackBase):  # type: ignore[misc, unused-ignore]
    """Appends to the file named by BASTION_MUX_RECORD."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "record"
    CALLBACK_NEEDS_ENABLED = True

    def _write(self, **entry: Any) -> None:
        with open(os.environ["BASTION_MUX_RECORD"], "a", encoding="utf-8") as record:
            record.write(json.dumps(entry, default=repr) + "\n")

    def _result(self, event: str, result: Any, ignored: bool = False) -> None:
        if hasattr(result, "task"):
            host, task, data = result.host, result.task, result.result
        else:  # before ansible-core 2.19
            host, task, data = result._host, result._task, result._result
        self._write(
            event=event,
            host=host.get_name(),
            task=task.get_name(),
            action=str(task.action),
            ignored=ignored,
            result=dict(data),
        )

    def v2_runner_on_ok(self, result: Any) -> None:
        self._result("ok", result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._result("failed", result, bool(ignore_errors))

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self._result("unreachable", result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self._result("skipped", result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        self._write(
            event="stats", stats={host: stats.summarize(host) for host in sorted(stats.processed)}
        )
