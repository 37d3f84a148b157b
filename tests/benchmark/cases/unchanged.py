# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a task costs that finds nothing to change, host by host of an inventory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.benchmark import plays
from tests.benchmark.fleet import Fleet, fleet
from tests.benchmark.measure import Finding, Results, Samples, in_turn, timed, times
from tests.support.services import free_ports

FORWARDINGS = 10
TASKS: dict[str, dict[str, Any]] = {
    "assert": plays.ASSERT,
    "ssh_master": {"bastion.mux.ssh_master": {}},
    "ssh_forward": {"bastion.mux.ssh_forward": {"local": "{{ forwardings }}"}},
    "by_path": {
        "bastion.mux.ssh_forward": {"local": "{{ forwardings }}", "control_path": "{{ socket }}"}
    },
}


def measure(*, quick: bool) -> Results:
    hosts, some, rounds = (4, 2, 1) if quick else (100, 20, 3)
    with fleet(hosts) as bastions:
        inventory = _with_forwardings(bastions)
        opened = {"bastion.mux.ssh_master": {"local": "{{ forwardings }}"}}
        defaults = bastions.module_defaults()
        plays.run(bastions.work, [plays.play(opened, **defaults)], inventory=inventory, forks=10)
        check = _check(bastions)

        def all_tasks(number: int) -> list[dict[str, Any]]:
            named = [{"name": name, **task} for name, task in TASKS.items()]
            return named if number % 2 == 0 else named[::-1]

        # The first task of each kind loads its plugin.
        warm_up = [{**task, "name": "warm-up"} for task in all_tasks(0)]
        book = [plays.play(*warm_up, **defaults)]
        for number in range(rounds):
            book.append(plays.play(*all_tasks(number), **defaults))
            book.append(plays.play(check, hosts=f"all[0:{some - 1}]"))
        run = plays.run(bastions.work, book, inventory=inventory)
        assert run.changed == rounds * some, f"{run.changed} changes: more than those of command"

        def whole(task: dict[str, Any]) -> Callable[[], float]:
            book = [plays.play(task, **defaults)]
            return lambda: plays.run(bastions.work, book, inventory=inventory).seconds

        alone = in_turn(1 if quick else 3, {name: whole(task) for name, task in TASKS.items()})

        def resolve() -> None:
            for host in bastions.hosts:
                bastions.shell(f"$SSH -G {host}")

        resolved = [timed(resolve) for _number in range(rounds)]
    scaled = [seconds * hosts / some for seconds in run.tasks["check"]]
    checks = Samples(
        f"`command: ssh -O check` delegated to localhost (scaled up from {some} hosts)", scaled
    )
    asserts = Samples("`ansible.builtin.assert`", run.tasks["assert"])
    findings = []
    for name, what in (
        ("ssh_master", "`ssh_master`"),
        ("ssh_forward", f"`ssh_forward` with {FORWARDINGS} forwardings"),
        ("by_path", f"`ssh_forward` with {FORWARDINGS} forwardings by `control_path`"),
    ):
        ours = Samples(what, run.tasks[name])
        wholes = [
            Samples("whole run of ansible-playbook with this task alone", alone[name]),
            Samples("whole run of ansible-playbook with `assert` alone", alone["assert"]),
        ]
        if name != "by_path":
            wholes.append(Samples(f"`ssh -G` {hosts} times, one after the other", resolved))
        how = (
            f"One task over {hosts} inventory hosts with a master each, five forks, from the start"
            " of the task to the start of the next one. The tasks follow each other in one run."
            " A task that names its master by host needs `ssh -G`, or its answer from before, for"
            " the socket and for what may have changed in the configuration; one that gives"
            " `control_path` does not."
        )
        findings += [
            Finding(
                f"unchanged-{name}",
                f"{what} finds nothing to change, compared with `assert`",
                times(ours, asserts),
                [ours, asserts, *wholes],
                how,
                most=1.3,
            ),
            Finding(
                f"unchanged-{name}-check",
                f"{what} finds nothing to change: `ssh -O check` compared with it",
                times(checks, ours),
                [ours, checks],
                how,
                least=8,
            ),
        ]
    return Results(findings)


def _with_forwardings(bastions: Fleet) -> dict[str, Any]:
    """The inventory, with forwardings of its own for each host."""
    inventory = bastions.inventory
    ports = iter(free_ports(FORWARDINGS * len(bastions.hosts)))
    for host in inventory["all"]["hosts"]:
        wanted = [f"{next(ports)}:127.0.0.1:9" for _number in range(FORWARDINGS)]
        socket = str(bastions.path(host))
        inventory["all"]["hosts"][host] = {"forwardings": wanted, "socket": socket}
    return inventory


def _check(bastions: Fleet) -> dict[str, Any]:
    command = ["ssh", "-F", str(bastions.config), "-O", "check", "{{ inventory_hostname }}"]
    return {
        "name": "check",
        "ansible.builtin.command": {"argv": command},
        "delegate_to": "localhost",
    }
