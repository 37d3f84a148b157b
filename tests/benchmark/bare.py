# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The least that a client of a master can do: the yardstick for ours.

Written down from PROTOCOL.mux with nothing of the collection in it: no deadline, no check of an
id, no ledger.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from pathlib import Path

_HELLO, _CHECK, _TERMINATE, _OPEN, _CLOSE = 1, 0x10000004, 0x10000005, 0x10000006, 0x10000007
_OK, _ALIVE = 0x80000001, 0x80000005
_LOCAL = 1


def open_all(path: Path, ports: Sequence[int]) -> None:
    """Open a local forwarding from each port, all requested before the first reply is read."""
    _ask(path, _OPEN, ports)


def close_all(path: Path, ports: Sequence[int]) -> None:
    """Cancel what `open_all` opened."""
    _ask(path, _CLOSE, ports)


def pid(path: Path) -> int:
    """The process of a master."""
    with _connected(path) as connection:
        connection.sendall(_frame(struct.pack("!II", _CHECK, 0)))
        answer, _number, process = struct.unpack("!III", _message(connection))
        assert answer == _ALIVE, f"the master answers {answer:#x}"
        return int(process)


def terminate(path: Path) -> None:
    """End a master."""
    with _connected(path) as connection:
        connection.sendall(_frame(struct.pack("!II", _TERMINATE, 0)))
        while connection.recv(4096):
            pass


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    connection.sendall(_frame(struct.pack("!II", _HELLO, 4)))
    _message(connection)
    return connection


def _ask(path: Path, what: int, ports: Sequence[int]) -> None:
    requests = b""
    for number, port in enumerate(ports):
        body = struct.pack("!III", what, number, _LOCAL)
        body += _string(b"") + struct.pack("!I", port) + _string(b"127.0.0.1")
        requests += _frame(body + struct.pack("!I", 9))
    with _connected(path) as connection:
        connection.sendall(requests)
        for _port in ports:
            (answer,) = struct.unpack_from("!I", _message(connection))
            assert answer == _OK, f"the master answers {answer:#x}"


def _frame(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


def _string(text: bytes) -> bytes:
    return struct.pack("!I", len(text)) + text


def _message(connection: socket.socket) -> bytes:
    (size,) = struct.unpack("!I", _exactly(connection, 4))
    return _exactly(connection, size)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        assert part, "the master hung up"
        data += part
    return data
