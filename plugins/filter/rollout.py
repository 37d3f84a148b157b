# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.bastion.mux.plugins.plugin_utils import rollout


class FilterModule:
    """What the playbook rollout says of the hosts, and the batches that it makes of them."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "rollout_batches": rollout.batches,
            "rollout_lines": rollout.lines,
            "rollout_page": rollout.page,
        }
