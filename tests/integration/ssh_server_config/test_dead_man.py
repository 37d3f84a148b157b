# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A change that nobody confirms is undone, whatever becomes of those who made it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.integration.ssh_server_config.conftest import NEW, Server
from tests.support.sshd import sshd_path
from tests.support.tasks import Tasks
from tests.support.waiting import wait_for

#: Seconds that no test lives to see.
LONG = 900


def test_a_change_is_pending_until_it_is_confirmed(server: Server, tasks: Tasks) -> None:
    before = server.tree()
    with server.ssh.session(Path("none")) as session:
        result = tasks.one(confirm_within=LONG)
        assert result.changed
        assert result["pending"]
        assert result["reload"] == "done"
        assert server.login() == "new"
        assert session.echoes(), "a reload cut a running session"
    (timer,) = server.timers()
    assert timer.ppid() == 1, "it is somebody's child"
    assert os.getsid(timer.pid) != os.getsid(0)
    assert timer.terminal() is None
    assert server.pending.stat().st_mode & 0o777 == 0o700

    # Again: it is what is wanted, so it goes on to wait.
    result = tasks.one(confirm_within=LONG)
    assert not result.changed
    assert result["pending"]
    assert server.timers() == [timer]

    assert tasks.one(check=True, state="confirmed").changed
    assert server.timers() == [timer]
    assert tasks.one(state="confirmed").changed
    assert server.timers() == []
    assert not server.pending.exists()
    again = tasks.one(state="confirmed")
    assert not again.changed
    assert not again["pending"]
    assert server.login() == "new"

    assert tasks.one(state="absent", options=None).changed
    assert server.tree() == before


def test_a_pending_change_is_restored_on_demand(server: Server, tasks: Tasks) -> None:
    files = [{"name": "keys/alice", "content": "one\n"}, {"name": "ca", "content": "ca\n"}]
    tasks.one(options={"ForceCommand": "echo first"}, files=files)
    before = server.tree()
    files = [{"name": "keys/alice", "content": "two\n"}, {"name": "certs/x", "content": "x\n"}]
    tasks.one(files=files, confirm_within=LONG)
    (server.directory / "certs" / "left").write_text("by somebody")
    assert server.login() == "new"
    assert tasks.one(check=True, state="restored").changed
    assert server.login() == "new"
    assert tasks.one(state="restored").changed
    assert server.login() == "first"
    assert server.tree() == before
    assert server.timers() == []
    assert not tasks.one(state="restored").changed


def test_nobody_confirms(server: Server, tasks: Tasks) -> None:
    """Over ssh, as a real host: the task and its connection are gone when it is undone."""
    before = server.tree()
    result = tasks.play(tasks.task(confirm_within=6), inventory=server.inventory())
    assert result.ok().task("do")["pending"]
    told = server.until_undone()
    assert "nobody confirmed" in told["why"]
    assert server.login() == "old"
    late = tasks.fails(state="confirmed")
    assert late["reason"] == "timeout"
    assert "undone" in late.msg
    assert not tasks.one(state="restored").changed
    assert server.tree() == before


def test_a_process_that_was_killed_is_made_up_for(server: Server, tasks: Tasks) -> None:
    before = server.tree()
    tasks.one(confirm_within=LONG)
    for timer in server.timers():
        timer.kill()
        wait_for(lambda: not server.timers(), "it has gone")
    assert server.login() == "new"
    # A reboot looks the same: nobody has the file locked.
    checked = tasks.one(check=True, confirm_within=LONG)
    assert checked.changed
    assert server.login() == "new"
    result = tasks.one(options={"PermitTTY": False}, confirm_within=LONG)
    assert result.changed
    assert result["pending"]
    assert server.login() == "old"
    assert tasks.one(state="restored").changed
    assert server.tree() == before


def test_another_change_has_the_pending_one_undone_first(server: Server, tasks: Tasks) -> None:
    before = server.tree()
    tasks.one(confirm_within=LONG)
    result = tasks.one(options={"PermitTTY": False}, confirm_within=LONG)
    assert result.changed
    assert len(server.timers()) == 1
    assert server.login() == "old"
    tasks.one(state="restored")
    # Not what was pending at first, but what was there before all of it.
    assert server.tree() == before


