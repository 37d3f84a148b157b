# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks by the names that users call them by, against real servers."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive, listeners
from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.services import Echo, free_port, socks5, talk
from tests.support.sshd import Sshd, sshd_path
from tests.support.tasks import close_all

OPEN = "Open the master and its forwardings"
SAY = "Say what is open"
CLOSE = "Close the master and forget its forwardings"
LOOK = "Look at the masters"


class Fleet:
    """Bastions of an inventory: `one` with every kind of forwarding, `two` with none, and `inner`
    that is reached through `one`; and a host which is no bastion."""

    def __init__(self, work: Path, make_sshd: Callable[..., Sshd], far_end: Echo) -> None:
        self.work = work
        self.control_dir = work / "h/.ansible/mux"
        self.servers = {name: make_sshd(name=name) for name in ("one", "two", "inner")}
        self.socks = free_port()
        config = work / "ssh_config"
        config.write_text(
            "".join(server.ssh_config().read_text() for server in self.servers.values())
        )
        self.ssh = Ssh(config, "two")
        hosts: dict[str, Any] = {name: {} for name in self.servers}
        hosts["one"] = {
            "mux_local": [f"0:127.0.0.1:{far_end.port}"],
            "mux_remote": [f"0:127.0.0.1:{far_end.port}"],
            "mux_dynamic": [str(self.socks)],
        }
        # Given as an inventory gives it, without a configuration of ssh.
        two = self.servers["two"]
        options = {**two.ssh_options(), "UserKnownHostsFile": two.known_hosts}
        hosts["two"] = {
            "ansible_host": two.host,
            "ansible_port": two.port,
            "ansible_user": two.user,
            "ansible_ssh_private_key_file": str(two.identity_file),
            "ansible_ssh_common_args": " ".join(f"-o {key}={options[key]}" for key in options),
            "mux_defaults": {"persist": "10m"},
        }
        for name in ("one", "inner"):
            hosts[name]["mux_defaults"] = {"ssh_config": str(config)}
        hosts["inner"]["mux_defaults"]["jump"] = ["one"]
        self.inventory = {
            "bastions": {"hosts": hosts},
            "others": {"hosts": {"web": {"ansible_host": "192.0.2.1"}}},
        }

    def run(self, name: str, **how: Any) -> PlaybookResult:
        return run_playbook(self.work, f"bastion.mux.{name}", inventory=self.inventory, **how)

    def logins(self) -> dict[str, int]:
        return {name: server.logins() for name, server in self.servers.items()}


@pytest.fixture
def far_end() -> Iterator[Echo]:
    with Echo() as service:
        yield service


@pytest.fixture
def fleet(work: Path, make_sshd: Callable[..., Sshd], far_end: Echo) -> Iterator[Fleet]:
    yield Fleet(work, make_sshd, far_end)
    close_all(work)


def masters(result: PlaybookResult) -> dict[str, dict[str, Any]]:
    """What the playbook open left, by the host of the inventory."""
    return {one.host: one["master"] for one in result.tasks(OPEN)}


def test_open_status_close(fleet: Fleet, far_end: Echo) -> None:
    foretold = fleet.run("open", check=True, diff=True).ok()
    assert {one.host for one in foretold.tasks(OPEN)} == set(fleet.servers)
    assert foretold.changed() == len(fleet.servers)
    assert foretold.stdout.count("+master, new process") == len(fleet.servers)
    assert f"+-D localhost:{fleet.socks}" in foretold.stdout
    assert not fleet.control_dir.exists()
    assert sum(fleet.logins().values()) == 0

    opened = fleet.run("open").ok()
    assert opened.changed() == len(fleet.servers)
    # One of them is the jump to `inner`.
    assert fleet.logins() == {"one": 2, "two": 1, "inner": 1}
    found = masters(opened)
    assert all(one["alive"] and one["managed"] for one in found.values())
    assert found["inner"]["jump"] == ["one"]
    assert found["two"]["persist"] == "600"
    local, remote, dynamic = found["one"]["forwards"]
    assert talk(("127.0.0.1", local["allocated_port"]), b"local") == b"local"
    assert talk(("127.0.0.1", remote["allocated_port"]), b"remote") == b"remote"
    with socks5(("127.0.0.1", dynamic["listen_port"]), "127.0.0.1", far_end.port) as connection:
        connection.sendall(b"dynamic")
        assert connection.recv(10) == b"dynamic"

    before = fleet.logins()
    for check in (False, True):
        again = fleet.run("open", check=check, diff=True).ok()
        assert again.changed() == 0
        assert masters(again) == found
    assert fleet.logins() == before

    paths = sorted(one["control_path"] for one in found.values())
    said = []
    for how in ({"control_dir": str(fleet.control_dir)}, {"mux_hosts": "bastions"}, {}):
        seen = fleet.run("status", extra_vars=how).ok()
        assert seen.changed() == 0
        looked = [master for one in seen.tasks(LOOK) for master in one["masters"]]
        assert sorted(master["control_path"] for master in looked) == paths
        assert all(master["probe"]["reachable"] for master in looked)
        said.append(seen.task(SAY)["msg"])
    assert said[0] == said[1] == said[2]

    foretold = fleet.run("close", check=True).ok()
    assert foretold.changed() == len(fleet.servers)
    assert all(alive(one["pid"]) for one in found.values())
    assert fleet.run("close").ok().changed() == len(fleet.servers)
    assert not any(alive(one["pid"]) for one in found.values())
    assert [path.name for path in fleet.control_dir.iterdir() if path.suffix != ".lock"] == []
    assert fleet.run("close").ok().changed() == 0
    assert fleet.run("status").ok().task(SAY)["msg"] == ["No masters."]


