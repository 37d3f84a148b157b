# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_server_config: what it refuses before it looks, the order of what it does, what it shows.

What sshd has a say in is tested against a real one: tests/integration/ssh_server_config.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import server_config
from ansible_collections.bastion.mux.plugins.module_utils.model import server_config as model
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.system.sshd_change import (
    Plan,
    observed,
)

PARAMS: Dict[str, Any] = {key: value.get("default") for key, value in server_config.SPEC.items()}


@pytest.fixture
def place(tmp_path: Path) -> Dict[str, Any]:
    """Parameters for a configuration, a drop-in and a directory of files that are there."""
    (tmp_path / "sshd_config").write_text("Port 22\n")
    (tmp_path / "files/keys").mkdir(parents=True)
    (tmp_path / "files/keys/old").write_text("old\n")
    (tmp_path / "files/secret").write_text("s\n")
    (tmp_path / "files/secret").chmod(0o600)
    return {
        **PARAMS,
        "config_path": str(tmp_path / "sshd_config"),
        "drop_in": str(tmp_path / "d/00.conf"),
        "directory": str(tmp_path / "files"),
    }


def plan(params: Dict[str, Any]) -> Plan:
    request = server_config._request(params, False)
    paths, statuses = observed(request.directory)
    there = Path(request.drop_in_path)
    seen = server_config.Seen(
        Path(request.config).read_bytes(),
        there.read_bytes() if there.exists() else None,
        paths,
        statuses,
    )
    body = None if request.drop_in is None else server_config._body(request, seen, request.drop_in)
    return server_config._plan(request, seen, server_config._config(request, seen), body)


def names(what: Plan, top: Path) -> List[str]:
    return [os.path.relpath(write.path, str(top)) for write in what.writes]


@pytest.mark.parametrize("system", ["darwin", "freebsd14"])
def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(MuxError, match="Linux only") as caught:
        server_config.run(PARAMS, check_mode=True)
    assert caught.value.reason == "invalid"


def test_others_than_root_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(MuxError, match="only root"):
        server_config.run(PARAMS, check_mode=True)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"config_path": "/nonexistent/sshd_config"}, "config_path"),
        ({"drop_in": "relative"}, "drop_in"),
        ({"drop_in": "/a\nb"}, "drop_in"),
        ({"directory": "{top}"}, "directory"),
        ({"directory": "/"}, "directory"),
        ({"directory": "{top}/d"}, "directory"),
        ({"drop_in": "{top}/files/x.conf"}, "directory"),
        ({"drop_in": "{top}/d/../files/x.conf"}, "directory"),
        ({"confirm_within": -5}, "confirm_within"),
    ],
)
def test_places_that_make_no_sense_are_refused(
    place: Dict[str, Any], tmp_path: Path, given: Dict[str, Any], named: str
) -> None:
    filled = {
        key: value.replace("{top}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in given.items()
    }
    with pytest.raises(MuxError, match=named) as caught:
        server_config._request({**place, **filled}, False)
    assert caught.value.reason == "invalid"


def test_a_file_is_there_before_it_is_named_and_goes_after_it_was(
    place: Dict[str, Any], tmp_path: Path
) -> None:
    files = [{"name": "new/x", "content": "x\n", "mode": "0600"}]
    made = plan({**place, "files": files})
    assert names(made, tmp_path) == [
        "files/.bastion.mux",
        "files/new/x",
        "d/00.conf",
        "sshd_config",
        "files/keys/old",
        "files/secret",
    ]
    assert made.made == [str(tmp_path / "d"), str(tmp_path / "files/new")]
    assert made.removed == [str(tmp_path / "files/keys")]

    (tmp_path / "d").mkdir()
    drop_in = next(one.after for one in made.writes if one.path == place["drop_in"])
    assert drop_in is not None
    (tmp_path / "d/00.conf").write_bytes(drop_in)
    config = next(one.after for one in made.writes if one.path == place["config_path"])
    (tmp_path / "sshd_config").write_bytes(config or b"")
    gone = plan({**place, "state": "absent"})
    assert names(gone, tmp_path)[:2] == ["sshd_config", "d/00.conf"]
    assert gone.removed == [str(tmp_path / name) for name in ("files/keys", "files", "d")]
    assert gone.writes[0].after == b"Port 22\n"


def test_a_directory_that_was_there_before_stays(place: Dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o755)
    made = plan(place)
    drop_in = next(one.after for one in made.writes if one.path == place["drop_in"])
    assert not model.made_directory(drop_in)
    (tmp_path / "d/00.conf").write_bytes(drop_in or b"")
    assert str(tmp_path / "d") not in plan({**place, "state": "absent"}).removed


def test_the_diff_shows_directories_and_hides_secrets(
    place: Dict[str, Any], tmp_path: Path
) -> None:
    files = [
        {"name": "new/x", "content": "xyz\n", "mode": "0600"},
        {"name": "y", "content": "y\n", "mode": "0644"},
    ]
    (tmp_path / "files").chmod(0o700)
    shown = {
        os.path.relpath(one["after_header"], str(tmp_path)): (one["before"], one["after"])
        for one in server_config._diff(plan({**place, "files": files}))
    }
    assert shown["files"] == ("mode 0700\n", "mode 0755\n")
    assert shown["files/new"] == ("", "directory\n")
    assert shown["files/keys"] == ("directory\n", "")
    assert shown["files/keys/old"] == ("old\n", "")
    assert shown["files/y"] == ("", "y\n")
    assert shown["files/new/x"] == ("", "(4 bytes that others may not read)\n")
    assert shown["files/secret"] == ("(2 bytes that others may not read)\n", "")
    assert shown["sshd_config"][0] == "Port 22\n"
