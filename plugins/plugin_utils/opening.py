# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the connection plugin needs the engine for: once for each bastion, and not for each host.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from ansible_collections.bastion.mux.plugins.module_utils.engine import master, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.module import attempt
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.target import (
    Argument,
    identity_hash,
)
from ansible_collections.bastion.mux.plugins.module_utils.system import processes
from ansible_collections.bastion.mux.plugins.module_utils.system.ssh import Ssh


def opened(
    params: Mapping[str, Any], extra: Sequence[str], log: Callable[[str], None]
) -> dict[str, Any]:
    """Have a bastion's master, as the task ``ssh_master`` would.

    :param extra: further arguments of ssh.
    :returns: the result of the task.
    """
    # One that runs is good, whatever it was opened with.
    return _run({**params, "on_drift": "ignore"}, extra, log)


def closed(control_path: str) -> None:
    """Have no master there, unless it is somebody else's."""
    _run({"control_path": control_path, "state": "absent"}, (), lambda _line: None)


def start(script: str, *arguments: str) -> None:
    """Run a script of this collection in the background, beyond the end of this process."""
    root = script.partition("/ansible_collections/")[0]
    path = os.pathsep.join([root, *filter(None, sys.path)])
    processes.start_detached(
        [sys.executable, script, *arguments], {**os.environ, "PYTHONPATH": path}
    )


def _run(
    params: Mapping[str, Any], extra: Sequence[str], log: Callable[[str], None]
) -> dict[str, Any]:
    checked = ArgumentSpecValidator(spec.SSH_MASTER).validate(dict(params))
    if checked.error_messages:
        return {"failed": True, "reason": "invalid", "msg": "; ".join(checked.error_messages)}
    given = {**checked.validated_parameters, spec.EXTRA_ARGUMENTS: list(extra)}
    return attempt(master.run, given, Context(log=log))


def effective(executable: str, arguments: Sequence[str], host: str) -> str:
    """What tells the way to a host from other ways, where only ssh itself knows."""
    given = [Argument(tuple(arguments), "the target's")]
    return identity_hash(Ssh(executable, lambda _line: None).effective(given, host, None))