def test_what_is_pending_is_confirmed_by_who_wants_no_confirmation(
    server: Server, tasks: Tasks
) -> None:
    tasks.one(confirm_within=LONG)
    result = tasks.one()
    assert not result.changed
    assert not result["pending"]
    assert server.timers() == []
    assert server.login() == "new"


def test_a_program_beside_the_backup_undoes_it_by_hand(server: Server, tasks: Tasks) -> None:
    before = server.tree()
    tasks.one(confirm_within=LONG)
    script = [str(server.pending / "undo.py"), str(server.pending), "now"]
    subprocess.run(["python3", *script], check=True, timeout=60)
    assert server.login() == "old"
    assert server.tree() == before
    wait_for(lambda: not server.timers(), "it has noticed")


def test_an_sshd_that_does_not_come_back_is_undone_at_once(
    make_server: Callable[..., Server], work: Path
) -> None:
    server = make_server(
        options={"ListenAddress": None, "AddressFamily": "inet"}, addresses=["0.0.0.0"]
    )
    tasks = Tasks(work, {**server.params, "options": NEW}, "bastion.mux.ssh_server_config")
    before = server.tree()
    with socket.socket() as taken, server.ssh.session(Path("none")) as session:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        failed = tasks.fails(options={"ListenAddress": address}, confirm_within=LONG)
        assert failed["reason"] == "not_running"
        assert "as it was before" in failed.msg
        # It had to be started anew, by nobody's child.
        revived = wait_for(lambda: listener(server.sshd.port), "sshd is back")
        assert revived
        try:
            assert server.login() == "old"
            assert session.echoes()
            assert server.tree() == before
            assert server.timers() == []
        finally:
            revived.kill()


def listener(port: int) -> psutil.Process | None:
    """Who listens on a port."""
    for connection in psutil.net_connections("tcp4"):
        at = connection.laddr
        if connection.status == psutil.CONN_LISTEN and at and at.port == port and connection.pid:
            return psutil.Process(connection.pid)
    return None


def test_two_runs_at_once_follow_each_other(server: Server, work: Path) -> None:
    before = server.tree()
    runs = []
    for name in ("one", "two"):
        (work / name).mkdir()
        params = {**server.params, "options": {"ForceCommand": f"echo {name}"}}
        runs.append(Tasks(work / name, params, "bastion.mux.ssh_server_config"))
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda run: run.one(confirm_within=LONG), runs))
    assert all(one.changed and one["pending"] for one in done)
    # The later one has undone what the earlier one left pending.
    assert server.login() in ("one", "two")
    assert len(server.timers()) == 1
    runs[0].one(state="restored")
    assert server.tree() == before
    assert server.login() == "old"


def test_where_nobody_listens_there_is_nothing_to_reload(server: Server, tasks: Tasks) -> None:
    server.sshd.stop()
    result = tasks.one()
    assert result.changed
    assert result["reload"] == "nobody listens"
    assert server.effective()["forcecommand"] == "echo new"


def test_who_wants_no_reload_gets_none(server: Server, tasks: Tasks) -> None:
    result = tasks.one(reload=False)
    assert result["reload"] == "off"
    assert server.login() == "old"
    server.process.send_signal(signal.SIGHUP)
    # Nobody listens while it executes itself.
    wait_for(lambda: "new" in server.ssh.run(command="echo old").out, "sshd has read it")


def test_what_somebody_else_wrote_meanwhile_is_kept(server: Server, tasks: Tasks) -> None:
    original = server.config.read_bytes()
    tasks.one(confirm_within=LONG)
    theirs = server.has(b"# written by hand\n")
    tasks.one(state="restored")
    assert server.config.read_bytes() == original
    (kept,) = server.config.parent.glob("sshd_config.bastion.mux-kept-*")
    assert kept.read_bytes() == theirs


