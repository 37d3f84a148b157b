# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dev/others.py : what examples of the guide use of other people, brought into .cache/others.

The collections come out of the Python package `ansible`, which has them all; the libraries that
they need are pinned in dev/others.txt. They lie apart from the environment, because that is
installed in seconds, and because the tests have to show that nothing else needs them.
Nothing is done when they are there already.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "ansible==14.5.0"
COLLECTIONS = ("ansible/netcommon", "ansible/utils", "community/postgresql", "vyos/vyos")

HERE = Path(__file__).resolve().parent
PLACE = HERE.parent / ".cache/others"


def main() -> None:
    """Bring them."""
    requirements = HERE / "others.txt"
    # Compiled libraries belong to one version of Python.
    wanted = "\n".join([sys.version, PACKAGE, *COLLECTIONS, requirements.read_text()])
    stamp = PLACE / ".installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"Installing {requirements.relative_to(HERE.parent)} and collections into {PLACE}")
    PLACE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PLACE.parent) as work:
        new = Path(work) / "new"
        _pip("install", "--target", str(new / "python"), "--requirement", str(requirements))
        _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", work, PACKAGE)
        (wheel,) = Path(work).glob("*.whl")
        parts = tuple(f"ansible_collections/{name}/" for name in COLLECTIONS)
        with zipfile.ZipFile(wheel) as packed:
            names = [name for name in packed.namelist() if name.startswith(parts)]
            packed.extractall(new / "collections", names)
        (new / stamp.name).write_text(wanted)
        shutil.rmtree(PLACE, ignore_errors=True)
        new.rename(PLACE)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
