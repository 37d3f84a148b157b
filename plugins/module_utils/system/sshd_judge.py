# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the installed sshd makes of a configuration (``sshd -t``, ``sshd -T -C``).

A configuration that is not in place yet is judged from copies of all files that sshd would read.
Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..model import server_config as model
from ..model.config_file import Line, Option, lines_of
from ..model.errors import MuxError
from ..model.server_config import Complaint
from ..model.target import parse_effective, quote
from . import user_file

#: Seconds for one run.
_TIMEOUT = 30.0

#: The bytes that a configuration may have.
_MOST = 1 << 20

#: Levels of Include (servconf.h, SERVCONF_MAX_DEPTH).
_DEEPEST = 16


@dataclass(frozen=True)
class Said:
    """How a run of sshd ended."""

    status: int
    out: str
    err: str


class Sshd:
    """The installed sshd.

    :raises MuxError: ``ssh_missing``.
    """

    def __init__(self, executable: str) -> None:
        places = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin:/usr/local/sbin"
        found = shutil.which(os.path.expanduser(executable), path=places)
        if found is None:
            raise MuxError(
                "ssh_missing",
                "no sshd executable %r: install an OpenSSH server (package openssh-server or"
                " openssh), or set sshd_executable" % executable,
            )
        # It insists on an absolute path.
        self.executable = os.path.abspath(found)

    def version(self) -> Optional[str]:
        """Such as ``OpenSSH_9.2p1``."""
        return model.parse_version(self._run("-V").err)

    def check(self, config: str) -> Said:
        """Have it read a configuration, host keys included."""
        return self._run("-t", "-f", config)

    def effective(self, config: str, connection: str = model.ANYBODY) -> Dict[str, List[str]]:
        """What is in force for a connection.

        :raises MuxError: ``invalid`` where it refuses the configuration.
        """
        said = self._run("-T", "-C", connection, "-f", config)
        if said.status != 0:
            raise MuxError("invalid", "sshd refuses it: %s" % said.err.strip())
        return parse_effective(said.out)

    def _run(self, *arguments: str) -> Said:
        try:
            done = subprocess.run(
                [self.executable, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MuxError(
                "timeout", "sshd %s gave no answer within %d seconds" % (arguments[0], _TIMEOUT)
            ) from None
        except (OSError, subprocess.SubprocessError) as error:
            raise MuxError("ssh_missing", "%s: %s" % (self.executable, error)) from None
        out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
        return Said(done.returncode, out, err)


@dataclass
class Candidate:
    """A configuration as it would be, in files of its own.

    :ivar path: of the copy that sshd is given.
    :ivar places: the copy of each file that sshd would read.
    """

    sshd: Sshd
    top: str
    contents: Mapping[str, bytes]
    absent: Sequence[str]
    moved: Mapping[str, str]
    path: str = ""
    places: Dict[str, str] = field(default_factory=dict)

    def original(self, text: str) -> str:
        """A text of sshd's, with the paths that things will have."""
        for path, place in self.moved.items():
            text = text.replace(place, path)
        return text

    def _origin(self, place: str) -> Optional[str]:
        return next((path for path, copy in self.places.items() if copy == place), None)

    def copy(self, path: str, depth: int = 0) -> str:
        """Have a copy of a file, and of those that it includes."""
        if path in self.places:
            return self.places[path]
        place = self.places[path] = os.path.join(self.top, "%03d" % len(self.places))
        content = self.contents.get(path)
        is_ours = content is not None
        if content is None:
            content = user_file.read(os.path.realpath(path), most=_MOST) or b""
        lines = []
        for line in lines_of(path, content):
            text = line.text
            patterns = model.include_patterns(text)
            if patterns is not None and depth < _DEEPEST:
                found = [one for pattern in patterns for one in self._matching(pattern)]
                copies = [quote(self.copy(one, depth + 1)) for one in found]
                text = os.fsencode("Include " + " ".join(copies or [self.top + "/none"]))
            elif is_ours:
                for old, new in self.moved.items():
                    text = text.replace(os.fsencode(old + "/"), os.fsencode(new + "/"))
            lines.append(text)
        _write(place, b"".join(line + b"\n" for line in lines))
        return place

    def _matching(self, pattern: str) -> List[str]:
        """What glob(3) would find, in its order."""
        # A directory is read as if it were empty.
        found = {os.fsencode(one) for one in glob.glob(pattern) if not os.path.isdir(one)}
        found -= {os.fsencode(one) for one in self.absent}
        found |= {os.fsencode(one) for one in self.contents if model.covers(pattern, one)}
        return [os.fsdecode(one) for one in sorted(found)]

    def check(self) -> Tuple[bool, List[Complaint]]:
        """Whether sshd takes it, and what it says about it."""
        said = self.sshd.check(self.path)
        found = model.complaints(said.err, self._origin)
        return said.status == 0, [
            Complaint(one.file, one.line, self.original(one.what)) for one in found
        ]

    def effective(self, connection: str = model.ANYBODY) -> Dict[str, List[str]]:
        """What would be in force.

        :raises MuxError: ``invalid`` where sshd refuses it.
        """
        found = self.sshd.effective(self.path, connection)
        return {key: [self.original(value) for value in values] for key, values in found.items()}

    def meaning(self, options: Sequence[Option]) -> Dict[str, List[str]]:
        """What options mean, by themselves.

        :raises MuxError: ``invalid`` where sshd refuses them.
        """
        keys = [Option("HostKey", one) for one in self.effective().get("hostkey", ())]
        lines = [*(str(one) for one in keys), *(str(one) for one in options)]
        alone = os.path.join(self.top, "alone")
        _write(alone, os.fsencode("".join(line + "\n" for line in lines)))
        try:
            return self.sshd.effective(alone)
        except MuxError as error:
            raise MuxError(error.reason, "expect: %s" % error.message) from None

    def culprit(self, keyword: str, connection: str) -> Optional[Line]:
        """The line but for which a keyword would have another value for a connection."""
        now = self.effective(connection).get(keyword)
        for path, place in self.places.items():
            content = user_file.read(place) or b""
            lines = [line.text for line in lines_of(path, content)]
            for index, text in enumerate(lines):
                if model.keyword_of(text) != keyword:
                    continue
                try:
                    less = [*lines[:index], b"", *lines[index + 1 :]]
                    _write(place, b"\n".join(less) + b"\n")
                    otherwise = self.effective(connection).get(keyword)
                except MuxError:
                    # It needs this line.
                    continue
                finally:
                    _write(place, content)
                if otherwise != now:
                    return Line(path, index + 1, text)
        return None


def _write(path: str, content: bytes, mode: int = 0o600) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


@contextlib.contextmanager
def candidate(
    sshd: Sshd,
    config: str,
    *,
    contents: Mapping[str, bytes],
    absent: Sequence[str],
    directory: str,
    files: Mapping[str, model.Content],
) -> Iterator[Candidate]:
    """A configuration as it would be.

    :param contents: of the files that would be otherwise than they are, by path.
    :param absent: the files that would not be there.
    :param directory: what ``files`` would be in.
    """
    with tempfile.TemporaryDirectory(prefix="bastion-mux-") as top:
        moved = os.path.join(top, "directory")
        said = b"\n".join(contents.values())
        for name, one in files.items():
            # A host certificate, for one; of a thousand keys of users sshd reads none.
            if os.fsencode(os.path.join(directory, name)) in said:
                place = os.path.join(moved, name)
                os.makedirs(os.path.dirname(place), exist_ok=True)
                _write(place, one.content, one.mode)
        made = Candidate(sshd, top, contents, absent, {directory: moved})
        made.path = made.copy(config)
        yield made
