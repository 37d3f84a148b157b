# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Accounts of this machine, and acting as one of them.

Root does nothing in other people's directories: it is them while it works there, so that the
kernel forbids what they may not do themselves. Private to the collection: no promise is made about
it.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from ..model.errors import MuxError


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
