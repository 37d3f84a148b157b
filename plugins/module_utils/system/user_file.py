# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files under ``~/.ssh`` that their user edits as well: read whole, replaced in one step.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import stat
import sys
from dataclasses import dataclass
from typing import Callable, Iterator, Optional

from ..model.errors import MuxError

#: Like :func:`os.fchown`.
Chown = Callable[[int, int, int], None]

#: Attributes that the kernel keeps by itself, or that only it may write.
_KERNELS = ("security.evm", "security.ima", "trusted.")

#: copyfile.h of macOS: COPYFILE_ACL | COPYFILE_XATTR.
_COPYFILE_ACL_XATTR = 1 << 0 | 1 << 2


@dataclass(frozen=True)
class File:
    """A file that is held open, with its content and its status from one moment."""

    descriptor: int
    status: os.stat_result
    content: bytes


class Folder:
    """A directory that is held open: nobody can put another one in its place meanwhile.

    :ivar path: what it was found by.
    :ivar status: its owner and mode.
    :raises OSError: there is none, or it may not be opened.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.status = os.fstat(self._descriptor)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @contextlib.contextmanager
    def opened(self, name: str, *, most: Optional[int] = None) -> Iterator[Optional[File]]:
        """A file; ``None`` where there is none.

        :param most: the bytes that it may have.
        :raises MuxError: ``invalid`` where it is no regular file, or too long.
        :raises OSError: it cannot be read, or is a symbolic link.
        """
        # Non-blocking: a pipe would wait for somebody who writes.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            yield None
            return
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                path = os.path.join(self.path, name)
                raise MuxError("invalid", "%s is not a regular file" % path)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(-1 if most is None else most + 1)
            if most is not None and len(content) > most:
                path = os.path.join(self.path, name)
                raise MuxError("invalid", "%s has more than %d bytes" % (path, most))
            yield File(descriptor, status, content)
        finally:
            os.close(descriptor)

    def is_still(self, name: str, old: Optional[File]) -> bool:
        """Whether the file is what it was when it was opened."""
        try:
            now = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return old is None
        return old is not None and _identity(now) == _identity(old.status)

    def replace(
        self,
        name: str,
        content: bytes,
        *,
        old: Optional[File],
        mode: int = 0o600,
        chown: Chown = os.fchown,
    ) -> None:
        """Put a new content in the place of the old one: whoever reads sees one of the two, whole.

        The file keeps its owner, group, mode, ACLs and extended attributes (SELinux's context is
        one). Other hard links keep the old content.

        :param old: the file that is there; ``None``: there is none, and the new one gets ``mode``
            and, from root, the owner of the directory.
        :param chown: gives the new file to another owner or group, where that is needed.
        :raises OSError: that is not possible; the file is as it was then.
        """
        temporary = ".%s.%s" % (name, secrets.token_hex(6))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=self._descriptor)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                if old is not None:
                    _give(descriptor, old.status, chown)
                    os.fchmod(descriptor, stat.S_IMODE(old.status.st_mode) & 0o777)
                    _copy_attributes(old.descriptor, descriptor)
                else:
                    if os.geteuid() == 0:
                        _give(descriptor, self.status, chown)
                    os.fchmod(descriptor, mode)
                os.fsync(descriptor)
            os.replace(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                self.unlink(temporary)
            raise

    def unlink(self, name: str) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=self._descriptor)


def read(path: str, *, most: Optional[int] = None) -> Optional[bytes]:
    """The content; ``None`` where there is no file.

    :param path: no symbolic link; :func:`os.path.realpath` follows one.
    :param most: the bytes that it may have.
    :raises MuxError: ``invalid`` where it cannot be read, is no regular file, or is too long.
    """
    directory, name = os.path.split(path)
    try:
        with Folder(directory) as folder, folder.opened(name, most=most) as file:
            return None if file is None else file.content
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
            if os.geteuid() == 0:
                above = os.stat(os.path.dirname(directory))
                os.chown(directory, above.st_uid, above.st_gid)
    except OSError as error:
        raise MuxError(
            "invalid", "the directory %s cannot be made: %s" % (directory, error.strerror)
        ) from None


def replace(path: str, content: bytes) -> None:
    """:meth:`Folder.replace` by path; a new file has mode 0600.

    :param path: no symbolic link; :func:`os.path.realpath` follows one.
    :raises MuxError: ``invalid`` where that is not possible; the file is as it was then.
    """
    directory, name = os.path.split(path)
    try:
        with Folder(directory) as folder, folder.opened(name) as old:
            folder.replace(name, content, old=old)
    except OSError as error:
        raise MuxError("invalid", "%s cannot be written: %s" % (path, error.strerror)) from None


def _identity(status: os.stat_result) -> object:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _give(descriptor: int, like: os.stat_result, chown: Chown) -> None:
    """Have the owner and group of another file, as far as that is needed."""
    mine = os.fstat(descriptor)
    owner = like.st_uid if mine.st_uid != like.st_uid else -1
    group = like.st_gid if mine.st_gid != like.st_gid else -1
    if owner != -1 or group != -1:
        chown(descriptor, owner, group)


def _copy_attributes(source: int, target: int) -> None:
    """Have the ACLs and extended attributes of another file, and no others."""
    if sys.platform == "darwin":
        # Python has no interface to them there: copyfile(3).
        library = ctypes.CDLL(None, use_errno=True)
        if library.fcopyfile(source, target, None, _COPYFILE_ACL_XATTR) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return
    if not hasattr(os, "listxattr"):
        return
    try:
        wanted, given = os.listxattr(source), os.listxattr(target)
    except OSError:
        # A file system that has none.
        return
    for name in given:
        # A default ACL of the directory is one that the old file did not have.
        if name not in wanted and not name.startswith("security."):
            os.removexattr(target, name)
    for name in wanted:
        if not name.startswith(_KERNELS):
            value = os.getxattr(source, name)
            if name not in given or os.getxattr(target, name) != value:
                os.setxattr(target, name, value)
