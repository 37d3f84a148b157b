# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Host blocks in the ssh configurations of many users: written, and found unchanged."""

from __future__ import annotations

import math
import os
import pwd
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmark import peers, plays
from tests.benchmark.measure import Chart, Curve, Finding, Results, Samples, in_turn, times
from tests.support.accounts import Account, throwaway_accounts
from tests.support.workdir import short_dir

PEER = "a loop of `community.general.ssh_config`"

#: So many users, and host blocks of each.
Size = tuple[int, int]

#: What users have in their configuration before.
_OWN = """\
Host github.com
    User git
    IdentityFile ~/.ssh/id_work
Host *.example.org
    ForwardAgent no
    ServerAliveInterval 30
"""


def measure(*, quick: bool) -> Results:
    if os.getuid() != 0 or shutil.which("newusers") is None:
        why = "only root can make accounts for it, and with `newusers`"
        return Results(missing=[f"`ssh_client_config` for many users: {why}."])
    whole, sample, rounds = ((2, 3), (1, 2), 1) if quick else ((200, 20), (2, 5), 3)
    by_users = [(number, whole[1]) for number in ((1, 2) if quick else (10, 50, 200))]
    by_blocks = [(min(50, whole[0]), number) for number in ((1, 3) if quick else (1, 5, 20, 50))]
    # More than that would only be more to wait for.
    theirs_by_blocks = [(1, blocks) for _users, blocks in by_blocks if blocks <= whole[1]]
    version = peers.community_general(bring=not quick)
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    with short_dir() as work, throwaway_accounts(work, whole[0]) as accounts:
        crowd = _Crowd(accounts)
        sizes = list(dict.fromkeys([whole, *by_users, *by_blocks]))
        subjects = {"ours": lambda: _note(crowd.ours(sizes), ours)}
        if version:
            subjects["theirs"] = lambda: _note(crowd.theirs([sample]), theirs)
        in_turn(rounds, subjects)
        if version:
            _note(crowd.theirs(theirs_by_blocks), theirs)
    missing = []
    if not version:
        why = "the collection could not be had, or was not asked for (`--quick`)"
        missing.append(f"The peer of `ssh_client_config`, {PEER}: {why}.")
    return Results(
        [
            finding
            for run, what in (("first", "written"), ("second", "found unchanged"))
            for finding in _findings(run, what, whole, sample, ours, theirs, version)
        ],
        [
            Chart(
                "client-users",
                "Cost of each user's configuration",
                "users of the task",
                _curves("", ours, by_users, axis=0),
                "The time of a task of `ssh_client_config`, divided by its users, each of whom gets"
                f" {whole[1]} host blocks.",
            ),
            Chart(
                "client-blocks",
                "Cost of each host block in a configuration",
                "host blocks of each user",
                [
                    *_curves("", ours, by_blocks, axis=1),
                    *(_curves("loop, ", theirs, theirs_by_blocks, axis=1) if version else []),
                ],
                "The time of a task of `ssh_client_config`, divided by all the host blocks of its"
                f" {by_blocks[0][0]} users."
                + (f" The loop is {PEER}, for one user." if version else ""),
            ),
        ],
        missing,
    )


def _findings(
    run: str,
    what: str,
    whole: Size,
    sample: Size,
    ours: Mapping[str, list[float]],
    theirs: Mapping[str, list[float]],
    version: str | None,
) -> list[Finding]:
    users, blocks = whole
    title = f"{blocks} host blocks for {users} users {what}"
    task = Samples("`ssh_client_config`", ours[_name(run, whole)])
    ping = Samples("`ansible.builtin.ping`", ours["ping"])
    findings = [
        Finding(
            f"client-{run}",
            f"{title} by `ssh_client_config`, beyond a `ping`",
            task.median - ping.median,
            [task, ping],
            "The whole task with `verify: effective`, less one of `ansible.builtin.ping`, the least"
            " that a module costs, in the same play. Each user has a configuration already, which"
            " stays below the block.",
            most=2,
            unit="s",
        )
    ]
    if version:
        few, scale = sample[0] * sample[1], users * blocks / (sample[0] * sample[1])
        scaled = [seconds * scale for seconds in theirs[_name(run, sample)]]
        loop = Samples(f"{PEER} (scaled up from {few} of {users * blocks} items)", scaled)
        how = (
            f"Whole tasks. The loop was measured with {sample[1]} host blocks for each of"
            f" {sample[0]} users, and scaled up. It is the module of community.general {version};"
            " it does not ask ssh about anything."
        )
        compared = f"{title}: {PEER} compared with one task"
        findings.append(
            Finding(f"client-{run}-loop", compared, times(loop, task), [task, loop], how, least=300)
        )
    return findings


