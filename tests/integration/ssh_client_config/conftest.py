# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for the tests of ssh_client_config: people with homes, and what is in these."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import throwaway_account
from tests.support.tasks import Tasks

HOSTS: list[dict[str, Any]] = [
    {
        "host": "bastion",
        "options": {"HostName": "10.0.0.1", "Port": 2222, "ForwardAgent": False},
    },
    {"host": "172.16.*", "options": {"ProxyJump": "bastion"}},
]

BODY = b"""\
Host bastion
    HostName 10.0.0.1
    Port 2222
    ForwardAgent no
Host 172.16.*
    ProxyJump bastion
Match all
"""


def block(name: str = "team", new: str = "", body: bytes = BODY) -> bytes:
    """What the module writes."""
    made = f" (new: {new})" if new else ""
    return (
        f"# BEGIN bastion.mux {name}{made}\n".encode()
        + body
        + f"# END bastion.mux {name}\n".encode()
    )


class Person:
    """An account with a home that is empty at first."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self.home = home
        self.uid = pwd.getpwnam(name).pw_uid
        self.gid = pwd.getpwnam(name).pw_gid
        self.ssh = home / ".ssh"
        self.config = self.ssh / "config"

    def has(self, content: bytes | None = None, *, path: Path | None = None) -> Path:
        """Has a configuration (or another file) with this content, as ssh-keygen would make it."""
        path = path or self.config
        for directory in reversed(path.relative_to(self.home).parents):
            made = self.home / directory
            if not made.exists():
                made.mkdir(mode=0o700)
                self.own(made)
        if content is not None:
            path.write_bytes(content)
            path.chmod(0o600)
            self.own(path)
        return path

    def own(self, path: Path) -> None:
        """Is the owner of it, or of the symbolic link."""
        os.lchown(path, self.uid, self.gid)

    def run(self, *command: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command."""
        return subprocess.run(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
            cwd="/",
            env={"HOME": str(self.home), "USER": self.name, "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **how,
        )

    def effective(self, host: str, *options: str) -> dict[str, str]:
        """What is in force for a host, and it works."""
        said = self.run("ssh", *options, "-G", "--", host)
        assert said.returncode == 0, said
        return dict(line.split(" ", 1) for line in said.stdout.splitlines() if " " in line)

    def tree(self) -> dict[str, object]:
        """All of the home: owner, mode and content of everything in it."""
        return tree(self.home)


def tree(top: Path) -> dict[str, object]:
    """Owner, group, mode and content of everything below a directory, itself included."""
    found: dict[str, object] = {}
    for path in [top, *sorted(top.rglob("*"))]:
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            with path.open("rb") as file:
                content = (file.read(1 << 20), status.st_size)
        found[str(path)] = (status.st_uid, status.st_gid, oct(status.st_mode), content)
    return found


@pytest.fixture
def person(work: Path) -> Iterator[Callable[[], Person]]:
    """`person()` makes an account. They go with the test."""
    if os.getuid() != 0:
        pytest.skip("only root can make accounts, and write what belongs to others")
    work.chmod(0o711)
    with contextlib.ExitStack() as stack:

        def make() -> Person:
            directory = work / f"p{len(list(work.glob('p[0-9]*')))}"
            directory.mkdir()
            account = stack.enter_context(throwaway_account(directory))
            return Person(account.name, account.home)

        yield make


@pytest.fixture
def tasks(work: Path) -> Tasks:
    """Tasks of ssh_client_config, with entries for a bastion and a network behind it."""
    params = {"name": "team", "hosts": HOSTS}
    return Tasks(work, params, "bastion.mux.ssh_client_config")
