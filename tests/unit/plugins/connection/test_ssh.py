# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin as far as nothing has to be connected: its options, its names."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import context
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.plugins.connection import ssh as builtin_ssh
from ansible.plugins.loader import connection_loader
from ansible.template import Templar
from ansible.utils.context_objects import CLIArgs

from ansible_collections.bastion.mux.plugins.connection import ssh
from ansible_collections.bastion.mux.plugins.doc_fragments.ssh_connection import ModuleDocFragment


def test_its_options_are_as_documented() -> None:
    documented = yaml.safe_load(ssh.DOCUMENTATION)["options"]
    for option in documented.values():
        del option["description"]
    assert documented == ssh.OPTIONS


def test_the_rest_is_of_the_installed_builtin() -> None:
    documented = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    builtin = yaml.safe_load(builtin_ssh.DOCUMENTATION)["options"]
    assert documented.keys() == builtin.keys()
    assert "version_added" not in ModuleDocFragment.DOCUMENTATION
    for name, option in documented.items():
        for place in ("vars", "env", "ini"):
            names = [sorted(one.items()) for one in option.get(place, [])]
            theirs = [
                sorted(one.items() - {("version_added", one.get("version_added"))})
                for one in builtin[name].get(place, [])
            ]
            assert names == theirs, name


class Host:
    """A connection to `target` with these variables, as a worker makes it."""

    def __init__(self, **variables: Any) -> None:
        # The loader has both done in the process that workers are forked from.
        connection_loader.get("ssh", class_only=True)
        ssh._define_options()
        context = PlayContext()
        context.remote_addr = "target"
        context.shell = "sh"
        context.executable = "/bin/sh"
        self.plugin = type("Connection", (ssh.Connection,), {"_load_name": ssh.__name__})(context)
        there = {"inventory_hostname": "target", **variables}
        templar = Templar(loader=DataLoader(), variables=there)
        found = self.plugin._resolve_option_variables(there, templar)
        self.plugin.set_options(task_keys={}, var_options=found)

    def command(self, program: str = "ssh") -> list[bytes]:
        # As exec_command begins.
        self.plugin.host = self.plugin.get_option("host") or "target"
        command: list[bytes] = self.plugin._build_command(program, program, "target", "true")
        return command

    def path(self, program: str = "ssh") -> str | None:
        """The control socket of its connection."""
        self.command(program)
        path: str | None = self.plugin._own_path
        return path

    def bastions(self) -> list[dict[str, Any]]:
        self.command()
        found: list[dict[str, Any]] = self.plugin._in_order()
        return found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose ssh configuration is all that there is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    user = pwd.struct_passwd(("me", "x", 0, 0, "", str(tmp_path), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _uid: user)
    (tmp_path / ".ssh").mkdir()
    return tmp_path


HOSTVARS: dict[str, dict[str, Any]] = {
    "jump": {
        "inventory_hostname": "jump",
        "ansible_host": "10.0.0.1",
        "ansible_ssh_port": 2222,
        "ansible_user": "",
        "ansible_ssh_user": "me",
        "ansible_password": "secret",
        "ansible_ssh_extra_args": "-v",
    },
    "bare": {"inventory_hostname": "bare"},
}


@pytest.mark.parametrize(
    ("given", "bastions"),
    [
        (None, []),
        ("", []),
        ([], []),
        ("b", [{"host": "b"}]),
        ("me@b:22", [{"host": "b", "user": "me", "port": "22"}]),
        ("a@b@c", [{"host": "c", "user": "a@b"}]),
        ("[::1]:22", [{"host": "::1", "port": "22"}]),
        ("[::1]", [{"host": "::1"}]),
        ("::1", [{"host": "::1"}]),
        ("a, b:1", [{"host": "a"}, {"host": "b", "port": "1"}]),
        (["a", "bare"], [{"host": "a"}, {"host": "bare", "arguments": []}]),
        (
            "jump",
            [
                {
                    "host": "10.0.0.1",
                    "port": 2222,
                    "user": "me",
                    "password": "secret",
                    "arguments": ["-v"],
                }
            ],
        ),
        ("target", []),
        (["a", "target"], []),
    ],
)
def test_bastions(given: Any, bastions: list[dict[str, Any]]) -> None:
    assert Host(ansible_bastion=given, hostvars=HOSTVARS).bastions() == bastions


def test_what_the_command_line_says_is_of_a_bastion_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "CLIARGS", CLIArgs({"remote_user": "ops"}))
    asked = {"user": "ops", "password": "asked"}
    bare = {"host": "bare", "arguments": []}

    def found(name: str, **target: str) -> dict[str, Any]:
        host = Host(ansible_bastion=name, hostvars={**HOSTVARS, "target": target})
        host.plugin._play_context.password = "asked"
        # Not by a command: ansible-core wants sshpass for one with a password, before 2.19.
        (bastion,) = host.plugin._find_bastions()
        return dict(bastion)

    assert found("bare") == {**bare, **asked}
    # Its own is all that it has: what was asked for is not known.
    assert found("bare", ansible_ssh_pass="its own") == {**bare, "user": "ops"}
    jump = found("jump")
    assert (jump["user"], jump["password"]) == ("me", "secret")
    # It is no host of the inventory.
    assert found("b") == {"host": "b"}


