# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd on loopback, with keys, configuration and log of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.support.services import free_port, has_ipv6
from tests.support.waiting import wait_for

Options = Mapping[str, str | int | Sequence[str]]


def sshd_path() -> str | None:
    """The installed sshd: it insists on being started by its absolute path."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


@functools.cache
def openssh_version(program: str = "ssh") -> tuple[int, int]:
    """The version of `program`, as (9, 2)."""
    said = subprocess.run(
        [program, "-V"], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said.stderr + said.stdout)
    assert found, f"{program} -V said {said.stderr!r}"
    return int(found.group(1)), int(found.group(2))


def make_key(path: Path, passphrase: str = "") -> Path:
    """Write a new ed25519 key to `path` and `path`.pub."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", path.name, "-f", str(path)],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return path


def public_key(path: Path) -> str:
    """The public half of the key at `path`: its type and its text."""
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


class Sshd:
    """An sshd which listens on loopback, from `start` (or `with`) to `stop`.

    It lets `user` (whoever runs the tests, unless told) in with the key `identity_file`. `options`
    are keywords of sshd_config, put before our own; a list gives several lines, None drops ours.
    `more` is text for the end, for Match blocks.
    `prefix` is a command that becomes the sshd whose command line follows it.
    `addresses` are at most 16 of loopback, such as 127.0.0.7. `port` is chosen once and stays the
    same over `restart`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        options: Mapping[str, str | int | Sequence[str] | None] | None = None,
        more: str = "",
        addresses: Sequence[str] | None = None,
        user: str | None = None,
        name: str = "bastion",
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir(mode=0o700)
        self.user = user or _me()
        self.host = "127.0.0.1"
        self.port = 0
        if addresses is None:
            addresses = ["127.0.0.1"] + (["::1"] if has_ipv6() else [])
        self.addresses = list(addresses)
        self.options = dict(options or {})
        self.more = more
        self.environment = dict(environment or {})
        self.prefix = list(prefix)
        self.log_file = self.directory / "log"
        self.known_hosts = self.directory / "known_hosts"
        self.authorized_keys = self.directory / "authorized_keys"
        self.host_key = make_key(self.directory / "host_key")
        self.identity_file = make_key(self.directory / "id")
        self.authorized_keys.write_text(public_key(self.identity_file) + "\n")
        if self.user != _me():
            # sshd reads the keys of an account as that account.
            self.directory.chmod(0o711)
            self.authorized_keys.chmod(0o644)
        self.process: subprocess.Popen[bytes] | None = None
        self._served: dict[int, psutil.Process] = {}

    # Life

    def __enter__(self) -> Sshd:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Sshd:
        """Start, and return when it listens."""
        assert self.process is None, "it runs already"
        if os.getuid() == 0:
            # Debian's package leaves this privilege separation directory to its init script.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        chosen = self.port
        for _attempt in range(5):
            self.port = chosen or free_port()
            self._write_files()
            if self._listen():
                return self
            if chosen:
                break
        raise AssertionError(f"sshd did not start:\n{self.log()}")

    def stop(self, *, connections: bool = True) -> None:
        """End the listener and, unless told to spare them, its connections: a bastion that is off.

        The connections end without a word to their clients beyond what the kernel says for them.
        """
        if connections:
            # Before the listener goes: afterwards nobody could tell whose children they were.
            for process in self.processes():
                _kill(process)
        else:
            self.processes()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if connections:
            # One more may have been accepted in between.
            for process in self.processes():
                _kill(process)

    def restart(self, *, connections: bool = True) -> None:
        """A reboot: everything ends, then the same address answers again."""
        self.stop(connections=connections)
        self.start()

    def reload(self) -> None:
        """Read `options` and `more` again (SIGHUP); what is connected stays."""
        assert self.process is not None
        self._write_files()
        said = len(self.log())
        self.process.send_signal(signal.SIGHUP)
        wait_for(
            lambda: self.log()[said:].count("Server listening on ") >= len(self.addresses),
            "sshd listens again",
        )

    def freeze(self, *, listener: bool = False) -> None:
        """Stop the connections' processes: a network that swallows everything."""
        for process in self.processes(listener=listener):
            _send(process, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let what `freeze` stopped run on."""
        for process in self.processes(listener=True):
            _send(process, signal.SIGCONT)

    def processes(self, *, listener: bool = False) -> list[psutil.Process]:
        """The live processes that serve connections, and all that these started."""
        if self.process is not None:
            try:
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    self._served.setdefault(child.pid, child)
            except psutil.NoSuchProcess:
                pass
        for process in list(self._served.values()):
            if not _lives(process):
                del self._served[process.pid]
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in process.children(recursive=True):
                    self._served.setdefault(child.pid, child)
        found = [process for process in self._served.values() if _lives(process)]
        if listener and self.process is not None and self.process.poll() is None:
            found.append(psutil.Process(self.process.pid))
        return found

    # What it saw

    def log(self) -> str:
        """Everything it logged so far, over restarts too."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def logins(self) -> int:
        """How many authentications it accepted."""
        return len(re.findall(r"^Accepted \S+ for ", self.log(), re.MULTILINE))

    def connections(self) -> int:
        """How many TCP connections it accepted."""
        return len(re.findall(r"^Connection from ", self.log(), re.MULTILINE))

    # How to reach it

    def ssh_config(
        self,
        path: Path | None = None,
        *,
        alias: str | None = None,
        options: Options | None = None,
        more: str = "",
    ) -> Path:
        """Write an ssh_config in which `alias` (its name, unless told) is this sshd.

        `options` are put first, so they win; `more` is text for the end of the file.
        """
        alias = alias or self.name
        path = path or self.directory / "ssh_config"
        ours: dict[str, str | int | Sequence[str]] = {
            "HostName": self.host,
            "Port": self.port,
            "User": self.user,
            "IdentityFile": str(self.identity_file),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.known_hosts),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "UpdateHostKeys": "no",
        }
        path.write_text(
            f"Host {alias}\n" + _lines(options or {}, "    ") + _lines(ours, "    ") + more
        )
        return path

    def variables(self, host: str | None = None) -> dict[str, Any]:
        """What makes it a host of an inventory. Of this user's own configuration nothing counts."""
        options = {"UserKnownHostsFile": str(self.known_hosts), **self.ssh_options()}
        return {
            "ansible_host": host or self.host,
            "ansible_port": self.port,
            "ansible_user": self.user,
            "ansible_ssh_private_key_file": str(self.identity_file),
            "ansible_ssh_common_args": " ".join(
                ["-F none", *(f"-o {key}={value}" for key, value in options.items())]
            ),
        }

    def ssh_options(self) -> dict[str, str]:
        """The same as `-o` settings, for who addresses it by `host`, `port` and `user`."""
        return {
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "GlobalKnownHostsFile": "/dev/null",
            "UpdateHostKeys": "no",
        }

    # Inside

    def _listen(self) -> bool:
        program = sshd_path()
        assert program, "there is no sshd on this machine"
        said = len(self.log())
        self.process = subprocess.Popen(
            [
                *self.prefix,
                program,
                "-D",
                "-f",
                str(self.directory / "sshd_config"),
                "-E",
                str(self.log_file),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # A session of its own: an interrupt at the keyboard is for the tests, not for sshd.
            start_new_session=True,
            env={**os.environ, **self.environment},
        )
        process = self.process

        def settled() -> bool:
            listening = self.log()[said:].count("Server listening on ")
            return listening >= len(self.addresses) or process.poll() is not None

        wait_for(settled, "sshd listens")
        if self.log()[said:].count("Server listening on ") >= len(self.addresses):
            return True
        process.kill()
        process.wait()
        self.process = None
        return False

    def _write_files(self) -> None:
        ours: dict[str, str | int | Sequence[str]] = {
            "Port": self.port,
            "ListenAddress": self.addresses,
            "HostKey": str(self.host_key),
            "PidFile": "none",
            "AuthorizedKeysFile": str(self.authorized_keys),
            "StrictModes": "no",
            # PAM is only wanted where sshd itself would refuse: it takes "!" for a locked account.
            "UsePAM": "yes" if _locked(self.user) else "no",
            "PubkeyAuthentication": "yes",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "PermitRootLogin": "yes",
            "LogLevel": "VERBOSE",
            "UseDNS": "no",
            "PermitUserRC": "no",
            "PrintMotd": "no",
            "PrintLastLog": "no",
            "X11Forwarding": "no",
            "Subsystem": "sftp internal-sftp",
        }
        if self.user == _me():
            # Debian's bash reads ~/.bashrc for every session; the real one must not matter here.
            ours["SetEnv"] = f"HOME={self.directory}"
        if openssh_version(sshd_path() or "sshd") >= (9, 8):
            # All tests come from one address, and some fail to log in on purpose.
            ours["PerSourcePenalties"] = "no"
        theirs = {key.lower(): key for key in self.options}
        kept = {key: value for key, value in ours.items() if key.lower() not in theirs}
        given = {key: value for key, value in self.options.items() if value is not None}
        (self.directory / "sshd_config").write_text(_lines({**given, **kept}) + self.more)

        names = f"[127.*]:{self.port},[::1]:{self.port},[localhost]:{self.port}"
        self.known_hosts.write_text(f"{names} {public_key(self.host_key)}\n")


def _lines(options: Options, indent: str = "") -> str:
    text = ""
    for key, value in options.items():
        many = [value] if isinstance(value, (str, int)) else value
        text += "".join(f"{indent}{key} {one}\n" for one in many)
    return text


def _me() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _locked(user: str) -> bool:
    try:
        lines = Path("/etc/shadow").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith(f"{user}:!") for line in lines)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(process: psutil.Process, what: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(what)


def _kill(process: psutil.Process) -> None:
    _send(process, signal.SIGKILL)
    wait_for(lambda: not _lives(process), f"end of process {process.pid}")
