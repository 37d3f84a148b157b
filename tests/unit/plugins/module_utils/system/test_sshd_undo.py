# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change is kept, undone and confirmed, whatever was done of it; what proc(5) tells of sshd."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.system import sshd_change, sshd_undo
from ansible_collections.bastion.mux.plugins.module_utils.system.sshd_change import (
    Change,
    Plan,
    Write,
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.geteuid() != 0,
    reason="it is for root on Linux: it gives files to root, and reads proc(5)",
)


def tree(top: Path) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content: Any = None
        if path.is_symlink():
            content = os.readlink(str(path))
        elif path.is_file():
            content = path.read_bytes()
        attributes = {name: os.getxattr(path, name) for name in user_attributes(path)}
        found[str(path.relative_to(top))] = (
            status.st_uid,
            status.st_gid,
            oct(status.st_mode),
            content,
            attributes,
        )
    return found


def user_attributes(path: Path) -> List[str]:
    if path.is_symlink():
        return []
    try:
        return [name for name in os.listxattr(path) if name.startswith("user.")]
    except OSError:
        return []


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory with a configuration, a drop-in and files."""
    furnish(tmp_path)
    return tmp_path


def furnish(tmp_path: Path) -> None:
    os.chown(tmp_path, 0, 0)
    config = tmp_path / "sshd_config"
    config.write_bytes(b"Port 22\r\nno newline")
    config.chmod(0o640)
    os.chown(config, 0, 4)
    (tmp_path / "d").mkdir(mode=0o700)
    os.chown(tmp_path / "d", 0, 4)
    (tmp_path / "d/drop.conf").write_bytes(b"\xff")
    (tmp_path / "files/keys").mkdir(parents=True)
    (tmp_path / "files/keys/alice").write_bytes(b"key")
    (tmp_path / "files/link").symlink_to("/etc/passwd")
    os.mkfifo(str(tmp_path / "files/pipe"))


def plan(top: Path, *, changes: bool = True) -> Plan:
    """All that a change can be: new, other and removed files and directories."""
    files = top / "files"

    def write(name: str, after: Optional[bytes], *, keeps: bool = False) -> Write:
        path = top / name
        there = path.is_file() and not path.is_symlink()
        before = path.read_bytes() if there else None
        return Write(str(path), before, after, 0o644, keeps)

    return Plan(
        config=str(top / "sshd_config"),
        directory=str(files),
        listed=[str(path) for path in sorted(files.rglob("*"))],
        made=[str(files / "new")] if changes else [],
        removed=[str(files / "keys")] if changes else [],
        modes=[(str(top / "d"), 0o700)] if changes else [],
        writes=[
            write("files/new/bob", b"bob"),
            write("d/drop.conf", None, keeps=True),
            write("sshd_config", b"Port 23\n", keeps=True),
            write("files/keys/alice", None),
            write("files/link", None),
            *([write("files/pipe", None)] if (files / "pipe").exists() else []),
        ],
    )


def begin(top: Path, what: Plan, seconds: int = 0) -> Change:
    change = Change(str(top / "sshd_config"))
    change.begin(what, listener=None, addresses=[], reload=False, confirm_within=seconds)
    return change


def test_a_change_is_made_and_undone(top: Path) -> None:
    before = tree(top)
    what = plan(top)
    change = begin(top, what)
    assert change.state() == sshd_change.UNFINISHED
    sshd_change.apply(what)
    assert (top / "sshd_config").read_bytes() == b"Port 23\n"
    status = (top / "sshd_config").stat()
    assert (status.st_gid, status.st_mode & 0o777) == (4, 0o640)
    assert not (top / "files/keys").exists()
    assert not (top / "files/link").is_symlink()
    assert (top / "d").stat().st_mode & 0o777 == 0o755
    change.applied()
    assert change.state() == sshd_change.LEFT
    change.undo()
    assert change.state() == sshd_change.NONE
    assert tree(top) == before


@pytest.mark.parametrize("steps", range(10))
def test_half_a_change_is_undone_and_half_undone_is_undone(top: Path, steps: int) -> None:
    """Killed after so many steps of the change, and once more in the middle of undoing it."""
    before = tree(top)
    what = plan(top)
    change = begin(top, what)

    class Killed(BaseException):
        pass

    actions: List[Callable[[], None]] = [
        *(partial(os.mkdir, path, 0o755) for path in what.made),
        *(partial(os.chmod, path, 0o755) for path, _mode in what.modes),
        *(partial(sshd_change._write, write) for write in what.writes),
        *(partial(os.rmdir, path) for path in what.removed),
    ]
    assert len(actions) == 9
    for action in actions[:steps]:
        action()
    real = os.replace
    done: List[Any] = []

    def replace(*arguments: Any) -> None:
        real(*arguments)
        done.append(arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace)
        try:
            change.undo()
        except Killed:
            assert done
    if change.state() != sshd_change.NONE:
        change.undo()
    assert tree(top) == before


def test_what_is_confirmed_stays(top: Path) -> None:
    what = plan(top)
    change = begin(top, what)
    sshd_change.apply(what)
    change.applied()
    after = {name: what for name, what in tree(top).items() if sshd_change.SUFFIX not in name}
    change.confirm()
    assert tree(top) == after


def test_another_file_system_is_copied_to(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_arguments: Any, **_options: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    (top / "files/pipe").unlink()
    before = tree(top)
    what = plan(top)
    change = begin(top, what)
    sshd_change.apply(what)
    change.undo()
    assert tree(top) == before


def test_a_deadline_is_kept_by_a_process_of_its_own(top: Path) -> None:
    before = tree(top)
    what = plan(top)
    change = begin(top, what, 900)
    sshd_change.apply(what)
    change.applied()
    assert change.state() == sshd_change.WAITING
    change.renew(0)
    assert sshd_undo.wait_until(lambda: change.state() == sshd_change.UNDONE, 20)
    note = change.undone()
    assert note is not None
    assert "nobody confirmed" in note["why"]
    # The process may be tidying up still.
    with sshd_change.locked(change.config):
        change.forget()
    assert tree(top) == before


def test_more_time_is_more_time(top: Path) -> None:
    what = plan(top)
    change = begin(top, what, 900)
    sshd_change.apply(what)
    change.applied()
    with sshd_change.locked(change.config):
        # It is over, and the process waits for the lock ...
        change.renew(0)
        time.sleep(0.5)
        # ... to find that it is not.
        change.renew(900)
    time.sleep(0.5)
    assert change.state() == sshd_change.WAITING
    change.confirm()
    assert change.state() == sshd_change.NONE


def test_it_is_confirmed_in_the_last_moment(top: Path) -> None:
    """The process waits for the lock by then, and we for the process."""
    what = plan(top)
    change = begin(top, what, 900)
    sshd_change.apply(what)
    change.applied()
    timer = Path(change.folder) / sshd_undo.TIMER
    with sshd_change.locked(change.config), open(timer, "rb") as held:
        change.renew(0)
        time.sleep(0.5)
        change.confirm()
        assert sshd_change._can_lock(held.fileno()), "it lives on"
    assert change.state() == sshd_change.NONE


def test_what_is_half_undone_is_not_for_confirmation(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_plan: Dict[str, Any]) -> None:
        raise sshd_undo.Failure("sshd does not answer")

    before = tree(top)
    what = plan(top)
    change = Change(str(top / "sshd_config"))
    change.begin(what, listener=None, addresses=[], reload=True, confirm_within=0)
    sshd_change.apply(what)
    change.applied()
    with monkeypatch.context() as patch:
        patch.setattr(sshd_undo, "settle", fails)
        with pytest.raises(MuxError, match="state: restored") as caught:
            change.undo()
    assert caught.value.reason == "not_running"
    assert change.state() == sshd_change.UNFINISHED
    change.undo()
    assert tree(top) == before


def test_what_could_not_be_kept_is_not_begun(top: Path) -> None:
    before = tree(top)
    what = plan(top)
    bad = Plan(**{**what.__dict__, "removed": [str(top / "nowhere")]})
    with pytest.raises(FileNotFoundError):
        begin(top, bad)
    assert tree(top) == before


@pytest.mark.parametrize("in_place", [True, False])
def test_somebody_elses_change_in_between_is_not_lost(top: Path, in_place: bool) -> None:
    config = top / "sshd_config"
    what = plan(top)
    change = begin(top, what)
    theirs = config if in_place else top / "new"
    theirs.write_bytes(b"by hand")
    theirs.replace(config)
    with pytest.raises(MuxError, match="changed at the same time"):
        sshd_change.apply(what)
    change.undo()
    kept = config if in_place else top / "sshd_config.bastion.mux-kept-sshd_config"
    assert kept.read_bytes() == b"by hand"


def test_the_script_imports_nothing_of_ours(top: Path) -> None:
    change = begin(top, plan(top))
    script = Path(change.folder) / sshd_undo.SCRIPT
    assert script.stat().st_mode & 0o777 == 0o700
    assert "ansible" not in script.read_text(encoding="utf-8").replace("ansible_collections", "")
    command = [sys.executable, "-I", "-S", str(script), change.folder, "now"]
    assert subprocess.run(command, check=False).returncode == 0
    assert change.state() == sshd_change.NONE


def test_a_lock_that_somebody_holds_is_waited_for(top: Path) -> None:
    config = str(top / "sshd_config")
    descriptor = os.open(str(top), os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(sshd_undo.Failure, match="another run"), sshd_undo.locked(config, 0.2):
        pass
    os.close(descriptor)
    with sshd_undo.locked(config, 0.2):
        pass


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The same as ``top``, on a file system of 192 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=192k,mode=0755", "none", str(place)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("only who may mount a file system can have a small one")
    furnish(place)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(top: Path) -> None:
    """Have no room for a byte."""
    with contextlib.suppress(OSError), open(top / "full", "wb", 0) as file:
        while True:
            file.write(b"x" * 4096)


def test_a_full_disk_lets_no_change_begin(small: Path) -> None:
    before = tree(small)
    what = plan(small)
    fill(small)
    with pytest.raises(OSError, match="No space left"):
        begin(small, what)
    (small / "full").unlink()
    assert tree(small) == before
    change = begin(small, what)
    fill(small)
    with pytest.raises(OSError, match="No space left"):
        sshd_change.apply(what)
    change.undo()
    (small / "full").unlink()
    assert tree(small) == before


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_full_disk_keeps_no_change_from_being_undone(small: Path, by_hand: bool) -> None:
    before = tree(small)
    what = plan(small)
    change = begin(small, what, 900)
    sshd_change.apply(what)
    change.applied()
    change.renew(900 if by_hand else 1)
    fill(small)
    if by_hand:
        change.undo()
    gone = (sshd_change.NONE, sshd_change.UNDONE)
    assert sshd_undo.wait_until(lambda: change.state() in gone, 20)
    (small / "full").unlink()
    if change.state() == sshd_change.UNDONE:
        change.forget()
    assert tree(small) == before


# -- sshd ------------------------------------------------------------------------------------------


def test_listeners_are_found_in_proc() -> None:
    with socket.socket() as one, socket.socket(socket.AF_INET6) as two:
        expected = []
        for each, address in ((one, "127.0.0.1"), (two, "::1")):
            try:
                each.bind((address, 0))
            except OSError:
                continue
            each.listen()
            expected.append((address, each.getsockname()[1]))
        found = sshd_undo.listeners_of(os.getpid())
        assert sorted(found.values()) == sorted(expected)
        # It is no sshd.
        assert sshd_undo.find(expected) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("127.0.0.1", 22), ("127.0.0.1", 22), True),
        (("127.0.0.1", 22), ("127.0.0.2", 22), False),
        (("127.0.0.1", 22), ("127.0.0.1", 23), False),
        (("0.0.0.0", 22), ("127.0.0.1", 22), True),
        (("::1", 22), ("::", 22), True),
    ],
)
def test_addresses_that_mean_the_same(
    one: Tuple[str, int], other: Tuple[str, int], same: bool
) -> None:
    assert sshd_undo._same(one, other) is same


def test_a_process_is_told_from_a_later_one_of_its_id() -> None:
    process = subprocess.Popen(["sleep", "60"])
    begun = sshd_undo.started(process.pid)
    listener = {"pid": process.pid, "started": begun}
    assert sshd_undo.is_there(listener)
    assert not sshd_undo.is_there({**listener, "started": 1})
    process.kill()
    # A zombie is as good as gone.
    assert sshd_undo.wait_until(lambda: not sshd_undo.is_there(listener), 10)
    process.wait()
    assert sshd_undo.started(process.pid) is None


def test_it_leaves_the_control_group_of_the_login(tmp_path: Path) -> None:
    group = tmp_path / "cgroup.procs"
    group.write_text("")
    missing = tmp_path / "none" / "cgroup.procs"
    also = tmp_path / "absent"
    sshd_undo.leave_session([str(missing), str(also), str(group)])
    assert group.read_text() == "0"
    assert not also.exists()
