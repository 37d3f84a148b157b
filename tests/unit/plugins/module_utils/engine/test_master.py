# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master's engine over masters that open at once: what is done, in which order, and told."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import psutil
import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import master, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.target import flatten
from ansible_collections.bastion.mux.plugins.module_utils.system import processes
from ansible_collections.bastion.mux.plugins.module_utils.system.ssh import LostRace, Ssh
from tests.support import fake_master
from tests.support.fake_master import Asked, FakeMaster, Gone, Peer
from tests.support.workdir import short_dir

END = processes.end


class World:
    """Stands in for ssh: each login is a fake master with a process of its own."""

    def __init__(self, work: Path, cleanup: contextlib.ExitStack) -> None:
        self.path = work / "s"
        self.cleanup = cleanup
        self.logins: List[List[str]] = []
        self.masters: List[FakeMaster] = []
        #: What the next login does instead.
        self.fails: Optional[Exception] = None

    def end(self, pid: int, started: float, *, grace: float) -> bool:
        """In the place of processes.end: who ends a process ends what it does."""
        for one in self.masters:
            if one.pid == pid:
                one.stop_listening()
        return END(pid, started, grace=grace)

    def log_in(self, arguments: Any, host: str, **how: Any) -> None:
        """In the place of Ssh.open_master."""
        assert how["control_path"] == str(self.path)
        self.logins.append([*flatten(arguments), "--", host])
        if self.fails is not None:
            if isinstance(self.fails, LostRace):
                self.open()
            raise self.fails
        self.open()

    def open(self) -> FakeMaster:
        """A master at the path, as ssh or another program opens it."""
        process = self.cleanup.enter_context(
            subprocess.Popen(["sleep", "600"], start_new_session=True)
        )
        self.cleanup.callback(process.kill)
        made = FakeMaster(self.path, pid=process.pid)

        def ends(answer: Any) -> Any:
            def answering(peer: Peer, asked: Asked) -> None:
                with contextlib.suppress(Gone):
                    answer(peer, asked)
                process.kill()

            return answering

        # Both end a master that nothing runs through.
        for kind in (fake_master.TERMINATE, fake_master.STOP_LISTENING):
            made.answers[kind] = ends(made.answers[kind])
        # A stdio forwarding to nowhere is refused by the server, over the network.
        made.answers[fake_master.NEW_STDIO_FORWARD] = refuse
        self.masters.append(self.cleanup.enter_context(made))
        return made

    def run(self, *, check: bool = False, **params: Any) -> Dict[str, Any]:
        """Run the engine with what a task gives."""
        defaults = {name: option.get("default") for name, option in spec.SSH_MASTER.items()}
        given = {"host": "bastion", "ssh_config": "none", "control_path": str(self.path)}
        return master.run({**defaults, **given, **params}, Context(check_mode=check))

    def rows(self, **params: Any) -> List[bool]:
        """Whether it changes something in check mode, for real and again."""
        checked = self.run(check=True, **params)
        done = self.run(**params)
        assert checked["diff"] == done["diff"]
        return [checked["changed"], done["changed"], self.run(**params)["changed"]]

    def why(self, **params: Any) -> str:
        """The reason of a failure, which check mode foretells."""
        reasons = []
        for check in (True, False):
            with pytest.raises(MuxError) as caught:
                self.run(check=check, **params)
            reasons.append(caught.value.reason)
        assert reasons[0] == reasons[1]
        return reasons[0]

    @property
    def ledger(self) -> Dict[str, Any]:
        found = json.loads(Path(str(self.path) + ".json").read_text())
        assert isinstance(found, dict)
        return found

    @property
    def beside(self) -> List[str]:
        return sorted(os.listdir(str(self.path.parent)))


def refuse(peer: Peer, asked: Asked) -> None:
    peer.descriptors(2, keep=False)
    peer.send(fake_master.FAILURE, asked.id, "Session open refused by peer")
    raise Gone


def hang(peer: Peer, _asked: Asked) -> None:
    peer.hold()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with short_dir() as work, contextlib.ExitStack() as cleanup:
        made = World(work, cleanup)
        monkeypatch.setattr(Ssh, "open_master", made.log_in)
        monkeypatch.setattr(processes, "end", made.end)
        yield made


CHANGES = [True, True, False]
STAYS = [False, False, False]


# Its states


