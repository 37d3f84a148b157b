# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_forward: every spelling of a listener, where it really listens, and which are the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.client import Ssh, listeners
from tests.support.services import Echo, free_port, has_ipv6, talk
from tests.support.sshd import Sshd
from tests.support.tasks import CHANGES, STAYS, Tasks

pytestmark = pytest.mark.skipif(
    not has_ipv6(), reason="this machine has no ::1, so that half of the listeners are none"
)

LOOPBACK = {"127.0.0.1", "::1"}
EVERYWHERE = {"0.0.0.0", "::"}

#: Spellings of one listener each, and where it listens. `{}` is the port.
SAME = [
    (("{}", "localhost:{}", "LocalHost:{}", "[localhost]:{}", " 0{} "), LOOPBACK),
    (("127.0.0.1:{}", "[127.0.0.1]:{}"), {"127.0.0.1"}),
    (("127.0.0.2:{}",), {"127.0.0.2"}),
    (("[::1]:{}", "[0:0:0:0:0:0:0:1]:{}", "[::0001]:{}"), {"::1"}),
    (("*:{}", ":{}"), EVERYWHERE),
    (("0.0.0.0:{}",), {"0.0.0.0"}),
    (("[::]:{}", "[0::0]:{}"), {"::"}),
]


@pytest.mark.parametrize("gateway_ports", ["no", "yes"])
def test_where_each_local_spelling_listens(
    tasks: Tasks, ssh: Ssh, path: Path, echo: Echo, gateway_ports: str
) -> None:
    """GatewayPorts of the master is for a listener without an address. We always name one."""
    path.parent.mkdir(mode=0o700)
    master = ssh.open(path, "-o", f"GatewayPorts={gateway_ports}")
    ports = [(free_port(), free_port()) for _group in SAME]

    def task(choice: int) -> dict[str, object]:
        """The task in one of its spellings."""
        local, dynamic = [], []
        for (spellings, _where), (one, other) in zip(SAME, ports, strict=True):
            spelled = spellings[choice % len(spellings)]
            far_end = ("127.0.0.1", "[127.0.0.1]")[choice % 2]
            local.append(f"{spelled.format(one).strip()}:{far_end}:{echo.port}")
            dynamic.append(spelled.format(other))
        return tasks.task(str(choice), local=local, dynamic=dynamic)

    result = tasks.play(*(task(choice) for choice in range(5))).ok()
    assert [result.task(str(choice)).changed for choice in range(5)] == [True] + 4 * [False]
    expected = {
        (address, port)
        for (_spellings, where), pair in zip(SAME, ports, strict=True)
        for address in where
        for port in pair
    }
    assert listeners(master) == expected
    for (_spellings, where), (port, _dynamic) in zip(SAME, ports, strict=True):
        for address in where:
            if address.startswith(("127", ":")):
                assert talk(({"::": "::1"}.get(address, address), port)) == b"hello"


def test_cancelled_by_another_spelling(tasks: Tasks, master: int, echo: Echo) -> None:
    port = free_port()
    tasks.one(local=[f"{port}:LOCALHOST:{echo.port}"])
    assert talk(("::1", port)) == b"hello"
    spelling = f"LocalHost:{port}:localhost:{echo.port}"
    assert tasks.rows(local=[spelling], state="absent").changed == CHANGES
    assert not listeners(master)


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "[::1]", False),
        ("127.0.0.1", "[::]", False),
        ("0.0.0.0", "[::]", False),
        ("127.0.0.1", "localhost", True),
        ("[::1]", "localhost", True),
        ("127.0.0.1", "*", True),
        ("*", "0.0.0.0", True),
        ("localhost", "[::]", True),
    ],
)
def test_kept_apart_where_the_listeners_differ(
    tasks: Tasks, master: int, echo: Echo, first: str, second: str, clash: bool
) -> None:
    """The far end is the same, and still they are two."""
    port = free_port()
    one, other = (f"{where}:{port}:127.0.0.1:{echo.port}" for where in (first, second))
    tasks.one(local=[one])
    if not clash:
        assert tasks.rows(local=[other]).changed == CHANGES
        assert tasks.rows(local=[one, other]).changed == STAYS
        return
    before = listeners(master)
    failed = tasks.fails(local=[other])
    assert failed["reason"] == "forward_conflict"
    assert listeners(master) == before
    rows = tasks.rows(local=[other], on_conflict="replace")
    assert rows.changed == CHANGES
    assert [one["state"] for one in rows.do["forwards"]] == ["present", "absent"]
    assert listeners(master) != before
    assert tasks.fails(local=[one, other])["reason"] == "forward_conflict"


@pytest.mark.parametrize(
    ("gateway_ports", "expected"),
    [
        ("no", {"{}": LOOPBACK, "*:{}": LOOPBACK, "127.0.0.2:{}": LOOPBACK}),
        (
            "clientspecified",
            {
                "{}": LOOPBACK,
                "LOCALHOST:{}": LOOPBACK,
                "127.0.0.2:{}": {"127.0.0.2"},
                "[::1]:{}": {"::1"},
                "*:{}": EVERYWHERE,
                ":{}": EVERYWHERE,
                "0.0.0.0:{}": {"0.0.0.0"},
            },
        ),
        ("yes", {"{}": EVERYWHERE, "127.0.0.1:{}": EVERYWHERE}),
    ],
)
def test_where_each_remote_spelling_listens(
    make_sshd: Callable[..., Sshd],
    closing: None,
    tasks: Tasks,
    path: Path,
    echo: Echo,
    gateway_ports: str,
    expected: dict[str, set[str]],
) -> None:
    """There the server's GatewayPorts decides."""
    server = make_sshd(options={"GatewayPorts": gateway_ports}, name="gateway")
    path.parent.mkdir(mode=0o700)
    Ssh(server.ssh_config(), "gateway").open(path)
    ports = {spelling: free_port() for spelling in expected}
    remote = [f"{one.format(port)}:127.0.0.1:{echo.port}" for one, port in ports.items()]
    assert tasks.rows(remote=remote).changed == CHANGES
    bound = set().union(*(listeners(process.pid) for process in server.processes()))
    assert bound == {
        (address, ports[spelling]) for spelling, where in expected.items() for address in where
    }
    assert tasks.rows(remote=remote, state="absent").changed == CHANGES
    bound = set().union(*(listeners(process.pid) for process in server.processes()))
    assert not bound
