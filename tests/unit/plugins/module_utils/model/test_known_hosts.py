# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""known_hosts: what is ours in a file, and what becomes of it."""

from __future__ import annotations

import base64
from typing import Any, Dict, List, Sequence, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model import known_hosts
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.known_hosts import (
    Host,
    HostKey,
    Plan,
    parse,
    parse_fingerprint,
    parse_host,
    parse_hosts,
    parse_pins,
    plan_absent,
    plan_present,
)

#: Made with `ssh-keygen -t ed25519`; the fingerprint is what its -l says.
REAL_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIMrXxU6G5O2H7bMSAqNQGpE5gEN/B+6B8+vuK/UZXbaG"


def key(name: str, type_: str = "ssh-ed25519") -> HostKey:
    """A key of some type that differs by name."""
    encoded = type_.encode("ascii")
    return HostKey(type_, len(encoded).to_bytes(4, "big") + encoded + name.encode("ascii"))


A, B, C = key("a"), key("b"), key("c")
RSA, RSA2 = key("r", "ssh-rsa"), key("s", "ssh-rsa")
ECDSA = key("e", "ecdsa-sha2-nistp256")
WEB, DB = Host("web"), Host("db", 2222)


def line(names: str, one: HostKey, tail: str = "\n") -> bytes:
    return ("%s %s%s" % (names, one, tail)).encode("utf-8", "surrogateescape")


def actions(plan: Plan) -> List[Tuple[str, str, str]]:
    return [(str(one.host), one.key.type, one.action) for one in plan.keys]


# Names


@pytest.mark.parametrize(
    ("text", "host", "entry"),
    [
        ("web", WEB, "web"),
        ("Web.Example.COM", Host("web.example.com"), "web.example.com"),
        (" web ", WEB, "web"),
        ("web:22", WEB, "web"),
        ("db:2222", DB, "[db]:2222"),
        ("10.0.0.1:2222", Host("10.0.0.1", 2222), "[10.0.0.1]:2222"),
        ("2001:DB8::1", Host("2001:db8::1"), "2001:db8::1"),
        ("[2001:db8::1]", Host("2001:db8::1"), "2001:db8::1"),
        ("[2001:db8::1]:22", Host("2001:db8::1"), "2001:db8::1"),
        ("[2001:db8::1]:2222", Host("2001:db8::1", 2222), "[2001:db8::1]:2222"),
        ("[web]:2222", Host("web", 2222), "[web]:2222"),
        ("fe80::1%eth0", Host("fe80::1%eth0"), "fe80::1%eth0"),
    ],
)
def test_a_host_is_read(text: str, host: Host, entry: str) -> None:
    assert parse_host(text) == host
    assert host.entry == entry
    assert parse_host(str(host)) == host


@pytest.mark.parametrize(
    "text",
    [
        *["", " ", ":22", "web:", "web:x", "web:0", "web:65536", "web:٢٢", "a:b:c", "[web", "[]"],
        *["[::1]x", "[::1]:", "a,b", "*.web", "we?b", "!web", "-web", "@web", "#web", "|1|a|b"],
        *["we b", "we\tb", "web\n", "a\nb", "a\x00b", "a/b", "[a]b]", "user@[web"],
    ],
)
def test_what_is_no_host_is_refused(text: str) -> None:
    if text == "web\n":
        assert parse_host(text) == WEB
        return
    with pytest.raises(MuxError) as caught:
        parse_host(text)
    assert caught.value.reason == "invalid"


def test_each_host_counts_once() -> None:
    assert parse_hosts(["web", "db:2222", "WEB", "web:22", "[db]:2222"]) == (WEB, DB)


# Fingerprints


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows() -> None:
    real = HostKey("ssh-ed25519", base64.b64decode(REAL_KEY))
    assert str(real) == "ssh-ed25519 " + REAL_KEY
    assert real.fingerprint == "SHA256:EUNjzn2pxvn1ilibwXUbO/F7aF9/ZrTmuta/N4BJ3M0"


