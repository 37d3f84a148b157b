# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a login is, the arguments that say so, and how two of them differ. ssh itself has a say."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any, Dict, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.target import (
    Target,
    drift,
    flatten,
    identity_hash,
    lasting,
    open_arguments,
    option_pairs,
    parse_effective,
    persist_value,
    quote,
    ssh_args,
)

BASTION = Target("bastion")


def effective(*arguments: str) -> Dict[str, List[str]]:
    """What the installed ssh makes of the arguments, without any configuration file."""
    command = ["ssh", "-F", "none", *arguments, "-T", "-G", "--", "bastion"]
    said = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True)
    return parse_effective(said.stdout.decode("utf-8", "surrogateescape"))


def refusal(**params: Any) -> str:
    """Why there is no such target."""
    with pytest.raises(MuxError) as caught:
        Target(**{"host": "bastion", **params})
    assert caught.value.reason == "invalid"
    return caught.value.message


# What is refused


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("host", value) for value in ("", "-oProxyCommand=x", "a b", "a\nb", "a\0", "\ud800")],
        *[("user", value) for value in ("", "-x", "a\nb", "a\x7f")],
        *[("jump", (value,)) for value in ("", "-J", "a,b", "a b", "a\tb", "a\nb")],
        *[("port", value) for value in (0, -1, 65536)],
        *[(name, "a\nb") for name in ("identity_file", "ssh_config", "known_hosts_file")],
        *[("connect_timeout", value) for value in (0, -1)],
        ("alive_interval", -1),
        ("alive_count_max", 0),
    ],
)
def test_what_ssh_could_misunderstand_is_refused(name: str, value: object) -> None:
    assert refusal(**{name: value}).startswith(name + ": ")


def test_what_is_unusual_and_right_is_not() -> None:
    Target(
        "fe80::1%eth0",
        port=65535,
        user="DOMAIN\\me@corp",
        jump=("me@a:22", "[::1]:22", "ssh://me@b:22"),
        identity_file="/a b/ü\udcff",
        alive_interval=0,
    )


@pytest.mark.parametrize(
    ("options", "pairs"),
    [
        ({}, ()),
        ({"A": True, "b": False}, (("A", "yes"), ("b", "no"))),
        ({"Port": 22}, (("Port", "22"),)),
        ({"SendEnv": ["A", "B"]}, (("SendEnv", "A"), ("SendEnv", "B"))),
        ({"IdentityFile": ("a",)}, (("IdentityFile", "a"),)),
        ({"SendEnv": []}, ()),
        ({"ProxyCommand": "nc %h %p"}, (("ProxyCommand", "nc %h %p"),)),
    ],
)
def test_options_become_pairs(options: Dict[str, Any], pairs: object) -> None:
    assert option_pairs(options) == pairs


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"": "x"}, "'' is not a keyword"),
        ({"Port=22 -o": "x"}, "is not a keyword"),
        ({"Port\n": "x"}, "is not a keyword"),
        ({1: "x"}, "1 is not a keyword"),
        ({"ControlPath": "x"}, "ControlPath is set by the parameter control_path"),
        ({"controlpersist": "x"}, "controlpersist is set by the parameter persist"),
        ({"ProxyJump": "x"}, "ProxyJump is set by the parameter jump"),
        ({"LocalForward": "x"}, "LocalForward is set by the parameter local"),
        ({"Port": None}, "Port needs a string"),
        ({"Port": {}}, "Port needs a string"),
        ({"SendEnv": ["A", None]}, "SendEnv needs a string"),
        ({"SendEnv": [["A"]]}, "SendEnv needs a string"),
        ({"SendEnv": ["A", "B\n"]}, "SendEnv: 'B\\n' contains a control character"),
    ],
)
def test_other_options_are_refused(options: Dict[Any, Any], text: str) -> None:
    with pytest.raises(MuxError) as caught:
        option_pairs(options)
    assert caught.value.reason == "invalid"
    assert text in caught.value.message


# The arguments


