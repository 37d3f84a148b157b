# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parameters of every edge, as argument specs, and what they become.

The documentation fragments in ``plugins/doc_fragments`` mirror the specs. Private to the
collection: no promise is made about it.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Mapping, Optional

from ..model import target
from ..model.errors import MuxError
from ..model.known_hosts import KEY_TYPES
from ..model.target import Argument, Target
from ..system.askpass import Secrets

#: What names a master; ``control_path`` alone is enough for one that runs.
MASTER: Dict[str, Dict[str, Any]] = {
    "host": {"type": "str"},
    "port": {"type": "int"},
    "user": {"type": "str"},
    "identity_file": {"type": "path"},
    "jump": {"type": "list", "elements": "str", "default": []},
    "ssh_config": {"type": "path"},
    "ssh_options": {"type": "dict", "default": {}},
    "known_hosts_file": {"type": "path"},
    "host_key_checking": {
        "type": "str",
        "default": "strict",
        "choices": ["strict", "accept-new", "off"],
    },
    "control_path": {"type": "str"},
    "connect_timeout": {"type": "int", "default": 10},
    "timeout": {"type": "int", "default": 10},
    "ssh_executable": {"type": "str", "default": "ssh"},
}

#: The action plugins add the inventory's own ssh arguments; a task has no such parameter.
EXTRA_ARGUMENTS = "_extra_arguments"

#: What may be asked for while a master is opened.
SECRETS: Dict[str, Dict[str, Any]] = {
    "password": {"type": "str", "no_log": True},
    "passphrase": {"type": "str", "no_log": True},
}

_FORWARDS: Dict[str, Dict[str, Any]] = {
    "local": {"type": "list", "elements": "str", "default": []},
    "remote": {"type": "list", "elements": "str", "default": []},
    "dynamic": {"type": "list", "elements": "str", "default": []},
}

SSH_MASTER: Dict[str, Dict[str, Any]] = {
    **MASTER,
    **SECRETS,
    **_FORWARDS,
    "state": {
        "type": "str",
        "default": "present",
        "choices": ["present", "absent", "stopped", "restarted"],
    },
    "persist": {"type": "str", "default": "yes"},
    "alive_interval": {"type": "int", "default": 15},
    "alive_count_max": {"type": "int", "default": 3},
    "forward_agent": {"type": "bool", "default": False},
    "forward_x11": {"type": "bool", "default": False},
    "compression": {"type": "bool"},
    "on_drift": {"type": "str", "default": "restart", "choices": ["restart", "fail", "ignore"]},
    "restore": {"type": "bool", "default": True},
    "drain_timeout": {"type": "int"},
    "force": {"type": "bool", "default": False},
}

SSH_FORWARD: Dict[str, Dict[str, Any]] = {
    **MASTER,
    **SECRETS,
    **_FORWARDS,
    "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
    "exclusive": {"type": "bool", "default": False},
    "on_conflict": {"type": "str", "default": "fail", "choices": ["fail", "replace"]},
    "verify": {"type": "str", "default": "listen", "choices": ["listen", "connect", "none"]},
    "open": {"type": "bool", "default": False},
}

SSH_MASTER_INFO: Dict[str, Dict[str, Any]] = {
    **MASTER,
    "control_dir": {"type": "path"},
    "probe": {"type": "bool", "default": False},
}

SSH_KNOWN_HOSTS: Dict[str, Dict[str, Any]] = {
    **MASTER,
    "through": {"type": "dict", "options": MASTER},
    "hosts": {"type": "list", "elements": "str", "required": True},
    "path": {"type": "path", "default": "~/.ssh/known_hosts"},
    "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
    "fingerprints": {"type": "raw"},
    "hash": {"type": "bool", "default": False},
    # No default: of hosts that go, every key goes.
    "key_types": {"type": "list", "elements": "str", "choices": list(KEY_TYPES), "no_log": False},
    "replace": {"type": "bool", "default": False},
}


def check_times(params: Mapping[str, Any]) -> None:
    """Refuse a time that nobody could keep to.

    :raises MuxError: ``invalid``.
    """
    for name, least in (("timeout", 1), ("drain_timeout", 0)):
        value = params.get(name)
        if value is not None and value < least:
            raise MuxError("invalid", "%s: must be at least %d" % (name, least))


def target_of(params: Mapping[str, Any]) -> Optional[Target]:
    """What the parameters say about the login; ``None`` without a ``host``.

    :raises MuxError: ``invalid``, for a value that no ssh could take.
    """
    check_times(params)
    if params.get("host") is None:
        return None
    return Target(
        host=params["host"],
        port=params.get("port"),
        user=params.get("user"),
        identity_file=_absolute(params.get("identity_file")),
        jump=tuple(params.get("jump") or ()),
        ssh_config=_absolute(params.get("ssh_config")),
        ssh_options=target.option_pairs(params.get("ssh_options") or {}),
        known_hosts_file=_absolute(params.get("known_hosts_file")),
        host_key_checking=params.get("host_key_checking") or "strict",
        connect_timeout=params.get("connect_timeout", 10),
        extra_arguments=tuple(params.get(EXTRA_ARGUMENTS) or ()),
        persist=target.persist_value(params.get("persist") or "yes"),
        alive_interval=params.get("alive_interval", 15),
        alive_count_max=params.get("alive_count_max", 3),
        forward_agent=params.get("forward_agent", False),
        forward_x11=params.get("forward_x11", False),
        compression=params.get("compression"),
    )


def secrets_of(params: Mapping[str, Any]) -> Secrets:
    """The secrets that may be given to ssh."""
    return Secrets(password=params.get("password"), passphrase=params.get("passphrase"))


def arguments_of(login: Target, params: Mapping[str, Any]) -> List[Argument]:
    """What every ssh for this target is given."""
    secrets = secrets_of(params)
    return login.arguments(
        password=secrets.password is not None, passphrase=secrets.passphrase is not None
    )


def _absolute(path: Optional[str]) -> Optional[str]:
    """A path as ssh would read it, from wherever it runs; its tokens and ``~user`` stay."""
    if path is None or path.startswith(("%", "${")) or path == "none":
        return path
    return os.path.abspath(os.path.expanduser(path))
