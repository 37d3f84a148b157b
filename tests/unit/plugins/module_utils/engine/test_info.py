# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master_info's engine: every socket of a directory is described, whatever is behind it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import info, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.forward import LOCAL, parse
from ansible_collections.bastion.mux.plugins.module_utils.model.ledger import Ledger, Record
from ansible_collections.bastion.mux.plugins.module_utils.system import (
    ledger_file,
    listeners,
    processes,
)
from tests.support import fake_master
from tests.support.fake_master import Asked, FakeMaster, Gone, Peer
from tests.support.workdir import short_dir

MASTERS = {name: option.get("default") for name, option in spec.SSH_MASTER_INFO.items()}


@pytest.fixture
def work() -> Iterator[Path]:
    with short_dir() as directory:
        yield directory


@pytest.fixture
def until() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def masters(**params: Any) -> List[Dict[str, Any]]:
    result = info.run({**MASTERS, **params}, Context())
    assert result["changed"] is False
    return list(result["masters"])


def hang(peer: Peer) -> None:
    peer.hold()


def stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def ours(**more: Any) -> Ledger:
    """A ledger about this very process."""
    started = processes.start_time(os.getpid())
    assert started is not None
    return Ledger(os.getpid(), started, managed=True, openssh="OpenSSH_9.2p1", **more)


def test_every_socket_is_described_and_nothing_else(
    work: Path, until: contextlib.ExitStack
) -> None:
    until.enter_context(FakeMaster(work / "alive"))
    until.enter_context(FakeMaster(work / "garbage", lambda peer: peer.raw(b"\0\0\0\4hey!")))
    for number in range(5):
        path = work / ("wedged%d" % number)
        until.enter_context(FakeMaster(path, hang))
        ledger_file.write(str(path), ours())
    stale(work / "stale")
    (work / "file").touch()
    (work / "link").symlink_to(work / "alive")
    (work / "directory").mkdir()
    began = time.monotonic()
    found = masters(control_dir=str(work), timeout=1)
    assert time.monotonic() - began < 4  # and not 5: they wait together
    keys = ("alive", "stale", "reason")
    assert {os.path.basename(one["control_path"]): [one[key] for key in keys] for one in found} == {
        "alive": [True, False, None],
        "garbage": [False, False, "invalid"],
        "stale": [False, True, "not_running"],
        **{"wedged%d" % number: [False, False, "wedged"] for number in range(5)},
    }
    assert [one["control_path"] for one in found] == sorted(one["control_path"] for one in found)
    assert "is not the control socket of a master" in found[1]["msg"]
    assert all("connection" not in one and "probe" not in one for one in found)


def test_the_default_directory_need_not_be_there(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(work))
    assert masters() == []
    assert masters(control_dir=str(work / "none")) == []
    directory = work / ".ansible" / "mux"
    directory.mkdir(parents=True)
    directory.chmod(0o700)
    stale(directory / "s")
    assert [one["control_path"] for one in masters()] == [str(directory / "s")]


def test_one_that_is_named_is_described_even_if_it_is_not_there(work: Path) -> None:
    (one,) = masters(host="b", ssh_config="none", control_path=str(work / "s"))
    assert (one["alive"], one["stale"], one["reason"]) == (False, False, "not_running")
    assert one["host"] == "b"


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"control_dir": "/tmp", "host": "b"}, "invalid"),
        ({"control_dir": "/tmp", "control_path": "/s"}, "invalid"),
        ({"control_dir": "/tmp"}, "control_dir_insecure"),
        ({"control_dir": "/none", "timeout": 0}, "invalid"),
    ],
)
def test_what_cannot_be_described(params: Dict[str, Any], reason: str) -> None:
    with pytest.raises(MuxError) as caught:
        masters(**params)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("extensions", "told"),
    [(None, None), ({"info": "0"}, {"cipher": "none"}), ({"other": "0"}, None)],
)
def test_a_newer_one_tells_about_its_connection(work: Path, extensions: Any, told: object) -> None:
    def tell(peer: Peer, asked: Asked) -> None:
        peer.send(fake_master.EXT_INFO, asked.id, 1, "Connection\r\n  cipher none\r\n")

    answers = {fake_master.INFO: tell}
    with FakeMaster(work / "s", extensions=extensions, answers=answers):
        (one,) = masters(control_path=str(work / "s"))
    assert one.get("connection") == told
    assert ("connection" in one) is (told is not None)


def test_one_that_is_asked_and_does_not_tell_is_still_described(work: Path) -> None:
    answers = {fake_master.INFO: lambda peer, _asked: peer.hold()}
    with FakeMaster(work / "s", extensions={"info": "0"}, answers=answers):
        (one,) = masters(control_path=str(work / "s"), timeout=1)
    assert one["alive"] is True
    assert "connection" not in one


# Over the network


def far_ends(reachable: List[bytes]) -> Any:
    """A server which lets nobody through but to these hosts."""

    def answer(peer: Peer, asked: Asked) -> None:
        peer.descriptors(2, keep=False)
        if asked.values[1] in reachable:
            peer.send(fake_master.SESSION_OPENED, asked.id, 7)
            peer.hold()
        peer.send(fake_master.FAILURE, asked.id, "Session open refused by peer")
        raise Gone

    return answer


def test_a_probe_tells_which_far_end_is_reached(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = work / "s"
    records = tuple(Record(parse(LOCAL, spelling)) for spelling in ("1:up:80", "2:down:80"))
    ledger_file.write(str(path), ours(records=records))
    # Its sockets cannot be seen: what is written down counts.
    monkeypatch.setattr(listeners, "snapshot", lambda: lambda _pid: None)
    answers = {fake_master.NEW_STDIO_FORWARD: far_ends([b"up"])}
    with FakeMaster(path, pid=os.getpid(), answers=answers):
        (one,) = masters(control_path=str(path), probe=True)
    assert one["probe"] == {"reachable": True, "msg": None}
    up, down = one["forwards"]
    assert up["probe"] == {"reachable": True, "msg": None}
    assert down["probe"]["reachable"] is False
    assert "down:80" in down["probe"]["msg"]


def test_a_probe_of_a_dead_connection_tells_so_and_asks_no_more(work: Path) -> None:
    answers = {fake_master.NEW_STDIO_FORWARD: lambda peer, _asked: peer.hold()}
    with FakeMaster(work / "s", answers=answers):
        (one,) = masters(control_path=str(work / "s"), probe=True, timeout=1)
    assert one["alive"] is True
    assert one["reason"] == "unreachable"
    assert one["probe"]["reachable"] is False
    assert one["probe"]["msg"]
