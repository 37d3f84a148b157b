# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of a new connection through a bastion: its master, a place in line, the ProxyCommand.

A worker is forked for each task of each host, so that whatever it imports is imported a thousand
times. The engine is imported by the one that opens the master; the others read which socket it
found, and wait for it. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure

#: Where ``ssh -G``'s answers lie, too; what is a day old is removed with them.
_DIRECTORY = "~/.cache/bastion.mux"

#: For how long a bastion that could not be logged in to is left alone, where another one is there,
#: and for how long the hosts of one task share that failure, in seconds.
_DOWN_FOR = 60.0

#: How often a waiting loop looks, in seconds.
_POLL = 0.01

#: Added to a master's socket for the file whose bytes are locked by who sets a connection up.
_SLOTS = ".slots"

#: How long a set-up counts that no control socket shows the end of, in seconds.
_UNSEEN = 1.0

_HELPER = os.path.join(os.path.dirname(__file__), "way.py")

Read = Callable[[tuple[str, ...]], bytes | None]


class Failure(AnsibleConnectionFailure):
    """No way through a bastion; Ansible reports the host as unreachable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{message} (reason: {reason})")
        self.told = (reason, message)


class _AuthenticationFailure(Failure, AnsibleAuthenticationFailure):
    """The same, which is not tried again: an account may be locked after a few attempts."""


def _failure(reason: str, message: str) -> Failure:
    return (_AuthenticationFailure if reason == "auth_failed" else Failure)(reason, message)


def is_up(path: str) -> bool:
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # with many in line before us
        except OSError:
            return False
        return True


class Bastion:
    """One bastion: how to log in to it, and what other processes know of it."""

    def __init__(self, params: Mapping[str, Any], read: Read) -> None:
        self._params = dict(params)
        self.name = str(params["host"])
        arguments = [word for text in params.get("arguments", ()) for word in shlex.split(text)]
        self._extra = arguments
        config = params.get("ssh_config")
        text = read((*arguments, *(["-F", config] if config else [])))
        public = sorted((key, value) for key, value in params.items() if key != "password")
        told = repr((public, text, os.getcwd(), socket.gethostname()))
        key = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        self._known = os.path.join(os.path.expanduser(_DIRECTORY), key)
        #: Whether the parameters and the texts tell all that decides where its socket is.
        self._lasting = text is not None

    def control_path(self) -> str | None:
        """Its master's socket as it was found the last time with all of this."""
        if self._lasting:
            with contextlib.suppress(OSError), open(self._known + ".path") as file:
                return file.read()
        return None

    def running(self) -> str | None:
        """The socket of its master, if one listens."""
        path = self.control_path()
        return path if path is not None and is_up(path) else None

    def is_down(self) -> bool:
        """Whether an attempt to log in failed a moment ago."""
        return self._failure(lambda _record: True) is not None

    def _failure(self, counts: Callable[[dict[str, Any]], bool]) -> Failure | None:
        try:
            with open(self._known + ".lock", encoding="utf-8") as file:
                record = json.load(file)
            recent = 0 <= time.time() - record["at"] < _DOWN_FOR
            return _failure(*record["told"]) if recent and counts(record) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def opened(
        self, task: Sequence[Any], options: Mapping[str, Any], log: Callable[[str], None]
    ) -> str:
        """The socket of its master, which is opened where there is none.

        :raises Failure: why there is none; who waited for it and the other hosts of the task share
            it.
        """
        began = time.time()
        os.makedirs(os.path.dirname(self._known), mode=0o700, exist_ok=True)
        with _locked(self._known + ".lock") as file:
            path = self.running()
            if path is not None:
                return path
            shared = self._failure(
                lambda record: record["at"] >= began or record["task"] == list(task)
            )
            if shared is not None:
                raise shared
            try:
                path = self._open(options, log)
            except Failure as failure:
                record = {"at": time.time(), "task": list(task), "told": failure.told}
                file.write(json.dumps(record))
                raise
            if self._lasting:
                _write(self._known + ".path", path)
            return path

    def _open(self, options: Mapping[str, Any], log: Callable[[str], None]) -> str:
        # Only by who opens it: it takes longer than a whole task that has nothing to open.
        from ansible_collections.bastion.mux.plugins.plugin_utils import opening

        params = {key: value for key, value in self._params.items() if key != "arguments"}
        result = opening.opened({**params, **options}, self._extra, log)
        if result.get("failed"):
            raise _failure(result["reason"], f"bastion {self.name}: {result['msg']}")
        return str(result["control_path"])


