# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the installed ssh makes of a configuration (``ssh -G``), as one of the users.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from ..model.config_file import COMPLAINT, Line, Option
from ..model.errors import MuxError
from ..model.target import parse_effective
from .accounts import Account

#: A bound on each run, in seconds: a ``Match exec`` of the user's may hang.
_TIMEOUT = 10.0

#: A bound on what one run may say, in bytes: such a command may say anything.
_MOST = 1 << 20

_INCLUDED = re.compile(
    r"^debug3: (.+) line ([0-9]+): Including file (.+) depth [0-9]+\s*$", re.MULTILINE
)


def find(executable: str) -> str:
    """Where the executable lies.

    :param executable: a name for PATH or a path.
    :raises MuxError: ``ssh_missing``.
    """
    found = shutil.which(os.path.expanduser(executable))
    if found is None:
        raise MuxError(
            "ssh_missing",
            "no ssh executable %r: install an OpenSSH client (package openssh-client, openssh or"
            " openssh-clients), set ssh_executable, or verify: none" % executable,
        )
    # Looked for once, and not by the process of each user.
    tempfile.gettempdir()
    return found


@dataclass(frozen=True)
class Said:
    """How a run of ssh ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Text:
    """A configuration in a file for ssh to read, and where its lines are from."""

    path: str
    lines: Sequence[Line]


class Judge:
    """Runs ssh as the account that this process is, for good: a ``Match exec`` of the user's
    runs as well.

    :param executable: as :func:`find` found it.
    """

    def __init__(self, executable: str, account: Account) -> None:
        self._executable = executable
        self._account = account
        self._at_once = 2 * (os.cpu_count() or 1)
        # What was found as somebody else may be closed to the account.
        if not os.access(tempfile.gettempdir(), os.W_OK | os.X_OK):
            tempfile.tempdir = None

    @contextlib.contextmanager
    def text(self, lines: Sequence[Line]) -> Iterator[Text]:
        """Have these lines in a file that only the account can read."""
        with tempfile.NamedTemporaryFile(prefix="bastion-mux-") as file:
            file.write(b"".join(line.text + b"\n" for line in lines))
            file.flush()
            yield Text(file.name, lines)

    def accepts(self, lines: Sequence[Line], host: str) -> None:
        """Have ssh read a configuration, all lines of it.

        :raises MuxError: ``invalid``, with the lines that it refuses.
        """
        with self.text(lines) as text:
            self.effective(text, [(host, ())])

    def effective(
        self, text: Text, questions: Sequence[Tuple[str, Sequence[Option]]]
    ) -> List[Dict[str, List[str]]]:
        """What is in force for hosts, each with options that come before the file.

        :raises MuxError: ``invalid`` where ssh refuses the file.
        """
        commands = []
        for host, options in questions:
            forced = [part for option in options for part in ("-o", str(option))]
            commands.append([*forced, "-F", text.path, "-G", "--", host])
        answers = []
        for said in self._run(commands):
            if said.status != 0:
                raise MuxError("invalid", _refusal(said, text))
            answers.append(parse_effective(said.out))
        return answers

    def included(self, text: Text, host: str) -> List[str]:
        """The files that the last line includes for a host."""
        said = self._run([["-vvv", "-F", text.path, "-G", "--", host]])[0]
        last = (text.path, str(len(text.lines)))
        return [path for *where, path in _INCLUDED.findall(said.err) if tuple(where) == last]

    def complains_about_permissions(self, host: str) -> Optional[str]:
        """What ssh says about owner and mode of the files that it reads by itself."""
        said = self._run([["-G", "--", host]])[0]
        found = re.search("^Bad owner or permissions on .*$", said.err, re.MULTILINE)
        return found.group() if found else None

    def _run(self, arguments: Sequence[Sequence[str]]) -> List[Said]:
        """Run ssh with each list of arguments, some of them at once."""
        said: List[Said] = []
        for begin in range(0, len(arguments), self._at_once):
            batch: List[subprocess.Popen[bytes]] = []
            try:
                for each in arguments[begin : begin + self._at_once]:
                    batch.append(self._start(each))
                said += _hear(batch)
            finally:
                for process in batch:
                    _end(process)
        return said

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        account = self._account
        environment = {
            "HOME": account.home,
            "USER": account.name,
            "LOGNAME": account.name,
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
        }
        try:
            return subprocess.Popen(
                [self._executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=environment,
                # One group with whatever a Match exec runs.
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise MuxError("ssh_missing", "%s: %s" % (self._executable, error)) from None


def _refusal(said: Said, text: Text) -> str:
    """What ssh does not like, by the lines' own files and numbers."""
    complaints = []
    for line in said.err.splitlines():
        found = COMPLAINT.match(line)
        if found and found.group("file") == text.path:
            blamed = text.lines[int(found.group("line")) - 1]
            complaints.append(
                "line %d of %s (%s): %s"
                % (blamed.number, blamed.file, blamed.shown, found.group("what"))
            )
        elif line.strip() and not line.startswith(("Pseudo-terminal", text.path + ": terminating")):
            complaints.append(line.strip())
    return "ssh refuses it: " + ("; ".join(complaints) or "it ended with status %d" % said.status)


def _hear(processes: Sequence[subprocess.Popen[bytes]]) -> List[Said]:
    """What processes say, until they end."""
    heard: Dict[int, bytes] = {}
    deadline = time.monotonic() + _TIMEOUT
    with selectors.DefaultSelector() as selector:
        for process in processes:
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    heard[pipe.fileno()] = b""
                    selector.register(pipe.fileno(), selectors.EVENT_READ)
        while selector.get_map():
            if time.monotonic() >= deadline:
                raise MuxError("timeout", "ssh -G gave no answer within %d seconds" % _TIMEOUT)
            for key, _events in selector.select(deadline - time.monotonic()):
                part = os.read(key.fd, 65536)
                heard[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
                if len(heard[key.fd]) > _MOST:
                    raise MuxError("invalid", "ssh -G says more than %d bytes" % _MOST)
    texts = [text.decode("utf-8", "surrogateescape") for text in heard.values()]
    return [
        Said(process.wait(), out, err)
        for process, out, err in zip(processes, texts[::2], texts[1::2])
    ]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Not read to their end: what a Match exec left behind may hold them for ever.
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
