# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A managed block in an ssh_config file: what it says, and what shadows it.

What a line means, ssh itself is asked. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
)

from .config_file import Line, Option, options_of, pattern_of

_CONCRETE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*\Z", re.ASCII)


# -- what is asked for -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A ``Host`` or ``Match`` line and what is below it."""

    header: str
    options: Tuple[Option, ...]

    @property
    def hosts(self) -> Tuple[str, ...]:
        """The names among the patterns: what ``ssh -G`` can be asked about."""
        words = self.header.replace('"', " ").split()
        if words[0] == "Match":
            return ()
        return tuple(dict.fromkeys(word for word in words[1:] if _CONCRETE.match(word)))

    def keywords(self) -> Dict[str, List[Option]]:
        """The options by keyword in small letters."""
        found: Dict[str, List[Option]] = {}
        for option in self.options:
            found.setdefault(option.keyword.lower(), []).append(option)
        return found


@dataclass(frozen=True)
class Block:
    """The entries of one managed block."""

    entries: Tuple[Entry, ...]

    def body(self) -> List[str]:
        """Its lines, without the markers."""
        lines = []
        for entry in self.entries:
            lines.append(entry.header)
            lines += ["    %s" % option for option in entry.options]
        # What follows the block counts for every host again, as at the beginning of a file.
        lines.append("Match all")
        return lines

    def placed(self, file: str, first: int) -> List[Line]:
        """Its lines where the first of them is the given line of a file."""
        return [
            Line(file, first + index, text.encode("utf-8", "surrogateescape"))
            for index, text in enumerate(self.body())
        ]

    def headers(self) -> Iterator[Tuple[int, Entry]]:
        """The entries with the index of their header among the lines."""
        index = 0
        for entry in self.entries:
            yield index, entry
            index += 1 + len(entry.options)

    @property
    def hosts(self) -> Tuple[str, ...]:
        """Every concrete host, once."""
        return tuple(dict.fromkeys(host for entry in self.entries for host in entry.hosts))

    @property
    def conditional(self) -> bool:
        """Whether what it means may differ between users."""
        return any(
            entry.header.startswith("Match") or "include" in entry.keywords()
            for entry in self.entries
        )


def parse_block(hosts: Sequence[Mapping[str, Any]]) -> Block:
    """The ``hosts`` parameter.

    :raises MuxError: ``invalid`` for what could break out of its line; whether ssh knows the
        keywords and takes the values is for ssh to say.
    """
    entries = []
    for index, item in enumerate(hosts):
        where = "hosts[%d]" % index
        kind = "host" if item.get("host") is not None else "match"
        pattern = pattern_of(where + "." + kind, item.get(kind))
        options = options_of(
            where + ".options",
            item.get("options") or {},
            file="ssh_config",
            headers=("host", "match"),
        )
        entries.append(Entry("%s %s" % (kind.capitalize(), pattern), tuple(options)))
    return Block(tuple(entries))


# -- what is in force ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shadowed:
    """A setting that does not count, because an earlier line has the say."""

    host: str
    keyword: str
    wanted: str
    actual: str
    by: Line

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Shadowed:
        """What :meth:`as_dict` made."""
        rest = dict(fields)
        return cls(by=Line(rest.pop("file"), rest.pop("line"), b""), **rest)

    def moved(self, file: str, lines: int) -> Shadowed:
        """The same in another file, as many lines further down."""
        by = Line(file, self.by.number + lines, self.by.text)
        return Shadowed(self.host, self.keyword, self.wanted, self.actual, by)

    def as_dict(self) -> Dict[str, Any]:
        """An item of the ``shadowed`` return value."""
        return {
            "host": self.host,
            "keyword": self.keyword,
            "wanted": self.wanted,
            "actual": self.actual,
            "file": self.by.file,
            "line": self.by.number,
        }

    def __str__(self) -> str:
        return "for %s, %s %s is shadowed by line %d of %s (%s is in force)" % (
            self.host,
            self.keyword,
            self.wanted,
            self.by.number,
            self.by.file,
            self.actual,
        )


#: The output of ``ssh -G``: keyword in small letters to its values.
Effective = Mapping[str, Sequence[str]]


def differing(plain: Effective, forced: Effective, option: str) -> List[str]:
    """What would be otherwise if an option came first, by the keywords that ssh prints.

    Its own keyword, where ssh prints that: another one may be otherwise as a consequence. Else
    all of them, for the option may have an old name. Of keywords that add up (IdentityFile,
    SendEnv) the order does not count, nor repetition.
    """
    keywords = [option.lower()] if option.lower() in forced else list(forced)
    return [word for word in keywords if set(forced[word]) != set(plain.get(word, ()))]


def culprit(
    lines: Sequence[Line],
    shadows: Callable[[Sequence[Line]], bool],
    included: Callable[[Sequence[Line]], Iterable[Sequence[Line]]],
    base: Sequence[Line] = (),
) -> Optional[Line]:
    """The line that shadows a setting; ``None`` where none of them does.

    The first value counts: a setting that is shadowed after some lines is so after more of them.

    :param lines: what ssh reads before the setting.
    :param shadows: whether a setting would have no effect after these lines.
    :param included: the files, as lines, that the last one of these lines includes.
    :param base: what is read before ``lines``, and is not to blame.
    """
    if not shadows([*base, *lines]):
        return None
    low, high = 0, len(lines)
    while high - low > 1:
        middle = (low + high) // 2
        if shadows([*base, *lines[:middle]]):
            high = middle
        else:
            low = middle
    above = [*base, *lines[:low]]
    for file in included([*above, lines[low]]):
        found = culprit(file, shadows, included, above)
        if found is not None:
            return found
        # The end of an included file ends what it narrowed (readconf.c, oInclude).
        above += [*file, Line("", 0, b"Match all")]
    return lines[low]
