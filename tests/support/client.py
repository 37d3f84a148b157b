# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The installed ssh as a user runs it: masters, commands to them, and what it said."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil


@dataclasses.dataclass(frozen=True)
class Said:
    """How a command ended, and what it wrote."""

    rc: int
    out: str
    err: str


def alive(pid: int) -> bool:
    """Whether a process runs. One that nobody has collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def clients(port: int) -> list[psutil.Process]:
    """The ssh processes that hold a TCP connection to `port`: masters, orphans and plain ones."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "ssh" and any(
                end.raddr and end.raddr.port == port for end in process.net_connections("tcp")
            ):
                found.append(process)
    return found


def belonging(directory: Path) -> list[psutil.Process]:
    """The live ssh processes that were told of a file below `directory`, wherever they run.

    A master has written its socket's name over its arguments.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == "ssh" and any(f"{directory}/" in w for w in process.cmdline()):
                found.append(process)
    return found


def listeners(pid: int) -> set[tuple[str, int]]:
    """Where process `pid` listens: (address, port)."""
    return {
        (end.laddr.ip, end.laddr.port)
        for end in psutil.Process(pid).net_connections("tcp")
        if end.status == psutil.CONN_LISTEN
    }


class Session:
    """A session in which a remote `cat` says whatever it is told, as long as nothing cuts it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        assert self._line() == b"up\n", "it did not begin"

    def _line(self) -> bytes:
        assert self._process.stdout
        return self._process.stdout.readline()

    def echoes(self, line: bytes = b"hello\n") -> bool:
        """Whether it still works."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()
        return self._line() == line

    def end(self) -> int:
        """End it from here, as `cat` does at the end of its input. Returns the exit status."""
        assert self._process.stdin
        self._process.stdin.close()
        return self.wait()

    def wait(self) -> int:
        """Wait for its end. Returns the exit status, 255 where it was cut."""
        return self._process.wait(10)


class Ssh:
    """Runs `ssh -F config … alias`."""

    def __init__(self, config: Path, alias: str = "bastion", env: Mapping[str, str] | None = None):
        self.config = config
        self.alias = alias
        self.env = {**os.environ, **(env or {})}

    def argv(self, *options: str, command: str | None = None) -> list[str]:
        """The argument list: `options` come before the host, `command` after it."""
        tail = [] if command is None else [command]
        return ["ssh", "-F", str(self.config), *options, "--", self.alias, *tail]

    def run(self, *options: str, command: str | None = None, timeout: float = 10) -> Said:
        """Run it to its end. What goes to the background meanwhile holds files, not pipes."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            rc = subprocess.run(
                self.argv(*options, command=command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.env,
                timeout=timeout,
                check=False,
                start_new_session=True,
            ).returncode
            out.seek(0)
            err.seek(0)
            return Said(rc, out.read(), err.read())

    @contextlib.contextmanager
    def started(
        self, *options: str, command: str | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run it until the end of the block, with pipes to its stdin, stdout and stderr."""
        with subprocess.Popen(
            self.argv(*options, command=command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextlib.contextmanager
    def session(self, socket: Path) -> Iterator[Session]:
        """A session over the master of `socket`, or a login of its own where none answers."""
        with self.started("-S", str(socket), command="echo up; exec cat") as process:
            yield Session(process)

    def control(self, socket: Path, verb: str, *options: str, timeout: float = 10) -> Said:
        """`ssh -O verb` to the master of `socket`."""
        return self.run("-S", str(socket), "-O", verb, *options, timeout=timeout)

    def open(self, socket: Path, *options: str, persist: str = "yes") -> int:
        """Open a master which holds no session (-N). Returns its pid."""
        said = self.run("-M", "-S", str(socket), "-fN", "-o", f"ControlPersist={persist}", *options)
        assert said.rc == 0, said
        pid = self.master_pid(socket)
        assert pid is not None
        return pid

    def master_pid(self, socket: Path) -> int | None:
        """The pid of the master that answers at `socket`, None when none does."""
        found = re.search(r"pid=(\d+)", self.control(socket, "check").err)
        return int(found.group(1)) if found else None
