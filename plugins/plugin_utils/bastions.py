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
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from ansible.errors import AnsibleAuthenticationFailure, AnsibleConnectionFailure

from ansible_collections.bastion.mux.plugins.plugin_utils import runs, way

#: Where ``ssh -G``'s answers lie, too; what is a day old is removed with them.
_DIRECTORY = "~/.cache/bastion.mux"

#: For how long a bastion that could not be logged in to is left alone, where another one is there,
#: and for how long the hosts of one task share that failure, in seconds.
_DOWN_FOR = 60.0

#: How often a waiting loop looks, in seconds: less and less often, because where it takes long the
#: machine has no time to spare.
_POLL = 0.005
_POLL_SLOWLY = 0.1

#: Hardly a connection is up sooner than that after it got its stream, in seconds.
_HANDSHAKE = 0.05

#: Beside what is known of a bastion: its master did not lead to a target although it listened. And
#: the reasons for which a connection that is dead may be the cause.
_DOUBT = ".doubt"
_DOUBTFUL = ("timeout", "wedged")

#: Added to a master's socket for the file whose bytes are locked by who sets a connection up.
SLOTS = ".slots"

#: How long a set-up counts that no control socket shows the end of, in seconds.
_UNSEEN = 1.0

#: How long to wait where the bastion's master may take no more, by the time for one connection.
_PATIENCE = 12

#: The descriptors of a master beside those of what goes through it: standard input, output and
#: error, its log, its connection, its socket, and who asks it.
_OWN_DESCRIPTORS = 7

Read = Callable[[Sequence[str]], bytes | None]
Say = Callable[[str], None]


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


class Settings:
    """What the options say.

    :ivar task: what the hosts of one attempt at one task have in common.
    :ivar run: the process of the run of Ansible.
    :ivar seconds: for one connection.
    """

    ssh_executable: str
    persist: str
    max_setups: int
    max_channels: int
    seconds: float
    task: Sequence[Any]
    run: int | None
    log: Say
    warn: Say

    def __init__(self, **settings: Any) -> None:
        """Take all of them; a tuple with names is made of code that each worker would compile."""
        vars(self).update(settings)

    @property
    def closes(self) -> bool:
        """Whether a master is closed after the last run that uses it."""
        return self.persist.strip().lower() in ("no", "false")


class Bastion:
    """One bastion: how to log in to it, and what other processes know of it."""

    def __init__(self, params: Mapping[str, Any], read: Read) -> None:
        self._params = dict(params)
        self.name = str(params["host"])
        self._extra = [word for text in params.get("arguments", ()) for word in shlex.split(text)]
        config = params.get("ssh_config")
        text = read((*self._extra, *(["-F", config] if config else [])))
        public = sorted((key, value) for key, value in params.items() if key != "password")
        told = repr((public, text, _directory(), socket.gethostname()))
        key = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        self._known = os.path.join(os.path.expanduser(_DIRECTORY), key)
        #: Whether the parameters and the texts tell all that decides where its socket is.
        self._lasting = text is not None

    def running(self) -> str | None:
        """The socket of its master, if one listens where it was found the last time."""
        if self._lasting and not os.path.exists(self._known + _DOUBT):
            with contextlib.suppress(OSError), open(self._known + ".path", "rb") as file:
                path = os.fsdecode(file.read())
                # Where others may write by now, the engine is to say so.
                directory = os.stat(os.path.dirname(path))
                safe = directory.st_uid == os.geteuid() and not directory.st_mode & 0o022
                return path if safe and is_up(path) else None
        return None

    def doubt(self) -> None:
        """Have whoever needs its master next ask if its connection lives."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._known + _DOUBT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def is_down(self) -> bool:
        """Whether an attempt to log in failed a moment ago, or one after such is under way."""
        if self._failure(lambda _record: True) is not None:
            return True
        with contextlib.suppress(OSError), open(self._known + ".lock", encoding="utf-8") as file:
            failed_before = bool(file.read(1))
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # The first attempt is waited for, as where there is no other bastion.
                return failed_before
        return False

    def _failure(self, counts: Callable[[dict[str, Any]], bool]) -> Failure | None:
        try:
            with open(self._known + ".lock", encoding="utf-8") as file:
                record = json.load(file)
            recent = 0 <= time.time() - record["at"] < _DOWN_FOR
            return _failure(*record["told"]) if recent and counts(record) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def opened(self, settings: Settings) -> str:
        """The socket of its master, which is opened where there is none.

        :raises Failure: why there is none; who waited for it and the other hosts of the task share
            it.
        """
        try:
            os.makedirs(os.path.dirname(self._known), mode=0o700, exist_ok=True)
            return self._opened(settings)
        except OSError as error:
            raise _failure("invalid", f"bastion {self.name}: {error}") from None

    def _opened(self, settings: Settings) -> str:
        began = time.time()
        task = list(settings.task)

        def is_shared(record: dict[str, Any]) -> bool:
            # A login that was refused is not tried again: an account may be locked after a few.
            attempt = -1 if record["told"][0] == "auth_failed" else None
            return bool(record["at"] >= began or record["task"][:attempt] == task[:attempt])

        with _locked(self._known + ".lock") as file:
            path = self.running()
            if path is not None:
                return path
            shared = self._failure(is_shared)
            if shared is not None:
                raise shared
            try:
                path, new = self._open(settings)
            except Failure as failure:
                record = {"at": time.time(), "task": task, "told": failure.told}
                file.write(json.dumps(record))
                raise
            if self._lasting:
                _write(self._known + ".path", path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._known + _DOUBT)
            if settings.run is not None:
                runs.use(path, settings.run, close=settings.closes and new)
            return path

    def _open(self, settings: Settings) -> tuple[str, bool]:
        """Its master's socket, and whether it is a new one."""
        # Only by who opens it: it takes longer than a whole task that has nothing to open.
        from ansible_collections.bastion.mux.plugins.plugin_utils import opening

        given = {key: value for key, value in self._params.items() if key != "arguments"}
        seconds = max(1, round(settings.seconds))
        params = {
            **given,
            "ssh_executable": settings.ssh_executable,
            "persist": "yes" if settings.closes else settings.persist,
            "connect_timeout": seconds,
            "timeout": seconds,
        }
        result = opening.opened(params, self._extra, settings.log)
        if result.get("failed"):
            raise _failure(result["reason"], f"bastion {self.name}: {result['msg']}")
        return str(result["control_path"]), bool(result["changed"])


