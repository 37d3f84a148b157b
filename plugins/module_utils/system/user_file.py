# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files under ``~/.ssh`` that their user edits as well: read whole, replaced in one step.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from typing import Optional

from ..model.errors import MuxError


def read(path: str) -> Optional[bytes]:
    """The content; ``None`` where there is no file.

    :raises MuxError: ``invalid`` where it cannot be read or is no regular file.
    """
    try:
        # Non-blocking: a pipe would wait for somebody who writes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise MuxError("invalid", "%s is not a regular file" % path)
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MuxError("invalid", "%s cannot be read: %s" % (path, error.strerror)) from None


def make_directory(path: str) -> None:
    """Make the directory of a file, and those above it that are missing, mode 0700.

    A new directory belongs to whom the one above it belongs, where we may give it away.

    :raises MuxError: ``invalid``.
    """
    directory = os.path.dirname(path)
    if os.path.isdir(directory):
        return
    make_directory(directory)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o700)
            _give_away(directory, os.path.dirname(directory))
    except OSError as error:
        raise MuxError(
            "invalid", "the directory %s cannot be made: %s" % (directory, error.strerror)
        ) from None


def replace(path: str, content: bytes) -> None:
    """Put a new content in the place of the old one: whoever reads sees one of the two, whole.

    The file keeps its owner, group, mode and extended attributes (SELinux's context is one). A new
    one has mode 0600 and the owner of its directory.

    :param path: no symbolic link; :func:`os.path.realpath` follows one.
    :raises MuxError: ``invalid`` where that is not possible; the file is as it was then.
    """
    directory, name = os.path.split(path)
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".%s." % name, dir=directory)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if os.path.exists(path):
            _give_away(temporary, path, strictly=True)
            # Mode, flags and extended attributes; the times are its own.
            shutil.copystat(path, temporary)
            os.utime(temporary)
        else:
            _give_away(temporary, directory)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise MuxError("invalid", "%s cannot be written: %s" % (path, error.strerror)) from None


def _give_away(path: str, like: str, *, strictly: bool = False) -> None:
    """Have the owner and group of another file, as far as that is needed."""
    mine, theirs = os.stat(path), os.stat(like)
    owner = theirs.st_uid if mine.st_uid != theirs.st_uid else -1
    group = theirs.st_gid if mine.st_gid != theirs.st_gid else -1
    if not strictly and os.geteuid() != 0:
        return
    if owner != -1 or group != -1:
        os.chown(path, owner, group)
