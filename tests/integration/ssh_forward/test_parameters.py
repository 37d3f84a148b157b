# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward: its parameters beside the forwardings, what is in the way, and many at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive, clients, listeners
from tests.support.playbook import PlaybookResult
from tests.support.services import Echo, free_port, free_ports, listens, talk
from tests.support.sshd import Sshd, openssh_version
from tests.support.tasks import CHANGES, STAYS, Tasks
from tests.support.waiting import wait_for

HOST = "127.0.0.1"

Login = dict[str, Any]


def states(result: Any) -> list[str]:
    return [forward["state"] for forward in result["forwards"]]


class TestExclusive:
    def test_every_other_one_goes(self, tasks: Tasks, master: int, echo: Echo, work: Path) -> None:
        port, remote = free_port(), free_port()
        keep = f"{HOST}:{port}:{HOST}:{echo.port}"
        tasks.one(
            local=[keep, f"{work}/l:{HOST}:{echo.port}", f"{HOST}:0:{HOST}:{echo.port}"],
            remote=[f"{HOST}:{remote}:{HOST}:{echo.port}", f"{HOST}:0:{HOST}:{echo.port}"],
            dynamic=[f"{HOST}:{free_port()}"],
        )
        rows = tasks.rows(local=[keep], exclusive=True)
        assert rows.changed == CHANGES
        assert rows.diff()[1] == f"-L {keep}\n"
        assert states(rows.check) == states(rows.do) == ["present"] + 5 * ["absent"]
        assert states(rows.again) == ["present"]
        assert listeners(master) == {(HOST, port)}
        wait_for(lambda: not listens((HOST, remote)), "the end of the remote listener")
        assert not (work / "l").exists()
        assert talk((HOST, port)) == b"hello"

    def test_none_is_a_set_too(self, tasks: Tasks, master: int) -> None:
        tasks.one(dynamic=[f"{HOST}:{free_port()}"])
        assert tasks.rows(exclusive=True).changed == CHANGES
        assert not listeners(master)

    def test_what_goes_makes_room_for_what_comes(
        self, tasks: Tasks, master: int, echo: Echo
    ) -> None:
        port = free_port()
        tasks.one(dynamic=[f"{HOST}:{port}"])
        assert tasks.rows(local=[f"*:{port}:{HOST}:{echo.port}"], exclusive=True).changed == CHANGES
        assert talk((HOST, port)) == b"hello"

    def test_is_nothing_for_absent(self, tasks: Tasks, master: int) -> None:
        assert tasks.fails(exclusive=True, state="absent")["reason"] == "invalid"


