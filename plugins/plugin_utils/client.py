# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role client gives to ssh: entries of its configuration, and known hosts.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.bastion.mux.plugins.module_utils.model import control_path
from ansible_collections.bastion.mux.plugins.module_utils.model.target import quote

#: Where ssh looks besides users' own (ssh_config(5), GlobalKnownHostsFile).
_GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"

#: One word for a Host line and for ProxyJump, and no pattern.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\Z", re.ASCII)
_KEY = re.compile(r"[a-z0-9@.-]+ [A-Za-z0-9+/=]+(?: .*)?\Z", re.ASCII)

#: A socket that everybody has a directory for, if anybody, and the condition for one which ssh can
#: bind on any system: otherwise it would end with an error. Whatever shell runs it.
_SOCKET = "~/.ssh/mux-%C"
_ROOM = control_path.limit("any") - len(_SOCKET.replace("~", "").replace("%C", "C" * 40))
_HAS_ROOM = f"test -d '%d/.ssh' && expr '%d' : '.*' '<=' {_ROOM}"

Dict = dict[str, Any]


def hosts(
    bastions: Sequence[Mapping[str, Any]],
    *,
    control_dir: str | None = None,
    control_persist: str | bool = "10m",
    alive_interval: int = 15,
    alive_count_max: int = 3,
    known_hosts_path: str | None = None,
) -> list[Dict]:
    """The ``hosts`` of ssh_client_config: the bastions first, then what is reached through them.

    :param control_dir: ``None``: sockets lie in ``~/.ssh``, where a user has that.
    :raises AnsibleFilterError: there is no bastion, a name could be none, or is there twice.
    """
    if not bastions:
        raise AnsibleFilterError("client_bastions: there is none")
    bastions = _checked(bastions)
    known: Dict = {}
    if known_hosts_path and known_hosts(bastions):
        known["GlobalKnownHostsFile"] = f"{quote(known_hosts_path)} {_GLOBAL_KNOWN_HOSTS}"
    # A bastion that matches a pattern is not reached through itself or another.
    direct = [f"!{name}" for name in dict.fromkeys(n for one in bastions for n in _names(one))]
    entries: list[Dict] = []
    targets: list[Dict] = []
    for bastion in bastions:
        persist = bastion.get("control_persist")
        sharing = {
            "ControlMaster": "auto",
            "ControlPath": f"{control_dir}/%C" if control_dir else _SOCKET,
            # YAML makes a boolean of a bare no.
            "ControlPersist": control_persist if persist is None else persist,
        }
        settings = {
            # Said even where it is what ssh takes without: a user's own entry of that name may
            # say otherwise.
            "HostName": bastion.get("hostname") or bastion["name"],
            "Port": bastion.get("port") or 22,
            "User": bastion.get("user"),
            "IdentityFile": bastion.get("identity_file"),
            "ProxyJump": bastion.get("jump"),
            **(sharing if control_dir else {}),
            "ServerAliveInterval": alive_interval,
            "ServerAliveCountMax": alive_count_max,
            "ForwardAgent": bool(bastion.get("forward_agent")),
            **known,
            "StrictHostKeyChecking": True if _keys(bastion) else None,
        }
        names = " ".join([bastion["name"], *(bastion.get("aliases") or [])])
        given = bastion.get("options")
        entries.append({"host": names, "options": merged(settings, given)})
        if not control_dir:
            condition = f'originalhost {names.replace(" ", ",")} exec "{_HAS_ROOM}"'
            # What is given came first, and counts.
            entries.append({"match": condition, "options": sharing})
        if bastion.get("patterns"):
            settings = {"ProxyJump": bastion["name"], **known}
            targets.append(
                {
                    "host": " ".join([*bastion["patterns"], *direct]),
                    "options": merged(settings, bastion.get("pattern_options")),
                }
            )
    return entries + targets


def known_hosts(bastions: Sequence[Mapping[str, Any]]) -> str:
    """The text of a known_hosts file; empty where no bastion has a key."""
    return "".join(f"{line}\n" for bastion in _checked(bastions) for line in _known(bastion))


def _known(bastion: Mapping[str, Any]) -> Iterator[str]:
    host = bastion.get("hostname") or bastion["name"]
    port = bastion.get("port") or 22
    # sshconnect.c, get_hostfile_hostname_ipaddr: a port of its own is part of the name.
    name = host if int(port) == 22 else f"[{host}]:{port}"
    for key in bastion.get("host_keys") or []:
        yield f"{name} {_key(key)}"
    for key in bastion.get("host_ca") or []:
        patterns = dict.fromkeys([name, *(bastion.get("host_ca_patterns") or [])])
        yield f"@cert-authority {','.join(patterns)} {_key(key)}"


def _key(text: str) -> str:
    key = str(text).strip()
    if not _KEY.match(key):
        raise AnsibleFilterError(f"client_bastions: {key!r} is not a public key of one line")
    return key


def _keys(bastion: Mapping[str, Any]) -> bool:
    return bool(bastion.get("host_keys") or bastion.get("host_ca"))


def _names(bastion: Mapping[str, Any]) -> list[str]:
    names = [bastion["name"], *(bastion.get("aliases") or []), bastion.get("hostname")]
    return [name for name in names if name]


def _checked(bastions: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    seen: set[str] = set()
    for bastion in bastions:
        for name in [bastion.get("name"), *(bastion.get("aliases") or [])]:
            if not isinstance(name, str) or not _NAME.match(name):
                raise AnsibleFilterError(
                    f"client_bastions: the name {name!r} must be one word of letters, digits,"
                    " dots, dashes and underscores"
                )
            if name in seen:
                raise AnsibleFilterError(f"client_bastions: the name {name!r} is there twice")
            seen.add(name)
    return bastions


def merged(settings: Mapping[str, Any], given: Mapping[str, Any] | None) -> Dict:
    """Settings, less those that are not there, with what is given in their place."""
    given = given or {}
    words = {word.lower() for word in given}
    kept = {
        word: value
        for word, value in settings.items()
        if value not in (None, "") and word.lower() not in words
    }
    return {**kept, **given}
