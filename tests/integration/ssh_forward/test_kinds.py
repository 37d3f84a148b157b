# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward: each kind of forwarding, opened, found and cancelled, proved by what it carries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import listeners
from tests.support.services import Address, Echo, free_port, listens, socks5, talk
from tests.support.sshd import Sshd
from tests.support.tasks import CHANGES, Tasks
from tests.support.waiting import wait_for

FLAGS = {"local": "-L", "remote": "-R", "dynamic": "-D"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One forwarding, in words with `{port}`, `{work}`, `{echo}` (a port) and `{far}` (a socket).

    `listen` and `connect` are what is returned of it: a host, or a socket.
    """

    type: str
    spelling: str
    listen: str = "127.0.0.1"
    connect: str | None = "127.0.0.1"

    def returned(self, state: str, evidence: str | None, **words: Any) -> dict[str, Any]:
        """The one element of `forwards`."""
        listen = self.listen.format(**words)
        connect = self.connect and self.connect.format(**words)
        at_socket, to_socket = listen.startswith("/"), bool(connect) and "/" in str(connect)
        port = None if at_socket else words["port"]
        return {
            "type": self.type,
            "listen_host": None if at_socket else listen,
            "listen_port": port,
            "listen_socket": listen if at_socket else None,
            "connect_host": None if to_socket else connect,
            "connect_port": None if to_socket or connect is None else words["echo"],
            "connect_socket": connect if to_socket else None,
            "allocated_port": (port or None) if ":0:" in self.spelling else None,
            "state": state,
            "evidence": evidence,
        }


KINDS = {
    "local": Kind("local", "127.0.0.1:{port}:127.0.0.1:{echo}"),
    "local to a socket": Kind("local", "127.0.0.1:{port}:{far}", connect="{far}"),
    "local at a socket": Kind("local", "{work}/l:127.0.0.1:{echo}", listen="{work}/l"),
    "local sockets": Kind("local", "{work}/l:{far}", listen="{work}/l", connect="{far}"),
    "local chosen": Kind("local", "127.0.0.1:0:127.0.0.1:{echo}"),
    "dynamic": Kind("dynamic", "127.0.0.1:{port}", connect=None),
    "remote": Kind("remote", "127.0.0.1:{port}:127.0.0.1:{echo}"),
    "remote to a socket": Kind("remote", "127.0.0.1:{port}:{far}", connect="{far}"),
    "remote at a socket": Kind("remote", "{work}/r:127.0.0.1:{echo}", listen="{work}/r"),
    "remote sockets": Kind("remote", "{work}/r:{far}", listen="{work}/r", connect="{far}"),
    "remote socks": Kind("remote", "127.0.0.1:{port}", connect=None),
    "remote chosen": Kind("remote", "127.0.0.1:0:127.0.0.1:{echo}"),
}


def address_of(forward: dict[str, Any]) -> Address:
    """Where to connect to a forwarding that a task returned."""
    return forward["listen_socket"] or (forward["listen_host"], forward["listen_port"])


def carries(kind: Kind, address: Address, echo: Echo) -> bool:
    """Whether something sent to the forwarding comes back from the echo behind it."""
    if kind.connect is not None:
        return talk(address) == b"hello"
    assert isinstance(address, tuple)
    with socks5(address, "127.0.0.1", echo.port) as connection:
        connection.sendall(b"hello")
        return connection.recv(5) == b"hello"


@pytest.fixture
def bastion(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A server which removes the file of a unix socket that was cancelled."""
    return make_sshd(options={"StreamLocalBindUnlink": "yes"})


@pytest.mark.parametrize("name", KINDS)
def test_each_kind(work: Path, tasks: Tasks, master: int, name: str) -> None:
    kind = KINDS[name]
    with Echo() as echo, Echo(work / "far") as far:
        chosen = "chosen" in name
        words = {"port": free_port(), "work": work, "echo": echo.port, "far": far.path}
        params: dict[str, Any] = {kind.type: [kind.spelling.format(**words)]}
        line = f"{FLAGS[kind.type]} {params[kind.type][0]}\n"
        unknown = {**words, "port": 0} if chosen else words

        rows = tasks.play(
            tasks.task("check", check=True, **params),
            tasks.task("do", **params),
            tasks.task("again", **params),
            tasks.task("again check", check=True, **params),
        ).ok()
        steps = [rows.task(step) for step in ("check", "do", "again", "again check")]
        assert tuple(step.changed for step in steps) == CHANGES
        if chosen:
            words["port"] = steps[1]["forwards"][0]["allocated_port"]
        evidence = ("master", "ledger") if kind.type == "remote" else ("listener", "listener")
        assert steps[0]["forwards"] == [kind.returned("present", None, **unknown)]
        assert steps[1]["forwards"] == [kind.returned("present", evidence[0], **words)]
        for step in steps[2:]:
            assert step["forwards"] == [kind.returned("present", evidence[1], **words)]
        there = line.replace(":0:", f":{words['port']}:", 1) if chosen else line
        shown = [(step["diff"]["before"], step["diff"]["after"]) for step in steps]
        assert shown == [("", line), ("", line), (there, there), (there, there)]
        address = address_of(steps[1]["forwards"][0])
        assert carries(kind, address, echo)

        gone = tasks.rows(state="absent", **params)
        assert gone.changed == CHANGES
        assert gone.diff() == (there, "")
        assert gone.check["forwards"] == [kind.returned("absent", None, **words)]
        assert gone.do["forwards"] == [kind.returned("absent", None, **words)]
        assert gone.again["forwards"] == [kind.returned("absent", None, **unknown)]
        wait_for(lambda: not listens(address), "the end of the listener")
        assert not listeners(master)

        # Once more: nothing that it left is in its way.
        back = tasks.one(**params)
        assert back.changed
        assert carries(kind, address_of(back["forwards"][0]), echo)


def test_all_kinds_in_one_task(work: Path, tasks: Tasks, master: int) -> None:
    kinds = [KINDS[name] for name in KINDS if name not in ("local sockets", "remote sockets")]
    kinds.sort(key=lambda kind: ["local", "remote", "dynamic"].index(kind.type))
    with Echo() as echo, Echo(work / "far") as far:
        params: dict[str, list[str]] = {"dynamic": [], "remote": [], "local": []}
        for kind in kinds:
            words = {"port": free_port(), "work": work, "echo": echo.port, "far": far.path}
            params[kind.type].append(kind.spelling.format(**words))
        rows = tasks.rows(**params)
        assert rows.changed == CHANGES
        for kind, forward in zip(kinds, rows.again["forwards"], strict=True):
            assert carries(kind, address_of(forward), echo)
        assert tasks.rows(state="absent", **params).changed == CHANGES
        assert not listeners(master)
