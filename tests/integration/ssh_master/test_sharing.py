# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh_master returns makes others share its master: the server counts who logs in."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh
from tests.support.playbook import run_playbook
from tests.support.sshd import Sshd
from tests.support.tasks import CHANGES, Tasks

MakeSshd = Callable[..., Sshd]


def share(directory: Path, ssh: list[str], host: str) -> None:
    """Use ssh, scp, sftp and rsync with the arguments of `ssh`, to and from `host`."""
    there = directory / "there"
    there.mkdir()
    here = directory / "here"
    here.write_text("text")
    options = ssh[1:]
    commands = {
        "ssh": [*ssh, host, f"cp {here} {there}/ssh"],
        "scp": ["scp", "-q", *options, str(here), f"{host}:{there}/scp"],
        "sftp": ["sftp", "-q", *options, "-b", "-", host],
        "rsync": ["rsync", "-e", shlex.join(ssh), str(here), f"{host}:{there}/rsync"],
    }
    for command in commands.values():
        subprocess.run(
            command, input=f"put {here} {there}/sftp\n", text=True, timeout=30, check=True
        )
    assert {path.name: path.read_text() for path in there.iterdir()} == dict.fromkeys(
        commands, "text"
    )


@pytest.mark.parametrize("name", ["s", "sp ace", "per%cent %h", "quo'te", 'quo"te', "back\\slash"])
def test_every_program_of_openssh_shares_it(
    tasks: Tasks, bastion: Sshd, work: Path, name: str
) -> None:
    path = work / "c" / name
    result = tasks.one(control_path=str(path).replace("%", "%%"))
    assert result["control_path"] == str(path)
    share(work, ["ssh", "-F", str(bastion.ssh_config()), *result["ssh_args"]], "bastion")
    assert (bastion.connections(), bastion.logins()) == (1, 1)


def test_the_arguments_alone_name_the_master(tasks: Tasks, bastion: Sshd, work: Path) -> None:
    """No configuration and no name that could be looked up: there is no way to log in."""
    arguments = tasks.one()["ssh_args"]
    share(work, ["ssh", "-F", "none", *arguments], "no-such-host.invalid")
    assert (bastion.connections(), bastion.logins()) == (1, 1)


def test_who_comes_too_late_opens_no_master(
    tasks: Tasks, ssh: Ssh, bastion: Sshd, path: Path
) -> None:
    arguments = tasks.one(control_path=str(path))["ssh_args"]
    tasks.one(control_path=str(path), state="absent")
    assert ssh.run(*arguments, command="true").rc == 0
    assert bastion.logins() == 2
    assert os.listdir(path.parent) == []


def test_ansible_shares_it(work: Path, bastion: Sshd) -> None:
    variables = {
        "ansible_host": "127.0.0.1",
        "ansible_port": bastion.port,
        "ansible_user": bastion.user,
        "ansible_ssh_private_key_file": str(bastion.identity_file),
        "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={bastion.known_hosts}",
    }
    (work / "file").write_text("text")
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {"name": "do", "bastion.mux.ssh_master": {}, "register": "opened"},
            {"set_fact": {"ansible_control_path": "{{ opened.control_path }}"}},
            {"name": "module", "ping": {}},
            {"name": "transfer", "copy": {"src": str(work / "file"), "dest": str(work / "copy")}},
            {"name": "raw", "raw": "id -un"},
        ],
    }
    run = run_playbook(work, play, inventory={"all": {"hosts": {"one": variables}}}).ok()
    assert run.task("raw")["stdout"].split() == [bastion.user]
    assert (work / "copy").read_text() == "text"
    assert (bastion.connections(), bastion.logins()) == (1, 1)
    assert run.task("do")["master"]["host"] == "127.0.0.1"


