# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role client makes of its bastions."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.bastion.mux.plugins.module_utils.model import client_config
from ansible_collections.bastion.mux.plugins.plugin_utils import client

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5VkTZLFvdBTnL4fHm4KdLYkYFYkgzpJZm5m6JqGcGZ"
OTHER = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY="

SHARING = {"ControlMaster": "auto", "ControlPath": "~/m/%C", "ControlPersist": "10m"}
REST = {"ServerAliveInterval": 15, "ServerAliveCountMax": 3, "ForwardAgent": False}
WHERE = {"HostName": "b", "Port": 22}
KNOWN = {
    "GlobalKnownHostsFile": "/k /etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2",
    "StrictHostKeyChecking": True,
}


@pytest.mark.parametrize(
    ("bastion", "header", "options"),
    [
        ({}, "b", {**WHERE, **SHARING, **REST}),
        (
            {"hostname": "h", "port": 2222, "user": "u", "identity_file": "~/k", "jump": "a"},
            "b",
            {
                "HostName": "h",
                "Port": 2222,
                "User": "u",
                "IdentityFile": "~/k",
                "ProxyJump": "a",
                **SHARING,
                **REST,
            },
        ),
        ({"aliases": ["c", "d"]}, "b c d", {**WHERE, **SHARING, **REST}),
        ({"control_persist": "1h"}, "b", {**WHERE, **SHARING, "ControlPersist": "1h", **REST}),
        (
            {"control_persist": False},
            "b",
            {**WHERE, **SHARING, "ControlPersist": False, **REST},
        ),
        ({"forward_agent": True}, "b", {**WHERE, **SHARING, **REST, "ForwardAgent": True}),
        ({"host_keys": [KEY]}, "b", {**WHERE, **SHARING, **REST, **KNOWN}),
        ({"host_ca": [KEY]}, "b", {**WHERE, **SHARING, **REST, **KNOWN}),
        (
            {"options": {"serveraliveinterval": 5, "Compression": True}},
            "b",
            {
                **WHERE,
                **SHARING,
                "ServerAliveCountMax": 3,
                "ForwardAgent": False,
                "serveraliveinterval": 5,
                "Compression": True,
            },
        ),
    ],
)
def test_a_bastion(bastion: dict[str, Any], header: str, options: dict[str, Any]) -> None:
    made = client.hosts([{"name": "b", **bastion}], control_dir="~/m", known_hosts_path="/k")
    assert made == [{"host": header, "options": options}]
    client_config.parse_block(made)


def test_patterns_come_after_all_bastions_and_leave_them_out() -> None:
    bastions: list[dict[str, Any]] = [
        {"name": "a", "hostname": "a.example", "patterns": ["172.16.*", "*.example"]},
        {"name": "b", "aliases": ["c"], "patterns": ["*"], "pattern_options": {"User": "u"}},
    ]
    made = client.hosts(bastions, control_dir="~/m", known_hosts_path="/k")
    assert [one["host"] for one in made[:2]] == ["a", "b c"]
    assert made[2:] == [
        {"host": "172.16.* *.example !a !a.example !b !c", "options": {"ProxyJump": "a"}},
        {"host": "* !a !a.example !b !c", "options": {"ProxyJump": "b", "User": "u"}},
    ]


def test_keys_of_any_bastion_are_known_to_all() -> None:
    bastions: list[dict[str, Any]] = [
        {"name": "a", "patterns": ["x"]},
        {"name": "b", "host_ca": [KEY], "host_ca_patterns": ["x"]},
    ]
    first, second, targets = client.hosts(bastions, control_dir="~/m", known_hosts_path="/k")
    assert "StrictHostKeyChecking" not in first["options"]
    for entry in (first, second, targets):
        assert entry["options"]["GlobalKnownHostsFile"].startswith("/k ")


def test_without_a_directory_only_those_share_who_have_one() -> None:
    plain, sharing = client.hosts([{"name": "b", "aliases": ["c"]}])
    assert plain == {"host": "b c", "options": {**WHERE, **REST}}
    assert sharing == {
        "match": "originalhost b,c exec \"test -d '%d/.ssh' && expr '%d' : '.*' '<=' 36\"",
        "options": {**SHARING, "ControlPath": "~/.ssh/mux-%C"},
    }


@pytest.mark.parametrize(
    ("bastion", "lines"),
    [
        ({}, []),
        ({"host_keys": [KEY, f"{OTHER} root@b\n"]}, [f"b {KEY}", f"b {OTHER} root@b"]),
        ({"host_keys": [KEY], "hostname": "h", "port": 22}, [f"h {KEY}"]),
        ({"host_keys": [KEY], "hostname": "h", "port": 23}, [f"[h]:23 {KEY}"]),
        (
            {"host_ca": [KEY], "host_ca_patterns": ["*.example", "b"], "port": 23},
            [f"@cert-authority [b]:23,*.example,b {KEY}"],
        ),
    ],
)
def test_known_hosts(bastion: dict[str, Any], lines: list[str]) -> None:
    assert client.known_hosts([{"name": "b", **bastion}]).splitlines() == lines


@pytest.mark.parametrize(
    ("bastions", "complaint"),
    [
        ([], "there is none"),
        ([{"name": "*"}], "must be one word"),
        ([{"name": "a b"}], "must be one word"),
        ([{"name": "-oProxyCommand=x"}], "must be one word"),
        ([{"name": "a", "aliases": ["x\ny"]}], "must be one word"),
        ([{"name": "a"}, {"name": "b", "aliases": ["a"]}], "twice"),
        ([{"name": "a", "host_keys": [f"{KEY}\n* {KEY}"]}], "not a public key"),
        ([{"name": "a", "host_keys": ["b ssh-ed25519 AAAA"]}], "not a public key"),
        ([{"name": "a", "host_ca": ["-----BEGIN"]}], "not a public key"),
    ],
)
def test_what_is_refused(bastions: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(AnsibleFilterError, match=complaint):
        client.hosts(bastions, control_dir="~/m", known_hosts_path="/k")
