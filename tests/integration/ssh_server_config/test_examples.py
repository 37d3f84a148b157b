# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation work as they stand, but for their paths."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.integration.ssh_server_config.conftest import Server
from tests.support.playbook import ansible_environment, run_playbook


def test_examples_of_the_module(server: Server, work: Path) -> None:
    name = "bastion.mux.ssh_server_config"
    shown = subprocess.run(
        [sys.executable, "-m", "ansible", "doc", "--json", name],
        env=ansible_environment(work),
        check=True,
        capture_output=True,
        text=True,
    )
    text = json.loads(shown.stdout)[name]["examples"]
    plays = yaml.safe_load(text.replace("/etc/ssh/bastion.mux", str(server.directory)))
    # Where its files are, is all that is not as on a bastion.
    for play in plays:
        play["module_defaults"] = {name: server.params}
        play["become"] = False
    (work / "files").mkdir()
    (work / "jump.pub").write_text("ssh-ed25519 AAAA jump\n")
    ssh = work / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {server.ssh.config} "$@"\n')
    ssh.chmod(0o755)
    environment = {"PATH": f"{ssh.parent}{os.pathsep}{os.environ['PATH']}"}
    inventory = {"bastions": {"hosts": {"bastion": {"ansible_connection": "local"}}}}
    before = server.tree()
    playbook = work / "examples.yml"
    playbook.write_text(yaml.safe_dump(plays, sort_keys=False))
    done = run_playbook(work, playbook, inventory=inventory, env=environment).ok()
    assert done.changed() == 3
    assert server.tree() == before
    playbook.write_text(yaml.safe_dump(plays[:1], sort_keys=False))
    for changed in (2, 0):
        done = run_playbook(work, playbook, inventory=inventory, env=environment).ok()
        assert done.changed() == changed
    assert "Match Group jump\n" in server.drop_in.read_text()
    assert (server.directory / "keys/jump").read_text() == "ssh-ed25519 AAAA jump"
