# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What no module takes: refused with a message to act on, before anything is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.sshd import Sshd
from tests.support.tasks import SSH_FORWARD, SSH_MASTER, Tasks

SPELLING = "expected [bind_address:]port:host:hostport"

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (SSH_MASTER, {"wrong": 1}, "invalid", "Unsupported parameters: wrong."),
    (SSH_MASTER, {"port": "x"}, "invalid", "unable to convert to int"),
    (SSH_MASTER, {"host": "-oProxyCommand=touch pwned"}, "invalid", "begins with a dash"),
    (SSH_MASTER, {"host": "a\nb"}, "invalid", "contains a control character"),
    (SSH_MASTER, {"host": ""}, "invalid", "host: is empty"),
    (SSH_MASTER, {"host": "a b"}, "invalid", "contains white space"),
    (SSH_MASTER, {"user": "-x"}, "invalid", "user: '-x' begins with a dash"),
    (SSH_MASTER, {"jump": ["-x", "b"]}, "invalid", "jump: '-x' begins with a dash"),
    (SSH_MASTER, {"persist": "soon"}, "invalid", "neither yes, no nor a time such as 10m"),
    (SSH_MASTER, {"ssh_options": {"Bogus": 1}}, "invalid", "Bad configuration option: bogus"),
    (SSH_MASTER, {"ssh_options": {"LocalCommand": "a\nb"}}, "invalid", "control character"),
    (SSH_MASTER, {"ssh_executable": "/no/ssh"}, "ssh_missing", "install an OpenSSH client"),
    (SSH_MASTER, {"control_path": "relative/x"}, "invalid", "is not absolute"),
    (SSH_MASTER, {"control_path": "/tmp/x"}, "control_dir_insecure", "writable by others"),
    (SSH_MASTER, {"control_path": "/c/" + "x" * 120}, "control_path_too_long", "has 123 bytes"),
    (SSH_FORWARD, {"local": ["abc"]}, "invalid", SPELLING),
    (SSH_FORWARD, {"local": ["1:2:3:4:5"]}, "invalid", SPELLING),
    (SSH_FORWARD, {"local": ["::1:8124:web:80"]}, "invalid", SPELLING),
    (SSH_FORWARD, {"local": ["99999:a:1"]}, "invalid", "'99999' is not a port number"),
    (SSH_FORWARD, {"dynamic": ["a\tb:1080"]}, "invalid", "contains"),
]


def test_refused_before_anything_is_done(work: Path, bastion: Sshd) -> None:
    params = {"host": "bastion", "ssh_config": str(bastion.ssh_config())}
    tasks = Tasks(work, params)
    given = [
        {**tasks.task(str(number), module, **wrong), "ignore_errors": True}
        for number, (module, wrong, _reason, _words) in enumerate(REFUSED)
    ]
    played = tasks.play(*given).ok()
    assert "Traceback" not in played.stdout + played.stderr
    for number, (_module, wrong, reason, words) in enumerate(REFUSED):
        refused = played.task(str(number))
        assert refused.failed, wrong
        assert refused["reason"] == reason, wrong
        assert words in refused.msg, wrong
    assert bastion.connections() == 0
    assert not (work / "h" / ".ansible" / "mux").exists()
    assert not (work / "pwned").exists()


@pytest.mark.parametrize("how", [{}, {"delegate_to": "localhost"}])
def test_as_an_action_and_as_a_module(work: Path, how: dict[str, str]) -> None:
    tasks = Tasks(work, {"host": "-x"})
    failed = tasks.play({**tasks.task(), **how}).task("do")
    assert (failed.failed, failed["reason"]) == (True, "invalid")
    assert "begins with a dash" in failed.msg
