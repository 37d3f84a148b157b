# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The managed block: what it says, where it is, what becomes of the file around it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Set

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model import client_config as model
from ansible_collections.bastion.mux.plugins.module_utils.model.client_config import Line
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError

BODY = ["Host bastion", "    Port 2222", "Match all"]
BLOCK = (
    b"# BEGIN bastion.mux team\nHost bastion\n    Port 2222\nMatch all\n# END bastion.mux team\n"
)


def present(content: Optional[bytes], name: str = "team", new: Sequence[str] = ()) -> bytes:
    after = model.edit_present(content, name, BODY, set(new)).after
    assert after is not None
    return after


def absent(content: Optional[bytes], name: str = "team") -> Optional[bytes]:
    return model.edit_absent(content, name).after


# -- hosts -----------------------------------------------------------------------------------------


def test_a_block_is_written_as_it_was_given() -> None:
    block = model.parse_block(
        [
            {
                "host": " bastion *.example ",
                "options": {
                    "Port": 2222,
                    "ForwardAgent": False,
                    "Compression": True,
                    "SendEnv": ["LANG", "LC_*"],
                    "ProxyCommand": 'ssh -W "%h:%p" gate',
                },
            },
            {"match": 'user "alice"', "host": None, "options": None},
        ]
    )
    assert block.body() == [
        "Host bastion *.example",
        "    Port 2222",
        "    ForwardAgent no",
        "    Compression yes",
        "    SendEnv LANG",
        "    SendEnv LC_*",
        '    ProxyCommand ssh -W "%h:%p" gate',
        'Match user "alice"',
        "Match all",
    ]
    assert block.conditional
    assert [index for index, _entry in block.headers()] == [0, 7]


@pytest.mark.parametrize(
    ("header", "hosts"),
    [
        ("Host a b a", ("a", "b")),
        ('Host "a" !b c* d? 10.0.0.1 fe80::1%eth0', ("a", "10.0.0.1", "fe80::1%eth0")),
        ("Host -oX a@b a/b", ()),
        ("Match host a", ()),
    ],
)
def test_concrete_hosts_are_those_that_are_no_patterns(header: str, hosts: Sequence[str]) -> None:
    assert model.Entry(header, ()).hosts == hosts


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"host": "a\nHost b"}, "hosts[0].host"),
        ({"host": "a\tb"}, "control character"),
        ({"host": " "}, "empty"),
        ({"host": "a # b"}, "comment"),
        ({"match": "all\r"}, "hosts[0].match"),
        ({"host": "a", "options": {"Port": "22\nProxyCommand x"}}, "hosts[0].options.Port"),
        ({"host": "a", "options": {"User": ["a", "b\0"]}}, "control character"),
        ({"host": "a", "options": {"User": "\x7f"}}, "control character"),
        ({"host": "a", "options": {"User": ""}}, "empty"),
        ({"host": "a", "options": {"User": None}}, "string"),
        ({"host": "a", "options": {"User": {}}}, "string"),
        ({"host": "a", "options": {"Port 22\nUser": "x"}}, "keyword"),
        ({"host": "a", "options": {"#": "x"}}, "keyword"),
        ({"host": "a", "options": {"Host": "x"}}, "entry"),
        ({"host": "a", "options": {"mAtch": "x"}}, "entry"),
        ({"host": "a", "options": {"Port": 1, "port": 2}}, "twice"),
    ],
)
def test_what_could_break_out_of_its_line_is_refused(entry: Dict[str, Any], named: str) -> None:
    with pytest.raises(MuxError, match=named.replace("[", r"\[")) as caught:
        model.parse_block([entry])
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize("name", ["", "a b", "a\n", ".a", "-", "ä", "a" * 65, "a)"])
def test_names_that_no_marker_could_carry_are_refused(name: str) -> None:
    with pytest.raises(MuxError, match="name"):
        model.check_name(name)


# -- the file --------------------------------------------------------------------------------------

OTHER = BLOCK.replace(b" team", b" other")