@pytest.mark.parametrize(
    ("params", "keyword", "values"),
    [
        ({"port": 2222}, "port", ["2222"]),
        ({"user": "me"}, "user", ["me"]),
        ({"identity_file": __file__}, "identityfile", [__file__]),
        ({"jump": ("me@a:22", "[::1]:23")}, "proxyjump", ["me@a:22,[::1]:23"]),
        ({"ssh_options": (("ForwardX11Trusted", "yes"),)}, "forwardx11trusted", ["yes"]),
        ({"ssh_options": (("SendEnv", "A"), ("SendEnv", "B"))}, "sendenv", ["A", "B"]),
        ({"known_hosts_file": "/a b"}, "userknownhostsfile", ["/a b"]),
        ({}, "stricthostkeychecking", ["true"]),
        ({"host_key_checking": "accept-new"}, "stricthostkeychecking", ["accept-new"]),
        ({"host_key_checking": "off"}, "stricthostkeychecking", ["false"]),
        ({"connect_timeout": 7}, "connecttimeout", ["7"]),
        ({"persist": "600"}, "controlpersist", ["600"]),
        ({"alive_interval": 7}, "serveraliveinterval", ["7"]),
        ({"alive_count_max": 7}, "serveralivecountmax", ["7"]),
        ({}, "forwardagent", ["no"]),
        ({"forward_agent": True}, "forwardagent", ["yes"]),
        ({}, "forwardx11", ["no"]),
        ({"forward_x11": True}, "forwardx11", ["yes"]),
        ({}, "compression", ["no"]),
        ({"compression": True}, "compression", ["yes"]),
        ({"extra_arguments": ("-o", "Compression=yes")}, "compression", ["yes"]),
        # The parameter comes first.
        ({"compression": False, "extra_arguments": ("-C",)}, "forwardagent", ["no"]),
        ({"port": 1, "extra_arguments": ("-o", "Port=2")}, "port", ["1"]),
        # Told by the user is told; what only a configuration says is not heard.
        ({"ssh_options": (("LogLevel", "DEBUG"),)}, "loglevel", ["DEBUG"]),
        ({}, "loglevel", ["INFO"]),
    ],
)
def test_ssh_understands_what_was_meant(
    params: Dict[str, Any], keyword: str, values: List[str]
) -> None:
    found = effective(*flatten(replace(BASTION, **params).arguments()))
    assert [_plain(value) for value in found[keyword]] == [_plain(value) for value in values]


def _plain(value: str) -> str:
    """Yes and no: OpenSSH before 10 prints some of them in other words."""
    return {"true": "yes", "false": "no"}.get(value, value)


def test_every_argument_has_a_reason_and_one_that_is_not_given_is_not_there() -> None:
    arguments = replace(BASTION, ssh_config="/c", port=1).arguments()
    assert all(argument.reason and argument.values for argument in arguments)
    assert arguments[0].values == ("-F", "/c")
    given_ = flatten(BASTION.arguments())
    assert not {"-F", "-p", "-l", "-i"} & set(given_)
    assert not [one for one in given_ if one.startswith(("ProxyJump", "Compression", "User"))]


BATCH, ONE_PROMPT = "BatchMode=yes", "NumberOfPasswordPrompts=1"
NO_PASSWORD = {"PasswordAuthentication=no", "KbdInteractiveAuthentication=no"}


@pytest.mark.parametrize(
    ("password", "passphrase", "asked"),
    [
        (False, False, {BATCH}),
        (True, False, {ONE_PROMPT}),
        (False, True, {ONE_PROMPT, *NO_PASSWORD}),
        (True, True, {ONE_PROMPT}),
    ],
)
def test_what_may_be_asked_is_what_can_be_answered(
    password: bool, passphrase: bool, asked: object
) -> None:
    arguments = set(flatten(BASTION.arguments(password=password, passphrase=passphrase)))
    assert arguments & {BATCH, ONE_PROMPT, *NO_PASSWORD} == asked


@pytest.mark.parametrize(
    ("persist", "background", "controlpersist"),
    [("yes", True, "no"), ("no", True, "no"), ("600", False, "600")],
)
def test_how_a_master_goes_into_the_background(
    persist: str, background: bool, controlpersist: str
) -> None:
    target = replace(BASTION, persist=persist)
    arguments = [*open_arguments("/s", persist, log="/l"), *target.arguments()]
    assert ("-f" in flatten(arguments)) is background
    found = effective(*flatten(arguments))
    assert found["controlpersist"] == [controlpersist]
    assert _plain(found["controlmaster"][0]) == "yes"


