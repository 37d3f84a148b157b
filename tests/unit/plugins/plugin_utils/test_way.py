# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said beside the collection's own client is what that one says."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import info, lifecycle
from ansible_collections.bastion.mux.plugins.module_utils.protocol import messages
from ansible_collections.bastion.mux.plugins.module_utils.protocol.messages import WireForward
from ansible_collections.bastion.mux.plugins.module_utils.system import master_log
from ansible_collections.bastion.mux.plugins.plugin_utils import bastions, way
from tests.support.workdir import short_dir


def test_its_messages() -> None:
    assert way.hello() == messages.Hello(messages.VERSION, {}).encode()
    path = "/run/ü.sock"
    wire = WireForward(messages.LOCAL, path, messages.STREAMLOCAL, "10.0.0.1", 22)
    said = [
        way.forward(kind, 7, path.encode(), b"10.0.0.1", 22)
        for kind in (way._OPEN_FORWARD, way._CLOSE_FORWARD)
    ]
    assert said == [messages.OpenForward(wire).encode(7), messages.CloseForward(wire).encode(7)]
    stdio = messages.NewStdioForward("10.0.0.1", 22).encode(7)
    assert way.stdio_forward(stdio[4:]) == (b"10.0.0.1", 22)
    assert messages.decode_reply(way.alive(7, 1)[4:]) == (7, messages.Alive(1))
    assert way.alive_check(7) == messages.AliveCheck().encode(7)
    assert messages.decode_reply(way.u32(way._OK) + way.u32(7)) == (7, messages.Ok())


def test_its_files() -> None:
    assert master_log.path_of("/a") == "/a" + way.LOG
    assert info._NO_MASTERS == way.PREFIX
    assert {bastions.SLOTS, way.NO_UNIX} == set(lifecycle._OF_CONNECTIONS)


@pytest.fixture
def passing() -> Iterator[way.Passing]:
    with short_dir() as directory:
        one = way.Passing([str(directory / "gone")], 5.0, "ssh")
        thread = threading.Thread(target=one.serve)
        thread.start()
        yield one
        one.end()
        thread.join(10)
        assert not thread.is_alive()
        assert not list(directory.iterdir())


def test_nobody_asks_for_a_stream(passing: way.Passing) -> None:
    assert passing.failure is None


def test_no_client_can_be_accepted() -> None:
    with short_dir() as directory:
        one = way.Passing([str(directory / "gone")], 5.0, "ssh")
        one._listener.shutdown(socket.SHUT_RDWR)
        one.serve()
        one.end()
        assert not list(directory.iterdir())


@pytest.mark.parametrize(
    "said",
    [
        b"",
        messages.Hello(messages.VERSION, {}).encode() + messages.Terminate().encode(1),
        messages.Hello(messages.VERSION, {}).encode() + way.u32(1 << 30),
        messages.Hello(messages.VERSION, {}).encode()
        + messages.NewStdioForward("host", 22).encode(1),
    ],
    ids=["nothing", "something else", "too much", "and hangs up"],
)
def test_a_client_that_is_no_proxy_command(passing: way.Passing, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(passing.command[-2])
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(5)
        while client.recv(4096):
            pass
    assert passing.failure is None


def test_a_real_ssh_asks_in_vain(passing: way.Passing) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [*passing.command, "[10.0.0.1]:22", "--", "bastion"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.PIPE,
            timeout=10,
            check=False,
        )
    # Whatever it ends with, what it has to say is told by us.
    assert done.stderr == b""
    assert passing.failure is not None
    assert passing.failure.reason == "not_running"
