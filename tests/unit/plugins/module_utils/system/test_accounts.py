# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Acting as another account, for a while and for good."""

from __future__ import annotations

import functools
import os
import pwd
from pathlib import Path
from typing import Any, Callable, List

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.system import accounts, crew
from ansible_collections.bastion.mux.plugins.module_utils.system.accounts import Account

# Threads of pytest-xdist; a module has none.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

ROOT = os.geteuid() == 0
SOMEBODY = next(entry for entry in pwd.getpwall() if entry.pw_uid not in (0, os.geteuid())).pw_name


def test_accounts_are_found_by_name() -> None:
    mine = pwd.getpwuid(os.geteuid())
    assert accounts.myself() == accounts.find(mine.pw_name)
    assert accounts.myself().home == mine.pw_dir
    for name in ("no-such-user", "", "a\0b"):
        with pytest.raises(MuxError, match="no such user"):
            accounts.find(name)


def test_one_can_always_be_oneself() -> None:
    def job() -> Any:
        accounts.become(accounts.myself())
        accounts.stay(accounts.myself())
        return [os.getuid(), os.geteuid()]

    assert crew.alone(job, timeout=30) == [os.getuid(), os.geteuid()]


def test_only_root_can_be_somebody_else() -> None:
    def job(become: Callable[[Account], None]) -> None:
        accounts.stay(accounts.find(SOMEBODY) if ROOT else accounts.myself())
        become(accounts.find("root"))

    for become in (accounts.become, accounts.stay):
        with pytest.raises(MuxError, match="only root"):
            crew.alone(functools.partial(job, become), timeout=30)


@pytest.mark.skipif(not ROOT, reason="only root can be somebody else")
def test_for_a_while_and_for_good(tmp_path: Path) -> None:
    account = accounts.find(SOMEBODY)
    file = tmp_path / "file"
    file.touch()
    os.chown(str(file), account.uid, account.gid)

    def job() -> Any:
        told: List[List[int]] = []
        with open(str(file)) as opened:
            accounts.become(account)
            told.append([os.getuid(), os.geteuid(), os.getegid()])
            with pytest.raises(OSError, match="denied"):
                os.listdir(str(tmp_path))
            # What only root can do, to a file that is open.
            accounts.chown(opened.fileno(), -1, 54321)
            told.append([os.getuid(), os.geteuid(), os.getegid()])
            accounts.stay(account)
            told.append([os.getuid(), os.geteuid(), os.getgid(), os.getegid()])
            with pytest.raises(OSError, match="permitted"):
                accounts.chown(opened.fileno(), -1, 54322)
            for back in (os.setuid, os.seteuid):
                with pytest.raises(OSError, match="permitted"):
                    back(0)
        return told

    for_a_while = [0, account.uid, account.gid]
    assert crew.alone(job, timeout=30) == [
        for_a_while,
        for_a_while,
        [account.uid, account.uid, account.gid, account.gid],
    ]
    assert file.stat().st_gid == 54321
