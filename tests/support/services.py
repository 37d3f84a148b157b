# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small far ends on loopback: an echo, an HTTP page, over TCP or a unix socket."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, cast

Address = tuple[str, int] | str | Path


def has_ipv6(address: str = "::1") -> bool:
    """Whether `address` can be bound on this machine. In a container `::` may be, without `::1`."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A port of `host` that nothing listens on. Another process may take it before you do."""
    (port,) = free_ports(1, host)
    return port


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ones, below those that the system gives to clients and to whoever asks for 0."""
    free: list[int] = []
    for port in itertools.islice(_turns(), _PORTS):
        if len(free) == count:
            return free
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # What was closed a moment ago is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                free.append(port)
    raise AssertionError(f"{host} has no {count} free ports")


_PORTS = 2200


@functools.cache
def _turns() -> Iterator[int]:
    """The ports of this process in turn: a test that asks twice is not given one of them twice.

    Tests that run at the same time, workers of pytest-xdist, have ranges of their own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    first = 10000 + _PORTS * worker
    return itertools.cycle(random.sample(range(first, first + _PORTS), _PORTS))


def connect(address: Address, timeout: float = 5.0) -> socket.socket:
    """Connect to (host, port) or to a unix socket's path."""
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(str(address))
    except OSError:
        connection.close()
        raise
    return connection


def listens(address: Address) -> bool:
    """Whether something accepts a connection at `address`. (It does see one.)"""
    try:
        connect(address).close()
    except OSError:
        return False
    return True


def talk(address: Address, message: bytes = b"hello", timeout: float = 5.0) -> bytes:
    """Send `message`, then the end of it, and return all that comes back.

    That is b"" where the other side closed at once, as a forwarding does whose far end failed.
    """
    answer = b""
    with connect(address, timeout) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(message)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(65536):
            answer += part
    return answer


class _EchoHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        cast("Any", self.server).seen.append(self.client_address)
        while True:
            try:
                data = self.request.recv(65536)
                if not data:
                    return
                self.request.sendall(data)
            except OSError:
                return


class _TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


class _Tcp6Server(_TcpServer):
    address_family = socket.AF_INET6


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128


class Service:
    """A server in a thread, from `with` until its end.

    `address` is what `connect` takes, `port` and `path` are its parts.
    """

    server: socketserver.BaseServer
    address: Address

    def __init__(self) -> None:
        self._thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self: Any) -> Any:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        if isinstance(self.address, Path):
            self.address.unlink(missing_ok=True)
        self._thread.join()

    @property
    def port(self) -> int:
        assert isinstance(self.address, tuple)
        return self.address[1]

    @property
    def path(self) -> Path:
        assert isinstance(self.address, Path)
        return self.address


class Echo(Service):
    """Sends back what it gets. `seen` has one entry for each connection it accepted."""

    def __init__(self, path: Path | None = None, host: str = "127.0.0.1", port: int = 0) -> None:
        if path is not None:
            self.server = _UnixServer(str(path), _EchoHandler)
            self.address = path
        else:
            kind = _Tcp6Server if ":" in host else _TcpServer
            self.server = kind((host, port), _EchoHandler)
            self.address = (host, self.server.server_address[1])
        self.seen: list[object] = []
        cast("Any", self.server).seen = self.seen
        super().__init__()


class _PageHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = cast("Any", self.server).body
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        cast("Any", self.server).seen.append(self.requestline)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


class Page(Service):
    """Answers every HTTP GET with `body`, over TLS where it has a context for that.

    `seen` has the first line of each request.
    """

    def __init__(
        self, body: bytes = b"behind the bastion\n", tls: ssl.SSLContext | None = None
    ) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _PageHandler)
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        self.seen: list[str] = []
        cast("Any", server).seen = self.seen
        cast("Any", server).body = body
        self.server = server
        self.address = ("127.0.0.1", server.server_address[1])
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


def socks5(proxy: tuple[str, int], host: str, port: int, timeout: float = 5.0) -> socket.socket:
    """A connection to `host`:`port` through a SOCKS 5 proxy without login (RFC 1928)."""
    connection = connect(proxy, timeout)
    try:
        connection.sendall(b"\x05\x01\x00")
        _expect(connection, b"\x05\x00")
        name = host.encode()
        connection.sendall(
            b"\x05\x01\x00\x03" + bytes([len(name)]) + name + port.to_bytes(2, "big")
        )
        reply = _read(connection, 4)
        if reply[1] != 0:
            raise ConnectionError(f"SOCKS reply {reply[1]}")
        _read(connection, {1: 4, 4: 16}[reply[3]] + 2)
    except BaseException:
        connection.close()
        raise
    return connection


def _expect(connection: socket.socket, wanted: bytes) -> None:
    got = _read(connection, len(wanted))
    if got != wanted:
        raise ConnectionError(f"SOCKS answered {got!r}, not {wanted!r}")


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise ConnectionError("closed in the middle of a SOCKS reply")
        data += part
    return data
