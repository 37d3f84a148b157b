# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The role server on a real sshd of this machine: what it makes, and that nobody is locked out."""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ssh_client_config.conftest import tree
from tests.support.client import Session, Ssh
from tests.support.guide import GUIDE, plays_of
from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.services import Echo
from tests.support.sshd import Sshd, make_key, public_key
from tests.support.tasks import close_all

ROLE = "bastion.mux.server : "
SETTINGS = "Settings of sshd"
MADE = ["Group of the jump accounts", "Jump accounts", SETTINGS]
REMOVED = [
    SETTINGS,
    "Unwanted jump accounts",
    "Group of the jump accounts, unless others are in it",
]


class Bastion:
    """A host with an sshd that root logs in to, and names for accounts that nobody else has."""

    def __init__(self, sshd: Sshd, work: Path) -> None:
        self.sshd = sshd
        self.work = work
        self.etc = sshd.directory / "etc"
        self.group = f"bm{secrets.token_hex(4)}"
        self.jim = f"{self.group}j"
        self.joe = f"{self.group}k"
        self.ann = f"{self.group}l"
        self.key = make_key(work / "jim")
        self.destination = ""

    def play(self, *, tasks: list[dict[str, Any]] | None = None, **variables: Any) -> Any:
        """A play with the role, or with these tasks."""
        return {
            "hosts": "bastion",
            "gather_facts": False,
            **({"tasks": tasks} if tasks else {"roles": ["bastion.mux.server"]}),
            "vars": {
                "server_config_path": str(self.sshd.directory / "sshd_config"),
                "server_drop_in": str(self.etc / "sshd_config.d/00-bastion.conf"),
                "server_directory": str(self.etc / "mux"),
                "server_jump_group": self.group,
                "server_jump_users": [
                    {"name": self.jim, "authorized_keys": [public_key(self.key)]}
                ],
                "server_permit_open": [self.destination] if self.destination else [],
                "server_verify_destination": self.destination,
                **variables,
            },
        }

    def inventory(self) -> dict[str, Any]:
        arguments = [f"UserKnownHostsFile={self.sshd.known_hosts}", "IdentitiesOnly=yes"]
        host = {
            "ansible_host": self.sshd.host,
            "ansible_port": self.sshd.port,
            "ansible_user": self.sshd.user,
            "ansible_ssh_private_key_file": str(self.sshd.identity_file),
            "ansible_ssh_common_args": " ".join(f"-o {one}" for one in arguments),
        }
        return {"all": {"hosts": {"bastion": host}}}

    def run(self, play: Any = None, inventory: Any = None, **how: Any) -> PlaybookResult:
        return run_playbook(
            self.work,
            play or self.play(),
            inventory=inventory or self.inventory(),
            diff=True,
            env={"ANSIBLE_PIPELINING": "1", "TMPDIR": str(self.work)},
            **how,
        )

    def as_jim(self) -> Ssh:
        """An ssh of the jump user, with the key that is told in the variables."""
        config = self.sshd.ssh_config(
            self.work / "jim_config", options={"User": self.jim, "IdentityFile": str(self.key)}
        )
        return Ssh(config)

    def left_over(self) -> list[Path]:
        """Keys for one login, and what a controller needs for it."""
        return [*self.etc.rglob("verify"), *self.work.rglob("*.bm")]

    def state(self) -> list[str]:
        """All that sshd reads."""
        config = (self.sshd.directory / "sshd_config").read_text()
        return [config, *(str(one) for one in tree(self.etc))]


@pytest.fixture
def bastion(work: Path, make_sshd: Callable[..., Sshd], echo: Echo) -> Iterator[Bastion]:
    if os.getuid() != 0:
        pytest.skip("only root can make accounts and change an sshd that others log in to")
    # Sessions of others than root have to reach what it names.
    work.chmod(0o755)
    sshd = make_sshd()
    sshd.directory.chmod(0o755)
    made = Bastion(sshd, work)
    made.etc.mkdir()
    made.destination = f"127.0.0.1:{echo.port}"
    yield made
    close_all(work)
    for name in (made.jim, made.joe, made.ann):
        if name in {one.pw_name for one in pwd.getpwall()}:
            subprocess.run(
                ["userdel", "--force", "--remove", name], check=True, capture_output=True
            )
    subprocess.run(["groupdel", made.group], check=False, stderr=subprocess.DEVNULL)