def test_it_is_opened_once_and_written_down(world: World) -> None:
    assert world.run(check=True)["changed"]
    assert world.beside == []
    assert world.rows() == CHANGES
    assert len(world.logins) == 1
    assert world.logins[0][-2:] == ["--", "bastion"]
    assert world.beside == ["s", "s.json"]
    assert world.ledger["pid"] == world.masters[0].pid
    assert world.ledger["managed"] is True
    assert world.ledger["target"]["host"] == "bastion"
    assert world.ledger["effective"]["hostname"] == ["bastion"]


def test_what_is_returned(world: World) -> None:
    result = world.run(persist="10m", jump=["x"], user="me", port=7)
    assert result["ssh_args"] == ["-o", "ControlMaster=no", "-o", "ControlPath=%s" % world.path]
    told = result["master"]
    assert told["pid"] == world.masters[0].pid
    assert told["openssh"].startswith("OpenSSH_")
    assert (told["alive"], told["managed"], told["reason"]) == (True, True, None)
    named = [told[key] for key in ("host", "port", "user", "jump", "persist")]
    assert named == ["bastion", 7, "me", ["x"], "600"]
    # The path alone is enough to be told the same.
    assert world.run(host=None, ssh_config=None)["master"] == told


@pytest.mark.parametrize("state", ["absent", "stopped"])
def test_it_is_ended_and_nothing_is_left(world: World, state: str) -> None:
    assert world.rows(state=state) == STAYS
    world.run(remote=["2:web:80"])
    assert len(world.masters[0].forwards) == 1
    assert world.rows(state=state) == CHANGES
    assert world.masters[0].forwards == []
    assert world.beside == []
    assert _ended(world.masters[0].pid)


def test_restarted_is_a_new_one_each_time(world: World) -> None:
    assert world.rows(state="restarted") == [True, True, True]
    assert len(world.masters) == 2
    assert world.beside == ["s", "s.json"]
    assert world.ledger["pid"] == world.masters[1].pid


def test_a_stale_socket_is_replaced_or_removed(world: World) -> None:
    for params, beside in (({}, ["s", "s.json"]), ({"state": "absent"}, [])):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(world.path))
        assert world.rows(**params) == CHANGES
        assert world.beside == beside
        world.run(state="absent")


def test_one_that_does_not_answer_is_ended_by_force_alone(world: World) -> None:
    world.run()
    (first,) = world.masters
    first.answers[fake_master.ALIVE_CHECK] = hang
    assert world.why(timeout=1) == "wedged"
    assert world.why(timeout=1, state="absent") == "wedged"
    assert world.run(timeout=1, force=True)["changed"]
    assert _ended(first.pid)
    assert len(world.masters) == 2


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("state", ["absent", "stopped", "restarted"])
def test_another_programs_is_used_and_ended_by_force_alone(world: World, state: str) -> None:
    world.open()
    found = world.run()
    assert not found["changed"]
    assert found["master"]["managed"] is False
    assert world.why(state=state) == "unmanaged"
    assert world.logins == []
    assert world.run(state=state, force=True)["changed"]
    assert len(world.logins) == (1 if state == "restarted" else 0)


# Where it cannot be opened


def test_a_path_alone_opens_nothing(world: World) -> None:
    assert world.why(host=None, ssh_config=None) == "not_running"
    world.run()
    assert world.why(host=None, ssh_config=None, state="restarted") == "invalid"
    assert world.run()["changed"] is False
    assert len(world.logins) == 1


def test_states_that_end_it_take_no_forwardings(world: World) -> None:
    for state in ("absent", "stopped"):
        assert world.why(state=state, local=["1:web:80"]) == "invalid"


def test_a_login_that_fails_is_told_and_leaves_nothing(world: World) -> None:
    world.fails = MuxError("auth_failed", "no")
    with pytest.raises(MuxError, match="no") as caught:
        world.run()
    assert caught.value.reason == "auth_failed"
    # The failure itself, for those who wait for the lock.
    assert world.beside == ["s.lock"]
    world.fails = None
    assert world.run()["changed"]
    assert world.beside == ["s", "s.json"]


def test_a_hand_over_that_fails_leaves_the_old_one(world: World) -> None:
    world.run(remote=["2:web:80"])
    world.fails = MuxError("unreachable", "no")
    with pytest.raises(MuxError, match="no"):
        world.run(state="restarted")
    found = world.run()
    assert not found["changed"]
    assert found["master"]["pid"] == world.masters[0].pid
    assert "s.old" not in world.beside