@contextlib.contextmanager
def _locked(path: str) -> Iterator[TextIO]:
    """Hold a lock, and have its file to write in."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "r+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(_POLL)
        try:
            yield file
        finally:
            # Nothing is written where it went well.
            file.truncate(file.tell())


def _write(path: str, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.replace(temporary, path)


class Way:
    """How the connections of one task's host get through its bastions."""

    def __init__(
        self,
        *,
        bastions: Sequence[Mapping[str, Any]],
        read: Read,
        options: Mapping[str, Any],
        max_setups: int,
        seconds: float,
        task: Sequence[Any],
        log: Callable[[str], None],
    ) -> None:
        self._bastions = [Bastion(params, read) for params in bastions]
        self._options = options
        self._max_setups = max_setups
        self._seconds = seconds
        self._task = task
        self._log = log

    def _controls(self) -> list[str]:
        """The sockets of the masters to try, in order; the first one was there a moment ago.

        :raises Failure: of none.
        """
        failures = []
        running = [bastion.running() for bastion in self._bastions]
        others = [path for path in running if path is not None]
        for bastion, path in zip(self._bastions, running, strict=True):
            if path is None and others and bastion.is_down():
                continue
            try:
                first = path or bastion.opened(self._task, self._options, self._log)
            except Failure as failure:
                failures.append(failure)
                continue
            return list(dict.fromkeys([first, *others]))
        raise (
            failures[0]
            if len(failures) == 1
            else _failure(failures[-1].told[0], "; ".join(failure.told[1] for failure in failures))
        )

    @contextlib.contextmanager
    def to_target(self, own_path: str | None) -> Iterator[list[bytes]]:
        """The arguments that lead ssh through a bastion, while it sets its connection up.

        :param own_path: the control socket of the target's connection, which shows that it is up.
        :raises Failure: why there is no way; also what the block raises, once it is known to have
            failed for that.
        """
        controls = self._controls()
        why = os.path.join(os.path.expanduser(_DIRECTORY), f"why-{os.getpid()}")
        fixed = [sys.executable, "-I", "-S", _HELPER, str(self._seconds), why]
        words = [shlex.quote(word).replace("%", "%%") for word in fixed]
        words += ["%h", "%p", *(shlex.quote(path).replace("%", "%%") for path in controls)]
        command = "ProxyCommand=" + " ".join(words)
        with _slot(controls[0] + _SLOTS, self._max_setups, own_path, self._seconds):
            try:
                yield [b"-o", b"ProxyUseFdpass=yes", b"-o", os.fsencode(command)]
            finally:
                with contextlib.suppress(FileNotFoundError):
                    with open(why, encoding="utf-8", errors="surrogateescape") as file:
                        reason, _newline, message = file.read().strip().partition("\n")
                    os.unlink(why)
                    raise _failure(reason, message)


@contextlib.contextmanager
def _slot(path: str, count: int, own_path: str | None, seconds: float) -> Iterator[None]:
    """Hold one of the places of who sets a connection up, until it is up or the block ends.

    One byte of a file stands for each place, and one for the head of the line: who is there looks
    for a place to become free, the others wait for theirs in the kernel, in order.
    """
    over = threading.Event()
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)

    def watch() -> None:
        deadline = time.monotonic() + (seconds if own_path else _UNSEEN)
        while not over.wait(_POLL) and time.monotonic() < deadline:
            if own_path and is_up(own_path):
                break
        os.close(descriptor)

    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 0)
    while not any(_lock_byte(descriptor, place) for place in range(1, count + 1)):
        time.sleep(_POLL)
    fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 0)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _lock_byte(descriptor: int, number: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except BlockingIOError:
        return False
    return True
