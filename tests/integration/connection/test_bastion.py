# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts behind one bastion: one login, no process for each, the right host, the real reason."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from ansible_collections.bastion.mux.plugins.connection import ssh
from tests.support.client import clients
from tests.support.leaks import LeakWatch
from tests.support.playbook import run_playbook
from tests.support.services import free_port
from tests.support.sshd import Sshd, make_key
from tests.support.waiting import wait_for

OURS = {"ansible_connection": "bastion.mux.ssh"}
UNREACHABLE = "destination_unreachable"
ADDRESS = {"left": "127.0.0.2", "right": "127.0.0.3"}
ADDRESSES = [f"127.0.0.{number}" for number in range(2, 8)]


def play(hosts: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"hosts": hosts, "gather_facts": False, "tasks": list(tasks), **more}


def processes_of_ours(watch: LeakWatch) -> list[str]:
    """What runs now of ssh and of Python, by its command line."""
    found = []
    for one in watch.processes():
        # Those that end meanwhile are not of interest.
        with contextlib.suppress(psutil.NoSuchProcess):
            if one.name() in ("ssh", "python", "python3"):
                found.append(" ".join(one.cmdline()))
    return sorted(found)


def test_one_login(
    work: Path, watch: LeakWatch, make_sshd: Callable[..., Sshd], bastion: Sshd
) -> None:
    targets = make_sshd(name="target", addresses=ADDRESSES)
    config = bastion.ssh_config(alias="bastion 127.0.0.1")
    # Three spellings of one bastion: they share its master.
    spellings = ["jump", f"{bastion.user}@127.0.0.1:{bastion.port}", "bastion"]
    inventory = {
        "targets": {
            "hosts": {
                f"t{number}": {
                    **targets.variables(address),
                    "ansible_bastion": spellings[number % 3],
                    "ansible_ssh_common_args": f"-F {config} -o HostKeyAlias=t"
                    f" -o UserKnownHostsFile={targets.known_hosts}"
                    f" -o IdentityFile={targets.identity_file}",
                }
                for number, address in enumerate(ADDRESSES)
            },
            "vars": OURS,
        },
        "bastions": {"hosts": {"jump": bastion.variables()}},
    }
    targets.known_hosts.write_text("t " + Path(f"{targets.host_key}.pub").read_text())
    where = {"name": "where", "raw": "echo $SSH_CONNECTION"}
    plays = [
        play("targets", where),
        play("bastions", {"name": "master", "bastion.mux.ssh_master": {}}),
    ]
    run = run_playbook(work, plays, inventory=inventory, forks=8).ok()
    for number, address in enumerate(ADDRESSES):
        assert run.task("where", f"t{number}")["stdout"].split()[2] == address
    assert bastion.logins() == 1
    # The tasks of the collection find the same master, as it should be.
    assert not run.task("master", "jump").changed
    assert run.task("master", "jump")["master"]["managed"]
    # N hosts, N masters of theirs, and the bastion's: no proxy stays.
    wait_for(lambda: len(processes_of_ours(watch)) == len(ADDRESSES) + 1, "all others are gone")
    assert len(clients(bastion.port)) == 1
    assert not list((work / "h/.ansible/mux").glob(".*"))
    again = run_playbook(work, play("targets", where), inventory=inventory, forks=8).ok()
    assert bastion.logins() == 1
    assert targets.logins() == len(ADDRESSES)
    assert again.task("where", "t0")["stdout"] == run.task("where", "t0")["stdout"]


def test_the_right_host(work: Path, make_sshd: Callable[..., Sshd]) -> None:
    if subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("only root can show two servers different files /etc/hosts")
    # The same address for both: what `localhost` is depends on the bastion that is asked.
    left, right = (Sshd(work, name=name, addresses=[address]) for name, address in ADDRESS.items())
    hosts = {}
    with left:
        right.port = left.port
        for target in (left, right):
            seen = work / f"hosts_{target.name}"
            seen.write_text(f"{target.addresses[0]} localhost\n")
            mount = f'mount --bind {seen} /etc/hosts && exec "$@"'
            bastion = make_sshd(
                name=f"{target.name}_bastion",
                prefix=["unshare", "--mount", "sh", "-c", mount, "sh"],
            )
            there = {**target.variables("localhost"), **OURS}
            config = bastion.ssh_config()
            jump = there["ansible_ssh_common_args"].replace(
                "-F none", f"-F {config} -J {bastion.name}"
            )
            plain = {**there, "ansible_ssh_common_args": jump}
            hosts[f"builtin_{target.name}"] = {**plain, "ansible_connection": "ansible.builtin.ssh"}
            hosts[f"plain_{target.name}"] = plain
            hosts[f"ours_{target.name}"] = {**there, "ansible_bastion": bastion.name}
            hosts[bastion.name] = bastion.variables()
        who = {"name": "who", "raw": "echo $HOME"}
        with right:
            run = run_playbook(
                work, play("all:!*_bastion", who), inventory={"all": {"hosts": hosts}}, forks=1
            ).ok()
    answers = {one.host: Path(one["stdout"].strip()).name for one in run.tasks("who")}
    assert answers == {
        "builtin_left": "left",
        "builtin_right": "left",  # the wrong host: ansible#84148
        "plain_left": "left",
        "plain_right": "right",
        "ours_left": "left",
        "ours_right": "right",
    }


