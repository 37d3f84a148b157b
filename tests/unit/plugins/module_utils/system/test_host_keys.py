# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking servers of every sort for their host keys."""

from __future__ import annotations

import socket
import threading
import time
from typing import Dict

import paramiko
import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.known_hosts import HostKey
from ansible_collections.bastion.mux.plugins.module_utils.system import host_keys
from ansible_collections.bastion.mux.plugins.module_utils.system.host_keys import NoHostKey, ask


@pytest.fixture(scope="module")
def keys() -> Dict[str, paramiko.PKey]:
    return {"ecdsa": paramiko.ECDSAKey.generate(), "rsa": paramiko.RSAKey.generate(2048)}


def server(*shown: paramiko.PKey) -> socket.socket:
    """An SSH server with these host keys; the client's end of the connection to it."""
    ours, its = socket.socketpair()
    transport = paramiko.Transport(its)
    transport.set_log_channel("bastion.mux.paramiko")
    for key in shown:
        transport.add_server_key(key)
    transport.start_server(threading.Event(), paramiko.ServerInterface())
    return ours


def test_each_type_is_shown(keys: Dict[str, paramiko.PKey]) -> None:
    for name, key in keys.items():
        shown = ask(server(*keys.values()), name, timeout=10)
        assert shown == HostKey(key.get_name(), key.asbytes())


def test_a_type_that_a_server_lacks_is_none(keys: Dict[str, paramiko.PKey]) -> None:
    for name in ("ed25519", "rsa"):
        assert ask(server(keys["ecdsa"]), name, timeout=10) is None


def test_a_key_that_the_server_does_not_hold_is_not_believed(
    keys: Dict[str, paramiko.PKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    liar, other = paramiko.ECDSAKey.generate(), keys["ecdsa"]
    monkeypatch.setattr(liar, "asbytes", other.asbytes)
    with pytest.raises(NoHostKey, match="verification"):
        ask(server(liar), "ecdsa", timeout=10)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (b"", "(?i)closed|banner"),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", "(?i)banner"),
        (b"SSH-2.0-x\r\n", "closed"),
        (b"SSH-1.5-x\r\n", "(?i)version"),
        (b"SSH-2.0-x\r\n" + b"\xff" * 64, "."),
        (b"SSH-2.0-x\r\n" + b"\x00\x00\x00\x0c\x0a\x15" + bytes(10), "."),
    ],
)
def test_what_is_no_server_is_told_apart(
    says: bytes, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, its = socket.socketpair()
    its.sendall(says)
    its.shutdown(socket.SHUT_WR)
    with its, pytest.raises(NoHostKey, match=why):
        ask(ours, "ed25519", timeout=5)
    assert ours.fileno() == -1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-x", b"SSH-2.0-x\r\n"])
def test_silence_ends_in_time(says: bytes) -> None:
    ours, its = socket.socketpair()
    its.sendall(says)
    began = time.monotonic()
    with its, pytest.raises(NoHostKey, match=r"no key within 0\.5 seconds"):
        ask(ours, "ed25519", timeout=0.5)
    assert time.monotonic() - began < 3


def test_no_thread_stays(keys: Dict[str, paramiko.PKey]) -> None:
    before = threading.active_count()
    ours = server(keys["ecdsa"])
    ask(ours, "ecdsa", timeout=10)
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_algorithms_belong_to_types() -> None:
    ours, its = socket.socketpair()
    with its, paramiko.Transport(ours) as transport:
        algorithms = transport.get_security_options().key_types
    known = {name: host_keys._type_of(name) for name in algorithms}
    # Older versions of paramiko have ssh-dss as well.
    assert set(known.values()) - {None} == {"ed25519", "ecdsa", "rsa"}
    assert known["rsa-sha2-512"] == "rsa"
    assert host_keys._type_of("ssh-rsa") == "rsa"
    assert host_keys._type_of("ssh-dss") is None
