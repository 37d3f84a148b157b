# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is found at a socket: the master, and its forwardings from a ledger and from listeners."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Callable, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import observe
from ansible_collections.bastion.mux.plugins.module_utils.engine.observe import (
    Observation,
    places,
    to_wire,
    wire_hosts,
)
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.forward import Forward, parse
from ansible_collections.bastion.mux.plugins.module_utils.model.ledger import Ledger, Record
from ansible_collections.bastion.mux.plugins.module_utils.system import ledger_file, processes
from ansible_collections.bastion.mux.plugins.module_utils.system.listeners import Listener
from tests.support import fake_master
from tests.support.fake_master import Asked, FakeMaster, Peer
from tests.support.workdir import short_dir

TYPES = {"L": "local", "R": "remote", "D": "dynamic"}


def forward(text: str) -> Forward:
    """A forwarding from `L 80:web:80`."""
    return parse(TYPES[text[0]], text[2:])


def resolve(host: str) -> FrozenSet[str]:
    return {"box": frozenset({"127.0.0.9"})}.get(host, frozenset())


class World:
    """A master that says it is this process, with listeners and forwardings as a test says."""

    def __init__(self, path: Path, fake: FakeMaster) -> None:
        self.path = path
        self.fake = fake
        self.seen: Optional[Tuple[Listener, ...]] = ()
        fake.answers[fake_master.OPEN_FORWARD] = self._repeated_or_refused

    def _repeated_or_refused(self, peer: Peer, asked: Asked) -> None:
        """What it has is answered OK. Anything else it cannot bind: its ports are occupied."""
        held = asked.values in self.fake.forwards
        peer.send(fake_master.OK if held else fake_master.FAILURE, asked.id, *[""] * (not held))

    def holds(self, *texts: str, host: Optional[str] = None) -> None:
        """The master has these, asked for in the first way that we ask, or with `host`."""
        for text in texts:
            one = forward(text)
            wire = to_wire(Record(one, wire_host=wire_hosts(one)[0] if host is None else host))
            kind = {"L": 1, "R": 2, "D": 3}[text[0]]
            far_end = (wire.connect_host.encode(), wire.connect_port)
            listen = (wire.listen_host.encode(), wire.listen_port)
            self.fake.forwards.append((kind, *listen, *far_end))

    def listens(self, *where: Tuple[str, int, int]) -> None:
        """It has these listeners: address, port, inode."""
        self.seen = tuple(Listener(*one) for one in where)

    def writes(self, *records: Record, started: Optional[float] = None) -> None:
        """There is a ledger of this process, or of one that had its id at another time."""
        now = processes.start_time(os.getpid())
        assert now is not None
        moment = now if started is None else started
        ledger = Ledger(os.getpid(), moment, processes.boot_time(), records=records)
        ledger_file.write(str(self.path), ledger)

    def look(self, *desired: str) -> Observation:
        return observe.observe(
            str(self.path),
            Context(listening=lambda _pid: self.seen),
            timeout=1,
            desired=[forward(one) for one in desired],
            resolve=resolve,
        )


@pytest.fixture
def world() -> Iterator[World]:
    with short_dir() as work, FakeMaster(work / "s", pid=os.getpid()) as fake:
        yield World(work / "s", fake)


def told(found: Observation) -> Dict[str, str]:
    """The forwardings that are there, and how that is known."""
    assert set(found.evidence) == {record.forward for record in found.records}
    return {str(one): evidence for one, evidence in found.evidence.items()}


def recorded(text: str, *inodes: int, port: Optional[int] = None) -> Record:
    one = forward(text)
    chosen = one if port is None else one.with_port(port)
    return Record(chosen, port is not None, wire_hosts(one)[0], frozenset(inodes))


WEB = "L 127.0.0.1:80:web:80"
WEB_LINE = "-L 127.0.0.1:80:web:80"


