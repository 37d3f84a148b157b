# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_client_config and what is in force then: by the installed ssh, and by nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.engine import client_config
from ansible_collections.bastion.mux.plugins.module_utils.model import config_file
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.system import accounts, crew
from tests.integration.ssh_client_config.conftest import HOSTS, Person, block, tree
from tests.support.tasks import Tasks

MakePerson = Callable[[], Person]


# What stands above the block (at {above}) or is a file beside it, and what shadows Port 2222 for
# the host bastion there: file and line.
SHADOWS: dict[str, tuple[dict[str, str], tuple[str, int]]] = {
    "before any Host": ({"config": "# mine\nPort 22\n{block}"}, ("config", 2)),
    "Host with a pattern": ({"config": "Host b*\n\tport=22\nHost c\n{block}"}, ("config", 2)),
    "Match": ({"config": 'Match exec "true"\nPort 22\nMatch all\n{block}'}, ("config", 2)),
    "CRLF": ({"config": "Host *\r\n\tPort 22\r\n{block}"}, ("config", 2)),
    "another managed block": (
        {
            "config": "# BEGIN bastion.mux x\nHost bastion\n    Port 22\nMatch all\n"
            "# END bastion.mux x\n{block}"
        },
        ("config", 3),
    ),
    "Include of a pattern": (
        {
            "config": "Include d/*\n{block}",
            "d/1": "Host c\n Port 1\n",
            "d/2": "Host b*\n Compression yes\n Include deep\n",
            "deep": "# x\nHost c\n Port 1\nHost bastion\n Port 22\n",
        },
        ("deep", 5),
    ),
    "Include in a Host": (
        {"config": "Host c\n Include no\nHost bastion\n Include yes\n{block}"}
        | dict.fromkeys(("no", "yes"), "User x\nPort 22\n"),
        ("yes", 2),
    ),
}


class TestShadowed:
    @pytest.mark.parametrize("layout", ["block", "include"])
    def test_what_shadows_is_named_and_nothing_changes(
        self, layout: str, person: MakePerson, tasks: Tasks
    ) -> None:
        people = [person() for _case in SHADOWS]
        for one, (files, _by) in zip(people, SHADOWS.values(), strict=True):
            for name, text in files.items():
                content = text.encode().replace(b"{block}", block(body=b"Host old\n"))
                one.has(content, path=one.ssh / name)
        before = [one.tree() for one in people]
        names = [one.name for one in people]
        failed = tasks.fails(users=names, layout=layout)
        assert [one.tree() for one in people] == before
        for one, user, (_files, (name, line)) in zip(
            people, failed["users"], SHADOWS.values(), strict=True
        ):
            shadowed = {"host": "bastion", "keyword": "Port", "wanted": "2222", "actual": "22"}
            assert user["shadowed"] == [{**shadowed, "file": str(one.ssh / name), "line": line}]
            assert f"line {line} of {one.ssh / name}" in user["msg"]
        # Who knows better is believed.
        assert tasks.one(users=names, layout=layout, verify="syntax").changed
        for one in people:
            assert one.effective("bastion")["port"] == "22"
            assert one.effective("bastion")["hostname"] == "10.0.0.1"

    def test_a_block_may_shadow_itself(self, person: MakePerson, tasks: Tasks) -> None:
        one = person()
        hosts = [{"host": "*", "options": {"Port": 22, "SendEnv": "A"}}]
        hosts += [{"host": "bastion", "options": {"Port": 2222, "SendEnv": ["B", "C"]}}]
        (user,) = tasks.fails(users=[one.name], hosts=hosts)["users"]
        (shadowed,) = user["shadowed"]
        # As it would be written: the marker is the first line.
        assert (shadowed["keyword"], shadowed["line"]) == ("Port", 3)
        assert not one.ssh.exists()
        assert tasks.one(users=[one.name], hosts=hosts[::-1]).changed

    def test_what_only_follows_from_others_is_not_shadowed(
        self, person: MakePerson, tasks: Tasks
    ) -> None:
        one = person()
        one.has(b"User me\nPort 1\nHost x\n" + block(body=b"Host old\n"))
        options = {"ControlPath": "~/.ssh/m/%r@%h:%p", "HostName": "10.0.0.1", "ProxyJump": "none"}
        tasks.one(users=[one.name], hosts=[{"host": "bastion", "options": options}])
        assert one.effective("bastion")["controlpath"].endswith("/me@10.0.0.1:1")


