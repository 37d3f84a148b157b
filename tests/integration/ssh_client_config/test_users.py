# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_client_config for people with homes: what it writes, what it keeps, whom it leaves alone."""

from __future__ import annotations

import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.bastion.mux.plugins.modules import ssh_client_config
from tests.integration.ssh_client_config.conftest import BODY, Person, block, tree
from tests.support.playbook import run_playbook
from tests.support.tasks import CHANGES, Tasks

MakePerson = Callable[[], Person]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def given(tasks: Tasks, **params: Any) -> Tasks:
    """Tasks with these parameters. A block's name is not a task's."""
    return Tasks(tasks.work, {**tasks.params, **params}, tasks.module)


class TestLayouts:
    @pytest.mark.parametrize("layout", ["block", "include"])
    def test_from_nothing_and_back(self, layout: str, person: MakePerson, tasks: Tasks) -> None:
        people = [person(), person()]
        before = [one.tree() for one in people]
        given = {"users": [one.name for one in people], "control_dir": "~/.ssh/m/%u"}
        foretold = tasks.one(check=True, layout=layout, **given)
        assert foretold.changed
        assert [one.tree() for one in people] == before
        rows = tasks.rows(layout=layout, **given)
        assert rows.changed == CHANGES
        assert rows.check["diff"] == rows.do["diff"] == foretold["diff"]
        assert rows.again["diff"] == []
        assert [user["changed"] for user in rows.do["users"]] == [True, True]
        for one in people:
            written = sorted(str(path.relative_to(one.home)) for path in one.home.rglob("*"))
            drop_in = one.ssh / "config.d/bastion.mux-team.conf"
            made = "control_dir, directory, file"
            if layout == "block":
                assert written == [".ssh", ".ssh/config", ".ssh/m", f".ssh/m/{one.name}"]
                assert one.config.read_bytes() == block(new=made)
            else:
                assert drop_in.read_bytes() == block(new="directory, file")
                include = f"Match all\nInclude config.d/{drop_in.name}\n".encode()
                assert one.config.read_bytes() == block(new=made, body=include)
            for path in one.home.rglob("*"):
                assert (path.stat().st_uid, path.stat().st_gid) == (one.uid, one.gid)
                assert mode(path) == (0o700 if path.is_dir() else 0o600)
            effective = one.effective("bastion")
            assert (effective["hostname"], effective["port"]) == ("10.0.0.1", "2222")
            assert one.effective("172.16.1.1")["proxyjump"] == "bastion"
        rows = tasks.rows(state="absent", hosts=None, **given)
        assert rows.changed == CHANGES
        # The directory above the sockets was not asked for.
        for one, empty in zip(people, before, strict=True):
            (one.ssh / "m").rmdir()
            if one.ssh.exists():
                one.ssh.rmdir()
            assert one.tree().keys() == empty.keys()

    def test_one_layout_takes_the_place_of_the_other(
        self, person: MakePerson, tasks: Tasks
    ) -> None:
        one = person()
        one.has(b"Host own\n")
        before = one.tree()
        tasks.one(users=[one.name])
        first = one.tree()
        tasks.one(users=[one.name], layout="include")
        assert one.config.read_bytes().endswith(b"\nHost own\n")
        assert one.effective("bastion")["port"] == "2222"
        tasks.one(users=[one.name])
        assert one.tree() == first
        tasks.one(users=[one.name], layout="include")
        tasks.one(users=[one.name], state="absent")
        assert one.tree() == before


