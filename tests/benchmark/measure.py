# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured: samples taken side by side, and what their medians say."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Samples:
    """Repeated timings of one thing, in seconds. Those of a part were scaled up to the whole.

    With another `unit` they are numbers of that.
    """

    label: str
    seconds: list[float]
    unit: str = "s"

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One target of the results page.

    `measured` is how many times as long as its peer something takes, or seconds; `most` and `least`
    are the bounds on it, one of them None.
    """

    name: str
    title: str
    measured: float
    samples: list[Samples]
    how: str
    most: float | None = None
    least: float | None = None
    unit: str = "times"

    @property
    def met(self) -> bool:
        return self.share <= 1

    @property
    def share(self) -> float:
        """How much of what is allowed was used: 1 is on target, less is better."""
        if self.most is not None:
            return self.measured / self.most
        assert self.least is not None
        return self.least / self.measured

    @property
    def target(self) -> str:
        bound = f"at most {self.most:g}" if self.most is not None else f"at least {self.least:g}"
        return f"{bound} {self.unit}"


def times(ours: Samples, peer: Samples) -> float:
    """How many times as long as its peer something takes."""
    return ours.median / peer.median


@dataclasses.dataclass(frozen=True)
class Curve:
    """A cost as a number grows: (number, milliseconds each or what the chart says)."""

    label: str
    points: list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves that belong together. `measured` heads their table, `unit` is on their axis."""

    name: str
    title: str
    counted: str
    curves: list[Curve]
    how: str
    measured: str = "Milliseconds each"
    unit: str = "ms"

    @property
    def numbers(self) -> list[int]:
        return sorted({number for curve in self.curves for number, _cost in curve.points})


@dataclasses.dataclass(frozen=True)
class Results:
    """All that one case found. `missing` says what could not be measured, and why."""

    findings: list[Finding] = dataclasses.field(default_factory=list)
    charts: list[Chart] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)


def timed(action: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


def in_turn(rounds: int, subjects: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Samples of several subjects, taken in turn; every second round runs backwards.

    So what drifts during the run, and what one leaves behind for the next, meets all of them.
    """
    samples: dict[str, list[float]] = {label: [] for label in subjects}
    for number in range(rounds):
        order = list(subjects) if number % 2 == 0 else list(subjects)[::-1]
        for label in order:
            samples[label].append(subjects[label]())
    return samples


def as_data(results: Results) -> dict[str, Any]:
    """For results.json."""
    findings = [
        {
            **dataclasses.asdict(finding),
            "target": finding.target,
            "met": finding.met,
            "share": finding.share,
            "samples": [
                {**dataclasses.asdict(one), "median": one.median} for one in finding.samples
            ],
        }
        for finding in results.findings
    ]
    charts = [dataclasses.asdict(one) for one in results.charts]
    return {"findings": findings, "charts": charts, "missing": results.missing}