def test_reasons(work: Path, make_sshd: Callable[..., Sshd], bastion: Sshd) -> None:
    target = make_sshd(name="target")
    strict = make_sshd(name="strict", options={"PermitOpen": "127.0.0.1:1"})
    closed = free_port()
    # Under other names: what is logged in to is shared.
    other = make_sshd(name="other", addresses=["127.0.0.4", "127.0.0.5"])
    stranger = {
        **other.variables("127.0.0.4"),
        "ansible_ssh_private_key_file": str(make_key(work / "k")),
    }
    unknown = other.variables("127.0.0.5")
    unknown["ansible_ssh_common_args"] = "-F none -o UserKnownHostsFile=/dev/null"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        rows: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
            "refused": (
                {},
                {"ansible_port": closed},
                UNREACHABLE,
                "Connection refused",
            ),
            "no_name": (
                {},
                {"ansible_host": "no.invalid"},
                UNREACHABLE,
                "no.invalid port",
            ),
            "forbidden": (strict.variables(), {}, UNREACHABLE, "prohibited"),
            "silent": (
                {},
                {"ansible_port": silent.getsockname()[1], "ansible_timeout": 1},
                "timeout",
                "said nothing in time",
            ),
            "stranger": (stranger, {}, "auth_failed", "Permission denied"),
            "down": ({"ansible_port": closed}, {}, "unreachable", "Connection refused"),
            "key": (unknown, {}, "host_key_unknown", "Host key"),
            "nonsense": ({"ansible_port": 70000}, {}, "invalid", "65535"),
        }
        hosts: dict[str, Any] = {}
        for name, (at_bastion, at_target, _reason, _text) in rows.items():
            hosts[f"b_{name}"] = {**bastion.variables(), **at_bastion}
            hosts[name] = {
                **target.variables(),
                **OURS,
                "ansible_bastion": f"b_{name}",
                **at_target,
            }
        run = run_playbook(
            work,
            play("all:!b_*", {"name": "try", "raw": "true"}),
            inventory={"all": {"hosts": hosts}},
        )
    for name, (_bastion, _target, reason, text) in rows.items():
        result = run.task("try", name)
        assert result.event == "unreachable", result
        assert f"(reason: {reason})" in result.msg, result
        assert text in result.msg, result
    assert target.connections() == 0
    assert "Traceback" not in run.stdout + run.stderr, run


def test_the_documented_example(work: Path, make_sshd: Callable[..., Sshd]) -> None:
    groups = yaml.safe_load(ssh.EXAMPLES)
    servers = {name: make_sshd(name=name) for name in (*groups["bastions"]["hosts"], "third")}
    for name, variables in groups["bastions"]["hosts"].items():
        variables.update(servers[name].variables())
    hosts = {
        name: variables
        for group in ("web", "database", "backup")
        for name, variables in groups[group]["hosts"].items()
    }
    targets = make_sshd(name="target", addresses=ADDRESSES)
    for variables, address in zip(hosts.values(), ADDRESSES, strict=False):
        variables.update(targets.variables(address))
    third = servers["third"]
    where = f"[{third.host}]:{third.port}"
    backup = groups["backup"]
    backup["vars"]["ansible_bastion"] = backup["vars"]["ansible_bastion"].replace(
        "jump@[2001:db8::1]:2222", f"{third.user}@{where}"
    )
    # Your ssh configuration.
    config = third.ssh_config(alias=third.host)
    host = hosts["backup1"]
    host["ansible_ssh_common_args"] = host["ansible_ssh_common_args"].replace(
        "-F none", f"-F {config} -o IdentityFile={targets.identity_file}"
    )
    run = run_playbook(work, play("all", {"name": "do", "raw": "true"}), inventory=groups).ok()
    assert {one.host for one in run.tasks("do")} == {"bastion", "spare", *hosts}
    # Each was a host of its own, too.
    assert [servers[name].logins() for name in ("bastion", "spare", "third")] == [2, 1, 1]
    wait_for(lambda: not clients(third.port), "the one that is not to stay has gone")
