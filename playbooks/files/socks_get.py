#!/usr/bin/env python
# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch a page through a SOCKS proxy: `socks_get.py PROXY_PORT HOST PORT PATH`.

For the demo, which has neither curl nor a library for it to rely on.
"""

from __future__ import annotations

import http.client
import socket
import struct
import sys


def connect(proxy_port: int, host: str, port: int) -> socket.socket:
    """A connection to ``host`` through the proxy, which looks the name up (RFC 1928)."""
    connection = socket.create_connection(("localhost", proxy_port), 10)
    name = host.encode("idna")
    destination = bytes([len(name)]) + name + struct.pack("!H", port)
    connection.sendall(b"\5\1\0" + b"\5\1\0\3" + destination)
    reply = connection.makefile("rb", buffering=0)
    if reply.read(2) != b"\5\0":
        sys.exit("the proxy wants something else than SOCKS5 without a login")
    status = reply.read(4)
    if status[:2] != b"\5\0":
        sys.exit(f"the proxy cannot reach {host} port {port}: {status!r}")
    # OpenSSH answers with an IPv4 address whatever it was asked (channel_decode_socks5).
    reply.read(4 + 2)
    return connection


def main() -> int:
    proxy_port, host, port, path = sys.argv[1:]
    client = http.client.HTTPConnection(host, int(port))
    client.sock = connect(int(proxy_port), host, int(port))
    client.request("GET", path)
    answer = client.getresponse()
    sys.stdout.write(answer.read().decode())
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