def test_what_is_recorded_and_listens_is_there(world: World) -> None:
    world.writes(recorded(WEB, 7), recorded("R 81:web:80"))
    world.listens(("127.0.0.1", 80, 7))
    found = world.look()
    assert told(found) == {WEB_LINE: "listener", "-R localhost:81:web:80": "ledger"}
    assert (found.foreign, found.broken) == ((), frozenset())


def test_what_is_recorded_and_listens_no_more_is_gone(world: World) -> None:
    world.writes(recorded(WEB, 7))
    assert told(world.look(WEB)) == {}


@pytest.mark.parametrize("held", [True, False])
def test_another_listener_in_its_place_is_asked_about(world: World, held: bool) -> None:
    world.writes(recorded(WEB, 7))
    world.listens(("127.0.0.1", 80, 8))
    if held:
        world.holds(WEB)
    found = world.look()
    assert told(found) == ({WEB_LINE: "master"} if held else {})
    assert found.foreign == (() if held else (("127.0.0.1", 80),))


@pytest.mark.parametrize("ledger", ["none", "damaged", "of another process"])
def test_without_a_ledger_the_master_is_asked_for_what_is_desired(
    world: World, ledger: str
) -> None:
    if ledger == "damaged":
        Path(str(world.path) + ".json").write_text("{", encoding="ascii")
    elif ledger == "of another process":
        world.writes(recorded(WEB), recorded("R 81:web:80"), started=1000.0)
    world.listens(("127.0.0.1", 80, 7), ("127.0.0.1", 82, 8))
    world.holds(WEB, "L 127.0.0.1:82:web:80")
    assert told(world.look()) == {}
    found = world.look(WEB)
    assert told(found) == {WEB_LINE: "master"}
    assert found.foreign == (("127.0.0.1", 82),)
    assert not found.managed
    assert (found.lost is not None) == (ledger == "of another process")


@pytest.mark.parametrize(
    ("desired", "host"),
    [
        ("L 80:web:80", ""),
        ("L 80:web:80", "localhost"),
        ("D 80", ""),
        ("L *:80:web:80", ""),
        ("L *:80:web:80", "*"),
        ("L box:80:web:80", "box"),
    ],
)
def test_each_way_to_ask_is_tried(world: World, desired: str, host: str) -> None:
    places_ = places(forward(desired), resolve)
    world.listens(*((address, port, 7) for address, port in places_))
    world.holds(desired, host=host)
    assert list(told(world.look(desired)).values()) == ["master"]


def test_a_chosen_port_is_looked_for_among_the_listeners(world: World) -> None:
    world.listens(*(("127.0.0.1", port, port) for port in (81, 82, 83)))
    world.holds("L 127.0.0.1:82:web:80")
    found = world.look("L 127.0.0.1:0:web:80")
    assert told(found) == {"-L 127.0.0.1:82:web:80": "master"}
    assert found.records[0].automatic
    assert found.foreign == (("127.0.0.1", 81), ("127.0.0.1", 83))


def test_where_listeners_cannot_be_seen_the_ledger_counts(world: World) -> None:
    world.writes(recorded(WEB, 7))
    world.seen = None
    found = world.look()
    assert (told(found), found.visible) == ({WEB_LINE: "ledger"}, False)


def test_its_own_socket_is_no_forwarding(world: World) -> None:
    world.listens((str(world.path) + ".AbCdEfGh12345678", -1, 7), (str(world.path), -1, 8))
    assert world.look().foreign == ()


# What does not work


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that this process has, which is no master's listener here."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen(1)
        yield one.getsockname()[1]


def test_half_a_listener_is_broken(world: World, taken: int) -> None:
    text = "L %d:web:80" % taken
    world.writes(recorded(text, 7))
    world.listens(("::1", taken, 7))
    found = world.look()
    assert [str(record.forward) for record in found.broken] == ["-L localhost:%d:web:80" % taken]
    assert found.broken <= set(found.records)
    # Whoever finds it unchanged by its inodes would not see it.
    assert {record.inodes for record in found.records} == {frozenset()}


