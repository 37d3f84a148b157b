# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook rollout knows of each host, as lines for a terminal and as a page's contents.

Pure: dictionaries in, text and numbers out. Nothing is escaped here; the template of the page does
that. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible.utils.helpers import pct_to_int

from ansible_collections.bastion.mux.plugins.plugin_utils.status import (
    BAD,
    GOOD,
    UNKNOWN,
    clean,
    table,
)

Dict = dict[str, Any]

#: What is rolled out, in this order.
KINDS = {"bastion": "bastions", "client": "clients", "master": "masters"}

#: How each state reads, and whether it is well. The plan says the first four.
STATES = {
    "current": ("up to date", GOOD),
    "planned": ("to do", UNKNOWN),
    "refused": ("impossible", BAD),
    "unreachable": ("unreachable", BAD),
    "left_out": ("left out (unreachable)", UNKNOWN),
    "done": ("rolled out", GOOD),
    "failed": ("failed", BAD),
    "reverted": ("failed and rolled back", BAD),
    "undone": ("rolled back", UNKNOWN),
    "lost": ("failed and out of reach", BAD),
    "unconfirmed": ("failed and not confirmed", BAD),
    "open": ("open", GOOD),
}
_NOT_STARTED = ("refused", "unreachable")


# -- batches ---------------------------------------------------------------------------------------


def batches(hosts: Sequence[str], serial: Any) -> dict[str, int]:
    """The number of each host's batch, as Ansible's ``serial`` makes them, from 1."""
    # playbook_executor.py, _get_serialized_batches
    sizes = serial if isinstance(serial, (list, tuple)) else [serial]
    numbers: dict[str, int] = {}
    try:
        counts = [pct_to_int(size, len(hosts)) for size in sizes or [0]]
    except (TypeError, ValueError) as error:
        raise AnsibleFilterError(
            f"{serial!r} is no size of batches: give numbers, or percentages such as '10%'"
        ) from error
    while len(numbers) < len(hosts):
        batch = max(numbers.values(), default=0) + 1
        count = counts[min(batch, len(counts)) - 1]
        end = len(numbers) + count if count > 0 else len(hosts)
        numbers.update(dict.fromkeys(hosts[len(numbers) : end], batch))
    return numbers


# -- words -----------------------------------------------------------------------------------------


def describe(rows: Iterable[Mapping[str, Any]]) -> list[Dict]:
    """Each host in words: bastions, clients and masters, by batch; those without one are last."""
    described = [
        {
            "kind": str(row["kind"]),
            "host": clean(row["host"]),
            "batch": row.get("batch") or None,
            "state": str(row["state"]),
            "words": STATES[row["state"]][0],
            "health": STATES[row["state"]][1],
            "detail": clean(" ".join(str(row.get("msg") or "").split())),
        }
        for row in rows
    ]
    order = list(KINDS)
    return sorted(
        described, key=lambda row: (order.index(row["kind"]), row["batch"] is None, row["batch"])
    )


def stand(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where the rollout stands, in sentences."""
    described = describe(rows)
    if not described:
        return ["There is no bastion and no client."]
    return [*_verdict(described), *_counts(described)]


def _verdict(rows: Sequence[Dict]) -> list[str]:
    unstarted = [row["host"] for row in rows if row["state"] in _NOT_STARTED]
    if unstarted:
        return [f"Nothing was started. To mend, or to leave out: {_names(unstarted)}."]
    bad = [row for row in rows if row["health"] == BAD]
    for kind in ("bastion", "client"):
        mine = [row for row in bad if row["kind"] == kind]
        if mine:
            number, last = mine[0]["batch"], _last(rows, kind)
            names = _names([row["host"] for row in mine])
            return [
                f"Stopped at batch {number} of {last} of the {KINDS[kind]}: {names} failed.",
                *(_rolled_back(mine) if kind == "bastion" else []),
                "The next run begins here: it takes those hosts alone that need something.",
            ]
    if bad:
        return [f"The master of {_names([row['host'] for row in bad])} is not open."]
    return []


def _rolled_back(bad: Sequence[Dict]) -> list[str]:
    if all(row["state"] == "unconfirmed" for row in bad):
        return ["A timer there undoes the change. The others of that batch keep theirs."]
    lost = [row["host"] for row in bad if row["state"] == "lost"]
    if not lost:
        return ["That batch is rolled back."]
    return [f"That batch is rolled back, but for {_names(lost)}: a timer there undoes the change."]


def _counts(rows: Sequence[Dict]) -> list[str]:
    said = []
    for kind, plural in KINDS.items():
        words = Counter(row["words"] for row in rows if row["kind"] == kind)
        if words:
            total = sum(words.values())
            parts = ", ".join(f"{count} {word}" for word, count in words.items())
            said.append(f"{total} {kind if total == 1 else plural}: {parts}.")
    return said


def _last(rows: Sequence[Dict], kind: str) -> int:
    return max((row["batch"] or 0 for row in rows if row["kind"] == kind), default=0)


def _names(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence: some of them, if they are many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


# -- lines for a terminal --------------------------------------------------------------------------


def lines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table of the hosts, and where the rollout stands."""
    rows = list(rows)
    cells = [
        (
            row["kind"],
            row["host"],
            f"batch {row['batch']}" if row["batch"] else "",
            row["words"],
            row["detail"],
        )
        for row in describe(rows)
    ]
    return [*table(cells), *stand(rows)]


# -- a page ----------------------------------------------------------------------------------------


def page(rows: Iterable[Mapping[str, Any]]) -> Dict:
    """All that the template of the page needs."""
    rows = list(rows)
    described = describe(rows)
    return {
        "stand": stand(rows),
        "counts": {
            "hosts": len({row["host"] for row in described}),
            **{
                health: sum(row["health"] == health for row in described)
                for health in (GOOD, BAD, UNKNOWN)
            },
        },
        "kinds": [
            {"title": plural.capitalize(), "batches": _by_batch(mine), "rows": mine}
            for kind, plural in KINDS.items()
            for mine in [[row for row in described if row["kind"] == kind]]
            if mine
        ],
    }


def _by_batch(rows: Sequence[Dict]) -> list[Dict]:
    numbers = dict.fromkeys(row["batch"] for row in rows)
    return [
        {"number": number, "rows": [row for row in rows if row["batch"] == number]}
        for number in numbers
    ]
