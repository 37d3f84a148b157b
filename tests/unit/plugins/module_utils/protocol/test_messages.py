# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every request and reply against bytes that the fake master's own encoder makes."""

from __future__ import annotations

from typing import Any, Dict, Tuple, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.protocol import messages
from ansible_collections.bastion.mux.plugins.module_utils.protocol.errors import ProtocolError
from ansible_collections.bastion.mux.plugins.module_utils.protocol.messages import WireForward
from tests.support import fake_master
from tests.support.fake_master import message

STREAMLOCAL = 0xFFFFFFFE
NO_ESCAPE = 0xFFFFFFFF

FORWARDS = [
    (WireForward(1, "127.0.0.1", 8080, "web", 80), (1, "127.0.0.1", 8080, "web", 80)),
    (
        WireForward(1, "/a", messages.STREAMLOCAL, "/b", messages.STREAMLOCAL),
        (1, "/a", STREAMLOCAL, "/b", STREAMLOCAL),
    ),
    (WireForward(2, "", 0, "web", 80), (2, "", 0, "web", 80)),
    (WireForward(2, "*", 1080, messages.SOCKS, 0), (2, "*", 1080, "socks", 0)),
    (WireForward(3, "::1", 1080, messages.SOCKS, 0), (3, "::1", 1080, "socks", 0)),
    (WireForward(1, "/\udcff", messages.STREAMLOCAL, "x", 1), (1, b"/\xff", STREAMLOCAL, "x", 1)),
]

REQUESTS = [
    (messages.AliveCheck(), fake_master.ALIVE_CHECK, ()),
    (messages.Terminate(), fake_master.TERMINATE, ()),
    (messages.StopListening(), fake_master.STOP_LISTENING, ()),
    (messages.Info("connection"), fake_master.INFO, ("connection",)),
    (
        messages.NewStdioForward("web", 80),
        fake_master.NEW_STDIO_FORWARD,
        ("", "web", 80),
    ),
    (
        messages.NewStdioForward("/run/s", messages.STREAMLOCAL),
        fake_master.NEW_STDIO_FORWARD,
        ("", "/run/s", STREAMLOCAL),
    ),
    (
        messages.NewSession("uptime"),
        fake_master.NEW_SESSION,
        ("", 0, 0, 0, 0, NO_ESCAPE, "", "uptime"),
    ),
    (
        messages.NewSession("sftp", (("A", "1"), ("B", "=")), subsystem=True, agent=True, x11=True),
        fake_master.NEW_SESSION,
        ("", 0, 1, 1, 1, NO_ESCAPE, "", "sftp", "A=1", "B=="),
    ),
    *[(messages.OpenForward(one), fake_master.OPEN_FORWARD, body) for one, body in FORWARDS],
    *[(messages.CloseForward(one), fake_master.CLOSE_FORWARD, body) for one, body in FORWARDS],
]


@pytest.mark.parametrize(("request_", "kind", "body"), REQUESTS)
def test_requests(
    request_: messages.Request[Any], kind: int, body: Tuple[fake_master.Value, ...]
) -> None:
    assert request_.encode(9) == fake_master.frame(kind, 9, *body)


