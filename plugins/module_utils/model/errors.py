# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The one error that crosses layers: a sentence for a person and a reason for a playbook.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

from typing import Any

#: Every reason a task of this collection can fail with. Documented one by one in
#: docs/docsite/rst/troubleshooting.rst; a unit test compares the two.
REASONS = frozenset(
    {
        "auth_failed",
        "control_dir_insecure",
        "control_path_too_long",
        "destination_unreachable",
        "drift",
        "forward_conflict",
        "forward_refused",
        "host_key_changed",
        "host_key_unknown",
        "invalid",
        "listen_in_use",
        "not_running",
        "ssh_missing",
        "timeout",
        "unmanaged",
        "unreachable",
        "wedged",
    }
)


class MuxError(Exception):
    """A failure that an edge turns into a failed task.

    :param reason: one of :data:`REASONS`.
    :param message: what went wrong and what to do about it, without any secret.
    :param details: further return values of the failed task, such as ``forwards``.
    """

    def __init__(self, reason: str, message: str, **details: Any) -> None:
        if reason not in REASONS:
            raise ValueError("unknown failure reason %r" % reason)
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.details = details
