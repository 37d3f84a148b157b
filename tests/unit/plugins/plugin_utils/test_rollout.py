# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the playbook rollout says of its hosts: batches, lines, and a page that no name breaks."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from typing import Any

import jinja2
import pytest
from ansible.errors import AnsibleFilterError
from ansible.executor.playbook_executor import PlaybookExecutor
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.plugin_utils import rollout
from tests.support.page import Elements
from tests.support.playbook import CHECKOUT

Dict = dict[str, Any]
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e\n"


def row(
    host: str, state: str, batch: int | None = None, kind: str = "bastion", **more: Any
) -> Dict:
    """One host, as the playbook knows it."""
    return {"kind": kind, "host": host, "state": state, "batch": batch, **more}


# -- batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "serial", "sizes"),
    [
        (0, [1, "10%", "100%"], []),
        (1, [1, "10%", "100%"], [1]),
        (4, [1, "10%", "100%"], [1, 1, 2]),
        (1000, [1, "10%", "100%"], [1, 100, 899]),
        (5, 2, [2, 2, 1]),
        (5, "2", [2, 2, 1]),
        (5, "40%", [2, 2, 1]),
        (5, [1, 2], [1, 2, 2]),
        (5, [1, 0], [1, 4]),
        (5, [], [5]),
    ],
)
def test_batches(count: int, serial: Any, sizes: list[int]) -> None:
    numbers = list(rollout.batches([f"h{n}" for n in range(count)], serial).values())
    assert [numbers.count(n) for n in dict.fromkeys(numbers)] == sizes
    assert list(dict.fromkeys(numbers)) == list(range(1, len(sizes) + 1))


@given(
    count=st.integers(1, 60),
    serial=st.lists(
        st.integers(0, 30) | st.integers(1, 100).map(lambda percent: f"{percent}%"), min_size=1
    ),
)
def test_batches_are_those_of_ansible(count: int, serial: list[int | str]) -> None:
    hosts = [f"h{n}" for n in range(count)]
    inventory = types.SimpleNamespace(get_hosts=lambda *_args, **_named: list(hosts))
    executor: Any = types.SimpleNamespace(_inventory=inventory)
    play = types.SimpleNamespace(hosts="all", order=None, serial=serial)
    theirs = PlaybookExecutor._get_serialized_batches(executor, play)
    found = rollout.batches(hosts, serial)
    assert [[host for host in hosts if found[host] == n + 1] for n in range(len(theirs))] == theirs


@pytest.mark.parametrize("serial", ["many", ["10 percent"], [None], {"a": 1}])
def test_what_is_no_size_of_a_batch(serial: Any) -> None:
    with pytest.raises(AnsibleFilterError, match="no size of batches"):
        rollout.batches(["a"], serial)


# -- where it stands -------------------------------------------------------------------------------

