# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master_info through ansible-playbook: masters as they are, and nothing is touched."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive
from tests.support.playbook import run_playbook
from tests.support.services import Echo, free_port
from tests.support.sshd import Sshd, openssh_version
from tests.support.tasks import SSH_MASTER, SSH_MASTER_INFO, Tasks
from tests.support.waiting import wait_for

MakeSshd = Callable[..., Sshd]


@pytest.fixture
def tasks(work: Path, bastion: Sshd, closing: None) -> Tasks:
    """Tasks for the bastion; those of ssh_master are told so."""
    return Tasks(
        work, {"host": "bastion", "ssh_config": str(bastion.ssh_config())}, SSH_MASTER_INFO
    )


@pytest.fixture
def look(tasks: Tasks) -> Callable[..., dict[str, Any]]:
    """Looks at one master, in check mode or not: `look(**params)`."""

    def look(**params: Any) -> dict[str, Any]:
        run = tasks.play(tasks.task("check", check=True, **params), tasks.task("do", **params)).ok()
        (told,) = run.task("check")["masters"]
        (one,) = run.task("do")["masters"]
        assert told == one
        assert run.changed() == 0
        return dict(one)

    return look


@pytest.fixture
def listed(work: Path, closing: None) -> Callable[..., dict[str, dict[str, Any]]]:
    """Looks at a directory: what was told of each socket, by its name."""
    tasks = Tasks(work, {}, SSH_MASTER_INFO)

    def listed(directory: Path, **params: Any) -> dict[str, dict[str, Any]]:
        masters = tasks.one(control_dir=str(directory), **params)["masters"]
        names = [one["control_path"] for one in masters]
        assert names == sorted(names)
        assert {os.path.dirname(name) for name in names} <= {str(directory)}
        return {os.path.basename(one["control_path"]): one for one in masters}

    return listed


@pytest.fixture
def opened(tasks: Tasks, path: Path, echo: Echo) -> dict[str, Any]:
    """What ssh_master told of a master with two forwardings."""
    far = f"127.0.0.1:{echo.port}"
    tasks.params["control_path"] = str(path)
    task = tasks.task(
        module=SSH_MASTER,
        local=[f"127.0.0.1:{free_port()}:{far}"],
        remote=[f"127.0.0.1:{free_port()}:{far}"],
    )
    return dict(tasks.play(task).ok().task("do")["master"])


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Within, the process does not answer."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def wedged(opened: dict[str, Any]) -> Iterator[int]:
    with stopped(opened["pid"]):
        yield opened["pid"]


def stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def private(path: Path) -> Path:
    path.mkdir(mode=0o700)
    return path


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything that could be changed there."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found


class TestOne:
    def test_is_what_ssh_master_told(
        self, look: Callable[..., Any], opened: dict[str, Any], path: Path
    ) -> None:
        before = snapshot(path.parent)
        one = look()
        assert one.pop("stale") is False
        assert ("connection" in one) is (openssh_version() >= (10, 3))
        one.pop("connection", None)
        assert one == opened
        assert snapshot(path.parent) == before

    def test_by_its_path_alone(
        self, tasks: Tasks, look: Callable[..., Any], opened: dict[str, Any], path: Path
    ) -> None:
        tasks.params = {"control_path": str(path)}
        one = look()
        assert {key: one[key] for key in opened} == opened

    def test_without_a_path(
        self, tasks: Tasks, look: Callable[..., Any], bastion: Sshd, work: Path
    ) -> None:
        pid = tasks.play(tasks.task(module=SSH_MASTER)).ok().task("do")["master"]["pid"]
        one = look()
        assert one["pid"] == pid
        assert one["control_path"].startswith(str(work / "h" / ".ansible" / "mux"))
        assert bastion.connections() == 1

    def test_of_the_inventory_host(self, work: Path, bastion: Sshd, closing: None) -> None:
        variables = {
            "ansible_host": "127.0.0.1",
            "ansible_port": bastion.port,
            "ansible_user": bastion.user,
            "ansible_ssh_private_key_file": str(bastion.identity_file),
            "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={bastion.known_hosts}",
        }
        several = [{"name": "open", SSH_MASTER: None}, {"name": "look", SSH_MASTER_INFO: None}]
        play = {"hosts": "all", "gather_facts": False, "tasks": several}
        run = run_playbook(work, play, inventory={"all": {"hosts": {"one": variables}}}).ok()
        (one,) = run.task("look")["masters"]
        assert one["pid"] == run.task("open")["master"]["pid"]
        assert (one["host"], one["port"]) == ("127.0.0.1", bastion.port)

    def test_none(self, look: Callable[..., Any], bastion: Sshd, work: Path) -> None:
        one = look(jump=["hop"])
        assert (one["alive"], one["stale"], one["reason"]) == (False, False, "not_running")
        assert (one["host"], one["port"], one["jump"]) == ("bastion", bastion.port, ["hop"])
        assert (one["pid"], one["started"], one["forwards"]) == (None, None, [])
        assert os.listdir(work / "h") == [".ansible"]
        assert not (work / "h" / ".ansible" / "mux").exists()
        assert bastion.connections() == 0

    def test_stale(self, look: Callable[..., Any], opened: dict[str, Any], path: Path) -> None:
        os.kill(opened["pid"], signal.SIGKILL)
        wait_for(lambda: not alive(opened["pid"]), "the end of the master")
        before = snapshot(path.parent)
        one = look()
        assert (one["alive"], one["stale"], one["reason"]) == (False, True, "not_running")
        assert one["pid"] is None
        assert snapshot(path.parent) == before

    def test_wedged(self, look: Callable[..., Any], wedged: int, path: Path) -> None:
        before = snapshot(path.parent)
        one = look(timeout=1)
        assert (one["alive"], one["stale"], one["reason"]) == (False, False, "wedged")
        assert (one["pid"], one["managed"], one["host"]) == (wedged, True, "bastion")
        assert len(one["forwards"]) == 2
        assert alive(wedged)
        assert snapshot(path.parent) == before

    def test_of_another_program(
        self, look: Callable[..., Any], ssh: Ssh, path: Path, echo: Echo
    ) -> None:
        private(path.parent)
        pid = ssh.open(path, "-L", f"127.0.0.1:{free_port()}:127.0.0.1:{echo.port}")
        one = look(control_path=str(path))
        assert (one["pid"], one["alive"], one["managed"]) == (pid, True, False)
        assert (one["openssh"], one["reason"]) == (None, None)
        # Where it leads to cannot be known.
        assert one["forwards"] == []
        assert os.listdir(path.parent) == ["s"]

    def test_no_master(self, look: Callable[..., Any], path: Path) -> None:
        private(path.parent)
        with Echo(path):
            one = look(control_path=str(path))
        assert (one["alive"], one["reason"]) == (False, "invalid")
        assert "not the control socket of a master" in one["msg"]

    @pytest.mark.parametrize(
        ("params", "reason"),
        [
            ({"control_dir": "/tmp"}, "invalid"),
            ({"timeout": 0}, "invalid"),
            ({"control_path": "/tmp/" + 86 * "x"}, "control_path_too_long"),
            ({"ssh_executable": "no-such-ssh"}, "ssh_missing"),
        ],
    )
    def test_parameters_that_cannot_be(self, tasks: Tasks, params: Any, reason: str) -> None:
        assert tasks.fails(**params)["reason"] == reason


