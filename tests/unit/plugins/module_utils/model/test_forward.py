# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Spellings of forwardings: which are the same, which are none."""

from __future__ import annotations

from typing import Any, Dict, FrozenSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.forward import (
    DYNAMIC,
    LOCAL,
    REMOTE,
    Forward,
    is_address,
    overlaps,
    parse,
    parse_all,
)

LONGEST = "/" + "p" * 106


@pytest.mark.parametrize(
    ("type_", "spelling", "expected"),
    [
        # No address is loopback, the empty one and "*" are every interface (ssh(1), -L).
        (LOCAL, "80:web:8080", Forward(LOCAL, "localhost", 80, None, "web", 8080)),
        (LOCAL, "localhost:80:web:8080", Forward(LOCAL, "localhost", 80, None, "web", 8080)),
        (LOCAL, "LocalHost:80:WEB:8080", Forward(LOCAL, "localhost", 80, None, "web", 8080)),
        (LOCAL, "127.0.0.1:80:web:8080", Forward(LOCAL, "127.0.0.1", 80, None, "web", 8080)),
        (LOCAL, "[127.0.0.1]:80:web:8080", Forward(LOCAL, "127.0.0.1", 80, None, "web", 8080)),
        (LOCAL, ":80:web:8080", Forward(LOCAL, "*", 80, None, "web", 8080)),
        (LOCAL, "*:80:web:8080", Forward(LOCAL, "*", 80, None, "web", 8080)),
        (LOCAL, "0.0.0.0:80:web:8080", Forward(LOCAL, "0.0.0.0", 80, None, "web", 8080)),
        (LOCAL, "[::]:80:web:8080", Forward(LOCAL, "::", 80, None, "web", 8080)),
        (LOCAL, "[0:0:0::1]:80:[FE80::A]:8080", Forward(LOCAL, "::1", 80, None, "fe80::a", 8080)),
        (
            LOCAL,
            "[fe80::1%eth0]:80:web:8080",
            Forward(LOCAL, "fe80::1%eth0", 80, None, "web", 8080),
        ),
        (LOCAL, "0:web:8080", Forward(LOCAL, "localhost", 0, None, "web", 8080)),
        (LOCAL, "  080:web:8080 ", Forward(LOCAL, "localhost", 80, None, "web", 8080)),
        (LOCAL, "bücher:80:web:8080", Forward(LOCAL, "bücher", 80, None, "web", 8080)),
        (LOCAL, "/a:/b", Forward(LOCAL, None, None, "/a", None, None, "/b")),
        (LOCAL, "/a:web:80", Forward(LOCAL, None, None, "/a", "web", 80)),
        (LOCAL, "/a:[::1]:80", Forward(LOCAL, None, None, "/a", "::1", 80)),
        (LOCAL, "80:/b", Forward(LOCAL, "localhost", 80, None, None, None, "/b")),
        (LOCAL, "*:80:/b", Forward(LOCAL, "*", 80, None, None, None, "/b")),
        (LOCAL, "/a b:/ü", Forward(LOCAL, None, None, "/a b", None, None, "/ü")),
        (LOCAL, r"/a\:b\\:/c", Forward(LOCAL, None, None, "/a:b\\", None, None, "/c")),
        (LOCAL, "[/a:b]:/c", Forward(LOCAL, None, None, "/a:b", None, None, "/c")),
        (LOCAL, "//a/./b:/c//d", Forward(LOCAL, None, None, "/a/b", None, None, "/c/d")),
        (LOCAL, "/a/../b:/c", Forward(LOCAL, None, None, "/a/../b", None, None, "/c")),
        (LOCAL, LONGEST + ":/b", Forward(LOCAL, None, None, LONGEST, None, None, "/b")),
        (REMOTE, "80:web:8080", Forward(REMOTE, "localhost", 80, None, "web", 8080)),
        (REMOTE, "0:web:8080", Forward(REMOTE, "localhost", 0, None, "web", 8080)),
        (REMOTE, "*:0:/b", Forward(REMOTE, "*", 0, None, None, None, "/b")),
        (REMOTE, "/a:/b", Forward(REMOTE, None, None, "/a", None, None, "/b")),
        (REMOTE, "1080", Forward(REMOTE, "localhost", 1080)),
        (REMOTE, "0", Forward(REMOTE, "localhost", 0)),
        (REMOTE, "*:1080", Forward(REMOTE, "*", 1080)),
        (REMOTE, "/a", Forward(REMOTE, None, None, "/a")),
        (DYNAMIC, "1080", Forward(DYNAMIC, "localhost", 1080)),
        (DYNAMIC, "[::1]:1080", Forward(DYNAMIC, "::1", 1080)),
    ],
)
def test_a_spelling_is_read_as_ssh_reads_it(type_: str, spelling: str, expected: Forward) -> None:
    assert parse(type_, spelling) == expected


