# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many masters: one sshd on loopback that has as many names as are wanted."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.benchmark import bare
from tests.support.sshd import Sshd
from tests.support.waiting import wait_for
from tests.support.workdir import short_dir


class Fleet:
    """`count` bastions, called h0000 and so on, each with a master of its own.

    The names are one sshd's; the configuration gives each a control path by its name (`%n`).
    """

    def __init__(self, work: Path, sshd: Sshd, count: int) -> None:
        self.work = work
        self.sshd = sshd
        self.hosts = [f"h{number:04}" for number in range(count)]
        self.sockets = work / "c"
        self.sockets.mkdir(mode=0o700, exist_ok=True)
        self.config = sshd.ssh_config(
            alias="h*",
            options={
                "ControlMaster": "auto",
                "ControlPersist": "yes",
                "ControlPath": str(self.sockets / "%n"),
            },
        )

    @property
    def inventory(self) -> dict[str, Any]:
        return {"all": {"hosts": {host: {} for host in self.hosts}}}

    def module_defaults(self) -> dict[str, Any]:
        """For a play whose hosts are the bastions."""
        return {"module_defaults": {"group/bastion.mux.mux": {"ssh_config": str(self.config)}}}

    def path(self, host: str) -> Path:
        return self.sockets / host

    def open(self, parallel: int, hosts: Sequence[str] | None = None) -> None:
        """Open masters as one would without Ansible: `xargs -P` over `ssh -fN`."""
        command = ["xargs", "-P", str(parallel), "-n", "1", "ssh", "-F", str(self.config), "-fN"]
        subprocess.run(
            command,
            input="\n".join(self.hosts if hosts is None else hosts),
            text=True,
            check=True,
            stdout=subprocess.DEVNULL,
            # The masters keep it.
            stderr=subprocess.DEVNULL,
            # As ansible-playbook is run: a system may share out its time by session.
            start_new_session=True,
        )

    def shell(self, command: str) -> None:
        """Run a loop of the shell over `ssh`, spelled `$SSH`."""
        subprocess.run(
            ["sh", "-ec", command],
            env={**os.environ, "SSH": f"ssh -F {self.config}"},
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def masters(self) -> dict[Path, psutil.Process]:
        """The masters that answer, by their sockets."""
        found = {}
        for path in sorted(self.sockets.iterdir()):
            if path.is_socket():
                with contextlib.suppress(ConnectionRefusedError):
                    found[path] = psutil.Process(bare.pid(path))
        return found

    def end(self) -> None:
        """End every master."""
        masters = self.masters()
        for path in masters:
            bare.terminate(path)
        psutil.wait_procs(masters.values(), 60)

    def close(self) -> None:
        """End every master, and leave everything as it was before they were opened."""
        self.end()
        # The logouts would run into what is measured next.
        wait_for(lambda: not self.sshd.processes(), "the sshd has no connection any more", 60)
        for path in self.sockets.iterdir():
            path.unlink()


@contextlib.contextmanager
def fleet(count: int) -> Iterator[Fleet]:
    """A fleet whose masters are not open yet, in a directory of its own."""
    options = {"MaxStartups": "2000", "MaxSessions": "100"}
    with short_dir() as work, Sshd(work, options=options, addresses=["127.0.0.1"]) as sshd:
        made = Fleet(work, sshd, count)
        try:
            yield made
        finally:
            made.end()
