# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done so that the forwardings which are held become those which are wanted."""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, List, Sequence, Tuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.forward import (
    DYNAMIC,
    LOCAL,
    REMOTE,
    Forward,
    overlaps,
    parse,
)
from ansible_collections.bastion.mux.plugins.module_utils.model.ledger import Record
from ansible_collections.bastion.mux.plugins.module_utils.model.plan import (
    ABSENT,
    Foreign,
    ForwardPlan,
    contradictions,
    plan_forwards,
)

TYPES = {"L": LOCAL, "R": REMOTE, "D": DYNAMIC}


def forwards(*spellings: str) -> List[Forward]:
    """Forwardings from `L 80:web:80` and the like."""
    return [parse(TYPES[one[0]], one[2:]) for one in spellings]


def records(*spellings: str) -> List[Record]:
    """What is held; `80->L 0:web:80` is one whose port was chosen."""
    found = []
    for one in spellings:
        port, arrow, rest = one.rpartition("->")
        (forward,) = forwards(rest)
        if arrow:
            found.append(Record(forward.with_port(int(port)), automatic=True))
        else:
            found.append(Record(forward))
    return found


def resolve(host: str) -> FrozenSet[str]:
    return {"box": frozenset({"192.0.2.9"}), "local.box": frozenset({"127.0.0.1"})}.get(
        host, frozenset()
    )


def plan(
    desired: Sequence[str],
    held: Sequence[str] = (),
    foreign: Sequence[Foreign] = (),
    **how: Any,
) -> ForwardPlan:
    return plan_forwards(forwards(*desired), records(*held), foreign, resolve=resolve, **how)


def opened(decided: ForwardPlan) -> List[str]:
    return [str(one) for one in decided.open]


def closed(decided: ForwardPlan) -> List[str]:
    return [str(one.forward) for one in decided.close]


def conflicts(decided: ForwardPlan) -> List[Tuple[str, Any]]:
    return [
        (str(one.desired), None if one.held is None else str(one.held.forward))
        for one in decided.conflicts
    ]


WEB = "L 80:web:80"
OTHER = "L 80:other:80"


@pytest.mark.parametrize(
    ("held", "desired", "kept"),
    [
        (WEB, WEB, True),
        (WEB, "L localhost:80:web:80", True),
        (WEB, "L LOCALHOST:80:WEB:80", True),
        (WEB, "L 81:web:80", False),
        (WEB, "L 0:web:80", False),
        ("8000->L 0:web:80", "L 0:web:80", True),
        ("8000->L 0:web:80", "L 8000:web:80", True),
        ("8000->L 0:web:80", "L 0:other:80", False),
        ("8000->L 0:web:80", "L *:0:web:80", False),
        ("8000->R 0:web:80", "R 0:web:80", True),
        ("8000->R 0:web:80", "L 0:web:80", False),
        ("R 80:web:80", WEB, False),
        ("D 80", "D localhost:80", True),
        ("D 80", "R 80", False),
        ("L [0::1]:80:web:80", "L [::1]:80:web:80", True),
        ("L /a:/b", "L //a:/./b", True),
    ],
)
def test_what_is_held_already_is_kept(held: str, desired: str, kept: bool) -> None:
    decided = plan([desired], [held])
    assert bool(decided.kept) is kept
    assert decided.actions is not kept


@pytest.mark.parametrize(
    ("held", "desired", "in_the_way"),
    [
        (WEB, OTHER, True),
        (WEB, "D 80", True),
        (WEB, "L 127.0.0.1:80:other:80", True),
        (WEB, "L [::1]:80:other:80", True),
        (WEB, "L 127.0.0.2:80:other:80", False),
        (WEB, "L *:80:web:80", True),
        (WEB, "L 0.0.0.0:80:other:80", True),
        (WEB, "L local.box:80:other:80", True),
        (WEB, "L box:80:other:80", False),
        (WEB, "L nowhere:80:other:80", False),
        (WEB, "L 81:other:80", False),
        (WEB, "R 80:other:80", False),
        (WEB, "L 0:other:80", False),
        ("8000->L 0:web:80", "L 8000:other:80", True),
        ("L *:80:web:80", WEB, True),
        ("L [::]:80:web:80", "L 127.0.0.1:80:web:80", False),
        ("L box:80:web:80", "L *:80:web:80", True),
        ("L nowhere:80:web:80", "L nowhere:80:other:80", True),
        ("R 80:web:80", "R 80:other:80", True),
        ("R 80:web:80", "R *:80:web:80", True),
        ("R /a:/b", "R /a:/c", True),
        ("L /a:/b", "L /a:/c", True),
        ("L /a:/b", "R /a:/c", False),
        ("L /a:/b", "L /b:/c", False),
    ],
)
def test_what_is_in_the_way_is_a_conflict_or_goes(
    held: str, desired: str, in_the_way: bool
) -> None:
    (name,) = (str(one.forward) for one in records(held))
    decided = plan([desired], [held])
    assert conflicts(decided) == [(str(*forwards(desired)), name)] * in_the_way
    assert closed(decided) == []
    hows: List[Dict[str, Any]] = [{"replace": True}, {"exclusive": True}]
    for how in hows:
        decided = plan([desired], [held], **how)
        assert not decided.conflicts
        assert opened(decided) == [str(*forwards(desired))]
        assert closed(decided) == [name] * (in_the_way or "exclusive" in how)


