# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking many hosts at once, and what becomes of their answers."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import known_hosts
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.known_hosts import (
    KEY_TYPES,
    Host,
    HostKey,
)
from ansible_collections.bastion.mux.plugins.module_utils.system import host_keys, ledger_file
from ansible_collections.bastion.mux.plugins.module_utils.system.host_keys import NoHostKey
from ansible_collections.bastion.mux.plugins.module_utils.system.mux_client import (
    MuxRefused,
    MuxTimeout,
)

A, B, C = Host("a"), Host("b"), Host("c", 2222)


class Client:
    """A connection to a master that reaches whatever it is told to."""

    def __init__(self, reach: Callable[[str, int, int], None]) -> None:
        self._reach = reach
        self.closed = False

    def stdio_forward(self, host: str, port: int, *, stdin: int, stdout: int) -> None:
        assert stdin == stdout
        self._reach(host, port, stdin)

    def check(self) -> int:
        return 4242

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closed = True


def key(name: str, key_type: str = "ed25519") -> HostKey:
    type_ = KEY_TYPES[key_type][0].encode()
    return HostKey(type_.decode(), len(type_).to_bytes(4, "big") + type_ + name.encode())


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Dict[Tuple[str, str], Any]:
    """What a host, by its name, answers when asked for a type: a key, None or an error.

    The host says its name over the forwarding, which shows that it is the right one.
    """
    table: Dict[Tuple[str, str], Any] = {}

    def ask(connection: socket.socket, key_type: str, *, timeout: float) -> Any:
        with connection:
            name = connection.recv(100).decode()
            assert connection.recv(100) == b""  # the other end is nobody's any more
        answer = table.get((name, key_type))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(host_keys, "ask", ask)
    return table


def say_name(host: str, port: int, descriptor: int) -> None:
    os.write(descriptor, ("%s:%d" % (host, port)).encode())


def gather(
    hosts: List[Host],
    types: Tuple[str, ...] = ("ed25519", "ecdsa"),
    reach: Callable[[str, int, int], None] = say_name,
    workers: int = 4,
) -> Tuple[Dict[Host, Tuple[HostKey, ...]], Dict[Host, str]]:
    clients: List[Client] = []

    def connect() -> Any:
        clients.append(Client(reach))
        return clients[-1]

    shown, silent = known_hosts.gather(connect, hosts, types, timeout=1, workers=workers)
    assert all(client.closed for client in clients)
    return shown, {one.host: one.message for one in silent}


def test_every_host_is_asked_for_every_type(answers: Dict[Tuple[str, str], Any]) -> None:
    answers["a:22", "ed25519"] = key("a")
    answers["a:22", "ecdsa"] = key("a", "ecdsa")
    answers["c:2222", "ecdsa"] = key("c", "ecdsa")
    shown, silent = gather([A, C])
    assert shown == {A: (key("a"), key("a", "ecdsa")), C: (key("c", "ecdsa"),)}
    assert silent == {}


def test_one_failure_ends_no_other(answers: Dict[Tuple[str, str], Any]) -> None:
    def reach(host: str, port: int, descriptor: int) -> None:
        if host == "a":
            raise MuxRefused("Session open refused by peer")
        if host == "b":
            raise MuxTimeout("the master did not answer within 1 s")
        say_name(host, port, descriptor)

    answers["c:2222", "ed25519"] = key("c")
    nothing = Host("nothing")
    broken = Host("broken")
    answers["broken:22", "ed25519"] = NoHostKey("garbage")
    shown, silent = gather([A, B, C, nothing, broken], reach=reach)
    assert shown == {C: (key("c"),)}
    assert silent == {
        A: "a: Session open refused by peer",
        B: "b: no connection within 1 seconds",
        nothing: "nothing: it has no host key of type ed25519, ecdsa",
        broken: "broken: garbage",
    }


def test_a_host_that_does_not_answer_is_asked_once(answers: Dict[Tuple[str, str], Any]) -> None:
    asked = []

    def reach(host: str, port: int, descriptor: int) -> None:
        asked.append(host)
        raise MuxRefused("no")

    gather([A, B], reach=reach)
    assert sorted(asked) == ["a", "b"]


def test_no_more_than_the_workers_at_once(answers: Dict[Tuple[str, str], Any]) -> None:
    lock = threading.Lock()
    now, most = [0], [0]

    def reach(host: str, port: int, descriptor: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        raise MuxRefused("no")

    gather([Host("h%d" % number) for number in range(30)], reach=reach, workers=5)
    assert 2 <= most[0] <= 5


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dict[str, Any]:
    """Parameters of a task whose hosts answer as `shown` and `silent` in them have it."""
    found: Dict[str, Any] = {
        "path": str(tmp_path / "k"),
        "hosts": ["a", "c:2222"],
        "state": "present",
        "hash": False,
        "replace": False,
        "fingerprints": None,
        "key_types": None,
        "shown": {A: (key("a"),), C: (key("c"),)},
        "silent": [],
    }

    def ask(params: Dict[str, Any], _hosts: object, _context: object) -> Any:
        return params["shown"], params["silent"]

    monkeypatch.setattr(known_hosts, "_ask", ask)
    return found


def run(params: Dict[str, Any], *, check: bool = False, **more: Any) -> Dict[str, Any]:
    return known_hosts.run({**params, **more}, Context(check_mode=check))


def test_check_mode_says_the_same_and_writes_nothing(
    params: Dict[str, Any], tmp_path: Path
) -> None:
    checked = run(params, check=True)
    assert list(tmp_path.iterdir()) == []
    assert run(params) == checked
    assert checked["changed"]
    assert checked["diff"]["before"] == ""
    assert checked["diff"]["after"] == (tmp_path / "k").read_text()
    assert not run(params)["changed"]
    absent = run(params, check=True, state="absent")
    assert run(params, state="absent") == absent
    assert (tmp_path / "k").read_bytes() == b""
    assert not run(params, state="absent")["changed"]


def test_the_gravest_reason_wins_and_all_are_told(params: Dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "k").write_text("a %s\n" % key("old"))
    silent = [known_hosts.Silent(C, "c:2222: no")]
    with pytest.raises(MuxError) as caught:
        run(params, shown={A: (key("a"),)}, silent=silent)
    error = caught.value
    assert error.reason == "host_key_changed"
    assert "2 of 2 hosts" in error.message
    assert "c:2222: no" in error.message
    assert key("old").fingerprint in error.message
    assert error.details["path"] == str(tmp_path / "k")
    assert [(one["host"], one["reason"]) for one in error.details["hosts"]] == [
        ("a", "host_key_changed"),
        ("c", "destination_unreachable"),
    ]
    with pytest.raises(MuxError) as caught:
        run(params, shown={}, silent=silent)
    assert caught.value.reason == "destination_unreachable"


def test_a_file_that_changed_meanwhile_is_decided_anew(
    params: Dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "k"
    real = ledger_file.lock

    def lock(*args: Any, **keywords: Any) -> Any:
        path.write_text("# somebody was here\n")
        return real(*args, **keywords)

    monkeypatch.setattr(ledger_file, "lock", lock)
    run(params)
    assert path.read_text().startswith("# somebody was here\na ")


def test_bytes_that_are_no_text_make_a_diff(params: Dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"# \xff\n")
    assert run(params)["diff"]["before"] == "# \\xff\n"


def test_absent_of_some_types(params: Dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "k").write_text("a %s\na %s\n" % (key("a"), key("a", "rsa")))
    assert run(params, state="absent", key_types=["rsa"])["changed"]
    assert (tmp_path / "k").read_text() == "a %s\n" % key("a")