def test_every_request_says_what_may_answer_it() -> None:
    asked = set(messages.Request.__subclasses__())
    assert asked == {type(request) for request, _kind, _body in REQUESTS}
    replies = {type(reply) for reply, _values in REPLIES}
    assert all(set(kind.LEGAL) < replies for kind in asked)
    assert all(messages.Failure in kind.LEGAL for kind in asked)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((0, "", 1, "x", 1), "0 is no kind of forwarding"),
        ((4, "", 1, "x", 1), "4 is no kind of forwarding"),
        ((1, "", -1, "x", 1), "-1 is no port"),
        ((1, "", 65536, "x", 1), "65536 is no port"),
        ((1, "", 1, "x", 65536), "65536 is no port"),
        ((1, "", 1, "x", 0xFFFFFFFF), "4294967295 is no port"),
        ((1, "a\0", 1, "x", 1), "NUL"),
        ((1, "a", 1, "x\0", 1), "NUL"),
    ],
)
def test_forwardings_that_would_upset_a_master(
    values: Tuple[int, str, int, str, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        WireForward(*values)


@pytest.mark.parametrize(
    "request_",
    [
        messages.NewSession("a\0b"),
        messages.NewSession("a", (("A", "b\0"),)),
        messages.NewSession("x" * 262144),
        messages.NewStdioForward("a\0", 1),
        messages.NewStdioForward("a", 65536),
        messages.Info("a\0"),
    ],
)
def test_requests_that_would_upset_a_master(request_: messages.Request[Any]) -> None:
    with pytest.raises(ValueError, match=r"NUL|no port|the most is"):
        request_.encode(1)


REPLIES = [
    (messages.Ok(), (fake_master.OK, 9)),
    (messages.PermissionDenied("no"), (fake_master.PERMISSION_DENIED, 9, "no")),
    (messages.Failure("caf\ufffd"), (fake_master.FAILURE, 9, b"caf\xff")),
    (messages.ExitMessage(255), (fake_master.EXIT_MESSAGE, 9, 255)),
    (messages.Alive(4242), (fake_master.ALIVE, 9, 4242)),
    (messages.SessionOpened(3), (fake_master.SESSION_OPENED, 9, 3)),
    (messages.RemotePort(65535), (fake_master.REMOTE_PORT, 9, 65535)),
    (messages.TtyAllocFail(), (fake_master.TTY_ALLOC_FAIL, 9)),
    (messages.ExtInfo(True, "text\n"), (fake_master.EXT_INFO, 9, 1, "text\n")),
    (messages.ExtInfo(False, "unknown"), (fake_master.EXT_INFO, 9, 0, "unknown")),
]


@pytest.mark.parametrize(("reply", "values"), REPLIES)
def test_replies(reply: messages.Reply, values: Tuple[fake_master.Value, ...]) -> None:
    whole = message(*values)
    assert messages.decode_reply(whole) == (9, reply)
    assert messages.decode_reply(whole + b"more") == (9, reply)
    for size in range(len(whole)):
        with pytest.raises(ProtocolError, match="early"):
            messages.decode_reply(whole[:size])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((0x80000009, 9), "unknown type 0x80000009"),
        ((fake_master.HELLO, 4), "unknown type 0x00000001"),
        ((fake_master.ALIVE_CHECK, 9), "unknown type 0x10000004"),
        ((fake_master.REMOTE_PORT, 9, 65536), "65536 is no port"),
    ],
)
def test_what_is_no_reply(values: Tuple[fake_master.Value, ...], complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        messages.decode_reply(message(*values))


@pytest.mark.parametrize(
    ("version", "extensions", "values"),
    [
        (4, {}, ()),
        (4, {"info": b"0"}, ("info", "0")),
        (5, {"info": b"0", "a": b"\0\xff", "": b""}, ("info", "0", "a", b"\0\xff", "", "")),
    ],
)
def test_hello(
    version: int, extensions: Dict[str, bytes], values: Tuple[Union[str, bytes], ...]
) -> None:
    hello = messages.Hello(version, extensions)
    assert hello.encode() == fake_master.frame(fake_master.HELLO, version, *values)
    assert messages.Hello.decode(message(fake_master.HELLO, version, *values)) == hello


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (message(fake_master.OK, 4), "type 0x80000001 instead of a hello"),
        (message(fake_master.HELLO), "early"),
        (message(fake_master.HELLO, 4, "info"), "early"),
        (message(fake_master.HELLO, 4) + b"\0", "early"),
        (b"", "early"),
    ],
)
def test_what_is_no_hello(content: bytes, complaint: str) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        messages.Hello.decode(content)


reply_types = st.sampled_from([values[0] for _reply, values in REPLIES])


@given(
    st.one_of(
        st.binary(), st.builds(lambda kind, rest: message(kind) + rest, reply_types, st.binary())
    )
)
def test_any_message_is_a_reply_or_refused(content: bytes) -> None:
    try:
        request_id, reply = messages.decode_reply(content)
    except ProtocolError:
        return
    assert request_id == int.from_bytes(content[4:8], "big")
    assert isinstance(reply, tuple(type(known) for known, _values in REPLIES))


@given(st.binary().map(lambda rest: message(fake_master.HELLO) + rest))
def test_any_message_is_a_hello_or_refused(content: bytes) -> None:
    try:
        hello = messages.Hello.decode(content)
    except ProtocolError:
        return
    assert hello.version == int.from_bytes(content[4:8], "big")
