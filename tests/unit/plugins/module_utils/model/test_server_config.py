# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The drop-in for sshd: what it says, how sshd comes to read it, what sshd says about it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model import server_config as model
from ansible_collections.bastion.mux.plugins.module_utils.model.config_file import Line, Option
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError

DROP_IN = "/etc/ssh/sshd_config.d/00-bastion.mux.conf"
BLOCK = f"# BEGIN bastion.mux server\nInclude {DROP_IN}\n# END bastion.mux server\n".encode()


# -- the drop-in -----------------------------------------------------------------------------------


def test_settings_are_written_in_order_and_below_their_conditions() -> None:
    drop_in = model.parse_drop_in(
        {"MaxStartups": "10:30:100", "UseDNS": False, "AcceptEnv": ["LANG", "LC_*"], "Port": 22},
        [
            {"match": " Group jump ", "options": {"PermitTTY": False}},
            {"match": "User a,b Address 10.0.0.0/8", "options": None},
        ],
    )
    text = drop_in.text(made_directory=False)
    assert text.decode().splitlines()[1:] == [
        "MaxStartups 10:30:100",
        "UseDNS no",
        "AcceptEnv LANG",
        "AcceptEnv LC_*",
        "Port 22",
        "Match Group jump",
        "    PermitTTY no",
        "Match User a,b Address 10.0.0.0/8",
    ]
    assert model.is_ours(text)
    assert not model.made_directory(text)
    assert model.made_directory(drop_in.text(made_directory=True))


def test_what_sshd_does_not_know_is_left_out_below_its_condition_alone() -> None:
    drop_in = model.parse_drop_in(
        {"Foo": "x", "Port": 1}, [{"match": "all", "options": {"Foo": "y", "Bar": 1}}]
    )
    settings = [setting for _line, setting in drop_in.lines()]
    assert settings[2] is None
    assert settings[3] is not None
    assert settings[3].as_dict() == {"keyword": "Foo", "match": "all"}
    less = drop_in.without({settings[3]})
    assert [line for line, _setting in less.lines()] == [
        "Foo x",
        "Port 1",
        "Match all",
        "    Bar 1",
    ]


@pytest.mark.parametrize(
    ("options", "matches", "named"),
    [
        ({"Port": "22\nMatch all"}, [], "options.Port"),
        ({"Port\t1": "22"}, [], "not a keyword of sshd_config"),
        ({"match": "all"}, [], "begins an entry"),
        ({"Port": 1, "PORT": 2}, [], "twice"),
        ({"Port": None}, [], "string"),
        ({}, [{"match": "all\nPort 1", "options": {}}], r"matches\[0\].match"),
        ({}, [{"match": "all # x", "options": {}}], "comment"),
        ({}, [{"match": " ", "options": {}}], "empty"),
        ({}, [{"match": "all", "options": {"A": "\r"}}], r"matches\[0\].options.A"),
    ],
)
def test_what_could_break_out_of_its_line_is_refused(
    options: Dict[str, Any], matches: List[Dict[str, Any]], named: str
) -> None:
    with pytest.raises(MuxError, match=named) as caught:
        model.parse_drop_in(options, matches)
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize(
    ("content", "ours", "made"),
    [
        (b"", False, False),
        (b"Port 22\n", False, False),
        (b"# BEGIN bastion.mux server\n", False, False),
        (b"Port 1\n# Written by bastion.mux.ssh_server_config: x\n", False, False),
    ],
)
def test_somebody_elses_drop_in_is_told_from_ours(content: bytes, ours: bool, made: bool) -> None:
    assert model.is_ours(content) is ours
    assert model.made_directory(content) is made


# -- files -----------------------------------------------------------------------------------------


def file(name: str, mode: Optional[str] = None) -> Dict[str, Any]:
    return {"name": name, "content": "x\n", "mode": mode}


