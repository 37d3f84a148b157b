# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Python interpreters of this machine: ``python3 dev/pythons.py`` names them, newest first.

pyenv's shims are seen through: for a version that is installed but not selected they are found
on PATH and answer "command not found". Runs on any Python 3, since it looks for a better one.
"""

from __future__ import annotations

import glob
import os
import subprocess
import sys

PROBE = """
import sys
try:
    import ensurepip, venv  # Debian takes these out of python3 and into python3-venv
    whole = 1
except ImportError:
    whole = 0
print("%d %d %d" % (sys.version_info[0], sys.version_info[1], whole))
"""


def find():
    # type: () -> dict[tuple[int, int], tuple[bool, str]]
    """By version: whether it can make virtual environments, and its path."""
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    folders = os.environ.get("PATH", "").split(os.pathsep)
    folders += glob.glob(os.path.join(pyenv, "versions", "*", "bin"))
    found = {}  # type: dict[tuple[int, int], tuple[bool, str]]
    seen = set()
    for folder in folders:
        if os.path.basename(folder) == "shims" or os.path.exists(folder + "/../pyvenv.cfg"):
            continue
        for name in ["python3", *("python3.%d" % minor for minor in range(8, 15))]:
            path = os.path.join(folder, name)
            real = os.path.realpath(path)
            if real in seen or not os.access(path, os.X_OK):
                continue
            seen.add(real)
            probe = subprocess.run([path, "-c", PROBE], capture_output=True, check=False)
            if probe.returncode == 0:
                major, minor, whole = map(int, probe.stdout.split())
                version = (major, minor)
                if version not in found or (whole and not found[version][0]):
                    found[version] = (bool(whole), path)
    return found


def main():
    # type: () -> int
    """Print ``VERSION PATH`` for each; with versions as arguments, the first of those alone."""
    usable = {
        "%d.%d" % version: path
        for version, (whole, path) in sorted(find().items(), reverse=True)
        if whole
    }
    if len(sys.argv) == 1:
        print("\n".join("%s %s" % item for item in usable.items()))
        return 0
    for version in sys.argv[1:]:
        if version in usable:
            print(usable[version])
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
