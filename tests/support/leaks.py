# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test left behind: processes and sockets that belong to its directory."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Callable, Collection
from pathlib import Path

import psutil

from tests.support.waiting import wait_for

MARK = "BASTION_MUX_TEST_DIR"
"""The environment variable that fixtures set to the test's directory."""


class LeakWatch:
    """Remembers what ran before a test in `directory`, and finds what it left afterwards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._before = _everyone()
        # ssh takes the home from the password database: no HOME keeps it away from this one.
        self._ssh_home = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"
        self._ssh_files = _listing(self._ssh_home)

    def processes(self, spared: Collection[int] = ()) -> list[psutil.Process]:
        """New processes that came from this one, or that have to do with the directory.

        The pids in `spared` are not counted.
        """
        me = psutil.Process()
        ours = {process.pid for process in me.children(recursive=True)}
        found = []
        for process in psutil.process_iter():
            try:
                if (process.pid, process.create_time()) in self._before:
                    continue
                if process.pid in spared or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.pid in ours or self._belongs(process):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def sockets(self) -> list[Path]:
        """Unix sockets anywhere below the directory."""
        return [
            path
            for path in sorted(self.directory.rglob("*"))
            if stat.S_ISSOCK(path.lstat().st_mode)
        ]

    def settle(self, spared: Collection[int] = (), timeout: float = 3.0) -> list[str]:
        """What is still there after a grace of `timeout` seconds, in words. Then it is removed."""

        def clean() -> bool:
            return not self.processes(spared) and not self.sockets()

        with contextlib.suppress(AssertionError):
            wait_for(clean, "everything has gone", timeout)
        words = []
        for process in self.processes(spared):
            try:
                words.append(f"process {process.pid}: {' '.join(process.cmdline())}")
                process.kill()
            except psutil.Error:
                continue
        for path in self.sockets():
            words.append(f"socket {path}")
            path.unlink()
        if _listing(self._ssh_home) != self._ssh_files:
            words.append(f"something changed in the real {self._ssh_home}")
        return words

    def _belongs(self, process: psutil.Process) -> bool:
        needle = str(self.directory)
        # ssh and sshd write their title ("ssh: /path [mux]") over argv and environment, so neither
        # is enough alone.
        if any(needle in word for word in process.cmdline()):
            return True
        looks: list[Callable[[], bool]] = [
            lambda: needle in process.cwd(),
            lambda: process.environ().get(MARK) == needle,
            lambda: (
                process.name().startswith("ssh")
                and any(needle in opened.path for opened in process.open_files())
            ),
        ]
        for look in looks:
            try:
                if look():
                    return True
            except psutil.AccessDenied:
                continue
        return False


def _everyone() -> set[tuple[int, float]]:
    everyone = set()
    for process in psutil.process_iter():
        try:
            everyone.add((process.pid, process.create_time()))
        except psutil.Error:
            continue
    return everyone


def _listing(directory: Path) -> dict[str, int]:
    if not directory.is_dir():
        return {}
    return {path.name: path.lstat().st_mtime_ns for path in directory.iterdir()}