@pytest.mark.parametrize(
    ("type_", "spelling", "why"),
    [
        (LOCAL, "", "empty"),
        (LOCAL, " ", "empty"),
        (LOCAL, "80", "expected"),
        (LOCAL, "/a", "expected"),
        (LOCAL, "80:web", "expected"),
        (LOCAL, "80:web:80:90:100", "expected"),
        (LOCAL, "::1:80:web:80", "expected"),
        (LOCAL, "/a:web", "expected"),
        (DYNAMIC, "/a", "expected [bind_address:]port"),
        (DYNAMIC, "80:web:80", "expected [bind_address:]port"),
        (DYNAMIC, "0", "needs a port"),
        (LOCAL, "65536:web:80", "'65536' is not a port number"),
        (LOCAL, "-1:web:80", "'-1' is not a port number"),
        (LOCAL, "+80:web:80", "'+80' is not a port number"),
        (LOCAL, "http:web:80", "'http' is not a port number"),
        (LOCAL, "80 :web:80", "'80 ' is not a port number"),
        (LOCAL, "٨٠:web:80", "is not a port number"),
        (LOCAL, "9" * 5000 + ":web:80", "forwarding"),
        (LOCAL, "80:web:", "'' is not a port number"),
        (LOCAL, "80:web:0", "cannot be 0"),
        (LOCAL, "80::80", "has no host"),
        (LOCAL, "80:-w:80", "not a host name"),
        (LOCAL, "80:a b:80", "not a host name"),
        (LOCAL, r"80:a\:b:80", "not a host name"),
        (LOCAL, r"80:a\\b:80", "not a host name"),
        (LOCAL, "80:[a]]:80", "brackets"),
        (LOCAL, "80:\ud800:80", "not a host name"),
        (LOCAL, "80:127.0.0.1%lo:80", "127.0.0.1%lo"),
        (LOCAL, "80:" + "h" * 1025 + ":80", "longer than 1024"),
        (LOCAL, "80:" + "ü" * 513 + ":80", "longer than 1024"),
        (LOCAL, "[::1:80:web:80", "brackets"),
        (LOCAL, "[::1]80:web:80", "brackets"),
        (LOCAL, "80:web:80\\", "ends in a backslash"),
        (LOCAL, "a/b:/c", "not absolute"),
        (LOCAL, "~/a:/c", "not absolute"),
        (LOCAL, "/c:a/b", "not absolute"),
        (LOCAL, LONGEST + "p:/c", "107 bytes"),
        (LOCAL, "/c:/" + "ü" * 54, "107 bytes"),
        (LOCAL, "/a :/b", "white space"),
        (LOCAL, "/a\ud800:/b", "not a file name"),
        (LOCAL, "80:web\n:80", "control character"),
        (LOCAL, "/a\0:/b", "control character"),
        (LOCAL, "/a\x7f:/b", "control character"),
        (LOCAL, "/a\x9b:/b", "control character"),
        (LOCAL, "${HOME}/a:/b", "environment variables"),
    ],
)
def test_what_is_no_forwarding_is_refused_with_its_spelling_and_why(
    type_: str, spelling: str, why: str
) -> None:
    with pytest.raises(MuxError) as caught:
        parse(type_, spelling)
    assert caught.value.reason == "invalid"
    assert caught.value.message.startswith("%s forwarding %r: " % (type_, spelling))
    assert why in caught.value.message


def test_a_path_keeps_bytes_that_are_no_utf_8() -> None:
    forward = parse(LOCAL, "/a\udcff:/b")
    assert forward.listen_socket == "/a\udcff"
    assert Forward.from_dict(forward.as_dict()) == forward


def test_the_same_forwarding_counts_once_and_the_order_stays() -> None:
    assert [
        str(one) for one in parse_all(["2:b:2", "1:a:1", "LOCALHOST:2:B:2"], ["2:b:2"], ["3"])
    ] == [
        "-L localhost:2:b:2",
        "-L localhost:1:a:1",
        "-R localhost:2:b:2",
        "-D localhost:3",
    ]


# Round trips. What is read can be spelled and be read again, whatever it holds.

