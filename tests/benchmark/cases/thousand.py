# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet behind one bastion, by each way to get there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.benchmark import peers, plays
from tests.benchmark.measure import Chart, Curve, Finding, Results, Samples, in_turn, timed
from tests.support.client import belonging
from tests.support.playbook import CHECKOUT
from tests.support.sshd import Sshd
from tests.support.targets import SERVER, Targets
from tests.support.waiting import wait_for
from tests.support.workdir import short_dir

FORKS = 50
ENVIRONMENT = {
    "ANSIBLE_PIPELINING": "1",
    # Long enough for the last host of the first task.
    "ANSIBLE_SSH_ARGS": "-C -o ControlMaster=auto -o ControlPersist=10m",
    # As users have it: Python keeps what it has compiled.
    "PYTHONDONTWRITEBYTECODE": "",
}
OURS = "ours"
_MITOGEN = "mitogen"

WAYS = {
    # Over ssh, as Ansible uses it.
    "jump": "builtin `ssh` with `ProxyJump`",
    "opened": "builtin `ssh`, the bastion's master opened first",
    OURS: "`bastion.mux.ssh`",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: seconds of its two tasks, and what it took."""

    cold: float
    warm: float
    processor: float
    processes: float
    resident: float
    logins: float
    failed: float


class Site:
    """A bastion with MaxStartups as it comes, `count` targets, and a home that is new each time."""

    def __init__(self, work: Path, bastion: Sshd, sshd: Sshd, count: int) -> None:
        self.work = work
        self.servers = [bastion, sshd]
        self.bastion = bastion
        self.targets = Targets(work, bastion, sshd, count)

    def open(self) -> None:
        """Open the master that ssh's own configuration names."""
        command = ["ssh", "-F", str(self.targets.config), "-fN", "bastion"]
        # The master keeps its standard error.
        nothing = subprocess.DEVNULL
        subprocess.run(command, check=True, timeout=30, stdin=nothing, stderr=nothing)

    def end(self) -> None:
        """End every ssh that is there."""
        for process in belonging(self.work):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def close(self) -> None:
        """End every ssh and wait for the servers' side of it; the next run finds an empty home."""

        def over() -> bool:
            # One that was about to become a master may be seen the next time.
            self.end()
            return not any(server.processes() for server in self.servers)

        # The logouts would run into what is measured next.
        wait_for(over, "the servers have no connection any more", 60)
        for path in self.work.iterdir():
            if path.is_socket():
                path.unlink()
        shutil.rmtree(self.work / "h")


@contextlib.contextmanager
def site(count: int) -> Iterator[Site]:
    with short_dir() as work, Sshd(work) as bastion, Sshd(work, **SERVER) as sshd:
        made = Site(work, bastion, sshd, count)
        try:
            yield made
        finally:
            made.end()


def measure(*, quick: bool) -> Results:
    sizes = {2: 1} if quick else {10: 3, 50: 2, 100: 1, 200: 1}
    ways = dict(WAYS)
    missing = []
    if not quick and (found := peers.mitogen(bring=True)):
        ways[_MITOGEN] = f"mitogen {found[0]} with `mitogen_via`"
    else:
        missing.append("mitogen beside `bastion.mux.ssh`: a full run brings it, from elsewhere.")
    taken: dict[str, dict[int, list[Run]]] = {way: {} for way in ways}
    for size, rounds in sizes.items():
        with site(size) as there:
            for way in ways:
                taken[way][size] = []
            subjects = {way: _subject(there, way, taken[way][size]) for way in ways}
            in_turn(rounds, subjects)
    return Results(_findings(taken, ways), _charts(taken, ways), missing)


def _subject(there: Site, way: str, runs: list[Run]) -> Callable[[], float]:
    def run() -> float:
        runs.append(fleet_run(there, way))
        print(f"{len(there.targets.addresses)} targets, {way}: {runs[-1]}", flush=True)
        there.close()
        return runs[-1].cold

    return run


def fleet_run(there: Site, way: str) -> Run:
    """Two tasks over all targets, the first of which opens every connection."""
    variables: dict[str, Any] = {}
    how: dict[str, Any] = {}
    env = ENVIRONMENT
    if way == OURS:
        variables = {"ansible_connection": "bastion.mux.ssh", "ansible_bastion": "bastion"}
    elif way == _MITOGEN:
        found = peers.mitogen(bring=False)
        assert found, "mitogen has gone"
        variables = {"mitogen_via": "bastion"}
        how = {"strategy": "mitogen_linear"}
        env = {**env, "ANSIBLE_STRATEGY_PLUGINS": str(found[1])}
    else:
        variables = {"ansible_ssh_common_args": f"{there.targets.file} -o ProxyJump=bastion"}
    ping: dict[str, Any] = {"ansible.builtin.ping": {}}
    tasks = [{"name": name, **ping} for name in ("cold", "warm")]
    census = [sys.executable, "-m", "tests.benchmark.census", str(there.work)]
    assert there.bastion.process
    census.append(str(there.bastion.process.pid))
    count = {"ansible.builtin.command": {"argv": census, "chdir": str(CHECKOUT)}}
    book = [plays.play(*tasks, hosts="targets", **how), plays.play(count, hosts="localhost")]
    logins = there.bastion.logins()
    before = timed(there.open) if way == "opened" else 0.0
    run = plays.run(
        there.work,
        book,
        inventory=there.targets.inventory(**variables),
        forks=FORKS,
        env=env,
        failing=True,
    )
    used = run.processor
    for process in belonging(there.work):
        # It went to the background: nobody has waited for it.
        with contextlib.suppress(psutil.NoSuchProcess):
            used += sum(process.cpu_times()[:2])
    counted = json.loads((there.work / "census.json").read_text())
    return Run(
        before + run.tasks["cold"][0],
        run.tasks["warm"][0],
        used,
        counted["processes"],
        counted["resident"],
        there.bastion.logins() - logins,
        run.failed,
    )


Taken = dict[str, dict[int, list[Run]]]

_HOW = (
    f"A play over all targets with {FORKS} forks, pipelining and a bastion with sshd's own"
    " MaxStartups: two tasks of `ansible.builtin.ping`, the first of which opens every connection."
    " The user's ssh configuration lets ssh share one connection to the bastion (`ControlMaster"
    " auto`). One machine plays the controller, the bastion and the targets, so that what a target"
    " has to do costs the controller time: mitogen's targets first compile what it sends them."
)


def _median(runs: Sequence[Run], what: str) -> float:
    values: list[float] = [getattr(run, what) for run in runs]
    return statistics.median(values)


def _findings(taken: Taken, ways: dict[str, str]) -> list[Finding]:
    found = []
    for what, title, unit, most in (
        ("cold", "The first task for the targets behind a bastion", "s", 1.0),
        ("warm", "A further task for the targets behind a bastion", "s", 1.0),
        ("processes", "ssh processes for each target behind a bastion", "processes", 0.5),
        ("resident", "Memory that the connections hold", "MiB", 0.5),
    ):
        worst = max(_compared(taken, size, what) for size in taken[OURS])
        measured, size, peer = worst
        samples = [
            Samples(ways[way], [getattr(run, what) for run in taken[way][size]], unit)
            for way in [OURS, *(way for way in ways if way != OURS)]
        ]
        found.append(
            Finding(
                f"thousand-{what}",
                f"{title}: `bastion.mux.ssh` compared with the best way over ssh",
                measured,
                samples,
                f"{_HOW if what == 'cold' else 'The same play.'} This is where it compares worst,"
                f" at {size} targets with {ways[peer]}. A way that could not reach some of the"
                " targets is not compared with."
                + (" The master to the bastion is left out." if what == "processes" else ""),
                most=most,
            )
        )
    runs = [run for several in taken[OURS].values() for run in several]
    logins = Samples(ways[OURS], [run.logins for run in runs], "login")
    title = "Logins on the bastion for a whole play of `bastion.mux.ssh`"
    most_logins = max(logins.seconds)
    how = "The same play, at every number of targets."
    found.append(
        Finding("thousand-logins", title, most_logins, [logins], how, most=1, unit="login")
    )
    return found


def _compared(taken: Taken, size: int, what: str) -> tuple[float, int, str]:
    """How ours compares with the best of the others over ssh that reached every target."""
    less = 1 if what == "processes" else 0
    ways = [way for way in WAYS if way != OURS]
    good = [way for way in ways if not _median(taken[way][size], "failed")]
    others = {way: _median(taken[way][size], what) - less for way in good or ways}
    best = min(others, key=lambda way: others[way])
    return (_median(taken[OURS][size], what) - less) / others[best], size, best


def _charts(taken: Taken, ways: dict[str, str]) -> list[Chart]:
    def chart(what: str, title: str, how: str, measured: str, unit: str, scale: float = 0) -> Chart:
        curves = [
            Curve(
                label,
                [
                    (size, _median(runs, what) * (scale / size if scale else 1))
                    for size, runs in taken[way].items()
                ],
            )
            for way, label in ways.items()
        ]
        return Chart(f"thousand-{what}", title, "targets", curves, how, measured, unit)

    each = ("Milliseconds for each target", "ms", 1000)
    there = "On the controller and the bastion together, when all is connected."
    return [
        chart(
            "cold",
            "First task behind a bastion",
            "The first of the two tasks. Opening the master counts, and so do targets that failed.",
            *each,
        ),
        chart("warm", "Further task behind a bastion", "The second task of that play.", *each),
        chart(
            "processor",
            "Processor time of a play behind a bastion",
            "That of ansible-playbook and its ssh on the controller, for both tasks.",
            *each,
        ),
        chart("processes", "ssh processes for a fleet behind a bastion", there, "Processes", ""),
        chart(
            "resident",
            "Memory of the connections to a fleet behind a bastion",
            f"{there} The resident memory of the ssh processes, shared pages counted in each, and"
            " of what mitogen runs on the bastion.",
            "MiB",
            "MiB",
        ),
        chart("logins", "Logins on the bastion", "Logins during the whole play.", "Logins", ""),
        chart("failed", "Targets that failed", "Unreachable or failed.", "Targets", ""),
    ]
