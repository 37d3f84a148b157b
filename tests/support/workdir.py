# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Temporary directories whose names are short: a control socket's path may have 90 bytes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def short_dir() -> Iterator[Path]:
    """A directory /tmp/bm-XXXXXXXX with mode 0700, removed at the end."""
    # Not tempfile's default: TMPDIR is long on macOS, and /tmp there is a symlink.
    path = Path(tempfile.mkdtemp(prefix="bm-", dir=str(Path("/tmp").resolve())))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
