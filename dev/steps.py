# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dev/steps.py STEP... : make targets, all of them even when one fails, and say what each took.

A step is a target, or lanes of targets that run side by side: ``a,b+c`` makes a and then b while it
makes c. What lanes print is told apart by the target's name before each line.

Runs on any Python 3: make has nothing else yet.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any


class Steps:
    """What ran, and how it ended."""

    def __init__(self) -> None:
        self.summary: list[tuple[str, bool, float]] = []
        self._writing = threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self.over = False

    def make(self, target: str, side_by_side: bool) -> None:
        """Make one target."""
        begin = time.monotonic()
        if self.over:
            return
        process = subprocess.Popen(
            ["make", "--no-print-directory", "--keep-going", target],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if side_by_side else None,
            stderr=subprocess.STDOUT if side_by_side else None,
        )
        self._running.append(process)
        if process.stdout is not None:
            for line in process.stdout:
                with self._writing:
                    sys.stdout.buffer.write(target.encode() + b" | " + line)
                    sys.stdout.buffer.flush()
        ok = process.wait() == 0
        self._running.remove(process)
        took = time.monotonic() - begin
        self.summary.append((target, ok, took))
        if side_by_side:
            self.say("=== make %s: %s after %d s" % (target, _verdict(ok), took))

    def end(self, *_signal: Any) -> None:
        """End what runs, and begin nothing more. From a terminal make is told as well."""
        self.over = True
        for process in self._running:
            process.terminate()

    def say(self, line: str) -> None:
        """Print a line of our own."""
        with self._writing:
            print(line, flush=True)

    def run(self, step: str) -> None:
        """Make all targets of a step."""
        lanes = [lane.split(",") for lane in step.split("+")]
        side_by_side = len(lanes) > 1

        def follow(lane: list[str]) -> None:
            for target in lane:
                self.make(target, side_by_side)

        threads = [threading.Thread(target=follow, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _verdict(ok: bool) -> str:
    return "ok" if ok else "FAILED"


def main(steps: list[str]) -> int:
    """Run the steps; the status to end with."""
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir))
    begin = time.monotonic()
    done = Steps()
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, done.end)
    for number, step in enumerate(steps, 1):
        done.say("\n=== [%d/%d] make %s" % (number, len(steps), step))
        done.run(step)
        if done.over:
            return 130
    everything = all(ok for _target, ok, _took in done.summary)
    total = ("total", everything, time.monotonic() - begin)
    done.say("\n=== Summary")
    for target, ok, took in [*done.summary, total]:
        done.say("%-12s %-6s %5d s" % (target, _verdict(ok), took))
    return 0 if everything else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
