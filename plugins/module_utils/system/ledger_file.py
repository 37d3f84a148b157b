# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's file and the lock around everything that changes a master.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from dataclasses import asdict, dataclass
from typing import Iterator, Optional, Tuple

from ..model import ledger as text
from ..model.errors import MuxError
from ..model.ledger import Ledger
from .processes import POLL

#: For how long the hosts of one task share a failed attempt, in seconds: all of them want to be
#: told the same, and a host that comes minutes later (strategy free) deserves a new one.
_SHARED_FOR = 60.0

#: What is added to a control path for the file of its lock.
LOCK = ".lock"

#: What is added to the ledger's path while it is written.
_TEMPORARY = ".new"

#: What there must be room for before a login: the first ledger, and what ssh has to say; in bytes.
_ROOM = 16384


def path_of(control_path: str) -> str:
    """Where the ledger of a control socket lies."""
    return control_path + ".json"


def read(control_path: str) -> Optional[Ledger]:
    """The ledger, or ``None`` where it is missing, damaged or another user's."""
    try:
        # Without O_NONBLOCK a named pipe would be waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path_of(control_path), flags)
        with open(descriptor, encoding="utf-8") as file:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
                return None
            return text.load(file.read())
    except (OSError, UnicodeDecodeError):
        return None


def write(control_path: str, ledger: Ledger) -> None:
    """Replace the ledger in one step: a reader sees the old or the new one, whole.

    Under the lock: the temporary name is always the same, so that nothing piles up where runs are
    killed.

    :raises MuxError: ``invalid`` where it cannot be written.
    """
    temporary = path_of(control_path) + _TEMPORARY
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        _unlink(temporary)
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(text.dump(ledger))
            os.replace(temporary, path_of(control_path))
        except OSError:
            _unlink(temporary)
            raise
    except OSError as error:
        raise MuxError(
            "invalid", "the ledger %s cannot be written: %s" % (path_of(control_path), error)
        ) from None


def stamp(control_path: str) -> Optional[Tuple[int, int]]:
    """What tells one state of the ledger from every other; ``None`` where there is none."""
    try:
        status = os.stat(path_of(control_path), follow_symlinks=False)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def remove(control_path: str) -> None:
    """Remove the ledger, if there is one, and what a run left of it that was killed."""
    _unlink(path_of(control_path))
    _unlink(path_of(control_path) + _TEMPORARY)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@dataclass(frozen=True)
class _Failure:
    """How an attempt to open a master ended, for those who would only repeat it.

    :ivar key: what was attempted.
    :ivar round: the task of one run that attempted it, or ``None``.
    """

    key: str
    round: Optional[str]
    at: float
    reason: str
    message: str


class Lock:
    """Held while a master is changed.

    Twenty hosts behind one bastion that is down, or with one wrong password, make one attempt: it
    is shared by all who waited for it, and by those of the same task who came too late for that.
    """

    def __init__(self, descriptor: int, began: float, *, left: bool) -> None:
        self._descriptor = descriptor
        self._began = began
        #: Whether a run that was killed left its file.
        self.left = left
        #: Whether the lock's file stays when it is released, for what is written in it.
        self.kept = False

    def failure(self, key: str, round_: Optional[str]) -> Optional[MuxError]:
        """The failure to share: of this very attempt, and recent."""
        try:
            written = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
            record = _Failure(**json.loads(written.decode("utf-8")))
            error = MuxError(record.reason, record.message)
            waited = record.at >= self._began
            same_round = round_ is not None and record.round == round_
            fresh = 0 <= time.time() - record.at < _SHARED_FOR
        except (ValueError, TypeError, RecursionError, OSError):
            return None
        if record.key != key or not (waited or (same_round and fresh)):
            return None
        self.kept = True
        return error

    def fail(self, key: str, round_: Optional[str], error: MuxError) -> None:
        """Leave a failure for the others, where the disk has room for it."""
        record = json.dumps(
            asdict(_Failure(key, round_, time.time(), error.reason, error.message))
        ).encode("utf-8")
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            self.kept = os.pwrite(self._descriptor, record, 0) == len(record)

    def find_room(self, directory: str) -> None:
        """Make sure that a login would not be in vain because the disk is full.

        ssh does not tell when it could not write down why it failed; and a master of which
        nothing could be written down would be nobody's.

        :param directory: where the lock's file lies.
        :raises MuxError: ``invalid``.
        """
        try:
            os.ftruncate(self._descriptor, 0)
            if os.pwrite(self._descriptor, bytes(_ROOM), 0) < _ROOM:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise MuxError(
                "invalid",
                "control_path: %s has no room for what belongs to a master: %s"
                % (directory, error),
            ) from None
        finally:
            os.ftruncate(self._descriptor, 0)


@contextlib.contextmanager
def lock(control_path: str, *, timeout: float) -> Iterator[Lock]:
    """Hold the lock of a control path; its file is gone when nobody holds it, but for a failure.

    :raises MuxError: ``timeout`` where another run holds it for longer than ``timeout`` seconds.
    """
    path = control_path + LOCK
    began = time.time()
    deadline = time.monotonic() + timeout
    while True:
        left = os.path.lexists(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise MuxError("invalid", "the lock %s cannot be made: %s" % (path, error)) from None
        try:
            _acquire(descriptor, path, deadline, timeout)
            if _is_at(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    held = Lock(descriptor, began, left=left and _is_empty(descriptor))
    try:
        yield held
    finally:
        if not held.kept:
            # Unlinked while it is held: who waits for it sees that and makes a new one.
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(descriptor)


def is_left(control_path: str) -> bool:
    """Whether the lock's file is there because a run that held it was killed."""
    path = control_path + LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _is_empty(descriptor) and _is_at(descriptor, path)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def _is_empty(descriptor: int) -> bool:
    """Whether no failure is written in the file of a lock, for which it would be kept."""
    return os.fstat(descriptor).st_size == 0


def settles(control_path: str, *, timeout: float) -> bool:
    """Wait for the run that holds the lock, at most ``timeout`` seconds; makes no file.

    :returns: whether there was one.
    """
    path = control_path + LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return not _is_at(descriptor, path)
    except BlockingIOError:
        with contextlib.suppress(MuxError):
            _acquire(descriptor, path, time.monotonic() + timeout, timeout)
        return True
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, path: str, deadline: float, timeout: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise MuxError(
                    "timeout",
                    "another run has held the lock %s for more than %d seconds" % (path, timeout),
                ) from None
            time.sleep(POLL)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        mine, there = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
