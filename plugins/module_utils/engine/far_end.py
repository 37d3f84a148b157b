# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The far end of a connection through a master, reached for real.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Callable, Iterator, Optional

from ..model import diagnosis
from ..protocol.errors import ProtocolError
from ..system import master_log
from ..system.mux_client import MuxClient, MuxClientError, MuxRefused

#: Makes a connection to a master; a stdio forwarding takes one for itself.
Connect = Callable[[], MuxClient]


@contextlib.contextmanager
def reached(connect: Connect, host: str, port: int) -> Iterator[socket.socket]:
    """A stream to a far end, through a stdio forwarding that ends with the block.

    :raises MuxClientError: it cannot be reached; :class:`MuxRefused` where the server says so.
    """
    ours, masters = socket.socketpair()
    with ours, masters, connect() as client:
        client.stdio_forward(host, port, stdin=masters.fileno(), stdout=masters.fileno())
        # With ours open as well, the end of the stream would never be seen.
        masters.close()
        try:
            yield ours
        finally:
            ours.close()
            # A master before OpenSSH 8.9 may end with "select: Bad file descriptor" if it meets our
            # hanging up first: it closes a descriptor that it is about to wait for
            # (channel_prepare_select, mux_master_control_cleanup_cb). Its answer comes after it has
            # met the end of the stream.
            with contextlib.suppress(MuxClientError, ProtocolError):
                client.check()


def refusal(control_path: str, connect: Connect, host: str, port: int) -> Optional[str]:
    """The server's own words about a far end that it refused, asked for once more.

    One far end at a time: the log tells not of which one it speaks. ``None`` where there is no
    log, or where it is reached by now.
    """
    position = master_log.size(control_path)
    try:
        with reached(connect, host, port):
            return None
    except MuxRefused:
        return diagnosis.refused_channel(master_log.since(control_path, position))
