# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``ssh_master_info`` returns, as lines for a terminal and as a picture's coordinates.

Pure: dictionaries in, text and numbers out. Nothing is escaped here; the template of the page does
that. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    head, tail = text[:columns], text[-columns:]
    while width(head + tail) >= columns:
        # Two thirds for the beginning.
        head, tail = (head[:-1], tail) if len(head) > 2 * len(tail) else (head, tail[1:])
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
    return table(rows) or ["No masters."]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equally many cells, below each other; the last cell is as long as it is."""
    last = len(rows[0]) - 1 if rows else 0
    columns = [min(_MOST_COLUMNS, max(width(row[at]) for row in rows)) for at in range(last)]
    return [
        "  ".join(
            [*(row[at] + " " * (columns[at] - width(row[at])) for at in range(last)), row[last]]
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

#: The most characters that the columns have room for.
_NEAR, _HOP, _BASTION, _FAR = 30, 22, 28, 32


def sheets(masters: Iterable[Dict]) -> list[Dict]:
    """Pictures of who reaches what through whom, each of them as high as a page at most.

    From left to right there are the controller, the hosts that are jumped through, the bastions
    and what lies beyond them; each forwarding is a lane through all of these.
    """
    pages: list[list[Dict]] = []
    room = 0
    for part in (part for master in masters for part in _split(master)):
        if _rows(part) > room:
            pages.append([])
            room = _SHEET_ROWS
        pages[-1].append(part)
        room -= _rows(part) + 1  # the space below it
    return [_sheet(parts) for parts in pages]


def _split(master: Dict) -> Iterator[Dict]:
    """The master, once for each picture that its forwardings fill."""
    forwards = master["forwards"]
    starts = range(0, max(len(forwards), 1), _SHEET_ROWS)
    for number, start in enumerate(starts, 1):
        name = master["name"] + (f" ({number}/{len(starts)})" if len(starts) > 1 else "")
        yield {**master, "name": name, "forwards": forwards[start : start + _SHEET_ROWS]}


def _rows(part: Dict) -> int:
    return max(len(part["forwards"]), _LEAST_ROWS)


def _text(words: str, columns: int) -> Dict:
    """What is drawn of a text, and the whole of it where that is not the same."""
    drawn = clip(words, columns)
    return {"text": drawn, "full": words if drawn != words else ""}


def _sheet(parts: Sequence[Dict]) -> Dict:
    depth = max(len(part["jump"]) for part in parts)
    forwards = [forward for part in parts for forward in part["forwards"]]
    contents = [
        ("this controller", _NEAR, [forward["near"] for forward in forwards]),
        *(
            ("jump", _HOP, [part["jump"][hop] for part in parts if len(part["jump"]) > hop])
            for hop in range(depth)
        ),
        ("bastion", _BASTION, [part[key] for part in parts for key in ("name", "login", "words")]),
        ("beyond", _FAR, [forward["far"] for forward in forwards]),
    ]
    columns: list[Dict] = []
    x = 1.0
    for head, most, texts in contents if forwards else contents[:-1]:
        characters = max([width(head), *(min(most, width(text)) for text in texts)])
        columns.append({"head": head, "x": x, "w": characters * _CHAR + 2 * _PAD})
        x += columns[-1]["w"] + _GAP
    placed: list[Dict] = []
    y = _HEAD
    for part in parts:
        placed.append({**part, "y": y, "h": _rows(part) * _ROW})
        y += placed[-1]["h"] + _SPACE
    return {
        "width": round(x - _GAP + 1),
        "height": y - _SPACE + 2,
        "columns": columns,
        "controller": {**columns[0], "y": _HEAD, "h": y - _SPACE - _HEAD},
        "hops": [box for hop in range(depth) for box in _hops(placed, hop, columns[hop + 1])],
        "masters": [_master(part, columns[0], columns[depth + 1]) for part in placed],
    }


def _hops(placed: Sequence[Dict], hop: int, column: Dict) -> Iterator[Dict]:
    """One box for each jump host, as high as all the masters that are reached through it."""
    for path, group in itertools.groupby(placed, lambda part: part["jump"][: hop + 1]):
        first, *_others, last = [*group] * 2
        if len(path) > hop:
            height = last["y"] + last["h"] - first["y"]
            yield {**column, "y": first["y"], "h": height, **_text(path[hop], _HOP)}


def _master(part: Dict, controller: Dict, column: Dict) -> Dict:
    left = controller["x"] + controller["w"]
    first = part["y"] + (part["h"] - len(part["forwards"]) * _ROW + _ROW) / 2
    return {
        **part,
        **column,
        "name": _text(part["name"], _BASTION),
        "login": _text(part["login"], _BASTION),
        "tube": {**part, "x": left, "w": column["x"] - left},
        "lanes": [
            {
                **forward,
                "y": first + number * _ROW,
                "left": left,
                "right": column["x"] + column["w"] + _GAP,
                "near": _text(forward["near"], _NEAR),
                "far": _text(forward["far"], _FAR),
            }
            for number, forward in enumerate(part["forwards"])
        ],
    }


def page(masters: Iterable[Mapping[str, Any]]) -> Dict:
    """All that the template of the page needs."""
    described = describe(masters)
    forwards = [forward["health"] for master in described for forward in master["forwards"]]
    return {
        "masters": described,
        "sheets": sheets(described),
        "counts": {
            "masters": len(described),
            "alive": sum(master["health"] == GOOD for master in described),
            "forwards": len(forwards),
            **{health: forwards.count(health) for health in (GOOD, BAD, UNKNOWN)},
        },
    }
