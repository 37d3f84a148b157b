# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master and ssh_forward where the disk of the control directory is full: it has no room for a
byte, or for a file. A failure says so and leaves nothing half done, and the next run finds room.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive, clients
from tests.support.services import free_port, listens
from tests.support.sshd import Sshd
from tests.support.tasks import CHANGES, SSH_FORWARD, STAYS, Tasks, close_all
from tests.support.waiting import wait_for

FULL = "No space left on device"

# The scenario faults has a full disk as well.
pytestmark = pytest.mark.long


class Disk:
    """A file system of 64 KiB and 32 files at `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def fill(self) -> None:
        """No room for a byte; files can still be made."""
        with contextlib.suppress(OSError), (self.directory / "full").open("wb", 0) as ballast:
            while True:
                ballast.write(b"\0" * 4096)

    def leave(self, files: int) -> None:
        """Room for so many files, and for what is in them."""
        made: list[Path] = []
        with contextlib.suppress(OSError):
            while True:
                made.append(self.directory / f"full{len(made)}")
                made[-1].touch()
        for path in made[:files]:
            path.unlink()

    def empty(self) -> None:
        """There is room again."""
        for path in self.directory.glob("full*"):
            path.unlink()

    def names(self) -> list[str]:
        """What else lies there."""
        return sorted(name for name in os.listdir(self.directory) if not name.startswith("full"))


@pytest.fixture
def disk(path: Path, closed: None) -> Iterator[Disk]:
    path.parent.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=33,mode=0700", "none"]
    if subprocess.run([*mount, str(path.parent)], capture_output=True, check=False).returncode:
        pytest.skip("only who may mount a file system can have a small one")
    yield Disk(path.parent)
    close_all(path.parent)
    subprocess.run(["umount", str(path.parent)], check=True)


@pytest.fixture
def tasks(tasks: Tasks, path: Path, disk: Disk) -> Tasks:
    tasks.params["control_path"] = str(path)
    return tasks


class TestOpening:
    def healed(self, tasks: Tasks, disk: Disk, params: dict[str, Any]) -> None:
        """There is room: the next run opens it, and it is ours."""
        disk.empty()
        rows = tasks.rows(**params)
        assert rows.changed == CHANGES
        assert rows.again["master"]["managed"] is True
        assert disk.names() == ["s", "s.json", "s.log"]
        assert tasks.one(state="absent").changed
        assert disk.names() == []

    def test_without_room_for_a_byte(self, tasks: Tasks, disk: Disk, bastion: Sshd) -> None:
        params: dict[str, Any] = {"dynamic": [f"127.0.0.1:{free_port()}"]}
        disk.fill()
        failed = tasks.fails(**params)
        assert failed["reason"] == "invalid"
        assert FULL in failed.msg
        assert str(disk.directory) in failed.msg
        assert failed["changed"] is False
        # It is known before: a login that fails could not tell its reason.
        assert bastion.connections() == 0
        assert disk.names() == []
        self.healed(tasks, disk, params)

    def test_with_room_for_some_of_its_files(self, tasks: Tasks, disk: Disk, bastion: Sshd) -> None:
        """The lock, the log, the socket under its temporary name and its own, the ledger: each."""
        port = free_port()
        params: dict[str, Any] = {"dynamic": [f"127.0.0.1:{port}"]}
        opened, ledgers = 0, 0
        for files in range(7):
            disk.leave(files)
            result = tasks.play(tasks.task(**params)).task("do")
            if not result.failed:
                opened += 1
                disk.empty()
                assert tasks.one(**params).changed is False
                tasks.one(state="absent")
                continue
            assert result["reason"] == "invalid", files
            assert FULL in result.msg
            if result["changed"]:
                # It runs, only that it has a forwarding could not be written.
                ledgers += 1
                disk.empty()
                rows = tasks.rows(**params)
                assert rows.changed == STAYS
                assert rows.again["master"]["managed"] is True
                assert listens(("127.0.0.1", port))
                tasks.one(state="absent")
            else:
                assert not clients(bastion.port), files
                assert disk.names() in ([], ["s.lock"]), files
                self.healed(tasks, disk, params)
            assert not clients(bastion.port)
            assert disk.names() == []
        assert 0 < opened < 6
        assert ledgers == 1


class TestRunning:
    @pytest.fixture
    def opened(self, tasks: Tasks, disk: Disk) -> Any:
        """What was returned of a master; then the disk becomes full."""
        master = tasks.one()["master"]
        disk.fill()
        return master

    def test_goes_on(self, tasks: Tasks, opened: Any) -> None:
        rows = tasks.rows()
        assert rows.changed == STAYS
        assert rows.do["master"]["pid"] == opened["pid"]

    def test_can_be_closed(self, tasks: Tasks, opened: Any, disk: Disk) -> None:
        assert tasks.rows(state="absent").changed == CHANGES
        assert disk.names() == []
        assert not alive(opened["pid"])

    def test_is_not_replaced(
        self, tasks: Tasks, ssh: Ssh, opened: Any, disk: Disk, path: Path, bastion: Sshd
    ) -> None:
        for params in ({"state": "restarted"}, {"alive_interval": 7}):
            failed = tasks.fails(**params)
            assert failed["reason"] == "invalid"
            assert FULL in failed.msg
            assert failed["changed"] is False
            assert ssh.master_pid(path) == opened["pid"]
            assert disk.names() == ["s", "s.json", "s.log"]
        assert len(clients(bastion.port)) == 1
        disk.empty()
        assert tasks.rows(alive_interval=7).changed == CHANGES

    def test_is_replaced_or_goes_on(
        self, tasks: Tasks, ssh: Ssh, disk: Disk, path: Path, bastion: Sshd
    ) -> None:
        """With room for so many files, whichever of those of a hand-over is the first without."""
        old = tasks.one()["master"]["pid"]
        replaced = 0
        for files in range(7):
            disk.leave(files)
            result = tasks.play(tasks.task(state="restarted")).task("do")
            now = ssh.master_pid(path)
            if result.failed:
                assert (result["reason"], now) == ("invalid", old), (files, result.msg)
                assert FULL in result.msg
            else:
                assert now not in (None, old)
                replaced += 1
            disk.empty()
            assert disk.names() in (["s", "s.json", "s.log"], ["s", "s.json", "s.lock", "s.log"])
            wait_for(lambda: len(clients(bastion.port)) == 1, "the end of the other one")
            rows = tasks.rows()
            assert rows.changed == STAYS
            assert rows.again["master"]["managed"] is True
            old = rows.again["master"]["pid"]
        assert 0 < replaced < 7

    def test_has_what_could_not_be_written(self, tasks: Tasks, opened: Any, disk: Disk) -> None:
        """The next run sees it."""
        port, chosen, remote = free_port(), "0:a:1", free_port()
        params: dict[str, Any] = {
            "module": SSH_FORWARD,
            "local": [f"127.0.0.1:{port}:a:1", chosen],
            "remote": [f"127.0.0.1:{remote}:a:1"],
        }
        failed = tasks.fails(**params)
        assert failed["reason"] == "invalid"
        assert FULL in failed.msg
        assert failed["changed"] is True
        assert disk.names() == ["s", "s.json", "s.log"]
        disk.empty()
        again = tasks.rows(**params)
        assert again.changed[2:] == (False, False)
        assert len(again.again["forwards"]) == 3
        assert listens(("127.0.0.1", port))
        assert listens(("127.0.0.1", remote))
        assert tasks.rows(state="absent", **params).changed == CHANGES
        assert not listens(("127.0.0.1", port))
        assert not listens(("127.0.0.1", remote))
