# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure how fast the collection is, and write the results page: `make bench`.

`make bench ARGS=--quick` only shows that everything runs; `ARGS='--only info'` measures one case.
Neither touches the page of the documentation.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import psutil
import yaml

from tests.benchmark import page
from tests.benchmark.cases import (
    client_config,
    forwardings,
    growth,
    info,
    opening,
    thousand,
    unchanged,
)
from tests.benchmark.measure import Results

CHECKOUT = Path(__file__).resolve().parents[2]

CASES: dict[str, Callable[..., Results]] = {
    "unchanged": unchanged.measure,
    "forwardings": forwardings.measure,
    "info": info.measure,
    "opening": opening.measure,
    "growth": growth.measure,
    "thousand": thousand.measure,
    "client_config": client_config.measure,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Be the command."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers that mean nothing")
    parser.add_argument("--only", action="append", choices=CASES, help="one case, or several")
    parser.add_argument("--output", type=Path, help="where to write the page")
    given = parser.parse_args(arguments)
    everything = not given.quick and not given.only
    output = given.output or CHECKOUT / ("docs/docsite/rst" if everything else "build/benchmark")
    began = time.monotonic()
    load = os.getloadavg()[0]
    findings, charts, missing = [], [], []
    for name in given.only or CASES:
        print(f"--- {name}", flush=True)
        found = CASES[name](quick=given.quick)
        for finding in found.findings:
            print(page.line(finding), flush=True)
        findings += found.findings
        charts += found.charts
        for what in found.missing:
            print(f"left out: {what}", flush=True)
        missing += found.missing
    facts = {
        **_facts(),
        "load average before the run": f"{load:.1f}",
        "duration of the run": f"{time.monotonic() - began:.0f} s",
    }
    if given.quick:
        facts["run with --quick"] = "the numbers mean nothing"
    print(f"Read {page.write(output, Results(findings, charts, missing), facts)}")


def _facts() -> dict[str, str]:
    """What the numbers depend on."""
    said = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    galaxy = yaml.safe_load((CHECKOUT / "galaxy.yml").read_text())
    return {
        "measured on": f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "OpenSSH": said.split(",")[0],
        "Python": platform.python_version(),
        "ansible-core": version("ansible-core"),
        "psutil": version("psutil"),
        "bastion.mux": galaxy["version"],
    }


def _processor() -> str:
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        about = ""
    found = re.search(r"^model name\s*:\s*(.*)$", about, re.MULTILINE)
    return found.group(1) if found else platform.processor() or "unknown"


if __name__ == "__main__":
    main()
