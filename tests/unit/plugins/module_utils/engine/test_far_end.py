# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The far end of a stdio forwarding, and why a server refused it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Iterator

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine.far_end import reached, refusal
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.system.mux_client import (
    MuxClient,
    MuxRefused,
    MuxTimeout,
    SocketMissing,
)
from tests.support import fake_master
from tests.support.fake_master import Asked, FakeMaster, Gone, Peer
from tests.support.workdir import short_dir


@pytest.fixture
def path() -> Iterator[Path]:
    with short_dir() as directory:
        yield directory / "s"


def connector(path: Path, timeout: float = 10.0) -> Callable[[], MuxClient]:
    return Context().connector(str(path), timeout)


def test_a_stream_ends_with_the_far_end_and_with_the_block(path: Path) -> None:
    ended = []

    def answer(peer: Peer, asked: Asked) -> None:
        stdin, stdout = peer.descriptors(2)
        assert asked.values[1:] == (b"web", 80)
        peer.send(fake_master.SESSION_OPENED, asked.id, 7)
        os.write(stdout, b"hello")
        os.close(stdout)
        ended.append(os.read(stdin, 100))
        os.close(stdin)

    answers = {fake_master.NEW_STDIO_FORWARD: answer}
    with FakeMaster(path, answers=answers), reached(connector(path), "web", 80) as stream:
        stream.sendall(b"question")
        assert stream.recv(100) == b"hello"
    assert ended == [b"question"]


def test_a_master_meets_the_end_of_the_stream_before_the_end_of_the_connection(path: Path) -> None:
    # OpenSSH 8.4 ended with "select: Bad file descriptor" one time in some hundred.
    streams = []
    met = []

    def open_stream(peer: Peer, asked: Asked) -> None:
        streams.extend(peer.descriptors(2))
        peer.send(fake_master.SESSION_OPENED, asked.id, 7)

    def alive(peer: Peer, asked: Asked) -> None:
        met.append(os.read(streams[0], 100))
        peer.send(fake_master.ALIVE, asked.id, 4242)

    answers = {fake_master.NEW_STDIO_FORWARD: open_stream, fake_master.ALIVE_CHECK: alive}
    with FakeMaster(path, answers=answers), reached(connector(path), "web", 80):
        assert not met
    assert met == [b""]
    for descriptor in streams:
        os.close(descriptor)


def refuses(log: Path, words: bytes) -> FakeMaster:
    """A master whose server refuses, and which logs why."""

    def answer(peer: Peer, asked: Asked) -> None:
        peer.descriptors(2, keep=False)
        with log.open("ab") as file:
            file.write(words)
        peer.send(fake_master.FAILURE, asked.id, "Session open refused by peer")
        raise Gone

    return FakeMaster(log.with_suffix(""), answers={fake_master.NEW_STDIO_FORWARD: answer})


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"channel 1: open failed: connect failed: no\r\n", "connect failed: no"),
        (b"something else\n", None),
        (b"", None),
    ],
)
def test_the_servers_own_words_are_in_the_log(path: Path, words: bytes, why: object) -> None:
    log = path.with_suffix(".log")
    log.write_bytes(b"channel 1: open failed: earlier: another\n")
    with refuses(log, words):
        assert refusal(str(path), connector(path), "web", 80) == why


def test_one_that_is_reached_by_now_is_not_refused(path: Path) -> None:
    with FakeMaster(path):
        assert refusal(str(path), connector(path), "web", 80) is None


def test_what_is_no_refusal_is_told_as_such(path: Path) -> None:
    with pytest.raises(SocketMissing):
        refusal(str(path), connector(path), "web", 80)
    hangs = {fake_master.NEW_STDIO_FORWARD: lambda peer, _asked: peer.hold()}
    with FakeMaster(path, answers=hangs), pytest.raises(MuxTimeout):
        with_stream(path, 0.2)
    with refuses(path.with_suffix(".log"), b""), pytest.raises(MuxRefused):
        with_stream(path)


def with_stream(path: Path, timeout: float = 10.0) -> None:
    with reached(connector(path, timeout), "web", 80):
        pass