# What people have in their files. The guide's page "what is safe" shows this table.
HOSTILE = {
    "nothing": b"",
    "no newline at the end": b"Host a\n  Port 1",
    "CRLF": b"Host a\r\n\tPort 1\r\n",
    "tabs, equals signs and quotes": b'Host\ta\n\tPort=1\n\tUser = "x y"\n',
    "settings before the first Host": b"Compression yes\nHost a\n  Port 1\n",
    "Latin-1": b"# M\xfcller\nHost a\n",
    "a byte order mark": b"\xef\xbb\xbfHost a\n",
    "NUL": b"# \0\nHost a\n",
    "carriage returns alone": b"Host a\rPort 1\r",
    "Include and Match": b'Include x\nInclude y\nMatch exec "true"\n  SendEnv A\n  SendEnv B\n',
    "blank lines": b"\n\n\n",
    "blocks of other names": OTHER + b"Host a\n" + OTHER.replace(b"other", b"more"),
    "half a block of another name": b"# BEGIN bastion.mux other\nHost a\n",
    "markers of Ansible's own": b"# BEGIN ANSIBLE MANAGED BLOCK\n# END ANSIBLE MANAGED BLOCK\n",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_nothing_outside_of_the_block_changes(content: bytes) -> None:
    once = present(content)
    assert once.endswith(content)
    assert once[: -len(content) or None].replace(b"\r", b"") == BLOCK
    assert present(once) == once
    assert absent(once) == content
    assert absent(content) == content


def test_the_block_has_the_line_ends_of_the_file() -> None:
    content = b"Host a\r\n"
    assert present(content) == BLOCK.replace(b"\n", b"\r\n") + content
    # An editor may turn the whole file, and ours with it.
    assert present(BLOCK.replace(b"\n", b"\r\n") + content) == present(content)
    assert present(content.replace(b"\r", b"")) == BLOCK + b"Host a\n"


@pytest.mark.parametrize(
    ("above", "below"),
    [(b"User x\n", b"Host y"), (b"", b"User x"), (b"\n", b""), (OTHER, OTHER + b"Port 1\n")],
)
def test_a_block_is_renewed_where_it_is(above: bytes, below: bytes) -> None:
    old = BLOCK.replace(b"2222", b"1\n    User old")
    edit = model.edit_present(above + old + below, "team", BODY, set())
    assert edit.after == above + BLOCK + below
    assert (edit.above, edit.below) == (above, below)
    assert edit.line == above.count(b"\n") + 1
    lines = [line for part in edit.around("f") for line in part]
    numbered = model.lines_of("f", above + old + below)
    assert set(lines) <= set(numbered)
    assert b"\n".join(line.text for line in lines) == (above + below).rstrip(b"\n")


def test_a_marker_that_lost_its_newline_is_still_one() -> None:
    assert absent(b"Host a\n" + BLOCK[:-1]) == b"Host a\n"
    assert present(BLOCK[:-1]) == BLOCK


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        (b"Host a\n# BEGIN bastion.mux team\nHost b\n", 2, "without its END"),
        (b"Host a\n\n# END bastion.mux team\n", 3, "without its BEGIN"),
        (BLOCK + BLOCK, 6, "second BEGIN"),
        (b"# BEGIN bastion.mux team\n" + BLOCK, 2, "second BEGIN"),
        (BLOCK + b"# END bastion.mux team\n", 6, "without its BEGIN"),
        (b"# BEGIN bastion.mux team\n" + OTHER + b"# END bastion.mux team\n", 2, "block other"),
        (b"#BEGIN bastion.mux team\nHost b\n# END bastion.mux team\n", 1, "damaged"),
        (b"# BEGIN bastion.mux team x\n# END bastion.mux team\n", 1, "damaged"),
        (b"  # BEGIN bastion.mux team\n# END bastion.mux team\n", 1, "damaged"),
        (b"# BEGIN bastion.mux\nHost b\n", 1, "damaged"),
        (b"# BEGIN bastion.mux team (new: fi\nHost b\n", 1, "damaged"),
    ],
)
def test_half_a_block_is_refused_by_its_line(content: bytes, line: int, what: str) -> None:
    for change in (present, absent):
        with pytest.raises(MuxError, match=r"^line %d: .*%s" % (line, what)) as caught:
            change(content)
        assert caught.value.reason == "invalid"


def test_what_was_made_is_noted_and_goes_with_the_last_block() -> None:
    first = present(None, "one", [model.DIRECTORY, model.CONTROL_DIR])
    assert first.startswith(b"# BEGIN bastion.mux one (new: control_dir, directory, file)\n")
    assert present(first, "one") == first
    both = present(first, "two")
    assert both.startswith(b"# BEGIN bastion.mux two (new: directory, file)\n")
    for one, two in (("one", "two"), ("two", "one")):
        left = model.edit_absent(both, one)
        assert left.after
        assert model.DIRECTORY not in left.gone
        last = model.edit_absent(left.after, two)
        assert last.after is None
        assert model.DIRECTORY in last.gone
    # What somebody wrote there since then stays.
    own = model.edit_absent(first + b"Host x\n", "one")
    assert own.after == b"Host x\n"
    assert own.gone == {model.CONTROL_DIR}
    # And a file that was empty before is empty after.
    assert absent(present(b"")) == b""


