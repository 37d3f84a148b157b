# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.bastion.mux.plugins.module_utils.engine import info, spec
from ansible_collections.bastion.mux.plugins.plugin_utils.mux_action import MuxAction


class ActionModule(MuxAction):
    """Runs ssh_master_info in the controller's worker process."""

    engine_run = staticmethod(info.run)
    argument_spec = spec.SSH_MASTER_INFO
