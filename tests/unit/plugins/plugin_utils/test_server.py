# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role server makes of its variables."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.bastion.mux.plugins.plugin_utils import server

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5VkTZLFvdBTnL4fHm4KdLYkYFYkgzpJZm5m6JqGcGZ"
DIRECTORY = "/etc/ssh/bastion.mux"
NOTHING = {"AllowTcpForwarding": "no", "PermitOpen": "none", "PermitListen": "none"}
YES = {"AllowTcpForwarding": True, "AllowStreamLocalForwarding": True}


def plan(*users: dict[str, Any], login: str = "root", **variables: Any) -> dict[str, Any]:
    return server.plan(list(users), login=login, **variables)


def block(made: dict[str, Any], header: str) -> dict[str, Any]:
    (found,) = [one["options"] for one in made["matches"] if one["match"] == header]
    assert isinstance(found, dict)
    return found


def jump_block(made: dict[str, Any]) -> dict[str, Any]:
    return block(made, "Group jump User !root,*")


def expected(made: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one["options"] for one in made["expect"] if one["connection"] == {"user": name}]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("clients", "startups", "sessions", "interval"),
    [
        (0, "10:30:100", 10, 15),
        (1, "10:30:100", 10, 15),
        (10, "10:30:100", 10, 15),
        (50, "50:30:100", 50, 15),
        (100, "100:30:200", 100, 15),
        (151, "151:30:302", 151, 16),
        (1000, "1000:30:2000", 1000, 100),
        (5000, "5000:30:10000", 5000, 300),
    ],
)
def test_sizes(clients: int, startups: str, sessions: int, interval: int) -> None:
    made = plan(expected_clients=clients)["options"]
    assert made["MaxStartups"] == startups
    assert made["MaxSessions"] == sessions
    assert made["ClientAliveInterval"] == interval


def test_what_is_there_without_anything() -> None:
    made = plan()
    assert made["options"] == {
        "LogLevel": "VERBOSE",
        "MaxStartups": "100:30:200",
        "MaxSessions": 100,
        "ClientAliveInterval": 15,
        "ClientAliveCountMax": 3,
        "AllowTcpForwarding": False,
        "AllowStreamLocalForwarding": False,
    }
    assert [one["match"] for one in made["matches"]] == ["User root", "Group jump User !root,*"]
    assert block(made, "User root") == YES
    assert jump_block(made) == {
        **NOTHING,
        "AllowStreamLocalForwarding": False,
        "AllowAgentForwarding": False,
        "X11Forwarding": False,
        "PermitTunnel": False,
        "GatewayPorts": False,
        "MaxSessions": 0,
        "PermitTTY": False,
        "ForceCommand": "/bin/false",
        "PermitUserRC": False,
        "PasswordAuthentication": False,
        "KbdInteractiveAuthentication": False,
        "AuthorizedKeysFile": f"{DIRECTORY}/keys/%u {DIRECTORY}/verify/%u",
        "LogLevel": "VERBOSE",
        "LogVerbose": server.TELLING,
    }
    assert made["files"] == []
    assert made["expect"] == [
        {"connection": {"user": "root"}, "options": {**made["options"], **YES}}
    ]


@pytest.mark.parametrize(
    ("variables", "options"),
    [
        ({"max_startups": 7}, {"MaxStartups": 7}),
        ({"max_startups": "5:50:60"}, {"MaxStartups": "5:50:60"}),
        ({"max_sessions": 0}, {"MaxSessions": 0}),
        ({"alive_interval": 0, "alive_count_max": 9}, {"ClientAliveInterval": 0}),
        ({"log_level": "INFO"}, {"LogLevel": "INFO"}),
        (
            {"controllers": ["192.0.2.0/24", "2001:db8::/32"]},
            {"PerSourcePenaltyExemptList": "192.0.2.0/24,2001:db8::/32"},
        ),
        ({"user_ca": [KEY]}, {"TrustedUserCAKeys": f"{DIRECTORY}/user_ca"}),
        (
            {"host_certificates": [KEY, KEY], "directory": "/d"},
            {"HostCertificate": ["/d/host_certificate_0", "/d/host_certificate_1"]},
        ),
        ({"options": {"UseDNS": False}}, {"UseDNS": False}),
        ({"options": {"loglevel": "QUIET"}}, {"loglevel": "QUIET"}),
    ],
)
def test_settings_for_all(variables: dict[str, Any], options: dict[str, Any]) -> None:
    made = plan(**variables)
    assert options.items() <= made["options"].items()
    words = [word.lower() for word in made["options"]]
    assert len(words) == len(set(words))
    # Only for words of ours it is known how sshd will spell the value.
    assert (options.items() <= expected(made, "root").items()) == (options != {"UseDNS": False})


