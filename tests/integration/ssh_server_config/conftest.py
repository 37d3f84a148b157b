# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of ssh_server_config: an sshd whose configuration may be changed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.client import Ssh
from tests.support.sshd import Sshd, sshd_path
from tests.support.tasks import Tasks
from tests.support.waiting import wait_for

#: What a login says where the sshd has read the change; the client asks for "old".
NEW = {"ForceCommand": "echo new"}


class Server:
    """An sshd with its configuration, as the module is told about it."""

    def __init__(self, sshd: Sshd) -> None:
        self.sshd = sshd
        self.config = sshd.directory / "sshd_config"
        self.drop_in = sshd.directory / "sshd_config.d" / "00-bastion.mux.conf"
        self.directory = sshd.directory / "files"
        self.pending = sshd.directory / "sshd_config.bastion.mux-pending"
        self.ssh = Ssh(sshd.ssh_config())
        self.params = {
            "config_path": str(self.config),
            "drop_in": str(self.drop_in),
            "directory": str(self.directory),
        }

    def inventory(self, **more: Any) -> dict[str, Any]:
        """This sshd as the host of an inventory, each task over a connection of its own."""
        arguments = f"-F {self.ssh.config} -o ControlMaster=no -o ControlPath=none"
        host = {
            "ansible_connection": "ssh",
            "ansible_host": "bastion",
            "ansible_ssh_args": arguments,
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        return {"all": {"hosts": {"localhost": {**host, **more}}}}

    def has(self, content: bytes, *, where: str = "after") -> bytes:
        """Has this in its configuration, before or after what it needs to run."""
        own = self.config.read_bytes()
        self.config.write_bytes(content + own if where == "before" else own + content)
        return self.config.read_bytes()

    def drops(self, name: str, content: str) -> Path:
        """Has another drop-in, and reads all of them first."""
        path = self.drop_in.parent / name
        path.parent.mkdir(mode=0o755, exist_ok=True)
        path.write_text(content)
        include = f"Include {path.parent}/*.conf\n".encode()
        if not self.config.read_bytes().startswith(include):
            self.has(include, where="before")
        return path

    def login(self) -> str:
        """What a fresh login says."""
        said = self.ssh.run("-o", "ControlPath=none", command="echo old", timeout=20)
        assert said.rc == 0, said
        return said.out.strip()

    def timers(self) -> list[psutil.Process]:
        """The processes that wait to undo a change."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if f"{self.pending}/undo.py" in process.cmdline():
                    found.append(process)
        return found

    def tree(self) -> dict[str, object]:
        """Owner, mode and content of all that is about its configuration."""
        found: dict[str, object] = {}
        tops = [self.config, self.drop_in.parent, self.directory]
        beside = sorted(self.config.parent.glob("sshd_config*bastion*"))
        for top in [*tops, *beside]:
            for path in [top, *sorted(top.rglob("*"))] if os.path.lexists(top) else []:
                status = path.lstat()
                content = path.read_bytes() if path.is_file() else None
                found[str(path)] = (status.st_uid, status.st_gid, oct(status.st_mode), content)
        return found

    def effective(self, user: str = "root") -> dict[str, str]:
        """What is in force, as sshd itself reads the files."""
        program = sshd_path()
        assert program
        given = f"user={user},host=localhost,addr=127.0.0.1"
        said = subprocess.run(
            [program, "-T", "-C", given, "-f", str(self.config)],
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(line.split(" ", 1) for line in said.stdout.splitlines() if " " in line)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The listener."""
        assert self.sshd.process is not None
        return self.sshd.process

    def until_undone(self) -> dict[str, str]:
        """Wait for the dead man's switch; what it tells."""
        note = self.pending / "undone.json"
        wait_for(note.exists, "the change is undone", 30)
        wait_for(lambda: not self.timers(), "the process has ended")
        told: dict[str, str] = json.loads(note.read_text())
        return told


@pytest.fixture
def make_server(make_sshd: Callable[..., Sshd]) -> Callable[..., Server]:
    """`make_server(**arguments of Sshd)` starts an sshd that a change is told to."""
    if os.getuid() != 0:
        pytest.skip("only root can change sshd's configuration")
    return lambda **arguments: Server(make_sshd(**arguments))


@pytest.fixture
def server(make_server: Callable[..., Server]) -> Server:
    """A running sshd."""
    return make_server()


@pytest.fixture
def tasks(work: Path, server: Server) -> Tasks:
    """Tasks of ssh_server_config for that sshd; they set NEW unless told otherwise."""
    params = {**server.params, "options": NEW}
    return Tasks(work, params, "bastion.mux.ssh_server_config")
