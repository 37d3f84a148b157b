# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let ansible-test make its environments where its download of get-pip.py is out of reach.

It fetches the script from a host of its own, and gives up without it. When that host does not
answer, a stand-in is put where ansible-test caches the download: the pip that comes with Python
does the same. A download that was cached, or that would work, is left alone.
"""

from __future__ import annotations

import pathlib
import re
import sys
import urllib.request

import ansible_test

STAND_IN = '''\
"""Stand-in for get-pip.py: install pip from the interpreter's own ensurepip."""
import subprocess
import sys

# In a process of its own: ensurepip switches the configuration of pip off where it runs.
subprocess.check_call([sys.executable, "-m", "ensurepip", "--upgrade", "--default-pip"])
wanted = [a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install"] + wanted))
'''


def main() -> int:
    """Write the stand-in for each pip that this ansible-test asks for and cannot download."""
    util = pathlib.Path(ansible_test.__file__).parent
    source = (util / "_internal" / "python_requirements.py").read_text(encoding="utf-8")
    script = (util / "_util/target/setup/requirements.py").read_text(encoding="utf-8")
    url = re.search(r"'(https://\S+/get-pip-)%s\.py'", script)
    if url is None:
        print("This ansible-test fetches pip in a way that is not known here", file=sys.stderr)
        return 1
    for version in sorted(set(re.findall(r"\bpip='([\d.]+)'", source))):
        name = f"get_pip_{version.replace('.', '_')}.py"
        cached = pathlib.Path("~/.ansible/test/cache").expanduser() / name
        if cached.exists():
            continue
        try:
            with urllib.request.urlopen(f"{url[1]}{version}.py", timeout=10):
                continue
        except OSError as unreachable:
            print(f"{name} is out of reach ({unreachable}): a stand-in goes to {cached}")
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(STAND_IN, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
