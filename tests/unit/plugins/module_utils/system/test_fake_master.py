# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake master under the installed ssh: what the other tests trust it for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Iterator, List, Tuple, Union

import pytest

from tests.support import fake_master
from tests.support.fake_master import FakeMaster, Peer
from tests.support.workdir import short_dir

pytestmark = pytest.mark.skipif(
    shutil.which("ssh") is None, reason="OpenSSH's client (ssh) is not installed"
)

STREAMLOCAL = 0xFFFFFFFE


@pytest.fixture
def path() -> Iterator[Path]:
    with short_dir() as directory:
        yield directory / "s"


def ssh(path: Path, *options: str, command: str = "") -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-F", "/dev/null", "-S", str(path), *options, "--", "host"]
    return subprocess.run(
        argv + ([command] if command else []),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )


def test_check_says_the_pid(path: Path) -> None:
    with FakeMaster(path, pid=31337) as master:
        said = ssh(path, "-O", "check")
    assert (said.returncode, said.stderr) == (0, "Master running (pid=31337)\n")
    assert [asked.type for asked in master.requests] == [fake_master.ALIVE_CHECK]


LOCAL = (1, b"127.0.0.1", 8080, b"web", 80)


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (["-L", "127.0.0.1:8080:web:80"], LOCAL),
        (["-L", "8080:web:80"], (1, b"", 8080, b"web", 80)),
        (["-L", ":8080:web:80"], (1, b"*", 8080, b"web", 80)),
        (["-L", "/a:/b"], (1, b"/a", STREAMLOCAL, b"/b", STREAMLOCAL)),
        (["-R", "8080:web:80"], (2, b"", 8080, b"web", 80)),
        (["-R", "8080"], (2, b"", 8080, b"socks", 0)),
        (["-D", "[::1]:1080"], (3, b"::1", 1080, b"socks", 0)),
    ],
)
def test_forward_and_cancel(
    path: Path, options: List[str], values: Tuple[Union[int, bytes], ...]
) -> None:
    with FakeMaster(path) as master:
        assert ssh(path, "-O", "forward", *options).returncode == 0
        assert master.forwards == [values]
        assert ssh(path, "-O", "cancel", *options).stderr == ""
        assert master.forwards == []
        # It exits with 0 all the same.
        assert "port not forwarded" in ssh(path, "-O", "cancel", *options).stderr


def test_forward_prints_an_allocated_port(path: Path) -> None:
    with FakeMaster(path):
        said = [ssh(path, "-O", "forward", "-R", "0:web:80").stdout for _each in range(2)]
        said.append(ssh(path, "-O", "forward", "-R", "0:other:80").stdout)
    assert said == ["40000\n", "40000\n", "40001\n"]


def test_forward_of_a_taken_listener_fails(path: Path) -> None:
    with FakeMaster(path) as master:
        ssh(path, "-O", "forward", "-L", "127.0.0.1:8080:web:80")
        said = ssh(path, "-O", "forward", "-L", "127.0.0.1:8080:other:80")
        assert master.forwards == [LOCAL]
    assert said.returncode != 0
    assert "Port forwarding failed" in said.stderr


def test_exit_ends_it(path: Path) -> None:
    with FakeMaster(path):
        said = ssh(path, "-O", "exit")
        assert (said.returncode, said.stderr) == (0, "Exit request sent.\n")
        assert not path.exists()


def test_stop_removes_the_socket(path: Path) -> None:
    with FakeMaster(path):
        said = ssh(path, "-O", "stop")
        assert (said.returncode, said.stderr) == (0, "Stop listening request sent.\n")
        assert not path.exists()


def test_a_session_gets_its_output_and_status(path: Path) -> None:
    with FakeMaster(path) as master:
        master.exit_status = 3
        said = ssh(path, "-o", "SetEnv=A=b", command="true -v")
    assert (said.returncode, said.stdout) == (3, "output\n")
    values = master.requests[-1].values
    assert values[1:5] == (0, 0, 0, 0)
    assert values[7:] == (b"true -v", b"A=b")


def test_a_stdio_forwarding_gets_its_output(path: Path) -> None:
    with FakeMaster(path) as master:
        said = ssh(path, "-W", "web:80")
    assert said.stdout == "output\n"
    assert master.requests[-1].values == (b"", b"web", 80)


def test_another_version_is_refused(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.hello(version=5)

    with FakeMaster(path, script):
        said = ssh(path, "-O", "check")
    assert said.returncode != 0
    assert "version 5" in said.stderr
