# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role client, as a play uses it: what it writes, that it says so before, and that it goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.control_path import limit
from tests.integration.ssh_client_config.conftest import Person, tree
from tests.support.accounts import Account, change
from tests.support.playbook import PlaybookResult, run_playbook

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE5VkTZLFvdBTnL4fHm4KdLYkYFYkgzpJZm5m6JqGcGZ"
BASTION = {
    "name": "bastion",
    "hostname": "bastion.example.com",
    "patterns": ["172.16.*"],
    "host_keys": [KEY],
}


class Role:
    """Plays with the role on this machine, whose files are below a directory of their own."""

    def __init__(self, work: Path, person: Person) -> None:
        self.work = work
        self.person = person
        self.etc = work / "etc"
        (self.etc / "ssh_config.d").mkdir(parents=True)

    def play(self, *, check: bool = False, **variables: Any) -> PlaybookResult:
        play = {
            "hosts": "localhost",
            "gather_facts": False,
            "roles": ["bastion.mux.client"],
            "vars": {
                "client_users": [self.person.name],
                "client_bastions": [BASTION],
                "client_known_hosts_path": str(self.etc / "known"),
                "client_system_path": str(self.etc / "ssh_config.d/20-team.conf"),
                **variables,
            },
        }
        return run_playbook(self.work, play, check=check, diff=True)


@pytest.fixture
def role(work: Path, account: Account) -> Role:
    return Role(work, Person(account.name, account.home))


@pytest.mark.parametrize(
    ("variables", "changes"),
    [
        ({}, 2),
        ({"client_layout": "include"}, 2),
        ({"client_scope": "system"}, 2),
        ({"client_bastions": [{"name": "bastion", "patterns": ["172.16.*"]}]}, 1),
    ],
    ids=["block", "include", "system", "without keys"],
)
def test_from_nothing_and_back(role: Role, variables: dict[str, Any], changes: int) -> None:
    person = role.person
    person.has(b"Host bastion\n  Port 2222\n  ProxyJump own\n")
    before = person.tree(), tree(role.etc)
    assert role.play(check=True, **variables).ok().changed() == changes
    assert (person.tree(), tree(role.etc)) == before
    assert role.play(**variables).ok().changed() == changes
    assert role.play(**variables).ok().changed() == 0
    if "client_scope" not in variables:
        effective = person.effective("bastion")
        assert effective["port"] == "22"
        assert effective["controlmaster"] == "auto"
        assert effective["controlpersist"] == "600"
        assert effective["forwardagent"] == "no"
        # What the role does not say stays theirs.
        assert effective["proxyjump"] == "own"
        assert person.effective("172.16.0.1")["proxyjump"] == "bastion"
    else:
        assert person.tree() == before[0]
    away = {**variables, "client_state": "absent", "client_bastions": []}
    assert role.play(check=True, **away).ok().changed() == changes
    assert role.play(**away).ok().changed() == changes
    assert role.play(**away).ok().changed() == 0
    assert (person.tree(), tree(role.etc)) == before


@pytest.mark.parametrize(("length", "shares"), [(36, True), (37, False)])
def test_everybody_with_room_for_a_socket_shares(
    role: Role, work: Path, length: int, shares: bool
) -> None:
    role.play(client_scope="system").ok()
    person = role.person
    home = work / ("h" * (length - len(str(work)) - 1))
    assert len(str(home)) == length
    person.home.rename(home)
    change("usermod", "--home", str(home), person.name)
    (home / ".ssh").mkdir()
    system = role.etc / "ssh_config.d/20-team.conf"
    system.parent.parent.chmod(0o755)
    effective = person.effective("bastion", "-F", str(system))
    assert effective["serveraliveinterval"] == "15"
    assert ("controlpath" in effective) == shares
    # Whatever ssh makes of %C, and whichever system it is.
    assert not shares or len(effective["controlpath"]) <= limit("darwin")


def test_keys_that_are_not_given_any_more_go(role: Role) -> None:
    role.play().ok()
    known = role.etc / "known"
    assert known.read_text() == f"bastion.example.com {KEY}\n"
    assert known.stat().st_mode & 0o777 == 0o644
    role.play(client_bastions=[{**BASTION, "host_keys": []}]).ok()
    assert not known.exists()
    assert b"known" not in role.person.config.read_bytes()


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"client_bastions": []}, "client_bastions: there is none"),
        ({"client_bastions": [{"hostname": "h"}]}, "missing required arguments: name"),
        ({"client_bastions": [{"name": "172.16.*"}]}, "must be one word"),
        ({"client_state": "gone"}, "value of client_state must be one of"),
        ({"client_bastions": [{"name": "b", "options": {"NoSuch": 1}}]}, "nosuch"),
    ],
)
def test_what_it_refuses(role: Role, variables: dict[str, Any], complaint: str) -> None:
    before = role.person.tree()
    result = role.play(**variables)
    assert result.failed
    assert complaint in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert role.person.tree() == before
