# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers, strings and frames of the mux protocol (OpenSSH's PROTOCOL.mux and sshbuf).

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import struct
from typing import Optional

from .errors import ProtocolError

#: Neither side takes a longer frame (channels.c, CHANNEL_MUX_MAX_PACKET).
MAX_FRAME = 256 * 1024

_U32 = struct.Struct("!I")


def u32(number: int) -> bytes:
    """Encode a number.

    :raises ValueError: it is negative or needs more than 32 bits.
    """
    try:
        return _U32.pack(number)
    except struct.error:
        raise ValueError("%r is no unsigned 32-bit number" % (number,)) from None


def string(content: bytes) -> bytes:
    """Encode a counted string."""
    return u32(len(content)) + content


def text(content: str) -> bytes:
    """Encode text, and paths with any bytes in them as Python's `os.fsdecode` gives them.

    :raises ValueError: it holds a NUL. OpenSSH takes that for a damaged message
        (sshbuf_get_cstring), over which a master drops the connection or even exits.
    """
    if "\0" in content:
        raise ValueError("a NUL character in %r" % content)
    return string(content.encode("utf-8", "surrogateescape"))


def frame(body: bytes) -> bytes:
    """Put the length before a message.

    :raises ValueError: it is longer than a master would read.
    """
    if len(body) > MAX_FRAME:
        raise ValueError("a message of %d bytes, the most is %d" % (len(body), MAX_FRAME))
    return string(body)


class Reader:
    """Takes values off the front of one message. What a newer peer added behind them stays."""

    def __init__(self, message: bytes) -> None:
        self._rest = memoryview(message)

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return bool(self._rest)

    def _take(self, size: int) -> memoryview:
        if size > len(self._rest):
            raise ProtocolError("a message ends %d bytes early" % (size - len(self._rest)))
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken

    def u32(self) -> int:
        """Decode a number."""
        (number,) = _U32.unpack(self._take(4))
        return int(number)

    def string(self) -> bytes:
        """Decode a counted string."""
        return bytes(self._take(self.u32()))

    def text(self) -> str:
        """Decode text to show to people: what is no UTF-8 becomes U+FFFD."""
        return self.string().decode("utf-8", "replace")


class Frames:
    """Cuts a stream of bytes, however it arrives, into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Append what was read."""
        self._buffer += data

    def next(self) -> Optional[bytes]:
        """Return the next whole message, or None when there is none yet.

        :raises ProtocolError: the next one would be too long.
        """
        if len(self._buffer) < 4:
            return None
        (size,) = _U32.unpack_from(self._buffer)
        if size > MAX_FRAME:
            raise ProtocolError("a message of %d bytes, the most is %d" % (size, MAX_FRAME))
        end = 4 + size
        if len(self._buffer) < end:
            return None
        message = bytes(self._buffer[4:end])
        del self._buffer[:end]
        return message
