# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a configuration of OpenSSH is made of: options, lines, and blocks that are ours.

Whatever is outside of a block is bytes that nobody here reads, but for the marker lines of blocks.
Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import AbstractSet, Any, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Tuple

from .errors import MuxError

#: What a run had to make for a block, and takes away with the last one: kept in the BEGIN line,
#: so that a file can be given back as it was with nothing but the file.
DIRECTORY = "directory"
FILE = "file"
CONTROL_DIR = "control_dir"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z", re.ASCII)
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]*\Z", re.ASCII)
#: Anything that was a marker of ours once, whatever an edit made of it.
_MARKER = re.compile(rb"[ \t]*#+[ \t]*(BEGIN|END)[ \t]+bastion\.mux\b(.*)\Z", re.DOTALL)
_CARRIAGE_RETURN = re.compile(rb"[^\n]*\r\n")
_SOUND = re.compile(
    rb"# (?:BEGIN|END) bastion\.mux ([\w.-]+)(?: \(new: ([a-z_, ]+)\))?\Z", re.ASCII
)
#: How ssh and sshd complain about a line.
COMPLAINT = re.compile(r"^(?P<file>.+?):? line (?P<line>[0-9]+): (?P<what>.*)$")


# -- options and lines -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """A keyword with its value, as it is written."""

    keyword: str
    value: str

    def is_of(self, keyword: str) -> bool:
        """Whether it has this keyword."""
        return self.keyword.lower() == keyword.lower()

    def __str__(self) -> str:
        return "%s %s" % (self.keyword, self.value)


@dataclass(frozen=True)
class Line:
    """A line of a configuration, without its end, and where it stands."""

    file: str
    number: int
    text: bytes

    @property
    def is_setting(self) -> bool:
        """Whether it is more than blank or a comment."""
        return self.text.strip(b" \t\r\n\f")[:1] not in (b"", b"#")

    @property
    def shown(self) -> str:
        """Its text for a message: nothing in it can do anything to a terminal."""
        text = self.text.strip(b" \t\r\n\f")
        # Not by a codec: who asks may not be able to import it any more.
        return repr(text[:77] + b"..." if len(text) > 80 else text)[2:-1]


def lines_of(file: str, content: bytes) -> List[Line]:
    """The lines as ssh counts them: they end with a line feed and with nothing else."""
    texts = content.split(b"\n")
    if not texts[-1]:
        texts.pop()
    return [Line(file, number, text) for number, text in enumerate(texts, 1)]


def options_of(
    where: str, options: Mapping[Any, Any], *, file: str, headers: Sequence[str]
) -> Iterator[Option]:
    """The options of one entry, with a line for each value.

    :param where: the parameter that they are from.
    :param file: whose keywords they are.
    :param headers: the keywords that begin an entry, in small letters.
    :raises MuxError: ``invalid`` for what could break out of its line; whether OpenSSH knows the
        keywords and takes the values is for OpenSSH to say.
    """
    seen = set()
    for keyword, value in options.items():
        if not isinstance(keyword, str) or not _KEYWORD.match(keyword):
            raise MuxError("invalid", "%s: %r is not a keyword of %s" % (where, keyword, file))
        if keyword.lower() in headers:
            raise MuxError("invalid", "%s: %s begins an entry of its own" % (where, keyword))
        if keyword.lower() in seen:
            raise MuxError("invalid", "%s: %s is given twice" % (where, keyword))
        seen.add(keyword.lower())
        for one in value if isinstance(value, (list, tuple)) else [value]:
            yield Option(keyword, line_of("%s.%s" % (where, keyword), one))


def line_of(where: str, value: Any) -> str:
    """A value that stays on its line.

    :raises MuxError: ``invalid``.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (str, int, float)):
        raise MuxError("invalid", "%s: needs a string" % where)
    text = str(value)
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise MuxError("invalid", "%s: %r contains a control character" % (where, text))
    if not text.strip():
        raise MuxError("invalid", "%s: is empty" % where)
    return text.strip()


def pattern_of(where: str, value: Any) -> str:
    """What follows ``Host`` or ``Match``.

    :raises MuxError: ``invalid``, as :func:`line_of`, and for a comment.
    """
    pattern = line_of(where, value)
    if "#" in pattern:
        raise MuxError("invalid", "%s: %r holds a comment" % (where, pattern))
    return pattern


# -- blocks ----------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Refuse what cannot be the name of a block.

    :raises MuxError: ``invalid``.
    """
    if not _NAME.match(name):
        raise MuxError(
            "invalid",
            "name: %r must be letters, digits, dots, dashes and underscores, 64 at most" % name,
        )


@dataclass(frozen=True)
class Found:
    """Where a block is in a file.

    :ivar start: the offset of its BEGIN line.
    :ivar end: the offset after its END line.
    :ivar line: the number of its BEGIN line.
    :ivar new: what was made for it.
    """

    start: int
    end: int
    line: int
    new: FrozenSet[str]


