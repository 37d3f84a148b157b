#!/usr/bin/env python
# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A throwaway bastion on loopback, with two small services that only the bastion reaches.

    embedded_bastion.py --directory DIR [--server auto|paramiko|sshd] [--background]
    embedded_bastion.py --directory DIR --stop

It makes keys in DIR, starts an SSH server on a free port of 127.0.0.1, an HTTP service on another
and one more on a unix socket, and says where everything is in DIR/bastion.json once all of it
works. The services look up which process is at the other end of a connection and drop everybody
but the bastion's own processes: what they answer, came through the bastion.

It ends, and removes what it made, on SIGTERM or SIGINT, after ``--lifetime`` seconds, when its
server dies and, unless ``--background``, when the process that started it is gone.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import getpass
import http.client
import http.server
import io
import json
import logging
import os
import shutil
import signal
import socket
import socketserver
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import paramiko
import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MSG_CHANNEL_OPEN_FAILURE,
    MSG_CHANNEL_REQUEST,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_SUCCEEDED,
)

HOST = "127.0.0.1"
ALIAS = "embedded-bastion"
STARTUP = 60.0
SHUTDOWN = 5.0
CONNECT = 10.0
ALREADY_RUNNING = 3
"""The exit status that tells a start that another one was faster."""
#: sun_path of Linux is 108 bytes with its terminator, of macOS 104.
MAX_SOCKET_PATH = 103


class Unusable(Exception):
    """This kind of server does not work on this machine."""


class AlreadyRunning(Unusable):
    """A bastion runs, or starts, in this directory."""


# -- the services behind the bastion ---------------------------------------------------------------


class Family:
    """This process and everything it started: the bastion, whichever kind it is."""

    def __init__(self) -> None:
        self._last: psutil.Process | None = None

    def has(self, test: Callable[[psutil.Process], bool]) -> bool:
        """Whether the test is true of one of them; who was it last time, is asked first."""
        if self._last is not None and self._last.is_running() and test(self._last):
            return True
        me = psutil.Process()
        self._last = next(filter(test, [me, *me.children(recursive=True)]), None)
        return self._last is not None


def owns_connection(process: psutil.Process, local: tuple[str, int], peer: tuple[str, int]) -> bool:
    """Whether ``process`` holds the TCP connection from ``local`` to ``peer``."""
    # psutil 6 renamed it. Asked of one process, it needs no privilege for our own (macOS too).
    connections = getattr(process, "net_connections", None) or process.connections
    try:
        return any(c.raddr and c.laddr == local and c.raddr == peer for c in connections("tcp"))
    except psutil.Error:
        return False


def peer_pid(connection: socket.socket) -> int:
    """The process at the other end of a unix socket."""
    if sys.platform == "darwin":
        # SOL_LOCAL and LOCAL_PEERPID of <sys/un.h>, which Python does not name.
        return int(struct.unpack("i", connection.getsockopt(0, 2, 4))[0])
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", credentials)[0])


def none_yet() -> int:
    return 0


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers every GET with a line of JSON: what was asked, of whom, after how many logins."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        assert isinstance(self.server, (TcpService, UnixService))
        answer = {
            "service": ALIAS,
            "listener": "unix" if isinstance(self.server, UnixService) else "tcp",
            "logins": self.server.logins(),
            "path": self.path,
        }
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return str(self.client_address)  # a unix socket's peer has no address to take apart

    def log_message(self, format: str, *args: Any) -> None:
        pass