@pytest.mark.parametrize(
    ("foreign", "desired", "in_the_way"),
    [
        ((("127.0.0.1", 80), ("::1", 80)), WEB, True),
        ((("127.0.0.1", 80),), WEB, True),
        ((("127.0.0.1", 80),), "L [::1]:80:web:80", False),
        ((("0.0.0.0", 80),), WEB, True),
        ((("127.0.0.1", 81),), WEB, False),
        ((("127.0.0.1", 80),), "R 80:web:80", False),
        ((("127.0.0.1", 80),), "L 0:web:80", False),
        ((("/a", -1),), "L /a:/b", True),
        ((("/a", -1),), "L /b:/a", False),
        ((("/a", -1),), "R /a:/b", False),
    ],
)
def test_listeners_of_another_tool_are_in_the_way_too(
    foreign: Tuple[Foreign, ...], desired: str, in_the_way: bool
) -> None:
    decided = plan([desired], [], foreign)
    assert conflicts(decided) == [(str(*forwards(desired)), None)] * len(foreign) * in_the_way
    assert decided.close_foreign == ()
    assert plan([desired], [], foreign, replace=True).close_foreign == foreign * in_the_way
    assert plan([desired], [], foreign, exclusive=True).close_foreign == foreign


@pytest.mark.parametrize("how", ["replace", "exclusive"])
def test_a_chosen_port_gives_way_and_another_is_chosen(how: str) -> None:
    options: Dict[str, Any] = {how: True}
    decided = plan(["L 0:web:80", "L 8000:other:80"], ["8000->L 0:web:80"], **options)
    assert closed(decided) == ["-L localhost:8000:web:80"]
    assert sorted(opened(decided)) == ["-L localhost:0:web:80", "-L localhost:8000:other:80"]
    assert decided.kept == ()


def test_exclusive_removes_every_other_kind() -> None:
    held = [
        WEB,
        "D 1080",
        "R 80:web:80",
        "L /a:/b",
        "8000->L 0:db:1",
        "9000->R 0:db:1",
        "L 81:web:80",
    ]
    decided = plan([WEB, "L 0:db:1"], held, [("127.0.0.1", 99)], exclusive=True)
    assert [str(one) for one, _record in decided.kept] == [
        "-L localhost:80:web:80",
        "-L localhost:0:db:1",
    ]
    assert closed(decided) == [
        "-D localhost:1080",
        "-R localhost:80:web:80",
        "-L /a:/b",
        "-R localhost:9000:db:1",
        "-L localhost:81:web:80",
    ]
    assert decided.close_foreign == (("127.0.0.1", 99),)
    assert not decided.open


@pytest.mark.parametrize("held", [WEB, "8000->L 0:web:80", "L /a:/b"])
def test_what_is_broken_is_opened_anew_where_it_is_desired(held: str) -> None:
    (record,) = records(held)
    decided = plan([str(record.asked)[1:]], [held], broken=[record])
    assert decided.close == (record,)
    assert decided.open == (record.asked,)
    assert (decided.kept, decided.conflicts) == ((), ())
    assert decided.before == ("%s (broken)" % record.forward,)
    assert decided.after == (str(record.asked),)


def test_what_is_broken_and_not_desired_stays_or_is_in_the_way() -> None:
    (record,) = records(WEB)
    decided = plan(["L 81:web:80"], [WEB], broken=[record])
    assert (decided.close, opened(decided)) == ((), ["-L localhost:81:web:80"])
    assert conflicts(plan([OTHER], [WEB], broken=[record])) != []
    assert closed(plan([OTHER], [WEB], broken=[record], replace=True)) == [str(record.forward)]
    assert closed(plan([WEB], [WEB], broken=[record], state=ABSENT)) == [str(record.forward)]


def test_what_is_broken_is_in_nobodys_way_once_it_goes() -> None:
    (record,) = records("8000->L 0:web:80")
    decided = plan(["L 0:web:80", "L 8000:other:80"], ["8000->L 0:web:80"], broken=[record])
    assert decided.conflicts == ()
    assert sorted(opened(decided)) == ["-L localhost:0:web:80", "-L localhost:8000:other:80"]


def test_absent_takes_what_is_named_and_no_more() -> None:
    held = [WEB, OTHER.replace("80:o", "81:o"), "8000->L 0:web:80"]
    decided = plan([WEB, "L 0:web:80", "R 80:web:80"], held, [("127.0.0.1", 99)], state=ABSENT)
    assert closed(decided) == ["-L localhost:80:web:80", "-L localhost:8000:web:80"]
    assert (decided.open, decided.conflicts, decided.close_foreign) == ((), (), ())
    assert not plan(["L 99:web:80"], [WEB], state=ABSENT).actions