def test_status_writes_a_page_that_changes_with_the_masters(fleet: Fleet) -> None:
    fleet.run("open").ok()
    page = fleet.work / "page.html"
    how: dict[str, Any] = {"extra_vars": {"status_html": "page.html"}}
    assert fleet.run("status", check=True, **how).ok().changed() == 1
    assert not page.exists()
    assert fleet.run("status", **how).ok().changed() == 1
    text = page.read_text(encoding="utf-8")
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert all(name in text for name in ("one", "inner", f"localhost:{fleet.socks}", "bastion"))
    assert fleet.run("status", **how).ok().changed() == 0

    how["extra_vars"]["status_html_mode"] = "0644"
    fleet.run("close", extra_vars={"mux_hosts": "inner"}).ok()
    assert fleet.run("status", **how).ok().changed() == 1
    assert page.read_text(encoding="utf-8") != text
    assert stat.S_IMODE(page.stat().st_mode) == 0o644


def test_a_run_can_be_limited(fleet: Fleet) -> None:
    opened = fleet.run("open", extra_vars={"mux_hosts": "two"}).ok()
    assert list(masters(opened)) == ["two"]
    assert fleet.logins() == {"one": 0, "two": 1, "inner": 0}


def test_what_was_lost_is_repaired_with_its_forwardings(fleet: Fleet) -> None:
    found = masters(fleet.run("open").ok())
    fleet.servers["one"].stop()
    fleet.servers["one"].start()
    repaired = fleet.run("open").ok()
    assert repaired.task(OPEN, "one").changed
    assert not repaired.task(OPEN, "two").changed
    local = found["one"]["forwards"][0]
    master = masters(repaired)["one"]
    assert master["forwards"][0] == local
    assert ("127.0.0.1", local["listen_port"]) in listeners(master["pid"])


def test_a_bastion_that_is_down_keeps_no_other_from_opening(fleet: Fleet) -> None:
    fleet.servers["two"].stop()
    result = fleet.run("open")
    assert result.failed
    failed = result.task(OPEN, "two")
    assert (failed.event, failed["reason"]) == ("failed", "unreachable")
    assert "Connection refused" in failed.msg
    assert {one.host for one in result.tasks(OPEN) if not one.failed} == {"one", "inner"}
    lines = "\n".join(result.task(SAY)["msg"])
    assert "one" in lines
    assert "inner" in lines


def test_close_spares_the_masters_of_others_until_told(fleet: Fleet) -> None:
    path = fleet.work / "s"
    pid = fleet.ssh.open(path)
    limited = {"mux_hosts": "two", "mux_defaults": {"control_path": str(path)}}
    spared = fleet.run("close", extra_vars=limited)
    assert spared.task(CLOSE)["reason"] == "unmanaged"
    assert alive(pid)
    assert fleet.run("close", extra_vars={**limited, "mux_force": True}).ok().changed() == 1
    assert not alive(pid)


def test_without_a_group_bastions_every_host_is_one(work: Path, bastion: Sshd) -> None:
    inventory = {
        "all": {
            "hosts": {"bastion": {}},
            "vars": {"mux_defaults": {"ssh_config": str(bastion.ssh_config())}},
        }
    }
    for name in ("open", "close"):
        result = run_playbook(work, f"bastion.mux.{name}", inventory=inventory).ok()
        assert result.changed("bastion") == 1


@pytest.mark.parametrize("server", ["sshd", "paramiko"])
def test_demo(work: Path, server: str) -> None:
    if server == "sshd" and sshd_path() is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    extra = {"demo_server": server, "demo_commands": 3, "status_html": "page.html"}
    result = run_playbook(work, "bastion.mux.demo", extra_vars=extra).ok()
    summary = "\n".join(result.task("Sum up")["msg"])
    assert f"A bastion on loopback ({server})" in summary
    assert "it answered 0 of 2 requests. Through the bastion, 6 of 6" in summary
    assert "2 logins instead of 10" in summary
    assert "changed=0" in summary
    assert "Left behind: 0, 0, 0, 0." in summary
    assert not Path(result.task("Make a directory for everything")["path"]).exists()
    assert "inner" in (work / "page.html").read_text(encoding="utf-8")


def test_a_demo_that_fails_leaves_nothing_behind_either(work: Path) -> None:
    # What the service says is not what the demo then looks for.
    extra = {"demo_answer": "another", "demo_server": "paramiko"}
    result = run_playbook(work, "bastion.mux.demo", extra_vars=extra)
    assert result.failed
    assert result.task("Make sure that nothing is left").event == "ok"
    assert not Path(result.task("Make a directory for everything")["path"]).exists()


@pytest.mark.parametrize("library", ["paramiko", "psutil"])
def test_the_demo_without_a_library_says_how_to_get_it(work: Path, library: str) -> None:
    (work / f"{library}.py").write_text("raise ImportError('No module named ' + __name__)\n")
    result = run_playbook(work, "bastion.mux.demo", env={"PYTHONPATH": str(work)})
    last = result.results[-1]
    assert last.failed
    assert f"No module named {library}" in last.msg
    assert "-m pip install psutil paramiko" in last.msg
    assert not result.tasks("Make a directory for everything")


def test_the_demo_in_check_mode_starts_nothing(work: Path) -> None:
    result = run_playbook(work, "bastion.mux.demo", check=True).ok()
    assert result.changed() == 0
    assert result.results == []
