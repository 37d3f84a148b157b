# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Masters to many bastions, opened by one task."""

from __future__ import annotations

from tests.benchmark import plays
from tests.benchmark.fleet import Fleet, fleet
from tests.benchmark.measure import Finding, Results, Samples, in_turn, timed, times

PARALLEL = 10


def measure(*, quick: bool) -> Results:
    hosts, rounds = (4, 1) if quick else (50, 3)
    with fleet(hosts) as bastions:
        wholes = []

        def ours() -> float:
            run = task_run(bastions)
            wholes.append(run.seconds)
            bastions.close()
            return run.tasks["open"][0]

        def xargs() -> float:
            seconds = timed(lambda: bastions.open(PARALLEL))
            bastions.close()
            return seconds

        xargs()  # the first one reads ssh and sshd from the disk
        taken = in_turn(rounds, {"ours": ours, "xargs": xargs})
    opened = Samples(f"`ssh_master` with {PARALLEL} forks", taken["ours"])
    peer = Samples(f"`xargs -P {PARALLEL} -n 1 ssh -fN`", taken["xargs"])
    return Results(
        [
            Finding(
                "opening",
                f"Masters to {hosts} bastions opened in one play, compared with `xargs -P`",
                times(opened, peer),
                [opened, peer, Samples("whole run of ansible-playbook", wholes)],
                "The task, from its start to the end of the play. One sshd on loopback plays all"
                " bastions, so both sides of every login share this machine.",
                most=1.3,
            )
        ]
    )


def task_run(bastions: Fleet) -> plays.Timed:
    """A play that opens the masters, each of which must be new."""
    book = [
        plays.play({"name": "open", "bastion.mux.ssh_master": {}}, **bastions.module_defaults())
    ]
    run = plays.run(bastions.work, book, inventory=bastions.inventory, forks=PARALLEL)
    assert run.changed == len(bastions.hosts), f"{run.changed} masters were opened"
    return run