def wrong(result: PlaybookResult) -> str:
    return result.task(f"{ROLE}Say what was wrong").msg


def changes(result: PlaybookResult) -> list[str]:
    """The tasks that changed something, or would."""
    found = [one.task.removeprefix(ROLE) for one in result.ok().results if one.changed]
    assert result.changed() == len(found)
    return found


def phases(*names: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "ansible.builtin.include_role": {"name": "bastion.mux.server", "tasks_from": name},
        }
        for name in names
    ]


@pytest.mark.long
def test_from_nothing_and_back(bastion: Bastion) -> None:
    before = bastion.state()
    foretold = bastion.run(check=True)
    assert changes(foretold) == MADE
    assert bastion.state() == before
    logins = bastion.sshd.logins()

    done = bastion.run()
    assert changes(done) == MADE
    assert done.task(ROLE + SETTINGS)["diff"] == foretold.task(ROLE + SETTINGS)["diff"]
    assert not bastion.left_over()
    # Lifeline, fresh login of root, and of the jump user; what Ansible had open was one before.
    assert bastion.sshd.logins() - logins >= 3
    as_jim = bastion.as_jim()
    assert as_jim.run("-W", bastion.destination).rc == 0
    refused = as_jim.run("-W", "nowhere.invalid:9")
    assert "open failed" in refused.err, refused
    assert as_jim.run(command="echo a shell").out == ""
    assert pwd.getpwnam(bastion.jim).pw_dir == "/nonexistent"

    assert changes(bastion.run()) == []

    away: dict[str, Any] = {"server_state": "absent"}
    assert changes(bastion.run(bastion.play(**away), check=True)) == REMOVED
    assert changes(bastion.run(bastion.play(**away))) == REMOVED
    assert bastion.state() == before
    with pytest.raises(KeyError):
        pwd.getpwnam(bastion.jim)
    assert bastion.group not in {one.gr_name for one in grp.getgrall()}
    assert changes(bastion.run(bastion.play(**away))) == []


def test_playbook_of_the_guide(bastion: Bastion) -> None:
    text = (GUIDE / "guide_server_harden.rst").read_text(encoding="utf-8")
    for name, instead in (("jim", bastion.jim), ("dumper", bastion.joe), ("ann", bastion.ann)):
        text = text.replace(f"- name: {name}\n", f"- name: {instead}\n")
        text = text.replace(f"keys/{name}.pub", f"{bastion.key}.pub")
    ((play,),) = plays_of(text)
    mine = bastion.play()["vars"]
    del mine["server_jump_users"], mine["server_permit_open"]
    address, port = bastion.destination.split(":")
    given = {**play["vars"], **mine, "ansible_become": False}
    given["server_permit_open_groups"][0]["ports"] = [int(port)]
    inventory = bastion.inventory()["all"]["hosts"]
    groups = {
        "bastions": {"hosts": inventory},
        "databases": {"hosts": {"db1.internal": {"ansible_host": address}}},
    }
    done = bastion.run([{**play, "vars": given}], inventory=groups)
    assert SETTINGS in changes(done)
    assert bastion.as_jim().run("-W", bastion.destination).rc == 0
    assert changes(bastion.run([{**play, "vars": given}], inventory=groups)) == []