def test_who_loses_the_race_uses_what_the_other_opened(world: World) -> None:
    world.fails = LostRace("ControlSocket already exists")
    result = world.run()
    assert result["changed"]
    assert result["master"]["managed"] is False
    assert result["master"]["openssh"] is None


def test_a_master_that_is_gone_at_once_is_told(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(Ssh, "open_master", lambda *_a, **_k: None)
    with pytest.raises(MuxError, match="gone at once") as caught:
        world.run()
    assert caught.value.reason == "unreachable"


# What differs, and what is lost


@pytest.mark.parametrize(("on_drift", "logins"), [("restart", 2), ("ignore", 1), ("fail", "drift")])
def test_another_option_is_a_difference(world: World, on_drift: str, logins: object) -> None:
    world.run(forward_agent=False)
    params: Dict[str, Any] = {"forward_agent": True, "on_drift": on_drift}
    if logins == "drift":
        assert world.why(**params) == logins
        return
    checked = world.run(check=True, **params)
    assert checked["changed"] is (logins == 2)
    assert ("forwardagent no" in checked["diff"]["before"]) is (logins == 2)
    assert ("forwardagent yes" in checked["diff"]["after"]) is (logins == 2)
    world.run(**params)
    assert len(world.logins) == logins
    assert not world.run(**params)["changed"]


@pytest.mark.parametrize(("restore", "after"), [(True, 2), (False, 1)])
def test_one_that_was_killed_is_reopened_with_its_forwardings(
    world: World, restore: bool, after: int
) -> None:
    world.run(local=["127.0.0.1:1:web:80"], remote=["2:web:80"])
    (first,) = world.masters
    os.kill(first.pid, signal.SIGKILL)
    first.stop_listening()
    params: Dict[str, Any] = {"local": ["127.0.0.1:1:web:80"], "restore": restore}
    checked = world.run(check=True, **params)
    assert "lost: -R localhost:2:web:80\n" in checked["diff"]["before"]
    world.run(**params)
    assert len(world.masters[1].forwards) == after


def test_what_the_task_asks_for_comes_before_what_was_there(world: World) -> None:
    world.run(remote=["2:web:80"])
    world.run(state="restarted", remote=["2:other:80"])
    assert [values[3] for values in world.masters[1].forwards] == [b"other"]


def test_a_dead_connection_is_replaced(world: World) -> None:
    world.run()
    (first,) = world.masters
    first.answers[fake_master.NEW_STDIO_FORWARD] = hang
    assert world.run(check=True, timeout=1)["changed"]
    assert world.run(timeout=1)["changed"]
    assert _ended(first.pid)
    assert world.ledger["pid"] == world.masters[1].pid


def test_one_of_another_program_with_a_dead_connection_is_told(world: World) -> None:
    world.open().answers[fake_master.NEW_STDIO_FORWARD] = hang
    assert world.why(timeout=1) == "unreachable"


# Hosts that share an attempt


def test_hosts_of_one_task_share_a_failure_and_no_secret_is_written(world: World) -> None:
    defaults = {name: option.get("default") for name, option in spec.SSH_MASTER.items()}
    given = {"host": "bastion", "ssh_config": "none", "control_path": str(world.path)}
    params = {**defaults, **given, "password": "the password"}
    world.fails = MuxError("auth_failed", "no")

    def attempts(context: Context, **more: Any) -> int:
        before = len(world.logins)
        with pytest.raises(MuxError, match="no"):
            master.run({**params, **more}, context)
        return len(world.logins) - before

    task = Context(run_key=b"k" * 32, round="task 0")
    assert attempts(task) == 1
    assert attempts(task) == 0
    assert "the password" not in Path(str(world.path) + ".lock").read_text()
    # Another password, another login, another try of the task, another run: another attempt.
    assert attempts(task, password="another") == 1
    assert attempts(task, password="another", user="you") == 1
    assert attempts(Context(run_key=b"k" * 32, round="task 1"), user="you") == 1
    assert attempts(Context(run_key=b"l" * 32, round="task 1"), user="you") == 1
    assert attempts(Context(), user="you") == 1
    assert attempts(Context(), user="you") == 1
