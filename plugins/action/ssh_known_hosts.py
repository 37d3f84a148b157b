# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.bastion.mux.plugins.module_utils.engine import known_hosts, spec
from ansible_collections.bastion.mux.plugins.plugin_utils.mux_action import MuxAction


class ActionModule(MuxAction):
    """Runs ssh_known_hosts in the controller's worker process."""

    engine_run = staticmethod(known_hosts.run)
    argument_spec = spec.SSH_KNOWN_HOSTS

    def complete(self, arguments: dict[str, Any], task_vars: Mapping[str, Any]) -> list[str]:
        """No master is needed to take hosts out, and ``through`` names one by itself."""
        if arguments.get("through") is not None or arguments.get("state") == "absent":
            return []
        return super().complete(arguments, task_vars)
