# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests against a real sshd: a short directory, a bastion in it, no leftovers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import Account, throwaway_account
from tests.support.client import Ssh
from tests.support.leaks import MARK, LeakWatch
from tests.support.preloaded import Run
from tests.support.services import Echo
from tests.support.sshd import Sshd, sshd_path
from tests.support.tasks import close_all
from tests.support.workdir import short_dir


@pytest.fixture(scope="session")
def preloaded() -> None:
    """What starts ansible-playbook runs all the time, so that no test leaves it behind."""
    Run.prepare()


@pytest.fixture(autouse=True)
def watch(preloaded: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeakWatch]:
    """Fails a test after which something that it started lives on, and cleans up."""
    with short_dir() as path:
        home = path / "h"
        home.mkdir(mode=0o700)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv(MARK, str(path))
        # A stopped master has overwritten its arguments and environment: its folder tells.
        monkeypatch.chdir(path)
        for name in ("SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY"):
            monkeypatch.delenv(name, raising=False)
        leaks = LeakWatch(path)
        yield leaks
        left = leaks.settle()
        assert not left, "left behind: " + "; ".join(left)


@pytest.fixture
def work(watch: LeakWatch) -> Path:
    """The test's own short directory; HOME is `h` in it."""
    return watch.directory


@pytest.fixture
def make_sshd(watch: LeakWatch) -> Iterator[Callable[..., Sshd]]:
    """`make_sshd(**arguments of Sshd)` starts an sshd; all of them end with the test.

    They end after the search for leftovers: a master that is still connected would go with them.
    """
    if sshd_path() is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    started: list[Sshd] = []

    def make(**arguments: Any) -> Sshd:
        server = Sshd(watch.directory, **arguments)
        started.append(server)
        return server.start()

    yield make
    spared = {process.pid for server in started for process in server.processes(listener=True)}
    left = watch.settle(spared)
    for server in started:
        server.stop()
    assert not left, "left behind: " + "; ".join(left)


@pytest.fixture
def bastion(make_sshd: Callable[..., Sshd]) -> Sshd:
    """A running sshd."""
    return make_sshd()


@pytest.fixture
def account(work: Path) -> Iterator[Account]:
    """An account with a password, for an sshd with `user=account.name`."""
    if os.getuid() != 0:
        pytest.skip("only root can make an account whose password sshd accepts")
    with throwaway_account(work) as made:
        yield made


@pytest.fixture
def closing(work: Path, make_sshd: Callable[..., Sshd]) -> Iterator[None]:
    """Ends the masters that can be reached; others are left behind, and found by the watch."""
    yield
    close_all(work)


@pytest.fixture
def path(work: Path) -> Path:
    """A control path. Its directory is there only where one was opened."""
    return work / "c" / "s"


@pytest.fixture
def ssh(bastion: Sshd, closing: None) -> Ssh:
    """The installed ssh, with the bastion's configuration."""
    return Ssh(bastion.ssh_config())


@pytest.fixture
def echo() -> Iterator[Echo]:
    """A far end."""
    with Echo() as service:
        yield service


@pytest.fixture
def world(work: Path, bastion: Sshd) -> Iterator[Mapping[str, str]]:
    """An environment in which `ssh bastion` works; the masters that are left are closed."""
    config = bastion.ssh_config()
    programs = work / "bin"
    programs.mkdir()
    for name in ("ssh", "sftp", "scp"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shutil.which(name)} -F {config} "$@"\n')
        program.chmod(0o755)
    yield {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    ssh = Ssh(config)
    for socket in (work / "h/.ansible/mux").glob("*"):
        if socket.is_socket():
            ssh.control(socket, "exit")
