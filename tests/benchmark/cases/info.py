# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A look at a directory full of sockets, some of which never answer."""

from __future__ import annotations

import psutil

from tests.benchmark import plays
from tests.benchmark.fleet import Fleet, fleet
from tests.benchmark.measure import Finding, Results, Samples, in_turn, timed

TIMEOUT = 2


def measure(*, quick: bool) -> Results:
    sockets, wedged, stale, rounds = (8, 1, 2, 1) if quick else (200, 5, 20, 3)
    with fleet(sockets) as bastions:
        bastions.open(10)
        masters = list(bastions.masters().values())
        assert len(masters) == sockets, f"{len(masters)} masters"
        gone, frozen = masters[:stale], masters[stale : stale + wedged]
        for process in gone:
            process.kill()
        psutil.wait_procs(gone, 10)
        for process in frozen:
            process.suspend()
        tasks: dict[str, list[float]] = {}

        def ours() -> float:
            for name, seconds in _look(bastions, sockets - wedged - stale).tasks.items():
                tasks.setdefault(name, []).extend(seconds)
            return tasks["info"][-1]

        def loop() -> float:
            command = (
                f"for socket in {bastions.sockets}/*; do"
                f" timeout {TIMEOUT} $SSH -S $socket -O check any || true; done"
            )
            return timed(lambda: bastions.shell(command))

        try:
            taken = in_turn(rounds, {"info": ours})
            taken["loop"] = [loop()]
        finally:
            for process in frozen:
                process.resume()
    info = Samples("`ssh_master_info`", taken["info"])
    return Results(
        [
            Finding(
                "info",
                f"`ssh_master_info` over {sockets} sockets, {wedged} wedged and {stale} stale",
                info.median,
                [
                    info,
                    Samples("`ansible.builtin.assert`", tasks["assert"]),
                    Samples(f"`timeout {TIMEOUT} ssh -O check` in a loop", taken["loop"]),
                ],
                f"With `timeout: {TIMEOUT}`, so the bound is {TIMEOUT} s and half a second. The"
                " masters are real, the wedged ones were sent SIGSTOP, the stale ones SIGKILL.",
                most=TIMEOUT + 0.5,
                unit="s",
            )
        ]
    )


def _look(bastions: Fleet, alive: int) -> plays.Timed:
    alive_ones = "found.masters | selectattr('alive') | length"
    tasks = [
        {"name": "warm-up", **plays.ASSERT},
        {"name": "assert", **plays.ASSERT},
        {
            "name": "info",
            "bastion.mux.ssh_master_info": {
                "control_dir": str(bastions.sockets),
                "timeout": TIMEOUT,
            },
            "register": "found",
        },
        {"name": "right", "ansible.builtin.assert": {"that": f"{alive_ones} == {alive}"}},
    ]
    return plays.run(bastions.work, [plays.play(*tasks, hosts="localhost")])
