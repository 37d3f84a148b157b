# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real PostgreSQL on loopback, which speaks TLS and wants a password."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType

from tests.support.services import free_port, listens
from tests.support.tls import Certificate
from tests.support.waiting import wait_for


def postgres_programs() -> Path | None:
    """The folder of the server's programs, if it is installed. Debian's is not in PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: int(one.parts[-2]))
    places = [*map(str, reversed(debian)), os.environ.get("PATH", "")]
    found = shutil.which("initdb", path=os.pathsep.join(places))
    return None if found is None else Path(found).resolve().parent


class Postgres:
    """A server from `with` to its end. Its superuser is `postgres`, with `password`.

    It refuses to run as root, who has to name another `user`. `directory` is for it alone.
    """

    def __init__(self, directory: Path, certificate: Certificate, user: str | None = None) -> None:
        programs = postgres_programs()
        assert programs, "PostgreSQL's server is not installed"
        self.programs = programs
        self.directory = directory
        self.data = directory / "data"
        self.user = user
        self.password = secrets.token_urlsafe(12)
        self.port = free_port()
        directory.mkdir()
        for source in (certificate.certificate, certificate.key):
            shutil.copy2(source, directory)
        (directory / "password").write_text(self.password)
        if user is not None:
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, user, user)

    def __enter__(self) -> Postgres:
        initialise = [*self._program("initdb"), "--no-sync", "--no-locale", "--encoding=UTF8"]
        initialise += ["--username=postgres", f"--pwfile={self.directory}/password"]
        made = subprocess.run(
            [*initialise, "--auth=scram-sha-256"],
            cwd=self.directory,
            user=self.user,
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "ssl": "on",
            "ssl_cert_file": self.directory / "certificate.pem",
            "ssl_key_file": self.directory / "key.pem",
        }
        log = self.directory / "log"
        with log.open("w") as written:
            self.process = subprocess.Popen(
                [*self._program("postgres"), *(f"--{name}={settings[name]}" for name in settings)],
                cwd=self.directory,
                user=self.user,
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,
            )
        try:
            wait_for(self._settled, "PostgreSQL listens", 30)
            assert self.process.poll() is None, log.read_text()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _settled(self) -> bool:
        return listens(("127.0.0.1", self.port)) or self.process.poll() is not None

    def _end(self) -> None:
        # "Immediate shutdown": nobody needs what is in it.
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def _program(self, name: str) -> list[str]:
        return [str(self.programs / name), "-D", str(self.data)]