def test_what_is_configured_for_sessions_does_not_concern_a_master() -> None:
    configured = ["-L", "1:a:1", "-o", "RemoteCommand=x", "-o", "PermitLocalCommand=yes"]
    found = effective(*flatten(open_arguments("/s", "yes", log="/l")), *configured)
    assert "remotecommand" not in found
    assert found["clearallforwardings"] == ["yes"]
    assert found["permitlocalcommand"] == ["no"]


# "~" and "$" begin what ssh expands, in a path that is not absolute or anywhere.
paths = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x17F, blacklist_characters="\x7f$"),
    max_size=20,
).map(lambda text: "/" + text)


@settings(max_examples=50, deadline=None)
@given(paths)
def test_the_control_path_arrives_as_it_is(path: str) -> None:
    assert effective(*ssh_args(path))["controlpath"] == [path]
    opened = flatten(open_arguments(path, "yes", log="/l"))
    assert effective(*opened)["controlpath"] == [path]


@settings(max_examples=50, deadline=None)
@given(paths.filter(lambda path: "%" not in path))
def test_a_quoted_path_is_one_path(path: str) -> None:
    # The last of the words counts nothing: -G prints them side by side.
    found = effective("-o", "UserKnownHostsFile=%s /end" % quote(path))
    assert found["userknownhostsfile"] == [path + " /end"]


# ControlPersist


@pytest.mark.parametrize("value", "yes YES true 0 0m 1 90s 10M 1h30m 2d 1w 1h1 no".split())
def test_a_time_is_what_ssh_takes_it_for(value: str) -> None:
    theirs = effective("-o", "ControlPersist=" + value.lower())["controlpersist"]
    ours = effective("-o", "ControlPersist=" + persist_value(value))["controlpersist"]
    assert ours in (theirs, ["yes"] if theirs == ["0"] else theirs)


@pytest.mark.parametrize(
    ("value", "normal"),
    [
        *[(value, "yes") for value in ("yes", " Yes ", "0", "0h0m")],
        *[(value, "no") for value in ("no", "False")],
        *[("10m", "600"), ("1h30m5", "5405"), ("01m", "60")],
    ],
)
def test_spellings_that_mean_the_same_are_the_same(value: str, normal: str) -> None:
    assert persist_value(value) == normal == persist_value(normal)


@pytest.mark.parametrize("value", ["", "m", "10 m", "-1", "1.5h", "10x", "always", "1\n2", "٣m"])
def test_what_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(MuxError) as caught:
        persist_value(value)
    assert caught.value.reason == "invalid"


# What ssh -G tells


def test_keywords_come_in_small_letters_with_all_their_values() -> None:
    text = "host bastion\nSendEnv A\nsendenv B\nproxycommand nc  %h\nuser \n\n"
    assert parse_effective(text) == {
        "host": ["bastion"],
        "sendenv": ["A", "B"],
        "proxycommand": ["nc  %h"],
        "user": [""],
    }


lines = st.lists(
    st.tuples(
        st.text("abc0", min_size=1),
        st.text(st.characters(blacklist_characters="\n")),
    )
)


@given(lines)
def test_any_value_comes_back_whole(pairs: Any) -> None:
    wanted: Dict[str, List[str]] = {}
    for keyword, value in pairs:
        wanted.setdefault(keyword, []).append(value)
    assert parse_effective("".join("%s %s\n" % pair for pair in pairs)) == wanted


@given(st.binary())
def test_any_bytes_are_read(data: bytes) -> None:
    found = parse_effective(data.decode("utf-8", "surrogateescape"))
    assert all(keyword == keyword.lower() and values for keyword, values in found.items())


@pytest.mark.parametrize("part", [b"\x0b", b"\x0c", b"\x1c", b"\xc2\x85", b"\xe2\x80\xa8", b"\xff"])
def test_ssh_prints_such_bytes_too(part: bytes) -> None:
    value = b"A=x" + part + b"port 1"
    found = effective("-o", "SetEnv=" + quote(value.decode("utf-8", "surrogateescape")))
    assert found["port"] == ["22"]
    assert found["setenv"][0].encode("utf-8", "surrogateescape").strip(b'"') == value


