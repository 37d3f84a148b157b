# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``ssh_master_info`` returns, as lines for a terminal and as a picture's coordinates.

Pure: dictionaries in, text and numbers out. Nothing is escaped here; the template of the page does
that. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Dict = dict[str, Any]

#: What a forwarding leads to when whoever connects decides.
ANYWHERE = "any host (SOCKS)"

GOOD, BAD, UNKNOWN = "good", "bad", "unknown"


# -- words -----------------------------------------------------------------------------------------


def clean(text: object) -> str:
    """Text that moves no cursor and turns no direction of writing: one visible line."""
    return "".join(
        char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(text)
    )


def width(text: str) -> int:
    """How many columns of a fixed-width font the text takes."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def clip(text: str, columns: int) -> str:
    """The text, or its beginning and its end with an ellipsis between them."""
    if width(text) <= columns:
        return text
    head, tail = "", ""
    for index in range(len(text)):
        if width(head + tail) + 3 > columns:
            break
        if index % 3 == 2:
            tail = text[-1 - index // 3] + tail
        else:
            head = text[: len(head) + 1]
    return head + "\N{HORIZONTAL ELLIPSIS}" + tail


def address(host: object, port: object) -> str:
    """``host:port``, an IPv6 address in brackets."""
    name = clean(host)
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _end(forward: Mapping[str, Any], side: str) -> str | None:
    if forward.get(f"{side}_socket") is not None:
        return clean(forward[f"{side}_socket"])
    if forward.get(f"{side}_port") is not None:
        return address(forward.get(f"{side}_host") or "localhost", forward[f"{side}_port"])
    return None


def describe_forward(forward: Mapping[str, Any]) -> Dict:
    """One forwarding in words: ``near`` is on the controller, ``far`` at the bastion or beyond."""
    listens = _end(forward, "listen") or "?"
    leads = _end(forward, "connect") or ANYWHERE
    remote = forward.get("type") == "remote"
    probe = forward.get("probe")
    health, words = UNKNOWN, "open"
    if probe is not None and probe.get("reachable"):
        health, words = GOOD, "reachable"
    elif probe is not None:
        health, words = BAD, "unreachable"
    return {
        "type": clean(forward.get("type")),
        "automatic": forward.get("allocated_port") is not None,
        "listens": listens,
        "leads": leads,
        "near": leads if remote else listens,
        "far": listens if remote else leads,
        "remote": remote,
        "health": health,
        "words": words,
        "detail": clean((probe or {}).get("msg") or ""),
        "evidence": clean(forward.get("evidence") or ""),
    }


def describe_master(master: Mapping[str, Any]) -> Dict:
    """One master in words, with its forwardings sorted."""
    path = clean(master.get("control_path"))
    host, port, user = (master.get(key) for key in ("host", "port", "user"))
    login = ""
    if host is not None:
        login = clean(host) if port is None else address(host, port)
        login = login if user is None else f"{clean(user)}@{login}"
    health, words = GOOD, "alive"
    if not master.get("alive"):
        health, words = BAD, clean(master.get("reason") or "not_running").replace("_", " ")
        if master.get("stale"):
            words = "stale socket"
    elif master.get("reason"):
        health, words = BAD, clean(master["reason"])
    probe = master.get("probe") or {}
    forwards = [describe_forward(forward) for forward in master.get("forwards") or []]
    if health == BAD:
        # They may still listen, but what connects to them goes nowhere.
        forwards = [{**forward, "health": BAD, "words": "cut off"} for forward in forwards]
    return {
        "name": path.rpartition("/")[2] if host is None else clean(host),
        "login": login,
        "jump": [clean(hop) for hop in master.get("jump") or []],
        "control_path": path,
        "pid": master.get("pid"),
        "managed": bool(master.get("managed")),
        "persist": clean(master.get("persist") or ""),
        "started": clean(master.get("started") or ""),
        "openssh": clean(master.get("openssh") or ""),
        "health": health,
        "words": words,
        "detail": clean(probe.get("msg") or master.get("msg") or ""),
        "forwards": sorted(forwards, key=_by_listener),
    }


def _by_listener(forward: Mapping[str, Any]) -> tuple[object, ...]:
    host, _colon, port = forward["listens"].rpartition(":")
    number = int(port) if port.isdigit() else 0
    return (forward["type"], host, number, forward["listens"], forward["leads"])


def describe(masters: Iterable[Mapping[str, Any]]) -> list[Dict]:
    """Every master once, those behind the same hosts beside each other."""
    found = {str(master.get("control_path")): describe_master(master) for master in masters}
    return sorted(found.values(), key=lambda m: (m["jump"], m["name"], m["control_path"]))


# -- lines for a terminal --------------------------------------------------------------------------

#: Wider cells push what follows them to the right, instead of the whole column.
_MOST_COLUMNS = 32


def lines(masters: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table of the masters, each with its forwardings below it."""
    rows: list[tuple[str, str, str]] = []
    for master in describe(masters):
        where = [master["login"]] if master["login"] else []
        if master["jump"]:
            where.append("through " + ", ".join(master["jump"]))
        where.append(master["control_path"])
        if master["pid"] is not None:
            where.append(f"process {master['pid']}")
        if master["pid"] is not None and not master["managed"]:
            where.append("of another program")
        if master["detail"]:
            where.append(master["detail"])
        rows.append((master["name"], master["words"], "  ".join(where)))
        for forward in master["forwards"]:
            ends = f"{forward['listens']} -> {forward['leads']}"
            if forward["detail"]:
                ends += f"  ({forward['detail']})"
            rows.append((f"  {forward['type']}", forward["words"], ends))
    if not rows:
        return ["No masters."]
    columns = [min(_MOST_COLUMNS, max(width(row[index]) for row in rows)) for index in range(2)]
    return [
        "  ".join(
            [*(row[i] + " " * (columns[i] - width(row[i])) for i in range(2)), row[2]]
        ).rstrip()
        for row in rows
    ]