def test_a_user_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_uid: int) -> pwd.struct_passwd:
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert Host(ansible_bastion="b").path()


def test_a_bastion_is_looked_up_where_the_target_is() -> None:
    host = Host(ansible_bastion="b", ansible_ssh_common_args="-4F /some/where")
    assert host.bastions() == [{"host": "b", "ssh_config": "/some/where"}]


def test_hosts_are_spread() -> None:
    names = ["a", "b", "c"]
    firsts = []
    for number in range(30):
        variables = {"inventory_hostname": f"h{number}", "ansible_bastion_strategy": "spread"}
        order = [one["host"] for one in Host(ansible_bastion=names, **variables).bastions()]
        assert order in (["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"])
        assert order == [one["host"] for one in Host(ansible_bastion=names, **variables).bastions()]
        firsts.append(order[0])
    assert min(firsts.count(name) for name in names) >= 5


#: What makes another way to a host of the same name.
WAYS: list[Mapping[str, Any]] = [
    {},
    {"ansible_host": "other"},
    {"ansible_port": 23},
    {"ansible_user": "me"},
    {"ansible_ssh_common_args": "-J b"},
    {"ansible_ssh_extra_args": "-o ProxyJump=b"},
    {"ansible_ssh_args": "-o ControlPersist=60s -o ControlMaster=auto -o ProxyCommand=x"},
    {"ansible_bastion": "b"},
    {"ansible_bastion": "c"},
    {"ansible_bastion": ["b", "c"]},
    {"ansible_bastion": "me@b"},
    {"ansible_bastion": "jump"},
    {"ansible_bastion": "bare"},
]


def test_names_of_sockets() -> None:
    paths = [Host(hostvars=HOSTVARS, **way).path() for way in WAYS]
    assert None not in paths
    assert len(set(paths)) == len(WAYS)
    # Of the way and of nothing else.
    for way, path in zip(WAYS, paths, strict=True):
        more = {"ansible_timeout": 3, "ansible_pipelining": True}
        assert Host(hostvars=HOSTVARS, **way, **more).path() == path
        if "ansible_ssh_extra_args" not in way:
            assert Host(hostvars=HOSTVARS, **way).path("scp") == path
    secret = {"jump": {**HOSTVARS["jump"], "ansible_password": "changed"}}
    known = paths[WAYS.index({"ansible_bastion": "jump"})]
    assert Host(hostvars=secret, ansible_bastion="jump").path() == known


def test_a_configuration_that_is_changed(home: Path) -> None:
    config, included = home / ".ssh/config", home / ".ssh/more"
    seen = {Host().path()}

    def changes() -> bool:
        found = Host().path()
        assert Host().path() == found
        before = len(seen)
        seen.add(found)
        return len(seen) > before

    config.write_text("Include more\n")
    assert changes()
    included.write_text("Host target\n  HostName 10.1.1.1\n")
    assert changes()
    included.write_text("Host target\n  HostName 10.1.1.2\n")
    assert changes()
    assert not changes()
    os.utime(included)
    assert not changes()


