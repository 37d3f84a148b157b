# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a master writes in the background, beside its socket (``ssh -E``).

The reply to a refused stdio forwarding is "Session open refused by peer" whatever the server said;
its own words are in the master's log alone (channels.c, channel_input_open_failure), and that goes
nowhere once ssh is in the background. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import os

from . import processes

#: Kept at most, in bytes: a line is written for each connection that the server refuses.
_MOST = 1 << 20


def path_of(control_path: str) -> str:
    """Where the log of a master lies."""
    return control_path + ".log"


def begin(control_path: str) -> int:
    """Make the log for a master that is about to be opened; where its first line will be."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path_of(control_path), flags, 0o600)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def size(control_path: str) -> int:
    """Where its next line will be; a log that has grown too large begins anew."""
    with contextlib.suppress(OSError):
        found = os.stat(path_of(control_path), follow_symlinks=False).st_size
        if found <= _MOST:
            return found
        # ssh appends (log.c, log_redirect_stderr_to), so it goes on at the new end.
        os.truncate(path_of(control_path), 0)
    return 0


def since(control_path: str, position: int) -> str:
    """What was written since; nothing for a master of another program."""
    try:
        with open(path_of(control_path), "rb") as log:
            log.seek(position)
            return log.read(65536).decode("utf-8", "replace")
    except OSError:
        return ""


def is_kept_by(control_path: str, pid: int) -> bool:
    """Whether a process has the log open: it is a master that was opened with it."""
    return processes.has_open(pid, path_of(control_path))


def remove(control_path: str) -> None:
    """Remove the log, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path_of(control_path))
