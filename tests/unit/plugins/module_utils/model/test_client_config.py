# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The managed block: what it says, and what shadows it."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Set

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model import client_config as model
from ansible_collections.bastion.mux.plugins.module_utils.model.config_file import Line, lines_of
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError

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
        return lines_of(name, "\n".join(FILES[name]).encode())

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