# Logins that are refused are rows of the scenario server.
@pytest.mark.long
@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        # The login is one, and yet Ansible could not do anything.
        ({"server_options": {"ForceCommand": "/bin/false"}}, "root logs in, and gets no session: "),
        ({"server_jump_options": {"PermitOpen": "any"}}, "is not refused nowhere.invalid:9"),
        (
            {"server_jump_options": {"MaxSessions": 1, "ForceCommand": "none"}},
            "No session of a jump user: ",
        ),
        ({"server_verify_destination": "127.0.0.1:1"}, "Allowed destination: "),
    ],
)
def test_what_would_lock_out_is_undone(
    bastion: Bastion, variables: dict[str, Any], complaint: str
) -> None:
    if "MaxSessions" in str(variables):
        variables = {**variables, "server_jump_shell": "/bin/sh"}
    before = bastion.state()
    config = bastion.sshd.ssh_config()
    ssh = Ssh(config)
    with ssh.started(command="echo up; exec cat") as process:
        session = Session(process)
        result = bastion.run(bastion.play(**variables))
        assert result.failed
        said = wrong(result)
        assert complaint in said
        assert "sshd is as it was before, and root logs in" in said
        assert "Traceback" not in result.stdout + result.stderr
        assert bastion.state() == before
        assert session.echoes()
        assert session.end() == 0
    # The listener reads what is there.
    assert ssh.run(command="echo a shell").out == "a shell\n"
    assert not bastion.left_over()


def test_what_sshd_refuses_is_not_there_for_a_moment(bastion: Bastion) -> None:
    before = bastion.state()
    result = bastion.run(bastion.play(server_options={"MaxSessions": "many"}))
    said = wrong(result)
    assert "Settings of sshd: sshd refuses it: " in said
    assert bastion.state() == before
    assert not result.tasks(f"{ROLE}Fresh login of an operator")
    assert not bastion.left_over()


@pytest.mark.long
def test_phases_for_who_decides_in_between(bastion: Bastion) -> None:
    before = bastion.state()
    # As of a run that was killed before it could decide.
    pending = bastion.run(bastion.play(tasks=phases("apply"))).ok()
    assert pending.task(ROLE + SETTINGS)["pending"]
    assert changes(bastion.run(check=True)) == ["Settings stay"]
    undone = bastion.run(bastion.play(tasks=phases("restore", "restore")))
    assert changes(undone) == ["Settings as they were before"]
    assert bastion.state() == before
    # Verified anew, and kept.
    assert changes(bastion.run(bastion.play(tasks=phases("apply", "confirm")))) == [SETTINGS]
    assert changes(bastion.run(check=True)) == []


@pytest.mark.long
def test_keys_of_a_run_that_was_killed_go(bastion: Bastion) -> None:
    bastion.run().ok()
    after = bastion.state()
    verify = bastion.etc / "mux/verify"
    verify.mkdir()
    (verify / bastion.jim).write_text("left over\n")
    assert changes(bastion.run()) == [SETTINGS]
    assert bastion.state() == after


@pytest.mark.long
def test_a_key_that_is_here_is_used_and_who_is_not_listed_any_more_goes(bastion: Bastion) -> None:
    key = make_key(bastion.work / "joe")
    users: list[dict[str, Any]] = [
        {"name": bastion.jim, "identity_file": str(bastion.key)},
        {"name": bastion.joe, "authorized_keys": [public_key(key)], "permit_listen": ["7000"]},
    ]
    play = bastion.play(server_jump_users=users)
    result = bastion.run(play)
    # Its key is no key of the bastion's.
    assert "Fresh login of a jump user: " in wrong(result)
    users[0]["authorized_keys"] = [public_key(bastion.key)]
    bastion.run(play).ok()
    bastion.run(bastion.play(server_jump_users=users[1:])).ok()
    with pytest.raises(KeyError):
        pwd.getpwnam(bastion.jim)


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"server_jump_users": [{"name": "root"}]}, "root is an operator as well"),
        ({"server_jump_users": [{"name": "a b"}]}, "is no name of one word"),
        ({"server_permit_open_groups": [{"group": "db"}]}, "has no group 'db'"),
        ({"server_state": "gone"}, "value of server_state must be one of"),
    ],
)
def test_what_it_refuses(bastion: Bastion, variables: dict[str, Any], complaint: str) -> None:
    before = bastion.state()
    result = bastion.run(bastion.play(**variables))
    assert result.failed
    assert complaint in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert bastion.state() == before
