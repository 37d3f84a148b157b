# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts, in the middle of a play, what connects the controller and the bastion to the targets."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import psutil

from tests.support.client import belonging


def count(work: Path, bastion: int) -> dict[str, float]:
    """The ssh processes of `work`, and the MiB of them and of what else runs on the bastion."""
    processes = belonging(work)
    resident = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            resident += process.memory_info().rss
    for process in psutil.Process(bastion).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # Its own sshd is there in any case. mitogen has a Python there, which starts the ssh.
            if process.name() not in ("ssh", "sshd", "sshd-session"):
                resident += process.memory_info().rss
    return {"processes": len(processes), "resident": resident / 2**20}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "census.json").write_text(json.dumps(count(place, int(sys.argv[2]))))
