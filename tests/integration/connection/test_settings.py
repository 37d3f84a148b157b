# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every setting of ansible.builtin.ssh is found where builtin finds it, and does the same."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.playbook import ansible_environment
from tests.support.trio import HOSTS, Row, Trio, commands

PLACES = ("vars", "env", "ini", "cli")


class Setting(NamedTuple):
    """A value, what it makes of a command line, and the names of its places."""

    value: str | int | bool
    shown: str
    vars: str
    env: str
    ini: str
    cli: str | None = None


SSH = "ssh_connection "
SETTINGS = [
    Setting(
        "-o ControlMaster=auto -o ControlPersist=61s",
        "-o ControlPersist=61s",
        "ansible_ssh_args",
        "ANSIBLE_SSH_ARGS",
        SSH + "ssh_args",
    ),
    Setting(
        "{ansible_ssh_common_args} -o ConnectionAttempts=2",
        "-o ConnectionAttempts=2",
        "ansible_ssh_common_args",
        "ANSIBLE_SSH_COMMON_ARGS",
        SSH + "ssh_common_args",
        "--ssh-common-args",
    ),
    *(
        Setting(
            value,
            value,
            f"ansible_{program}_extra_args",
            f"ANSIBLE_{program.upper()}_EXTRA_ARGS",
            f"{SSH}{program}_extra_args",
            f"--{program}-extra-args",
        )
        for program, value in {
            "ssh": "-o EscapeChar=none",
            "sftp": "-B 16384",
            "scp": "-l 900000",
        }.items()
    ),
    *(
        Setting(
            f"{{work}}/bin/{program}",
            f"{{work}}/bin/{program}",
            f"ansible_{program}_executable",
            f"ANSIBLE_{program.upper()}_EXECUTABLE",
            f"{SSH}{program}_executable",
        )
        for program in ("ssh", "sftp", "scp")
    ),
    Setting(
        "{work}/d",
        'ControlPath="{work}/d/',
        "ansible_control_path_dir",
        "ANSIBLE_SSH_CONTROL_PATH_DIR",
        SSH + "control_path_dir",
    ),
    Setting(
        "%(directory)s/s-%%h",
        'ControlPath="{work}/d/s-%h"',
        "ansible_control_path",
        "ANSIBLE_SSH_CONTROL_PATH",
        SSH + "control_path",
    ),
    Setting(
        "{ansible_port}",
        "-o Port={ansible_port}",
        "ansible_port",
        "ANSIBLE_REMOTE_PORT",
        "defaults remote_port",
    ),
    Setting(
        "{ansible_user}",
        '-o User="{ansible_user}"',
        "ansible_user",
        "ANSIBLE_REMOTE_USER",
        "defaults remote_user",
        "--user",
    ),
    Setting(
        "{ansible_ssh_private_key_file}",
        '-o IdentityFile="{ansible_ssh_private_key_file}"',
        "ansible_ssh_private_key_file",
        "ANSIBLE_PRIVATE_KEY_FILE",
        "defaults private_key_file",
        "--private-key",
    ),
    Setting(
        17,
        "-o ConnectTimeout=17",
        "ansible_ssh_timeout",
        "ANSIBLE_TIMEOUT",
        "defaults timeout",
        "--timeout",
    ),
    Setting(
        False,
        "-o StrictHostKeyChecking=no",
        "ansible_ssh_host_key_checking",
        "ANSIBLE_SSH_HOST_KEY_CHECKING",
        SSH + "host_key_checking",
    ),
    Setting(
        "scp",
        "/scp ",
        "ansible_ssh_transfer_method",
        "ANSIBLE_SSH_TRANSFER_METHOD",
        SSH + "transfer_method",
    ),
]


@pytest.mark.parametrize("place", PLACES)
def test_a_setting_counts(work: Path, make_trio: Callable[..., Trio], place: str) -> None:
    trio = make_trio()
    (work / "bin").mkdir()
    for program in ("ssh", "sftp", "scp"):
        (work / "bin" / program).symlink_to(str(shutil.which(program)))
    (work / "script").write_text("echo done\n")
    known = {**trio.variables, "work": str(work)}

    def filled(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: str(known[found[1]]), text)

    here = [one for one in SETTINGS if getattr(one, place)]
    given = {getattr(one, place): filled(str(one.value)) for one in here}
    how: dict[str, Any] = {}
    if place == "vars":
        trio.variables |= given
    else:
        # A variable would win over it.
        for one in here:
            trio.variables.pop(one.vars, None)
    if place == "env":
        how["env"] = given
    elif place == "ini":
        sections: dict[str, str] = defaultdict(str)
        for name, value in given.items():
            section, key = name.split()
            sections[section] += f"{key} = {value}\n"
        text = "".join(f"[{section}]\n{lines}" for section, lines in sections.items())
        (work / "ansible.cfg").write_text(text)
    elif place == "cli":
        how["args"] = [f"{option}={value}" for option, value in given.items()]

    script = {"script": {"cmd": "{{ work }}/script"}}
    done = {"stdout_lines": ["done"]}
    set_, other = ("sftp", "scp") if place == "cli" else ("scp", "sftp")
    rows = [
        Row("as set", script, {}, expected=done, ran=f"{set_} ssh"),
        Row(
            "the other way",
            script,
            {"ansible_ssh_transfer_method": other},
            expected=done,
            ran=f"{other} ssh",
        ),
    ]
    run = trio.run(rows, **how)
    for host in HOSTS:
        words = [word for task in commands(run).values() for line in task[host] for word in line]
        text = " ".join(words)
        for one in here:
            if one.vars == "ansible_control_path" and "ansible_bastion" in HOSTS[host]:
                continue  # such a name would be that of another host of the same address, too
            assert filled(one.shown) in text, (host, one)


def test_every_option_is_documented_alike(work: Path) -> None:
    names = ["ansible.builtin.ssh", "bastion.mux.ssh"]
    command = [sys.executable, "-m", "ansible", "doc", "--json", "-t", "connection", *names]
    said = subprocess.run(
        command, env=ansible_environment(work), capture_output=True, text=True, check=True
    )
    theirs, ours = (json.loads(said.stdout)[name]["doc"]["options"] for name in names)
    for name, option in theirs.items():
        for key in ("vars", "env", "ini", "cli", "keyword", "default", "type", "choices"):
            assert _plain(ours[name].get(key)) == _plain(option.get(key)), (name, key)


def _plain(value: Any) -> Any:
    """Without what says in which ansible-core a name came."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        kept = {key: one for key, one in value.items() if not key.startswith("version_added")}
        return {key: _plain(one) for key, one in kept.items()}
    return value