@pytest.mark.parametrize("text", [A.fingerprint, A.fingerprint + "=", " %s\n" % A.fingerprint])
def test_a_fingerprint_is_read(text: str) -> None:
    assert parse_fingerprint(text) == A.fingerprint


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("MD5:" + ":".join(["0a"] * 16), "MD5"),
        (":".join(["0A"] * 16), "MD5"),
        (A.fingerprint[7:], "SHA256:"),
        (A.fingerprint[:-1], "SHA256:"),
        (A.fingerprint.lower(), "SHA256:"),
        ("", "SHA256:"),
        (7, "SHA256:"),
        (None, "SHA256:"),
    ],
)
def test_what_is_no_fingerprint_is_refused(text: Any, says: str) -> None:
    with pytest.raises(MuxError, match=says) as caught:
        parse_fingerprint(text)
    assert caught.value.reason == "invalid"


@pytest.mark.parametrize(
    ("given_", "pins"),
    [
        (None, None),
        (A.fingerprint, {WEB: {A.fingerprint}, DB: {A.fingerprint}}),
        ([], {WEB: set(), DB: set()}),
        (
            [A.fingerprint, B.fingerprint],
            {WEB: {A.fingerprint, B.fingerprint}, DB: {A.fingerprint, B.fingerprint}},
        ),
        (
            {"WEB:22": A.fingerprint, "[db]:2222": [B.fingerprint], "other": []},
            {WEB: {A.fingerprint}, DB: {B.fingerprint}, Host("other"): set()},
        ),
    ],
)
def test_pins_are_read(given_: Any, pins: Any) -> None:
    assert parse_pins(given_, [WEB, DB]) == pins


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        ({"web": [A.fingerprint]}, "host_key_unknown"),
        ({"web": None, "db:2222": []}, "invalid"),
        ({"we b": [], "web": [], "db:2222": []}, "invalid"),
        (["nonsense"], "invalid"),
        (7, "invalid"),
    ],
)
def test_pins_that_make_no_sense_are_refused(given_: Any, reason: str) -> None:
    with pytest.raises(MuxError) as caught:
        parse_pins(given_, [WEB, DB])
    assert caught.value.reason == reason


# Lines: what is ours


OURS = {b"web": WEB, b"[db]:2222": DB}
SALTED = known_hosts.hashed(b"web", b"0123456789abcdefghij")


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (line("web", A), [WEB]),
        (line("web", A, ""), [WEB]),
        (line("web", A, "\r\n"), [WEB]),
        (line("web", A, " a comment # of several words\n"), [WEB]),
        (line("WEB", A), [WEB]),
        (b" \t web\t \tssh-ed25519   " + str(A).split()[1].encode() + b"\t\n", [WEB]),
        (line("web,[db]:2222", A), [WEB, DB]),
        (line("other,web", A), [WEB]),
        (line("web,!web", A), [WEB]),
        (line(SALTED, A), [WEB]),
        (line("[db]:2222", A), [DB]),
        # Other people's
        (line("db", A), []),
        (line("[web]:22", A), []),
        (line("other", A), []),
        (line("web.example.com", A), []),
        (line("*", A), []),
        (line("we?", A), []),
        (line("*,!web", A), []),
        (line("@cert-authority web", A), []),
        (line("@revoked web", A), []),
        (line("@revoked @revoked web", A), []),
        (line("@other web", A), []),
        (line("#web", A), []),
        (line(" # web", A), []),
        (b"\n", []),
        (b"   \r\n", []),
        (b"web\n", []),
        (b"web ssh-ed25519\n", []),
        (b"web ssh-ed25519 AAAA\n", []),
        (b"web ssh-ed25519 %%%%\n", []),
        (b"web ssh-rsa " + str(A).split()[1].encode() + b"\n", []),
        (b"web 1024 35 1234567890\n", []),
        (b"web \xff\xfe " + str(A).split()[1].encode() + b"\n", []),
        (line("|1|nonsense", A), []),
        (line("|1|!!!|???", A), []),
        (line("|2|" + SALTED[3:], A), []),
        (line(SALTED + ",web", A), []),
    ],
)
def test_a_line_is_ours_where_it_names_the_host_exactly(raw: bytes, named: List[Host]) -> None:
    (parsed,) = parse(raw)
    assert parsed.raw == raw
    assert parsed.named(OURS) == named


@pytest.mark.parametrize(
    ("names", "covered"),
    [
        ("web", True),
        ("*", True),
        ("w?b", True),
        ("*,!web", False),
        ("!web,*", False),
        ("!w*,web", False),
        ("!other,web", True),
        ("!other", False),
        ("other", False),
        ("[w]eb", False),
        (SALTED, True),
    ],
)
def test_patterns_cover_as_ssh_has_it(names: str, covered: bool) -> None:
    (parsed,) = parse(line("@revoked " + names, A))
    assert parsed.covers(b"web") is covered