def test_files_have_a_mode_and_the_directory_its_marker() -> None:
    found = model.parse_files([file("keys/alice"), file("ca.pub", "600"), file("ca", "0444")])
    assert {name: oct(one.mode) for name, one in found.items()} == {
        model.MARKER: "0o644",
        "keys/alice": "0o644",
        "ca.pub": "0o600",
        "ca": "0o444",
    }


@pytest.mark.parametrize(
    "files",
    [
        *(
            [file(name)]
            for name in ["", "/", "/etc/passwd", "../x", "a/../b", "..", ".", "a/", "a//b"]
        ),
        *(
            [file(name)]
            for name in ["a/b/c", "a\nb", "a\0", "keys/\x1b", "keys/..", "./a", ".bastion.mux"]
        ),
        [file("a"), file("a")],
        [file("keys"), file("keys/alice")],
        *([file("a", mode)] for mode in ["0666", "0622", "4755", "rw", "8", "-644", "0o644"]),
    ],
)
def test_names_that_lead_elsewhere_and_modes_that_let_others_write_are_refused(
    files: List[Dict[str, Any]],
) -> None:
    with pytest.raises(MuxError, match="files") as caught:
        model.parse_files(files)
    assert caught.value.reason == "invalid"


# -- Include ---------------------------------------------------------------------------------------

FOLDER = "/etc/ssh/sshd_config.d"

#: What is the first thing in a configuration, and whether sshd reads the drop-in by it.
FIRST = {
    "nothing": (b"", False),
    "Debian's": (b"\n# see man\n\nInclude /etc/ssh/sshd_config.d/*.conf\nPort 22\n", True),
    "small, with an equals sign": (b"include=/etc/ssh/sshd_config.d/*.conf\n", True),
    "with spaces around it": (b"  INCLUDE = /etc/ssh/sshd_config.d/*.conf  \n", True),
    "a tab, CRLF": (b"Include\t/etc/ssh/sshd_config.d/*.conf\r\nPort 22\r\n", True),
    "no newline at the end": (b"Include /etc/ssh/sshd_config.d/*.conf", True),
    "in quotes": (b'Include "/etc/ssh/sshd_config.d/*.conf"\n', True),
    "relative to /etc/ssh": (b"Include sshd_config.d/*.conf\n", True),
    "the second of two": (b"Include /etc/ssh/other/* /etc/ssh/sshd_config.d/*\n", True),
    "the file itself": (b"Include " + DROP_IN.encode() + b"\n", True),
    "by other letters": (b"Include /etc/ssh/sshd_config.d/[0-9]?-*.conf\n", True),
    "any directory": (b"Include /etc/ssh/*.d/*.conf\n", True),
    "behind a form feed": (b"\f\nInclude /etc/ssh/sshd_config.d/*.conf\f\n", True),
    "other files of the directory": (b"Include /etc/ssh/sshd_config.d/5*.conf\n", False),
    "another suffix": (b"Include /etc/ssh/sshd_config.d/*.cfg\n", False),
    "another directory": (b"Include /etc/ssh/conf.d/*.conf\n", False),
    "a level too few": (b"Include /etc/ssh/*.conf\n", False),
    "after a setting": (b"Port 22\nInclude /etc/ssh/sshd_config.d/*.conf\n", False),
    "after another file": (b"Include /x\nInclude /etc/ssh/sshd_config.d/*.conf\n", False),
    "inside of a Match": (b"Match User x\nInclude /etc/ssh/sshd_config.d/*.conf\n", False),
    "indented below a Match": (b"Match all\n  Include /etc/ssh/sshd_config.d/*.conf\n", False),
    "behind a comment": (b"Include /x # /etc/ssh/sshd_config.d/*.conf\n", False),
    "commented out": (b"#Include /etc/ssh/sshd_config.d/*.conf\n", False),
    "another keyword": (b"Includes /etc/ssh/sshd_config.d/*.conf\n", False),
    "without a pattern": (b"Include\n", False),
    "Latin-1": (b"# M\xfcller\nInclude /etc/ssh/sshd_config.d/*.conf\n", True),
}


