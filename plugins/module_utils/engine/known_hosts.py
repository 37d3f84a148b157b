# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_known_hosts: the keys of hosts that only a bastion reaches, in a known_hosts file.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from ansible.module_utils.basic import missing_required_lib

from ..model import known_hosts as model
from ..model.errors import MuxError
from ..model.known_hosts import KEY_TYPES, Host, HostKey, KeyPlan, Plan
from ..protocol.errors import ProtocolError
from ..system import host_keys, ledger_file, user_file
from ..system.mux_client import MuxClient, MuxClientError, MuxRefused, MuxTimeout
from . import far_end, observe
from .place import Context, locate

#: How many hosts are asked at once. Each takes a thread, a channel of the master and two
#: descriptors here; more would only wait for each other.
WORKERS = 32

#: Which reason a task fails with whose hosts fail with several: what must not be overlooked.
_GRAVEST = ("host_key_changed", "host_key_unknown", "destination_unreachable")


#: Nobody holds the lock for longer than it takes to write a file.
_LOCK_TIMEOUT = 30.0


@dataclass(frozen=True)
class Silent:
    """Why a host showed no key.

    :ivar refused: whether the server refused the connection to it, for a reason of its own.
    """

    host: Host
    message: str
    refused: bool = False


Shown = Dict[Host, Tuple[HostKey, ...]]


def run(params: Mapping[str, Any], context: Context) -> Dict[str, Any]:
    """Bring hosts into a known_hosts file, or out of it.

    :returns: what the module returns.
    :raises MuxError: a host shows no key, or one that may not be taken; the file is as it was.
    """
    path = os.path.realpath(os.path.expanduser(params["path"]))
    hosts = model.parse_hosts(params["hosts"])
    if params["state"] == "absent":
        types = params.get("key_types")
        wire_types = None if types is None else [one for name in types for one in KEY_TYPES[name]]

        def decide(content: bytes) -> Plan:
            return model.plan_absent(content, hosts, types=wire_types)
    else:
        pins = model.parse_pins(params.get("fingerprints"), hosts)
        shown, silent = _ask(params, hosts, context)
        salt = (lambda: os.urandom(model.SALT_LENGTH)) if params["hash"] else None

        def decide(content: bytes) -> Plan:
            plan = model.plan_present(
                content, shown, pins=pins, replace=params["replace"], salt=salt
            )
            _fail(plan, hosts, silent, path)
            return plan

    plan = decide(user_file.read(path) or b"")
    if plan.actions and not context.check_mode:
        user_file.make_directory(path)
        # Another run may have changed it meanwhile: decide again once it is kept out.
        with ledger_file.lock(path, timeout=_LOCK_TIMEOUT):
            plan = decide(user_file.read(path) or b"")
            if plan.actions:
                user_file.replace(path, plan.after)
    return {
        "changed": plan.actions,
        "path": path,
        "hosts": _results(hosts, plan.keys),
        "diff": {
            "before_header": path,
            "after_header": path,
            "before": plan.before.decode("utf-8", "backslashreplace"),
            "after": plan.after.decode("utf-8", "backslashreplace"),
        },
    }


def _ask(
    params: Mapping[str, Any], hosts: Sequence[Host], context: Context
) -> Tuple[Shown, List[Silent]]:
    """Ask all hosts for their keys through the master that ``through`` names."""
    if host_keys.PARAMIKO_ERROR is not None:
        raise MuxError("invalid", missing_required_lib("paramiko"))
    if not hosts:
        return {}, []
    timeout = params["timeout"]
    if timeout <= 0:
        raise MuxError("invalid", "timeout: must be positive")
    # Without it the task's own parameters name the master, as they do for every other module.
    place = locate(params.get("through") or params, context)
    found = observe.observe(place.control_path, context, timeout=place.timeout)
    if found.condition == observe.WEDGED:
        raise MuxError("wedged", "the master at %s does not answer" % place.control_path)
    if not found.alive:
        raise MuxError(
            "not_running",
            "no master at %s; open one with ssh_master" % place.control_path,
            control_path=place.control_path,
        )
    connect = context.connector(place.control_path, float(timeout))
    shown, silent = gather(
        connect, hosts, params.get("key_types") or list(KEY_TYPES), timeout=float(timeout)
    )

    def explained(one: Silent) -> Silent:
        if not one.refused:
            return one
        why = far_end.refusal(place.control_path, connect, one.host.name, one.host.port)
        return one if why is None else Silent(one.host, "%s: %s" % (one.host, why))

    return shown, [explained(one) for one in silent]


