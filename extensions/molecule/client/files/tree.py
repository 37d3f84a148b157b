# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""tree.py DIRECTORY... : all that is below them, as lines of owner, mode, path and content."""

from __future__ import annotations

import hashlib
import pathlib
import stat
import sys

for top in sys.argv[1:]:
    for path in sorted(pathlib.Path(top).rglob("*")):
        status = path.lstat()
        content = ""
        if path.is_symlink():
            content = f"-> {path.resolve()}"
        elif stat.S_ISREG(status.st_mode):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            content = f"{digest} under {status.st_nlink} names"
        owner = f"{status.st_uid} {status.st_gid} {status.st_mode:o}"
        sys.stdout.write(f"{owner} {path} {content}\n")