# What differs


@pytest.mark.parametrize(
    ("opened", "wanted", "found"),
    [
        ({}, {}, []),
        ({"user": ["a"]}, {"user": ["a"]}, []),
        ({"user": ["a"]}, {"user": ["b"]}, ["user: a -> b"]),
        ({"sendenv": ["a", "b"]}, {"sendenv": ["b", "a"]}, ["sendenv: a, b -> b, a"]),
        # One of them is of another version, which has more keywords.
        ({"obscurekeystroketiming": ["yes"]}, {}, []),
        ({}, {"obscurekeystroketiming": ["yes"]}, []),
        # These are printed where they are set alone.
        ({}, {"proxyjump": ["hop"]}, ["proxyjump: none -> hop"]),
        ({"proxyjump": ["hop"]}, {}, ["proxyjump: hop -> none"]),
        ({"bindaddress": ["none"]}, {}, []),
        ({"b": ["1"], "a": ["1"]}, {"b": ["2"], "a": ["2"]}, ["a: 1 -> 2", "b: 1 -> 2"]),
    ],
)
def test_how_a_master_differs(
    opened: Dict[str, List[str]], wanted: Dict[str, List[str]], found: List[str]
) -> None:
    assert [str(difference) for difference in drift(opened, wanted)] == found


@pytest.mark.parametrize(
    ("arguments", "differs"),
    [
        (["-A"], {"forwardagent"}),
        (["-C"], {"compression"}),
        (["-p", "2"], {"port"}),
        (["-l", "somebody"], {"user"}),
        (["-J", "hop"], {"proxyjump"}),
        (["-o", "SetEnv=A=1"], {"setenv"}),
        (["-o", "SendEnv=A"], {"sendenv"}),
        (["-o", "ServerAliveInterval=7"], {"serveraliveinterval"}),
        (["-o", "Ciphers=aes128-ctr"], {"ciphers"}),
        # Of a session, of one login, or forwardings: no reason to open a master anew.
        (["-t"], set()),
        (["-v"], set()),
        (["-L", "1:a:1", "-D", "2", "-R", "3:b:3"], set()),
        (["-o", "RemoteCommand=x"], set()),
        (["-o", "LocalCommand=x"], set()),
        (["-o", "ConnectTimeout=7"], set()),
        (["-o", "ControlPersist=7"], {"controlpersist"}),
        (["-o", "ControlPath=/s", "-o", "ControlMaster=auto"], set()),
        (["-o", "StrictHostKeyChecking=no"], set()),
        (["-o", "NumberOfPasswordPrompts=1"], set()),
        (["-o", "LogLevel=ERROR"], set()),
        (["-o", "EscapeChar=none"], set()),
    ],
)
def test_what_a_running_master_cannot_change(arguments: List[str], differs: object) -> None:
    plain = lasting(effective())
    found = drift(plain, lasting(effective(*arguments)))
    assert {difference.keyword for difference in found} == differs


# The name of the default socket


PLAIN = {"user": ["me"], "hostname": ["bastion"], "port": ["22"]}


@pytest.mark.parametrize(
    "other",
    [
        {"user": ["you"]},
        {"hostname": ["other"]},
        {"port": ["2222"]},
        {"proxyjump": ["a"]},
        {"proxyjump": ["a,b"]},
        {"proxyjump": ["b,a"]},
        {"proxyjump": ["you@a"]},
        {"proxycommand": ["a"]},
    ],
)
def test_another_way_to_another_end_is_another_socket(other: Dict[str, List[str]]) -> None:
    assert identity_hash(PLAIN) != identity_hash({**PLAIN, **other})


def test_what_leads_to_the_same_end_does_not_matter() -> None:
    more = {"identityfile": ["k"], "compression": ["yes"], "host": ["alias"]}
    assert identity_hash({**more, **PLAIN}) == identity_hash(PLAIN)
    name = identity_hash(PLAIN)
    assert len(name) == 20
    assert name.isalnum()