def test_the_diff_tells_all_that_the_master_holds() -> None:
    decided = plan(
        [OTHER, "L 82:web:80", "L 0:web:80"],
        [WEB, "D 1080"],
        [("127.0.0.1", 99), ("/x", -1)],
        replace=True,
    )
    foreign = ("/x (opened by another tool)", "127.0.0.1 port 99 (opened by another tool)")
    assert decided.before == ("-D localhost:1080", "-L localhost:80:web:80", *foreign)
    assert decided.after == (
        "-D localhost:1080",
        "-L localhost:0:web:80",
        "-L localhost:80:other:80",
        "-L localhost:82:web:80",
        *foreign,
    )


@pytest.mark.parametrize(
    ("desired", "count"),
    [
        ([WEB, "L 81:web:80"], 0),
        ([WEB, OTHER], 1),
        ([WEB, "D 80"], 1),
        ([WEB, "R 80:other:80"], 0),
        ([WEB, "L 127.0.0.1:80:web:80"], 1),
        ([WEB, "L [::1]:80:web:80", "L 127.0.0.1:80:web:80"], 2),
        (["L [::1]:80:web:80", "L 127.0.0.1:80:web:80"], 0),
        (["L 0:web:80", "L 0:other:80", "R 0:web:80", "R 0"], 0),
        (["L /a:/b", "L /a:/c"], 1),
        (["L /a:/b", "R /a:/c"], 0),
        (["R 80:web:80", "R 80:other:80"], 1),
    ],
)
def test_a_task_may_contradict_itself(desired: List[str], count: int) -> None:
    assert len(contradictions(forwards(*desired), resolve)) == count


# Whatever is held and wanted, doing it once is enough.

hosts = st.sampled_from(["localhost", "*", "127.0.0.1", "[::1]", "0.0.0.0", "box"])
ends = st.sampled_from(["web:80", "db:1", "/s"])
spelled = st.one_of(
    st.tuples(hosts, st.integers(0, 3), ends).map(lambda t: "L %s:%d:%s" % t),
    st.tuples(hosts, st.integers(0, 3), ends).map(lambda t: "R %s:%d:%s" % t),
    st.tuples(hosts, st.integers(1, 3)).map(lambda t: "D %s:%d" % t),
    st.tuples(st.sampled_from("LR"), st.sampled_from("ab"), ends).map(lambda t: "%s /%s:%s" % t),
)
wishes = st.lists(spelled, max_size=5, unique=True)


def after(decided: ForwardPlan, held: Sequence[Record]) -> Tuple[Record, ...]:
    """What is held when the plan was carried out; the lowest free port is chosen."""
    left = [record for record in held if record not in decided.close]
    for forward in sorted(decided.open, key=lambda one: one.automatic):
        port = forward.listen_port
        taken = {(record.forward.side, record.forward.listen_port) for record in left}
        if forward.automatic:
            port = next(port for port in range(1, 99) if (forward.side, port) not in taken)
        chosen = forward if port is None else forward.with_port(port)
        left.append(Record(chosen, automatic=forward.automatic))
    return tuple(left)


def agree(desired: Sequence[Forward]) -> bool:
    return not contradictions(desired, resolve)


@given(wishes, wishes, st.booleans(), st.booleans())
def test_once_is_enough(
    first: List[str], second: List[str], exclusive: bool, replace: bool
) -> None:
    before, wanted = forwards(*first), forwards(*second)
    assume(agree(before) and agree(wanted))
    held = after(plan_forwards(before, (), (), resolve=resolve), ())
    how: Dict[str, Any] = {"exclusive": exclusive, "replace": replace}
    decided = plan_forwards(wanted, held, (), resolve=resolve, **how)
    if decided.conflicts:
        assert not exclusive
        assert not replace
        return
    result = after(decided, held)
    assert all(any(record.satisfies(one) for record in result) for one in wanted)
    again = plan_forwards(wanted, result, (), resolve=resolve, **how)
    assert not again.actions
    assert again.before == again.after
    if exclusive:
        assert all(any(record.satisfies(one) for one in wanted) for record in result)
    for index, record in enumerate(result):
        for other in result[:index]:
            one, two = record.forward, other.forward
            if one.side == two.side and one.listen_socket is None and two.listen_socket is None:
                same_port = one.listen_port == two.listen_port
                assert not (same_port and overlaps(one.addresses(resolve), two.addresses(resolve)))


@given(wishes, wishes)
def test_absent_once_is_enough_and_touches_nothing_else(
    first: List[str], second: List[str]
) -> None:
    before, unwanted = forwards(*first), forwards(*second)
    assume(agree(before))
    held = after(plan_forwards(before, (), (), resolve=resolve), ())
    decided = plan_forwards(unwanted, held, (), resolve=resolve, state=ABSENT)
    left = after(decided, held)
    assert not any(record.satisfies(one) for record in left for one in unwanted)
    assert set(held) - set(left) == {
        record for record in held if any(record.satisfies(one) for one in unwanted)
    }
    assert not plan_forwards(unwanted, left, (), resolve=resolve, state=ABSENT).actions
