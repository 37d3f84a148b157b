# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_client_config for groups and for all people, and what becomes of their sockets."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.integration.ssh_client_config.conftest import Person
from tests.support.accounts import change
from tests.support.sshd import Sshd
from tests.support.tasks import CHANGES, STAYS, Tasks

MakePerson = Callable[[], Person]


@pytest.fixture
def group() -> Iterator[str]:
    name = f"bm{secrets.token_hex(4)}"
    change("groupadd", name)
    with contextlib.ExitStack() as stack:
        stack.callback(change, "groupdel", name)
        yield name


class TestWho:
    def test_a_group_is_its_members_by_first_and_further_group(
        self, person: MakePerson, tasks: Tasks, group: str
    ) -> None:
        member, first, homeless, locked, other = (person() for _number in range(5))
        for one in (member, homeless, locked):
            change("usermod", "--append", "--groups", group, one.name)
        change("usermod", "--gid", group, first.name)
        change("usermod", "--home", "/nonexistent", homeless.name)
        change("usermod", "--shell", "/usr/sbin/nologin", locked.name)
        rows = tasks.rows(users=["%" + group, member.name])
        assert rows.changed == CHANGES
        assert {user["name"] for user in rows.do["users"]} == {member.name, first.name}
        # Who lost the shell since then has a block all the same.
        change("usermod", "--shell", "/usr/sbin/nologin", first.name)
        rows = tasks.rows(users=["%" + group], state="absent", hosts=None)
        assert rows.changed == CHANGES
        names = {user["name"] for user in rows.do["users"]}
        assert names == {member.name, first.name, locked.name}
        assert not member.ssh.exists()
        assert not first.ssh.exists()
        assert not other.ssh.exists()
        change("usermod", "--gid", "nogroup", first.name)

    def test_an_empty_group_is_nobody(self, tasks: Tasks, group: str) -> None:
        rows = tasks.rows(users=["%" + group])
        assert rows.changed == STAYS
        assert rows.do["users"] == []

    def test_a_group_that_does_not_exist_is_reported(
        self, person: MakePerson, tasks: Tasks
    ) -> None:
        one = person()
        failed = tasks.fails(users=["%no-such-group", one.name])
        assert "%no-such-group: there is no such group" in failed.msg
        assert [user["failed"] for user in failed["users"]] == [True, False]
        assert one.config.exists()

    def test_all_people(self, person: MakePerson, tasks: Tasks) -> None:
        one, other, locked = person(), person(), person()
        change("usermod", "--shell", "/bin/false", locked.name)
        before = one.tree()
        # Only in check mode: the machine has people of its own, who may fail or not.
        result = tasks.play(tasks.task(check=True, users=["*"])).task("do")
        names = [user["name"] for user in result["users"]]
        assert {one.name, other.name} <= set(names)
        assert not {locked.name, "root", "nobody", "daemon"} & set(names)
        assert one.tree() == before


def test_a_control_path_that_no_socket_has_room_for(person: MakePerson, tasks: Tasks) -> None:
    one, far = person(), person()
    home = far.home.parent / ("h" * 60)
    far.home.rename(home)
    change("usermod", "--home", str(home), far.name)
    hosts = [{"host": "bastion", "options": {"ControlPath": "~/.ssh/%C"}}]
    failed = tasks.fails(users=[one.name, far.name], hosts=hosts)
    assert failed["reason"] == "control_path_too_long"
    assert f"{far.name}: ControlPath ~/.ssh/%C has " in failed.msg
    assert [user["failed"] for user in failed["users"]] == [False, True]
    assert not (home / ".ssh").exists()
    # What has no tilde is as long for everybody.
    hosts = [{"host": "bastion", "options": {"ControlPath": "/tmp/%i-%C"}}]
    assert tasks.one(users=[far.name], hosts=hosts).changed


def test_sockets_go_and_sessions_go_on(person: MakePerson, tasks: Tasks, bastion: Sshd) -> None:
    one = person()
    key = one.has(bastion.identity_file.read_bytes(), path=one.home / "id")
    before = one.tree()
    given: dict[str, Any] = {"users": [one.name], "control_dir": "~/.ssh/mux"}
    options = {
        "HostName": bastion.host,
        "Port": bastion.port,
        "User": bastion.user,
        "IdentityFile": str(key),
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": False,
        "ControlMaster": "auto",
        "ControlPath": "~/.ssh/mux/%C",
        "ControlPersist": 60,
    }
    tasks.one(hosts=[{"host": "bastion", "options": options}], **given)
    sockets = one.ssh / "mux"
    # Long enough for all that follows, and ended at the end of the test.
    with subprocess.Popen(
        ["ssh", "bastion", "echo ready; cat"],
        user=one.uid,
        group=one.gid,
        extra_groups=[],
        env={"HOME": str(one.home), "PATH": os.environ["PATH"]},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == "ready\n"
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as nobody:
            nobody.bind(str(sockets / "stale"))
        one.own(sockets / "stale")
        assert len(list(sockets.iterdir())) == 2
        tasks.one(state="absent", hosts=None, **given)
        assert one.tree() == before
        assert session.communicate("still here\n", timeout=30)[0] == "still here\n"
