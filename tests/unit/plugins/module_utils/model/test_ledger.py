# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's text: all of it comes back, and what is none is none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.forward import (
    DYNAMIC,
    LOCAL,
    REMOTE,
    parse,
)
from ansible_collections.bastion.mux.plugins.module_utils.model.ledger import (
    Ledger,
    Record,
    dump,
    load,
    settle,
)

LEDGER = Ledger(
    pid=4242,
    started=1700000000.25,
    booted=1690000000.5,
    managed=True,
    openssh="OpenSSH_9.2p1",
    target={"host": "bastion", "port": 22, "user": None, "jump": ["a", "b"], "persist": "yes"},
    effective={"user": ["me"], "localforward": ["a", "b"]},
    records=(
        Record(parse(LOCAL, "80:web:8080"), False, "localhost", frozenset({11, 12})),
        Record(parse(LOCAL, "40000:db:5432"), True, "localhost", frozenset({13})),
        Record(parse(LOCAL, "[::1]:80:[::1]:80"), False, "::1"),
        Record(parse(LOCAL, r"/a b\:ü:/c"), False, ""),
        Record(parse(REMOTE, "0"), True, ""),
        Record(parse(DYNAMIC, "*:1080"), False, "*"),
    ),
    inodes=frozenset({11, 12, 13, 14}),
    foreign=(("/x", -1), ("127.0.0.1", 99)),
    refused=(Record(parse(REMOTE, "80:web:8080"), False, ""),),
)
VALUES: Dict[str, Any] = json.loads(dump(LEDGER))


def test_all_of_it_comes_back() -> None:
    assert load(dump(LEDGER)) == LEDGER
    assert load(dump(Ledger(1, 2.0))) == Ledger(1, 2.0)


def test_bytes_of_paths_come_back() -> None:
    record = Record(parse(LOCAL, "/a\udcff:/b"), wire_host="")
    ledger = load(dump(replace(LEDGER, records=(record,))))
    assert ledger is not None
    assert ledger.records == (record,)


def changed(path: List[Any], value: Any) -> Any:
    values = json.loads(json.dumps(VALUES))
    inner = values
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["version"], 2),
        (["version"], None),
        (["pid"], "4242"),
        (["pid"], True),
        (["pid"], None),
        (["started"], "now"),
        (["started"], 10**400),
        (["started"], []),
        (["managed"], 1),
        (["managed"], "yes"),
        (["openssh"], 9),
        (["target"], []),
        (["effective"], []),
        (["effective"], {"user": "me"}),
        (["effective"], {"user": [1]}),
        (["forwards"], None),
        (["forwards"], [None]),
        (["forwards"], {"a": 1}),
        (["forwards", 0], {}),
        (["forwards", 0, "listen_port"], "80"),
        (["forwards", 0, "automatic"], 0),
        (["forwards", 0, "inodes"], 5),
        (["forwards", 0, "inodes"], ["11"]),
        (["forwards", 0, "wire_host"], None),
        (["forwards", 0, "wire_host"], "127.0.0.1"),
        (["forwards", 0, "wire_host"], "\0"),
        (["forwards", 3, "listen_socket"], "/a\0"),
        (["inodes"], None),
        (["inodes"], [1.5]),
        (["foreign"], [["127.0.0.1"]]),
        (["foreign"], [[1, "127.0.0.1"]]),
        (["foreign"], 5),
        (["refused"], [None]),
    ],
)
def test_a_value_of_another_type_makes_it_no_ledger(path: List[Any], value: Any) -> None:
    assert load(json.dumps(VALUES)) == LEDGER
    assert load(json.dumps(changed(path, value))) is None


@pytest.mark.parametrize("name", sorted(VALUES))
def test_a_missing_value_makes_it_no_ledger(name: str) -> None:
    assert load(json.dumps({key: VALUES[key] for key in VALUES if key != name})) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "5", '"ledger"', "[" * 100000, "\0", "9" * 5000, '{"version": 1}'],
)
def test_another_text_is_no_ledger(text: str) -> None:
    assert load(text) is None


