# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one more costs as their number grows: forwardings of a master, masters of a play."""

from __future__ import annotations

import statistics

from tests.benchmark import bare, plays
from tests.benchmark.cases import forwardings
from tests.benchmark.fleet import Fleet, fleet
from tests.benchmark.measure import Chart, Curve, Results, in_turn, timed
from tests.support.services import free_ports

PARALLEL = 10

#: A number of masters is left out that would take longer than this, in seconds, by the last one.
_PATIENCE = 240


def measure(*, quick: bool) -> Results:
    numbers = (2, 4) if quick else (10, 100, 1000)
    return Results(charts=[_forwardings(numbers), _masters(numbers)])


def _forwardings(numbers: tuple[int, ...]) -> Chart:
    labels = {
        "loop": "`ssh -O forward` in a loop",
        "open": "`ssh_forward` opens",
        "unchanged": "`ssh_forward` finds unchanged",
        "bare": "bare protocol opens",
    }
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in labels}
    with fleet(1) as bastions:
        bastions.open(1)
        for number in numbers:
            taken = _opened(bastions, free_ports(number))
            for name, seconds in taken.items():
                points[name].append((number, 1000 * statistics.median(seconds) / number))
    return Chart(
        "forwardings",
        "Cost of each forwarding",
        "forwardings of the task",
        [Curve(labels[name], points[name]) for name in labels],
        "The time of the whole task, divided by its forwardings.",
    )


def _opened(bastions: Fleet, ports: list[int]) -> dict[str, list[float]]:
    """Seconds for these forwardings, by each way to open them."""
    path = bastions.path(bastions.hosts[0])
    unchanged: list[float] = []

    def ours() -> float:
        run = forwardings.task_run(bastions, ports)
        unchanged.extend(run.tasks["unchanged"])
        return run.tasks["open"][0]

    def protocol() -> float:
        seconds = timed(lambda: bare.open_all(path, ports))
        bare.close_all(path, ports)
        return seconds

    taken = in_turn(3, {"open": ours, "bare": protocol})
    command = forwardings.shell_loop(bastions.hosts[0], ports)
    taken["loop"] = [timed(lambda: bastions.shell(command))]
    bare.close_all(path, ports)
    return {**taken, "unchanged": unchanged}


def _masters(numbers: tuple[int, ...]) -> Chart:
    labels = {
        "open": "`ssh_master` opens",
        "xargs": "`xargs -P 10 ssh -fN`",
        "unchanged": "`ssh_master` finds unchanged",
        "assert": "`assert`",
        "info": "`ssh_master_info`",
    }
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in labels}
    how = f"The time of the whole task with {PARALLEL} forks, divided by its masters."
    each = 0.0
    for number in numbers:
        if each * number > _PATIENCE:
            how += f" {number:,} masters were left out: this machine would need too long for them."
            break
        with fleet(number) as bastions:
            run = _open(bastions)
            taken = {name: seconds[0] for name, seconds in run.tasks.items()}
            if number < numbers[-1]:
                bastions.close()
                taken["xargs"] = timed(lambda: bastions.open(PARALLEL))
        each = run.seconds / number
        for name, seconds in taken.items():
            points[name].append((number, 1000 * seconds / number))
    return Chart(
        "masters",
        "Cost of each master",
        "masters of the task",
        [Curve(labels[name], points[name]) for name in labels],
        how,
    )


def _open(bastions: Fleet) -> plays.Timed:
    tasks = [
        {"name": "open", "bastion.mux.ssh_master": {}},
        {"name": "assert", **plays.ASSERT},
        {"name": "unchanged", "bastion.mux.ssh_master": {}},
    ]
    look = {"name": "info", "bastion.mux.ssh_master_info": {"control_dir": str(bastions.sockets)}}
    book = [
        plays.play(*tasks, **bastions.module_defaults()),
        plays.play(look, hosts="localhost", connection="local"),
    ]
    inventory = bastions.inventory
    inventory["all"]["hosts"]["localhost"] = {"ansible_connection": "local"}
    book[0]["hosts"] = "all:!localhost"
    run = plays.run(bastions.work, book, inventory=inventory, forks=PARALLEL)
    assert run.changed == len(bastions.hosts), f"{run.changed} masters were opened"
    return run
