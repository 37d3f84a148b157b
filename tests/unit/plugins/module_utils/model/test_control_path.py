# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which control paths are refused before ssh is asked to bind them."""

from __future__ import annotations

import os
import re
import socket
import sys
from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.control_path import check, limit
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from tests.support.workdir import short_dir


@pytest.mark.parametrize(
    ("platform", "most"), [("linux", 90), ("darwin", 86), ("freebsd14", 86), ("openbsd7", 86)]
)
def test_the_limit_is_the_platforms(platform: str, most: int) -> None:
    assert limit(platform) == most
    check("/" + "a" * (most - 1), platform)
    with pytest.raises(MuxError):
        check("/" + "a" * most, platform)


def test_the_temporary_name_of_the_longest_path_can_just_be_bound() -> None:
    with short_dir() as directory:
        longest = str(directory / "s").ljust(limit(sys.platform), "s")
        temporary = longest + "." + "x" * 16
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(temporary)
        with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
            listener.bind(temporary + "x")


@pytest.mark.parametrize(
    "path", ["", "s", "./s", "~/s", "%C", "/a\nb", "/a\0", "/a\x7f", "/${A}", "/\ud800"]
)
def test_what_cannot_be_given_to_ssh_is_refused(path: str) -> None:
    with pytest.raises(MuxError) as caught:
        check(path, "linux")
    assert caught.value.reason == "invalid"
    assert repr(path) in caught.value.message


@pytest.mark.parametrize("path", ["/s", "/a b/ü", "/50%", "/a$b", "/a\udcff"])
def test_other_paths_pass(path: str) -> None:
    check(path, "linux")


def test_the_failure_says_how_long_it_is_and_what_would_fit() -> None:
    path = "/" + "ü" * 40 + "/name" + "x" * 10
    with pytest.raises(MuxError) as caught:
        check(path, "linux")
    error = caught.value
    assert error.reason == "control_path_too_long"
    assert error.details == {"control_path": path, "length": 96, "limit": 90}
    assert "has 96 bytes, ssh can bind 90 here" in error.message
    (room,) = re.findall(r"directory of up to (\d+) bytes", error.message)
    check("/".ljust(int(room), "d") + "/name" + "x" * 10, "linux")
    with pytest.raises(MuxError):
        check("/".ljust(int(room) + 1, "d") + "/name" + "x" * 10, "linux")


def test_a_name_that_fits_nowhere_is_not_said_to_fit() -> None:
    with pytest.raises(MuxError) as caught:
        check("/d/" + "n" * 95, "linux")
    assert "fits" not in caught.value.message


def refusal(path: str, platform: str) -> Optional[str]:
    try:
        check(path, platform)
    except MuxError as error:
        return error.reason
    return None


@given(st.text(st.characters()), st.sampled_from(["linux", "darwin"]))
def test_a_path_fits_or_is_refused_with_a_reason(tail: str, platform: str) -> None:
    path = "/" + tail
    reason = refusal(path, platform)
    if reason is None:
        assert b"\0" not in os.fsencode(path)
        assert len(os.fsencode(path)) <= limit(platform)
    else:
        assert reason in ("invalid", "control_path_too_long")