@given(st.integers(0, len(dump(LEDGER)) - 2))
def test_a_part_of_it_is_no_ledger(length: int) -> None:
    assert load(dump(LEDGER)[:length]) is None


def nested(inner: Any) -> Any:
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(VALUES)), inner)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    nested,
    max_leaves=6,
)


@given(st.sampled_from(sorted(VALUES)), json_values)
def test_whatever_stands_there_is_a_ledger_or_none(name: str, value: Any) -> None:
    found = load(json.dumps(changed([name], value)))
    assert found is None or load(dump(found)) is not None


# Which process it is about


@pytest.mark.parametrize(
    ("pid", "started", "booted", "about"),
    [
        (4242, 1700000000.25, 1690000000.5, True),
        (4242, 1700000000.75, 1690000000.5, True),  # rounded otherwise
        (4242, 1700003600.25, 1690003600.5, True),  # the clock was set
        (4242, 1700003600.27, 1690003600.5, False),
        (4242, 1700000060.25, 1690000000.5, False),
        (4243, 1700000000.25, 1690000000.5, False),
        (4242, None, 1690000000.5, False),
    ],
)
def test_a_ledger_is_about_one_process(
    pid: int, started: Optional[float], booted: float, about: bool
) -> None:
    assert LEDGER.is_about(pid, started, lambda: booted) is about


# What a record is about


def test_a_record_meets_what_was_asked_for_and_what_it_became() -> None:
    record = Record(parse(LOCAL, "40000:db:5432"), automatic=True)
    assert record.satisfies(parse(LOCAL, "0:db:5432"))
    assert record.satisfies(parse(LOCAL, "40000:db:5432"))
    assert not record.satisfies(parse(LOCAL, "0:db:5433"))
    assert not Record(record.forward).satisfies(parse(LOCAL, "0:db:5432"))


# What a refused remote forwarding leaves in the master


def remote(spelling: str, wire_host: str = "") -> Record:
    return Record(parse(REMOTE, spelling), wire_host=wire_host)


@pytest.mark.parametrize(
    ("refused", "turns", "left"),
    [
        ("", 0, ""),
        ("B", 0, "B"),
        ("BA", 0, "AB"),
        ("A", 1, "B"),
        ("AB", 1, "BB"),
        ("AC", 2, "BB"),
        ("AAB", 2, "BBB"),
    ],
)
def test_a_refused_one_misleads_until_it_is_cancelled_away(
    refused: str, turns: int, left: str
) -> None:
    ends = {"A": remote("80:a:1"), "B": remote("80:b:1"), "C": remote("80")}
    elsewhere = (remote("81:a:1"), remote("127.0.0.1:80:a:1", "127.0.0.1"), remote("/a:/b"))
    before = (*elsewhere, *[ends[one] for one in refused])
    assert settle(ends["B"], before) == (turns, (*elsewhere, *[ends[one] for one in left]))


def test_paths_mislead_too() -> None:
    assert settle(remote("/a:/b"), [remote("/a:/c"), remote("/b:/c")])[0] == 1


class Permissions:
    """What channels.c does with them."""

    def __init__(self, refused: List[Record]) -> None:
        self.queue = list(refused)

    def open(self, record: Record) -> None:
        self.queue.append(record)

    def cancel(self) -> None:
        del self.queue[0]


@given(st.lists(st.sampled_from("ABC"), max_size=6), st.sampled_from("ABC"))
def test_settled_is_what_the_master_then_connects_to(refused: List[str], wanted: str) -> None:
    ends = {"A": remote("80:a:1"), "B": remote("80:b:1"), "C": remote("80")}
    master = Permissions([ends[one] for one in refused])
    turns, left = settle(ends[wanted], master.queue)
    master.open(ends[wanted])
    for _turn in range(turns):
        master.cancel()
        master.open(ends[wanted])
    assert master.queue[0] == ends[wanted]
    master.cancel()
    assert tuple(master.queue) == left