@given(st.binary())
def test_lines_joined_are_the_file(content: bytes) -> None:
    assert b"".join(one.raw for one in parse(content)) == content


# Decisions


@pytest.mark.parametrize(
    ("content", "shown", "after", "did"),
    [
        pytest.param(b"", [A], line("web", A), ["added"], id="new file"),
        pytest.param(line("web", A), [A], line("web", A), ["unchanged"], id="known"),
        pytest.param(line(SALTED, A), [A], line(SALTED, A), ["unchanged"], id="known hashed"),
        pytest.param(line("x,WEB", A), [A], line("x,WEB", A), ["unchanged"], id="known in list"),
        pytest.param(
            line("web", A),
            [A, RSA],
            line("web", A) + line("web", RSA),
            ["unchanged", "added"],
            id="another type of a known host",
        ),
        pytest.param(
            line("web", B) + line("web", A),
            [A],
            line("web", B) + line("web", A),
            ["unchanged"],
            id="one of two known",
        ),
        pytest.param(
            b"# mine", [A], b"# mine\n" + line("web", A), ["added"], id="no newline at the end"
        ),
        pytest.param(
            b"# mine\r\n",
            [A, RSA],
            b"# mine\r\n" + line("web", A, "\r\n") + line("web", RSA, "\r\n"),
            ["added", "added"],
            id="CRLF",
        ),
        pytest.param(
            line("*", B), [A], line("*", B) + line("web", A), ["added"], id="pattern of others"
        ),
        pytest.param(
            line("@cert-authority web", B),
            [A],
            line("@cert-authority web", B) + line("web", A),
            ["added"],
            id="authority",
        ),
        pytest.param(
            line("@revoked web", B),
            [A],
            line("@revoked web", B) + line("web", A),
            ["added"],
            id="another key revoked",
        ),
    ],
)
def test_present(content: bytes, shown: List[HostKey], after: bytes, did: List[str]) -> None:
    plan = plan_present(content, {WEB: shown})
    assert plan.after == after
    assert [one.action for one in plan.keys] == did
    assert not plan.refusals
    assert plan.actions == (after != content)


@pytest.mark.parametrize(
    ("content", "shown", "replaced", "did"),
    [
        pytest.param(line("web", A), [B], line("web", B), ["replaced"], id="the only one"),
        pytest.param(line("web", A, ""), [B], line("web", B), ["replaced"], id="unterminated"),
        pytest.param(
            b"#1\n" + line("web", A, " old\n") + b"#2\n",
            [B],
            b"#1\n" + line("web", B) + b"#2\n",
            ["replaced"],
            id="in its place",
        ),
        pytest.param(
            line("x,web,y", A, " note\n") + b"#2\n",
            [B],
            line("x,y", A, " note\n") + line("web", B) + b"#2\n",
            ["replaced"],
            id="others of its line stay",
        ),
        pytest.param(
            line("web", A) + line("web", C) + line(SALTED, A),
            [B],
            line("web", B),
            ["replaced"],
            id="all of its type",
        ),
        pytest.param(
            line("web", A) + line("web", RSA),
            [B, RSA],
            line("web", B) + line("web", RSA),
            ["replaced", "unchanged"],
            id="one of several types",
        ),
        pytest.param(
            line("web", RSA),
            [A],
            line("web", A),
            ["added", "removed"],
            id="a known host that shows a new type alone",
        ),
        pytest.param(
            line("web", RSA) + line("web", A),
            [RSA2, ECDSA],
            line("web", RSA2) + line("web", ECDSA),
            ["replaced", "added", "removed"],
            id="another host altogether",
        ),
    ],
)
def test_a_changed_key_is_refused_unless_replaced(
    content: bytes, shown: List[HostKey], replaced: bytes, did: List[str]
) -> None:
    plan = plan_present(content, {WEB: shown})
    assert not plan.actions
    assert plan.after == content
    assert [refusal.reason for refusal in plan.refusals] == ["host_key_changed"]
    assert {one.action for one in plan.keys} <= {"refused", "unchanged"}

    plan = plan_present(content, {WEB: shown}, replace=True)
    assert plan.after == replaced
    assert not plan.refusals
    assert [one.action for one in plan.keys] == did
    assert not plan_present(replaced, {WEB: shown}).actions


