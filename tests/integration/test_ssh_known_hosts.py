# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_known_hosts through ansible-playbook: real servers behind one real bastion."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive
from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.services import free_port
from tests.support.sshd import Sshd, public_key
from tests.support.waiting import wait_for

MODULE = "bastion.mux.ssh_known_hosts"
ALL_TYPES = ("ed25519", "ecdsa", "rsa")

Make = Callable[..., Sshd]


def host_key(directory: Path, type_: str) -> Path:
    """A new key; small for RSA, whose making takes time."""
    path = directory / f"host_{type_}"
    command = ["ssh-keygen", "-q", "-t", type_, "-N", "", "-C", "", "-f", str(path)]
    if type_ == "rsa":
        command += ["-b", "2048"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def fingerprint(path: Path) -> str:
    said = subprocess.run(
        ["ssh-keygen", "-l", "-f", f"{path}.pub"], capture_output=True, text=True, check=True
    )
    return said.stdout.split()[1]


class Target:
    """A server behind the bastion, and its keys."""

    def __init__(self, make_sshd: Make, work: Path, name: str, *types: str, **options: Any) -> None:
        keys = work / f"{name}-keys"
        keys.mkdir()
        self.keys = {type_: host_key(keys, type_) for type_ in types}
        settings = {"HostKey": [str(path) for path in self.keys.values()]}
        self.sshd = make_sshd(
            name=name, options={**settings, **options.pop("options", {})}, **options
        )
        self.name = f"127.0.0.1:{self.sshd.port}"
        self.entry = f"[127.0.0.1]:{self.sshd.port}"

    def lines(self) -> list[str]:
        return [f"{self.entry} {public_key(path)}" for path in self.keys.values()]

    def renew(self, type_: str) -> tuple[str, str]:
        """Another key in the place of one. Returns the fingerprints of both."""
        path = self.keys[type_]
        before = fingerprint(path)
        path.unlink()
        host_key(path.parent, type_)
        self.sshd.restart()
        return before, fingerprint(path)

    def accepted_by_ssh(self, known_hosts: Path) -> bool:
        config = self.sshd.ssh_config(
            options={
                "UserKnownHostsFile": str(known_hosts),
                "StrictHostKeyChecking": "yes",
                "UpdateHostKeys": "no",
            }
        )
        return Ssh(config, self.sshd.name).run(command="true").rc == 0


@pytest.fixture
def web(make_sshd: Make, work: Path) -> Target:
    return Target(make_sshd, work, "web", *ALL_TYPES)


@pytest.fixture
def db(make_sshd: Make, work: Path) -> Target:
    return Target(make_sshd, work, "db", "ed25519")


@pytest.fixture
def master(bastion: Sshd, work: Path) -> Iterator[Path]:
    """The control socket of a master that runs."""
    path = work / "m"
    ssh = Ssh(bastion.ssh_config(), bastion.name)
    pid = ssh.open(path)
    yield path
    ssh.control(path, "exit")
    wait_for(lambda: not alive(pid), "the master's end")


def play(*tasks: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    named = [
        {"name": name, MODULE: arguments, **more}
        for task in tasks
        for name, (arguments, more) in task.items()
    ]
    return {"hosts": "localhost", "gather_facts": False, "tasks": named, **keywords}


def task(name: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {name: (arguments, more)}


def fingerprints_of(result: PlaybookResult, name: str) -> dict[str, list[tuple[str, str]]]:
    return {
        f"{host['host']}:{host['port']}": [
            (key["fingerprint"], key["action"]) for key in host["keys"]
        ]
        for host in result.task(name)["hosts"]
    }


def test_hosts_behind_the_bastion_become_known(
    bastion: Sshd, web: Target, db: Target, master: Path, work: Path
) -> None:
    file = work / "ssh" / "known_hosts"
    wanted = {
        "through": {"control_path": str(master)},
        "hosts": [web.name, db.name, web.name],
        "path": str(file),
    }
    checked = run_playbook(work, play(task("check", wanted)), check=True, diff=True).ok()
    assert checked.task("check").changed
    assert not file.parent.exists()
    for line in (*web.lines(), *db.lines()):
        assert f"+{line}" in checked.stdout

    ran = run_playbook(
        work,
        play(
            task("run", wanted),
            task("again", wanted),
            task("check again", wanted, check_mode=True),
        ),
    ).ok()
    assert [one.changed for one in ran.results] == [True, False, False]
    assert file.read_text().splitlines() == web.lines() + db.lines()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["known_hosts"]
    assert ran.task("run")["path"] == str(file)
    assert fingerprints_of(ran, "run") == {
        target.name: [(fingerprint(path), "added") for path in target.keys.values()]
        for target in (web, db)
    }
    assert fingerprints_of(ran, "again") == {
        target.name: [(fingerprint(path), "unchanged") for path in target.keys.values()]
        for target in (web, db)
    }
    assert web.accepted_by_ssh(file)
    assert db.accepted_by_ssh(file)
    # Four runs, and ours was the only login.
    assert bastion.logins() == 1
    assert web.sshd.logins() == 1  # by ssh, just now

    gone = {**wanted, "state": "absent", "hosts": [web.name]}
    ran = run_playbook(
        work,
        play(task("check", gone, check_mode=True), task("absent", gone), task("again", gone)),
    ).ok()
    assert [one.changed for one in ran.results] == [True, True, False]
    assert file.read_text().splitlines() == db.lines()
    assert fingerprints_of(ran, "absent") == {
        web.name: [(fingerprint(path), "removed") for path in web.keys.values()]
    }


def test_other_peoples_lines_stay(web: Target, master: Path, work: Path) -> None:
    real = work / "real"
    link = work / "known_hosts"
    link.symlink_to(real)
    other = public_key(host_key(work, "ed25519"))
    foreign = (
        b"# caf\xe9\r\n"
        + f"*.example,!bad.example {other} note\n".encode()
        + f"@cert-authority * {other}\n".encode()
        + b"\n   \nbroken line\n"
        + f"friend,{web.entry} {public_key(web.keys['ed25519'])} theirs\r\n".encode()
        + b"# no newline"
    )
    real.write_bytes(foreign)
    real.chmod(0o640)
    if os.getuid() == 0:
        os.chown(real, 12345, 12346)
    inode = real.stat().st_ino
    wanted = {
        "through": {"control_path": str(master)},
        "hosts": [web.name],
        "path": str(link),
        "key_types": ["rsa", "ed25519"],
    }
    run_playbook(work, play(task("run", wanted))).ok()
    added = f"\r\n{web.entry} {public_key(web.keys['rsa'])}\r\n".encode()
    assert real.read_bytes() == foreign + added
    assert link.is_symlink()
    status = real.stat()
    assert status.st_ino != inode
    assert status.st_mode & 0o777 == 0o640
    if os.getuid() == 0:
        assert (status.st_uid, status.st_gid) == (12345, 12346)
    run_playbook(work, play(task("absent", {**wanted, "state": "absent"}))).ok()
    assert real.read_bytes() == foreign.replace(f"friend,{web.entry}".encode(), b"friend") + b"\r\n"


def test_a_changed_key_is_refused_unless_replaced(
    web: Target, db: Target, master: Path, work: Path
) -> None:
    file = work / "known_hosts"
    wanted = {
        "through": {"control_path": str(master)},
        "hosts": [web.name, db.name],
        "path": str(file),
    }
    run_playbook(work, play(task("run", {**wanted, "hosts": [web.name]}))).ok()
    content = file.read_bytes()
    before, after = web.renew("ed25519")
    ran = run_playbook(work, play(task("changed", wanted)))
    failed = ran.task("changed")
    assert failed.failed
    assert failed["reason"] == "host_key_changed"
    assert web.name in failed.msg
    assert f"ssh-ed25519 {before}" in failed.msg
    assert f"ssh-ed25519 {after}" in failed.msg
    assert file.read_bytes() == content
    assert fingerprints_of(ran, "changed") == {
        web.name: [
            (after, "refused"),
            *((fingerprint(web.keys[type_]), "unchanged") for type_ in ("ecdsa", "rsa")),
        ],
        db.name: [(fingerprint(db.keys["ed25519"]), "added")],
    }
    assert failed["hosts"][0]["keys"][0]["previous"] == [before]
    assert "Traceback" not in ran.stdout + ran.stderr

    replace = {**wanted, "replace": True}
    ran = run_playbook(
        work, play(task("replace", replace), task("again", replace), task("without", wanted))
    ).ok()
    assert [one.changed for one in ran.results] == [True, False, False]
    assert file.read_text().splitlines() == web.lines() + db.lines()
    assert fingerprints_of(ran, "replace")[web.name][0] == (after, "replaced")
    assert web.accepted_by_ssh(file)


def test_a_known_host_cannot_come_with_a_new_type_alone(
    make_sshd: Make, web: Target, master: Path, work: Path
) -> None:
    file = work / "known_hosts"
    file.write_text(web.lines()[0] + "\n")
    wanted = {
        "through": {"control_path": str(master)},
        "hosts": [web.name],
        "path": str(file),
        "key_types": ["rsa"],
    }
    ran = run_playbook(work, play(task("rsa", wanted)))
    assert ran.task("rsa")["reason"] == "host_key_changed"
    assert file.read_text() == web.lines()[0] + "\n"


def test_pinned_keys(web: Target, db: Target, master: Path, work: Path) -> None:
    file = work / "known_hosts"
    right, other = fingerprint(db.keys["ed25519"]), fingerprint(web.keys["ed25519"])
    wanted = {
        "through": {"control_path": str(master)},
        "hosts": [db.name],
        "path": str(file),
    }
    ran = run_playbook(
        work,
        play(
            task("wrong", {**wanted, "fingerprints": [other]}, ignore_errors=True),
            task("forgotten", {**wanted, "fingerprints": {web.name: other}}, ignore_errors=True),
            task(
                "md5",
                {**wanted, "fingerprints": ["MD5:" + ":".join(["00"] * 16)]},
                ignore_errors=True,
            ),
            task("list", {**wanted, "fingerprints": [right, other]}),
            task("dict", {**wanted, "fingerprints": {db.name: [right], web.name: [other]}}),
            task(
                "several hosts",
                {
                    **wanted,
                    "hosts": [db.name, web.name],
                    "fingerprints": {db.name: right, web.name: other},
                    "key_types": ["ed25519"],
                },
            ),
        ),
    ).ok()
    assert ran.task("wrong")["reason"] == "host_key_unknown"
    assert right in ran.task("wrong").msg
    assert ran.task("forgotten")["reason"] == "host_key_unknown"
    assert db.name in ran.task("forgotten").msg
    assert ran.task("md5")["reason"] == "invalid"
    assert [ran.task(name).changed for name in ("list", "dict", "several hosts")] == [
        True,
        False,
        True,
    ]
    assert file.read_text().splitlines() == [*db.lines(), web.lines()[0]]


def test_hashed_names_are_read_by_ssh(web: Target, db: Target, master: Path, work: Path) -> None:
    file = work / "known_hosts"
    wanted = {
        "through": {"control_path": str(master)},
        "hosts": [web.name, db.name],
        "path": str(file),
        "hash": True,
    }
    ran = run_playbook(work, play(task("run", wanted), task("again", wanted))).ok()
    assert [one.changed for one in ran.results] == [True, False]
    names = [line.split()[0] for line in file.read_text().splitlines()]
    assert len(set(names)) == 4
    assert all(name.startswith("|1|") for name in names)
    assert "127.0.0.1" not in file.read_text()
    found = subprocess.run(
        ["ssh-keygen", "-F", web.entry, "-f", str(file)], capture_output=True, text=True, check=True
    )
    assert [line.split(None, 1)[1] for line in found.stdout.splitlines() if line[0] != "#"] == [
        public_key(path) for path in web.keys.values()
    ]
    assert web.accepted_by_ssh(file)
    # And the other way round: what ssh-keygen hashed is known, and goes.
    file.write_text("\n".join(web.lines()) + "\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(file)], check=True, capture_output=True)
    assert "127.0.0.1" not in file.read_text()
    ran = run_playbook(
        work,
        play(
            task("known", {**wanted, "hosts": [web.name]}),
            task("absent", {**wanted, "state": "absent"}),
        ),
    ).ok()
    assert [one.changed for one in ran.results] == [False, True]
    assert file.read_text() == ""


def test_a_host_that_does_not_answer_is_named_and_stops_all(
    bastion: Sshd, web: Target, master: Path, work: Path
) -> None:
    file = work / "known_hosts"
    closed, silent = free_port(), Silence()
    with silent:
        hosts = [
            f"127.0.0.1:{closed}",
            web.name,
            f"127.0.0.1:{silent.port}",
            "no.such.host.invalid",
        ]
        wanted = {
            "through": {"control_path": str(master)},
            "hosts": hosts,
            "path": str(file),
            "timeout": 2,
        }
        ran = run_playbook(work, play(task("run", wanted)))
    failed = ran.task("run")
    assert failed["reason"] == "destination_unreachable"
    assert "3 of 4" in failed.msg
    by_name = {f"{host['host']}:{host['port']}": host for host in failed["hosts"]}
    for name in (hosts[0], hosts[2], "no.such.host.invalid:22"):
        assert by_name[name]["reason"] == "destination_unreachable"
        assert by_name[name]["msg"] in failed.msg
        assert by_name[name]["keys"] == []
    assert "within 2 seconds" in by_name[hosts[2]]["msg"]
    # What the master says of it.
    assert "refused" in by_name[hosts[0]]["msg"]
    assert [key["action"] for key in by_name[web.name]["keys"]] == ["added"] * 3
    assert not file.exists()
    assert "Traceback" not in ran.stdout + ran.stderr
    assert bastion.logins() == 1


class Silence:
    """A server that accepts and says nothing."""

    def __enter__(self) -> Silence:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()


def test_without_a_master_it_says_so(work: Path) -> None:
    ran = run_playbook(
        work,
        play(
            task(
                "run",
                {
                    "through": {"control_path": str(work / "none")},
                    "hosts": ["web"],
                    "path": str(work / "k"),
                },
            )
        ),
    )
    assert ran.task("run")["reason"] == "not_running"
    assert "ssh_master" in ran.task("run").msg


def test_the_ways_to_name_the_master(bastion: Sshd, db: Target, master: Path, work: Path) -> None:
    wanted = {"hosts": [db.name], "path": str(work / "k")}
    config = bastion.ssh_config(options={"ControlPath": str(master)})
    through = {"host": bastion.name, "ssh_config": str(config)}
    ran = run_playbook(
        work,
        [
            play(task("through", {**wanted, "through": through})),
            play(
                task("defaults of the group", wanted),
                module_defaults={"group/bastion.mux.mux": through},
            ),
            play(task("as a module", {**wanted, "through": through}, delegate_to="localhost")),
            play(
                task("of the inventory", {**wanted, "ssh_config": str(config)}),
                hosts="bastions",
            ),
            play(task("absent", {**wanted, "state": "absent"})),
            play(
                task("absent as a module", {**wanted, "state": "absent"}, delegate_to="localhost")
            ),
        ],
        inventory={
            "all": {"hosts": {"localhost": {"ansible_connection": "local"}}},
            "bastions": {"hosts": {"b1": {"ansible_host": bastion.name}}},
        },
    ).ok()
    assert [one.changed for one in ran.results] == [True, False, False, False, True, False]
    assert bastion.logins() == 1


def test_runs_at_once_share_the_file(web: Target, db: Target, master: Path, work: Path) -> None:
    file = work / "new" / "known_hosts"
    names = [web.name, db.name, f"localhost:{web.sshd.port}", f"127.0.0.1:{db.sshd.port}"]
    inventory = {
        "all": {"hosts": {f"h{i}": {"target": name} for i, name in enumerate(names)}},
    }
    wanted = {
        "through": {"control_path": str(master)},
        "hosts": ["{{ target }}"],
        "path": str(file),
    }
    run_playbook(work, play(task("run", wanted), hosts="all"), inventory=inventory, forks=4).ok()
    expected = [*web.lines(), *db.lines()]
    expected += [line.replace("[127.0.0.1]", "[localhost]") for line in web.lines()]
    assert sorted(file.read_text().splitlines()) == sorted(expected)


@pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 on loopback")
def test_a_hundred_hosts_at_once_cost_one_login(bastion: Sshd, make_sshd: Make, work: Path) -> None:
    fleet = []
    for number in range(10):
        # An sshd listens on 16 addresses at most.
        addresses = [f"127.0.{number}.{host}" for host in range(1, 11)]
        # Ten hosts in one are not what its MaxStartups was made for.
        options = {"MaxStartups": "1000"}
        name = f"fleet{number}"
        target = Target(make_sshd, work, name, "ed25519", addresses=addresses, options=options)
        fleet += [(f"{address}:{target.sshd.port}", target) for address in addresses]
    path, file = work / "m", work / "known_hosts"
    master = {
        "host": bastion.name,
        "ssh_config": str(bastion.ssh_config()),
        "control_path": str(path),
    }
    wanted = {
        "through": master,
        "hosts": [name for name, _target in fleet],
        "path": str(file),
    }
    opened = {"name": "open", "bastion.mux.ssh_master": master}
    closed = {"name": "close", "bastion.mux.ssh_master": {**master, "state": "absent"}}
    plays = play(task("run", wanted), task("again", wanted))
    plays["tasks"] = [opened, *plays["tasks"], closed]
    ran = run_playbook(work, plays).ok()
    assert [one.changed for one in ran.results] == [True, True, False, True]
    assert file.read_text().splitlines() == [
        f"[{name.replace(':', ']:')} {public_key(target.keys['ed25519'])}" for name, target in fleet
    ]
    assert bastion.logins() == 1
    assert bastion.connections() == 1
    servers = {target.sshd for _name, target in fleet}
    # One for each host, type and run, and nobody tried to log in.
    assert sum(server.connections() for server in servers) == 600
    assert sum(server.logins() for server in servers) == 0