STANDS: dict[str, tuple[list[Dict], list[str]]] = {
    "nobody": ([], ["There is no bastion and no client."]),
    "all well": (
        [row("b1", "done", 1), row("b2", "current"), row("c", "done", 1, "client")],
        ["2 bastions: 1 rolled out, 1 up to date.", "1 client: 1 rolled out."],
    ),
    "a plan": (
        [row("b1", "planned", 1), row("b2", "planned", 2), row("b3", "current")],
        ["3 bastions: 2 to do, 1 up to date."],
    ),
    "unreachable": (
        [row("b1", "planned", 1), row("b2", "unreachable"), row("c", "refused", None, "client")],
        [
            "Nothing was started. To mend, or to leave out: b2, c.",
            "2 bastions: 1 to do, 1 unreachable.",
            "1 client: 1 impossible.",
        ],
    ),
    "left out": (
        [row("b1", "done", 1), row("b2", "left_out")],
        ["2 bastions: 1 rolled out, 1 left out (unreachable)."],
    ),
    "a bad batch": (
        [
            row("b1", "done", 1),
            row("b2", "undone", 2),
            row("b3", "reverted", 2),
            row("b4", "planned", 3),
            row("c", "planned", 1, "client"),
        ],
        [
            "Stopped at batch 2 of 3 of the bastions: b3 failed.",
            "That batch is rolled back.",
            "The next run begins here: it takes those hosts alone that need something.",
            "4 bastions: 1 rolled out, 1 rolled back, 1 failed and rolled back, 1 to do.",
            "1 client: 1 to do.",
        ],
    ),
    "out of reach": (
        [row("b1", "lost", 1), row("b2", "planned", 2)],
        [
            "Stopped at batch 1 of 2 of the bastions: b1 failed.",
            "That batch is rolled back, but for b1: a timer there undoes the change.",
            "The next run begins here: it takes those hosts alone that need something.",
            "2 bastions: 1 failed and out of reach, 1 to do.",
        ],
    ),
    "not confirmed": (
        [row("b1", "done", 1), row("b2", "unconfirmed", 1)],
        [
            "Stopped at batch 1 of 1 of the bastions: b2 failed.",
            "A timer there undoes the change. The others of that batch keep theirs.",
            "The next run begins here: it takes those hosts alone that need something.",
            "2 bastions: 1 rolled out, 1 failed and not confirmed.",
        ],
    ),
    "a bad batch of clients": (
        [row("b1", "current"), row("c1", "failed", 1, "client"), row("c2", "planned", 2, "client")],
        [
            "Stopped at batch 1 of 2 of the clients: c1 failed.",
            "The next run begins here: it takes those hosts alone that need something.",
            "1 bastion: 1 up to date.",
            "2 clients: 1 failed, 1 to do.",
        ],
    ),
    "no master": (
        [row("b1", "current"), row("b1", "failed", None, "master")],
        ["The master of b1 is not open.", "1 bastion: 1 up to date.", "1 master: 1 failed."],
    ),
    "many": (
        [row(f"b{n}", "unreachable") for n in range(1000)],
        [
            "Nothing was started. To mend, or to leave out: b0, b1, b2, b3, b4 and 995 more.",
            "1000 bastions: 1000 unreachable.",
        ],
    ),
}
stands = pytest.mark.parametrize("case", STANDS)


@stands
def test_where_it_stands(case: str) -> None:
    rows, said = STANDS[case]
    assert rollout.stand(rows) == said


def test_lines() -> None:
    rows = [
        row("web", "planned", 1, "client"),
        row("b3", "current"),
        row("bastion4", "reverted", 2, msg="no login:\n  Connection refused"),
        row("b1", "done", 1),
    ]
    assert rollout.lines(rows)[:4] == [
        "bastion  b1        batch 1  rolled out",
        "bastion  bastion4  batch 2  failed and rolled back  no login: Connection refused",
        "bastion  b3                 up to date",
        "client   web       batch 1  to do",
    ]


def test_every_state_has_a_word_and_a_health() -> None:
    assert {health for _words, health in rollout.STATES.values()} == {"good", "bad", "unknown"}
    for kind in rollout.KINDS:
        for state, (words, _health) in rollout.STATES.items():
            assert words in rollout.lines([row("h", state, 1, kind)])[0]


# -- the page --------------------------------------------------------------------------------------


def render(rows: Sequence[Dict]) -> str:
    # As Ansible's module template reads it.
    loader = jinja2.FileSystemLoader(CHECKOUT / "playbooks/templates")
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("rollout.html.j2").render(page=rollout.page(rows))


# What the template is made of: nothing that loads, runs or sends anything.
TAGS = set(
    "html head meta title style body h1 h2 p ul ol li b i span div"
    " table thead tbody tr th td".split()
)


@stands
def test_the_page_is_made_of_its_own_elements_alone(case: str) -> None:
    rows, said = STANDS[case]
    page = render(rows)
    found = Elements(page)
    assert {tag for tag, _attributes in found.elements} <= TAGS
    names = {name for _tag, attributes in found.elements for name in attributes}
    assert names <= {
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "title",
        "aria-hidden",
    }
    assert not re.search(r"url\(|@import|https?://", page)
    assert " ".join(said) in found.text
    assert all(one["host"] in found.text for one in rows)
    # A square for each, beside its line.
    assert sum(tag == "i" for tag, _attributes in found.elements) == len(rows)


def test_a_hostile_name_is_text() -> None:
    page = render([row(HOSTILE, "failed", 1, msg=HOSTILE)])
    assert "<script" not in page
    assert "alert(1)" in Elements(page).text
    assert page.replace("\n", "").isprintable()


def test_a_thousand_hosts_are_quick_to_show() -> None:
    rows = [row(f"b{n}", "done", 1 + n // 100) for n in range(1000)]
    page = rollout.page(rows)
    assert page["counts"] == {"hosts": 1000, "good": 1000, "bad": 0, "unknown": 0}
    (bastions,) = page["kinds"]
    assert [len(batch["rows"]) for batch in bastions["batches"]] == [100] * 10