def gather(
    connect: Callable[[], MuxClient],
    hosts: Sequence[Host],
    key_types: Sequence[str],
    *,
    timeout: float,
    workers: int = WORKERS,
) -> Tuple[Shown, List[Silent]]:
    """Ask every host for its key of every type; one that does not answer ends no other.

    :param connect: makes a connection to the master. A stdio forwarding takes one for itself.
    :param timeout: seconds for connecting to a host, and again for each exchange of keys.
    :param workers: how many hosts are asked at once; one host is asked one thing at a time, so
        that its MaxStartups is no matter.
    """

    def ask(host: Host) -> Union[Silent, Tuple[HostKey, ...]]:
        try:
            return _keys_of(connect, host, key_types, timeout)
        except (MuxClientError, ProtocolError, host_keys.NoHostKey, OSError) as error:
            why = str(error)
            if isinstance(error, MuxTimeout):
                why = "no connection within %g seconds" % timeout
            return Silent(host, "%s: %s" % (host, why), isinstance(error, MuxRefused))

    shown: Shown = {}
    silent: List[Silent] = []
    with ThreadPoolExecutor(max(1, min(workers, len(hosts)))) as pool:
        for host, answer in zip(hosts, pool.map(ask, hosts)):
            if isinstance(answer, Silent):
                silent.append(answer)
            else:
                shown[host] = answer
    return shown, silent


def _keys_of(
    connect: Callable[[], MuxClient], host: Host, key_types: Iterable[str], timeout: float
) -> Tuple[HostKey, ...]:
    keys = []
    for key_type in key_types:
        with far_end.reached(connect, host.name, host.port) as stream:
            key = host_keys.ask(stream, key_type, timeout=timeout)
        if key is not None:
            keys.append(key)
    if not keys:
        raise host_keys.NoHostKey("it has no host key of type %s" % ", ".join(key_types))
    return tuple(keys)


def _fail(plan: Plan, hosts: Sequence[Host], silent: Sequence[Silent], path: str) -> None:
    """Fail with all that is wrong, if anything is."""
    troubles = [(one.host, "destination_unreachable", one.message) for one in silent]
    troubles += [(one.host, one.reason, one.message) for one in plan.refusals]
    if not troubles:
        return
    reasons = {reason for _host, reason, _message in troubles}
    by_host: Dict[Host, Dict[str, str]] = {}
    for host, reason, message in troubles:
        by_host.setdefault(host, {"reason": reason, "msg": message})
    messages = [message for _host, _reason, message in troubles]
    raise MuxError(
        next(reason for reason in _GRAVEST if reason in reasons),
        "%d of %d hosts failed, nothing was written: %s"
        % (len(by_host), len(hosts), "; ".join(messages)),
        path=path,
        hosts=_results(hosts, plan.keys, by_host),
    )


def _results(
    hosts: Sequence[Host],
    keys: Sequence[KeyPlan],
    failed: Optional[Mapping[Host, Mapping[str, str]]] = None,
) -> List[Dict[str, Any]]:
    """The ``hosts`` return value."""
    of_host: Dict[Host, List[Dict[str, Any]]] = {host: [] for host in hosts}
    for one in keys:
        of_host[one.host].append(one.as_dict())
    return [
        {
            "host": host.name,
            "port": host.port,
            "keys": of_host[host],
            **(failed or {}).get(host, {}),
        }
        for host in hosts
    ]
