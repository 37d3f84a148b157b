# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of a control socket: made for its user alone, or refused.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import os
import stat

from ..model.errors import MuxError


def check(directory: str, of: str = "control_path") -> bool:
    """Whether the directory exists; a directory that others could change is refused.

    Whoever can rename or replace the directory, or any of those above it, can put a socket of
    his own in our place and read what we send to it.

    :param of: the parameter that asked for it.
    :raises MuxError: ``control_dir_insecure``.
    """
    me = os.geteuid()
    path = "/"
    names = [name for name in directory.split("/") if name]
    seen_links = 0
    while names:
        name = names.pop(0)
        if name in (".", ""):
            continue
        path = os.path.dirname(path) if name == ".." else os.path.join(path, name)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _refusal(path, of, str(error)) from None
        if status.st_uid not in (0, me):
            kind = "symbolic link" if stat.S_ISLNK(status.st_mode) else "directory"
            raise _refusal(
                directory, of, "the %s %s belongs to user id %d" % (kind, path, status.st_uid)
            )
        if stat.S_ISLNK(status.st_mode):
            seen_links += 1
            if seen_links > 40:
                raise _refusal(directory, of, "too many symbolic links")
            link = os.readlink(path)
            names = [part for part in link.split("/") if part] + names
            path = "/" if link.startswith("/") else os.path.dirname(path)
            continue
        if not stat.S_ISDIR(status.st_mode):
            raise _refusal(directory, of, "%s is not a directory" % path)
        last = not names
        if last and status.st_uid != me:
            raise _refusal(directory, of, "it belongs to user id %d" % status.st_uid)
        writable = stat.S_IMODE(status.st_mode) & (0o022 if last else 0o002)
        # A sticky directory such as /tmp lets nobody move what belongs to others.
        if writable and (last or not status.st_mode & stat.S_ISVTX):
            raise _refusal(directory, of, "%s is writable by others" % path)
    return True


def make(directory: str, of: str = "control_path") -> None:
    """Make the directory and those above it that are missing, mode 0700, and check it.

    :raises MuxError: ``control_dir_insecure``, or ``invalid`` where it cannot be made.
    """
    if check(directory, of):
        return
    missing = []
    path = directory
    while path and not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for path in reversed(missing):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise MuxError(
                "invalid", "the directory %s of %s cannot be made: %s" % (path, of, error)
            ) from None
    if not check(directory, of):
        raise MuxError("invalid", "the directory %s of %s is a link to nothing" % (directory, of))


def _refusal(directory: str, of: str, why: str) -> MuxError:
    return MuxError(
        "control_dir_insecure",
        "the directory %s of %s is not safe: %s; use one that belongs to you and has"
        " mode 0700" % (directory, of, why),
    )
