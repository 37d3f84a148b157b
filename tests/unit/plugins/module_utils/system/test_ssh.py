# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How ssh is started and what becomes of what it says, with scripts in its place.

The real one is in tests/integration.
"""

from __future__ import annotations

import os
import resource
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import psutil
import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.target import (
    Argument,
    open_arguments,
)
from ansible_collections.bastion.mux.plugins.module_utils.system import ssh as ssh_module
from ansible_collections.bastion.mux.plugins.module_utils.system.askpass import Secrets
from ansible_collections.bastion.mux.plugins.module_utils.system.ssh import LostRace, Ssh
from tests.support.waiting import wait_for
from tests.support.workdir import short_dir

#: Where the script finds what it was given: -S PATH -E LOG come first.
HEAD = '#!/bin/sh\nhere=$(dirname "$0")\nlog=$4\n'

Script = Callable[[str], Ssh]


@pytest.fixture
def work() -> Iterator[Path]:
    with short_dir() as directory:
        yield directory


@pytest.fixture
def lines() -> List[str]:
    """What was logged."""
    return []


@pytest.fixture
def script(work: Path, lines: List[str]) -> Script:
    """An ssh which is this shell script."""

    def make(text: str) -> Ssh:
        path = work / "ssh"
        path.write_text(HEAD + textwrap.dedent(text))
        path.chmod(0o755)
        return Ssh(str(path), lines.append)

    return make


def failure(function: Callable[..., object], *args: Any, **keywords: Any) -> MuxError:
    with pytest.raises(MuxError) as caught:
        function(*args, **keywords)
    return caught.value


# Where it is


def test_one_that_is_missing_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/none")
    for name in ("ssh", "/none/ssh", "~/none"):
        error = failure(Ssh(name, print).version)
        assert error.reason == "ssh_missing"
        assert repr(name) in error.message
        assert "openssh-client" in error.message


def test_it_is_found_in_path_and_below_the_home(
    script: Script, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script("echo OpenSSH_1.0 >&2")
    monkeypatch.setenv("PATH", "%s:%s" % (work, os.environ["PATH"]))
    monkeypatch.setenv("HOME", str(work))
    for name in ("ssh", "~/ssh", str(work / "ssh")):
        ssh = Ssh(name, print)
        assert ssh.path == str(work / "ssh")
        assert ssh.version() == "OpenSSH_1.0"


def test_what_is_no_program_is_told(work: Path) -> None:
    path = work / "ssh"
    path.write_bytes(b"\x7fELF")
    path.chmod(0o755)
    ssh = Ssh(str(path), print)
    for error in (failure(ssh.version), failure(open_master, ssh, work)):
        assert error.reason == "ssh_missing"
        assert str(path) in error.message


# What it says of itself


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u3, OpenSSL 3.0.15 3 Sep 2024", "OpenSSH_9.2p1"),
        ("OpenSSH_10.0p2, LibreSSL 3.3.6", "OpenSSH_10.0p2"),
        ("OpenSSH_for_Windows_9.5p1, LibreSSL 3.8.2", "OpenSSH_for_Windows_9.5p1"),
        ("", ""),
    ],
)
def test_its_version(script: Script, said: str, version: str) -> None:
    assert script("echo '%s' >&2" % said).version() == version


def test_its_configuration(script: Script, work: Path) -> None:
    ssh = script(
        r"""
        printf '%s\n' "$@" >"$here/arguments"
        printf 'user me\nsetenv A=\377\302\205\nidentityfile a\nidentityfile b\n'
        echo 'a warning' >&2
        """
    )
    arguments = [Argument(("-p", "22"), "port")]
    assert ssh.effective(arguments, "bastion", "/s") == {
        "user": ["me"],
        "setenv": ["A=\udcff\x85"],
        "identityfile": ["a", "b"],
    }
    assert (work / "arguments").read_text().split() == "-v -p 22 -T -G -S /s -- bastion".split()
    ssh.effective(arguments, "bastion", None)
    assert (work / "arguments").read_text().split() == "-v -p 22 -T -G -- bastion".split()


@pytest.mark.parametrize(
    "said", ["OpenSSH_9.2p1 Debian-2, OpenSSL 3", "debug1: OpenSSH_9.2p1, X 1"]
)
def test_the_version_is_said_beside_the_configuration(
    script: Script, work: Path, said: str
) -> None:
    ssh = script(f"echo >>$here/calls; echo '{said}' >&2; echo 'user me'")
    ssh.effective([], "bastion", None)
    assert ssh.version() == "OpenSSH_9.2p1"
    assert (work / "calls").read_text() == "\n"


def test_a_configuration_that_it_refuses(script: Script) -> None:
    ssh = script(
        r"""
        echo 'debug1: OpenSSH_10.0p2 Debian-7, OpenSSL 3.5.9 29 Sep 2026' >&2
        echo 'debug1: Reading configuration data /c' >&2
        printf 'line 1: Bad\r\n\n/c: terminating \377\n' >&2
        exit 255
        """
    )
    error = failure(ssh.effective, [], "bastion", None)
    assert error.reason == "invalid"
    assert error.message.endswith("refuses its configuration: line 1: Bad; /c: terminating \udcff")


def test_a_configuration_that_hangs(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_module, "_LOCAL_TIMEOUT", 0.3)
    error = failure(script("exec sleep 60").effective, [], "bastion", None)
    assert error.reason == "timeout"
    assert "ssh -v -T -G -- bastion gave no answer" in error.message


# The start of a master


def open_master(
    ssh: Ssh, work: Path, *, secrets: Optional[Secrets] = None, timeout: float = 20
) -> None:
    path = str(work / "s")
    arguments = [*open_arguments(path, "yes", log=path + ".log"), Argument(("-p", "7"), "port")]
    ssh.open_master(
        arguments, "bastion", control_path=path, secrets=secrets or Secrets(), timeout=timeout
    )


def test_how_it_is_started(
    script: Script, work: Path, lines: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_ASKPASS", "/none")
    ssh = script(
        r"""
        printf '%s\n' "$@" >"$here/arguments"
        printf '%s ' $(ps -o pid=,sid=,tty= -p $$) "$SSH_ASKPASS_REQUIRE" >"$here/process"
        if read -r line; then exit 9; fi
        """
    )
    open_master(ssh, work)
    arguments = (work / "arguments").read_text().splitlines()
    assert arguments[:4] == ["-S", str(work / "s"), "-E", str(work / "s.log")]
    assert arguments[-4:] == ["-p", "7", "--", "bastion"]
    pid, session, terminal, require = (work / "process").read_text().split()
    assert pid == session
    assert terminal in ("?", "??")
    assert require == "never"
    assert "ssh -p 7 (port)" in lines


def test_it_may_open_many_files(script: Script, work: Path) -> None:
    # Each connection through a master is one.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        open_master(script('ulimit -n >"$here/files"'), work)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert int((work / "files").read_text()) == most


@pytest.mark.parametrize(
    ("does", "reason", "message"),
    [
        ("exit 3", "unreachable", "no master to bastion: ssh ended with status 3"),
        (
            "echo 'me@bastion: Permission denied (publickey).' >>$log; exit 255",
            "auth_failed",
            "no master to bastion: me@bastion: Permission denied (publickey).",
        ),
        (
            "echo 'Host key verification failed.' >&2; echo 'Connection closed' >>$log; exit 255",
            "host_key_unknown",
            "no master to bastion: Host key verification failed.\nConnection closed",
        ),
        (r"printf '\377\n' >&2; exit 255", "unreachable", "no master to bastion: \ufffd"),
        ("kill -9 $$", "unreachable", "no master to bastion: ssh ended with status -9"),
    ],
)
def test_why_there_is_none(
    script: Script, work: Path, does: str, reason: str, message: str
) -> None:
    (work / "s.log").write_text("Permission denied (of an earlier master)\n")
    error = failure(open_master, script(does), work)
    assert (error.reason, error.message) == (reason, message)


def test_a_login_that_hangs_ends_with_its_jump_hosts(script: Script, work: Path) -> None:
    ssh = script("sleep 600 & echo $! $$ >$here/pids; echo 'slow' >&2; wait")
    began = time.monotonic()
    error = failure(open_master, ssh, work, timeout=1)
    assert time.monotonic() - began < 10
    assert error.reason == "timeout"
    assert error.message == "the login did not end within 1 seconds: slow"
    pids = [int(pid) for pid in (work / "pids").read_text().split()]
    wait_for(lambda: not any(runs(pid) for pid in pids), "the end of ssh and its child")


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


LOST = "ControlSocket x already exists, disabling multiplexing"


@pytest.mark.parametrize("then", ["exit 0", "exit 255", "echo $$ >$here/pid; exec sleep 600"])
def test_a_lost_race_is_told_at_once_and_leaves_no_process(
    script: Script, work: Path, then: str
) -> None:
    ssh = script("echo '%s' >>$log; %s" % (LOST, then))
    with pytest.raises(LostRace):
        open_master(ssh, work)
    if (work / "pid").exists():
        assert not runs(int((work / "pid").read_text()))


def test_nobody_else_can_say_that_the_race_is_lost(script: Script, work: Path) -> None:
    open_master(script("echo '%s' >&2" % LOST), work)


def test_its_questions_are_answered_and_no_secret_is_seen(
    script: Script, work: Path, lines: List[str]
) -> None:
    ssh = script(
        """
        "$SSH_ASKPASS" "me@bastion's password: " >$here/answer
        ps -o args= -p $$ >$here/seen
        env >>$here/seen
        """
    )
    open_master(ssh, work, secrets=Secrets(password="the password"))
    assert (work / "answer").read_text() == "the password\n"
    assert "the password" not in (work / "seen").read_text() + "".join(lines)
    assert sorted(os.listdir(str(work))) == ["answer", "s.log", "seen", "ssh"]