@pytest.mark.parametrize("name", FIRST)
def test_a_line_is_added_only_where_the_drop_in_is_not_read_first(name: str) -> None:
    content, included = FIRST[name]
    assert model.is_included(content, DROP_IN) is included
    edit = model.edit_config(content, DROP_IN)
    assert edit.actions is not included
    if included:
        assert edit.after == content
        return
    block = BLOCK.replace(b"\n", b"\r\n") if b"\r\n" in content else BLOCK
    assert edit.after == block + content
    again = model.edit_config(edit.after, DROP_IN)
    assert not again.actions
    assert model.edit_config(edit.after, None).after == content


def test_a_hidden_name_is_found_by_a_pattern_that_begins_with_a_dot_alone() -> None:
    assert not model.covers("/d/*.conf", "/d/.x.conf")
    assert model.covers("/d/.*.conf", "/d/.x.conf")
    assert not model.covers("/D/*.conf", "/d/x.conf")


def test_a_line_that_lost_its_place_is_moved_to_the_top() -> None:
    content = b"Port 22\n" + BLOCK + b"UseDNS no\n"
    assert model.edit_config(content, DROP_IN).after == BLOCK + b"Port 22\nUseDNS no\n"


def test_a_line_that_is_no_longer_needed_goes() -> None:
    own = b"Include /etc/ssh/sshd_config.d/*.conf\n"
    assert model.edit_config(BLOCK + own, DROP_IN).after == own


def test_a_path_with_a_space_is_quoted() -> None:
    after = model.edit_config(b"", "/etc/my ssh/x.conf").after
    assert b'Include "/etc/my ssh/x.conf"\n' in (after or b"")
    assert model.is_included(after or b"", "/etc/my ssh/x.conf")


def test_damaged_markers_are_told_by_their_line() -> None:
    with pytest.raises(MuxError, match="line 2"):
        model.edit_config(b"Port 1\n# BEGIN bastion.mux server\n", DROP_IN)


LINES = st.sampled_from([content for content, _included in FIRST.values()])


@given(content=st.lists(LINES, max_size=4).map(b"".join) | st.binary(max_size=200))
@example(content=b"\r\n")
def test_applied_twice_is_applied_once_and_absent_gives_every_byte_back(content: bytes) -> None:
    assume(b"bastion.mux server" not in content)
    once = model.edit_config(content, DROP_IN).after
    assert once is not None
    assert model.edit_config(once, DROP_IN).after == once
    assert model.is_included(once, DROP_IN)
    assert model.edit_config(once, None).after == content


# -- what sshd says --------------------------------------------------------------------------------

SAID = """\
/t/001: line 3: Bad configuration option: PerSourcePenaltyExemptList
/t/001 line 7: Directive 'Foo' is not allowed within a Match block
/t/000 line 2: Deprecated option RSAAuthentication
/t/000 line 4: Unsupported option GSSAPIAuthentication
Could not load host certificate "/t/d/cert": invalid format
/t/000: terminating, 1 bad configuration options
"""


def test_complaints_are_told_by_the_file_that_was_copied() -> None:
    found = model.complaints(SAID, {"/t/000": "/etc/a", "/t/001": "/etc/b"}.get)
    assert [(one.file, one.line, one.is_unknown) for one in found] == [
        ("/etc/b", 3, True),
        ("/etc/b", 7, False),
        ("/etc/a", 2, True),
        ("/etc/a", 4, True),
        ("", 0, False),
    ]
    assert str(found[1]) == (
        "line 7 of /etc/b: Directive 'Foo' is not allowed within a Match block"
    )
    assert str(found[4]).startswith("Could not load")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("OpenSSH_9.9p1, OpenSSL 3.0", "OpenSSH_9.9p1"),
        (
            "unknown option -- V\nOpenSSH_8.4p1 Debian-5+deb11u3, OpenSSL 1.1.1w\nusage: sshd",
            "OpenSSH_8.4p1",
        ),
        ("something else", None),
    ],
)
def test_the_version_is_found(said: str, version: Optional[str]) -> None:
    assert model.parse_version(said) == version


