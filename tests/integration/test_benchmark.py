# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks run. What they measure is not judged here: a test machine has other work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.support.playbook import CHECKOUT
from tests.support.sshd import sshd_path


def _run(work: Path, *cases: str) -> tuple[dict[str, Any], str]:
    """The numbers and the page of a quick run."""
    command = [sys.executable, "-m", "tests.benchmark.run", "--quick", "--output", str(work / "o")]
    run = subprocess.run(
        [*command, *(part for case in cases for part in ("--only", case))],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((work / "o" / "benchmarks" / "results.json").read_text())
    return results, (work / "o" / "benchmarks.rst").read_text()


@pytest.mark.long
def test_a_quick_run_writes_the_page_its_numbers_and_its_charts(work: Path) -> None:
    if sshd_path() is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    results, page = _run(work, "opening", "growth", "thousand")
    written = work / "o" / "benchmarks"
    findings = {finding["name"]: finding for finding in results["findings"]}
    ours, peer = (sample["median"] for sample in findings["opening"]["samples"][:2])
    assert findings["opening"]["measured"] == pytest.approx(ours / peer)
    for finding in findings.values():
        assert finding["title"].replace("`", "``") in page
    assert ("**no**" in page) is not all(finding["met"] for finding in findings.values())
    # What does not depend on the machine: one login, one process for each target instead of two.
    assert findings["thousand-logins"]["measured"] == 1
    assert findings["thousand-processes"]["measured"] == 0.5
    # An ansible-playbook with two targets cannot take less: all of it was measured.
    charts = {chart["name"]: chart for chart in results["charts"]}
    for curve in charts["thousand-processor"]["curves"]:
        assert all(milliseconds > 50 for _targets, milliseconds in curve["points"]), curve
    for chart in charts.values():
        assert f"image:: benchmarks/{chart['name']}.svg" in page
        drawing = ET.fromstring((written / f"{chart['name']}.svg").read_text())
        lines = drawing.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == len(chart["curves"])


@pytest.mark.long
def test_what_was_not_measured_is_on_the_page(work: Path) -> None:
    results, page = _run(work, "client_config")
    measured = {finding["name"] for finding in results["findings"]}
    if os.getuid() == 0:
        assert {"client-first", "client-second"} <= measured
    else:
        assert not measured
    # Only a full run brings the peer from elsewhere.
    assert bool(results["missing"]) is ("client-first-loop" not in measured)
    for what in results["missing"]:
        assert what.replace("`", "``") in page
