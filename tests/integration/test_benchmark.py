# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmarks run. What they measure is not judged here: a test machine has other work."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.support.playbook import CHECKOUT
from tests.support.sshd import sshd_path


def test_a_quick_run_writes_the_page_its_numbers_and_its_charts(work: Path) -> None:
    if sshd_path() is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    command = [sys.executable, "-m", "tests.benchmark.run", "--quick", "--output", str(work / "o")]
    run = subprocess.run(
        [*command, "--only", "opening", "--only", "growth"],
        cwd=CHECKOUT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr

    written = work / "o" / "benchmarks"
    results = json.loads((written / "results.json").read_text())
    (finding,) = results["findings"]
    ours, peer = (sample["median"] for sample in finding["samples"][:2])
    assert finding["measured"] == pytest.approx(ours / peer)
    page = (work / "o" / "benchmarks.rst").read_text()
    assert finding["title"].replace("`", "``") in page
    assert ("**no**" in page) is not finding["met"]
    for chart in results["charts"]:
        assert f"image:: benchmarks/{chart['name']}.svg" in page
        drawing = ET.fromstring((written / f"{chart['name']}.svg").read_text())
        lines = drawing.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == len(chart["curves"])
