# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of users: read whole, replaced in one step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.system import user_file

ROOT = os.geteuid() == 0


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert user_file.read(str(path)) is None
    user_file.replace(str(path), b"a\r\n\xff")
    assert user_file.read(str(path)) == b"a\r\n\xff"
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o604)
    os.utime(path, (0, 0))
    user_file.replace(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert mode(path) == 0o604
    assert path.stat().st_mtime > 0


def test_extended_attributes_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    try:
        os.setxattr(str(path), "user.mark", b"value")
    except (AttributeError, OSError):
        pytest.skip("no extended attributes here")
    user_file.replace(str(path), b"new")
    assert os.getxattr(str(path), "user.mark") == b"value"


def test_who_has_the_file_open_sees_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        user_file.replace(str(path), b"new")
        assert reader.read() == b"old"


@pytest.mark.skipif(not ROOT, reason="only root can give a file away")
def test_owners_stay_and_new_ones_are_those_of_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(str(path), 1234, 1235)
    user_file.replace(str(path), b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(str(home), 1236, 1237)
    fresh = home / ".ssh" / "sub" / "file"
    user_file.make_directory(str(fresh))
    user_file.replace(str(fresh), b"new")
    for one in (fresh, fresh.parent, fresh.parent.parent):
        assert (one.stat().st_uid, one.stat().st_gid) == (1236, 1237)


def test_missing_directories_are_made_for_their_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    tmp_path.chmod(0o755)
    user_file.make_directory(str(path))
    user_file.make_directory(str(path))
    assert mode(path.parent) == 0o700
    assert mode(path.parent.parent) == 0o700
    assert mode(tmp_path) == 0o755


def test_what_cannot_be_read_or_written_is_told(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(str(fifo))
    file = tmp_path / "file"
    file.write_bytes(b"")
    for path in (tmp_path, fifo, file / "below"):
        with pytest.raises(MuxError) as caught:
            user_file.read(str(path))
        assert caught.value.reason == "invalid"
    for path in (tmp_path, file / "below", tmp_path / "none" / "below"):
        with pytest.raises(MuxError) as caught:
            user_file.replace(str(path), b"")
        assert caught.value.reason == "invalid"
    with pytest.raises(MuxError):
        user_file.make_directory(str(file / "below" / "file"))
    assert sorted(tmp_path.iterdir()) == [fifo, file]
