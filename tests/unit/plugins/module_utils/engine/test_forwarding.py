# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward's engine over a scripted master: what it is asked, what is told and written down."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import forward, forwarding, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.forward import parse
from ansible_collections.bastion.mux.plugins.module_utils.system import ledger_file, listeners
from tests.support import fake_master
from tests.support.fake_master import Asked, FakeMaster, Peer
from tests.support.workdir import short_dir

VERBS = {
    fake_master.OPEN_FORWARD: "open",
    fake_master.CLOSE_FORWARD: "close",
    fake_master.NEW_STDIO_FORWARD: "try",
}


class World:
    """A master that is this very process, so that it has a start time, and what it was asked."""

    def __init__(self, path: Path, fake: FakeMaster) -> None:
        self.path = path
        self.fake = fake
        #: Far ends that the server refuses to listen for.
        self.refused: List[int] = []
        self._open = fake.answers[fake_master.OPEN_FORWARD]
        fake.answers[fake_master.OPEN_FORWARD] = self._answer

    def _answer(self, peer: Peer, asked: Asked) -> None:
        if asked.values[4] in self.refused:
            peer.send(fake_master.FAILURE, asked.id, "remote port forwarding failed")
        else:
            self._open(peer, asked)

    def run(self, *, check: bool = False, **params: Any) -> Dict[str, Any]:
        """Run the engine with what a task gives."""
        self.fake.requests.clear()
        defaults = {name: option.get("default") for name, option in spec.SSH_FORWARD.items()}
        given = {"control_path": str(self.path), "timeout": 1}
        return forward.run({**defaults, **given, **params}, Context(check_mode=check))

    def fails(self, **params: Any) -> MuxError:
        with pytest.raises(MuxError) as caught:
            self.run(**params)
        return caught.value

    @property
    def asked(self) -> List[Tuple[str, int, int]]:
        """What the last run asked for: the verb, the listening port and that of the far end."""
        return [
            (VERBS[one.type], int(one.values[2]), int(one.values[4]))
            for one in self.fake.requests
            if one.type in (fake_master.OPEN_FORWARD, fake_master.CLOSE_FORWARD)
        ]

    @property
    def recorded(self) -> List[str]:
        ledger = ledger_file.read(str(self.path))
        return [] if ledger is None else [str(record.forward) for record in ledger.records]


@pytest.fixture
def world() -> Iterator[World]:
    with short_dir() as work, FakeMaster(work / "s", pid=os.getpid()) as fake:
        yield World(work / "s", fake)


def test_a_remote_one_is_opened_then_asked_about_then_cancelled(world: World) -> None:
    remote = ["8080:web:80"]
    assert world.run(remote=remote, check=True)["changed"]
    assert world.asked == []
    assert world.run(remote=remote)["changed"]
    assert world.asked == [("open", 8080, 80)]
    assert world.recorded == ["-R localhost:8080:web:80"]
    # The master answers a repeated request as it answers a new one, so this is all one can do.
    assert not world.run(remote=remote)["changed"]
    assert world.asked == [("open", 8080, 80)]
    assert not world.run(remote=remote, check=True)["changed"]
    assert world.asked == []
    assert not world.run(remote=remote, verify="none")["changed"]
    assert world.asked == []
    assert world.run(remote=remote, state="absent")["changed"]
    assert world.asked == [("close", 8080, 80)]
    assert world.recorded == []
    assert not world.run(remote=remote, state="absent")["changed"]
    assert world.asked == [("close", 8080, 80)]
    assert not world.run(remote=remote, state="absent", check=True)["changed"]
    assert world.asked == []


def test_a_remote_one_that_was_lost_and_is_refused_now_is_a_failure(world: World) -> None:
    world.run(remote=["8080:web:80", "8081:web:81"])
    world.fake.forwards.clear()
    world.refused = [80]
    failed = world.fails(remote=["8080:web:80", "8081:web:81"])
    assert failed.reason == "forward_refused"
    assert [one["state"] for one in failed.details["forwards"]] == ["present", "failed"]
    assert not failed.details["changed"]
    assert world.recorded == ["-R localhost:8081:web:81"]
    # It was refused twice: when it was asked about, and when it was opened.
    world.refused = []
    world.run(remote=["8080:web:82"])
    assert world.asked == [("open", 8080, 82), *[("close", 8080, 82), ("open", 8080, 82)] * 2]


def test_a_chosen_remote_port_that_is_another_now(world: World) -> None:
    assert world.run(remote=["0:web:80"])["forwards"][0]["allocated_port"] == 40000
    (asked,) = world.fake.allocated
    world.fake.allocated[asked] = 40001
    again = world.run(remote=["0:web:80"])
    assert (again["changed"], again["forwards"][0]["allocated_port"]) == (True, 40001)
    assert not world.run(remote=["0:web:80"])["changed"]
    assert world.run(remote=["0:web:80"], state="absent")["changed"]
    assert world.asked == [("close", 0, 80)]


