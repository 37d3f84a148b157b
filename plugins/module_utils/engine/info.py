# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master_info: masters as they are, of one socket or of a whole directory.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional

from ..model import connection
from ..model.errors import MuxError
from ..model.forward import LOCAL, Forward
from ..protocol.errors import ProtocolError
from ..protocol.messages import INFO_EXTENSION
from ..system import control_dir, listeners
from ..system.mux_client import MuxClientError
from ..system.ssh import Ssh
from . import forwarding, lifecycle, observe, spec
from .master import describe
from .observe import Observation
from .place import DEFAULT_DIRECTORY, Context, Place, locate

#: Sockets that are asked at once: those which do not answer then cost one timeout together.
_AT_ONCE = 256

#: Names of sockets that are there for a moment: connections are set up through them.
_NO_MASTERS = ".way-"


def run(params: Mapping[str, Any], context: Context) -> Dict[str, Any]:
    """Describe one master, or every socket of ``control_dir``.

    :returns: what the module returns.
    :raises MuxError: ``invalid`` or ``control_dir_insecure``.
    """
    spec.check_times(params)
    named = params.get("host") is not None or params.get("control_path") is not None
    if named and params.get("control_dir") is not None:
        raise MuxError("invalid", "control_dir: goes without host and control_path")
    places = [locate(params, context)] if named else _sockets(params, context)
    # One look at all processes instead of one for each.
    shared = replace(context, listening=listeners.snapshot())
    with ThreadPoolExecutor(max_workers=max(1, min(len(places), _AT_ONCE))) as threads:
        masters = list(
            threads.map(lambda place: _describe(place, shared, probe=params["probe"]), places)
        )
    return {"changed": False, "masters": [_told(one) for one in masters]}


def _told(described: Dict[str, Any]) -> Dict[str, Any]:
    """A name that is no text is spelled: Ansible takes no result of a module that holds it."""
    return {
        key: os.fsencode(value).decode("utf-8", "backslashreplace")
        if isinstance(value, str)
        else value
        for key, value in described.items()
    }


def _sockets(params: Mapping[str, Any], context: Context) -> List[Place]:
    directory = os.path.abspath(os.path.expanduser(params.get("control_dir") or DEFAULT_DIRECTORY))
    if not control_dir.check(directory):
        return []
    ssh = Ssh(params["ssh_executable"], context.log)
    with os.scandir(directory) as entries:
        names = [entry.path for entry in entries if _is_socket(entry)]
    return [Place(path, ssh, float(params["timeout"])) for path in sorted(names)]


def _is_socket(entry: os.DirEntry[str]) -> bool:
    try:
        mode = entry.stat(follow_symlinks=False).st_mode
        return stat.S_ISSOCK(mode) and not entry.name.startswith(_NO_MASTERS)
    except OSError:
        return False


def _describe(place: Place, context: Context, *, probe: bool) -> Dict[str, Any]:
    try:
        found = observe.observe(place.control_path, context, timeout=place.timeout)
    except MuxError as error:
        found = Observation(observe.ABSENT)
        return {**describe(place, found), "stale": False, "reason": error.reason, "msg": str(error)}
    described = {**describe(place, found), "stale": found.condition == observe.STALE}
    if found.alive:
        told = _connection(place, context)
        if told is not None:
            described["connection"] = told
        if probe:
            _probe(place, found, described, context)
    return described


def _connection(place: Place, context: Context) -> Optional[Dict[str, str]]:
    """What OpenSSH 10.3 and later tells of the connection; ``None`` from an older master."""
    try:
        with context.connect(place.control_path, timeout=place.timeout) as client:
            if INFO_EXTENSION not in client.extensions:
                return None
            return connection.parse(client.info("connection"))
    except (MuxClientError, ProtocolError):
        return None


def _probe(place: Place, found: Observation, described: Dict[str, Any], context: Context) -> None:
    """Test the master over its network, and each local forwarding to its far end."""
    dead = lifecycle.cut_off(place.control_path, context, timeout=place.timeout)
    described["probe"] = {"reachable": dead is None, "msg": dead}
    if dead is not None:
        described["reason"] = "unreachable"
        return
    openssh = None if found.ledger is None else found.ledger.openssh
    wanted = [record.forward for record in found.records if record.forward.type == LOCAL]
    failures: Dict[Forward, str] = {
        failure.forward: failure.message
        for failure in forwarding.unreachable(
            wanted, place.control_path, context, openssh=openssh, timeout=place.timeout
        )
    }
    for record, result in zip(found.records, described["forwards"]):
        if record.forward.type == LOCAL and forwarding.can_be_tried(record.forward, openssh):
            message = failures.get(record.forward)
            result["probe"] = {"reachable": message is None, "msg": message}
