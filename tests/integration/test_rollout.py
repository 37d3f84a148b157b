# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook rollout over real servers: who is changed, who is rolled back, who is left alone.

The whole of it, with a broken bastion that is mended, is molecule's scenario rollout.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.ssh_server_config.conftest import Server
from tests.support.accounts import Account
from tests.support.client import Ssh
from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.services import Echo, connect
from tests.support.sshd import Sshd, public_key
from tests.support.tasks import close_all
from tests.support.waiting import wait_for

SAY = "Say where it stands"
BATCH = "Say which batch it is"
FAIL = "Fail where something failed"
NAMES = ("one", "two", "three", "four")


class Site:
    """Bastions of an inventory, each of them an sshd of this machine, and a client."""

    def __init__(self, work: Path, make_sshd: Callable[..., Sshd], far_end: Echo) -> None:
        self.work = work
        self.servers = {name: Server(make_sshd(name=name)) for name in NAMES}
        self.bastions: dict[str, dict[str, Any]] = {}
        for name, server in self.servers.items():
            sshd = server.sshd
            server.ssh = Ssh(sshd.ssh_config(), name)
            options = {**sshd.ssh_options(), "UserKnownHostsFile": sshd.known_hosts}
            self.bastions[name] = {
                "ansible_host": sshd.host,
                "ansible_port": sshd.port,
                "ansible_user": sshd.user,
                "ansible_ssh_private_key_file": str(sshd.identity_file),
                "ansible_ssh_common_args": " ".join(f"-o {key}={options[key]}" for key in options),
                "server_config_path": str(server.config),
                "server_drop_in": str(server.drop_in),
                "server_directory": str(server.directory),
                # One that is there: the accounts of this machine stay as they are.
                "server_jump_group": grp.getgrgid(65534).gr_name,
                "rollout_destination": f"127.0.0.1:{far_end.port}",
            }
        self.clients: dict[str, dict[str, Any]] = {}
        self.before = {name: self.files(name) for name in self.servers}

    def files(self, name: str) -> dict[str, object]:
        """All that a bastion's sshd reads, less what tells of a change that was undone."""
        server = self.servers[name]
        tree = server.tree().items()
        return {path: what for path, what in tree if not path.startswith(str(server.pending))}

    def client(self, name: str, account: Account) -> Path:
        """Add a client with this user; returns the user's configuration."""
        self.clients[name] = {
            "ansible_connection": "local",
            "client_users": [account.name],
            "client_bastions": [{"name": "one", "hostname": "127.0.0.1", "patterns": ["10.*"]}],
        }
        return account.home / ".ssh/config"

    def run(self, *, serial: Any = None, limit: str = "", **more: Any) -> PlaybookResult:
        check = more.pop("check", False)
        return run_playbook(
            self.work,
            "bastion.mux.rollout",
            inventory={"bastions": {"hosts": self.bastions}, "clients": {"hosts": self.clients}},
            extra_vars={**({"rollout_serial": serial} if serial else {}), **more},
            args=["--limit", limit] if limit else [],
            check=check,
            diff=True,
            env={
                "ANSIBLE_PIPELINING": "1",
                "TMPDIR": str(self.work),
                # Somebody's ansible.cfg. Hosts that go on alone would be no batch.
                "ANSIBLE_STRATEGY": "free",
                "ANSIBLE_ANY_ERRORS_FATAL": "1",
            },
            timeout=300,
        )

    def changed(self) -> list[str]:
        """The bastions with settings of ours."""
        return [name for name, server in self.servers.items() if server.drop_in.exists()]

    def untouched(self) -> list[str]:
        """Those on which nothing is as if anybody had been there."""
        return [name for name in self.servers if self.files(name) == self.before[name]]

    def cut_off(self, name: str) -> None:
        """No connection of it lives on, and nobody can log in to it."""
        sshd = self.servers[name].sshd
        sshd.authorized_keys.write_text("")
        for process in sshd.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def plug_in(self, name: str) -> None:
        """One can log in to it again."""
        sshd = self.servers[name].sshd
        sshd.authorized_keys.write_text(public_key(sshd.identity_file) + "\n")

    @contextlib.contextmanager
    def when_changed(self, name: str, then: Callable[[], object]) -> Iterator[None]:
        """As soon as the settings of that bastion are there, something happens to it."""
        drop_in = self.servers[name].drop_in

        def watch() -> None:
            wait_for(drop_in.exists, f"{name} is changed", 200)
            then()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def said(result: PlaybookResult) -> str:
    """The summary."""
    return "\n".join(result.task(SAY)["msg"])


def batches(result: PlaybookResult) -> list[str]:
    """What is said of the batches."""
    return [one.msg for one in result.tasks(BATCH)]


@pytest.fixture
def far_end() -> Iterator[Echo]:
    with Echo() as service:
        yield service


