# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many local forwardings by one task: opened, and found unchanged."""

from __future__ import annotations

from typing import Any

from tests.benchmark import bare, plays
from tests.benchmark.fleet import Fleet, fleet
from tests.benchmark.measure import Finding, Results, Samples, in_turn, timed, times
from tests.support.services import free_ports


def measure(*, quick: bool) -> Results:
    count, rounds = (20, 1) if quick else (1000, 3)
    with fleet(1) as bastions:
        bastions.open(1)
        ports = free_ports(count)
        path = bastions.path(bastions.hosts[0])
        tasks: dict[str, list[float]] = {}

        def ours() -> float:
            run = task_run(bastions, ports)
            for name, seconds in run.tasks.items():
                tasks.setdefault(name, []).extend(seconds)
            return run.tasks["open"][0]

        def protocol() -> float:
            seconds = timed(lambda: bare.open_all(path, ports))
            bare.close_all(path, ports)
            return seconds

        def loop() -> float:
            seconds = timed(lambda: bastions.shell(shell_loop(bastions.hosts[0], ports)))
            bare.close_all(path, ports)
            return seconds

        protocol()  # the first one makes the master's tables grow
        subjects = {"ours": ours, "bare": protocol, "again": protocol, "loop": loop}
        taken = in_turn(rounds, subjects)
    opened = Samples(f"`ssh_forward` opens {count} forwardings", taken["ours"])
    bares = Samples("bare protocol", taken["bare"] + taken["again"])
    loops = Samples("`ssh -O forward` in a loop of the shell", taken["loop"])
    unchanged = Samples(f"`ssh_forward` finds {count} forwardings", tasks["unchanged"])
    asserts = Samples("`ansible.builtin.assert`", tasks["assert"])
    return Results(
        [
            Finding(
                "open",
                f"{count} forwardings opened by one task, compared with the bare protocol",
                times(opened, bares),
                [opened, bares],
                "The whole task, with all that Ansible does for it. The bare protocol is a client"
                " of fifty lines that sends all requests to the same master before it reads the"
                " first reply, inside a Python process that runs already.",
                most=1.5,
            ),
            Finding(
                "open-loop",
                f"{count} forwardings: a loop of `ssh -O forward` compared with one task",
                times(loops, opened),
                [opened, loops],
                "The same master and the same forwardings, one `ssh -O forward` after another, all"
                " of them.",
                least=15,
            ),
            Finding(
                "unchanged-many",
                f"{count} forwardings found unchanged, beyond an `assert`",
                unchanged.median - asserts.median,
                [unchanged, asserts],
                "The task that opened them once more, in the same play.",
                most=0.2,
                unit="s",
            ),
        ]
    )


def task_run(bastions: Fleet, ports: list[int]) -> plays.Timed:
    """A play that opens forwardings, finds them unchanged, and cancels them."""
    wanted = {"host": bastions.hosts[0], "local": [f"{port}:127.0.0.1:9" for port in ports]}

    def task(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "bastion.mux.ssh_forward": {**wanted, **more}}

    tasks = [
        {"name": "warm-up", **plays.ASSERT},
        {"name": "assert", **plays.ASSERT},
        task("open"),
        task("unchanged"),
        task("close", state="absent"),
    ]
    book = [plays.play(*tasks, hosts="localhost", **bastions.module_defaults())]
    run = plays.run(bastions.work, book)
    assert run.changed == 2, f"{run.changed} changes instead of opening and closing"
    return run


def shell_loop(host: str, ports: list[int]) -> str:
    """One `ssh -O forward` after another."""
    return (
        f"for port in $(seq {ports[0]} {ports[-1]}); do"
        f" $SSH -O forward -L $port:127.0.0.1:9 {host}; done"
    )
