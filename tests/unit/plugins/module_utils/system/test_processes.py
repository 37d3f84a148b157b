# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes by id and start time: seen, waited for, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Iterator, List

import psutil
import pytest

from ansible_collections.bastion.mux.plugins.module_utils.system import processes
from tests.support.waiting import wait_for

SLEEP = ["sleep", "3600"]
STUBBORN = ["sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done"]


@contextlib.contextmanager
def child(arguments: List[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours, and of its own group, until the end of the block."""
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def started(process: subprocess.Popen[bytes]) -> float:
    found = processes.start_time(process.pid)
    assert found is not None
    return found


def test_when_a_process_was_started() -> None:
    before = time.time()
    with child(SLEEP) as process:
        # Counted from the boot, and rounded.
        assert before - 1.1 < started(process) < time.time() + 1.1
        assert processes.is_running(process.pid, started(process))
        assert not processes.is_running(process.pid, started(process) - 60)
        process.kill()
        # Nobody has collected it yet.
        wait_for(lambda: processes.start_time(process.pid) is None, "the end of the process")
        assert psutil.pid_exists(process.pid)
    assert processes.start_time(process.pid) is None
    assert not processes.is_running(process.pid, before)


@pytest.mark.parametrize("pid", [-1, 2**31 - 1])
def test_what_is_no_process_has_no_start(pid: int) -> None:
    assert processes.start_time(pid) is None


def test_the_boot_was_before_us() -> None:
    found = processes.start_time(os.getpid())
    assert found is not None
    assert 0 < processes.boot_time() < found + 1


def test_who_has_a_file_open(tmp_path: Path) -> None:
    path, link, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    other.touch()
    link.symlink_to(path)
    with path.open("a"):
        assert processes.has_open(os.getpid(), str(path))
        assert processes.has_open(os.getpid(), str(link))
        assert not processes.has_open(os.getpid(), str(other))
        assert not processes.has_open(os.getpid(), str(tmp_path / "none"))
        with child(SLEEP) as process:
            assert not processes.has_open(process.pid, str(path))
    assert not processes.has_open(os.getpid(), str(path))
    assert not processes.has_open(2**31 - 1, str(path))


def test_waiting_ends_with_the_condition_or_the_time() -> None:
    answers = iter([False, False, True])
    assert processes.wait_until(lambda: next(answers), 10)
    began = time.monotonic()
    assert not processes.wait_until(lambda: False, 0.1)
    assert time.monotonic() - began < 5
    assert processes.wait_until(lambda: True, 0)


def test_one_that_obeys_is_asked() -> None:
    with child(SLEEP) as process:
        assert processes.end(process.pid, started(process), grace=10)
        assert process.wait(5) == -signal.SIGTERM
        assert processes.end(process.pid, time.time(), grace=10)


def test_one_that_is_stopped_is_woken_to_obey() -> None:
    with child(SLEEP) as process:
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(process.pid).status() == "stopped", "the stop")
        assert processes.end(process.pid, started(process), grace=10)
        assert process.wait(5) == -signal.SIGTERM


def test_one_that_does_not_obey_is_killed() -> None:
    with child(STUBBORN) as process:
        assert process.stdout
        process.stdout.readline()
        assert processes.end(process.pid, started(process), grace=0.1)
        assert process.wait(5) == -signal.SIGKILL


def test_another_of_the_same_id_is_left_alone() -> None:
    with child(SLEEP) as process:
        assert processes.end(process.pid, started(process) - 60, grace=0)
        assert process.poll() is None


@pytest.mark.parametrize(("error", "gone"), [(PermissionError, False), (ProcessLookupError, True)])
def test_one_that_cannot_be_signalled(
    monkeypatch: pytest.MonkeyPatch, error: type, gone: bool
) -> None:
    def kill(pid: int, number: int) -> None:
        raise error

    with child(SLEEP) as process:
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", kill)
            assert processes.end(process.pid, started(process), grace=0) is gone
        assert process.poll() is None


# Which process it is


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("/a.b/s", True),
        ("/a.b/s.0123456789abcDEF", True),
        ("/a.b/s.0123456789abcDE", False),
        ("/a.b/s.0123456789abcDEFg", False),
        ("/a.b/s.0123456789abcDE/", False),
        ("/a.b/s\n", False),
        ("/aXb/s", False),
        ("/x/a.b/s", False),
        ("", False),
    ],
)
def test_the_names_of_a_control_socket(name: str, names: bool) -> None:
    assert processes.names_socket(name, "/a.b/s") is names


def test_a_process_is_found_by_all_of_its_arguments_also_behind_a_wrapper() -> None:
    arguments = ["sleep", "3600.%d" % os.getpid()]
    since = time.time()
    with child(arguments) as process:
        wait_for(lambda: processes.with_arguments(arguments, since), "the process")
        assert processes.with_arguments(arguments, since) == [process.pid]
        assert processes.with_arguments(["/usr/bin/ssh-wrapper", arguments[1]], since) == [
            process.pid
        ]
        assert processes.with_arguments(arguments, since + 60) == []
        assert processes.with_arguments(["sleep", "another"], since) == []


def test_the_sockets_of_a_process() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        found = processes.connections(psutil.Process(), "tcp")
        assert listener.getsockname() in [tuple(one.laddr) for one in found]