class TestSystemWide:
    def test_earlier_drop_ins_count_and_later_ones_do_not(self, tasks: Tasks, work: Path) -> None:
        drop_ins = work / "ssh_config.d"
        drop_ins.mkdir()
        drop_ins.chmod(0o755)
        system = work / "ssh_config"
        system.write_text(f"Host x\n Port 1\nHost *\nInclude {drop_ins}/*.conf\nPort 3\n")
        (drop_ins / "20-early.conf").write_text("Host bastion\n  Port 22\n")
        (drop_ins / "80-late.conf").write_text("Port 4\n")
        (drop_ins / "10-not.included").write_text("Port 5\n")
        (user,) = tasks.fails(path=str(drop_ins / "50-mux.conf"))["users"]
        shadowed = [(each["file"], each["line"], each["actual"]) for each in user["shadowed"]]
        assert shadowed == [(str(drop_ins / "20-early.conf"), 2, "22")]
        path = drop_ins / "15-mux.conf"
        assert tasks.one(path=str(path)).changed
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (block(new="file"), 0o644)
        assert not tasks.one(path=str(path)).changed
        said = subprocess.run(
            ["ssh", "-F", str(system), "-G", "--", "bastion"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert "\nport 2222\n" in said.stdout
        assert tasks.one(path=str(path), state="absent").changed
        assert not path.exists()

    def test_drop_ins_are_for_everybody(self, tasks: Tasks, work: Path) -> None:
        work.chmod(0o711)
        etc = work / "etc"
        etc.mkdir()
        etc.chmod(0o755)
        system = etc / "ssh_config"
        system.write_text("Host x\n Port 1\n")
        before = tree(etc)
        assert tasks.one(path=str(system), layout="include").changed
        drop_in = etc / "config.d/bastion.mux-team.conf"
        assert [path.stat().st_mode & 0o777 for path in (drop_in.parent, drop_in)] == [0o755, 0o644]
        assert system.read_text().splitlines()[2] == f"Include {drop_in}"
        said = subprocess.run(
            ["ssh", "-F", str(system), "-G", "--", "bastion"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert "\nport 2222\n" in said.stdout
        tasks.one(path=str(system), state="absent")
        assert tree(etc) == before

    def test_others_must_not_be_able_to_change_the_path(
        self, person: MakePerson, tasks: Tasks
    ) -> None:
        one = person()
        before = one.tree()
        failed = tasks.fails(path=str(one.has()))
        assert "name its user in users" in failed.msg
        (one.home / ".ssh").rmdir()
        assert one.tree().keys() == before.keys()


# Threads of pytest-xdist; a module has none.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_users_who_are_not_root_manage_their_own(person: MakePerson) -> None:
    mine, other = person(), person()
    params = {
        **{name: spec.get("default") for name, spec in client_config.SPEC.items()},
        "users": [mine.name, other.name],
        "hosts": HOSTS,
        "name": "team",
    }

    def job() -> list[dict[str, object]]:
        accounts.stay(accounts.find(mine.name))
        try:
            client_config.run(params, check_mode=False)
        except MuxError as error:
            users: list[dict[str, object]] = error.details["users"]
            return users
        return []

    users: list[dict[str, str]] = crew.alone(job, timeout=60)
    own, others = users[0], users[1]
    assert own["changed"]
    assert mine.effective("bastion")["port"] == "2222"
    assert others["failed"]
    assert "only root" in others["msg"]
    assert not other.ssh.exists()


# -- hosts that the block is not about -------------------------------------------------------------

LINES = st.lists(
    st.sampled_from(
        [
            "Host a",
            "Host *",
            "Host other bastion",
            "Host !bastion *",
            "Match host other",
            "Match all",
            'Match exec "false"',
            "Port 1",
            "\tPort=2",
            "User u",
            "Compression yes",
            "SendEnv A",
            "SendEnv B",
            "IdentityFile ~/.ssh/x",
            "LocalForward 1 a:2",
            "CanonicalizeHostname no",
            "ProxyJump j",
            "ProxyCommand c",
            "# comment",
            "",
        ]
    ),
    max_size=8,
)


@pytest.mark.parametrize("layout", ["block", "include"])
@given(lines=LINES, end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_hosts_that_are_not_named_stay_as_they_were(
    layout: str, work: Path, lines: list[str], end: str, last: bool
) -> None:
    content = (end.join(lines) + (end if last else "")).encode()
    (work / "block").write_bytes(block())
    body = block().decode().splitlines()[1:-1]
    if layout == "include":
        body = ["Match all", f"Include {work}/block"]
    after = config_file.edit_present(content, "team", body, set()).after
    assert after is not None

    def effective(text: bytes, host: str) -> bytes:
        path = work / "config"
        path.write_bytes(text)
        command = ["ssh", "-F", str(path), "-G", "--", host]
        return subprocess.run(command, capture_output=True, check=True, cwd=os.sep).stdout

    for host in ("other", "a"):
        assert effective(after, host) == effective(content, host)
    assert b"\nport 2222\n" in effective(after, "bastion")
    assert b"\nproxyjump bastion\n" in effective(after, "172.16.0.1")
