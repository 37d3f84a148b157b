# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ProxyCommand of the connection plugin: a target's stream through a bastion's master.

ssh runs it as ``python -I -S way.py SECONDS WHY HOST PORT CONTROL_PATH...`` with ProxyUseFdpass:
the first of the masters that reaches the target forwards a unix socket to it for as long as it
takes to connect there, the stream is passed to ssh as a descriptor, and this process ends. The
stream lives on, the master's it is from then on: a stdio forwarding would end with this process.

It is started for each target, so it imports as little as there is: of the collection nothing, and
what ``socket`` and ``subprocess`` would do is done with what they stand on. Its bytes are compared
with those of ``module_utils/protocol`` in a unit test. Private to the collection: no promise is
made about it.
"""

from __future__ import annotations

import _socket
import posix
import sys
from time import monotonic

#: Messages of PROTOCOL.mux.
_HELLO = 0x00000001
_OPEN_FORWARD = 0x10000006
_CLOSE_FORWARD = 0x10000007
_ALIVE_CHECK = 0x10000004
_OK = 0x80000001
_LOCAL = 1
_UNIX = 0xFFFFFFFE

#: How long a master that did reply may take to forward no longer, in seconds.
_GRACE = 1.0

#: Beside a master's socket: what it writes, and that it forwards no unix sockets.
LOG = ".log"
NO_UNIX = ".nounix"

#: Names of the sockets that a stream goes through while it is set up.
PREFIX = ".way-"


class Failed(Exception):
    """Why there is no stream: a reason of the collection, and words."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def u32(number: int) -> bytes:
    """A number as the protocol has it."""
    return number.to_bytes(4, "big")


def string(content: bytes) -> bytes:
    """A counted string."""
    return u32(len(content)) + content


def hello() -> bytes:
    """What is said first."""
    return string(u32(_HELLO) + u32(4))


def forward(kind: int, number: int, path: bytes, host: bytes, port: int) -> bytes:
    """The request to listen at a path for one far end, or no longer."""
    listen, connect = string(path) + u32(_UNIX), string(host) + u32(port)
    return string(u32(kind) + u32(number) + u32(_LOCAL) + listen + connect)


def alive_check(number: int) -> bytes:
    """The request for the master's process id."""
    return string(u32(_ALIVE_CHECK) + u32(number))


