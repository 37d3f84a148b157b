# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ssh program: its configuration for a host, its version, the start of a master.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from typing import IO, Callable, Dict, Iterator, List, Optional, Sequence

from ..model import diagnosis, ssh_inputs, target
from ..model.errors import MuxError
from ..model.target import Argument
from . import askpass, listeners, master_log, processes, ssh_answers
from .askpass import Secrets
from .ssh_answers import Answer

#: A bound on ssh invocations that stay on this machine, in seconds: a ``Match exec`` of the
#: user's configuration may hang.
_LOCAL_TIMEOUT = 10.0

#: How many files a master may open, where the system's administrator allows that.
_DESCRIPTORS = 8192

Log = Callable[[str], None]


class LostRace(Exception):
    """Another program opened a master at the same path while ours logged in."""


class Ssh:
    """One ssh executable.

    :param executable: a name for PATH or a path.
    :param log: takes a line for ``-vvv``; never given a secret.
    """

    def __init__(self, executable: str, log: Log) -> None:
        self._executable = executable
        self._log = log
        self._found: Optional[str] = None
        self._version: Optional[str] = None

    @property
    def path(self) -> str:
        """Where the executable lies.

        :raises MuxError: ``ssh_missing``.
        """
        if self._found is None:
            self._found = shutil.which(os.path.expanduser(self._executable))
        if self._found is None:
            raise MuxError(
                "ssh_missing",
                "no ssh executable %r: install an OpenSSH client (package openssh-client, openssh"
                " or openssh-clients) or set ssh_executable" % self._executable,
            )
        return self._found

    def effective(
        self, arguments: Sequence[Argument], host: str, control_path: Optional[str]
    ) -> Dict[str, List[str]]:
        """What ssh would use for a host: its own command line, files and defaults (``ssh -G``).

        ``controlpath`` comes out with all its tokens expanded.

        :raises MuxError: ``invalid`` where ssh refuses an option, a value or a file.
        """
        # -v says what it reads, and its version; before all others, because the first level counts.
        # Without -T it would complain that it gets no terminal.
        command = [self.path, "-v", *target.flatten(arguments), "-T", "-G"]
        if control_path is not None:
            command += ["-S", control_path]
        command += ["--", host]
        question = ssh_answers.question(command)
        answer = None if question is None else ssh_answers.recall(question)
        if question is not None and answer is not None:
            self._log("ssh -G for %s: what it reads is as it was for %s" % (host, question.path))
            self._version = answer.version
            return dict(answer.effective)
        result = self._run(command)
        heard = ssh_inputs.heard(result.stderr)
        if result.returncode != 0:
            raise MuxError("invalid", "ssh refuses its configuration: " + _joined(heard.errors))
        effective = target.parse_effective(result.stdout)
        self._version = heard.version
        if question is not None and heard.version is not None:
            ssh_answers.keep(question, Answer(effective, heard.version), heard.files)
        return effective

    def version(self) -> str:
        """The version as ``ssh -V`` gives it, such as ``OpenSSH_9.2p1``."""
        if self._version is None:
            words = re.split(r"[\s,]", self._run([self.path, "-V"]).stderr.strip(), maxsplit=1)
            self._version = words[0]
        return self._version

    def _run(self, command: List[str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="surrogateescape",
                timeout=_LOCAL_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MuxError(
                "timeout", "%s gave no answer in %d seconds" % (" ".join(command), _LOCAL_TIMEOUT)
            ) from None
        except OSError as error:
            raise MuxError("ssh_missing", "%s: %s" % (command[0], error)) from None

    def open_master(
        self,
        arguments: Sequence[Argument],
        host: str,
        *,
        control_path: str,
        secrets: Secrets,
        timeout: float,
    ) -> None:
        """Start a master and wait until it is established and in the background.

        :param control_path: its socket, in a 0700 directory; its log is beside it.
        :param timeout: seconds for all of it.
        :raises LostRace: somebody else's master has the path now.
        :raises MuxError: why the login failed.
        """
        for argument in arguments:
            values = " ".join(map(shlex.quote, argument.values))
            self._log("ssh %s (%s)" % (values, argument.reason))
        command = [self.path, *target.flatten(arguments), "--", host]
        since = time.time()
        with contextlib.ExitStack() as stack:
            # A file and not a pipe: the master may keep what it is given for all its life.
            errors = stack.enter_context(tempfile.TemporaryFile())
            heard = _Heard(errors, control_path)
            environment = dict(os.environ, SSH_ASKPASS_REQUIRE="never")
            runs_as: Optional[Callable[[int], None]] = None
            if secrets:
                answers, runs_as = stack.enter_context(
                    askpass.answering(secrets, os.path.dirname(control_path))
                )
                environment.update(answers)
            stack.enter_context(_many_descriptors())
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    # No controlling terminal to ask at, and one group with its jump hosts' ssh.
                    start_new_session=True,
                    env=environment,
                )
            except OSError as error:
                raise MuxError("ssh_missing", "%s: %s" % (command[0], error)) from None
            if runs_as is not None:
                runs_as(process.pid)
            try:
                lost_race = _wait(process, heard, timeout)
            except BaseException:
                _kill_group(process)
                raise
            own, others = heard.own(), heard.others()
        if lost_race:
            # It has a connection of its own that nobody can reach, here or in the background.
            if process.returncode is None:
                _kill_group(process)
            winner = listeners.holder_of(control_path)
            for orphan in processes.with_arguments(command, since):
                started = processes.start_time(orphan)
                if started is not None and orphan != winner:
                    processes.end(orphan, started, grace=1.0)
            raise LostRace(own)
        if process.returncode != 0:
            reason, text = diagnosis.diagnose(own, others)
            raise MuxError(
                reason,
                "no master to %s: %s"
                % (host, text or "ssh ended with status %d" % process.returncode),
            )


@contextlib.contextmanager
def _many_descriptors() -> Iterator[None]:
    """Let what is started meanwhile open as many files as it may at all.

    Each connection through a master is one, and what a shell allows is 1024 in most places, on
    macOS 256.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
    try:
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _wait(process: subprocess.Popen[bytes], heard: _Heard, timeout: float) -> bool:
    """Wait until ssh ends, or says that it lost the race: whether it did."""
    deadline = time.monotonic() + timeout
    while True:
        ended = process.poll() is not None
        if diagnosis.LOST_RACE.search(heard.own()):
            return True
        if ended:
            return False
        if time.monotonic() >= deadline:
            _reason, text = diagnosis.diagnose(heard.own(), heard.others())
            raise MuxError(
                "timeout",
                "the login did not end within %d seconds%s" % (timeout, text and ": " + text),
            )
        time.sleep(processes.POLL)


class _Heard:
    """All that a starting master says."""

    def __init__(self, errors: IO[bytes], control_path: str) -> None:
        self._errors = errors.fileno()
        self._control_path = control_path
        self._begin = master_log.begin(control_path)

    def own(self) -> str:
        """Its own words: they are in its log."""
        return master_log.since(self._control_path, self._begin)

    def others(self) -> str:
        """Those of its jump hosts' ssh and the server's banner, which are not (-E)."""
        return os.pread(self._errors, 65536, 0).decode("utf-8", "replace")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _joined(text: str) -> str:
    """Lines as one."""
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