class TestWhatStays:
    def test_owner_group_mode_attributes_and_links(
        self, person: MakePerson, tasks: Tasks, work: Path
    ) -> None:
        one = person()
        real = one.has(b"Host own\r\n\tUser=\xff", path=one.home / "dotfiles/ssh/config")
        one.has(path=one.config).symlink_to("../dotfiles/ssh/config")
        one.own(one.config)
        other_name = one.home / "other"
        os.link(real, other_name)
        # Root may have put it there; its owner could not.
        os.chown(real, one.uid, 0)
        real.chmod(0o640)
        os.setxattr(real, "user.mark", b"value")
        # An ACL as linux/posix_acl_xattr.h has it: version 2, then tag, permissions and id.
        entries = [(0x01, 6, -1), (0x02, 4, 4321), (0x04, 4, -1), (0x10, 4, -1), (0x20, 0, -1)]
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(real, "system.posix_acl_access", acl)
        # And the directory would give another one to each new file.
        entries[1] = (0x02, 4, 4322)
        default = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(real.parent, "system.posix_acl_default", default)
        before = real.read_bytes()
        result = tasks.one(users=[one.name], backup=True)
        (user,) = result["users"]
        assert user["path"] == str(real)
        assert real.read_bytes() == block().replace(b"\n", b"\r\n") + before
        assert one.config.is_symlink()
        for path in (real, Path(user["backup_file"])):
            status = path.stat()
            assert (status.st_uid, status.st_gid, mode(path)) == (one.uid, 0, 0o640)
            assert os.getxattr(path, "user.mark") == b"value"
            assert os.getxattr(path, "system.posix_acl_access") == acl
        assert Path(user["backup_file"]).read_bytes() == before
        assert other_name.read_bytes() == before
        assert sorted(os.listdir(one.ssh)) == ["config"]
        tasks.one(users=[one.name], state="absent")
        assert real.read_bytes() == before

    def test_blocks_of_several_names(self, person: MakePerson, tasks: Tasks) -> None:
        one = person()
        own = b"Compression yes\nHost own\n  User me"
        one.has(own)
        first, second = given(tasks, name="first"), given(tasks, name="second")
        first.one(users=[one.name])
        second.one(users=[one.name], hosts=[{"host": "x", "options": {"User": "u"}}])
        assert one.config.read_bytes() == (
            block("second", body=b"Host x\n    User u\nMatch all\n") + block("first") + own
        )
        assert one.effective("x")["compression"] == "yes"
        assert not first.one(users=[one.name]).changed
        first.one(users=[one.name], state="absent")
        second.one(users=[one.name], state="absent")
        assert one.config.read_bytes() == own


# What is in the way of some people, and what is said about it. Each is given the person and a
# directory that is root's, where there is a file that anybody can read.
Trouble = Callable[[Person, Path], object]


def no_home(one: Person, outside: Path) -> None:
    one.home.rmdir()


def read_only_home(one: Person, outside: Path) -> None:
    one.home.chmod(0o500)


def file_for_a_directory(one: Person, outside: Path) -> None:
    one.has(b"", path=one.ssh)


def directory_for_a_file(one: Person, outside: Path) -> None:
    one.has(b"", path=one.config / "x")


def pipe(one: Person, outside: Path) -> None:
    os.mkfifo(one.has())
    one.own(one.config)


def ssh_leads_out(one: Person, outside: Path) -> None:
    one.ssh.symlink_to(outside)


def config_leads_out(one: Person, outside: Path) -> None:
    one.has().symlink_to(outside / "config")


def ssh_leads_nowhere(one: Person, outside: Path) -> None:
    one.ssh.symlink_to("/nowhere")


def circle(one: Person, outside: Path) -> None:
    one.has().symlink_to("config")


def hard_link_to_roots(one: Person, outside: Path) -> None:
    os.link(outside / "config", one.has())


def into_another_home(one: Person, outside: Path) -> None:
    # He may write there, and it is still not his.
    shared = one.home.parent / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    one.ssh.symlink_to(shared)


def secret(one: Person, outside: Path) -> None:
    one.has().symlink_to(outside / "secret")


def half_a_block(one: Person, outside: Path) -> None:
    one.has(b"Host a\n# BEGIN bastion.mux team\n")


def broken(one: Person, outside: Path) -> None:
    one.has(b"Host a\n  Prot 22\n")


def byte_order_mark(one: Person, outside: Path) -> None:
    one.has(b"\xef\xbb\xbfHost a\n")


def endless(one: Person, outside: Path) -> None:
    os.truncate(one.has(b""), 1 << 40)


def noisy(one: Person, outside: Path) -> None:
    one.has(b'Match exec "yes >&2"\n  User x\n')


def colourful(one: Person, outside: Path) -> None:
    one.has(b"Prot \x1b[31m" + b"x" * 1000 + b"\n")


def writable_for_everybody(one: Person, outside: Path) -> None:
    one.has(b"Host a\n").chmod(0o666)