class Master:
    """A dialogue with a master."""

    def __init__(self, control: bytes, deadline: float) -> None:
        self.control = control
        self._deadline = deadline
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            self._wait(self._socket)
            self._socket.connect(control)
            self._socket.sendall(hello())
            self._message()
        except TimeoutError:
            raise Failed("wedged", "the master does not answer") from None
        except OSError as error:
            raise Failed("not_running", "no master answers: %s" % error) from None

    def _wait(self, connection: _socket.socket) -> None:
        connection.settimeout(max(0.01, self._deadline - monotonic()))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._wait(self._socket)
            more = self._socket.recv(size - len(data))
            if not more:
                raise OSError("it hung up")
            data += more
        return data

    def _message(self) -> bytes:
        return self._read(int.from_bytes(self._read(4), "big"))

    def _accepts(self, kind: int, number: int, path: bytes, host: bytes, port: int) -> bool:
        self._socket.sendall(forward(kind, number, path, host, port))
        return self._message()[:4] == u32(_OK)

    def pid(self) -> int:
        """The process that it says it is.

        :raises OSError: it does not answer.
        """
        self._socket.sendall(alive_check(1))
        return int.from_bytes(self._message()[8:12], "big")

    def stream(self, host: bytes, port: int) -> _socket.socket:
        """A stream on which the target has begun to speak.

        :raises Failed: why there is none.
        """
        path = self.control.rpartition(b"/")[0] + b"/" + PREFIX.encode()
        path += posix.urandom(5).hex().encode()
        # Before the master is asked to connect: a refusal may be in its log at once.
        said = self._log_size()
        try:
            if not self._accepts(_OPEN_FORWARD, 1, path, host, port):
                return self._spoken(self._without_unix(host, port), host, port, said)
            stream = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
            try:
                stream.connect(path)
                posix.unlink(path)
                # Not closed sooner: what the master has not accepted by then would be cut off.
                return self._spoken(stream, host, port, said)
            finally:
                self._deadline = max(self._deadline, monotonic() + _GRACE)
                self._accepts(_CLOSE_FORWARD, 2, path, host, port)
        except TimeoutError:
            raise Failed("wedged", "the master does not answer") from None
        except OSError as error:
            raise Failed("not_running", "the master ended in the meantime: %s" % error) from None

    def _spoken(self, stream: _socket.socket, host: bytes, port: int, said: int) -> _socket.socket:
        """The stream, once its far end is known to be there: ssh's server speaks first.

        :param said: how much the master had written before it was asked.
        """
        self._wait(stream)
        target = "%s port %d" % (host.decode("utf-8", "replace"), port)
        try:
            if stream.recv(1, _socket.MSG_PEEK):
                stream.settimeout(None)
                return stream
        except TimeoutError:
            raise Failed(
                "timeout", "%s said nothing in time through the bastion" % target
            ) from None
        except ConnectionError:
            pass
        reason = self._refusal(said) or "the connection was closed"
        raise Failed("destination_unreachable", "the bastion reaches no %s: %s" % (target, reason))

    def _log_size(self) -> int:
        try:
            return posix.stat(self.control + LOG.encode()).st_size
        except OSError:
            return 0

    def _refusal(self, position: int) -> str:
        """The server's words, which are in the master's log alone (channels.c)."""
        try:
            with open(self.control + LOG.encode(), "rb") as log:
                log.seek(position)
                lines = log.read(65536).decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        # Others may be refused at the same time, and no line says of which one it speaks.
        parts = [line.partition("open failed: ")[2] for line in lines]
        return " or ".join(dict.fromkeys(part for part in parts if part))

    def _without_unix(self, host: bytes, port: int) -> _socket.socket:
        """A stream through an ``ssh -W`` of its own, which stays as long as the stream does."""
        posix.close(posix.open(self.control + NO_UNIX.encode(), posix.O_WRONLY | posix.O_CREAT))
        ours, theirs = _socket.socketpair()
        if posix.fork() == 0:
            # Twice, and in a session of its own: neither ssh nor an interrupt ends it.
            posix.setsid()
            if posix.fork():
                posix.kill(posix.getpid(), 9)
            for descriptor in (0, 1):
                posix.dup2(theirs.fileno(), descriptor)
            nothing = posix.open("/dev/null", posix.O_WRONLY)
            posix.dup2(nothing, 2)
            far = b"[%s]:%d" % (host, port)
            command = [b"ssh", b"-F", b"none", b"-S", self.control.replace(b"%", b"%%")]
            command += [b"-o", b"ProxyCommand=false", b"-W", far, b"--", b"bastion"]
            for directory in posix.environ.get(b"PATH", b"/usr/bin:/bin").split(b":"):
                try:
                    posix.execv(directory + b"/ssh", command)
                except OSError:
                    continue
            posix.kill(posix.getpid(), 9)
        posix.wait()
        theirs.close()
        return ours


def main(seconds: str, why: str, host: str, port: str, *controls: str) -> int:
    """Pass a stream to ssh.

    :returns: the exit status.
    """
    end = monotonic() + float(seconds)
    failures = []
    for number, control in enumerate(controls):
        # One that is cut off must not use up the time of the next one.
        deadline = monotonic() + (end - monotonic()) / (len(controls) - number)
        try:
            master = Master(control.encode("utf-8", "surrogateescape"), deadline)
            stream = master.stream(host.encode("utf-8", "surrogateescape"), int(port))
        except Failed as failure:
            failures.append(failure)
            continue
        right = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, stream.fileno().to_bytes(4, sys.byteorder))
        passed = _socket.socket(fileno=1)
        passed.sendmsg([b"\0"], [right])
        passed.detach()
        return 0
    told = "%s\n%s\n" % (failures[-1].reason, "; ".join(map(str, failures)))
    sys.stderr.write(told)
    # With ControlPersist ssh throws away what is said here (sshconnect.c).
    with open(why, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(told)
    return 255


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