@pytest.fixture
def site(work: Path, make_sshd: Callable[..., Sshd], far_end: Echo) -> Iterator[Site]:
    if os.getuid() != 0:
        pytest.skip("only root can change an sshd that others log in to")
    yield Site(work, make_sshd, far_end)
    close_all(work)


def test_whoever_is_unreachable_keeps_all_from_being_started(site: Site) -> None:
    site.servers["three"].sshd.stop()
    stopped = site.run(limit="one,three")
    assert stopped.failed
    assert "Nothing was started. To mend, or to leave out: three." in said(stopped)
    assert "Connection refused" in stopped.task(FAIL, "three").msg
    assert batches(stopped) == []
    assert site.untouched() == list(NAMES)

    without = site.run(limit="one,three", rollout_skip_unreachable=True, rollout_masters=False)
    assert not without.failed, without
    assert site.changed() == ["one"]
    assert "2 bastions: 1 rolled out, 1 left out (unreachable)." in said(without)


def test_host_keys_are_checked_where_ansible_does(site: Site) -> None:
    site.servers["one"].sshd.known_hosts.write_text("")
    refused = site.run(limit="one")
    assert "Host key verification failed" in said(refused)
    site.run(limit="one", rollout_masters=False, ansible_host_key_checking=False).ok()
    assert site.changed() == ["one"]


def test_what_sshd_refuses_is_known_before_anything_is_started(site: Site) -> None:
    site.bastions["two"]["server_options"] = {"MaxStartups": "many"}
    stopped = site.run(limit="one,two")
    assert stopped.failed
    assert "Nothing was started. To mend, or to leave out: two." in said(stopped)
    assert "many" in stopped.task(FAIL, "two").msg
    assert site.untouched() == list(NAMES)


@pytest.mark.long
def test_a_bastion_that_is_cut_off_undoes_its_change_itself(site: Site) -> None:
    site.bastions["two"]["server_confirm_within"] = 20
    with site.when_changed("two", lambda: site.cut_off("two")):
        stopped = site.run(serial=2, limit="one,two", rollout_masters=False)
    assert stopped.failed
    lines = said(stopped)
    assert "Stopped at batch 1 of 1 of the bastions: two failed." in lines
    assert "1 rolled back, 1 failed and out of reach" in lines
    assert "one" in site.untouched()
    wait_for(lambda: "two" in site.untouched(), "the change is undone", 60)

    site.plug_in("two")
    del site.bastions["two"]["server_confirm_within"]
    again = site.run(serial=2, limit="one,two", rollout_masters=False).ok()
    assert batches(again) == ["Batch 1 of 1 of the bastions: one, two"]
    assert site.changed() == ["one", "two"]


@pytest.mark.long
def test_where_it_stands_is_said_when_nobody_of_the_batch_is_left(site: Site) -> None:
    site.bastions["one"]["server_confirm_within"] = 20
    with site.when_changed("one", lambda: site.cut_off("one")):
        stopped = site.run(limit="one,two")
    assert stopped.failed
    assert "Stopped at batch 1 of 2 of the bastions: one failed." in said(stopped)
    assert "two" in site.untouched()
    wait_for(lambda: "one" in site.untouched(), "the change is undone", 60)


def test_a_bastion_that_loses_its_connections(site: Site) -> None:
    sshd = site.servers["one"].sshd
    held = [connect((sshd.host, sshd.port), 30) for _count in range(8)]

    def drop() -> None:
        for one in held:
            one.shutdown(socket.SHUT_RDWR)
            one.close()

    with site.when_changed("one", drop):
        stopped = site.run(limit="one")
    assert stopped.failed
    assert "connections are gone" in stopped.task(FAIL, "one").msg
    assert "one" in site.untouched()


@pytest.mark.long
def test_clients_stop_at_a_bad_batch_too(site: Site, account: Account) -> None:
    config = site.client("laptop", account)
    site.clients["other"] = site.clients["laptop"]
    # The plan could not know.
    with site.when_changed("one", lambda: config.mkdir(parents=True)):
        stopped = site.run(serial=1, limit="one,laptop,other", rollout_masters=False)
    assert stopped.failed
    assert batches(stopped) == [
        "Batch 1 of 1 of the bastions: one",
        "Batch 1 of 2 of the clients: laptop",
    ]
    lines = said(stopped)
    assert "Stopped at batch 1 of 2 of the clients: laptop failed." in lines
    assert "2 clients: 1 failed, 1 to do." in lines
    assert account.name in stopped.task(FAIL, "laptop").msg
    assert site.changed() == ["one"]


def test_nobody_is_a_failure(site: Site) -> None:
    result = site.run(rollout_bastions="typo", limit="one,localhost")
    assert result.failed
    assert "There is no bastion and no client" in result.task(FAIL).msg
