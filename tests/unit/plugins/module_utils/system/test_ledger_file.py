# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger's file, and the lock around every change of a master."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Iterator, List, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import REASONS, MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.ledger import Ledger, dump
from ansible_collections.bastion.mux.plugins.module_utils.system import ledger_file

LEDGER = Ledger(pid=4242, started=1.5, managed=True, target={"host": "bastion"})

shared_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A control path."""
    return str(tmp_path / "s")


# The ledger


def test_what_is_written_is_read_until_it_is_removed(path: str) -> None:
    assert ledger_file.read(path) is None
    ledger_file.write(path, LEDGER)
    assert ledger_file.read(path) == LEDGER
    assert os.stat(path + ".json").st_mode & 0o7777 == 0o600
    ledger_file.remove(path)
    ledger_file.remove(path)
    assert os.listdir(os.path.dirname(path)) == []


def test_who_reads_meanwhile_reads_the_old_one_whole(path: str) -> None:
    ledger_file.write(path, LEDGER)
    with open(path + ".json", encoding="utf-8") as reader:
        ledger_file.write(path, Ledger(1, 2.0))
        assert reader.read() == dump(LEDGER)
    assert ledger_file.read(path) == Ledger(1, 2.0)
    assert os.listdir(os.path.dirname(path)) == ["s.json"]


def test_what_a_run_left_that_was_killed_does_not_stay(path: str) -> None:
    half = Path(path + ".json.new")
    for left_by in (half.touch, lambda: half.write_text(dump(LEDGER)[:9])):
        left_by()
        ledger_file.write(path, LEDGER)
        assert ledger_file.read(path) == LEDGER
        assert os.listdir(os.path.dirname(path)) == ["s.json"]
    half.touch()
    ledger_file.remove(path)
    assert os.listdir(os.path.dirname(path)) == []


def test_what_is_no_file_of_ours_is_no_ledger(path: str, tmp_path: Path) -> None:
    ledger = tmp_path / "s.json"
    other = tmp_path / "other"
    other.write_text(dump(LEDGER))
    ledger.symlink_to(other)
    assert ledger_file.read(path) is None
    ledger.unlink()
    os.mkfifo(str(ledger))
    assert ledger_file.read(path) is None
    ledger.unlink()
    ledger.mkdir()
    assert ledger_file.read(path) is None
    ledger.rmdir()
    os.rename(str(other), str(ledger))
    assert ledger_file.read(path) == LEDGER


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_is_no_ledger(path: str) -> None:
    ledger_file.write(path, LEDGER)
    os.chown(path + ".json", 12345, -1)
    assert ledger_file.read(path) is None


@shared_directory
@given(st.binary() | st.binary().map(lambda some: dump(LEDGER).encode() + some))
def test_any_bytes_are_a_ledger_or_none(path: str, data: bytes) -> None:
    Path(path + ".json").write_bytes(data)
    assert ledger_file.read(path) in (None, LEDGER)


def test_one_that_cannot_be_written_is_told_and_leaves_nothing(path: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").mkdir()
    for control_path in (path, str(tmp_path / "none" / "s")):
        with pytest.raises(MuxError) as caught:
            ledger_file.write(control_path, LEDGER)
        assert caught.value.reason == "invalid"
        assert control_path + ".json" in caught.value.message
    assert os.listdir(str(tmp_path)) == ["s.json"]


# The lock


def test_one_that_a_killed_run_left_is_told_from_others(path: str) -> None:
    assert not ledger_file.is_left(path)
    with ledger_file.lock(path, timeout=1) as lock:
        assert not lock.left
        assert not ledger_file.is_left(path)
        lock.fail("k", None, DENIED)
    assert not ledger_file.is_left(path)
    with ledger_file.lock(path, timeout=1) as lock:
        assert not lock.left
    Path(path + ".lock").touch()
    assert ledger_file.is_left(path)
    with ledger_file.lock(path, timeout=1) as lock:
        assert lock.left
    assert not ledger_file.is_left(path)
    assert os.listdir(os.path.dirname(path)) == []


def test_one_has_it_at_a_time(path: str) -> None:
    inside: List[int] = []
    most: List[int] = []

    def change() -> None:
        with ledger_file.lock(path, timeout=10):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()

    threads = [threading.Thread(target=change) for _each in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 10
    assert os.listdir(os.path.dirname(path)) == []


HOLD = """\
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def held(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process which holds the lock."""
    command = [sys.executable, "-I", "-S", "-c", HOLD, path + ".lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def test_who_waits_too_long_is_told(path: str) -> None:
    with held(path), pytest.raises(MuxError) as caught, ledger_file.lock(path, timeout=0.1):
        pass
    assert caught.value.reason == "timeout"
    assert path + ".lock" in caught.value.message


def test_it_ends_with_the_process_that_had_it(path: str) -> None:
    with held(path) as process:
        process.kill()
        with ledger_file.lock(path, timeout=10):
            pass


def test_a_lock_whose_file_was_removed_holds_nobody_off_and_is_not_taken(path: str) -> None:
    with held(path) as process:
        os.unlink(path + ".lock")
        with ledger_file.lock(path, timeout=0):
            # Removed again, while another waits for it: that one makes a new file.
            waiting = threading.Thread(target=lambda: got(path))
            waiting.start()
            time.sleep(0.05)
        waiting.join(10)
        assert not waiting.is_alive()
        process.kill()
    assert os.listdir(os.path.dirname(path)) == []


def got(path: str) -> None:
    with ledger_file.lock(path, timeout=10):
        assert os.path.exists(path + ".lock")


def test_whether_a_run_holds_it_is_seen_without_making_a_file(path: str) -> None:
    assert ledger_file.settles(path, timeout=10) is False
    assert os.listdir(os.path.dirname(path)) == []
    with ledger_file.lock(path, timeout=0) as lock:
        assert ledger_file.settles(path, timeout=0) is True
        lock.fail("k", None, DENIED)
    # A failure that was left there holds nobody.
    assert ledger_file.settles(path, timeout=10) is False


def test_who_waits_for_a_run_sees_its_end(path: str) -> None:
    seen: List[bool] = []
    with ledger_file.lock(path, timeout=0):
        waiting = threading.Thread(
            target=lambda: seen.append(ledger_file.settles(path, timeout=10))
        )
        waiting.start()
        time.sleep(0.1)
        assert seen == []
    waiting.join(10)
    assert seen == [True]


def test_a_ledger_that_is_written_again_has_another_stamp(path: str) -> None:
    assert ledger_file.stamp(path) is None
    ledger_file.write(path, LEDGER)
    first = ledger_file.stamp(path)
    assert first is not None
    assert ledger_file.stamp(path) == first
    ledger_file.write(path, LEDGER)
    assert ledger_file.stamp(path) not in (None, first)


def test_a_lock_that_cannot_be_made_is_told(path: str, tmp_path: Path) -> None:
    (tmp_path / "s.lock").symlink_to(tmp_path / "other")
    for control_path in (path, str(tmp_path / "none" / "s")):
        with pytest.raises(MuxError) as caught, ledger_file.lock(control_path, timeout=0):
            pass
        assert caught.value.reason == "invalid"
    assert not (tmp_path / "other").exists()


def test_an_error_of_the_change_releases_it(path: str) -> None:
    with pytest.raises(ZeroDivisionError), ledger_file.lock(path, timeout=0):
        raise ZeroDivisionError
    assert os.listdir(os.path.dirname(path)) == []


# A failure that is shared

DENIED = MuxError("auth_failed", "Permission denied (publickey)")


def shared(path: str, key: str, round_: Optional[str]) -> Optional[str]:
    """What one is told who comes now."""
    with ledger_file.lock(path, timeout=10) as lock:
        error = lock.failure(key, round_)
        return None if error is None else "%s: %s" % (error.reason, error.message)


TOLD = "auth_failed: Permission denied (publickey)"


@pytest.mark.parametrize(
    ("failed", "comes", "told"),
    [
        (("k", "task"), ("k", "task"), TOLD),
        (("k", "task"), ("other", "task"), None),
        (("k", "task"), ("k", "next task"), None),
        (("k", "task"), ("k", None), None),
        (("k", None), ("k", None), None),
    ],
)
def test_who_comes_later_shares_it_in_the_same_task(
    path: str, failed: Any, comes: Any, told: Optional[str]
) -> None:
    with ledger_file.lock(path, timeout=0) as lock:
        lock.fail(failed[0], failed[1], DENIED)
    assert shared(path, comes[0], comes[1]) == told
    # Whoever does not share it tries for himself, and what was written is gone.
    assert os.path.exists(path + ".lock") is (told is not None)


def test_who_waited_shares_it_whatever_the_task(path: str) -> None:
    told: List[Optional[str]] = []
    with ledger_file.lock(path, timeout=0) as lock:
        waiting = [
            threading.Thread(target=lambda: told.append(shared(path, "k", None)))
            for _each in range(3)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
        lock.fail("k", "task", DENIED)
    for thread in waiting:
        thread.join()
    assert told == [TOLD] * 3


def test_it_is_shared_for_a_while(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger_file.lock(path, timeout=0) as lock:
        lock.fail("k", "task", DENIED)
    now = time.time()
    for moment, told in ((now + 50, TOLD), (now - 5, TOLD), (now + 70, None)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda moment=moment: moment)
            assert shared(path, "k", "task") == told


def test_a_long_one_is_shared_whole(path: str) -> None:
    long = MuxError("unreachable", "b\u00e4nner" * 20000)
    with ledger_file.lock(path, timeout=0) as lock:
        lock.fail("k", "task", DENIED)
        lock.fail("k", "task", long)
        lock.fail("k", "task", DENIED)
        lock.fail("k", "task", long)
    assert shared(path, "k", "task") == "unreachable: " + long.message


RECORD = {"key": "k", "round": "task", "at": time.time(), "reason": "drift", "message": "m"}
damaged = (
    st.binary()
    | st.sampled_from(sorted(RECORD)).flatmap(
        lambda name: (
            st.none() | st.text() | st.integers() | st.floats() | st.lists(st.none())
        ).map(lambda value: json.dumps({**RECORD, name: value}).encode())
    )
    | st.just(b"[" * 100000)
)


@shared_directory
@given(damaged)
def test_whatever_stands_there_is_a_failure_or_none(path: str, data: bytes) -> None:
    Path(path + ".lock").write_bytes(data)
    told = shared(path, "k", "task")
    assert told is None or told.split(": ")[0] in REASONS