class TestProbe:
    def test_tells_what_is_reached(
        self, tasks: Tasks, look: Callable[..., Any], echo: Echo, path: Path
    ) -> None:
        tasks.params["control_path"] = str(path)
        good, bad, closed = free_port(), free_port(), free_port()
        task = tasks.task(
            module=SSH_MASTER,
            local=[f"{good}:127.0.0.1:{echo.port}", f"{bad}:127.0.0.1:{closed}"],
            dynamic=[str(free_port())],
        )
        tasks.play(task).ok()
        one = look(probe=True)
        assert one["probe"] == {"reachable": True, "msg": None}
        assert one["reason"] is None
        probes = {forward["listen_port"]: forward.get("probe") for forward in one["forwards"]}
        assert probes.pop(good) == {"reachable": True, "msg": None}
        told = probes.pop(bad)
        assert told["reachable"] is False
        assert "Connection refused" in told["msg"]
        assert list(probes.values()) == [None]
        assert "probe" not in look()

    def test_changes_no_file(
        self, look: Callable[..., Any], opened: dict[str, Any], path: Path
    ) -> None:
        before = snapshot(path.parent)
        look(probe=True)
        after = snapshot(path.parent)
        # The master itself logs that the server refused.
        log = str(path.with_name("s.log"))
        assert before.pop(log) != after.pop(log)
        assert after == before

    def test_a_dead_network_is_seen_by_a_probe_alone(
        self, look: Callable[..., Any], opened: dict[str, Any], bastion: Sshd
    ) -> None:
        bastion.freeze()
        one = look(probe=True, timeout=1)
        assert (one["alive"], one["reason"]) == (True, "unreachable")
        assert one["probe"]["reachable"] is False
        assert one["probe"]["msg"]
        one = look(timeout=1)
        assert (one["alive"], one["reason"]) == (True, None)
        assert alive(opened["pid"])

    def test_a_server_that_forwards_nothing_is_reached(
        self, work: Path, make_sshd: MakeSshd, closing: None, path: Path
    ) -> None:
        closed = make_sshd(options={"DisableForwarding": "yes"})
        ssh = Ssh(closed.ssh_config())
        private(path.parent)
        ssh.open(path)
        tasks = Tasks(work, {"control_path": str(path), "probe": True}, SSH_MASTER_INFO)
        (one,) = tasks.one()["masters"]
        assert one["probe"] == {"reachable": True, "msg": None}

    def test_who_does_not_answer_is_not_probed(self, look: Callable[..., Any], wedged: int) -> None:
        one = look(probe=True, timeout=1)
        assert one["reason"] == "wedged"
        assert "probe" not in one


