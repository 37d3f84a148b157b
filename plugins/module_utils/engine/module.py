# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module of this collection does around the engine.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ..model.errors import MuxError
from ..protocol.errors import ProtocolError
from ..system.mux_client import (
    MuxClientError,
    MuxClosed,
    MuxTimeout,
    SocketMissing,
    SocketStale,
)
from ..system.processes import PSUTIL_ERROR
from .place import Context

Run = Callable[[Mapping[str, Any], Context], Dict[str, Any]]


def attempt(run: Run, params: Mapping[str, Any], context: Context) -> Dict[str, Any]:
    """Call the engine; whatever goes wrong is a failed result with a ``reason``, never a traceback.

    :returns: the result of the task, with ``failed`` where it failed.
    """
    if PSUTIL_ERROR is not None:
        missing = {"msg": missing_required_lib("psutil"), "exception": PSUTIL_ERROR}
        return {"failed": True, "changed": False, "reason": "invalid", **missing}
    try:
        return run(params, context)
    except (MuxError, MuxClientError, ProtocolError, OSError) as error:
        found = _translated(error)
    return {
        "failed": True,
        "changed": False,
        **found.details,
        "msg": found.message,
        "reason": found.reason,
    }


def _translated(error: Exception) -> MuxError:
    """What a failure below the engine means to a task that had already found its master."""
    if isinstance(error, MuxError):
        return error
    if isinstance(error, MuxTimeout):
        return MuxError("timeout", "the master did not answer in time: %s" % error)
    if isinstance(error, (MuxClosed, SocketMissing, SocketStale)):
        return MuxError("not_running", "the master ended in the meantime: %s" % error)
    # A full disk, a file that may not be read, a peer that does not speak the protocol.
    return MuxError("invalid", str(error))


def run_module(argument_spec: Dict[str, Dict[str, Any]], run: Run) -> None:
    """Be a module: parse the arguments, call the engine, exit."""
    module = AnsibleModule(argument_spec=argument_spec, supports_check_mode=True)
    context = Context(check_mode=module.check_mode, log=module.debug)
    result = attempt(run, module.params, context)
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)