TROUBLES: list[tuple[Trouble, str]] = [
    (no_home, "its home .* does not exist"),
    (read_only_home, r"the directory .*/\.ssh cannot be made: Permission denied"),
    (file_for_a_directory, "Not a directory"),
    (directory_for_a_file, "is not a regular file"),
    (pipe, "is not a regular file"),
    (ssh_leads_out, "belongs to user id 0 and not to"),
    (config_leads_out, "belongs to user id 0 and not to"),
    (ssh_leads_nowhere, "the symbolic link .* leads nowhere"),
    (circle, "Too many levels of symbolic links"),
    (hard_link_to_roots, "belongs to user id 0 and not to"),
    (into_another_home, "belongs to user id 0 and not to"),
    (secret, "belongs to user id 0 and not to"),
    (half_a_block, "line 2: a BEGIN of this block without its END"),
    (broken, "line 2 of .*config .*Bad configuration option: prot"),
    (byte_order_mark, r"line 1 of .*config .*Bad configuration option: \\357\\273\\277host"),
    (endless, "has more than 1048576 bytes"),
    (noisy, "says more than 1048576 bytes"),
    (colourful, r"\(Prot \\x1b\[31mx+\.\.\.\): Bad configuration option: prot"),
    (writable_for_everybody, "Bad owner or permissions"),
]


class TestTroubles:
    @pytest.mark.parametrize("layout", ["block", "include"])
    def test_who_cannot_be_served_is_told_and_the_others_are_done(
        self, layout: str, person: MakePerson, tasks: Tasks, work: Path
    ) -> None:
        outside = work / "outside"
        outside.mkdir(mode=0o755)
        (outside / "config").write_bytes(b"Host of-root\n")
        (outside / "secret").touch(0o600)
        good = person()
        people = [person() for _trouble in TROUBLES]
        for one, (trouble, _said) in zip(people, TROUBLES, strict=True):
            trouble(one, outside)
        before = [tree(one.home.parent) for one in people], tree(outside)
        names = [one.name for one in people]
        failed = tasks.fails(
            users=[*names[:3], "no-such-user", good.name, *names[3:]], layout=layout
        )
        assert ([tree(one.home.parent) for one in people], tree(outside)) == before
        assert failed["reason"] == "invalid"
        assert failed.msg.startswith(f"{len(people) + 1} of {len(people) + 2} users failed, ")
        users = {user["name"]: user for user in failed["users"]}
        for one, (trouble, said) in zip(people, TROUBLES, strict=True):
            user = users[one.name]
            assert re.search(said, user["msg"]), (trouble, user)
            assert (user["failed"], user["changed"], user["reason"]) == (True, False, "invalid")
            assert f"{one.name}: {user['msg']}" in failed.msg
        assert users["no-such-user"]["msg"] == "there is no such user"
        assert users[good.name]["changed"]
        assert failed.changed
        assert good.effective("bastion")["port"] == "2222"

    def test_who_hangs_holds_up_nobody(self, person: MakePerson, tasks: Tasks) -> None:
        slow, sly, good = person(), person(), person()
        slow.has(b'Match exec "sleep 3600"\n  User x\n')
        # It lets ssh go and keeps what ssh's errors are read from.
        sly.has(b'Match exec "sleep 25 >/dev/null & true"\n  User x\n')
        before = slow.config.read_bytes()
        failed = tasks.fails(users=[slow.name, sly.name, good.name])
        users = {user["name"]: user for user in failed["users"]}
        assert users[slow.name]["reason"] == "timeout"
        assert slow.config.read_bytes() == before
        assert users[sly.name]["failed"]
        assert users[good.name]["changed"]
        for one in (slow, sly):
            one.run("kill", "-KILL", "-1")

    def test_what_users_have_in_their_files_runs_as_they(
        self, person: MakePerson, tasks: Tasks
    ) -> None:
        one = person()
        told = one.home / "told"
        ids = "cat /proc/self/status >> %s" % told
        one.has(f'Match exec "{ids}"\n  User x\n'.encode())
        os.chown(one.config, one.uid, 0)
        hosts = [{"match": f'exec "{ids}"', "options": {"Port": 1}}]
        tasks.one(users=[one.name], hosts=hosts)
        lines = [line.split() for line in told.read_text().splitlines()]
        assert len([line for line in lines if line[0] == "Uid:"]) >= 2
        for name, *values in lines:
            if name in ("Uid:", "Gid:"):
                assert set(values) == {str(one.uid)} or set(values) == {str(one.gid)}
            if name == "Groups:":
                assert "0" not in values
            if name.startswith("Cap") and name != "CapBnd:":
                assert int(values[0], 16) == 0, (name, values)


