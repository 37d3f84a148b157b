# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward: what others did to the master, and what became of the ledger, is seen and mended."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Ssh, alive, listeners
from tests.support.services import Echo, free_port, has_ipv6, listens, talk
from tests.support.tasks import CHANGES, STAYS, Tasks
from tests.support.waiting import wait_for

Params = dict[str, Any]
FLAGS = {"local": "-L", "remote": "-R", "dynamic": "-D"}


def options(params: Params) -> list[str]:
    """The forwardings of a task as ssh's own options."""
    return [
        word for name, flag in FLAGS.items() for one in params.get(name, []) for word in (flag, one)
    ]


def to(echo: Echo, at: str | int | None = None) -> str:
    """A spelling that leads from `at` (a free port of 127.0.0.1) to the echo."""
    where = f"127.0.0.1:{free_port()}" if at is None else at
    return f"{where}:127.0.0.1:{echo.port}"


def port_of(spelling: str) -> int:
    return int(spelling.split(":")[-3])


@pytest.fixture(params=["local", "local at a socket", "dynamic", "no address"])
def visible(request: pytest.FixtureRequest, work: Path, echo: Echo) -> Params:
    """A forwarding whose listener is here."""
    params: dict[str, Params] = {
        "local": {"local": [to(echo)]},
        "no address": {"local": [to(echo, free_port())]},
        "local at a socket": {"local": [to(echo, f"{work}/l")]},
        "dynamic": {"dynamic": [f"127.0.0.1:{free_port()}"]},
    }
    return params[request.param]


