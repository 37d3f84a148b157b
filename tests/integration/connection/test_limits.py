# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Few at once, few in all, bastions that allow little: hosts wait, and none is left behind."""

from __future__ import annotations

import os
import re
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.fake_master import (
    FAILURE,
    NEW_STDIO_FORWARD,
    OPEN_FORWARD,
    SESSION_OPENED,
    Asked,
    FakeMaster,
    Peer,
)
from tests.support.leaks import LeakWatch
from tests.support.playbook import run_playbook
from tests.support.sshd import Sshd

ADDRESSES = [f"127.0.0.{number}" for number in range(2, 8)]
TASK = {"name": "do", "raw": "true"}


def fleet(targets: Sshd, bastion: dict[str, Any], **variables: Any) -> dict[str, Any]:
    """An inventory."""
    hosts = {f"t{number}": targets.variables(address) for number, address in enumerate(ADDRESSES)}
    ours = {"ansible_connection": "bastion.mux.ssh", "ansible_bastion": "bastion", **variables}
    return {
        "targets": {"hosts": hosts, "vars": ours},
        "bastions": {"hosts": {"bastion": bastion}},
    }


def at_once(targets: Sshd) -> int:
    """How many connections the targets had at the same time, at most."""
    most = 0
    opened = set()
    for line in targets.log().splitlines():
        begins = re.match(r"Connection from \S+ port (\d+)", line)
        if begins:
            opened.add(begins[1])
        ends = re.search(r"(?:closed by|Disconnected from).* port (\d+)", line)
        if ends:
            opened.discard(ends[1])
        most = max(most, len(opened))
    return most


def test_few_at_once(work: Path, make_sshd: Callable[..., Sshd]) -> None:
    # No session is opened on the bastion, however few it allows: it sees a login.
    bastion = make_sshd(options={"MaxSessions": 1})
    targets = make_sshd(name="target", addresses=ADDRESSES, options={"MaxStartups": "2:100:2"})
    play = {"hosts": "targets", "gather_facts": False, "tasks": [TASK]}
    inventory = fleet(targets, bastion.variables(), ansible_bastion_max_setups=2)
    run_playbook(work, play, inventory=inventory, forks=8).ok()
    assert bastion.logins() == 1
    assert targets.logins() == len(ADDRESSES)
    assert "MaxStartups" not in targets.log()


def test_few_in_all(work: Path, make_sshd: Callable[..., Sshd], bastion: Sshd) -> None:
    targets = make_sshd(name="target", addresses=ADDRESSES)
    play = {"hosts": "targets", "gather_facts": False, "tasks": [TASK]}
    inventory = fleet(
        targets,
        bastion.variables(),
        ansible_bastion_max_channels=3,
        ansible_ssh_args="-o ControlMaster=auto -o ControlPersist=1s",
    )
    run_playbook(work, play, inventory=inventory, forks=8).ok()
    assert 1 < at_once(targets) <= 3, targets.log()


class WithoutUnix:
    """A master that forwards no unix sockets, and reaches what it is asked for."""

    def __init__(self, path: Path) -> None:
        answers = {OPEN_FORWARD: self._refuse, NEW_STDIO_FORWARD: self._connect}
        self.master = FakeMaster(path, pid=os.getpid(), answers=answers)

    def _refuse(self, peer: Peer, asked: Asked) -> None:
        peer.send(FAILURE, asked.id, "Port forwarding failed")

    def _connect(self, peer: Peer, asked: Asked) -> None:
        _reserved, host, port = asked.values[:3]
        assert isinstance(host, bytes)
        assert isinstance(port, int)
        stdin, stdout = peer.descriptors(2)
        try:
            with socket.create_connection((host.decode(), port)) as far:
                peer.send(SESSION_OPENED, asked.id, 7)
                relay(stdin, stdout, far)
        except ConnectionRefusedError:
            peer.send(FAILURE, asked.id, "Session open refused by peer")
        finally:
            os.close(stdin)
            os.close(stdout)
        peer.hang_up()


def relay(stdin: int, stdout: int, far: socket.socket) -> None:
    """Until one side ends."""
    with selectors.DefaultSelector() as selector:
        selector.register(stdin, selectors.EVENT_READ, far.sendall)
        selector.register(far, selectors.EVENT_READ, lambda data: os.write(stdout, data))
        while True:
            for key, _events in selector.select():
                data = os.read(key.fd, 65536)
                if not data:
                    return
                key.data(data)


def test_no_unix_sockets(work: Path, watch: LeakWatch, make_sshd: Callable[..., Sshd]) -> None:
    targets = make_sshd(name="target", addresses=ADDRESSES[:1])
    directory = work / "c"
    directory.mkdir(mode=0o700)
    path = directory / "s"
    bastion = {"ansible_host": "nowhere.invalid", "ansible_ssh_common_args": f"-S {path}"}
    play = {"hosts": "t0", "gather_facts": False, "tasks": [TASK]}
    fake = WithoutUnix(path)
    with fake.master:
        run = run_playbook(work, play, inventory=fleet(targets, bastion), forks=2).ok()
        asked = [request for request in fake.master.requests if request.type == NEW_STDIO_FORWARD]
        assert asked[-1].values[1] == ADDRESSES[0].encode()
        stay = [one.cmdline() for one in watch.processes() if "-W" in one.cmdline()]
        assert len(stay) == 1
        targets.stop()
    assert (run.stdout + run.stderr).count("forwards no unix sockets") == 1
