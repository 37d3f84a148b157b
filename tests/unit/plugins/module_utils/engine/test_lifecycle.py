# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a master's life that test_master.py does not tell apart."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import lifecycle
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context, locate
from ansible_collections.bastion.mux.plugins.module_utils.system import processes
from tests.support import fake_master
from tests.support.fake_master import Asked, FakeMaster, Gone, Peer
from tests.support.workdir import short_dir


@pytest.fixture
def path() -> Iterator[Path]:
    with short_dir() as directory:
        yield directory / "s"


@pytest.mark.parametrize(
    ("params", "seconds"),
    [
        ({"control_path": "/tmp/none/s", "timeout": 7}, 7),
        ({"host": "b"}, 20),
        ({"host": "b", "connect_timeout": 3, "timeout": 4}, 7),
        ({"host": "b", "connect_timeout": 3, "timeout": 4, "jump": ["x", "y"]}, 13),
        ({"host": "b", "ssh_options": {"ProxyCommand": "x"}}, 20),
    ],
)
def test_a_login_has_the_time_of_its_hops(params: Dict[str, Any], seconds: float) -> None:
    place = locate({"ssh_config": "none", **params}, Context())
    assert lifecycle.login_bound(place) == seconds


def reaches(peer: Peer, asked: Asked) -> None:
    peer.descriptors(2, keep=False)
    peer.send(fake_master.SESSION_OPENED, asked.id, 7)
    peer.hold()


def refuses(peer: Peer, asked: Asked) -> None:
    peer.descriptors(2, keep=False)
    peer.send(fake_master.FAILURE, asked.id, "Session open refused by peer")


def hangs(peer: Peer, _asked: Asked) -> None:
    peer.hold()


def hangs_up(_peer: Peer, _asked: Asked) -> None:
    raise Gone


def lies(peer: Peer, asked: Asked) -> None:
    peer.descriptors(2, keep=False)
    peer.send(fake_master.ALIVE, asked.id, 1)


@pytest.mark.parametrize(
    ("answer", "dead"),
    [(reaches, False), (refuses, False), (hangs, True), (hangs_up, True), (lies, True)],
)
def test_an_answer_of_the_server_is_a_sign_of_life(path: Path, answer: Any, dead: bool) -> None:
    with FakeMaster(path, answers={fake_master.NEW_STDIO_FORWARD: answer}) as master:
        why = lifecycle.cut_off(str(path), Context(), timeout=0.5)
        assert (why is not None) is dead
        assert why is None or why
        if not dead:
            # Something that every bastion refuses at once.
            assert len(master.requests) == 1
            assert master.requests[0].values[1:] == (b"127.0.0.1", 1)


def test_nobody_answers_where_nobody_listens(path: Path) -> None:
    assert lifecycle.cut_off(str(path), Context(), timeout=1)


@pytest.mark.parametrize(("lasts", "ended"), [("0.2", False), ("600", True)])
def test_what_drains_is_waited_for_and_then_ended(lasts: str, ended: bool) -> None:
    with subprocess.Popen(["sleep", lasts], start_new_session=True) as process:
        started = processes.start_time(process.pid)
        assert started is not None
        began = time.monotonic()
        lifecycle.drain((process.pid, started), 0.5 if ended else 20)
        assert time.monotonic() - began < 10
        assert (process.wait(5) != 0) is ended


@pytest.mark.parametrize("name", [".old", ".new", ".lock"])
def test_a_run_that_was_cut_off_can_be_seen(path: Path, name: str) -> None:
    assert not lifecycle.is_interrupted(str(path))
    Path(str(path) + name).touch()
    assert lifecycle.is_interrupted(str(path))


def test_what_lies_beside_a_socket_goes_with_it(path: Path) -> None:
    for name in (".json", ".log"):
        Path(str(path) + name).touch()
    lifecycle.forget(str(path))
    lifecycle.forget(str(path))
    assert list(path.parent.iterdir()) == []
