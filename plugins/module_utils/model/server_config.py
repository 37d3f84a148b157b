# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A drop-in of sshd_config: what it says, how sshd comes to read it, what sshd says about it.

What a line means, sshd itself is asked. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import (
    AbstractSet,
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from .characters import refuse_control_characters
from .config_file import (
    COMPLAINT,
    DIRECTORY,
    Edit,
    Line,
    Option,
    edit_absent,
    edit_present,
    lines_of,
    options_of,
    pattern_of,
)
from .errors import MuxError
from .target import quote

#: The name of our block in sshd_config.
BLOCK = "server"

#: In the directory of files, to tell it from one that is somebody else's.
MARKER = ".bastion.mux"
MARKER_TEXT = b"Written by bastion.mux.ssh_server_config: what else is in here is removed\n"

#: Where sshd looks for what an Include names without a leading slash (SSHDIR, as it is built
#: everywhere).
SSHDIR = "/etc/ssh"

_HEADER = "# Written by bastion.mux.ssh_server_config: what is changed here is lost"
_MADE = re.compile(rb"%s \(new: ([a-z]+)\)\n" % re.escape(_HEADER.encode("ascii")))

_INCLUDE = re.compile(r"\s*include(?:\s*=\s*|\s+)(.*)\Z", re.IGNORECASE | re.DOTALL)
_ARGUMENT = re.compile(r"\"([^\"]*)\"|'([^']*)'|(\S+)")
_WORD = re.compile(rb"\s*\"?([A-Za-z][A-Za-z0-9]*)")

#: What sshd says of a keyword that it does not know (servconf.c, parse_token), was built without,
#: or no longer cares about (process_server_config_line_depth).
_UNKNOWN = re.compile(r"Bad configuration option|(?:Unsupported|Deprecated) option")


# -- what is asked for -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One line of the drop-in.

    :ivar match: the condition of the ``Match`` that it is below; ``None``: it counts always.
    """

    option: Option
    match: Optional[str]

    def as_dict(self) -> Dict[str, Any]:
        """An item of the ``left_out`` return value."""
        return {"keyword": self.option.keyword, "match": self.match}


@dataclass(frozen=True)
class DropIn:
    """The settings, those without a condition first."""

    settings: Tuple[Tuple[Optional[str], Tuple[Setting, ...]], ...]

    def lines(self) -> Iterator[Tuple[str, Optional[Setting]]]:
        """Its lines, each with the setting that it is."""
        for match, settings in self.settings:
            if match is not None:
                yield "Match " + match, None
            for setting in settings:
                yield "%s%s" % ("" if match is None else "    ", setting.option), setting

    def without(self, left_out: AbstractSet[Setting]) -> DropIn:
        """The same less some of its settings."""
        return DropIn(
            tuple(
                (match, tuple(one for one in settings if one not in left_out))
                for match, settings in self.settings
            )
        )

    def text(self, *, made_directory: bool) -> bytes:
        """The file.

        :param made_directory: whether its directory was made for it, and goes with it.
        """
        header = _HEADER + (" (new: %s)" % DIRECTORY if made_directory else "")
        lines = [header, *(line for line, _setting in self.lines())]
        return b"".join(line.encode("utf-8", "surrogateescape") + b"\n" for line in lines)


def is_ours(drop_in: bytes) -> bool:
    """Whether this module wrote a drop-in."""
    return drop_in.startswith(_HEADER.encode("ascii"))


def made_directory(drop_in: Optional[bytes]) -> bool:
    """Whether the directory of a drop-in was made for it."""
    found = _MADE.match(drop_in or b"")
    return found is not None and found.group(1).decode("ascii") == DIRECTORY


def parse_drop_in(options: Mapping[Any, Any], matches: Sequence[Mapping[str, Any]]) -> DropIn:
    """The parameters ``options`` and ``matches``.

    :raises MuxError: ``invalid`` for what could break out of its line.
    """
    parts: List[Tuple[Optional[str], Tuple[Setting, ...]]] = []
    parts.append((None, _settings("options", options, None)))
    for index, item in enumerate(matches):
        where = "matches[%d]" % index
        match = pattern_of(where + ".match", item.get("match"))
        parts.append((match, _settings(where + ".options", item.get("options") or {}, match)))
    return DropIn(tuple(parts))


def _settings(where: str, options: Mapping[Any, Any], match: Optional[str]) -> Tuple[Setting, ...]:
    read = options_of(where, options, file="sshd_config", headers=("match",))
    return tuple(Setting(option, match) for option in read)


@dataclass(frozen=True)
class Content:
    """What a file shall be."""

    content: bytes
    mode: int


def parse_files(files: Sequence[Mapping[str, Any]]) -> Dict[str, Content]:
    """The parameter ``files``, by name, and the marker.

    :raises MuxError: ``invalid`` for a name that leads elsewhere, is there twice or is a folder of
        another one, and for a mode by which others could write.
    """
    found = {MARKER: Content(MARKER_TEXT, 0o644)}
    for index, item in enumerate(files):
        where = "files[%d]" % index
        name = str(item["name"])
        refuse_control_characters(where + ".name", name)
        parts = name.split("/")
        if len(parts) > 2 or any(part in ("", ".", "..") for part in parts):
            raise MuxError(
                "invalid", "%s.name: %r must be a name, or a folder and a name" % (where, name)
            )
        if name in found or name == MARKER:
            raise MuxError("invalid", "%s.name: %r is given twice" % (where, name))
        content = item["content"].encode("utf-8", "surrogateescape")
        found[name] = Content(content, _mode(where + ".mode", item.get("mode") or "0644"))
    for name in found:
        folder = name.partition("/")[0]
        if folder != name and folder in found:
            raise MuxError("invalid", "files: %r is a file and a folder" % folder)
    return found


def _mode(where: str, text: str) -> int:
    if not re.match(r"0?[0-7]{3}\Z", text, re.ASCII):
        raise MuxError("invalid", "%s: %r must be an octal number such as '0644'" % (where, text))
    mode = int(text, 8)
    if mode & 0o022:
        raise MuxError("invalid", "%s: %s would let others write" % (where, text))
    return mode


@dataclass(frozen=True)
class Expectation:
    """What shall be in force for a connection.

    :ivar connection: of a user from somewhere, as ``sshd -T -C`` takes it.
    """

    connection: Tuple[Tuple[str, str], ...]
    options: Tuple[Option, ...]

    @property
    def user(self) -> str:
        return dict(self.connection)["user"]

    @property
    def given(self) -> str:
        """The argument of ``-C``."""
        return ",".join("%s=%s" % pair for pair in self.connection)

    def keywords(self, left_out: AbstractSet[str]) -> List[str]:
        """The keywords in small letters, less those that were left out."""
        found = dict.fromkeys(option.keyword.lower() for option in self.options)
        return [keyword for keyword in found if keyword not in left_out]


#: What sshd asks for where a Match depends on it (servconf.c, match_test_missing_fatal).
_DEFAULTS = {
    "host": "localhost",
    "addr": "127.0.0.1",
    "laddr": "127.0.0.1",
    "lport": "22",
}


#: Somebody. Without any, "Match LocalPort" is an error (servconf.c, match_test_missing_fatal).
ANYBODY = "user=root," + ",".join("%s=%s" % pair for pair in _DEFAULTS.items())


def parse_expect(expect: Sequence[Mapping[str, Any]]) -> List[Expectation]:
    """The parameter ``expect``.

    :raises MuxError: ``invalid`` for what could break out of its place.
    """
    found = []
    for index, item in enumerate(expect):
        where = "expect[%d]" % index
        given = {key: value for key, value in item["connection"].items() if value is not None}
        pairs = {key: str(value) for key, value in {"user": "", **_DEFAULTS, **given}.items()}
        for key, value in pairs.items():
            refuse_control_characters("%s.connection.%s" % (where, key), value)
            if not value or "," in value:
                raise MuxError(
                    "invalid", "%s.connection.%s: %r is no %s" % (where, key, value, key)
                )
        options = options_of(
            where + ".options", item.get("options") or {}, file="sshd_config", headers=("match",)
        )
        found.append(Expectation(tuple(pairs.items()), tuple(options)))
    return found


# -- how sshd comes to read it ---------------------------------------------------------------------


def include_patterns(line: bytes) -> Optional[List[str]]:
    """The patterns of an ``Include`` line; ``None`` where it is another one."""
    found = _INCLUDE.match(line.decode("utf-8", "surrogateescape").rstrip(" \t\r\n\f"))
    if found is None:
        return None
    patterns = []
    for quoted, also, plain in _ARGUMENT.findall(found.group(1)):
        if plain.startswith("#"):
            break
        pattern = quoted or also or plain
        patterns.append(pattern if pattern.startswith(("/", "~")) else SSHDIR + "/" + pattern)
    return patterns


def covers(pattern: str, path: str) -> bool:
    """Whether glob(3) would find a path by a pattern."""
    names, globs = path.split("/"), pattern.split("/")
    return len(names) == len(globs) and all(
        fnmatch.fnmatchcase(name, glob) and (not name.startswith(".") or glob.startswith("."))
        for name, glob in zip(names, globs)
    )


def is_included(content: bytes, path: str) -> bool:
    """Whether an sshd_config reads a file before everything else, for every connection."""
    for line in lines_of("", content):
        if line.is_setting:
            patterns = include_patterns(line.text)
            return any(covers(pattern, path) for pattern in patterns or ())
    return False


def edit_config(content: bytes, drop_in: Optional[str]) -> Edit:
    """Have sshd_config read the drop-in, where it does not do so by itself.

    :param drop_in: its path; ``None``: there is none any more.
    :raises MuxError: ``invalid`` where the markers of our block are damaged.
    """
    without = edit_absent(content, BLOCK).after or b""
    if drop_in is None or is_included(without, drop_in):
        return Edit(content, without)
    after = edit_present(without, BLOCK, ["Include " + quote(drop_in)], frozenset()).after
    return Edit(content, after)


# -- what sshd says --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Complaint:
    """What sshd says about a line; ``line`` 0: about the whole."""

    file: str
    line: int
    what: str

    @property
    def is_unknown(self) -> bool:
        """Whether it has no use for the keyword."""
        return _UNKNOWN.match(self.what) is not None

    def __str__(self) -> str:
        return "line %d of %s: %s" % (self.line, self.file, self.what) if self.line else self.what


def complaints(said: str, origin: Callable[[str], Optional[str]]) -> List[Complaint]:
    """What sshd says on its standard error.

    :param origin: the file that one which sshd names is a copy of; ``None``: it names no file.
    """
    found = []
    for line in said.split("\n"):
        text = line.strip()
        parts = COMPLAINT.match(text)
        file = origin(parts.group("file")) if parts else None
        if parts and file is not None:
            found.append(Complaint(file, int(parts.group("line")), parts.group("what")))
        elif text and not re.search(r": terminating, \d+ bad", text):
            found.append(Complaint("", 0, text))
    return found


def parse_version(said: str) -> Optional[str]:
    """The version that ``sshd -V`` tells; before 9.3 it does so while it refuses that option."""
    found = re.search(r"OpenSSH_[^\s,]+", said)
    return found.group() if found else None


#: The output of ``sshd -T``: keyword in small letters to its values.
Effective = Mapping[str, Sequence[str]]

_ADDRESS = re.compile(r"\[?(.*?)\]?:([0-9]+)(?: rdomain .*)?\Z")


def addresses(effective: Effective) -> List[Tuple[str, int]]:
    """Where sshd listens."""
    found = (_ADDRESS.match(text) for text in effective.get("listenaddress", ()))
    return [(one.group(1), int(one.group(2))) for one in found if one]


@dataclass(frozen=True)
class Mismatch:
    """A keyword that is not in force as it is expected."""

    keyword: str
    connection: str
    meant: Tuple[str, ...]
    found: Tuple[str, ...]
    by: Optional[Line] = None

    def as_dict(self) -> Dict[str, Any]:
        """An item of the ``mismatches`` return value."""
        return {
            "connection": self.connection,
            "keyword": self.keyword,
            "meant": list(self.meant),
            "found": list(self.found),
            "file": self.by.file if self.by else None,
            "line": self.by.number if self.by else None,
        }

    def __str__(self) -> str:
        text = "for %s, %s is %s and not %s" % (
            self.connection,
            self.keyword,
            ", ".join(self.found) or "not set",
            ", ".join(self.meant) or "not set",
        )
        if self.by is None:
            return text
        return text + ", because of line %d of %s (%s)" % (
            self.by.number,
            self.by.file,
            self.by.shown,
        )


def mismatches(
    expectation: Expectation, effective: Effective, meant: Effective, left_out: FrozenSet[str]
) -> List[Mismatch]:
    """What is otherwise than expected.

    :param effective: what is in force for the connection.
    :param meant: what sshd makes of the expected options alone, so that spellings do not matter.
    :raises MuxError: ``invalid`` where sshd does not tell.
    """
    found = []
    for keyword in expectation.keywords(left_out):
        if keyword not in meant:
            raise MuxError("invalid", "expect: sshd -T says nothing about %s" % keyword)
        wanted, actual = meant[keyword], effective.get(keyword, ())
        given = [one.value.lower() for one in expectation.options if one.is_of(keyword)]
        if {*given, *actual} <= {"yes", "no"}:
            # By itself a no may mean yes: KbdInteractiveAuthentication is overruled by
            # ChallengeResponseAuthentication, which is yes by default (sshd.c of 8.4).
            wanted = given[:1]
        # A drop-in that is read twice says some things twice.
        if set(wanted) != set(actual):
            found.append(Mismatch(keyword, expectation.given, tuple(wanted), tuple(actual)))
    return found


def keyword_of(line: bytes) -> str:
    """The keyword of a line in small letters; empty where it has none."""
    found = _WORD.match(line)
    return found.group(1).decode("ascii").lower() if found else ""
