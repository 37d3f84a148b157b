# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What workers know of a bastion without the engine, and how they wait for their turn."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.errors import AnsibleAuthenticationFailure

from ansible_collections.bastion.mux.plugins.plugin_utils import bastions
from ansible_collections.bastion.mux.plugins.plugin_utils.bastions import Bastion, Failure, Settings
from tests.support.workdir import short_dir


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with short_dir() as directory:
        monkeypatch.setenv("HOME", str(directory))
        yield directory


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def settings(warnings: list[str]) -> Settings:
    return Settings(
        ssh_executable="ssh",
        persist="yes",
        max_setups=2,
        max_channels=1000,
        seconds=1.0,
        task=("1", "task", 0),
        run=None,
        log=lambda _line: None,
        warn=warnings.append,
    )


def known(text: bytes | None = b"", **params: str) -> Bastion:
    return Bastion({"host": "bastion", **params}, lambda _arguments: text)


def test_a_master_is_found_again(work: Path) -> None:
    directory = work / "m"
    directory.mkdir(mode=0o700)
    path = directory / "s"
    bastion = known()
    os.makedirs(os.path.dirname(bastion._known))
    assert bastion.running() is None
    Path(bastion._known + ".path").write_text(str(path))
    assert bastion.running() is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert bastion.running() is None
        listener.listen()
        assert bastion.running() == str(path)
        assert known(password="x").running() == str(path)
        # With other parameters, another configuration or one that changes by itself it may be
        # somewhere else.
        assert known(user="me").running() is None
        assert known(b"Host bastion").running() is None
        assert known(None).running() is None
        # Somebody is to ask if its connection lives.
        bastion.doubt()
        assert bastion.running() is None
        Path(bastion._known + ".doubt").unlink()
        # Others could have put their own socket there.
        directory.chmod(0o720)
        assert bastion.running() is None


def test_a_home_that_is_no_directory(work: Path, settings: Settings) -> None:
    (work / ".cache").touch()
    with pytest.raises(Failure, match=r"bastion bastion: .*\.cache.*\(reason: invalid\)"):
        known().opened(settings)


def test_no_room(work: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    through = [3, 2]
    monkeypatch.setattr(bastions, "_channels", lambda *_arguments: through.pop(0))
    few = Settings(**{**vars(settings), "max_channels": 3, "seconds": 0.1})
    control = str(work / "s")
    os.close(bastions._take_turn(control, few))
    assert not through
    monkeypatch.setattr(bastions, "_channels", lambda *_arguments: 3)
    monkeypatch.setattr(bastions, "_PATIENCE", 2)
    message = r"3 connections go through the bastion.*bastion_max_channels.*\(reason: timeout\)"
    with pytest.raises(Failure, match=message):
        bastions._take_turn(control, few)
    # Whoever comes next is not held up by that one.
    os.close(bastions._take_turn(control, Settings(**{**vars(settings), "max_channels": 0})))


def test_a_failure_of_a_login_is_final() -> None:
    assert isinstance(bastions._failure("auth_failed", "no"), AnsibleAuthenticationFailure)
    assert not isinstance(bastions._failure("timeout", "no"), AnsibleAuthenticationFailure)


@pytest.mark.parametrize(
    ("reasons", "final"),
    [
        (["auth_failed"], True),
        (["auth_failed", "auth_failed"], True),
        (["auth_failed", "unreachable"], False),
        (["unreachable", "auth_failed"], False),
    ],
)
def test_failures_of_several(
    work: Path, settings: Settings, reasons: list[str], final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(self: Bastion, _settings: Settings) -> tuple[str, bool]:
        tried.append(self.name)
        raise bastions._failure(reasons[int(self.name)], f"not {self.name}")

    monkeypatch.setattr(Bastion, "_open", refuse)
    names = [{"host": str(number)} for number in range(len(reasons))]
    for attempt in range(2):
        given = Settings(**{**vars(settings), "task": ("1", "task", attempt)})
        with pytest.raises(Failure) as caught:
            bastions.Way(names, lambda _arguments: b"", given)._controls()
        assert isinstance(caught.value, AnsibleAuthenticationFailure) == final
        assert all(f"not {name['host']}" in str(caught.value) for name in names)
    # A login that was refused is not tried again, whatever there is to retry.
    assert [tried.count(name["host"]) for name in names] == [
        1 if reason == "auth_failed" else 2 for reason in reasons
    ]
