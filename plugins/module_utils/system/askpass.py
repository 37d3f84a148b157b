# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers to the questions of ssh, over SSH_ASKPASS and a socket of our own.

A secret travels from this process to ssh's helper through a unix socket in a 0700 directory: it
is in no argument list, no environment, no file. Private to the collection: no promise is made
about it.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import shutil
import socket
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterator, Optional, Set

from .mux_client import peer_of

try:
    import psutil
except ImportError:
    pass  # processes.PSUTIL_ERROR tells the edges

#: What ssh runs for each question, with the question as its argument (readpass.c, ssh_askpass).
_HELPER = """\
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode("utf-8", "surrogateescape"))
s.shutdown(socket.SHUT_WR)
answer = b"".join(iter(lambda: s.recv(4096), b""))
if not answer:
    sys.exit(1)
sys.stdout.buffer.write(answer[1:] + b"\\n")
"""

#: sshconnect2.c, load_identity_file and try_agent_identity.
_PASSPHRASE = re.compile(r"Enter (passphrase|PIN) for ", re.IGNORECASE)
#: sshconnect.c, confirm: never answered, host_key_checking decides.
_CONFIRMATION = re.compile(r"\(yes/no|Confirm user presence|Allow ", re.IGNORECASE)


@dataclass(frozen=True)
class Secrets:
    """What may be answered; never shown, not even in a traceback."""

    password: Optional[str] = field(default=None, repr=False)
    passphrase: Optional[str] = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return self.password is not None or self.passphrase is not None


def choose(secrets: Secrets, prompt: str, *, from_target: bool) -> Optional[str]:
    """The answer to one prompt, or ``None`` to refuse it.

    :param from_target: whether the ssh that logs in to the bastion itself asks, and not one of
        its jump hosts': those never see the password.
    """
    if _CONFIRMATION.search(prompt):
        return None
    if _PASSPHRASE.match(prompt):
        return secrets.passphrase
    return secrets.password if from_target else None


class _Responder:
    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._answered: Set[str] = set()
        #: The process id of the ssh whose questions are the target's; set once it runs.
        self.ssh_pid: Optional[int] = None

    def answer(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(5.0)
            with contextlib.suppress(OSError):
                received = b"".join(iter(lambda: connection.recv(4096), b""))
                prompt = received.decode("utf-8", "replace")
                answer = choose(self._secrets, prompt, from_target=self._is_target(connection))
                if answer is not None and prompt not in self._answered:
                    self._answered.add(prompt)
                    # The first byte tells an empty answer from a refusal.
                    connection.sendall(b"+" + answer.encode("utf-8", "surrogateescape"))

    def _is_target(self, connection: socket.socket) -> bool:
        helper = peer_of(connection)
        if not helper or self.ssh_pid is None:
            return False
        try:
            return bool(psutil.Process(helper).ppid() == self.ssh_pid)
        except psutil.Error:
            return False


@contextlib.contextmanager
def answering(
    secrets: Secrets, directory: str
) -> Iterator[tuple[Dict[str, str], Callable[[int], None]]]:
    """Answer ssh's questions while the block runs.

    :param directory: a 0700 directory that may hold executables; a temporary one is made in it.
    :returns: the environment for ssh, and a function to call with ssh's process id.
    """
    own = tempfile.mkdtemp(prefix=".ask", dir=directory)
    address = os.path.join(own, "s")
    stop, wake = os.pipe()
    try:
        helper = os.path.join(own, "askpass")
        with open(os.open(helper, os.O_WRONLY | os.O_CREAT, 0o700), "w", encoding="utf-8") as file:
            command = [sys.executable, "-I", "-S", "-c", _HELPER, address]
            file.write('#!/bin/sh\nexec %s "$1"\n' % " ".join(map(shlex.quote, command)))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(address)
            listener.listen(8)
            responder = _Responder(secrets)
            thread = threading.Thread(target=_serve, args=(listener, stop, responder), daemon=True)
            thread.start()
            environment = {"SSH_ASKPASS": helper, "SSH_ASKPASS_REQUIRE": "force"}
            # Before OpenSSH 8.4 the helper is asked only where there is a display.
            environment["DISPLAY"] = os.environ.get("DISPLAY") or ":"

            def runs_as(pid: int) -> None:
                responder.ssh_pid = pid

            try:
                yield environment, runs_as
            finally:
                os.close(wake)
                thread.join()
    finally:
        os.close(stop)
        shutil.rmtree(own, ignore_errors=True)


def _serve(listener: socket.socket, stop: int, responder: _Responder) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(stop, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _events in selector.select()]
            if stop in ready:
                return
            responder.answer(listener.accept()[0])