class TcpService(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    request_queue_size = 128
    logins: Callable[[], int] = staticmethod(none_yet)
    family = Family()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        here = request.getsockname()
        return self.family.has(lambda process: owns_connection(process, client_address, here))


class UnixService(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    logins: Callable[[], int] = staticmethod(none_yet)
    family = Family()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        peer = peer_pid(request)
        return self.family.has(lambda process: process.pid == peer)


# -- the bastion, by paramiko ----------------------------------------------------------------------


def pump(read: Callable[[int], bytes], write: Callable[[bytes], Any]) -> None:
    """Copy until the end of file, or until either side is gone."""
    with contextlib.suppress(OSError, EOFError):
        while data := read(32768):
            write(data)


def relay(channel: paramiko.Channel, connection: socket.socket) -> None:
    """Join a channel and a socket until both directions have ended; half-closed is kept so."""

    def inbound() -> None:
        pump(channel.recv, connection.sendall)
        with contextlib.suppress(OSError):
            # A closed channel cannot carry answers: end the other direction too.
            connection.shutdown(socket.SHUT_RDWR if channel.closed else socket.SHUT_WR)

    helper = spawn(inbound)
    pump(connection.recv, channel.sendall)
    with contextlib.suppress(OSError, EOFError):
        channel.shutdown_write()
    helper.join()
    channel.close()
    connection.close()


def spawn(target: Callable[..., None], *args: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def connect_to(target: tuple[str, int] | str) -> socket.socket:
    if isinstance(target, tuple):
        connection = socket.create_connection(target, CONNECT)
    else:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(CONNECT)
        connection.connect(target)
    connection.settimeout(None)
    return connection


class BastionTransport(paramiko.Transport):
    """What paramiko's server side lacks: unix sockets, and the reason of a failed connection.

    paramiko has no public way to either, hence the private methods, which every version from 2
    to 5 has.
    """

    def __init__(self, connection: socket.socket, on_login: Callable[[], None]) -> None:
        super().__init__(connection)
        self.here = connection.getsockname()
        self.on_login = on_login
        self._opening = threading.local()
        self._sessions: dict[int, paramiko.Channel] = {}
        table = self._channel_handler_table  # type: ignore[has-type]
        self._channel_handler_table = {**table, MSG_CHANNEL_REQUEST: self._answer_request}

    def _parse_channel_open(self, message: paramiko.Message) -> None:
        kind = message.get_text()
        channel_id = message.get_int()
        message.get_int()  # window
        message.get_int()  # packet
        target: tuple[str, int] | str
        if kind == "direct-tcpip":
            target = (message.get_text(), message.get_int())
        elif kind == "direct-streamlocal@openssh.com":
            target = message.get_text()
        else:
            message.rewind()
            super()._parse_channel_open(message)  # type: ignore[misc]
            return
        # Connecting may take its time: not in the thread that serves every other channel.
        spawn(self._open_direct, message, channel_id, target)

    def _open_direct(
        self, message: paramiko.Message, channel_id: int, target: tuple[str, int] | str
    ) -> None:
        try:
            self._opening.connection = connect_to(target)
        except OSError as error:
            refusal = paramiko.Message()
            refusal.add_byte(bytes([MSG_CHANNEL_OPEN_FAILURE]))
            refusal.add_int(channel_id)
            refusal.add_int(OPEN_FAILED_CONNECT_FAILED)
            refusal.add_string(error.strerror or str(error))
            refusal.add_string("")
            with contextlib.suppress(OSError, EOFError):
                self._send_message(refusal)  # type: ignore[attr-defined]
            return
        message.rewind()
        super()._parse_channel_open(message)  # type: ignore[misc]

    def _answer_request(self, channel: paramiko.Channel, message: paramiko.Message) -> None:
        channel._handle_request(message)  # type: ignore[attr-defined] # noqa: SLF001
        server = self.server_object
        # Any earlier, the end of a short command could overtake the answer.
        if isinstance(server, BastionServer) and server.start_command(channel):
            del self._sessions[channel.get_id()]

    def _queue_incoming_channel(self, channel: paramiko.Channel) -> None:
        # Nobody calls accept(): sessions are served by their requests, connections from here.
        connection = self._opening.__dict__.pop("connection", None)
        if connection is not None:
            spawn(relay, channel, connection)
        else:
            # paramiko holds it weakly, and a channel that is collected is closed.
            self._sessions[channel.get_id()] = channel

    def _auth_trigger(self) -> None:
        self.on_login()
        super()._auth_trigger()  # type: ignore[misc]

    def open_forwarded_socket(self, path: str) -> paramiko.Channel:
        """Offer a connection to a forwarded unix socket (PROTOCOL, section 2.4)."""
        self._opening.path = path
        return self.open_channel("forwarded-streamlocal@openssh.com")

    def _send_user_message(self, message: paramiko.Message) -> None:
        # open_channel() builds the message and knows no fields for this kind of channel.
        path = self._opening.__dict__.pop("path", None)
        if path is not None:
            message.add_string(path)
            message.add_string("")
        super()._send_user_message(message)  # type: ignore[misc]


class BastionServer(paramiko.ServerInterface):
    """One client's rights and listeners."""

    def __init__(self, transport: BastionTransport, user: str, client_key: paramiko.PKey) -> None:
        self.transport = transport
        self.user = user
        self.client_key = client_key
        self.listeners: dict[tuple[str, int] | str, socket.socket] = {}
        self.environment: dict[int, dict[str, str]] = {}
        self.commands: dict[int, str] = {}

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = username == self.user and key == self.client_key
        return AUTH_SUCCESSFUL if good else AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind in ("session", "direct-streamlocal@openssh.com"):
            return OPEN_SUCCEEDED
        return OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_direct_tcpip_request(
        self, chanid: int, origin: tuple[str, int], destination: tuple[str, int]
    ) -> int:
        return OPEN_SUCCEEDED  # asked after the connection was made

    def check_channel_env_request(
        self, channel: paramiko.Channel, name: str | bytes, value: str | bytes
    ) -> bool:
        self.environment.setdefault(channel.get_id(), {})[os.fsdecode(name)] = os.fsdecode(value)
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.commands[channel.get_id()] = os.fsdecode(command)
        return True

    def start_command(self, channel: paramiko.Channel) -> bool:
        """Start the command that was granted to a session, if one just was."""
        command = self.commands.pop(channel.get_id(), None)
        if command is not None:
            spawn(self._run, channel, command)
        return command is not None

    def _run(self, channel: paramiko.Channel, command: str) -> None:
        client, here = self.transport.getpeername(), self.transport.here
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.path.expanduser("~"),
            "LOGNAME": self.user,
            "USER": self.user,
            "SSH_CONNECTION": "%s %d %s %d" % (*client[:2], *here[:2]),
        }
        environment.update(self.environment.pop(channel.get_id(), {}))
        process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            cwd=os.path.expanduser("~"),
            start_new_session=True,
        )
        assert process.stdin
        assert process.stdout
        assert process.stderr
        spawn(self._feed, channel, process, process.stdin)
        errors = spawn(pump, process.stderr.read, channel.sendall_stderr)
        pump(process.stdout.read, channel.sendall)
        errors.join()
        status = process.wait()
        with contextlib.suppress(OSError, EOFError):
            channel.shutdown_write()
            channel.send_exit_status(status if status >= 0 else 128 - status)
        channel.close()
        process.stdout.close()
        process.stderr.close()

    @staticmethod
    def _feed(
        channel: paramiko.Channel, process: subprocess.Popen[bytes], stdin: io.RawIOBase
    ) -> None:
        pump(channel.recv, stdin.write)
        with contextlib.suppress(OSError):
            stdin.close()
        if channel.closed and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGHUP)

    def check_port_forward_request(self, address: str, port: int) -> int:
        # Always loopback, as sshd does with GatewayPorts=no.
        try:
            listener = socket.create_server((HOST, port), backlog=128)
        except OSError:
            return 0
        port = listener.getsockname()[1]

        def forward(client: Any) -> paramiko.Channel:
            # The client looks for the address as it spelled it itself (RFC 4254, 7.2).
            return self.transport.open_forwarded_tcpip_channel(client, (address, port))

        self._listen((address, port), listener, forward)
        return port

    def cancel_port_forward_request(self, address: str, port: int) -> None:
        self._cancel((address, port))

    def check_global_request(self, kind: str, msg: paramiko.Message) -> bool:
        if kind == "streamlocal-forward@openssh.com":
            return self._listen_on_socket(msg.get_text())
        if kind == "cancel-streamlocal-forward@openssh.com":
            return self._cancel(msg.get_text())
        # "Failure" is what answers keepalive@openssh.com, from sshd as well.
        return False

    def _listen_on_socket(self, path: str) -> bool:
        listener = socket.socket(socket.AF_UNIX)
        try:
            if os.path.exists(path) and stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
        except OSError:
            listener.close()
            return False
        self._listen(path, listener, lambda _client: self.transport.open_forwarded_socket(path))
        return True

    def _listen(
        self,
        name: tuple[str, int] | str,
        listener: socket.socket,
        forward: Callable[[Any], paramiko.Channel],
    ) -> None:
        self.listeners[name] = listener
        # So that the thread looks every now and then whether the client is still there.
        listener.settimeout(0.5)

        def offer(connection: socket.socket, client: Any) -> None:
            try:
                channel = forward(client)
            except (OSError, EOFError, paramiko.SSHException):
                connection.close()
                return
            relay(channel, connection)

        def accept() -> None:
            while self.transport.is_active():
                try:
                    connection, client = listener.accept()
                except TimeoutError:
                    continue
                except OSError:
                    break
                connection.settimeout(None)
                spawn(offer, connection, client)
            self._cancel(name)

        spawn(accept)

    def _cancel(self, name: tuple[str, int] | str) -> bool:
        listener = self.listeners.pop(name, None)
        if listener is None:
            return False
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept() on Linux
        listener.close()
        if isinstance(name, str):
            with contextlib.suppress(OSError):
                os.unlink(name)
        return True


