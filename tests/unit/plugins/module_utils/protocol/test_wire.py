# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers, strings and frames, by table and by whatever bytes come."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.protocol import wire
from ansible_collections.bastion.mux.plugins.module_utils.protocol.errors import ProtocolError


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, b"\0\0\0\0"),
        (True, b"\0\0\0\x01"),
        (0x10000006, b"\x10\0\0\x06"),
        (2**32 - 1, b"\xff\xff\xff\xff"),
    ],
)
def test_numbers(number: int, encoded: bytes) -> None:
    assert wire.u32(number) == encoded
    assert wire.Reader(encoded).u32() == number


@pytest.mark.parametrize("number", [-1, 2**32, "1", None])
def test_what_is_no_number(number: Any) -> None:
    with pytest.raises(ValueError, match="no unsigned 32-bit number"):
        wire.u32(number)


@pytest.mark.parametrize(
    ("content", "encoded"),
    [
        ("", b"\0\0\0\0"),
        ("web", b"\0\0\0\x03web"),
        ("/run/\u00e9", b"\0\0\0\x07/run/\xc3\xa9"),
        ("/run/\udcff", b"\0\0\0\x06/run/\xff"),
    ],
)
def test_texts(content: str, encoded: bytes) -> None:
    assert wire.text(content) == encoded
    assert wire.Reader(encoded).text() == content.replace("\udcff", "\ufffd")


def test_text_with_nul() -> None:
    with pytest.raises(ValueError, match="NUL"):
        wire.text("a\0b")


def test_reader_takes_values_in_order_and_leaves_the_rest() -> None:
    reader = wire.Reader(b"\0\0\0\x02\0\0\0\x01a\0\0\0\0more")
    assert (reader.u32(), reader.string(), reader.text()) == (2, b"a", "")
    assert reader
    assert not wire.Reader(b"")


@pytest.mark.parametrize(
    ("content", "missing"),
    [(b"", 4), (b"\0\0\0", 1), (b"\0\0\0\x05abc", 2), (b"\xff" * 4, 2**32 - 1)],
)
def test_reader_says_how_much_is_missing(content: bytes, missing: int) -> None:
    with pytest.raises(ProtocolError, match="ends %d bytes early" % missing):
        wire.Reader(content).string()


def test_frame() -> None:
    assert wire.frame(b"abc") == b"\0\0\0\x03abc"
    assert len(wire.frame(bytes(wire.MAX_FRAME))) == wire.MAX_FRAME + 4
    with pytest.raises(ValueError, match="262145 bytes, the most is 262144"):
        wire.frame(bytes(wire.MAX_FRAME + 1))


def cut(pieces: List[bytes]) -> Tuple[List[bytes], bool]:
    """The messages in a stream that arrives in `pieces`, and whether it went on to make sense."""
    frames = wire.Frames()
    found = []
    try:
        for piece in pieces:
            frames.feed(piece)
            message = frames.next()
            while message is not None:
                found.append(message)
                message = frames.next()
    except ProtocolError:
        return found, False
    return found, True


@given(st.lists(st.binary(max_size=40)), st.lists(st.integers(0, 400)))
def test_frames_come_out_however_the_stream_is_cut(bodies: List[bytes], cuts: List[int]) -> None:
    stream = b"".join(wire.frame(body) for body in bodies)
    edges = [0, *sorted(cuts), len(stream)]
    pieces = [stream[start:end] for start, end in zip(edges, edges[1:])]
    assert cut(pieces) == (bodies, True)


@given(st.binary(max_size=200))
def test_any_stream_is_cut_or_refused(stream: bytes) -> None:
    found, sound = cut([stream])
    used = b"".join(wire.frame(message) for message in found)
    assert stream.startswith(used)
    rest = stream[len(used) :]
    if sound:
        assert len(rest) < 4 or int.from_bytes(rest[:4], "big") > len(rest) - 4
    else:
        assert int.from_bytes(rest[:4], "big") > wire.MAX_FRAME


@given(st.binary(max_size=64), st.lists(st.sampled_from(["u32", "string"])))
def test_any_message_is_read_or_refused(content: bytes, what: List[str]) -> None:
    reader = wire.Reader(content)
    try:
        values = [getattr(reader, name)() for name in what]
    except ProtocolError:
        return
    encoders: Dict[str, Callable[..., bytes]] = {"u32": wire.u32, "string": wire.string}
    used = b"".join(encoders[name](value) for name, value in zip(what, values))
    assert content.startswith(used)
