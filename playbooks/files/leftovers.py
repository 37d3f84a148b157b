#!/usr/bin/env python
# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count what the demo has running and lying around: `leftovers.py DIRECTORY [SEEN]`.

Prints as JSON how many processes, sockets, ledgers and other files of the bastion (``b``) and of
the masters (``m``) there are. What it prints as ``seen`` is given to the next call, which then also
finds those processes that tell nothing of the directory, and waits a moment for all to end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

GRACE = 5.0


def identity(process: psutil.Process) -> str:
    return f"{process.pid} {process.create_time():.2f}"


def processes(directory: str, seen: set[str]) -> list[psutil.Process]:
    """Those that were seen before, those that name the directory, and the children of both."""
    skipped = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if process.pid in skipped or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if identity(process) in seen or any(directory in word for word in process.cmdline()):
                for one in (process, *process.children(recursive=True)):
                    found.setdefault(one.pid, one)
        except psutil.Error:
            continue
    return [process for process in found.values() if process.is_running()]


def main() -> int:
    directory = Path(sys.argv[1])
    seen = set(json.loads(sys.argv[2])) if len(sys.argv) > 2 else set()
    deadline = time.monotonic() + (GRACE if seen else 0)
    running = processes(str(directory), seen)
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
        running = processes(str(directory), seen)
    paths = [path for name in ("b", "m") for path in (directory / name).rglob("*")]
    paths += [path for path in directory.glob("*") if path.is_socket()]
    sockets = [path for path in paths if path.is_socket()]
    ledgers = [path for path in paths if path.parent.name == "m" and path.suffix == ".json"]
    json.dump(
        {
            "processes": len(running),
            "sockets": len(sockets),
            "ledgers": len(ledgers),
            "files": len(paths) - len(sockets) - len(ledgers),
            "seen": [identity(process) for process in running],
        },
        sys.stdout,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