def find(content: bytes, name: str) -> Optional[Found]:
    """The block of this name.

    :raises MuxError: ``invalid`` where a marker is damaged, missing or there twice, by its line.
    """
    found: Optional[Found] = None
    opened: Optional[Found] = None
    offset = 0
    for line in lines_of("", content):
        marker = _MARKER.match(line.text.rstrip(b" \t\r"))
        end = min(offset + len(line.text) + 1, len(content))
        if marker:
            whose, new = _owner(line)
            is_ours = whose == name
            if marker.group(1) == b"BEGIN" and is_ours:
                if opened or found:
                    raise _damage(line, "a second BEGIN of this block")
                opened = Found(offset, offset, line.number, new)
            elif is_ours:
                if opened is None:
                    raise _damage(line, "an END of this block without its BEGIN")
                found, opened = Found(opened.start, end, opened.line, opened.new), None
            elif opened:
                raise _damage(line, "a marker of the block %s inside of this one" % whose)
        offset = end
    if opened:
        raise MuxError(
            "invalid", "line %d: a BEGIN of this block without its END; mend it" % opened.line
        )
    return found


def _owner(line: Line) -> Tuple[str, FrozenSet[str]]:
    sound = _SOUND.match(line.text.rstrip(b" \t\r"))
    if sound is None:
        raise _damage(line, "a damaged marker of a managed block")
    new = (sound.group(2) or b"").decode("ascii")
    return sound.group(1).decode("ascii"), frozenset(part for part in new.split(", ") if part)


def _damage(line: Line, what: str) -> MuxError:
    return MuxError(
        "invalid",
        "line %d: %s (%s); mend or remove it, then run again" % (line.number, what, line.shown),
    )


@dataclass(frozen=True)
class Edit:
    """What becomes of a file; ``None`` is no file. Check mode, diff and apply all read this.

    :ivar line: the number of the block's BEGIN line afterwards.
    :ivar above: what is above the block.
    :ivar below: what is below it.
    :ivar gone: what was made for the block that goes, and may go with it.
    """

    before: Optional[bytes]
    after: Optional[bytes]
    line: int = 1
    above: bytes = b""
    below: bytes = b""
    gone: FrozenSet[str] = frozenset()

    @property
    def actions(self) -> bool:
        """Whether there is anything to do."""
        return self.before != self.after

    def around(self, file: str) -> Tuple[List[Line], List[Line]]:
        """The lines above the block and those below it, by their numbers in the file as it is."""
        lines = lines_of(file, self.before or b"")
        above, below = self.above.count(b"\n"), len(lines_of(file, self.below))
        return lines[:above], lines[len(lines) - below :]


def edit_present(
    content: Optional[bytes], name: str, body: Sequence[str], new: AbstractSet[str]
) -> Edit:
    """Bring a block into a file: where it is, else at the top, where nothing can shadow it.

    :param content: of the file, ``None`` where there is none.
    :param new: what has to be made for it besides the file.
    :raises MuxError: ``invalid``, as :func:`find`.
    """
    before = content or b""
    found = find(before, name)
    start, end, made = (found.start, found.end, found.new) if found else (0, 0, frozenset())
    above, below = before[:start], before[end:]
    line_end = b"\r\n" if _CARRIAGE_RETURN.match(above + below) else b"\n"
    marks = set(made) | set(new) | ({FILE} if content is None else set())
    # Whichever block goes last takes the file with it.
    marks |= _marks(above + below) & {FILE, DIRECTORY}
    begin = "# BEGIN bastion.mux " + name
    if marks:
        begin += " (new: %s)" % ", ".join(sorted(marks))
    lines = [begin, *body, "# END bastion.mux " + name]
    block = b"".join(line.encode("utf-8", "surrogateescape") + line_end for line in lines)
    return Edit(content, above + block + below, above.count(b"\n") + 1, above, below)


def edit_absent(content: Optional[bytes], name: str) -> Edit:
    """Take a block out of a file; the file goes too where it was made for it and has no more.

    :raises MuxError: ``invalid``, as :func:`find`.
    """
    found = find(content or b"", name)
    if content is None or found is None:
        return Edit(content, content)
    left = content[: found.start] + content[found.end :]
    is_trace = not left and FILE in found.new
    gone = found.new if is_trace else found.new & {CONTROL_DIR}
    return Edit(content, None if is_trace else left, gone=gone)


def _marks(content: bytes) -> AbstractSet[str]:
    """What was made for other blocks."""
    marks: AbstractSet[str] = frozenset()
    for line in lines_of("", content):
        if _MARKER.match(line.text.rstrip(b" \t\r")):
            marks = marks | _owner(line)[1]
    return marks
