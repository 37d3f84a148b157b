# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking an SSH server for its host key, over a stream that is already connected.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import logging
import socket
import traceback
from typing import Optional

from ..model.known_hosts import KEY_TYPES, HostKey

try:
    import paramiko
except ImportError:
    PARAMIKO_ERROR: Optional[str] = traceback.format_exc()
else:
    PARAMIKO_ERROR = None

# Without a handler of its own, paramiko's complaints about a server end up on stderr.
_LOG = "bastion.mux.paramiko"
logging.getLogger(_LOG).addHandler(logging.NullHandler())
logging.getLogger(_LOG).propagate = False


class NoHostKey(Exception):
    """The server could not be brought to show a key; the text says why."""


def ask(connection: socket.socket, key_type: str, *, timeout: float) -> Optional[HostKey]:
    """The key of one type that a server shows and proves to hold; ``None`` where it has none.

    One connection has one key: the exchange of keys that follows the choice of its type (RFC 4253,
    7.1) ends with the server's signature, which is verified, and no login is tried.

    :param connection: is closed.
    :param key_type: one of :data:`KEY_TYPES`.
    :param timeout: seconds for the whole exchange.
    :raises NoHostKey: there is no SSH server, or it shows nothing that we understand.
    """
    transport = None
    try:
        transport = paramiko.Transport(connection)
        transport.set_log_channel(_LOG)
        options = transport.get_security_options()
        # The signature's algorithm is what is negotiated: of RSA keys there are several.
        algorithms = tuple(name for name in options.key_types if _type_of(name) == key_type)
        if not algorithms:
            return None
        options.key_types = algorithms
        # Later than ours, which says what happened: theirs would speak of a broken banner.
        transport.banner_timeout = transport.handshake_timeout = 2 * timeout
        transport.start_client(timeout=timeout)
        key = transport.get_remote_server_key()
        return HostKey(key.get_name(), key.asbytes())
    except paramiko.SSHException as error:
        # paramiko's IncompatiblePeer says of what kind it is by its text alone.
        if "no acceptable host key" in str(error):
            return None
        if transport is not None and transport.is_active():
            raise NoHostKey("no key within %g seconds" % timeout) from None
        raise NoHostKey(str(error)) from None
    except EOFError:
        raise NoHostKey("the connection was closed before a key was shown") from None
    except OSError as error:
        raise NoHostKey(error.strerror or str(error)) from None
    finally:
        # Else closing waits until paramiko's thread looks up from its read.
        _shut(connection)
        if transport is not None:
            transport.close()
        connection.close()


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _type_of(algorithm: str) -> Optional[str]:
    for name, types in KEY_TYPES.items():
        if algorithm in types or (name == "rsa" and algorithm in ("rsa-sha2-256", "rsa-sha2-512")):
            return name
    return None