def test_the_refusal_shows_both_fingerprints_and_the_line() -> None:
    plan = plan_present(b"# first\n" + line("web", A), {WEB: [B]})
    message = plan.refusals[0].message
    for part in ("web", A.fingerprint, B.fingerprint, "line 2", "replace"):
        assert part in message
    assert plan.keys[0].as_dict() == {
        "type": "ssh-ed25519",
        "fingerprint": B.fingerprint,
        "action": "refused",
        "previous": [A.fingerprint],
    }


def test_every_host_is_decided_and_one_refusal_stops_all() -> None:
    plan = plan_present(line("web", A), {WEB: [B], DB: [C]})
    assert [str(refusal.host) for refusal in plan.refusals] == ["web"]
    assert actions(plan) == [
        ("web", "ssh-ed25519", "refused"),
        ("db:2222", "ssh-ed25519", "added"),
    ]
    assert not plan.actions


def test_pinned_keys_alone_are_taken() -> None:
    pins = parse_pins({"web": [A.fingerprint, C.fingerprint]}, [WEB])
    assert plan_present(b"", {WEB: [A]}, pins=pins).after == line("web", A)
    plan = plan_present(b"", {WEB: [A, RSA]}, pins=pins)
    assert not plan.actions
    assert [refusal.reason for refusal in plan.refusals] == ["host_key_unknown"]
    assert RSA.fingerprint in plan.refusals[0].message
    assert A.fingerprint not in plan.refusals[0].message


def test_a_pin_is_held_against_a_known_key_too() -> None:
    pins = parse_pins([A.fingerprint], [WEB])
    plan = plan_present(line("web", B), {WEB: [B]}, pins=pins)
    assert [refusal.reason for refusal in plan.refusals] == ["host_key_unknown"]
    assert actions(plan) == [("web", "ssh-ed25519", "refused")]


def test_a_pin_does_not_replace() -> None:
    pins = parse_pins([B.fingerprint], [WEB])
    plan = plan_present(line("web", A), {WEB: [B]}, pins=pins)
    assert [refusal.reason for refusal in plan.refusals] == ["host_key_changed"]
    assert plan_present(line("web", A), {WEB: [B]}, pins=pins, replace=True).actions


@pytest.mark.parametrize("names", ["web", "*", "w*,!other", SALTED])
def test_a_revoked_key_is_refused_whatever_is_asked(names: str) -> None:
    content = line("@revoked " + names, A) + line("web", A)
    plan = plan_present(content, {WEB: [A]}, replace=True)
    assert [refusal.reason for refusal in plan.refusals] == ["host_key_changed"]
    assert "revoked" in plan.refusals[0].message


def test_names_are_hashed_each_with_its_salt() -> None:
    salts = iter([b"0123456789abcdefghij", b"abcdefghij0123456789"])
    plan = plan_present(b"", {WEB: [A], DB: [B]}, salt=lambda: next(salts))
    first, second = parse(plan.after)
    assert first.raw == line(SALTED, A)
    assert second.names.startswith(b"|1|YWJjZGVmZ2hpajAxMjM0NTY3ODk=|")
    assert second.named(OURS) == [DB]
    assert not plan_present(plan.after, {WEB: [A], DB: [B]}).actions


@pytest.mark.parametrize(
    ("content", "after"),
    [
        (b"", b""),
        (line("web", A), b""),
        (line("web", A, ""), b""),
        (line("web", A) + line("web", RSA), b""),
        (line(SALTED, A) + b"# x\n", b"# x\n"),
        (line("x,web", A, " note\r\n"), line("x", A, " note\r\n")),
        (line("web,[db]:2222", A), b""),
        (line("web,!bad", A), line("!bad", A)),
        (line("*", A), line("*", A)),
        (line("@revoked web", A), line("@revoked web", A)),
        (b"web ssh-ed25519 broken\n", b"web ssh-ed25519 broken\n"),
        (b"\xff\n" + line("web", A) + b"\xfe", b"\xff\n\xfe"),
    ],
)
def test_absent(content: bytes, after: bytes) -> None:
    plan = plan_absent(content, [WEB, DB])
    assert plan.after == after
    assert plan.actions == (content != after)
    assert {one.action for one in plan.keys} <= {"removed"}
    assert bool(plan.keys) == plan.actions


