# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said beside the collection's own client is what that one says."""

from __future__ import annotations

from ansible_collections.bastion.mux.plugins.module_utils.engine import info, lifecycle
from ansible_collections.bastion.mux.plugins.module_utils.protocol import messages
from ansible_collections.bastion.mux.plugins.module_utils.protocol.messages import WireForward
from ansible_collections.bastion.mux.plugins.module_utils.system import master_log
from ansible_collections.bastion.mux.plugins.plugin_utils import bastions, way


def test_its_messages() -> None:
    assert way.hello() == messages.Hello(messages.VERSION, {}).encode()
    path = "/run/ü.sock"
    wire = WireForward(messages.LOCAL, path, messages.STREAMLOCAL, "10.0.0.1", 22)
    said = [
        way.forward(kind, 7, path.encode(), b"10.0.0.1", 22)
        for kind in (way._OPEN_FORWARD, way._CLOSE_FORWARD)
    ]
    assert said == [messages.OpenForward(wire).encode(7), messages.CloseForward(wire).encode(7)]
    stdio = messages.NewStdioForward("10.0.0.1", 22).encode(7)
    assert way.stdio_forward(stdio[4:]) == (b"10.0.0.1", 22)
    assert messages.decode_reply(way.alive(7, 1)[4:]) == (7, messages.Alive(1))
    assert way.alive_check(7) == messages.AliveCheck().encode(7)
    assert messages.decode_reply(way.u32(way._OK) + way.u32(7)) == (7, messages.Ok())


def test_its_files() -> None:
    assert master_log.path_of("/a") == "/a" + way.LOG
    assert info._NO_MASTERS == way.PREFIX
    assert {bastions.SLOTS, way.NO_UNIX} == set(lifecycle._OF_CONNECTIONS)
