# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runs of Ansible that use a master which is to be closed with the last of them.

A file for each such master lists them by process id and start time. A process of its own, which
neither the end of a run nor an interrupt touches, waits for them and closes the master: a run that
is killed could not. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TextIO

#: One file for each such master. The directory is there as long as there is any.
DIRECTORY = "~/.cache/bastion.mux.runs"

#: Added to a file for the lock of the process that waits.
_WAITS = ".waits"

#: How often it looks, in seconds.
_POLL = 0.25

Run = list[object]


def use(control_path: str, pid: int, *, close: bool = False) -> None:
    """Note that a run uses a master, where anybody waits to close it.

    :param pid: the run's process.
    :param close: whether it is to be closed after the last run.
    """
    name = hashlib.sha256(os.fsencode(control_path)).hexdigest()[:40]
    path = os.path.join(os.path.expanduser(DIRECTORY), name)
    if close:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with _held(path, os.O_CREAT if close else 0) as file:
        if file is None:
            return
        runs, run = _runs(file), _run(pid)
        if run is not None and run not in runs:
            file.seek(0)
            json.dump([*runs, run], file)
            file.truncate()
    if close:
        # Imports what takes longer than all of this: once for each master.
        from ansible_collections.bastion.mux.plugins.plugin_utils import opening

        opening.start(__file__, path, control_path)


@contextlib.contextmanager
def _held(path: str, flags: int) -> Iterator[TextIO | None]:
    """The file of a master, locked; ``None`` where there is none."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
        except FileNotFoundError:
            yield None
            return
        with open(descriptor, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had the lock before may have removed the file.
            if os.fstat(descriptor).st_nlink:
                yield file
                return


def _runs(file: TextIO) -> list[Run]:
    """Those that are in a file."""
    file.seek(0)
    try:
        return [list(run) for run in json.load(file)]
    except (ValueError, TypeError):
        return []


def _run(pid: int) -> Run | None:
    """A process with what tells it from another one of its id; ``None`` where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # proc(5): the name in parentheses may hold anything; then the state, as the third.
            words = file.read().rpartition(b")")[2].split()
        return None if words[0] == b"Z" else [pid, int(words[19])]
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return [pid, 0]


def wait(path: str, control_path: str) -> None:
    """Close a master when the last run has ended that uses it."""
    with open(path + _WAITS, "w", encoding="utf-8") as waits:
        try:
            fcntl.flock(waits, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody else does
        while not _closed(path, control_path):
            time.sleep(_POLL)
        with contextlib.suppress(OSError):
            os.unlink(path + _WAITS)
            os.rmdir(os.path.dirname(path))


def _closed(path: str, control_path: str) -> bool:
    with _held(path, 0) as file:
        if file is None:
            return True
        # A run that begins to use it now waits for the lock, and opens another one then.
        if any(_run(int(str(run[0]))) == run for run in _runs(file)):
            return False
        from ansible_collections.bastion.mux.plugins.plugin_utils import opening

        opening.closed(control_path)
        os.unlink(path)
        return True


if __name__ == "__main__":
    wait(*sys.argv[1:])