def _directory() -> str:
    """Where relative paths begin."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def _locked(path: str) -> Iterator[TextIO]:
    """Hold a lock, and have its file to write in."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "r+", encoding="utf-8") as file:
        # In the kernel: fifty forks that look again and again cost more than the login.
        fcntl.flock(file, fcntl.LOCK_EX)
        wrote = False
        try:
            yield file
            wrote = True
        finally:
            # What was written of an earlier attempt is over, unless it was only repeated.
            if wrote or file.tell():
                file.truncate()


def _write(path: str, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path))
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.replace(temporary, path)


class Way:
    """How the connections of one task's host get through its bastions."""

    def __init__(
        self, bastions: Sequence[Mapping[str, Any]], read: Read, settings: Settings
    ) -> None:
        """Take the bastions in the order in which they are to be tried."""
        self._bastions = [Bastion(params, read) for params in bastions]
        self._settings = settings

    def use(self) -> None:
        """Note that this run uses the masters that there are."""
        for bastion in self._bastions:
            path = bastion.running()
            if path is not None and self._settings.run is not None:
                runs.use(path, self._settings.run)

    def _controls(self) -> dict[str, Bastion]:
        """The sockets of the masters to try, in order; the first one was there a moment ago.

        :raises Failure: of none.
        """
        failures = []
        running = [(bastion, bastion.running()) for bastion in self._bastions]
        others = {path: bastion for bastion, path in running if path is not None}
        for bastion, path in running:
            if path is None and others and bastion.is_down():
                continue
            try:
                first = path or bastion.opened(self._settings)
            except Failure as failure:
                self._settings.log(str(failure))
                failures.append(failure)
                continue
            self.use()
            return {first: bastion, **others}
        if len(failures) == 1:
            raise failures[0]
        words = "; ".join(failure.told[1] for failure in failures)
        # What may be tried again is, if anything may.
        reasons = [failure.told[0] for failure in failures]
        raise _failure(next((one for one in reasons if one != "auth_failed"), reasons[0]), words)

    @contextlib.contextmanager
    def to_target(self, own_path: str | None) -> Iterator[list[bytes]]:
        """The arguments that lead ssh through a bastion, while it sets its connection up.

        :param own_path: the control socket of the target's connection, which shows that it is up.
        :raises Failure: why there is no way; instead of what the block raises, where it failed for
            that.
        """
        settings = self._settings
        bastions = self._controls()
        controls = list(bastions)
        # Somebody's own script is to set up connections to hosts, and knows no other ones.
        ssh = "ssh" if shutil.which("ssh") else settings.ssh_executable
        turn = _take_turn(controls[0], settings)
        try:
            passing = way.Passing(controls, settings.seconds, ssh)
        except OSError as error:
            os.close(turn)
            raise _failure("invalid", f"no stream can be passed: {error}") from None
        words = [shlex.quote(word).replace("%", "%%") for word in passing.command]
        command = "ProxyCommand=" + " ".join([*words, "[%h]:%p", "--", "bastion"])
        over = threading.Event()
        given = (passing, turn, over, own_path, settings.seconds)
        server = threading.Thread(target=_serve, args=given, daemon=True)
        server.start()
        try:
            yield [b"-o", b"ProxyUseFdpass=yes", b"-o", os.fsencode(command)]
        finally:
            over.set()
            passing.end()
            # What an ssh that was killed had asked for may be under way.
            server.join(_UNSEEN)
            if os.path.exists(controls[0] + way.NO_UNIX):
                settings.warn(
                    f"The master at {controls[0]} forwards no unix sockets: a process of ssh stays"
                    " for each host behind it."
                )
            for control, failure in passing.failed.items():
                if failure.reason in _DOUBTFUL:
                    bastions[control].doubt()
            if passing.failure is not None:
                raise _failure(passing.failure.reason, str(passing.failure))


