# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client against whatever a peer may send: an answer or a typed error, and never a hang."""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.protocol import messages
from ansible_collections.bastion.mux.plugins.module_utils.protocol.errors import ProtocolError
from ansible_collections.bastion.mux.plugins.module_utils.protocol.messages import WireForward
from ansible_collections.bastion.mux.plugins.module_utils.system.mux_client import (
    ForwardOutcome,
    MuxClient,
    MuxClientError,
    MuxTimeout,
)
from tests.support import fake_master
from tests.support.fake_master import frame

BATCH = [WireForward(messages.REMOTE, "", port, "web", 80) for port in range(3)]

# What each call may return.
Descriptors = Tuple[int, int]
CALLS: Dict[str, Tuple[Callable[[MuxClient, Descriptors], Any], Callable[[Any], bool]]] = {
    "check": (
        lambda client, _: client.check(),
        lambda pid: 0 <= pid < 2**32,
    ),
    "open_forward": (
        lambda client, _: client.open_forward(BATCH[0]),
        lambda port: port is None or 0 < port < 65536,
    ),
    "open_forwards": (
        lambda client, _: client.open_forwards(BATCH),
        lambda outcomes: [outcome.forward for outcome in outcomes] == BATCH,
    ),
    "close_forwards": (
        lambda client, _: client.close_forwards(BATCH),
        lambda outcomes: all(isinstance(outcome, ForwardOutcome) for outcome in outcomes),
    ),
    "terminate": (lambda client, _: client.terminate(), lambda nothing: nothing is None),
    "stop_listening": (lambda client, _: client.stop_listening(), lambda nothing: nothing is None),
    "info": (lambda client, _: client.info("connection"), lambda text: isinstance(text, str)),
    "session": (
        lambda client, fds: client.session("x", stdin=fds[0], stdout=fds[1], stderr=fds[1]).wait(
            0.05
        ),
        lambda status: 0 <= status < 2**32,
    ),
    "stdio_forward": (
        lambda client, fds: client.stdio_forward("web", 80, stdin=fds[0], stdout=fds[1]).id,
        lambda number: 0 <= number < 2**32,
    ),
}

KINDS = [
    fake_master.HELLO,
    fake_master.OK,
    fake_master.PERMISSION_DENIED,
    fake_master.FAILURE,
    fake_master.EXIT_MESSAGE,
    fake_master.ALIVE,
    fake_master.SESSION_OPENED,
    fake_master.REMOTE_PORT,
    fake_master.TTY_ALLOC_FAIL,
    fake_master.EXT_INFO,
    0x8000000F,
]
values = st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 9), st.binary(max_size=9))
plausible = st.builds(
    lambda kind, number, rest: frame(kind, number, *rest),
    st.sampled_from(KINDS),
    # The ids that the calls use, and the next one.
    st.integers(1, 4),
    st.lists(values, max_size=3),
)
damaged = st.builds(
    lambda whole, cut: whole[:cut] + whole[cut + 1 :], plausible, st.integers(0, 30)
)
oversized = st.integers(256 * 1024 + 1, 2**32 - 1).map(lambda size: size.to_bytes(4, "big"))
streams = st.lists(
    st.one_of(plausible, plausible, damaged, oversized, st.binary(max_size=30)), max_size=6
).map(b"".join)
hello = frame(fake_master.HELLO, 4, "info", "0")
greetings = st.one_of(
    st.just(hello), st.just(hello), st.builds(lambda cut: hello[:cut], st.integers(0, 20)), streams
)


@pytest.fixture(scope="module")
def descriptors() -> Iterator[Descriptors]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def converse(name: str, said: bytes, fds: Descriptors, *, timeout: float, over: bool) -> None:
    """Make a call to a peer that has said all it will ever say, and perhaps hung up."""
    call, expected = CALLS[name]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        if over:
            theirs.shutdown(socket.SHUT_WR)
        start = time.monotonic()
        try:
            with MuxClient(ours, timeout=timeout) as client:
                assert expected(call(client, fds))
        except MuxTimeout:
            # Nobody waits for a peer that hung up.
            assert not over
        except (MuxClientError, ProtocolError):
            pass
        assert time.monotonic() - start < 4 * timeout + 1
        assert ours.fileno() == -1


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None)
@given(greeting=greetings, stream=streams)
def test_a_peer_that_hangs_up(
    name: str, greeting: bytes, stream: bytes, descriptors: Descriptors
) -> None:
    converse(name, greeting + stream, descriptors, timeout=10, over=True)


@pytest.mark.parametrize("name", CALLS)
@settings(deadline=None, max_examples=20)
@given(greeting=greetings, stream=streams)
def test_a_peer_that_stays(
    name: str, greeting: bytes, stream: bytes, descriptors: Descriptors
) -> None:
    converse(name, greeting + stream, descriptors, timeout=0.02, over=False)