def test_absent_of_one_type() -> None:
    content = line("web", A) + line("web", RSA)
    plan = plan_absent(content, [WEB], types=known_hosts.KEY_TYPES["rsa"])
    assert plan.after == line("web", A)
    assert actions(plan) == [("web", "ssh-rsa", "removed")]


# Properties


HOSTS = [WEB, DB, Host("2001:db8::1"), Host("other")]
KEYS = [A, B, C, RSA, RSA2, ECDSA]
_ends = st.sampled_from(["\n", "\r\n", " comment\n", "\t# x\r\n"])


def _foreign_line(names: str, one: HostKey, tail: str) -> bytes:
    return line(names, one, tail)


FOREIGN = st.one_of(
    st.builds(
        _foreign_line,
        st.sampled_from(["*", "x,y", "*.example,!web", "@revoked x", "@cert-authority *", "web2"]),
        st.sampled_from(KEYS),
        _ends,
    ),
    st.binary(max_size=40).map(lambda data: b"# " + data.replace(b"\n", b" ") + b"\n"),
    st.sampled_from([b"\n", b"  \r\n", b"broken\n", b"\xff\xfe x y\n"]),
)
MIXED = st.one_of(
    FOREIGN,
    st.builds(
        _foreign_line,
        st.sampled_from(["web", "web,x", "x,[db]:2222", "web,[db]:2222", SALTED, "OTHER"]),
        st.sampled_from(KEYS),
        _ends,
    ),
)


def _shown() -> st.SearchStrategy[Dict[Host, Sequence[HostKey]]]:
    one_of_each = st.lists(
        st.sampled_from(KEYS), min_size=1, unique_by=lambda one: one.type, max_size=3
    )
    return st.dictionaries(st.sampled_from(HOSTS), one_of_each, max_size=3)


@given(st.lists(MIXED).map(b"".join), _shown(), st.booleans())
def test_twice_is_once(
    content: bytes, shown: Dict[Host, Sequence[HostKey]], hash_names: bool
) -> None:
    salt = (lambda: b"0123456789abcdefghij") if hash_names else None
    plan = plan_present(content, shown, replace=True, salt=salt)
    assert not plan.refusals
    again = plan_present(plan.after, shown, salt=salt)
    assert not again.refusals
    assert again.after == plan.after
    assert {one.action for one in again.keys} <= {"unchanged"}
    gone = plan_absent(plan.after, shown)
    assert not plan_absent(gone.after, shown).actions


@given(st.lists(FOREIGN).map(b"".join), st.sampled_from([b"", b"# last"]), _shown())
def test_absent_restores_what_was_there(
    foreign: bytes, last: bytes, shown: Dict[Host, Sequence[HostKey]]
) -> None:
    content = foreign + last
    added = plan_present(content, shown)
    assert added.after.startswith(content)
    ended = content + (b"\n" if last and shown else b"")
    restored = plan_absent(added.after, shown).after
    assert restored.replace(b"# last\r\n", b"# last\n") == ended.replace(b"# last\r\n", b"# last\n")


@given(st.lists(MIXED), _shown())
def test_no_line_of_others_changes(
    lines: List[bytes], shown: Dict[Host, Sequence[HostKey]]
) -> None:
    content = b"".join(lines)
    wanted = {host.entry.encode(): host for host in shown}
    others = [one.raw for one in parse(content) if not one.named(wanted)]
    for plan in (plan_present(content, shown, replace=True), plan_absent(content, shown)):
        kept = iter(one.raw for one in parse(plan.after))
        assert all(other in kept for other in others)  # in this order, whatever is in between


@given(st.lists(MIXED).map(b"".join), st.lists(st.sampled_from(HOSTS), unique=True))
def test_absent_names_no_host_any_more(content: bytes, hosts: List[Host]) -> None:
    wanted = {host.entry.encode(): host for host in hosts}
    after = plan_absent(content, hosts).after
    assert not any(one.named(wanted) for one in parse(after))


@given(st.binary(max_size=200), _shown(), st.booleans())
def test_any_bytes_can_be_a_file(
    content: bytes, shown: Dict[Host, Sequence[HostKey]], replace: bool
) -> None:
    plan = plan_present(content, shown, replace=replace)
    assert not plan.refusals
    assert plan.after.startswith(content)