@pytest.mark.parametrize(
    ("variables", "forwarding"),
    [
        ({}, NOTHING),
        (
            {"permit_open": ["db:5432", "[2001:db8::1]:22", "db:5432"]},
            {**NOTHING, "AllowTcpForwarding": "local", "PermitOpen": "db:5432 [2001:db8::1]:22"},
        ),
        (
            {"permit_listen": ["127.0.0.1:7000", 8000]},
            {**NOTHING, "AllowTcpForwarding": "remote", "PermitListen": "127.0.0.1:7000 *:8000"},
        ),
        (
            {"permit_open": ["any"], "permit_listen": ["any"]},
            {"AllowTcpForwarding": "yes", "PermitOpen": "any", "PermitListen": "any"},
        ),
    ],
)
def test_where_all_jump_users_may_go(variables: dict[str, Any], forwarding: dict[str, str]) -> None:
    made = plan({"name": "jim"}, **variables)
    assert forwarding.items() <= jump_block(made).items()
    assert forwarding.items() <= expected(made, "jim").items()


def test_where_one_may_go_besides() -> None:
    made = plan(
        {"name": "jim", "permit_open": ["db:1"], "permit_listen": ["7000"]},
        {"name": "joe"},
        permit_open=["web:80"],
    )
    assert [one["match"] for one in made["matches"]] == [
        "User root",
        "User jim",
        "Group jump User !root,*",
    ]
    own = {"AllowTcpForwarding": "yes", "PermitOpen": "web:80 db:1", "PermitListen": "*:7000"}
    assert block(made, "User jim") == own
    rest = {"AllowTcpForwarding": "local", "PermitOpen": "web:80", "PermitListen": "none"}
    assert rest.items() <= jump_block(made).items()
    assert own.items() <= expected(made, "jim").items()
    assert rest.items() <= expected(made, "joe").items()
    # What the block for all says besides counts for both.
    assert expected(made, "jim")["MaxSessions"] == expected(made, "joe")["MaxSessions"] == 0
    assert expected(made, "jim")["MaxStartups"] == "100:30:200"


def test_hosts_of_groups_by_name_and_by_address() -> None:
    made = plan(
        permit_open=["web:80"],
        permit_open_groups=[{"group": "db", "ports": [5432, 22]}, {"group": "app"}],
        groups={"db": ["db1"], "app": ["app1", "app2", "app3"]},
        hostvars={
            "db1": {"ansible_host": "10.0.0.1"},
            "app1": {"ansible_host": "2001:db8::1", "ansible_port": 2222},
            "app2": {},
            "app3": {"ansible_host": "app3"},
        },
    )
    assert jump_block(made)["PermitOpen"].split() == [
        "web:80",
        *("db1:5432", "db1:22", "10.0.0.1:5432", "10.0.0.1:22"),
        *("app1:2222", "[2001:db8::1]:2222", "app2:22", "app3:22"),
    ]


def test_operators() -> None:
    operators = [
        {"name": "ann", "authorized_keys": [KEY]},
        {"name": "bob", "principals": ["admin"]},
        {"name": "root"},
    ]
    made = plan({"name": "jim"}, operators=operators)
    assert block(made, "User root,ann,bob") == YES
    assert block(made, "User ann") == {
        "AuthorizedKeysFile": f".ssh/authorized_keys .ssh/authorized_keys2 {DIRECTORY}/keys/%u"
    }
    assert block(made, "User bob") == {"AuthorizedPrincipalsFile": f"{DIRECTORY}/principals/%u"}
    # Nothing of the block for jump users is for them, whatever their groups.
    assert made["matches"][-1]["match"] == "Group jump User !root,!ann,!bob,*"
    assert made["files"] == [
        {"name": "keys/ann", "content": f"{KEY}\n", "mode": "0644"},
        {"name": "principals/bob", "content": "admin\n", "mode": "0644"},
    ]


