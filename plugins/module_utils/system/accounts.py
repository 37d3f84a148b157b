# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts of this machine, and acting as one of them.

Root does nothing in other people's directories: it is them while it works there, so that the
kernel forbids what they may not do themselves. Private to the collection: no promise is made about
it.
"""

from __future__ import annotations

import contextlib
import functools
import grp
import os
import pwd
import sys
from dataclasses import dataclass
from typing import Iterator, List

from ..model.errors import MuxError
from . import crew

#: Seconds to look for a home.
_TIMEOUT = 10.0

#: Shells that let nobody in.
_NO_LOGIN = {"false", "halt", "nologin", "shutdown", "sync", "true"}


@dataclass(frozen=True)
class Account:
    """A user with a home."""

    name: str
    uid: int
    gid: int
    home: str


def find(name: str) -> Account:
    """An account by its name.

    :raises MuxError: ``invalid`` where there is none.
    """
    try:
        found = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise MuxError("invalid", "there is no such user") from None
    return Account(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir)


def named(who: str, *, gone: bool = False) -> List[Account]:
    """The accounts that a name, ``%group`` or ``*`` (all people) stands for.

    Of groups and of all, those who can log in and have a home of their own.

    :param gone: whoever cannot log in any more counts as well.
    :raises MuxError: ``invalid`` where there is no such user or group.
    """
    if who == "*":
        first = _first_uid()
        entries = [entry for entry in pwd.getpwall() if entry.pw_uid >= first]
    elif who.startswith("%"):
        entries = _members(who[1:])
    else:
        return [find(who)]
    accounts = {
        entry.pw_name: Account(entry.pw_name, entry.pw_uid, entry.pw_gid, entry.pw_dir)
        for entry in entries
        if gone or os.path.basename(entry.pw_shell) not in _NO_LOGIN
    }
    jobs = [functools.partial(_has_home, account) for account in accounts.values()]
    # On a file server that is gone nothing is found out in time, and that is for later to report.
    found = crew.run(jobs, timeout=_TIMEOUT, at_once=max(4, 2 * (os.cpu_count() or 1)))
    return [account for account, has in zip(accounts.values(), found) if has is not False]


def _members(group: str) -> List[pwd.struct_passwd]:
    try:
        found = grp.getgrnam(group)
    except (KeyError, ValueError):
        raise MuxError("invalid", "there is no such group") from None
    entries = [entry for entry in pwd.getpwall() if entry.pw_gid == found.gr_gid]
    for name in found.gr_mem:
        # A group may name somebody who is gone.
        with contextlib.suppress(KeyError):
            entries.append(pwd.getpwnam(name))
    return entries


def _first_uid() -> int:
    """The first user id that is a person's, as this machine has it."""
    for path in ("/etc/login.defs", "/usr/etc/login.defs"):
        with contextlib.suppress(FileNotFoundError):
            for words in _words(path):
                if words[0] == "UID_MIN" and words[1:]:
                    return int(words[1], 0)
    return 501 if sys.platform == "darwin" else 1000


def _words(path: str) -> Iterator[List[str]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            words = line.split()
            if words:
                yield words


def _has_home(account: Account) -> bool:
    """Whether it has a home of its own; where that cannot be told it has."""
    try:
        return os.stat(account.home).st_uid == account.uid
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def myself() -> Account:
    """The account that this process runs as.

    :raises MuxError: ``invalid`` where its user id has none.
    """
    try:
        found = pwd.getpwuid(os.geteuid())
    except KeyError:
        raise MuxError("invalid", "user id %d has no account" % os.geteuid()) from None
    return Account(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir)


def become(account: Account) -> None:
    """Act as an account from now on, files and directories included; root can come back.

    The real user id stays root's, so that the user cannot stop or debug this process.

    :raises MuxError: ``invalid`` where only root could.
    """
    os.umask(0o077)
    if os.geteuid() == account.uid:
        return
    if os.geteuid() != 0:
        raise MuxError("invalid", "only root can act as another user: use become")
    os.initgroups(account.name, account.gid)
    os.setegid(account.gid)
    os.seteuid(account.uid)


def stay(account: Account) -> None:
    """Be an account for good: for a process that runs what the user may have written.

    :raises MuxError: ``invalid`` where only root could.
    """
    become(account)
    if os.getuid() != account.uid:
        os.seteuid(os.getuid())
        os.setgid(account.gid)
        os.setuid(account.uid)


def chown(descriptor: int, uid: int, gid: int) -> None:
    """:func:`os.fchown` with all the rights that this process can have.

    A user cannot give a file of his to a group that he is not in, and yet root may have put it
    there.
    """
    acting = os.geteuid()
    os.seteuid(os.getuid())
    try:
        os.fchown(descriptor, uid, gid)
    finally:
        os.seteuid(acting)
