# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same tasks over ansible.builtin.ssh and over bastion.mux.ssh, and what both started."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.sshd import Sshd

BUILTIN = "builtin"
HOSTS: dict[str, dict[str, str]] = {
    BUILTIN: {"ansible_host": "127.0.0.1", "ansible_connection": "ansible.builtin.ssh"},
    "plain": {
        "ansible_host": "127.0.0.2",
        "ansible_connection": "bastion.mux.ssh",
    },
    "through": {
        "ansible_host": "127.0.0.3",
        "ansible_connection": "bastion.mux.ssh",
        "ansible_bastion": "bastion",
    },
}
"""Three addresses of one sshd: builtin, ours without a bastion, ours with one."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A task, and how it has to end on each host.

    `event` is as in TaskResult. `expected` are values of the result; of `msg` a part is enough.
    `ran` are the programs that the plugin started, `times` is how many, where that is certain.
    """

    name: str
    module: Mapping[str, Any]
    variables: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    event: str = "ok"
    expected: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ran: str = "ssh"
    times: int | None = None

    @property
    def task(self) -> dict[str, Any]:
        how = {"ignore_unreachable": True, "ignore_errors": True}
        return {"name": self.name, "vars": dict(self.variables), **how, **self.module}


class Trio:
    """Runs rows on the three hosts.

    `variables` are those of all three, known to the rows as well.
    """

    def __init__(self, work: Path, sshd: Sshd, bastion: Sshd) -> None:
        self.work = work
        self.sshd = sshd
        self.bastion = bastion
        common = {"UserKnownHostsFile": str(sshd.known_hosts), **sshd.ssh_options()}
        self.variables: dict[str, Any] = {
            "work": str(work),
            # Its home is this user's own.
            "ansible_remote_tmp": str(work / "r"),
            "ansible_port": sshd.port,
            "ansible_user": sshd.user,
            "ansible_ssh_private_key_file": str(sshd.identity_file),
            # What root's own configuration says must not matter.
            "ansible_ssh_common_args": " ".join(
                ["-F none", *(f"-o {key}={value}" for key, value in common.items())]
            ),
        }

    def run(self, rows: Sequence[Row | Mapping[str, Any]], **how: Any) -> PlaybookResult:
        """Run rows, or other tasks between them, and judge how the rows end.

        `how` is for run_playbook.
        """
        inventory = {
            "trio": {"hosts": HOSTS, "vars": self.variables},
            "bastions": {
                "hosts": {
                    "bastion": {
                        "ansible_host": self.bastion.host,
                        "ansible_port": self.bastion.port,
                        "ansible_user": self.bastion.user,
                        "ansible_ssh_private_key_file": str(self.bastion.identity_file),
                        "ansible_ssh_common_args": "-F none"
                        f" -o UserKnownHostsFile={self.bastion.known_hosts}",
                    }
                }
            },
        }
        tasks = [one.task if isinstance(one, Row) else one for one in rows]
        # SSH_ASKPASS of builtin is the command `ansible`.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        run = run_playbook(
            self.work,
            {"hosts": "trio", "gather_facts": False, "tasks": tasks},
            inventory=inventory,
            verbosity=3,
            env={"PATH": path, **how.pop("env", {})},
            **how,
        )
        started = commands(run)
        wrong = [
            f"{row.name!r} on {host}: {what}"
            for row in rows
            if isinstance(row, Row)
            for host in HOSTS
            for what in self._judged(row, host, run, started[row.name])
        ]
        assert not wrong, "\n".join(wrong)
        return run

    def _judged(
        self, row: Row, host: str, run: PlaybookResult, started: Mapping[str, list[list[str]]]
    ) -> list[str]:
        """All that is wrong."""
        result = run.task(row.name, host)
        wrong = []
        if result.event != row.event:
            wrong.append(f"{result.event}: {result.result}")
        for key, value in row.expected.items():
            there = result.result.get(key)
            if there != value and not (key == "msg" and str(value) in str(there)):
                wrong.append(f"{key} is {there!r}")
        ran = {Path(command[0]).name for command in started[host]}
        if ran != set(row.ran.split()):
            wrong.append(f"it ran {ran}")
        if row.times is not None and len(started[host]) != row.times:
            wrong.append(f"it ran {len(started[host])} programs")
        for ours, theirs in zip(started[host], started[BUILTIN], strict=False):
            if _same(ours) != _same(theirs):
                words = set(_same(ours)) ^ set(_same(theirs))
                wrong.append(f"{ours[0]} differs from builtin's in {words or 'the order'}")
        if len(started[host]) != len(started[BUILTIN]):
            wrong.append(f"it ran {len(started[host])} programs, not {len(started[BUILTIN])}")
        return wrong


def commands(run: PlaybookResult) -> dict[str, dict[str, list[list[str]]]]:
    """What the plugins started, by task and by host."""
    found: dict[str, dict[str, list[list[str]]]] = defaultdict(lambda: defaultdict(list))
    names = {variables["ansible_host"]: host for host, variables in HOSTS.items()}
    task = ""
    for line in run.stdout.splitlines():
        if heading := re.match(r"TASK \[(.*)\] \*", line):
            task = heading[1]
        elif command := re.match(r"<(\S+)> SSH: EXEC (.*)", line):
            found[task][names[command[1]]].append(shlex.split(command[2]))
    return found


def _same(words: list[str]) -> list[str]:
    """A command line without our way through the bastion, and without what has to differ."""
    kept: list[str] = []
    for word in words:
        if word.startswith(("ProxyCommand=", "ProxyUseFdpass=")):
            assert kept.pop() == "-o"
        else:
            kept.append(word)
    text = "\0".join(kept)
    for pattern, name in _DIFFERENT.items():
        text = re.sub(pattern, name, text)
    return text.split("\0")


_DIFFERENT = {
    # That the plugin chose: one that the user wrote has no quotes.
    r'ControlPath="[^"]*"': "ControlPath",
    "|".join(re.escape(host["ansible_host"]) for host in HOSTS.values()): "ADDRESS",
    rf"\b({'|'.join(HOSTS)})\.": "HOST.",
    r"ansible-tmp-[0-9.]+-\d+-\d+": "REMOTE",
    r"ansible-local-[^/]*/tmp[^/]*": "LOCAL",
    r"BECOME-SUCCESS-\w+": "SUCCESS",
}
