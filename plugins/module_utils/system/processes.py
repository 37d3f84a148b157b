# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes: when they were started, whether they are gone, their end.

A process is always named by its id *and* its start time, so that a reused id is never taken for
the process that had it. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import traceback
from typing import Any, Callable, List, Mapping, Optional

try:
    import psutil

    PSUTIL_ERROR: Optional[str] = None
except ImportError:
    PSUTIL_ERROR = traceback.format_exc()

from ..model.ledger import SAME_START

#: How often a waiting loop looks, in seconds.
POLL = 0.01


def start_time(pid: int) -> Optional[float]:
    """When the process was started, in seconds since the epoch; ``None`` where it is gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except (psutil.Error, OSError, ValueError):
        return None


def boot_time() -> float:
    """When the system was started, by the clock that :func:`start_time` uses."""
    return float(psutil.boot_time())


def is_running(pid: int, started: float) -> bool:
    """Whether this very process still runs."""
    now = start_time(pid)
    return now is not None and abs(now - started) < SAME_START


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for ``condition``, at most ``timeout`` seconds; what it was at the end."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


def end(pid: int, started: float, *, grace: float) -> bool:
    """End a process: ask, wait ``grace`` seconds, then kill. Whether it is gone.

    A master that is asked ends its jump hosts' ssh (sshconnect.c, ssh_kill_proxy_command); on a
    dead network that would outlive one which is killed.
    """
    for signal_number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        if not is_running(pid, started):
            return True
        try:
            os.kill(pid, signal_number)
            if _is_stopped(pid):
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        if wait_until(lambda: not is_running(pid, started), patience):
            return True
    return not is_running(pid, started)


def _is_stopped(pid: int) -> bool:
    try:
        return str(psutil.Process(pid).status()) == str(psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def start_detached(
    command: List[str], environment: Mapping[str, str], stream: int = subprocess.DEVNULL
) -> None:
    """Start a process that outlives this one, whatever signals that gets.

    :param stream: its standard input and output.
    """
    subprocess.Popen(
        command,
        stdin=stream,
        stdout=stream,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env=environment,
    )


def has_open(pid: int, path: str) -> bool:
    """Whether a process has this file open; not where that may not be seen."""
    try:
        return any(os.path.samefile(one.path, path) for one in psutil.Process(pid).open_files())
    except (psutil.Error, OSError):
        return False


def connections(process: psutil.Process, kind: str) -> List[Any]:
    """The sockets of a process; psutil 6.0 gave the method its new name.

    :raises psutil.Error: they may not be seen.
    """
    method = getattr(process, "net_connections", None) or process.connections
    return list(method(kind))


def names_socket(name: str, socket_path: str) -> bool:
    """Whether a bound name is that of the control socket, or the temporary one ssh gave it."""
    return re.match(re.escape(socket_path) + r"(\.[A-Za-z0-9]{16})?\Z", name) is not None


def with_arguments(arguments: List[str], since: float) -> List[int]:
    """Processes with exactly these arguments that were started at ``since`` or later.

    The program may be a wrapper, which runs ssh under another name or with arguments of its own.
    """
    wanted = arguments[1:]
    found = []
    for process in psutil.process_iter():
        try:
            same = process.cmdline()[1:][-len(wanted) :] == wanted
            if same and process.create_time() >= since - SAME_START:
                found.append(int(process.pid))
        except (psutil.Error, OSError):
            continue
    return found