def test_addresses_are_read_as_sshd_prints_them() -> None:
    listen = ["[::]:22", "0.0.0.0:2222", "[fe80::1%eth0]:22", "10.0.0.1:22 rdomain vrf"]
    assert model.addresses({"listenaddress": listen}) == [
        ("::", 22),
        ("0.0.0.0", 2222),
        ("fe80::1%eth0", 22),
        ("10.0.0.1", 22),
    ]
    assert model.addresses({}) == []


def expectation(**options: Any) -> model.Expectation:
    given = [{"connection": {"user": "root", "host": None}, "options": options}]
    return model.parse_expect(given)[0]


def test_a_connection_has_all_that_a_match_may_ask_for() -> None:
    every = "user=root,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22"
    assert expectation().given == every


@pytest.mark.parametrize("user", ["", "a,addr=10.0.0.1", "a\n"])
def test_a_connection_that_could_be_another_is_refused(user: str) -> None:
    with pytest.raises(MuxError, match=r"connection\.user"):
        model.parse_expect([{"connection": {"user": user}, "options": {}}])


@pytest.mark.parametrize(
    ("effective", "meant", "skipped", "wrong"),
    [
        ({"port": ["22"]}, {"port": ["22"]}, (), []),
        ({"port": ["22"]}, {"port": ["23"]}, (), [("port", ("23",), ("22",))]),
        ({"port": ["22"]}, {"port": ["23"]}, ("port",), []),
        ({"port": ["1", "2"]}, {"port": ["2", "1"]}, (), []),
        ({"port": ["1", "1"]}, {"port": ["1"]}, (), []),
        ({}, {"port": ["1"]}, (), [("port", ("1",), ())]),
    ],
)
def test_what_is_otherwise_is_told(
    effective: Dict[str, List[str]],
    meant: Dict[str, List[str]],
    skipped: Sequence[str],
    wrong: List[Any],
) -> None:
    found = model.mismatches(expectation(Port="x"), effective, meant, frozenset(skipped))
    assert [(one.keyword, one.meant, one.found) for one in found] == wrong


@pytest.mark.parametrize("found", ["yes", "no"])
@pytest.mark.parametrize("alone", ["yes", "no"])
def test_a_no_is_a_no_whatever_it_would_mean_by_itself(found: str, alone: str) -> None:
    keyword = "kbdinteractiveauthentication"
    wrong = model.mismatches(
        expectation(KbdInteractiveAuthentication=False),
        {keyword: [found]},
        {keyword: [alone]},
        frozenset(),
    )
    assert bool(wrong) is (found == "yes")


def test_what_sshd_is_silent_about_cannot_be_expected() -> None:
    with pytest.raises(MuxError, match="says nothing about skeyauthentication"):
        model.mismatches(expectation(SkeyAuthentication="x"), {}, {}, frozenset())


def test_a_mismatch_names_the_line_that_has_the_say() -> None:
    one = model.Mismatch("port", "user=x", ("1",), ("2",), Line("/etc/a", 3, b"Port\x1b 2"))
    assert str(one) == (
        "for user=x, port is 2 and not 1, because of line 3 of /etc/a (Port\\x1b 2)"
    )
    assert one.as_dict()["line"] == 3
    nobody = model.Mismatch("port", "user=x", ("1",), ())
    assert str(nobody) == "for user=x, port is not set and not 1"
    assert nobody.as_dict()["file"] is None


@pytest.mark.parametrize(
    ("line", "keyword"),
    [(b"  Port 22", "port"), (b'"Port"=1', "port"), (b"#Port", ""), (b"", ""), (b"\xff", "")],
)
def test_a_line_has_a_keyword(line: bytes, keyword: str) -> None:
    assert model.keyword_of(line) == keyword


def test_options_are_kept_as_they_are_spelled() -> None:
    assert expectation(PermitTTY=False).options == (Option("PermitTTY", "no"),)
