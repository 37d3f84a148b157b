# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``ssh -G`` answered, for as long as nothing that the answer depends on has changed.

A task that finds nothing to change spends most of its time on that question. Private to the
collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import pwd
import socket
import stat
import tempfile
import time
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from ..model import ssh_inputs
from ..model.errors import MuxError
from . import control_dir, user_file

#: Where the answers lie: what is there can be made again (XDG Base Directory Specification).
DIRECTORY = "~/.cache/bastion.mux"

#: How long an answer is good at most, in seconds: a bound on whatever was not thought of.
_LASTS = 86400.0

#: A file that was changed this short a time before the question may be changed again without a
#: new time stamp, in seconds: two are the most that any file system's clock needs (FAT).
_SETTLED = 2.0

#: The first bytes of a program. A script in its place may do anything.
_PROGRAMS = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")

#: Taken into account whether ssh said that it read them or not: they may come later.
_SYSTEM = "/etc/ssh/ssh_config"
_SERVICES = "/etc/services"  # has ssh's port

#: A file's identity and content, as far as a status tells; ``None``: there is none.
_State = Optional[List[int]]


@dataclass(frozen=True)
class Answer:
    """What ssh said.

    :ivar version: of this ssh, such as ``OpenSSH_9.2p1``.
    """

    effective: Mapping[str, List[str]]
    version: str


@dataclass(frozen=True)
class Question:
    """One ``ssh -G``: all that its answer depends on but for files.

    :ivar path: where its answer is kept, if it is.
    """

    path: str
    executable: str
    home: str
    asked: float


def question(command: Sequence[str]) -> Optional[Question]:
    """What is about to be asked; ``None`` where an answer is never kept.

    :param command: the ssh, by its path, and its arguments.
    """
    if any("$" in argument for argument in command):
        return None  # perhaps a variable of the environment
    try:
        user = pwd.getpwuid(os.getuid())
        given = (
            tuple(command),
            os.getcwd(),
            (user.pw_uid, user.pw_name, user.pw_dir),
            socket.gethostname(),  # %l and %C
        )
    except (KeyError, OSError):
        return None
    name = hashlib.sha256(repr(given).encode("utf-8", "surrogateescape")).hexdigest()[:40]
    path = os.path.join(os.path.expanduser(DIRECTORY), name)
    return Question(path, command[0], user.pw_dir, time.time())


def recall(asked: Question) -> Optional[Answer]:
    """The answer to the same question, if it would be the same now."""
    try:
        descriptor = os.open(asked.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8", errors="surrogateescape") as file:
            status = os.fstat(descriptor)
            if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
                return None
            if not 0 <= asked.asked - status.st_mtime < _LASTS:
                return None
            kept = json.load(file)
        files, patterns = kept["files"], kept["patterns"]
        if files == _states(files) and patterns == _matches(patterns):
            return Answer(kept["effective"], kept["version"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass  # missing or damaged: ssh is asked
    return None


def keep(asked: Question, answer: Answer, read: Sequence[str]) -> None:
    """Keep an answer, where everything that it depends on is known.

    :param read: the configuration files that ssh said it has read.
    """
    depends = _dependencies(asked, read) if ssh_inputs.is_lasting(answer.effective) else None
    if depends is None:
        return
    files, patterns = depends
    content = {
        "files": files,
        "patterns": patterns,
        "effective": answer.effective,
        "version": answer.version,
    }
    directory = os.path.dirname(asked.path)
    # A home that is full, read-only or not the user's own has no answers: nothing depends on them.
    with contextlib.suppress(OSError, MuxError):
        control_dir.make(directory)
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=directory)
        try:
            with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
                json.dump(content, file)
            os.replace(temporary, asked.path)
        except BaseException:
            os.unlink(temporary)
            raise
        _clear(directory, asked.asked)


def _dependencies(
    asked: Question, read: Sequence[str]
) -> Optional[Tuple[Dict[str, _State], Dict[str, List[str]]]]:
    """The files and patterns with their states; ``None`` where they are not all of it."""
    found: List[str] = []
    try:
        with open(asked.executable, "rb") as program:
            if not program.read(4).startswith(_PROGRAMS):
                return None
        for name in read:
            content = user_file.read(os.path.realpath(name))
            patterns = None if content is None else ssh_inputs.includes(content)
            if patterns is None:
                return None
            for pattern in patterns:
                found += ssh_inputs.places(pattern, asked.home, read)
    except (OSError, MuxError):
        return None  # not readable, no file, or ssh wrote its name in another way
    matches = _matches(found)
    there = [name for names in matches.values() for name in names]
    always = [asked.executable, asked.home + "/.ssh/config", _SYSTEM, _SERVICES]
    files = _states([*always, *read, *there])
    latest = max(max(state[-2:]) for state in files.values() if state is not None)
    return (files, matches) if latest < (asked.asked - _SETTLED) * 1e9 else None


def _states(paths: Sequence[str]) -> Dict[str, _State]:
    return {path: _state(path) for path in paths}


def _state(path: str) -> _State:
    try:
        # Opened as ssh does: a network file system asks its server then.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return [
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    ]


def _matches(patterns: Sequence[str]) -> Dict[str, List[str]]:
    return {pattern: sorted(glob.glob(pattern)) for pattern in patterns}


def _clear(directory: str, now: float) -> None:
    """Remove what is too old to be an answer, now and then."""
    marker = os.path.join(directory, ".cleared")
    with contextlib.suppress(FileNotFoundError):
        if 0 <= now - os.stat(marker).st_mtime < _LASTS:
            return
    with open(marker, "wb"):
        os.utime(marker)
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with contextlib.suppress(FileNotFoundError):
            if now - os.stat(path).st_mtime > _LASTS:
                os.unlink(path)