# -- a picture -------------------------------------------------------------------------------------

#: Pixels: the advance of a 12 pixel fixed-width font is 7.2 or a little less, whichever it is.
_CHAR = 7.25
_ROW = 20
_PAD = 10
_GAP = 34
_SPACE = 12
_HEAD = 26
#: A box has room for a name, a login and a state.
_LEAST_ROWS = 3
#: So much fits on a printed page; what is longer goes on in the next picture.
_SHEET_ROWS = 42

_NEAR, _HOP, _BASTION, _FAR = 30, 22, 28, 32


@dataclass(frozen=True)
class _Part:
    """The forwardings of a master that go into one picture, and how many pictures it has."""

    master: Dict
    forwards: Sequence[Dict]
    number: int = 1
    of: int = 1

    @property
    def rows(self) -> int:
        return max(len(self.forwards), _LEAST_ROWS)

    @property
    def height(self) -> int:
        return self.rows * _ROW

    @property
    def path(self) -> list[str]:
        return list(self.master["jump"])


@dataclass
class _Columns:
    """Where everything stands from left to right."""

    near: float = 0
    hops: list[float] = field(default_factory=list)
    bastion: float = 0
    far: float = 0

    def hop_left(self, depth: int) -> float:
        return self.near + _GAP + sum(width + _GAP for width in self.hops[:depth])

    @property
    def bastion_left(self) -> float:
        return self.hop_left(len(self.hops))

    @property
    def bastion_right(self) -> float:
        return self.bastion_left + self.bastion

    @property
    def far_left(self) -> float:
        return self.bastion_right + _GAP

    @property
    def right(self) -> float:
        return self.far_left + self.far


def sheets(masters: Sequence[Dict]) -> list[Dict]:
    """Pictures of who reaches what through whom, each of them as high as a page at most.

    From left to right there are the controller, the hosts that are jumped through, the bastions
    and what lies beyond them; each forwarding is a lane through all of these.
    """
    return [_sheet(parts) for parts in _paginate(masters)]


def _paginate(masters: Sequence[Dict]) -> list[list[_Part]]:
    pages: list[list[_Part]] = []
    room = 0
    for part in (part for master in masters for part in _split(master)):
        if part.rows > room:
            pages.append([])
            room = _SHEET_ROWS
        pages[-1].append(part)
        room -= part.rows + 1  # the space below it
    return pages


def _split(master: Dict) -> list[_Part]:
    forwards = master["forwards"]
    starts = range(0, max(len(forwards), 1), _SHEET_ROWS)
    return [
        _Part(master, forwards[start : start + _SHEET_ROWS], number, len(starts))
        for number, start in enumerate(starts, 1)
    ]


def _text(words: str, columns: int) -> Dict:
    """What is drawn of a text, and the whole of it where that is not the same."""
    drawn = clip(words, columns)
    return {"text": drawn, "full": words if drawn != words else ""}


