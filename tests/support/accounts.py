# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throwaway accounts: one for the ways to log in that need a password, and many of them."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Account:
    name: str
    password: str
    home: Path


@contextlib.contextmanager
def throwaway_account(directory: Path) -> Iterator[Account]:
    """An account with a known password, its home below `directory`. Only root can have one."""
    assert os.getuid() == 0
    account = Account(f"bm{secrets.token_hex(4)}", secrets.token_urlsafe(12), directory / "home")
    # Its session has to reach its home, and sshd 10.6 opens each folder above it to put an agent's
    # socket there ("mkdir_path: open" in its log). The control sockets beside it are private.
    directory.chmod(0o755)
    add = ["useradd", "--no-log-init", "--create-home", "--home-dir", str(account.home)]
    change(*add, "--skel", "/nonexistent", "--shell", "/bin/sh", account.name)
    try:
        change("chpasswd", text=f"{account.name}:{account.password}\n")
        yield account
    finally:
        # Its last session may not have ended yet: force.
        change("userdel", "--force", account.name)


@contextlib.contextmanager
def throwaway_accounts(directory: Path, count: int) -> Iterator[list[Account]]:
    """Many accounts, made by one `newusers`; their homes below `directory` are empty."""
    assert os.getuid() == 0
    directory.chmod(0o755)
    prefix = f"bm{secrets.token_hex(3)}"
    accounts = [
        Account(name, secrets.token_urlsafe(12), directory / name)
        for name in (f"{prefix}{number:03}" for number in range(count))
    ]
    lines = [f"{one.name}:{one.password}:::{one.name}:{one.home}:/bin/sh\n" for one in accounts]
    try:
        change("newusers", text="".join(lines))
        yield accounts
    finally:
        made = {one.pw_name for one in pwd.getpwall()}
        for account in accounts:
            if account.name in made:
                change("userdel", "--force", account.name)


def change(*command: str, text: str = "") -> None:
    """Change the accounts; tests that run beside this one may hold the lock of /etc/passwd."""

    def done() -> bool:
        said = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert said.returncode == 0 or "lock" in said.stderr, said.stderr
        return said.returncode == 0

    wait_for(done, f"{command[0]} succeeds", 30)