class TestCancelled:
    def test_is_missed_and_opened_again(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, visible: Params
    ) -> None:
        # This collection writes "localhost" out, and OpenSSH compares the text.
        said = [re.sub(r"^(\d+:)", r"localhost:\1", word) for word in options(visible)]
        first = tasks.one(**visible)
        assert ssh.control(path, "cancel", *said).rc == 0
        assert not listeners(master)
        rows = tasks.rows(**visible)
        assert rows.changed == CHANGES
        assert rows.again["forwards"] == first["forwards"]
        assert ssh.control(path, "cancel", *said).rc == 0
        assert tasks.rows(state="absent", **visible).changed == STAYS

    def test_a_chosen_port_is_taken_again(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        params: Params = {"local": ["127.0.0.1:0:127.0.0.1:%d" % echo.port]}
        port = tasks.one(**params)["forwards"][0]["allocated_port"]
        ssh.control(path, "cancel", "-L", to(echo, f"127.0.0.1:{port}"))
        wait_for(lambda: not listens(("127.0.0.1", port)), "the end of the listener")
        rows = tasks.rows(**params)
        assert rows.changed == CHANGES
        assert [step["forwards"][0]["allocated_port"] for step in (rows.do, rows.again)] == [
            port
        ] * 2
        assert talk(("127.0.0.1", port)) == b"hello"

    def test_a_remote_one_is_there_again_though_nobody_can_tell(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        """A master answers the request for a lost forwarding as it answers a repeated one."""
        params: Params = {"remote": [to(echo)]}
        address = ("127.0.0.1", port_of(params["remote"][0]))
        tasks.one(**params)
        ssh.control(path, "cancel", *options(params))
        wait_for(lambda: not listens(address), "the end of the listener")
        assert tasks.rows(**params).changed == STAYS
        assert talk(address) == b"hello"

    def test_a_remote_one_with_a_chosen_port_gets_another(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        params: Params = {"remote": ["127.0.0.1:0:127.0.0.1:%d" % echo.port]}
        port = tasks.one(**params)["forwards"][0]["allocated_port"]
        ssh.control(path, "cancel", *options(params))
        wait_for(lambda: not listens(("127.0.0.1", port)), "the end of the listener")
        with Echo(port=port):
            result = tasks.play(tasks.task("do", **params), tasks.task("again", **params)).ok()
        assert result.task("do").changed
        assert not result.task("again").changed
        new = result.task("again")["forwards"][0]["allocated_port"]
        assert new not in (None, port)
        assert talk(("127.0.0.1", new)) == b"hello"
        assert tasks.rows(state="absent", **params).changed == CHANGES
        wait_for(lambda: not listens(("127.0.0.1", new)), "the end of the listener")


class TestOpened:
    def test_is_found(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, visible: Params
    ) -> None:
        assert ssh.control(path, "forward", *options(visible)).rc == 0
        rows = tasks.rows(**visible)
        assert rows.changed == STAYS
        assert rows.do["forwards"][0]["evidence"] == "master"
        assert tasks.rows(state="absent", **visible).changed == CHANGES
        assert not listeners(master)

    def test_a_chosen_port_is_met_by_one_that_is_there(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        spelling = to(echo)
        assert ssh.control(path, "forward", "-L", spelling).rc == 0
        rows = tasks.rows(local=["127.0.0.1:0:127.0.0.1:%d" % echo.port])
        assert rows.changed == STAYS
        assert rows.do["forwards"][0]["listen_port"] == port_of(spelling)

    def test_beside_ours(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo, visible: Params
    ) -> None:
        ours: Params = {"remote": [to(echo)]}
        tasks.one(**ours)
        assert ssh.control(path, "forward", *options(visible)).rc == 0
        assert tasks.rows(**ours, **visible).changed == STAYS

    def test_a_remote_one_becomes_ours(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        params: Params = {"remote": [to(echo)]}
        assert ssh.control(path, "forward", *options(params)).rc == 0
        assert tasks.rows(**params).changed == CHANGES
        assert talk(("127.0.0.1", port_of(params["remote"][0]))) == b"hello"

    def test_a_remote_one_is_cancelled_though_check_mode_cannot_know(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        params: Params = {"remote": [to(echo)]}
        assert ssh.control(path, "forward", *options(params)).rc == 0
        assert tasks.rows(state="absent", **params).changed == (False, True, False, False)
        address = ("127.0.0.1", port_of(params["remote"][0]))
        wait_for(lambda: not listens(address), "the end of the listener")

    def test_where_one_of_ours_shall_listen_it_is_a_conflict(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        port = free_port()
        assert ssh.control(path, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:1").rc == 0
        wanted = to(echo, f"127.0.0.1:{port}")
        for check in (True, False):
            failed = tasks.fails(check=check, local=[wanted])
            assert failed["reason"] == "forward_conflict"
            assert wanted in failed.msg
            assert not failed.changed
        # It can be told neither from the listener nor from the master which far end to cancel.
        failed = tasks.fails(local=[wanted], on_conflict="replace")
        assert failed["reason"] == "forward_conflict"
        assert f"127.0.0.1 port {port}" in failed.msg
        assert listeners(master) == {("127.0.0.1", port)}

    @pytest.mark.parametrize("where", ["127.0.0.1:", "localhost:", ""])
    def test_a_socks_proxy_can_be_cancelled_by_its_listener(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo, where: str
    ) -> None:
        port = free_port()
        assert ssh.control(path, "forward", "-D", f"{where}{port}").rc == 0
        assert tasks.rows(local=[to(echo)], exclusive=True).changed == CHANGES
        assert len(listeners(master)) == 1
        assert ssh.control(path, "forward", "-D", f"{where}{port}").rc == 0
        wanted = to(echo, f"127.0.0.1:{port}")
        assert tasks.rows(local=[wanted], on_conflict="replace").changed == CHANGES
        assert talk(("127.0.0.1", port)) == b"hello"


class TestLedger:
    @pytest.fixture
    def ledger(self, path: Path) -> Path:
        return path.with_name("s.json")

    @pytest.mark.parametrize("text", [None, "", "{", "[]", '{"version": 1}', "\0\xff"])
    def test_lost_or_damaged(
        self, tasks: Tasks, master: int, ledger: Path, work: Path, echo: Echo, text: str | None
    ) -> None:
        params: Params = {
            "local": [to(echo), to(echo, f"{work}/l"), "127.0.0.1:0:127.0.0.1:%d" % echo.port],
            "dynamic": [str(free_port())],
        }
        first = tasks.one(**params)
        if text is None:
            ledger.unlink()
        else:
            ledger.write_text(text)
        rows = tasks.rows(**params)
        assert rows.changed == STAYS
        for before, after in zip(first["forwards"], rows.do["forwards"], strict=True):
            assert after == {**before, "evidence": "master"}
        assert tasks.rows(state="absent", **params).changed == CHANGES
        assert not listeners(master)

    @pytest.mark.parametrize(
        ("key", "value"), [("started", -100.0), ("pid", 1)], ids=["same pid", "another pid"]
    )
    def test_of_another_process(
        self,
        tasks: Tasks,
        ssh: Ssh,
        path: Path,
        master: int,
        ledger: Path,
        visible: Params,
        key: str,
        value: float,
    ) -> None:
        """What it says counts for nothing: neither what is there nor what is not."""
        tasks.one(**visible)
        values = json.loads(ledger.read_text())
        values[key] += value
        ledger.write_text(json.dumps(values))
        rows = tasks.rows(**visible)
        assert rows.changed == STAYS
        assert rows.do["forwards"][0]["evidence"] == "master"
        ssh.control(path, "exit")
        wait_for(lambda: not alive(master), "the end of the master")
        ledger.write_text(json.dumps(values))
        ssh.open(path)
        assert tasks.rows(**visible).changed == CHANGES

    def test_with_a_remote_one_that_another_process_had(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, ledger: Path, echo: Echo
    ) -> None:
        params: Params = {"remote": [to(echo)]}
        tasks.one(**params)
        values = ledger.read_text()
        ssh.control(path, "exit")
        wait_for(lambda: not alive(master), "the end of the master")
        ssh.open(path)
        ledger.write_text(values)
        assert tasks.rows(**params).changed == CHANGES
        assert talk(("127.0.0.1", port_of(params["remote"][0]))) == b"hello"

    def test_of_an_earlier_hour(
        self, tasks: Tasks, master: int, ledger: Path, visible: Params
    ) -> None:
        tasks.one(**visible)
        values = ledger.read_text()
        tasks.one(state="absent", **visible)
        ledger.write_text(values)
        assert tasks.rows(**visible).changed == CHANGES


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1, so localhost is one address")
class TestHalves:
    """OpenSSH calls it a success when it can bind one of the addresses of "localhost"."""

    def test_half_a_listener_is_none(self, tasks: Tasks, master: int, echo: Echo) -> None:
        port = free_port()
        with Echo(port=port):
            failed = tasks.fails(local=[to(echo, port)])
            assert failed["reason"] == "listen_in_use"
            assert f"127.0.0.1 port {port}" in failed.msg
            assert not failed.changed
            assert not listeners(master)
        assert tasks.rows(local=[to(echo, port)]).changed == CHANGES

    def test_half_a_listener_can_be_wanted_and_is_made_whole(
        self, tasks: Tasks, master: int, echo: Echo
    ) -> None:
        port = free_port()
        with Echo(port=port):
            assert tasks.rows(local=[to(echo, port)], verify="none").changed == CHANGES
            assert listeners(master) == {("::1", port)}
            assert tasks.play(tasks.task(check=True, local=[to(echo, port)])).ok().changed() == 1
        rows = tasks.rows(local=[to(echo, port)])
        assert rows.changed == CHANGES
        assert rows.diff() == (
            f"-L localhost:{port}:127.0.0.1:{echo.port} (broken)\n",
            f"-L localhost:{port}:127.0.0.1:{echo.port}\n",
        )
        assert listeners(master) == {("127.0.0.1", port), ("::1", port)}

    def test_one_that_another_tool_opened_is_made_whole(
        self, tasks: Tasks, ssh: Ssh, path: Path, master: int, echo: Echo
    ) -> None:
        port = free_port()
        with Echo(port=port):
            assert ssh.control(path, "forward", "-L", to(echo, f"localhost:{port}")).rc == 0
        assert tasks.rows(local=[to(echo, port)]).changed == CHANGES
        assert listeners(master) == {("127.0.0.1", port), ("::1", port)}

    def test_a_master_of_one_family_has_no_other_half(
        self, tasks: Tasks, ssh: Ssh, path: Path, echo: Echo
    ) -> None:
        path.parent.mkdir(mode=0o700)
        master = ssh.open(path, "-4")
        port = free_port()
        assert tasks.rows(local=[to(echo, port)]).changed == CHANGES
        assert listeners(master) == {("127.0.0.1", port)}


def test_a_socket_whose_file_was_removed_is_opened_anew(
    tasks: Tasks, master: int, echo: Echo, work: Path
) -> None:
    params: Params = {"local": [to(echo, f"{work}/l")]}
    tasks.one(**params)
    (work / "l").unlink()
    assert tasks.rows(**params).changed == CHANGES
    assert talk(work / "l") == b"hello"


def test_a_dead_socket_file_is_in_nobodys_way_and_a_live_one_stays(
    tasks: Tasks, master: int, echo: Echo, work: Path
) -> None:
    params: Params = {"local": [to(echo, f"{work}/l")]}
    with Echo(work / "l") as other:
        failed = tasks.fails(**params)
        assert failed["reason"] == "listen_in_use"
        assert talk(work / "l") == b"hello"
        assert len(other.seen) >= 1
    (work / "l").write_text("mine")
    assert tasks.fails(**params)["reason"] == "listen_in_use"
    assert (work / "l").read_text() == "mine"