@pytest.mark.parametrize("killed", [True, False])
def test_a_run_that_was_killed_half_way_is_undone_by_the_next(
    server: Server, tasks: Tasks, killed: bool
) -> None:
    before = server.tree()
    tasks.one(confirm_within=LONG)
    # As if it had been killed before it was done: nothing says that it was applied.
    (server.pending / "applied").unlink()
    for timer in server.timers():
        if killed:
            timer.kill()
    failed = tasks.fails(state="confirmed")
    assert failed["reason"] == "invalid"
    assert "half done" in failed.msg
    assert tasks.one(state="absent", options=None).changed
    assert server.tree() == before
    assert server.login() == "old"
    assert server.timers() == []


def test_a_module_that_is_killed_in_the_middle_is_undone(
    server: Server, tasks: Tasks, work: Path
) -> None:
    """By the next run, although its deadline is far away."""
    before = server.tree()
    stuck = work / "stuck"
    program = work / "sshd"
    # It hangs where the module asks about the files that are in place by now.
    program.write_text(
        f"#!/bin/sh\n"
        f'if [ -e {server.drop_in} ] && [ "$1" = -T ] && [ "$5" = {server.config} ]; then\n'
        f"  echo $$ $PPID > {stuck}.new; mv {stuck}.new {stuck}; exec sleep 60\n"
        f"fi\n"
        f'exec {sshd_path()} "$@"\n'
    )
    program.chmod(0o755)

    def kill() -> None:
        wait_for(stuck.exists, "it is stuck", 60)
        for pid in stuck.read_text().split()[::-1]:
            psutil.Process(int(pid)).kill()

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        task = tasks.task(sshd_executable=str(program), confirm_within=LONG)
        result = tasks.play(task).task("do")
        killed.result()
    assert result.event == "failed"
    assert server.drop_in.exists()
    assert server.pending.exists()
    failed = tasks.fails(state="confirmed")
    assert "half done" in failed.msg
    assert server.login() == "old"
    assert tasks.one(state="absent", options=None).changed
    assert server.tree() == before
    assert server.timers() == []


def test_an_sshd_that_was_started_anew_meanwhile_is_found(server: Server, tasks: Tasks) -> None:
    tasks.one(confirm_within=LONG)
    server.process.kill()
    server.process.wait()
    program = sshd_path()
    assert program
    start = [program, "-f", str(server.config), "-E", str(server.sshd.log_file)]
    subprocess.run(start, check=True, timeout=30)
    daemon = wait_for(lambda: listener(server.sshd.port), "it listens")
    assert daemon
    try:
        assert server.login() == "new"
        tasks.one(state="restored")
        assert server.login() == "old"
        assert listener(server.sshd.port) == daemon
    finally:
        daemon.kill()


def test_an_sshd_that_has_ended_meanwhile_is_started_again(server: Server, tasks: Tasks) -> None:
    tasks.one(confirm_within=LONG)
    server.process.kill()
    server.process.wait()
    # Now is the deadline.
    (server.pending / "deadline").write_text("0")
    server.until_undone()
    revived = wait_for(lambda: listener(server.sshd.port), "it listens")
    assert revived
    try:
        assert server.login() == "old"
    finally:
        revived.kill()
    tasks.one(state="restored")


def test_a_place_that_others_can_write_to_tells_nobody_what_to_undo(
    server: Server, tasks: Tasks, work: Path
) -> None:
    """Whoever could make the folder of a change could have root put any file anywhere."""
    place = work / "open"
    place.mkdir()
    place.chmod(0o777)
    (place / "sshd_config").write_text("")
    for state in ("restored", "confirmed", "absent"):
        failed = tasks.fails(config_path=str(place / "sshd_config"), state=state, options=None)
        assert failed["reason"] == "invalid"
        assert "writable by others" in failed.msg


def test_an_sshd_that_came_since_is_told_as_well(server: Server, tasks: Tasks) -> None:
    server.sshd.stop()
    assert tasks.one(confirm_within=LONG)["reload"] == "nobody listens"
    program = sshd_path()
    assert program
    start = [program, "-f", str(server.config), "-E", str(server.sshd.log_file)]
    subprocess.run(start, check=True, timeout=30)
    daemon = wait_for(lambda: listener(server.sshd.port), "it listens")
    assert daemon
    try:
        assert server.login() == "new"
        tasks.one(state="restored")
        assert server.login() == "old"
    finally:
        daemon.kill()