def test_operators_without_forwarding() -> None:
    made = plan(operators_forwarding=False)
    assert [one["match"] for one in made["matches"]] == ["Group jump User !root,*"]
    assert expected(made, "root")["AllowTcpForwarding"] is False


def test_files_of_jump_users() -> None:
    users: list[dict[str, Any]] = [
        {"name": "jim", "authorized_keys": [KEY, f"{KEY} jim@laptop\n"], "principals": ["a", "b"]},
        {"name": "joe"},
        {"name": "gone", "authorized_keys": [KEY], "state": "absent"},
    ]
    made = plan(*users)
    jim = [
        {"name": "keys/jim", "content": f"{KEY}\n{KEY} jim@laptop\n", "mode": "0644"},
        {"name": "principals/jim", "content": "a\nb\n", "mode": "0644"},
    ]
    assert made["files"] == jim
    assert "AuthorizedPrincipalsFile" not in jump_block(made)
    assert made["jump_users"] == users[:2]
    assert [one["connection"]["user"] for one in made["expect"]] == ["root", "jim", "joe"]
    trusted = plan(*users, user_ca=[KEY])
    assert trusted["files"] == [
        *jim,
        # What sshd takes without a file of principals.
        {"name": "principals/joe", "content": "joe\n", "mode": "0644"},
        {"name": "user_ca", "content": f"{KEY}\n", "mode": "0644"},
    ]
    assert jump_block(trusted)["AuthorizedPrincipalsFile"] == f"{DIRECTORY}/principals/%u"


def test_more_for_jump_users_takes_precedence() -> None:
    made = plan(
        {"name": "jim"},
        jump_log_level="DEBUG1",
        jump_options={"maxsessions": 1, "Banner": "none"},
        jump_group="hop",
    )
    found = block(made, "Group hop User !root,*")
    assert found["maxsessions"] == 1
    assert "MaxSessions" not in found
    assert found["Banner"] == "none"
    assert found["LogLevel"] == "DEBUG1"
    assert expected(made, "jim")["maxsessions"] == 1
    assert expected(made, "jim")["LogLevel"] == "DEBUG1"


@pytest.mark.parametrize(
    ("users", "variables", "complaint"),
    [
        ([{}], {}, "server_jump_users: None is no name"),
        ([{"name": "a b"}], {}, "server_jump_users: 'a b' is no name"),
        ([{"name": "*"}], {}, "is no name"),
        ([{"name": "!a"}], {}, "is no name"),
        ([{"name": "a,b"}], {}, "is no name"),
        ([{"name": "../a"}], {}, "is no name"),
        ([{"name": "a\n"}], {}, "is no name"),
        ([], {"jump_group": "a*"}, "server_jump_group"),
        ([], {"login": "a*"}, "server_operators"),
        ([{"name": "a"}, {"name": "a"}], {}, "a is there twice"),
        ([{"name": "root"}], {}, "root is an operator as well"),
        ([{"name": "a"}], {"operators": [{"name": "a"}]}, "a is an operator as well"),
        ([{"name": "a", "authorized_keys": [f"{KEY}\n{KEY}"]}], {}, "authorized_keys of a"),
        ([{"name": "a", "authorized_keys": [""]}], {}, "authorized_keys of a"),
        ([{"name": "a", "principals": ["x\ny"]}], {}, "principals of a"),
        ([{"name": "a", "permit_open": ["db:1 any"]}], {}, "permit_open of a"),
        ([{"name": "a", "permit_listen": ["#1"]}], {}, "permit_listen of a"),
        ([], {"permit_open": ["db:1\nMatch all"]}, "server_permit_open"),
        ([], {"permit_open": ['"']}, "server_permit_open"),
        ([], {"permit_listen": [""]}, "server_permit_listen"),
        ([], {"controllers": ["10.0.0.0/8 any"]}, "server_controllers"),
        ([], {"user_ca": ["a\nb"]}, "server_user_ca"),
        ([], {"host_certificates": [""]}, "server_host_certificate"),
        ([], {"permit_open_groups": [{"group": "db"}]}, "no group 'db'"),
        (
            [],
            {
                "permit_open_groups": [{"group": "db"}],
                "groups": {"db": ["h"]},
                "hostvars": {"h": {"ansible_host": "h any"}},
            },
            "server_permit_open_groups",
        ),
    ],
)
def test_what_is_refused(
    users: list[dict[str, Any]], variables: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(AnsibleFilterError, match=complaint):
        plan(*users, **variables)
