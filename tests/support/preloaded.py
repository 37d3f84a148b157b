# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible-playbook, forked from a Python that has loaded the libraries of others.

They are a third of what a short run costs, and the tests run a thousand of them. Ansible itself is
loaded anew by each run, because it reads its environment and its configuration at import.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import ClassVar

import psutil

_LIBRARIES = """
import sys, ansible.cli.playbook
print(*(name for name in sys.modules if not name.startswith(("ansible", "_"))))
"""


class Run:
    """A run of ansible-playbook. It leads a session of its own.

    :param fresh: nothing is loaded before it.
    """

    running: ClassVar[set[Run]] = set()
    _requests: ClassVar[socket.socket | None] = None

    def __init__(
        self, arguments: Sequence[str], directory: Path, env: Mapping[str, str], fresh: bool
    ) -> None:
        requests = self.prepare()
        self._server, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(requests, [b"."], [theirs.fileno()])
        pipes = [os.pipe(), os.pipe()]
        request = json.dumps([list(arguments), str(directory), dict(env), fresh])
        socket.send_fds(self._server, [request.encode(), b"\n"], [write for _read, write in pipes])
        for _reads, write in pipes:
            os.close(write)
        self._outputs = [read for read, _writes in pipes]
        self._replies = self._server.makefile()
        self.pid = int(self._replies.readline())
        Run.running.add(self)

    @classmethod
    def prepare(cls) -> socket.socket:
        """Start the Python that loads, for who wants to have it running."""
        if cls._requests is None:
            cls._requests = _start_server()
        return cls._requests

    def communicate(self, timeout: float) -> tuple[int, str, str, float]:
        """Its exit status, what it printed, once nobody holds its pipes any more, and what it used.

        That is processor seconds, with those of all that it waited for.

        :raises TimeoutError: somebody does for so many seconds; it is killed, and printed that.
        """
        with ThreadPoolExecutor() as pool:
            printed = [pool.submit(_read, one) for one in self._outputs]
            late = wait(printed, timeout).not_done
            if late:
                self.kill()
        out, err = (one.result() for one in printed)
        with self._server, self._replies as replies:
            status, used = replies.readline().split()
        Run.running.remove(self)
        if late:
            raise TimeoutError(f"ansible-playbook took more than {timeout} s\n{out}\n{err}")
        return os.waitstatus_to_exitcode(int(status)), out, err, float(used)

    def kill(self) -> None:
        """Kill it with its workers, which lead sessions of their own (ansible-core 2.19)."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.pid)
            for one in (*top.children(recursive=True), top):
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()


def _read(descriptor: int) -> str:
    with open(descriptor, encoding="utf-8", errors="replace") as pipe:
        return pipe.read()


def _start_server() -> socket.socket:
    """Start the Python that loads; it ends when the socket is closed."""
    ours, theirs = socket.socketpair()
    with theirs:
        subprocess.Popen(
            # -I: runs have nothing of our environment or of this folder.
            [sys.executable, "-I", "-X", "utf8", __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
    # From here on it has no process of its own but the runs.
    assert ours.recv(1), "it ended"
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request, and return in that process as its run."""
    found = subprocess.run(
        [sys.executable, "-I", "-c", _LIBRARIES], check=True, capture_output=True, text=True
    )
    for name in found.stdout.split():
        importlib.import_module(name)
    requests.sendall(b".")
    # Nobody waits for the parents of the runs.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, given, _flags, _address = socket.recv_fds(requests, 1, 1)
        if not asked:
            sys.exit()
        (number,) = given
        if os.fork() == 0:
            break
        os.close(number)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    client = socket.socket(fileno=number)
    message, outputs, _flags, _address = socket.recv_fds(client, 1 << 16, 2)
    while not message.endswith(b"\n"):
        message += client.recv(1 << 16)
    pid = os.fork()
    if pid:
        for descriptor in outputs:
            os.close(descriptor)
        client.sendall(b"%d\n" % pid)
        _pid, status, usage = os.wait4(pid, 0)
        client.sendall(b"%d %f\n" % (status, usage.ru_utime + usage.ru_stime))
        os._exit(0)
    client.close()
    os.setsid()
    for standard, descriptor in enumerate(outputs, 1):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    # Those that are there know what they were opened for.
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    arguments, directory, env, fresh = json.loads(message)
    os.chdir(directory)
    if fresh:
        command = [sys.executable, "-m", "ansible", "playbook", *arguments]
        os.execve(sys.executable, command, env)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["ansible-playbook", *arguments]


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    from ansible.cli.playbook import main

    # It ends as a process of its own would, with all that is registered to be done at the end.
    main()