class Server(Protocol):
    """A running bastion of either kind."""

    port: int

    def alive(self) -> bool: ...

    def logins(self) -> int:
        """How many it has accepted."""

    def close(self) -> None: ...


class ParamikoServer:
    """The bastion as threads of this process."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.listener = socket.create_server((HOST, 0), backlog=128)
        self.port = int(self.listener.getsockname()[1])
        self.transports: set[BastionTransport] = set()
        self.accepted: list[float] = []
        spawn(self._accept)

    def _accept(self) -> None:
        while True:
            try:
                connection, _client = self.listener.accept()
            except OSError:
                return
            transport = BastionTransport(connection, lambda: self.accepted.append(time.monotonic()))
            transport.add_server_key(self.keys.host)
            server = BastionServer(transport, self.keys.user, self.keys.client)
            self.transports = {t for t in self.transports if t.is_active()} | {transport}
            # With an event, it returns at once: a client that says nothing holds nobody up.
            transport.start_server(threading.Event(), server)

    def alive(self) -> bool:
        return True

    def logins(self) -> int:
        return len(self.accepted)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for transport in self.transports:
            transport.close()


# -- the bastion, by sshd --------------------------------------------------------------------------


class SshdServer:
    """The bastion as a real sshd, a child of this process."""

    def __init__(self, keys: Keys, executable: str) -> None:
        self.log = keys.directory / "sshd.log"
        config = keys.directory / "sshd_config"
        with socket.create_server((HOST, 0)) as chosen:
            self.port = int(chosen.getsockname()[1])
        config.write_text(
            "\n".join(
                [
                    f"ListenAddress {HOST}:{self.port}",
                    f"HostKey {keys.host_file}",
                    f"AuthorizedKeysFile {keys.authorized_keys}",
                    f"AllowUsers {keys.user}",
                    "AuthenticationMethods publickey",
                    "PermitRootLogin prohibit-password",
                    # The directory may well be one that others can write to, such as /tmp/x.
                    "StrictModes no",
                    "StreamLocalBindUnlink yes",
                    "PidFile none",
                    "PrintMotd no",
                    "PrintLastLog no",
                    "Subsystem sftp internal-sftp",
                    "",
                ]
            )
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [executable, "-D", "-e", "-f", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + CONNECT
        while not self._listening():
            if not self.alive() or time.monotonic() > deadline:
                self.close()
                last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                raise Unusable(last[0] if last else "it does not listen")
            time.sleep(0.02)

    def _listening(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), 1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def alive(self) -> bool:
        return self.process.poll() is None

    def logins(self) -> int:
        return self.log.read_text(errors="replace").count("Accepted publickey for ")

    def close(self) -> None:
        # The listener's death does not end the sessions: they are processes of their own.
        processes = []
        with contextlib.suppress(psutil.NoSuchProcess):
            listener = psutil.Process(self.process.pid)
            processes = [listener, *listener.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(processes, timeout=SHUTDOWN)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


# -- all of it -------------------------------------------------------------------------------------


class Keys:
    """The throwaway keys and the client's files that go with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.user = getpass.getuser()
        self.host_file = directory / "host_key"
        self.client_file = directory / "identity"
        self.authorized_keys = directory / "authorized_keys"
        self.known_hosts = directory / "known_hosts"
        self.ssh_config = directory / "ssh_config"
        self.host = self._make(self.host_file)
        self.client = self._make(self.client_file)
        self.authorized_keys.write_text(self._public(self.client))

    @staticmethod
    def _make(path: Path) -> paramiko.Ed25519Key:
        text = (
            ed25519.Ed25519PrivateKey.generate()
            .private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
            .decode()
        )
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        return paramiko.Ed25519Key.from_private_key(io.StringIO(text))

    @staticmethod
    def _public(key: paramiko.PKey) -> str:
        return f"{key.get_name()} {key.get_base64()}\n"

    def write_client_files(self, port: int) -> None:
        self.known_hosts.write_text(f"[{HOST}]:{port} {self._public(self.host)}")
        self.ssh_config.write_text(
            f"Host {ALIAS}\n"
            f"    HostName {HOST}\n"
            f"    Port {port}\n"
            f"    User {self.user}\n"
            f'    IdentityFile "{self.client_file}"\n'
            "    IdentitiesOnly yes\n"
            f'    UserKnownHostsFile "{self.known_hosts}"\n'
            "    GlobalKnownHostsFile /dev/null\n"
            "    StrictHostKeyChecking yes\n"
        )


