# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change of sshd's files that can be undone, and is undone unless it is confirmed.

The design is told in :mod:`.sshd_undo`, which is the part that runs without us. Private to the
collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from ..model.errors import MuxError
from . import sshd_undo, user_file
from .sshd_undo import Address, Failure

#: What the folder of a change is called, after the configuration.
SUFFIX = ".bastion.mux-pending"

#: Seconds to wait for another run.
_LOCK_TIMEOUT = 120.0

#: Seconds for the process to see that it is not needed any more.
_END_TIMEOUT = 10.0

#: What a change can be found to be.
NONE, WAITING, LEFT, UNFINISHED, UNDONE = "none", "waiting", "left", "unfinished", "undone"


@dataclass(frozen=True)
class Write:
    """What becomes of one file.

    :ivar before: ``None``: there is none, or what is there is no regular file.
    :ivar after: ``None``: it goes.
    :ivar mode: of a new file, which is root's.
    :ivar keeps: whether owner, group, mode and other attributes of the old one stay.
    :ivar secret: whether others may not see what is in it.
    """

    path: str
    before: Optional[bytes]
    after: Optional[bytes]
    mode: int
    keeps: bool
    secret: bool = False


@dataclass(frozen=True)
class Plan:
    """What is to be done, in this order.

    :ivar directory: what the module owns as a whole.
    :ivar listed: all that is in it.
    :ivar made: directories that have to be made, those above first.
    :ivar removed: directories that go, those below first.
    :ivar modes: directories whose mode changes, with the mode that they have.
    """

    config: str
    directory: str
    listed: Sequence[str]
    made: Sequence[str]
    removed: Sequence[str]
    modes: Sequence[Tuple[str, int]]
    writes: Sequence[Write]

    @property
    def actions(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.made or self.removed or self.modes or self.writes)