#: Names that a shell, a template, ssh or a terminal would take for something else.
STRANGE = """-dash sp\\ ace {{1}} per%cent%C ${HOME} quo'te" ä€ # ~ .hidden s.json \\t""".split(" ")
STRANGE += ["new\nline", "tab\t", " ", "\x1b[31m"]


class TestDirectory:
    def test_every_socket_is_told(
        self, listed: Callable[..., Any], opened: dict[str, Any], ssh: Ssh, path: Path
    ) -> None:
        directory = path.parent
        stale_socket(directory / "gone")
        pid = ssh.open(directory / "theirs")
        (directory / "link").symlink_to(path)
        (directory / "dir").mkdir()
        (directory / "file").write_text("")
        os.mkfifo(directory / "pipe")
        before = snapshot(directory)
        with Echo(directory / "echo"):
            found = listed(directory)
        assert {key: found["s"][key] for key in opened} == opened
        theirs = found["theirs"]
        assert (theirs["pid"], theirs["managed"], theirs["host"]) == (pid, False, None)
        assert (found["gone"]["stale"], found["gone"]["alive"]) == (True, False)
        assert found["echo"]["reason"] == "invalid"
        assert set(found) == {"s", "theirs", "gone", "echo"}
        del before[str(directory)]  # the echo's socket came and went
        after = snapshot(directory)
        del after[str(directory)]
        assert after == before

    @pytest.mark.parametrize("how", [{}, {"delegate_to": "localhost"}], ids=["action", "module"])
    def test_any_name_will_do(
        self, work: Path, ssh: Ssh, tasks: Tasks, how: dict[str, str]
    ) -> None:
        directory = private(work / "c")
        pid = ssh.open(directory / "s")
        names = [*STRANGE, os.fsdecode(b"\xff\xfe")]
        for name in names:
            # One more name of the same socket, as good as the first.
            os.link(directory / "s", directory / name)
        tasks.params = {"control_dir": str(directory), "probe": True}
        run = tasks.play(tasks.task() | how, verbosity=1).ok()
        masters = run.task("do")["masters"]
        # The last one can be told in no text: it is spelled.
        told = {"s", *STRANGE, "\\xff\\xfe"}
        assert {os.path.basename(one["control_path"]) for one in masters} == told
        assert {(one["pid"], one["probe"]["reachable"]) for one in masters} == {(pid, True)}

    def test_nothing_there(self, listed: Callable[..., Any], work: Path) -> None:
        assert listed(private(work / "empty")) == {}
        assert listed(work / "none") == {}
        assert not (work / "none").exists()

    @pytest.mark.parametrize(
        ("make", "why"),
        [
            (lambda path: path.mkdir() or path.chmod(0o777), "writable by others"),
            (lambda path: path.write_text(""), "is not a directory"),
        ],
        ids=["open to all", "a file"],
    )
    def test_an_insecure_one_is_refused(
        self, work: Path, make: Callable[[Path], object], why: str
    ) -> None:
        make(work / "d")
        failed = Tasks(work, {"control_dir": str(work / "d")}, SSH_MASTER_INFO).fails()
        assert failed["reason"] == "control_dir_insecure"
        assert why in failed.msg

    def test_of_the_module_is_that_of_its_user(
        self, tasks: Tasks, work: Path, bastion: Sshd
    ) -> None:
        look = {"name": "look", SSH_MASTER_INFO: None, "delegate_to": "localhost"}
        run = tasks.play(tasks.task(module=SSH_MASTER), look).ok()
        (one,) = run.task("look")["masters"]
        assert one["pid"] == run.task("do")["master"]["pid"]

    def test_two_hundred_of_them(
        self, listed: Callable[..., Any], work: Path, ssh: Ssh, bastion: Sshd
    ) -> None:
        """Those which do not answer cost one timeout together."""
        directory = private(work / "c")
        living = {
            f"living-{number}": ssh.open(directory / f"living-{number}") for number in range(5)
        }
        hanging = {
            f"wedged-{number}": ssh.open(directory / f"wedged-{number}") for number in range(5)
        }
        # A living master answers under any further name of its socket.
        links = [(name, f"{name}-{number}") for name in list(living) for number in range(34)]
        for name, link in links:
            os.link(directory / name, directory / link)
            living[link] = living[name]
        stale = {f"stale-{number}" for number in range(20)}
        for name in stale:
            stale_socket(directory / name)
        before = snapshot(directory)
        with contextlib.ExitStack() as until:
            for pid in hanging.values():
                until.enter_context(stopped(pid))
            began = time.monotonic()
            found = listed(directory, timeout=8)
            # One after the other would be 40 seconds.
            assert time.monotonic() - began < 30
        assert len(found) == 200
        for name, pid in living.items():
            one = found.pop(name)
            assert (one["alive"], one["pid"], one["reason"]) == (True, pid, None)
        for name, pid in hanging.items():
            one = found.pop(name)
            assert (one["alive"], one["pid"], one["reason"]) == (False, pid, "wedged")
        assert set(found) == stale
        assert all(one["stale"] and one["reason"] == "not_running" for one in found.values())
        assert snapshot(directory) == before
        for _name, link in links:
            (directory / link).unlink()
