# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What others made, to compare with: brought on first use, kept out of every environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from tests.support.playbook import CHECKOUT

PLACE = CHECKOUT / ".cache" / "peers"

_GENERAL = "ansible_collections/community/general/"


def community_general(*, bring: bool) -> str | None:
    """The version of the community.general that is below PLACE; None: it is not there.

    It is brought, where it may be, inside the Python package `ansible`.
    """
    there = PLACE / _GENERAL
    if not there.is_dir():
        if not bring:
            return None
        PLACE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PLACE) as work:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            command += ["--only-binary", ":all:", "--dest", work, "ansible"]
            if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0:
                return None
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
                names = [name for name in wheel.namelist() if name.startswith(_GENERAL)]
                wheel.extractall(work, names)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(work) / _GENERAL, there)
    about = json.loads((there / "MANIFEST.json").read_text())
    return str(about["collection_info"]["version"])


def mitogen(*, bring: bool) -> tuple[str, Path] | None:
    """The version of the mitogen below PLACE and its strategies; None: it is not there."""
    there = PLACE / "mitogen"
    if bring and not there.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--target", str(there), "mitogen>=0.3,<0.4"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    for found in metadata.distributions(name="mitogen", path=[str(there)]):
        return found.version, there / "ansible_mitogen/plugins/strategy"
    return None
