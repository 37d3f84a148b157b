# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start the demo's bastion for a first try, or end it: `bastion.py FOLDER [stop]`.

It goes on in the background, for a day at most. The folder must be of a short name, because there
is a unix socket in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parents[1] / "playbooks/files/embedded_bastion.py"

READY = """\
A bastion ({server}) {begins} on {host} port {port}. Behind it is a web server, {web},
which answers nobody else. README.md's first playbook reaches it with

    ansible-playbook first.yml -e @{variables}

The bastion is known to ssh by this configuration, and its master is closed with

    ssh -F {ssh_config} {alias}
    ansible localhost -m bastion.mux.ssh_master \\
        -a 'host={alias} ssh_config={ssh_config} state=absent'

`make bastion-stop` ends the bastion, as does a day."""


def call(folder: str, *options: str) -> dict[str, Any]:
    """Run the program of the bastion; its complaint is the user's."""
    argv = [sys.executable, str(PROGRAM), "--directory", folder, *options]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main() -> None:
    folder = sys.argv[1]
    if sys.argv[2:] == ["stop"]:
        ended = call(folder, "--stop")["changed"]
        print("The bastion has ended." if ended else "There is no bastion to end.")
        return
    state = call(folder, "--background", "--lifetime", "86400")
    web = "{service_host}:{service_port}".format(**state)
    names = {"bastion": state["alias"], "web": web, "ssh_config": state["ssh_config"]}
    variables = Path(folder, "vars.json")
    variables.write_text(json.dumps(names) + "\n", encoding="utf-8")
    begins = "listens" if state["changed"] else "already listens"
    print(READY.format(**state, begins=begins, web=web, variables=variables.resolve()))


if __name__ == "__main__":
    main()