def _size(texts: Iterable[str], most: int, least: int = 10) -> float:
    columns = max([least, *(min(most, width(text)) for text in texts)])
    return columns * _CHAR + 2 * _PAD


def _sheet(parts: Sequence[_Part]) -> Dict:
    depth = max(len(part.path) for part in parts)
    forwards = [forward for part in parts for forward in part.forwards]
    columns = _Columns(
        near=_size((f["near"] for f in forwards), _NEAR, len("this controller")),
        hops=[
            _size((part.path[d] for part in parts if len(part.path) > d), _HOP)
            for d in range(depth)
        ],
        bastion=_size((t for part in parts for t in _box_texts(part)), _BASTION),
        far=_size((f["far"] for f in forwards), _FAR) if forwards else 0,
    )
    tops = []
    top = float(_HEAD)
    for part in parts:
        tops.append(top)
        top += part.height + _SPACE
    bottom = top - _SPACE
    return {
        "width": round(columns.right + 2),
        "height": round(bottom + 2),
        "heads": _heads(columns, depth, bool(forwards)),
        "controller": {"x": 1, "y": _HEAD, "w": columns.near, "h": bottom - _HEAD},
        "hops": _hops(parts, tops, columns),
        "masters": [_master(part, y, columns) for part, y in zip(parts, tops, strict=True)],
    }


def _box_texts(part: _Part) -> list[str]:
    name = part.master["name"]
    if part.of > 1:
        name += f" ({part.number}/{part.of})"
    return [name, part.master["login"], part.master["words"]]


def _heads(columns: _Columns, depth: int, beyond: bool) -> list[Dict]:
    heads = [{"x": 1 + columns.near / 2, "text": "this controller"}]
    for number in range(depth):
        heads.append({"x": columns.hop_left(number) + columns.hops[number] / 2, "text": "jump"})
    heads.append({"x": columns.bastion_left + columns.bastion / 2, "text": "bastion"})
    if beyond:
        heads.append({"x": columns.far_left + columns.far / 2, "text": "beyond"})
    return heads


def _hops(parts: Sequence[_Part], tops: Sequence[float], columns: _Columns) -> list[Dict]:
    """One box for each jump host, as high as all the masters that are reached through it."""
    boxes: list[Dict] = []
    for depth in range(len(columns.hops)):
        before: list[str] | None = None
        for part, top in zip(parts, tops, strict=True):
            path = part.path[: depth + 1]
            if len(path) <= depth:
                before = None
                continue
            if path == before:
                boxes[-1]["h"] = top + part.height - boxes[-1]["y"]
            else:
                boxes.append(
                    {
                        "x": columns.hop_left(depth),
                        "y": top,
                        "w": columns.hops[depth],
                        "h": part.height,
                        **_text(path[depth], _HOP),
                    }
                )
            before = path
    return boxes


def _master(part: _Part, top: float, columns: _Columns) -> Dict:
    first = top + (part.rows - len(part.forwards)) * _ROW / 2 + _ROW / 2
    name, login, _words = _box_texts(part)
    return {
        "health": part.master["health"],
        "words": part.master["words"],
        "name": _text(name, _BASTION),
        "login": _text(login, _BASTION),
        "x": columns.bastion_left,
        "y": top,
        "w": columns.bastion,
        "h": part.height,
        "middle": top + part.height / 2,
        "tube": {"x": columns.near + 1, "w": columns.bastion_left - columns.near - 1},
        "lanes": [
            {
                "type": forward["type"],
                "remote": forward["remote"],
                "health": forward["health"],
                "words": forward["words"],
                "y": first + index * _ROW,
                "left": columns.near + 1,
                "right": columns.far_left,
                "near": _text(forward["near"], _NEAR),
                "far": _text(forward["far"], _FAR),
            }
            for index, forward in enumerate(part.forwards)
        ],
    }


def page(masters: Iterable[Mapping[str, Any]]) -> Dict:
    """All that the template of the page needs."""
    described = describe(masters)
    forwards = [forward for master in described for forward in master["forwards"]]
    return {
        "masters": described,
        "sheets": sheets(described),
        "counts": {
            "masters": len(described),
            "alive": sum(master["health"] == GOOD for master in described),
            "forwards": len(forwards),
            **{
                health: sum(forward["health"] == health for forward in forwards)
                for health in (GOOD, BAD, UNKNOWN)
            },
        },
    }
