# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The results page and what belongs to it, written from the results alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from tests.benchmark import chart
from tests.benchmark.measure import Finding, Results, as_data

_TEMPLATE = Path(__file__).resolve().parent / "page.rst.j2"


def write(directory: Path, results: Results, facts: Mapping[str, Any]) -> Path:
    """Write `benchmarks.rst`, and `benchmarks/` with the numbers and the charts."""
    data = {"facts": dict(facts), **as_data(results)}
    beside = directory / "benchmarks"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "results.json").write_text(json.dumps(data, indent=1) + "\n")
    if results.findings:
        (beside / "targets.svg").write_text(chart.targets(results.findings))
    for one in results.charts:
        (beside / f"{one.name}.svg").write_text(chart.curves(one))
    page = directory / "benchmarks.rst"
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False
    )
    environment.filters.update(literal=_literal, number=_number, value=_value, amount=chart.amount)
    template = environment.from_string(_TEMPLATE.read_text())
    page.write_text(template.render(facts=facts, results=results).rstrip() + "\n")
    return page


def line(finding: Finding) -> str:
    """One finding for who watches the run."""
    said = "met" if finding.met else "MISSED"
    return f"{said:6} {chart.amount(finding):>12}, {finding.target}: {finding.title}"


def _literal(text: str) -> str:
    return text.replace("`", "``")


def _number(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _value(number: float, unit: str) -> str:
    if unit == "s" and number < 1:
        return f"{1000 * number:.3g} ms"
    return f"{_number(number)} {unit}"
