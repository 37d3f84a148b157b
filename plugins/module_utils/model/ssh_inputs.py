# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the answer of ``ssh -G`` depends on: read from what ssh says and from its configuration.

Anything that is not understood here is taken for something that changes all the time. Private to
the collection: no promise is made about it.
"""

from __future__ import annotations

import re
from typing import Iterable, List, Mapping, NamedTuple, Optional, Tuple

#: What ``-v`` adds to the errors of ssh, unless a level was set before it.
_DEBUG = re.compile(r"debug1: |OpenSSH_\S+ ?[^,]*, ")
_VERSION = re.compile(r"(?:debug1: )?(OpenSSH_[^\s,]+)[^,]*, ")
_READ = re.compile(r"debug1: Reading configuration data (.+)")

_INCLUDE = re.compile(rb"\s*include(?:\s*=\s*|\s+)([^\"'\\%#\[{]+)\Z", re.IGNORECASE)

#: Conditions that ask programs or the network, and values from the environment (ssh_config(5)).
_CHANGING = re.compile(rb"exec|localnetwork|\$", re.IGNORECASE)


class Heard(NamedTuple):
    """What ssh said beside its answer.

    :ivar errors: without the messages of ``-v``.
    :ivar version: such as ``OpenSSH_9.2p1``; ``None`` where it was not said.
    :ivar files: the configuration that was read.
    """

    errors: str
    version: Optional[str]
    files: Tuple[str, ...]


def heard(stderr: str) -> Heard:
    """Take apart what ``ssh -v -G`` says."""
    lines = stderr.split("\n")
    versions = (_VERSION.match(line) for line in lines)
    files = (_READ.match(line) for line in lines)
    return Heard(
        "\n".join(line for line in lines if not _DEBUG.match(line)),
        next((match.group(1) for match in versions if match), None),
        tuple(dict.fromkeys(match.group(1).rstrip("\r") for match in files if match)),
    )


def is_lasting(effective: Mapping[str, List[str]]) -> bool:
    """Whether ssh asked no name server for its answer."""
    return effective.get("canonicalizehostname", ["false"])[0] in ("false", "no")


def includes(content: bytes) -> Optional[List[str]]:
    """The patterns of the ``Include`` lines of a configuration file.

    :returns: ``None`` where the file's meaning depends on more than the files it includes.
    """
    found: List[str] = []
    for line in map(bytes.strip, content.split(b"\n")):
        if line.startswith(b"#"):
            continue
        if _CHANGING.search(line):
            return None
        if b"include" in line.lower():
            match = _INCLUDE.match(line)
            if match is None:
                return None
            found += match.group(1).decode("utf-8", "surrogateescape").split()
    if any(name.startswith("~") and not name.startswith("~/") for name in found):
        return None
    return found


def places(pattern: str, home: str, files: Iterable[str]) -> List[str]:
    """Where ssh looks for what an ``Include`` line names (readconf.c, oInclude).

    A relative name is one of the user's directory or of the system's, by whose file it is in.
    """
    if pattern.startswith("~/"):
        return [home + pattern[1:]]
    if pattern.startswith("/"):
        return [pattern]
    directories = dict.fromkeys([home + "/.ssh", *(name.rpartition("/")[0] for name in files)])
    return ["%s/%s" % (directory, pattern) for directory in directories]