@pytest.mark.parametrize("known", [True, False])
def test_half_a_listener_is_whole_where_it_was_never_more(world: World, known: bool) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = "L %d:web:80" % port
    world.listens(("::1", port, 7))
    if known:
        world.writes(recorded(text, 7))
    else:
        world.holds(text)
    assert len(world.look(text).broken) == (0 if known else 1)


def test_a_socket_without_its_file_is_broken(world: World) -> None:
    path = world.path.with_name("l")
    world.writes(recorded("L %s:web:80" % path, 7))
    world.listens((str(path), -1, 7))
    assert len(world.look().broken) == 1
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
        assert not world.look().broken


# The master itself


def says_nothing(peer: Peer) -> None:
    peer.hold()


def talks_nonsense(peer: Peer) -> None:
    peer.raw(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    peer.hold()


@pytest.mark.parametrize(("script", "condition"), [(None, "alive"), (says_nothing, "wedged")])
def test_what_answers(script: Optional[Callable[[Peer], None]], condition: str) -> None:
    with short_dir() as work, FakeMaster(work / "s", script, pid=os.getpid()):
        found = observe.observe(str(work / "s"), Context(), timeout=0.3)
        assert (found.condition, found.alive) == (condition, condition == "alive")


def test_what_answers_and_is_no_master() -> None:
    with short_dir() as work, FakeMaster(work / "s", talks_nonsense):
        with pytest.raises(MuxError) as caught:
            observe.observe(str(work / "s"), Context(), timeout=0.3)
        assert caught.value.reason == "invalid"


def test_what_does_not_answer() -> None:
    with short_dir() as work:
        path = work / "s"
        assert observe.observe(str(path), Context(), timeout=1).condition == "absent"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        assert observe.observe(str(path), Context(), timeout=1).condition == "stale"


def test_a_wedged_master_is_known_by_its_ledger() -> None:
    with short_dir() as work, FakeMaster(work / "s", says_nothing) as fake:
        world = World(work / "s", fake)
        world.writes(recorded(WEB, 7))
        found = world.look()
        assert (found.condition, found.pid) == ("wedged", os.getpid())
        assert [str(record.forward) for record in found.records] == [WEB_LINE]


# What is said to a master


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("L 80:web:80", ["localhost", ""]),
        ("L *:80:web:80", ["*", ""]),
        ("L 127.0.0.1:80:web:80", ["127.0.0.1"]),
        ("L /s:web:80", [""]),
        ("D 80", ["localhost", ""]),
        ("R 80:web:80", [""]),
        ("R *:80:web:80", ["*"]),
        ("R [::1]:80", ["::1"]),
    ],
)
def test_how_a_listening_host_is_spelled(text: str, hosts: List[str]) -> None:
    assert wire_hosts(forward(text)) == hosts


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (recorded("L 80:web:81"), (1, "localhost", 80, "web", 81)),
        (recorded("L 0:web:81", port=8080), (1, "localhost", 8080, "web", 81)),
        (recorded("R 0:web:81", port=8080), (2, "", 0, "web", 81)),
        (recorded("R 80"), (2, "", 80, "socks", 0)),
        (recorded("D 80"), (3, "localhost", 80, "socks", 0)),
        (recorded("L /a:/b"), (1, "/a", 0xFFFFFFFE, "/b", 0xFFFFFFFE)),
    ],
)
def test_what_is_sent(record: Record, expected: Sequence[object]) -> None:
    wire = to_wire(record)
    listen, connect = (wire.listen_host, wire.listen_port), (wire.connect_host, wire.connect_port)
    assert (*listen, *connect) == tuple(expected[1:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("L 80:web:80", [("127.0.0.1", 80), ("::1", 80)]),
        ("L box:80:web:80", [("127.0.0.9", 80)]),
        ("L nowhere:80:web:80", []),
        ("L /s:web:80", [("/s", -1)]),
        ("R 80:web:80", []),
    ],
)
def test_where_it_listens_here(text: str, expected: List[Tuple[str, int]]) -> None:
    assert places(forward(text), resolve) == expected