class TestConfiguration:
    """Where the configuration has a ControlPath for the host, whoever reads it shares."""

    def test_a_plain_ssh_shares_it(self, tasks: Tasks, bastion: Sshd, work: Path) -> None:
        bastion.ssh_config(options={"ControlPath": f"{work}/c/%r@%h:%p"})
        rows = tasks.rows()
        assert rows.changed == CHANGES
        assert rows.do["control_path"] == f"{work}/c/{bastion.user}@127.0.0.1:{bastion.port}"
        assert Ssh(Path(tasks.params["ssh_config"])).run(command="true").rc == 0
        assert bastion.logins() == 1

    def test_a_parameter_wins_over_it(self, tasks: Tasks, bastion: Sshd, path: Path) -> None:
        bastion.ssh_config(options={"ControlPath": "/nowhere/%C"})
        assert tasks.one(control_path=str(path))["control_path"] == str(path)

    def test_none_is_none(self, tasks: Tasks, bastion: Sshd, work: Path) -> None:
        bastion.ssh_config(options={"ControlPath": "none"})
        path = Path(tasks.one(check=True)["control_path"])
        assert path.parent == work / "h" / ".ansible" / "mux"

    def test_tokens_are_those_of_openssh(self, tasks: Tasks, bastion: Sshd, work: Path) -> None:
        home = pwd.getpwuid(os.getuid()).pw_dir  # not HOME, to ssh
        spelled = {
            f"{work}/%%-%h-%n-%p-%r": f"{work}/%-127.0.0.1-bastion-{bastion.port}-{bastion.user}",
            f"{work}/${{WORD}}/s": f"{work}/word/s",
            f"{work}/a/../b//s": f"{work}/b/s",
            "~/s": f"{home}/s",
            "~nobody-at-all/s": None,
            "${UNKNOWN_WORD}/s": None,
            f"{work}/%Q": None,
        }
        several = [
            tasks.task(path, check=True, control_path=path) | {"ignore_errors": True}
            for path in spelled
        ]
        run = tasks.play(*several, env={"WORD": "word"}).ok()
        for path, meant in spelled.items():
            result = run.task(path)
            if meant is None:
                assert result["reason"] == "invalid", path
            else:
                assert result["control_path"] == meant


class TestJump:
    @pytest.fixture
    def hops(self, make_sshd: MakeSshd) -> list[Sshd]:
        return [make_sshd(name="one"), make_sshd(name="two")]

    @pytest.fixture
    def tasks(self, tasks: Tasks, hops: list[Sshd]) -> Tasks:
        """Tasks for a bastion behind hops, which the same configuration knows."""
        config = Path(tasks.params["ssh_config"])
        more = [hop.ssh_config().read_text() for hop in hops]
        config.write_text("".join([config.read_text(), *more]))
        return tasks

    @pytest.mark.parametrize("persist", ["yes", "10m"])
    def test_two_hops_are_one_login_each(
        self, tasks: Tasks, bastion: Sshd, hops: list[Sshd], work: Path, persist: str
    ) -> None:
        rows = tasks.rows(jump=["one", "two"], persist=persist)
        assert rows.changed == CHANGES
        assert rows.do["master"]["jump"] == ["one", "two"]
        share(work, ["ssh", "-F", "none", *rows.do["ssh_args"]], "any")
        everyone = [bastion, *hops]
        assert [server.logins() for server in everyone] == [1, 1, 1]
        tasks.one(jump=["one", "two"], state="absent")
        assert not any(server.processes() for server in hops)

    def test_each_way_is_a_master_of_its_own(
        self, tasks: Tasks, bastion: Sshd, hops: list[Sshd]
    ) -> None:
        """One address behind two bastions may be two hosts (ansible#57400)."""
        ways: list[Any] = [[], ["one"], ["two"], ["one", "two"], ["two", "one"]]
        run = tasks.play(*(tasks.task(str(way), jump=way) for way in ways)).ok()
        paths = {run.task(str(way))["control_path"] for way in ways}
        assert len(paths) == len(ways) == bastion.logins()
        assert [server.logins() for server in hops] == [3, 3]

    def test_a_hop_of_the_configuration_counts(
        self, tasks: Tasks, bastion: Sshd, hops: list[Sshd]
    ) -> None:
        direct = tasks.one()["master"]
        config = Path(tasks.params["ssh_config"])
        text = config.read_text()
        config.write_text(text.replace("Host bastion\n", "Host bastion\n    ProxyJump one\n"))
        behind = tasks.one()["master"]
        assert behind["jump"] == ["one"]
        assert behind["control_path"] != direct["control_path"]
        assert [server.logins() for server in hops] == [1, 0]

    def test_why_a_hop_failed_is_told(self, tasks: Tasks, hops: list[Sshd]) -> None:
        hops[1].authorized_keys.write_text("")
        for persist in ("yes", "no"):
            failed = tasks.fails(jump=["one", "two"], persist=persist)
            assert failed["reason"] == "auth_failed"
            assert f"{hops[1].user}@127.0.0.1: Permission denied (publickey)" in failed.msg
