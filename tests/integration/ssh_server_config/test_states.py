# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""States of ssh_server_config: four runs of each, what is in force afterwards, what is left."""

from __future__ import annotations

from tests.integration.ssh_server_config.conftest import Server
from tests.support.tasks import CHANGES, STAYS, Tasks


def test_a_change_is_made_once_and_taken_back_without_a_trace(server: Server, tasks: Tasks) -> None:
    before = server.tree()
    rows = tasks.rows(files=[{"name": "keys/alice", "content": "key\n"}])
    assert rows.changed == CHANGES
    assert rows.check["diff"] == rows.do["diff"]
    assert server.login() == "new"
    assert rows.do["reload"] == "done"
    assert not rows.do["pending"]

    rows = tasks.rows(state="absent", options=None)
    assert rows.changed == CHANGES
    assert server.login() == "old"
    assert server.tree() == before
    assert tasks.rows(state="absent", options=None).changed == STAYS
