# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Charts as SVG: readable on paper and for the colour-blind, with nothing but text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.benchmark.measure import Chart, Finding

_WIDTH = 760
_COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#525252")
_DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2")
_CLIPPED = 2.0  # a bar ends at twice what is allowed
_INK, _FAINT = "#1f2937", "#cbd5e1"


def targets(findings: Sequence[Finding]) -> str:
    """A bar for each finding: how much of what its target allows was used."""
    row, top, left, right = 44, 40, 14, _WIDTH - 90
    limit = min(_CLIPPED, max(1.25, *(finding.share for finding in findings)))
    scale = (right - left) / limit
    height = top + row * len(findings) + 14
    line = left + scale
    parts = [
        _text(line, 18, "target", anchor="middle"),
        _line(line, 24, line, height - 8, _INK, dash="4 3"),
    ]
    for number, finding in enumerate(findings):
        y = top + row * number
        colour = _COLOURS[2] if finding.met else _COLOURS[1]
        width = max(1.0, scale * min(limit, finding.share))
        parts += [
            _text(left, y + 10, _plain(finding.title), halo=True),
            f'<rect x="{left}" y="{y + 16}" width="{width:.1f}" height="14" fill="{colour}"/>',
            _text(left + width + 6, y + 28, amount(finding), halo=True, bold=True),
        ]
    return _svg(height, parts, "How much of what each target allows was used; less is better")


def amount(finding: Finding) -> str:
    """What was measured, with its unit."""
    number = finding.measured
    return f"{number:,.0f} {finding.unit}" if number >= 1000 else f"{number:.3g} {finding.unit}"


def curves(chart: Chart) -> str:
    """Lines over two logarithmic axes. A zero lies one decade below everything else."""
    columns = 3
    rows = math.ceil(len(chart.curves) / columns)
    left, right, top = 70, _WIDTH - 24, 24 + 22 * rows
    bottom = top + 300
    costs = [cost for curve in chart.curves for _number, cost in curve.points]
    ys = [cost for cost in costs if cost > 0] or [1.0]
    x_from, x_to = math.log10(chart.numbers[0]), math.log10(chart.numbers[-1])
    y_from, y_to = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    zero = 10.0 ** (y_from - 1) if min(costs) <= 0 else 0.0
    if zero:
        y_from -= 1

    def x_of(number: float) -> float:
        return left + (math.log10(number) - x_from) / ((x_to - x_from) or 1) * (right - left)

    def y_of(cost: float) -> float:
        return bottom - (math.log10(cost or zero) - y_from) / ((y_to - y_from) or 1) * (
            bottom - top
        )

    parts = []
    for exponent in range(y_from, y_to + 1):
        value = 0 if zero and exponent == y_from else 10.0**exponent
        y = y_of(value)
        parts += [
            _line(left, y, right, y, _FAINT),
            _text(left - 8, y + 4, f"{value:g} {chart.unit}".rstrip(), anchor="end"),
        ]
    for number in chart.numbers:
        x = x_of(number)
        parts += [
            _line(x, top, x, bottom, _FAINT),
            _text(x, bottom + 18, f"{number:,}", anchor="middle"),
        ]
    parts.append(_text((left + right) / 2, bottom + 38, chart.counted, anchor="middle"))
    for number, curve in enumerate(chart.curves):
        colour, dash = _COLOURS[number % 5], _DASHES[number % 5]
        key_x, key_y = 14 + number % columns * 250, 18 + number // columns * 22
        points = [(x_of(count), y_of(cost)) for count, cost in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        stroke = f'fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dash}"'
        parts += [
            _line(key_x, key_y - 4, key_x + 30, key_y - 4, colour, dash=dash, width=2.5),
            _text(key_x + 36, key_y, _plain(curve.label)),
            f'<polyline points="{path}" {stroke}/>',
            *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points),
        ]
    return _svg(bottom + 50, parts, chart.title)


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img"'
        f' font-family="sans-serif" font-size="13">\n<title>{escape(title)}</title>\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", halo: bool = False, bold: bool = False
) -> str:
    more = ' stroke="#ffffff" stroke-width="4" paint-order="stroke"' if halo else ""
    more += ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{_INK}" text-anchor="{anchor}"{more}>'
        f"{escape(text)}</text>"
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "", width: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"'
        f' stroke-width="{width}" stroke-dasharray="{dash}"/>'
    )


def _plain(text: str) -> str:
    return text.replace("`", "")