# Becomes the person, and changes what its paths lead to, until it is killed.
RACE = """
import contextlib, os, sys
uid, gid, home, outside = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
os.chdir(home)
os.mkdir("mine", 0o700)
print("ready", flush=True)
while True:
    for leads_to in ("mine", outside):
        os.symlink(leads_to, "next")
        os.replace("next", ".ssh")
    for target in ("config", "new"):
        for name in os.listdir("mine"):
            with contextlib.suppress(OSError):
                os.unlink(f"mine/{name}")
                os.symlink(f"{outside}/{target}", f"mine/{name}")
"""


class TestRace:
    @pytest.mark.parametrize("layout", ["block", "include"])
    def test_who_changes_links_all_the_time_leads_root_nowhere(
        self, layout: str, person: MakePerson, tasks: Tasks, work: Path
    ) -> None:
        one = person()
        outside = work / "outside"
        outside.mkdir(mode=0o755)
        (outside / "config").write_bytes(b"Host of-root\n")
        before = tree(outside)
        command = [sys.executable, "-c", RACE, str(one.uid), str(one.gid)]
        with subprocess.Popen(
            [*command, str(one.home), str(outside)], stdout=subprocess.PIPE
        ) as racer:
            assert racer.stdout is not None
            assert racer.stdout.readline() == b"ready\n"
            names = [f"n{number}" for number in range(20)]
            named = given(tasks, name="{{ item }}", users=[one.name], layout=layout, verify="none")
            task = {**named.task(), "loop": names, "ignore_errors": True}
            result = tasks.play(task)
            assert "Traceback" not in result.stdout + result.stderr
            assert racer.poll() is None
            racer.kill()
        assert tree(outside) == before


class TestParameters:
    @pytest.mark.parametrize(
        ("params", "said"),
        [
            ({"hosts": [{"host": "a", "options": {"Prot": 22}}]}, "Bad configuration option: prot"),
            ({"hosts": [{"host": "a", "options": {"Port": "x"}}]}, "Bad port"),
            ({"hosts": [{"host": "a", "options": {"User": "x\nPort 1"}}]}, "control character"),
            ({"hosts": [{"host": "a\rb", "options": {}}]}, "control character"),
            ({"hosts": [{"match": "nonsense x", "options": {}}]}, "ssh refuses it"),
            ({"name": "a b"}, "name: 'a b'"),
            ({"control_dir": "relative"}, "control_dir"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(
        self, params: dict[str, Any], said: str, person: MakePerson, tasks: Tasks
    ) -> None:
        one = person()
        before = one.tree()
        assert said in given(tasks, users=[one.name], **params).fails().msg
        assert one.tree() == before

    def test_without_ssh(self, person: MakePerson, tasks: Tasks) -> None:
        one = person()
        missing = given(tasks, ssh_executable="/nowhere/ssh", users=[one.name])
        assert missing.fails()["reason"] == "ssh_missing"
        assert not one.ssh.exists()
        # What ssh would say is not asked, and a line stays a line all the same.
        assert "control" in missing.fails(verify="none", hosts=[{"host": "a\nb"}]).msg
        missing.one(verify="none")
        assert one.config.read_bytes() == block(new="directory, file", body=BODY)


def test_examples_of_the_documentation(person: MakePerson, tasks: Tasks, work: Path) -> None:
    alice, bob = person(), person()
    before = [tree(one.home) for one in (alice, bob)]
    drop_ins = work / "ssh_config.d"
    drop_ins.mkdir()
    words = {"alice": alice.name, "bob": bob.name, "/etc/ssh/ssh_config.d": str(drop_ins)}
    examples = ssh_client_config.EXAMPLES
    for word, real in words.items():
        assert word in examples
        examples = examples.replace(word, real)
    result = run_playbook(work, examples).ok()
    assert [task.changed for task in result.results] == [True, True, True]
    assert [one.keys() for one in before] == [tree(one.home).keys() for one in (alice, bob)]
    assert "HostName bastion.example.com" in (drop_ins / "20-team.conf").read_text()