class _Crowd:
    """Users, and the tasks for some of them: `ping`, and for each size a first and a second."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = accounts
        self._work = accounts[0].home.parent
        for account in accounts:
            _give(account)

    def ours(self, sizes: Sequence[Size]) -> plays.Timed:
        """Leaves the users' configurations as they were."""
        tasks = []
        for users, blocks in sizes:
            params = {
                "users": [account.name for account in self._accounts[:users]],
                "hosts": [_entry(number) for number in range(blocks)],
            }
            task = {"bastion.mux.ssh_client_config": params}
            tasks += _twice((users, blocks), task)
            tasks.append({"bastion.mux.ssh_client_config": {**params, "state": "absent"}})
        run = self._run(tasks)
        assert run.changed == 2 * len(sizes), f"{run.changed} changes"
        assert all(_config(account).read_text() == _OWN for account in self._accounts)
        return run

    def theirs(self, sizes: Sequence[Size]) -> plays.Timed:
        """The same by the peer, for each size with other users."""
        tasks = []
        accounts = iter(self._accounts)
        for users, blocks in sizes:
            names = [next(accounts).name for _number in range(users)]
            entries = [_entry(number) for number in range(blocks)]
            task = {
                "community.general.ssh_config": {
                    "user": "{{ item.0 }}",
                    "host": "{{ item.1.host }}",
                    "hostname": "{{ item.1.options.HostName }}",
                    "port": "{{ item.1.options.Port }}",
                    "remote_user": "{{ item.1.options.User }}",
                    "forward_agent": "{{ item.1.options.ForwardAgent }}",
                    "controlmaster": "{{ item.1.options.ControlMaster }}",
                    "controlpath": "{{ item.1.options.ControlPath }}",
                    "controlpersist": "{{ item.1.options.ControlPersist }}",
                    "other_options": {
                        "serveraliveinterval": "{{ item.1.options.ServerAliveInterval }}"
                    },
                },
                "loop": [[name, entry] for name in names for entry in entries],
            }
            tasks += _twice((users, blocks), task)
        run = self._run(tasks)
        assert run.changed == len(sizes), f"{run.changed} changes"
        for account in self._accounts:
            _give(account)
        return run

    def _run(self, tasks: Sequence[Mapping[str, Any]]) -> plays.Timed:
        ping: dict[str, Any] = {"ansible.builtin.ping": {}}
        pings = [{"name": name, **ping} for name in ("warm-up", "ping")]
        book = [plays.play(*pings, *tasks, hosts="localhost")]
        return plays.run(self._work, book, collections=[peers.PLACE])


def _name(run: str, size: Size) -> str:
    return f"{run}, {size[0]} users, {size[1]} host blocks"


def _twice(size: Size, task: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": _name(run, size), **task} for run in ("first", "second")]


def _entry(number: int) -> dict[str, Any]:
    """A host block: for ssh_client_config as it is."""
    return {
        "host": f"bastion{number:02}",
        "options": {
            "HostName": f"10.0.0.{number + 1}",
            "Port": "2222",
            "User": "jump",
            "ForwardAgent": True,
            "ControlMaster": "auto",
            "ControlPath": "~/.ssh/mux-%C",
            "ControlPersist": "10m",
            "ServerAliveInterval": "15",
        },
    }


def _config(account: Account) -> Path:
    return account.home / ".ssh" / "config"


def _give(account: Account) -> None:
    """Have a user's configuration be as at first."""
    person = pwd.getpwnam(account.name)
    config = _config(account)
    config.parent.mkdir(mode=0o700, exist_ok=True)
    config.write_text(_OWN)
    config.chmod(0o600)
    for path in (config.parent, config):
        os.chown(path, person.pw_uid, person.pw_gid)


def _note(run: plays.Timed, samples: dict[str, list[float]]) -> float:
    """Keep the times of all tasks; the time of the run."""
    for name, seconds in run.tasks.items():
        samples.setdefault(name, []).extend(seconds)
    return run.seconds


def _curves(
    prefix: str, samples: Mapping[str, list[float]], sizes: Sequence[Size], *, axis: int
) -> list[Curve]:
    """Milliseconds of both runs for each user (axis 0) or for each host block (axis 1)."""

    def point(run: str, size: Size) -> tuple[int, float]:
        seconds = statistics.median(samples[_name(run, size)])
        return size[axis], 1000 * seconds / math.prod(size[: axis + 1])

    runs = ("first", "second")
    return [Curve(f"{prefix}{run} run", [point(run, size) for size in sizes]) for run in runs]