def test_no_file_and_nothing_to_remove_is_no_change() -> None:
    assert not model.edit_absent(None, "team").actions
    assert not model.edit_absent(b"", "team").actions


ANYTHING = st.one_of(
    st.binary(),
    st.lists(
        st.sampled_from(
            [b"Host a\n", b"\tPort=1\r\n", b"#", b"\n", b"\r", b"\xff\n", b"Match all", OTHER]
        )
    ).map(b"".join),
)


def is_clean(content: bytes) -> bool:
    """Whether no marker in it is damaged or of the block that the tests write."""
    try:
        return model.find(content, "team") is None
    except MuxError:
        return False


@given(above=ANYTHING, below=ANYTHING, crlf=st.booleans())
@example(above=b"", below=b"\r\n", crlf=True)
def test_any_bytes_before_and_after(above: bytes, below: bytes, crlf: bool) -> None:
    above += b"" if above.endswith(b"\n") or not above else b"\n"
    assume(is_clean(above + below) and is_clean(above) and is_clean(below))
    block = BLOCK.replace(b"\n", b"\r\n") if crlf else BLOCK
    for content, left in ((above, above), (above + block + below, above + below)):
        once = present(content)
        found = model.find(once, "team")
        assert found is not None
        assert once[: found.start] + once[found.end :] == left
        assert present(once) == once
        assert absent(once) == left
        assert absent(left) == left


@given(st.one_of(st.none(), ANYTHING))
def test_removed_is_restored(content: Optional[bytes]) -> None:
    assume(is_clean(content or b""))
    assert absent(present(content)) == content
    two = present(present(content, "one"), "two")
    assert absent(absent(two, "one"), "two") == content
    assert absent(absent(two, "two"), "one") == content


# -- what is in force ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plain", "forced", "option", "keywords"),
    [
        ({"port": ["22"]}, {"port": ["22"]}, "Port", []),
        ({"port": ["22"]}, {"port": ["2222"]}, "Port", ["port"]),
        ({"sendenv": ["A", "B"]}, {"sendenv": ["B", "A", "B"]}, "SendEnv", []),
        ({"identityfile": ["a"]}, {"identityfile": ["b", "a"]}, "identityfile", ["identityfile"]),
        ({}, {"proxyjump": ["b"]}, "ProxyJump", ["proxyjump"]),
        # A consequence of something else is nothing of ours.
        ({"user": ["a"], "port": ["1"]}, {"user": ["a"], "port": ["2"]}, "User", []),
        # A keyword that is printed by its new name.
        (
            {"pubkeyacceptedalgorithms": ["a"]},
            {"pubkeyacceptedalgorithms": ["b"]},
            "PubkeyAcceptedKeyTypes",
            ["pubkeyacceptedalgorithms"],
        ),
    ],
)
def test_settings_differ_by_what_they_are(
    plain: Dict[str, List[str]], forced: Dict[str, List[str]], option: str, keywords: List[str]
) -> None:
    assert model.differing(plain, forced, option) == keywords


#: Where Port comes from is searched for in these.
FILES = {
    "main": ["User a", "Include no", "Include yes", "Port 3"],
    "no": ["User b"],
    "yes": ["Compression no", "Include deep", "Port 2"],
    "deep": ["# nothing", "Port 1"],
}


def test_the_line_that_shadows_is_found_in_included_files() -> None:
    read: Set[str] = set()

    def lines(name: str) -> List[Line]:
        return model.lines_of(name, "\n".join(FILES[name]).encode())

    def shadows(given: Sequence[Line]) -> bool:
        def sets(line: Line) -> bool:
            keyword, _space, value = line.text.decode().partition(" ")
            return keyword == "Port" or (keyword == "Include" and any(map(sets, lines(value))))

        return any(map(sets, given))

    def included(given: Sequence[Line]) -> List[List[Line]]:
        keyword, _space, value = given[-1].text.decode().partition(" ")
        if keyword != "Include":
            return []
        read.add(value)
        return [lines("no"), lines(value)]

    found = model.culprit(lines("main"), shadows, included)
    assert found == Line("deep", 2, b"Port 1")
    assert read == {"yes", "deep"}
    assert model.culprit(lines("no"), shadows, included) is None
    assert model.culprit([], shadows, included) is None
    assert model.culprit(lines("main")[3:], shadows, included) == Line("main", 4, b"Port 3")