@pytest.mark.parametrize(
    "line",
    [
        'Match exec "test -e {flag}"\n  ProxyJump b',
        'match final Exec="test -e {flag}"\n  ProxyJump b',
    ],
)
def test_a_configuration_that_changes_by_itself(home: Path, line: str) -> None:
    # ssh itself is asked, each time.
    config = home / "config"
    config.write_text(line.format(flag=home / "flag") + "\n")
    way = {"ansible_ssh_common_args": f"-F {config}"}
    before = Host(**way).path()
    assert Host(**way).path() == before
    (home / "flag").touch()
    assert Host(**way).path() != before


@pytest.mark.parametrize(
    ("text", "includes"),
    [
        (b"", []),
        (b"Host x\n  HostName 10.0.0.1\n", []),
        (b" include = a b\nINCLUDE c\n#Include d\n", [b"a b", b"c"]),
        (b"Match host x\n Include a", [b"a"]),
        (b"Match host x exec true", None),
        (b"match LocalNetwork 10.0.0.0/8", None),
        (b"CanonicalizeHostname yes", None),
        (b"CanonicalizeHostname=no", []),
        (b"User ${WHO}", None),
        (b"IdentityFile ${HOME}/k", []),
        (b"ProxyCommand sh -c 'exec nc $0 $1' %h %p", []),
    ],
)
def test_what_a_configuration_tells(text: bytes, includes: list[bytes] | None) -> None:
    assert ssh._includes(text) == includes


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        (["-F", "x"], "x"),
        (["-C", "-Fx"], "x"),
        (["-CF", "x"], "x"),
        (["-o", "ForwardX11=no"], None),
        (["-i", "F"], None),
        (["-oForwardAgent=no"], None),
        (["F"], None),
        ([], None),
    ],
)
def test_configuration_file(arguments: list[str], file: str | None) -> None:
    assert ssh.configuration_file(arguments) == file


OWN = "{home}/.ansible/cp/{name}"


@pytest.mark.parametrize(
    ("given", "with_bastion", "without"),
    [
        (None, OWN, OWN),
        # Of a template the directory counts: two hosts behind two bastions have the same name.
        ("%(directory)s/%%h-%%r", OWN, None),
        ("/tmp/%%h-%%r", "/tmp/{name}", None),
        ("/tmp/%%r/s", OWN, None),
        ("/tmp/s", "/tmp/s", "/tmp/s"),
    ],
)
def test_control_path(
    home: Path, given: str | None, with_bastion: str, without: str | None
) -> None:
    for bastion, expected in (("b", with_bastion), (None, without)):
        host = Host(ansible_bastion=bastion, ansible_control_path=given)
        path = host.path()
        name = host.plugin._name
        assert path == (None if expected is None else expected.format(home=home, name=name))


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ("-o ControlPersist=9 -oControlPath=/a/b", "/a/b"),
        ("-o ControlPersist=9 -o 'controlpath = /a/b'", "/a/b"),
        ("-o ControlPersist=9 -o ControlPath=~/b", None),
        ("-o ControlPersist=9 -o ControlPath=/a/%C", None),
        ("-o ControlMaster=no", None),
    ],
)
def test_control_paths_that_ssh_is_given(arguments: str, path: str | None) -> None:
    assert Host(ansible_ssh_args=arguments).path() == path


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("bastion", "a,b", "a,b"),
        ("bastion_strategy", "spread", "spread"),
        ("bastion_persist", "10m", "10m"),
        ("bastion_max_setups", "3", 3),
        ("bastion_max_channels", "0", 0),
    ],
)
def test_where_options_are_set(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: str | int
) -> None:
    default = ssh.OPTIONS[name].get("default")
    assert Host().plugin.get_option(name) == default
    monkeypatch.setenv(f"ANSIBLE_{name.upper()}", text)
    assert Host().plugin.get_option(name) == value
    # A host's own counts, an empty one too: no bastion.
    own = "" if default is None else default
    assert Host(**{f"ansible_{name}": own}).plugin.get_option(name) == own