def try_out(keys: Keys, port: int, service: tuple[str, int]) -> None:
    """Log in, run a command and fetch from the service, so that ready means ready.

    :raises Unusable: any of it failed: a locked account, a login shell that refuses, a kernel
        that hides whose connection it is.
    """
    transport = None
    try:
        transport = paramiko.Transport((HOST, port))
        transport.connect(hostkey=keys.host, username=keys.user, pkey=keys.client)
        session = transport.open_session(timeout=CONNECT)
        session.settimeout(CONNECT)
        session.exec_command("exit 7")
        if not session.status_event.wait(CONNECT) or session.recv_exit_status() != 7:
            raise Unusable("it runs no commands for this account")
        client = http.client.HTTPConnection(*service, timeout=CONNECT)
        client.sock = transport.open_channel("direct-tcpip", service, (HOST, 0), timeout=CONNECT)
        client.request("GET", "/")
        if client.getresponse().status != 200:
            raise Unusable("the service does not answer through it")
    except (OSError, EOFError, paramiko.SSHException, http.client.HTTPException) as error:
        raise Unusable(str(error) or type(error).__name__) from error
    finally:
        if transport is not None:
            transport.close()


def start_sshd(keys: Keys, service: tuple[str, int]) -> Server:
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/sbin"])
    executable = shutil.which("sshd", path=places)
    if executable is None:
        raise Unusable("there is none")
    server = SshdServer(keys, os.path.realpath(executable))
    try:
        try_out(keys, server.port, service)
    except Unusable:
        server.close()
        raise
    return server