texts = st.text(st.characters(exclude_categories=["Cc"]), max_size=12)
hosts = st.one_of(
    st.sampled_from(["", "*", "localhost", "LOCALHOST", "web", "[::1]", "[FE80:0::1%eth0]", "::1"]),
    st.ip_addresses().map(lambda address: "[%s]" % address),
    texts,
)
paths = st.one_of(
    texts.map(lambda text: "/" + text),
    texts.map(lambda text: "[/%s]" % text),
    st.sampled_from([r"/a\:b", "//a/./b", "/a b", "/ü", "/a/../b"]),
)
ports = st.one_of(st.integers(0, 65536).map(str), st.sampled_from(["", "00", "http"]))
fields = st.lists(st.one_of(hosts, paths, ports), min_size=1, max_size=5).map(":".join)
spellings = st.one_of(
    fields,
    st.tuples(hosts, ports, hosts, ports).map(":".join),
    st.tuples(paths, paths).map(":".join),
    st.tuples(hosts, ports, paths).map(":".join),
    st.tuples(paths, hosts, ports).map(":".join),
    st.text(max_size=20),
)


@given(st.sampled_from([LOCAL, REMOTE, DYNAMIC]), spellings)
def test_what_can_be_read_can_be_spelled_and_stored(type_: str, spelling: str) -> None:
    try:
        forward = parse(type_, spelling)
    except MuxError:
        return
    assert parse(type_, forward.spelling) == forward
    assert Forward.from_dict(forward.as_dict()) == forward
    assert (forward.listen_socket is None) != (forward.listen_port is None)
    assert str(forward)[:3] == {LOCAL: "-L ", REMOTE: "-R ", DYNAMIC: "-D "}[type_]


GOOD: Dict[str, Any] = parse(LOCAL, "80:web:8080").as_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"type": "forward"},
        {"type": None},
        {"type": []},
        {"listen_port": None},
        {"listen_port": "80"},
        {"listen_port": -1},
        {"listen_port": 65536},
        {"listen_port": 10**400},
        {"listen_port": float("nan")},
        {"listen_host": None},
        {"listen_host": 5},
        {"listen_host": "LOCALHOST"},
        {"listen_host": "a\0b"},
        {"listen_socket": "/a"},
        {"listen_socket": "a"},
        {"connect_host": None},
        {"connect_port": None},
        {"connect_port": 0},
        {"connect_host": "-w"},
        {"connect_socket": "/b"},
        {"connect_socket": ["/b"]},
    ],
)
def test_stored_values_that_are_no_forwarding_are_refused(change: Dict[str, Any]) -> None:
    assert Forward.from_dict(dict(GOOD, more="ignored")) == parse(LOCAL, "80:web:8080")
    with pytest.raises(ValueError, match="not a forwarding"):
        Forward.from_dict(dict(GOOD, **change))


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(
                st.none(), st.integers(), st.booleans(), st.floats(), texts, hosts, paths
            )
            for name in GOOD
        },
    )
)
def test_nothing_stored_is_worse_than_refused(values: Dict[str, Any]) -> None:
    try:
        forward = Forward.from_dict(values)
    except ValueError:
        return
    assert all(values.get(name) == value for name, value in forward.as_dict().items())


# Listeners


def resolve(host: str) -> FrozenSet[str]:
    return {"box": frozenset({"192.0.2.9"})}.get(host, frozenset())


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("80:web:80", {"127.0.0.1", "::1"}),
        ("*:80:web:80", {"0.0.0.0", "::"}),
        (":80:web:80", {"0.0.0.0", "::"}),
        ("0.0.0.0:80:web:80", {"0.0.0.0"}),
        ("[::]:80:web:80", {"::"}),
        ("127.0.0.1:80:web:80", {"127.0.0.1"}),
        ("box:80:web:80", {"192.0.2.9"}),
        ("nowhere:80:web:80", set()),
        ("/a:web:80", set()),
    ],
)
def test_where_a_forwarding_listens(spelling: str, expected: FrozenSet[str]) -> None:
    assert parse(LOCAL, spelling).addresses(resolve) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"127.0.0.1", "::1"}, {"::1"}, True),
        ({"127.0.0.1"}, {"::1"}, False),
        ({"127.0.0.1"}, {"127.0.0.2"}, False),
        ({"0.0.0.0"}, {"127.0.0.1"}, True),
        ({"0.0.0.0"}, {"::1"}, False),
        ({"::"}, {"::1"}, True),
        ({"::"}, {"0.0.0.0"}, False),
        ({"0.0.0.0", "::"}, {"192.0.2.9"}, True),
        (set(), {"0.0.0.0"}, False),
    ],
)
def test_which_listeners_are_in_each_others_way(
    one: FrozenSet[str], other: FrozenSet[str], expected: bool
) -> None:
    assert overlaps(frozenset(one), frozenset(other)) is expected
    assert overlaps(frozenset(other), frozenset(one)) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("fe80::1%eth0", True),
        ("fe80::1%", False),
        ("fe80::1%a b", False),
        ("127.0.0.1%lo", False),
        ("127.1", False),
        ("web", False),
        ("", False),
    ],
)
def test_what_is_an_address(host: str, expected: bool) -> None:
    assert is_address(host) is expected
