# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which socket the parameters mean. The installed ssh is asked, as it is for users."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context, locate
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.target import identity_hash
from tests.support.workdir import short_dir


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short directory, with HOME in it and a variable that names it."""
    with short_dir() as directory:
        (directory / "h").mkdir()
        monkeypatch.setenv("HOME", str(directory / "h"))
        monkeypatch.setenv("WORK", str(directory))
        yield directory


def config(work: Path, *lines: str) -> str:
    path = work / "config"
    path.write_text("\n".join(["Host b", *lines, "Port 7", "User me", ""]))
    return str(path)


def place(params: Dict[str, Any], **how: bool) -> str:
    return locate(params, Context(), **how).control_path


# Where it is


@pytest.mark.parametrize(
    ("configured", "given", "path"),
    [
        ("ControlPath {work}/c", None, "{work}/c"),
        ("ControlPath ${{WORK}}/%n-%p-%r", None, "{work}/b-7-me"),
        ("ControlPath {work}/c", "{work}/g", "{work}/g"),
        ("ControlPath {work}/c", "{work}/%h", "{work}/host"),
        ("ControlPath none", "${{WORK}}/%p", "{work}/7"),
        ("", "{work}/a//./b/../g", "{work}/a/g"),
        ("", "{work}/50%%", "{work}/50%"),
    ],
)
def test_the_task_says_or_the_configuration(
    work: Path, configured: str, given: str, path: str
) -> None:
    lines = ["HostName host", configured.format(work=work)]
    params = {"host": "b", "ssh_config": config(work, *lines)}
    if given is not None:
        params["control_path"] = given.format(work=work)
    for login in (False, True):
        assert place(params, login=login) == path.format(work=work)


@pytest.mark.parametrize("configured", ["", "ControlPath none"])
def test_else_it_is_named_for_the_whole_way_there(work: Path, configured: str) -> None:
    params: Dict[str, Any] = {"host": "b", "ssh_config": config(work, configured)}
    found = locate(params, Context())
    directory, name = os.path.split(found.control_path)
    assert directory == str(work / "h" / ".ansible" / "mux")
    assert name == identity_hash(found.effective)
    assert not os.path.exists(directory)
    others: List[Dict[str, Any]] = [{"jump": ["x"]}, {"jump": ["x", "y"]}, {"user": "you"}]
    paths = [place({**params, **other}) for other in others]
    assert len({found.control_path, *paths}) == 4
    # Neither how one logs in nor what the session is like makes another socket.
    for same in ({"compression": True}, {"connect_timeout": 3}, {"user": "me"}, {"port": 7}):
        assert place({**params, **same}) == found.control_path


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("{work}/s", "{work}/s"),
        ("{work}/50%%", "{work}/50%"),
        ("${{WORK}}/s", "{work}/s"),
        ("~/x", pwd.getpwuid(os.getuid()).pw_dir + "/x"),
        ("~root/x", pwd.getpwnam("root").pw_dir + "/x"),
    ],
)
def test_a_path_alone_names_a_master(work: Path, given: str, path: str) -> None:
    params = {"control_path": given.format(work=work), "ssh_executable": "/none"}
    found = locate(params, Context())
    assert found.control_path == path.format(work=work)
    assert found.target is None
    nothing: Dict[str, Any] = {
        "host": None,
        "port": None,
        "user": None,
        "jump": [],
        "persist": None,
    }
    assert found.summary() == nothing


def test_ssh_is_not_asked_for_what_is_plain(work: Path) -> None:
    params = {"host": "b", "control_path": str(work / "s"), "ssh_executable": "/none"}
    assert place(params) == str(work / "s")
    with pytest.raises(MuxError) as caught:
        place(params, login=True)
    assert caught.value.reason == "ssh_missing"


# What is refused


@pytest.mark.parametrize(
    ("params", "reason", "text"),
    [
        ({}, "invalid", "host or control_path"),
        ({"control_path": ""}, "invalid", "control_path: is empty"),
        ({"host": "b", "control_path": ""}, "invalid", "control_path: is empty"),
        ({"host": "b", "control_path": "none", "login": True}, "invalid", "none is no socket"),
        ({"host": "b", "control_path": "s"}, "invalid", "not absolute"),
        ({"control_path": "s"}, "invalid", "not absolute"),
        ({"control_path": "/s-%h"}, "invalid", "tokens that need a host"),
        ({"control_path": "/%%%h"}, "invalid", "tokens that need a host"),
        ({"control_path": "${NONE_SUCH}/s"}, "invalid", "NONE_SUCH is not set"),
        ({"host": "b", "control_path": "${NONE_SUCH}/s"}, "invalid", "NONE_SUCH"),
        ({"control_path": "~none-such/s"}, "invalid", "there is no user 'none-such'"),
        ({"control_path": "/" + "s" * 90}, "control_path_too_long", "has 91 bytes"),
        ({"host": "b", "control_path": "/%n" + "s" * 90}, "control_path_too_long", "92 bytes"),
        ({"control_path": "/dev/null/s"}, "control_dir_insecure", "not a directory"),
        ({"host": "b", "ssh_options": {"Ciphers": "x"}}, "invalid", "ssh refuses its config"),
        ({"host": "-b"}, "invalid", "begins with a dash"),
    ],
)
def test_what_names_no_socket_is_refused(params: Dict[str, Any], reason: str, text: str) -> None:
    given = {"ssh_config": "none", **params}
    with pytest.raises(MuxError) as caught:
        place(given, login=bool(given.pop("login", False)))
    assert text in caught.value.message
    assert caught.value.reason == reason


# What is known of it


@pytest.mark.parametrize(
    ("params", "known"),
    [
        ({}, {"host": "b", "port": 7, "user": "me", "jump": [], "persist": "yes"}),
        ({"port": 8, "user": "you"}, {"port": 8, "user": "you"}),
        ({"jump": ["x", "you@y:8"]}, {"jump": ["x", "you@y:8"]}),
        ({"jump": []}, {"jump": []}),
        ({"persist": "10m"}, {"persist": "600"}),
    ],
)
def test_the_summary_is_what_ssh_would_do(
    work: Path, params: Dict[str, Any], known: Dict[str, Any]
) -> None:
    found = locate({"host": "b", "ssh_config": config(work), **params}, Context()).summary()
    assert {key: found[key] for key in known} == known


def test_the_summary_without_asking_is_what_the_task_says(work: Path) -> None:
    params = {"host": "b", "control_path": str(work / "s"), "jump": ["x"]}
    assert locate(params, Context()).summary() == {
        "host": "b",
        "port": None,
        "user": None,
        "jump": ["x"],
        "persist": "yes",
    }


def test_a_jump_of_the_configuration_is_known(work: Path) -> None:
    params = {"host": "b", "ssh_config": config(work, "ProxyJump x,y")}
    assert locate(params, Context()).summary()["jump"] == ["x", "y"]


def test_secrets_are_not_shown(work: Path) -> None:
    params = {"host": "b", "control_path": str(work / "s"), "password": "the password"}
    found = locate(params, Context(run_key=b"the key"))
    assert found.secrets.password == "the password"
    assert "the password" not in repr(found)
    assert "the key" not in repr(Context(run_key=b"the key"))