class TestOnConflict:
    @pytest.mark.parametrize(
        ("type_", "where"),
        [("local", "{host}:{port}"), ("remote", "{host}:{port}"), ("local", "{work}/l")],
    )
    def test_another_destination(
        self,
        tasks: Tasks,
        master: int,
        echo: Echo,
        work: Path,
        type_: str,
        where: str,
    ) -> None:
        port = free_port()
        at = where.format(host=HOST, port=port, work=work)
        address = work / "l" if at.startswith("/") else (HOST, port)
        with Echo() as other:
            one, two = (f"{at}:{HOST}:{far.port}" for far in (echo, other))
            held: dict[str, Any] = {type_: [one]}
            tasks.one(**held)
            for check in (True, False):
                failed = tasks.fails(check=check, **{type_: [two]})
                assert failed["reason"] == "forward_conflict"
                assert one in failed.msg
                assert two in failed.msg
                assert states(failed) == ["present"]
            assert (talk(address), len(other.seen)) == (b"hello", 0)
            rows = tasks.rows(on_conflict="replace", **{type_: [two]})
            assert rows.changed == CHANGES
            flag = {"local": "-L", "remote": "-R"}[type_]
            assert rows.diff() == (f"{flag} {one}\n", f"{flag} {two}\n")
            assert states(rows.do) == ["present", "absent"]
            before = len(echo.seen)
            assert (talk(address), len(other.seen), len(echo.seen)) == (b"hello", 1, before)

    def test_a_chosen_port_gives_way(self, tasks: Tasks, master: int, echo: Echo) -> None:
        chosen = f"{HOST}:0:{HOST}:{echo.port}"
        port = tasks.one(local=[chosen])["forwards"][0]["allocated_port"]
        fixed = f"{HOST}:{port}:{HOST}:1"
        rows = tasks.rows(local=[chosen, fixed], on_conflict="replace")
        assert rows.changed == CHANGES
        moved = rows.again["forwards"][0]["allocated_port"]
        assert moved != port
        assert talk((HOST, moved)) == b"hello"

    @pytest.mark.parametrize("how", [{}, {"on_conflict": "replace"}, {"exclusive": True}])
    def test_another_process_is_never_in_conflict_but_in_the_way(
        self, tasks: Tasks, master: int, echo: Echo, how: dict[str, Any]
    ) -> None:
        failed = tasks.fails(local=[f"{HOST}:{echo.port}:{HOST}:1"], **how)
        assert failed["reason"] == "listen_in_use"
        assert f"{HOST} port {echo.port}" in failed.msg
        assert not failed.changed
        assert talk((HOST, echo.port)) == b"hello"

    def test_another_master_keeps_what_it_has(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        local = [f"{HOST}:{free_port()}:{HOST}:{echo.port}"]
        tasks.one(local=local)
        other = path.with_name("t")
        ssh.open(other)
        failed = tasks.fails(control_path=str(other), local=local, on_conflict="replace")
        assert failed["reason"] == "listen_in_use"
        assert tasks.one(local=local).changed is False

    def test_a_refused_one_leads_nobody_astray(self, tasks: Tasks, master: int, echo: Echo) -> None:
        """A master goes on to permit what the server refused, and would connect it first."""
        port = free_port()
        with Echo() as wrong:
            with Echo(port=port):
                for _attempt in range(2):
                    failed = tasks.fails(remote=[f"{HOST}:{port}:{HOST}:{wrong.port}"])
                    assert failed["reason"] == "forward_refused"
            right: dict[str, Any] = {"remote": [f"{HOST}:{port}:{HOST}:{echo.port}"]}
            assert tasks.rows(**right).changed == CHANGES
            assert (talk((HOST, port)), len(wrong.seen), len(echo.seen)) == (b"hello", 0, 1)
            assert tasks.rows(state="absent", **right).changed == CHANGES
            wait_for(lambda: not listens((HOST, port)), "the end of the listener")
            again: dict[str, Any] = {"remote": [f"{HOST}:{port}:{HOST}:{wrong.port}"]}
            assert tasks.rows(**again).changed == CHANGES
            seen = len(echo.seen)
            assert (talk((HOST, port)), len(wrong.seen), len(echo.seen)) == (b"hello", 1, seen)


class TestVerify:
    @pytest.fixture
    def login(self, login: Login, tasks: Tasks) -> Login:
        """Has the master opened by the task: such a one knows the server's words."""
        tasks.params.update(login, open=True)
        return login

    @pytest.mark.parametrize("opened", ["by us", "by ssh"])
    def test_connect_names_what_cannot_be_reached_and_changes_nothing(
        self,
        request: pytest.FixtureRequest,
        tasks: Tasks,
        echo: Echo,
        bastion: Sshd,
        opened: str,
    ) -> None:
        request.getfixturevalue("login" if opened == "by us" else "master")
        good = f"{HOST}:{free_port()}:{HOST}:{echo.port}"
        nobody, nowhere = free_port(), "no.such.host.invalid"
        tasks.one(local=[good])
        bad = [
            f"{HOST}:{free_port()}:{HOST}:{nobody}",
            f"{HOST}:{free_port()}:{nowhere}:80",
        ]
        far = f"{HOST}:{free_port()}:{HOST}:{nobody}"
        (master,) = (process.pid for process in clients(bastion.port))
        before = listeners(master)
        for check in (True, False):
            failed = tasks.fails(check=check, local=[good, *bad], remote=[far], verify="connect")
            assert failed["reason"] == "destination_unreachable"
            assert not failed.changed
            assert f"{HOST}:{nobody} cannot be reached from the bastion" in failed.msg
            assert f"{nowhere}:80 cannot be reached from the bastion" in failed.msg
            assert f"{HOST}:{nobody} cannot be reached from here: Connection refused" in failed.msg
            if opened == "by us":
                assert "from the bastion: connect failed: Connection refused" in failed.msg
                assert "Name or service not known" in failed.msg
            assert f"in place: -L {good}" in failed.msg
            assert states(failed) == ["present"] + 3 * ["failed"]
            assert {one["reason"] for one in failed["forwards"][1:]} == {"destination_unreachable"}
        assert listeners(master) == before

    def test_connect_passes_what_can_be_reached(
        self, tasks: Tasks, login: Login, echo: Echo, work: Path
    ) -> None:
        with Echo(work / "far") as far:
            params: dict[str, Any] = {
                "local": [f"{HOST}:{free_port()}:{HOST}:{echo.port}"],
                "remote": [f"{HOST}:{free_port()}:{far.path}"],
                "dynamic": [f"{HOST}:{free_port()}"],
            }
            # What an older master can say of a unix socket is nothing, so it is not asked.
            params["local"].append(f"{HOST}:{free_port()}:{far.path}")
            assert tasks.rows(verify="connect", **params).changed == CHANGES
            # In check mode there was no master yet to try them through.
            assert (len(echo.seen), len(far.seen)) == (3, 3 * (1 + (openssh_version() >= (9, 4))))
        failed = tasks.fails(verify="connect", **params)
        assert failed["reason"] == "destination_unreachable"
        assert f"{work}/far cannot be reached from here: No such file" in failed.msg

    def test_connect_does_not_wait_longer_than_told(self, tasks: Tasks, master: int) -> None:
        with contextlib.ExitStack() as stack:
            port = silent_port(stack)
            spellings = [f"{HOST}:{free_port()}:{HOST}:{port}" for _number in range(3)]
            began = time.monotonic()
            failed = tasks.fails(local=spellings, verify="connect", timeout=1)
            assert failed["reason"] == "destination_unreachable"
            assert failed.msg.count("no answer within 1 seconds") == 3
            assert time.monotonic() - began < 15

    def test_listen_does_not_ask_for_the_far_end(self, tasks: Tasks, master: int) -> None:
        assert tasks.rows(local=[f"{HOST}:{free_port()}:nowhere.invalid:80"]).changed == CHANGES


class TestChosenPorts:
    def test_two_of_one_task_are_two(self, tasks: Tasks, master: int, echo: Echo) -> None:
        with Echo() as other:
            local = [f"{HOST}:0:{HOST}:{far.port}" for far in (echo, other)]
            local.append(f"0:{HOST}:{echo.port}")
            rows = tasks.rows(local=local)
            assert rows.changed == CHANGES
            ports = [one["allocated_port"] for one in rows.do["forwards"]]
            assert len(set(ports)) == 3
            assert [one["allocated_port"] for one in rows.again["forwards"]] == ports
            # By its number it is the same forwarding.
            by_number = [f"{HOST}:{ports[0]}:{HOST}:{echo.port}"]
            assert tasks.rows(local=by_number).changed == STAYS
            assert tasks.rows(local=local[:1], state="absent").changed == CHANGES

    @pytest.mark.parametrize("reopened", ["by us", "by ssh"])
    def test_outlive_the_master(
        self,
        tasks: Tasks,
        ssh: Ssh,
        login: Login,
        path: Path,
        echo: Echo,
        bastion: Sshd,
        reopened: str,
    ) -> None:
        tasks.params.update(login, open=True)
        local = [f"{HOST}:0:{HOST}:{echo.port}", f"0:{HOST}:{echo.port}"]
        ports = [one["allocated_port"] for one in tasks.one(local=local)["forwards"]]
        kill_master(path, bastion)
        if reopened == "by ssh":
            path.unlink()
            ssh.open(path)
        rows = tasks.rows(local=local)
        assert rows.changed == CHANGES
        assert [one["allocated_port"] for one in rows.do["forwards"]] == ports
        assert [talk((HOST, port)) for port in ports] == [b"hello"] * 2

    def test_another_one_is_chosen_where_it_was_taken_meanwhile(
        self, tasks: Tasks, ssh: Ssh, master: int, path: Path, echo: Echo, bastion: Sshd
    ) -> None:
        local = [f"0:{HOST}:{echo.port}"]
        port = tasks.one(local=local)["forwards"][0]["allocated_port"]
        kill_master(path, bastion)
        path.unlink()
        ssh.open(path)
        with Echo(port=port):
            rows = tasks.rows(local=local)
            assert rows.changed == CHANGES
            other = rows.again["forwards"][0]["allocated_port"]
            assert other != port
            assert talk((HOST, other)) == b"hello"


class TestOpen:
    def test_opens_a_master_where_none_runs(
        self, tasks: Tasks, login: Login, path: Path, echo: Echo, bastion: Sshd, ssh: Ssh
    ) -> None:
        port = free_port()
        tasks.params.update(login, open=True, local=[f"{HOST}:{port}:{HOST}:{echo.port}"])
        foretold = tasks.one(check=True)
        assert foretold.changed
        assert not path.parent.exists()
        assert bastion.connections() == 0
        rows = tasks.rows()
        assert rows.changed == CHANGES
        assert rows.diff() == ("", f"-L {HOST}:{port}:{HOST}:{echo.port}\n")
        assert rows.do["control_path"] == str(path)
        assert rows.do["ssh_args"] == ["-o", "ControlMaster=no", "-o", f"ControlPath={path}"]
        assert talk((HOST, port)) == b"hello"
        assert ssh.run(*rows.do["ssh_args"], command="true").rc == 0
        assert (bastion.logins(), bastion.connections()) == (1, 1)

    def test_without_a_path_it_is_below_the_home(
        self, tasks: Tasks, login: Login, work: Path
    ) -> None:
        tasks.params = {**login, "open": True}
        result = tasks.one(dynamic=[f"{HOST}:{free_port()}"])
        assert Path(result["control_path"]).parent == work / "h" / ".ansible" / "mux"

    def test_what_a_lost_master_had_comes_back(
        self, tasks: Tasks, login: Login, path: Path, echo: Echo, bastion: Sshd
    ) -> None:
        one, other, more = (f"{HOST}:{free_port()}:{HOST}:{echo.port}" for _number in range(3))
        tasks.params.update(login, open=True)
        tasks.one(local=[one, other])
        kill_master(path, bastion)
        rows = tasks.rows(local=[one, more])
        assert rows.changed == CHANGES
        before, after = rows.diff()
        assert (before, sorted(after.splitlines())) == (
            "",
            sorted(f"-L {s}" for s in (one, other, more)),
        )
        for spelling in (one, other, more):
            assert talk((HOST, int(spelling.split(":")[1]))) == b"hello"

    def test_a_failure_afterwards_tells_that_it_was_opened(
        self, tasks: Tasks, login: Login, path: Path, echo: Echo, ssh: Ssh
    ) -> None:
        taken = f"{HOST}:{echo.port}:{HOST}:1"
        failed = tasks.fails(local=[taken], open=True, **login)
        assert (failed["reason"], failed.changed) == ("listen_in_use", True)
        assert ssh.master_pid(path)
        failed = tasks.fails(local=[taken], open=True, **login)
        assert (failed["reason"], failed.changed) == ("listen_in_use", False)

    def test_absent_opens_none(self, tasks: Tasks, login: Login, path: Path, bastion: Sshd) -> None:
        params = {"local": ["1:a:1"], "remote": ["1:a:1"], "state": "absent"}
        rows = tasks.rows(open=True, **login, **params)
        assert rows.changed == STAYS
        assert states(rows.do) == ["absent", "absent"]
        assert not path.parent.exists()
        assert bastion.connections() == 0


def kill_master(path: Path, bastion: Sshd) -> None:
    """End the one client of the bastion without a chance to clean up."""
    (process,) = clients(bastion.port)
    process.send_signal(signal.SIGKILL)
    wait_for(lambda: not alive(process.pid), "the end of the master")
    assert path.is_socket()


class TestMany:
    def test_two_hundred_in_one_task(self, tasks: Tasks, master: int, echo: Echo) -> None:
        local = [f"{HOST}:{port}:{HOST}:{echo.port}" for port in free_ports(200)]
        rows = tasks.rows(local=local)
        assert rows.changed == CHANGES
        assert len(rows.do["forwards"]) == len(listeners(master)) == 200
        assert {one["evidence"] for one in rows.again["forwards"]} == {"listener"}
        for spelling in local[::40]:
            assert talk((HOST, int(spelling.split(":")[1]))) == b"hello"
        assert tasks.rows(local=local, state="absent").changed == CHANGES
        assert not listeners(master)

    def test_two_runs_at_once_on_one_master(
        self, tasks: Tasks, login: Login, master: int, echo: Echo
    ) -> None:
        ports = free_ports(24)
        local = [f"{HOST}:{port}:{HOST}:{echo.port}" for port in ports]
        # Eight of each run are those of the other as well.
        shares = [local[:16], local[8:]]

        def run(share: list[str]) -> PlaybookResult:
            return tasks.play(*(tasks.task(one, local=[*share[:4], one]) for one in share))

        with concurrent.futures.ThreadPoolExecutor() as pool:
            for result in pool.map(run, shares):
                result.ok()
        assert listeners(master) == {(HOST, port) for port in ports}
        assert tasks.rows(local=local).changed == STAYS
        assert {one["evidence"] for one in tasks.one(local=local)["forwards"]} == {"listener"}


def silent_port(stack: contextlib.ExitStack) -> int:
    """A port that answers no further connection: nobody accepts those that fill its queue."""
    listener = stack.enter_context(socket.socket())
    listener.bind((HOST, 0))
    listener.listen(0)
    for _number in range(4):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    return int(listener.getsockname()[1])


@pytest.mark.parametrize("type_", ["local", "remote"])
@pytest.mark.parametrize("name", ["a b", "ü%C%h %%", r"co\:lon", "'\"$(x);`"])
def test_a_socket_may_have_a_strange_name(
    tasks: Tasks, master: int, echo: Echo, work: Path, type_: str, name: str
) -> None:
    at = work / name.replace("\\", "")
    params: dict[str, Any] = {type_: [f"{work}/{name}:{HOST}:{echo.port}"]}
    rows = tasks.rows(**params)
    assert rows.changed == CHANGES
    assert rows.do["forwards"][0]["listen_socket"] == str(at)
    assert talk(at) == b"hello"
    assert tasks.rows(state="absent", **params).changed == CHANGES
    wait_for(lambda: not listens(at), "the end of the listener")


@pytest.mark.parametrize("edge", ["module", "inventory"])
def test_on_each_edge(
    tasks: Tasks, login: Login, bastion: Sshd, path: Path, echo: Echo, edge: str
) -> None:
    """As a module on another host, and for a bastion of the inventory."""
    port = free_port()
    task = tasks.task(open=True, local=[f"{HOST}:{port}:{HOST}:{echo.port}"], **login)
    how: dict[str, Any] = {}
    if edge == "module":
        task["delegate_to"] = "localhost"
    else:
        del task[tasks.module]["host"]
        how["inventory"] = {"all": {"hosts": {"localhost": {"ansible_host": "bastion"}}}}
    result = tasks.play(task, {**task, "name": "again"}, **how).ok()
    assert (result.task("do").changed, result.task("again").changed) == (True, False)
    assert result.task("do")["control_path"] == str(path)
    assert talk((HOST, port)) == b"hello"
    assert os.listdir(path.parent) != []