def _serve(
    passing: way.Passing, turn: int, over: threading.Event, own_path: str | None, seconds: float
) -> None:
    """Let ssh have its stream, and the next one have the turn when the connection is up."""
    try:
        passing.serve()
        began = now = time.monotonic()
        end = began + (seconds if own_path else _UNSEEN)
        while not over.wait(max(_HANDSHAKE, (now - began) / 4)) and now < end:
            # What is not there needs no socket to find out.
            if own_path and os.path.exists(own_path) and is_up(own_path):
                break
            now = time.monotonic()
    finally:
        os.close(turn)


def _take_turn(control: str, settings: Settings) -> int:
    """Wait for a place among those who set a connection up, which the file returned here holds.

    One byte of it stands for each place, and one for the head of the line: who is there looks for a
    place to become free, the others wait for theirs in the kernel, in order.

    :raises Failure: the bastion takes no more connections.
    """
    deadline = time.monotonic() + settings.seconds * _PATIENCE
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(control + SLOTS, flags, 0o600)
    except OSError as error:
        raise _failure("invalid", f"no connection can be counted: {error}") from None

    def has_room(place: int) -> bool:
        # Others that are being set up may be no connections of the master yet.
        others = _taken_by_others(descriptor, settings.max_setups, place)
        return _channels(control, settings.seconds) + others < settings.max_channels

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 0)
        pause = _POLL
        while (place := _take_place(descriptor, settings.max_setups)) is None:
            time.sleep(pause)
            pause = min(_POLL_SLOWLY, pause * 1.5)
        while settings.max_channels > 0 and not has_room(place):
            if time.monotonic() >= deadline:
                raise _failure(
                    "timeout",
                    f"{settings.max_channels} connections go through the bastion, which is its"
                    " bastion_max_channels, and none of them has ended in time",
                )
            time.sleep(_POLL_SLOWLY)
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take_place(descriptor: int, count: int) -> int | None:
    return next((place for place in _places(count) if _lock_byte(descriptor, place)), None)


def _taken_by_others(descriptor: int, count: int, own: int) -> int:
    """How many places others hold. Nobody takes one meanwhile: that is for the head of the line."""
    taken = 0
    for place in _places(count):
        if place != own:
            if _lock_byte(descriptor, place):
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)
            else:
                taken += 1
    return taken


def _places(count: int) -> range:
    return range(1, max(count, 1) + 1)


def _lock_byte(descriptor: int, number: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except BlockingIOError:
        return False
    return True


def _channels(control: str, seconds: float) -> int:
    """How many connections go through a master; each is a descriptor of its process."""
    try:
        master = way.Master(control, time.monotonic() + seconds)
        return len(os.listdir(f"/proc/{master.pid()}/fd")) - _OWN_DESCRIPTORS
    except (way.Failed, OSError):
        return 0  # what is wrong with it will be said, or this system does not tell