@contextlib.contextmanager
def locked(config: str) -> Iterator[None]:
    """Be the only run on a configuration.

    :raises MuxError: ``timeout``.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(sshd_undo.locked(config, _LOCK_TIMEOUT))
        except Failure as error:
            raise MuxError("timeout", str(error)) from None
        yield


class Change:
    """The change of a configuration that nobody has confirmed yet, if there is one."""

    def __init__(self, config: str) -> None:
        self.config = config
        self.folder = config + SUFFIX

    def state(self) -> str:
        """What is found.

        ``waiting``: in force, and its process waits for the deadline. ``left``: in force, and
        nobody waits (killed, or a reboot). ``unfinished``: half done, or half undone.
        ``undone``: the deadline has passed. ``none``.
        """
        if self.undone() is not None:
            return UNDONE
        if sshd_undo.read_plan(self.folder) is None:
            return NONE
        if not os.path.exists(self._file(sshd_undo.APPLIED)):
            return UNFINISHED
        return WAITING if self._is_watched() else LEFT

    def undone(self) -> Optional[Dict[str, str]]:
        """When and why it was undone."""
        try:
            with open(self._file(sshd_undo.UNDONE), encoding="utf-8") as file:
                note: Dict[str, str] = json.load(file)
                return note
        except (OSError, ValueError):
            return None

    def begin(
        self,
        plan: Plan,
        *,
        listener: Optional[Mapping[str, Any]],
        addresses: Sequence[Address],
        reload: bool,
        confirm_within: int,
    ) -> None:
        """Keep everything as it is, and start to wait if it has to be confirmed.

        :raises OSError: nothing was changed.
        """
        new = self.folder + ".new"
        shutil.rmtree(new, ignore_errors=True)
        try:
            self._keep(new, plan, listener=listener, addresses=addresses, reload=reload)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        os.rename(new, self.folder)
        _sync(os.path.dirname(self.folder))
        if confirm_within:
            self.renew(confirm_within)
            self._watch()

    def _keep(
        self,
        new: str,
        plan: Plan,
        *,
        listener: Optional[Mapping[str, Any]],
        addresses: Sequence[Address],
        reload: bool,
    ) -> None:
        """Make the folder, under another name."""
        os.mkdir(new, 0o700)
        files = []
        for index, write in enumerate(plan.writes):
            backup = str(index) if os.path.lexists(write.path) else None
            if backup is not None:
                sshd_undo.save(write.path, os.path.join(new, backup))
            files.append({"path": write.path, "backup": backup, "written": _digest(write.after)})
        what = {
            "token": secrets.token_hex(8),
            "config": plan.config,
            "directory": plan.directory,
            "listed": list(plan.listed),
            "files": files,
            "made": list(plan.made),
            "removed": [_directory(path) for path in reversed(plan.removed)],
            "modes": [_directory(path) for path, _mode in plan.modes],
            "listener": listener,
            "addresses": list(addresses),
            "reload": reload,
        }
        sshd_undo.write(new, sshd_undo.PLAN, json.dumps(what, indent=1))
        sshd_undo.write(new, sshd_undo.SCRIPT, _source())
        os.chmod(os.path.join(new, sshd_undo.SCRIPT), 0o700)
        _sync(new)

    def applied(self) -> None:
        """All files are in their places, and sshd has read them."""
        sshd_undo.write(self.folder, sshd_undo.APPLIED, "")

    def renew(self, seconds: int) -> None:
        """Wait this long from now on."""
        deadline = repr(time.monotonic() + seconds)
        sshd_undo.write(self.folder, sshd_undo.DEADLINE, deadline)

    def confirm(self) -> None:
        """The change stays, and what was there before is forgotten.

        :returns: when the process that waited has ended.
        """
        with contextlib.ExitStack() as stack:
            timer = None
            with contextlib.suppress(FileNotFoundError):
                timer = stack.enter_context(open(self._file(sshd_undo.TIMER), "rb"))
            sshd_undo.remove(self.folder)
            if timer is not None:
                free = timer.fileno()
                sshd_undo.wait_until(lambda: _can_lock(free), _END_TIMEOUT)

    def undo(self) -> None:
        """Have everything as it was, sshd included.

        :raises MuxError: ``not_running`` where sshd does not come back.
        """
        with contextlib.ExitStack() as stack:
            timer = None
            with contextlib.suppress(FileNotFoundError):
                timer = stack.enter_context(open(self._file(sshd_undo.TIMER), "rb"))
            try:
                sshd_undo.undo(self.folder)
            except Failure as error:
                raise MuxError(
                    "not_running",
                    "the files are as they were before, and still %s; %s holds what is needed to"
                    " try again (state: restored)" % (error, self.folder),
                ) from None
            if timer is not None:
                free = timer.fileno()
                sshd_undo.wait_until(lambda: _can_lock(free), _END_TIMEOUT)

    def forget(self) -> None:
        """Remove the note about a change that is undone."""
        sshd_undo.remove(self.folder)

    def _file(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _is_watched(self) -> bool:
        try:
            with open(self._file(sshd_undo.TIMER), "rb") as timer:
                return not _can_lock(timer.fileno())
        except FileNotFoundError:
            return False

    def _watch(self) -> None:
        """Start the process that waits."""
        python = sys.executable or shutil.which("python3") or "/usr/bin/python3"
        with open(self._file(sshd_undo.TIMER), "wb") as timer:
            # The process has it open as we do, so it is the process's lock as well.
            fcntl.flock(timer.fileno(), fcntl.LOCK_EX)
            command = [python, "-I", self._file(sshd_undo.SCRIPT), self.folder]
            try:
                subprocess.run(
                    # -I: nothing of the environment, of the home or of the current directory.
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    pass_fds=[timer.fileno()],
                    start_new_session=True,
                    check=True,
                    timeout=_END_TIMEOUT,
                )
            except subprocess.SubprocessError as error:
                raise MuxError(
                    "invalid", "the process that would undo it cannot be started: %s" % error
                ) from None


def apply(plan: Plan) -> None:
    """Do what is planned.

    :raises MuxError: ``invalid`` where somebody else changed a file at the same time.
    :raises OSError: it cannot be done.
    """
    for path in plan.made:
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)
        os.chown(path, 0, 0)
    for path, _mode in plan.modes:
        os.chown(path, 0, 0)
        os.chmod(path, 0o755)
    for write in plan.writes:
        _write(write)
    for path in plan.removed:
        os.rmdir(path)


def _write(write: Write) -> None:
    directory, name = os.path.split(write.path)
    with user_file.Folder(directory) as folder:
        if not write.keeps:
            if write.after is None:
                folder.unlink(name)
            else:
                folder.replace(name, write.after, old=None, mode=write.mode, chown=_to_root)
            return
        with folder.opened(name) as old:
            if (None if old is None else old.content) != write.before:
                raise MuxError("invalid", "%s was changed at the same time; run again" % write.path)
            if write.after is None:
                folder.unlink(name)
            elif old is None:
                folder.replace(name, write.after, old=None, mode=write.mode, chown=_to_root)
            else:
                folder.replace(name, write.after, old=old)


def _to_root(descriptor: int, _uid: int, _gid: int) -> None:
    os.fchown(descriptor, 0, 0)


def _directory(path: str) -> Dict[str, Any]:
    status = os.lstat(path)
    mode = stat.S_IMODE(status.st_mode)
    return {"path": path, "mode": mode, "uid": status.st_uid, "gid": status.st_gid}


def _digest(content: Optional[bytes]) -> Optional[str]:
    return None if content is None else hashlib.sha256(content).hexdigest()


def _source() -> str:
    """The text of :mod:`.sshd_undo`, also where it was imported from an archive."""
    loader = getattr(sshd_undo.__spec__, "loader", None)
    source: Union[str, bytes, None] = loader and loader.get_source(sshd_undo.__name__)
    if source is None:
        raise MuxError("invalid", "there is no source of %s to keep" % sshd_undo.__name__)
    # Ansible's own loader of collections gives bytes.
    return source.decode("utf-8") if isinstance(source, bytes) else source


def _can_lock(descriptor: int) -> bool:
    """Whether nobody holds a lock on a file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return True


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def observed(directory: str) -> Tuple[List[str], Dict[str, os.stat_result]]:
    """All that is in a directory: the paths, those above first, and what they are."""
    paths: List[str] = []
    for top, folders, files in os.walk(directory):
        paths += [os.path.join(top, name) for name in sorted(folders + files)]
    return paths, {path: os.lstat(path) for path in paths}