def start_paramiko(keys: Keys, service: tuple[str, int]) -> Server:
    server = ParamikoServer(keys)
    try_out(keys, server.port, service)
    return server


def start_server(kind: str, keys: Keys, service: tuple[str, int]) -> tuple[str, Server]:
    if kind != "paramiko":
        try:
            return "sshd", start_sshd(keys, service)
        except Unusable as error:
            if kind == "sshd":
                raise Unusable(f"no usable sshd: {error}") from error
    return "paramiko", start_paramiko(keys, service)


class Directory:
    """The bastion's folder: made if missing, locked while it runs, emptied of ours afterwards."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.state = self.path / "bastion.json"
        self.socket = self.path / "service.sock"
        self.lock_file = self.path / "lock"

    def check(self) -> None:
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH:
            raise Unusable(
                f"{self.path} is too long a path for a unix socket: choose a directory of at most "
                f"{MAX_SOCKET_PATH - len('/' + self.socket.name)} bytes"
            )

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock, which tells that a bastion runs here better than a pid does."""
        made = not self.path.exists()
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = set(self.path.iterdir())
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # Whoever only asks in running() has the lock for a moment, too.
            deadline = time.monotonic() + 1
            while not self._lock(descriptor):
                if time.monotonic() > deadline:
                    raise AlreadyRunning(f"a bastion is already running in {self.path}")
                time.sleep(0.02)
            # What a killed one left behind is nobody's state.
            self.state.unlink(missing_ok=True)
            try:
                yield
            finally:
                for file in set(self.path.iterdir()) - before | {self.state}:
                    file.unlink(missing_ok=True)
                if made:
                    with contextlib.suppress(OSError):
                        self.path.rmdir()
        finally:
            os.close(descriptor)

    @staticmethod
    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def running(self) -> dict[str, Any] | None:
        """What the bastion that runs here says about itself."""
        try:
            with self.lock_file.open("rb") as lock:
                if not self._lock(lock.fileno()):
                    state: dict[str, Any] = json.loads(self.state.read_text())
                    return state
        except (OSError, ValueError):
            pass
        return None

    def publish(self, state: dict[str, Any]) -> None:
        new = self.path / "bastion.json.new"
        new.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n")
        new.replace(self.state)


