# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""count.py FOLDER PORT: print as JSON what there is.

That is the files in FOLDER, the ssh processes that know it, and the ports from PORT to nine above
it on which something listens.
"""

from __future__ import annotations

import json
import os
import sys

import psutil

folder, port = sys.argv[1], int(sys.argv[2])
processes = [
    process.pid
    for process in psutil.process_iter(["name", "cmdline"])
    if process.info["name"].startswith("ssh") and folder in " ".join(process.info["cmdline"] or [])
]
ports = {
    connection.laddr.port
    for connection in psutil.net_connections("tcp")
    if connection.status == psutil.CONN_LISTEN
    and connection.laddr
    and connection.laddr.port // 10 == port // 10
}
files = os.listdir(folder) if os.path.isdir(folder) else []
json.dump({"files": sorted(files), "processes": processes, "ports": sorted(ports)}, sys.stdout)