@pytest.mark.parametrize("refusals", [1, 3])
def test_what_was_refused_is_cancelled_out_of_the_way(world: World, refusals: int) -> None:
    world.refused = [1]
    for _attempt in range(refusals):
        failed = world.fails(remote=["8080:web:1"])
        assert (failed.reason, failed.details["changed"]) == ("forward_refused", False)
    world.run(remote=["8080:web:80"])
    opens_anew = [("close", 8080, 80), ("open", 8080, 80)]
    assert world.asked == [("open", 8080, 80), *opens_anew * refusals]
    # Elsewhere, or to the same far end, nothing is in the way.
    world.refused = []
    world.run(remote=["8081:web:1"])
    assert world.asked == [("open", 8081, 1)]


def test_one_that_the_master_does_not_answer_leaves_the_others_known(world: World) -> None:
    def silent(peer: Peer, asked: Asked) -> None:
        if asked.values[4] == 81:
            peer.hold()
        world._answer(peer, asked)

    world.fake.answers[fake_master.OPEN_FORWARD] = silent
    failed = world.fails(remote=["8080:web:80", "8081:web:81", "8082:web:82"])
    assert failed.reason == "timeout"
    assert failed.details["changed"]
    states = [(one["connect_port"], one["state"]) for one in failed.details["forwards"]]
    assert states == [(80, "present"), (81, "failed"), (82, "failed")]
    assert world.recorded == ["-R localhost:8080:web:80"]


def test_what_is_replaced_in_vain_comes_back(world: World) -> None:
    world.run(remote=["8080:web:80"])
    world.refused = [81]
    failed = world.fails(remote=["8080:web:81"], on_conflict="replace")
    assert (failed.reason, failed.details["changed"]) == ("forward_refused", False)
    assert world.recorded == ["-R localhost:8080:web:80"]
    assert len(world.fake.forwards) == 1


def test_what_cannot_be_cancelled_is_told(world: World) -> None:
    world.run(remote=["8080:web:80"])
    world.fake.answers[fake_master.CLOSE_FORWARD] = lambda peer, asked: peer.send(
        fake_master.PERMISSION_DENIED, asked.id, "not now"
    )
    failed = world.fails(remote=["8080:web:80"], state="absent")
    assert (failed.reason, failed.details["changed"]) == ("forward_refused", False)
    assert "cannot be cancelled: not now" in failed.message
    assert world.recorded == ["-R localhost:8080:web:80"]


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"exclusive": True, "state": "absent"}, "invalid"),
        ({"local": ["80"]}, "invalid"),
        ({"control_path": None}, "invalid"),
        ({"local": ["80:a:1", "80:b:1"]}, "forward_conflict"),
    ],
)
def test_what_cannot_be_meant_asks_for_nothing(
    world: World, params: Dict[str, Any], reason: str
) -> None:
    assert world.fails(**params).reason == reason
    assert world.asked == []


def test_without_a_master(world: World) -> None:
    world.fake.stop_listening()
    assert world.fails(local=["80:a:1"]).reason == "not_running"
    absent = world.run(local=["80:a:1"], state="absent")
    assert not absent["changed"]
    assert [one["state"] for one in absent["forwards"]] == ["absent"]
    assert absent["diff"]["before"] == absent["diff"]["after"] == ""


def test_a_wedged_master(world: World) -> None:
    world.fake.answers[fake_master.ALIVE_CHECK] = lambda peer, _asked: peer.hold()
    for state in ("present", "absent"):
        assert world.fails(local=["80:a:1"], state=state).reason == "wedged"


# What a listener of our own machine needs


@pytest.mark.parametrize(
    ("type_", "spelling", "openssh", "expected"),
    [
        ("local", "80:web:80", None, True),
        ("local", "80:/s", "OpenSSH_9.4p1", True),
        ("local", "80:/s", "OpenSSH_10.0p2 Debian", True),
        ("local", "80:/s", "OpenSSH_9.3p1", False),
        ("local", "80:/s", "dropbear", False),
        ("local", "80:/s", None, False),
        ("remote", "80:/s", None, True),
        ("remote", "80", None, False),
        ("dynamic", "80", "OpenSSH_10.0p2", False),
    ],
)
def test_which_far_ends_can_be_tried(
    type_: str, spelling: str, openssh: Optional[str], expected: bool
) -> None:
    assert forwarding.can_be_tried(parse(type_, spelling), openssh) is expected


def test_a_former_port_is_taken_again_where_it_is_free() -> None:
    resolve = listeners.resolver()
    chosen = parse("local", "127.0.0.1:0:web:80")
    port_for: Callable[..., Optional[int]] = forwarding._port_for
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert port_for(chosen, port, resolve) not in (None, port)
    assert port_for(chosen, port, resolve) == port
    assert port_for(chosen, None, resolve)
    for other in (parse("local", "80:web:80"), parse("remote", "0:web:80")):
        assert port_for(other, port, resolve) is None
