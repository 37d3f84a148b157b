# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of a control socket: whose it has to be, and how it is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Iterator, Optional

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.system import control_dir
from tests.support.workdir import short_dir

SOMEBODY = 12345


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of ours below /tmp, which is sticky and everybody's."""
    with short_dir() as directory:
        (directory / "a" / "b").mkdir(parents=True, mode=0o700)
        (directory / "a").chmod(0o755)
        (directory / "file").touch()
        yield directory


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda home: (home / name).symlink_to(target.format(home=home.name))


def mode(name: str, bits: int) -> Callable[[Path], None]:
    return lambda home: (home / name).chmod(bits)


def nothing(_home: Path) -> None:
    """Leave it as it is."""


@pytest.mark.parametrize(
    ("prepare", "name", "exists"),
    [
        (nothing, "", True),
        (nothing, "a/b", True),
        (nothing, "a//./b/", True),
        (nothing, "a/b/../../a/b", True),
        (nothing, "a/none/b", False),
        (mode("a/b", 0o755), "a/b", True),
        # A private group may share what lies above; what everybody may change has to be sticky.
        (mode("a", 0o775), "a/b", True),
        (mode("a", 0o1777), "a/b", True),
        (link("l", "a"), "l/b", True),
        (link("l", "../{home}/a/b"), "l", True),
        (link("l", "/tmp"), "l/none", False),
        (link("l", "none"), "l", False),
        (link("a/l", "../a/b/.."), "a/l/b", True),
    ],
)
def test_what_only_we_can_change_will_do(
    home: Path, prepare: Callable[[Path], None], name: str, exists: bool
) -> None:
    prepare(home)
    assert control_dir.check(str(home / name)) is exists


@pytest.mark.parametrize(
    ("prepare", "name", "why"),
    [
        (mode("a/b", 0o770), "a/b", "/a/b is writable by others"),
        (mode("a/b", 0o702), "a/b", "/a/b is writable by others"),
        (mode("a/b", 0o1777), "a/b", "/a/b is writable by others"),
        (mode("a", 0o777), "a/b", "/a is writable by others"),
        (mode("a", 0o777), "a/none", "/a is writable by others"),
        (nothing, "file", "/file is not a directory"),
        (nothing, "file/b", "/file is not a directory"),
        (link("l", "file"), "l/b", "/file is not a directory"),
        (link("l", "l"), "l", "too many symbolic links"),
        (nothing, "n" * 300, "File name too long"),
    ],
)
def test_what_others_can_change_is_refused(
    home: Path, prepare: Callable[[Path], None], name: str, why: str
) -> None:
    prepare(home)
    for use in (control_dir.check, control_dir.make):
        with pytest.raises(MuxError) as caught:
            use(str(home / name))
        assert caught.value.reason == "control_dir_insecure"
        assert why in caught.value.message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize(
    ("given_away", "name", "why"),
    [
        ("a", "a/b", "the directory {home}/a belongs to user id 12345"),
        ("a/b", "a/b", "the directory {home}/a/b belongs to user id 12345"),
        ("l", "l/b", "the symbolic link {home}/l belongs to user id 12345"),
    ],
)
def test_what_belongs_to_somebody_is_refused(
    home: Path, given_away: str, name: str, why: str
) -> None:
    link("l", "a")(home)
    os.chown(str(home / given_away), SOMEBODY, -1, follow_symlinks=False)
    with pytest.raises(MuxError) as caught:
        control_dir.check(str(home / name))
    assert caught.value.reason == "control_dir_insecure"
    assert why.format(home=home) in caught.value.message


def test_what_belongs_to_root_may_lie_above_it_but_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)
    assert control_dir.check("/usr/none") is False
    with pytest.raises(MuxError, match="it belongs to user id 0"):
        control_dir.check("/usr")


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_missing_directories_are_made_for_us_alone(home: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        control_dir.make(str(home / "a" / "n" / "m"))
        control_dir.make(str(home / "a" / "n" / "m"))
    finally:
        os.umask(before)
    for name in ("a/n", "a/n/m"):
        assert (home / name).stat().st_mode & 0o7777 == 0o700
    assert (home / "a").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("target", "why"), [(None, "cannot be made"), ("none", "is a link to nothing")]
)
def test_what_cannot_be_made_is_told(home: Path, target: Optional[str], why: str) -> None:
    path = "/proc/none"
    if target is not None:
        link("l", target)(home)
        path = str(home / "l")
    with pytest.raises(MuxError) as caught:
        control_dir.make(path)
    assert caught.value.reason == "invalid"
    assert why in caught.value.message