def serve(directory: Directory, kind: str, lifetime: float, parent: int | None) -> None:
    """Be the bastion until told to stop."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    deadline = time.monotonic() + lifetime
    with directory.held(), contextlib.ExitStack() as stack:
        services = (TcpService((HOST, 0), Answer), UnixService(str(directory.socket), Answer))
        for service in services:
            stack.callback(service.server_close)
            spawn(service.serve_forever, 0.1)
            stack.callback(service.shutdown)
        service_host, service_port = services[0].server_address[:2]
        keys = Keys(directory.path)
        kind, server = start_server(kind, keys, (str(service_host), service_port))
        stack.callback(server.close)
        tried = server.logins()
        for service in services:
            service.logins = lambda: server.logins() - tried
        keys.write_client_files(server.port)
        directory.publish(
            {
                "alias": ALIAS,
                "host": HOST,
                "identity_file": str(keys.client_file),
                "known_hosts": str(keys.known_hosts),
                "pid": os.getpid(),
                "port": server.port,
                "server": kind,
                "service_host": service_host,
                "service_port": service_port,
                "service_socket": str(directory.socket),
                "ssh_config": str(keys.ssh_config),
                "user": keys.user,
            }
        )
        while not stop.wait(0.2):
            if time.monotonic() > deadline or not server.alive():
                break
            if parent is not None and os.getppid() != parent:
                break


def start_in_background(directory: Directory, kind: str, lifetime: float) -> dict[str, Any]:
    """Start a bastion that outlives this process, unless one runs already; say where it is."""
    state = directory.running()
    if state is not None:
        return {**state, "changed": False}
    command = [sys.executable, os.path.abspath(__file__), "--directory", str(directory.path)]
    command += ["--server", kind, "--lifetime", str(lifetime), "--orphan"]
    # Its output is a file, so that nobody waits for the end of a pipe which it would hold.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )
        deadline = time.monotonic() + STARTUP
        while process.poll() in (None, ALREADY_RUNNING) and time.monotonic() < deadline:
            state = directory.running()
            if state is not None:
                if state["pid"] == process.pid:
                    return {**state, "changed": True}
                process.wait(STARTUP)  # somebody else was faster
                return {**state, "changed": False}
            time.sleep(0.02)
        process.terminate()
        process.wait()
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    raise Unusable(said or f"the bastion was not ready within {STARTUP:.0f} seconds")


def stop(directory: Directory) -> dict[str, Any]:
    """End the bastion of a directory and wait until it has tidied up."""
    state = directory.running()
    if state is None:
        return {"changed": False}
    os.kill(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + 3 * SHUTDOWN
    while directory.running() is not None:
        if time.monotonic() > deadline:
            raise Unusable(f"process {state['pid']} does not end")
        time.sleep(0.02)
    return {"changed": True}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--directory", type=Path, required=True, help="where its files go")
    parser.add_argument("--server", choices=("auto", "paramiko", "sshd"), default="auto")
    parser.add_argument("--lifetime", type=float, default=3600.0, metavar="SECONDS")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--background", action="store_true", help="return when ready, print the JSON")
    mode.add_argument("--stop", action="store_true", help="end the bastion of this directory")
    mode.add_argument("--orphan", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # A client that hangs up is no error of ours.
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    directory = Directory(options.directory)
    try:
        directory.check()
        if options.stop:
            result = stop(directory)
        elif options.background:
            result = start_in_background(directory, options.server, options.lifetime)
        else:
            parent = None if options.orphan else os.getppid()
            serve(directory, options.server, options.lifetime, parent)
            return 0
    except (Unusable, OSError) as error:
        sys.stderr.write(f"embedded_bastion: {error}\n")
        return ALREADY_RUNNING if isinstance(error, AlreadyRunning) else 1
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
