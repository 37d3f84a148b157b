# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""left.py FOLDER PORT... : fail with a list of what is left.

That is ssh processes which know FOLDER, and listeners from each PORT to nine above it.
"""

from __future__ import annotations

import sys

import psutil

folder, *ports = sys.argv[1:]
blocks = {int(port) // 10 for port in ports}
left = []
for process in psutil.process_iter(["pid", "name", "cmdline"]):
    words = " ".join(process.info["cmdline"] or [])
    if process.info["name"].startswith("ssh") and folder in words:
        left.append(f"process {process.info['pid']}: {words}")
for connection in psutil.net_connections("tcp"):
    listens = connection.status == psutil.CONN_LISTEN
    if listens and connection.laddr and connection.laddr.port // 10 in blocks:
        left.append(f"listening: {connection.laddr}")
sys.exit("\n".join(left) or 0)
