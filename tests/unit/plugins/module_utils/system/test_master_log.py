# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The log that a master writes beside its socket."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.system import master_log


def append(path: Path, data: bytes) -> None:
    """What ssh does: it opens its log to append."""
    with path.open("ab") as log:
        log.write(data)


def test_what_a_master_said_since(tmp_path: Path) -> None:
    control_path, log = str(tmp_path / "s"), tmp_path / "s.log"
    assert master_log.path_of(control_path) == str(log)
    assert master_log.begin(control_path) == 0
    assert log.stat().st_mode & 0o7777 == 0o600
    append(log, b"of an earlier master\n")
    begin = master_log.begin(control_path)
    assert begin == master_log.size(control_path) == 21
    assert master_log.since(control_path, begin) == ""
    append(log, b"\xff\r\n")
    assert master_log.since(control_path, begin) == "\ufffd\r\n"
    master_log.remove(control_path)
    master_log.remove(control_path)
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_there_is_empty(tmp_path: Path) -> None:
    control_path = str(tmp_path / "s")
    assert master_log.size(control_path) == 0
    assert master_log.since(control_path, 5) == ""
    assert list(tmp_path.iterdir()) == []


def test_one_that_has_grown_too_large_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(master_log, "_MOST", 10)
    control_path, log = str(tmp_path / "s"), tmp_path / "s.log"
    with log.open("ab") as writer:
        writer.write(b"0123456789")
        writer.flush()
        assert master_log.size(control_path) == 10
        writer.write(b"x")
        writer.flush()
        assert master_log.size(control_path) == 0
        writer.write(b"new\n")
        writer.flush()
    assert master_log.since(control_path, 0) == "new\n"


def test_no_more_than_a_message_can_hold_is_read(tmp_path: Path) -> None:
    (tmp_path / "s.log").write_bytes(b"x" * 100000)
    assert master_log.since(str(tmp_path / "s"), 0) == "x" * 65536


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "s.log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        master_log.begin(str(tmp_path / "s"))
    assert not os.path.lexists(str(tmp_path / "other"))
