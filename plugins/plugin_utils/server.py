# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role server gives to ssh_server_config: a bastion's policy in sshd's own words.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.bastion.mux.plugins.plugin_utils.client import merged

#: A name of an account or a group: of a file as well, and no pattern (ssh_config(5), PATTERNS).
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*\$?\Z", re.ASCII)

#: One word of sshd_config, nothing that needs quotes.
_WORD = re.compile(r"[!-~]+\Z")
_NOT_IN_WORDS = frozenset("\"'#\\")

#: serverloop.c and channels.c: the functions that know where a channel leads to, and where a remote
#: forwarding listens. LogVerbose (OpenSSH 8.5) has them say so at any LogLevel.
TELLING = "*:server_request_direct_tcpip():*,*:channel_setup_fwd_listener_tcpip():*"

Dict = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _Match:
    """A Match block, and the accounts that are known to be meant by it."""

    header: str
    names: Sequence[str]
    options: Mapping[str, Any]


def plan(
    jump_users: Sequence[Mapping[str, Any]],
    *,
    login: str,
    directory: str = "/etc/ssh/bastion.mux",
    jump_group: str = "jump",
    operators: Sequence[Mapping[str, Any]] = (),
    operators_forwarding: bool = True,
    expected_clients: int = 100,
    max_startups: str | int | None = None,
    max_sessions: int | None = None,
    alive_interval: int | None = None,
    alive_count_max: int = 3,
    log_level: str = "VERBOSE",
    jump_log_level: str | None = None,
    permit_open: Sequence[str] = (),
    permit_listen: Sequence[str] = (),
    permit_open_groups: Sequence[Mapping[str, Any]] = (),
    groups: Mapping[str, Sequence[str]] | None = None,
    hostvars: Mapping[str, Mapping[str, Any]] | None = None,
    controllers: Sequence[str] = (),
    user_ca: Sequence[str] = (),
    host_certificates: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    jump_options: Mapping[str, Any] | None = None,
) -> Dict:
    """The ``options``, ``matches``, ``files`` and ``expect`` of ssh_server_config.

    ``jump_users`` are those that shall be there.

    :param login: who Ansible logs in as: always an operator, and never a jump user.
    :raises AnsibleFilterError: a value that sshd_config cannot hold as one word or line, or an
        account that would be jump user and operator.
    """
    jumpers = [user for user in jump_users if user.get("state") in (None, "present")]
    staff: list[Any] = [login, *(operator.get("name") for operator in operators)]
    staff = list(dict.fromkeys(staff))
    _check_names(jumpers, staff, jump_group)
    common = [
        *_words("server_permit_open", permit_open),
        *_of_groups(permit_open_groups, groups or {}, hostvars or {}),
    ]
    listen = _listeners("server_permit_listen", permit_listen)
    certificates = _lines("server_host_certificate", host_certificates)
    settings = {
        "LogLevel": log_level,
        "MaxStartups": max_startups or startups(expected_clients),
        "MaxSessions": _or(max_sessions, sessions(expected_clients)),
        "ClientAliveInterval": _or(alive_interval, interval(expected_clients)),
        "ClientAliveCountMax": alive_count_max,
        # For exactly those who need it, to whom the Match blocks give it.
        "AllowTcpForwarding": False,
        "AllowStreamLocalForwarding": False,
        "PerSourcePenaltyExemptList": ",".join(_words("server_controllers", controllers)),
        "TrustedUserCAKeys": f"{directory}/user_ca" if user_ca else None,
        "HostCertificate": [
            f"{directory}/host_certificate_{number}" for number in range(len(certificates))
        ]
        or None,
    }
    everywhere = merged(settings, options)
    matches = [
        *_staff(staff, operators, directory, forwarding=operators_forwarding),
        *_own_places(jumpers, common, listen),
        _Match(
            # Nothing of it for an operator, by whatever way one came into the group.
            f"Group {jump_group} User {','.join('!' + name for name in staff)},*",
            [user["name"] for user in jumpers],
            merged(
                {
                    **_forwarding(common, listen),
                    "AllowStreamLocalForwarding": False,
                    "AllowAgentForwarding": False,
                    "X11Forwarding": False,
                    "PermitTunnel": False,
                    "GatewayPorts": False,
                    # Each of the three is enough for no shell; a connection only forwards.
                    "MaxSessions": 0,
                    "PermitTTY": False,
                    "ForceCommand": "/bin/false",
                    "PermitUserRC": False,
                    "PasswordAuthentication": False,
                    "KbdInteractiveAuthentication": False,
                    # The second one is there while the role logs in with a key of its own.
                    "AuthorizedKeysFile": f"{directory}/keys/%u {directory}/verify/%u",
                    "AuthorizedPrincipalsFile": f"{directory}/principals/%u" if user_ca else None,
                    "LogLevel": jump_log_level or log_level,
                    "LogVerbose": TELLING,
                },
                jump_options,
            ),
        ),
    ]
    ours = {word.lower() for word in settings}
    expected = {word: value for word, value in everywhere.items() if word.lower() in ours}
    return {
        "jump_users": jumpers,
        "options": everywhere,
        "matches": [{"match": one.header, "options": dict(one.options)} for one in matches],
        "files": [
            # With an authority, sshd asks for the account's own name where nothing else is said.
            *_files(jumpers, own_name=bool(user_ca)),
            *_files(operators),
            *([_file("user_ca", _lines("server_user_ca", user_ca))] if user_ca else []),
            *(
                _file(f"host_certificate_{number}", [line])
                for number, line in enumerate(certificates)
            ),
        ],
        "expect": [
            {"connection": {"user": name}, "options": _in_force(name, expected, matches)}
            for name in [*staff, *(user["name"] for user in jumpers)]
        ],
    }


# -- sizes -----------------------------------------------------------------------------------------


def startups(clients: int) -> str:
    """MaxStartups: none is dropped at random while no more than all clients log in at once.

    sshd takes twice as many before it drops every one, and a third of those in between.
    """
    start = max(10, clients)
    return f"{start}:30:{max(100, 2 * start)}"


def sessions(clients: int) -> int:
    """MaxSessions: one connection may carry a session for each client and be no second login."""
    return max(10, clients)


def interval(clients: int) -> int:
    """ClientAliveInterval: the whole fleet together has ten questions a second, if it can be."""
    return min(300, max(15, -(-clients // 10)))


# -- Match blocks ----------------------------------------------------------------------------------


def _staff(
    staff: Sequence[str],
    operators: Sequence[Mapping[str, Any]],
    directory: str,
    *,
    forwarding: bool,
) -> Iterator[_Match]:
    with_keys = [one["name"] for one in operators if one.get("authorized_keys")]
    with_principals = [one["name"] for one in operators if one.get("principals")]
    for names, options in (
        (
            staff if forwarding else [],
            {"AllowTcpForwarding": True, "AllowStreamLocalForwarding": True},
        ),
        (
            with_keys,
            # What sshd reads without it, and ours.
            {
                "AuthorizedKeysFile": ".ssh/authorized_keys .ssh/authorized_keys2"
                f" {directory}/keys/%u"
            },
        ),
        (with_principals, {"AuthorizedPrincipalsFile": f"{directory}/principals/%u"}),
    ):
        if names:
            yield _Match(f"User {','.join(names)}", names, options)


def _own_places(
    jumpers: Iterable[Mapping[str, Any]], common: list[str], listen: list[str]
) -> Iterator[_Match]:
    """Those who may go to more places than all, before the block for all: the first one counts."""
    for user in jumpers:
        name = user["name"]
        own_open = _words(f"permit_open of {name}", user.get("permit_open") or ())
        own_listen = _listeners(f"permit_listen of {name}", user.get("permit_listen") or ())
        if own_open or own_listen:
            options = _forwarding([*common, *own_open], [*listen, *own_listen])
            yield _Match(f"User {name}", [name], options)


def _forwarding(permit_open: Iterable[str], permit_listen: Iterable[str]) -> Dict:
    opened, listened = " ".join(dict.fromkeys(permit_open)), " ".join(dict.fromkeys(permit_listen))
    allowed = {
        (True, True): "yes",
        (True, False): "local",
        (False, True): "remote",
        (False, False): "no",
    }[bool(opened), bool(listened)]
    return {
        "AllowTcpForwarding": allowed,
        "PermitOpen": opened or "none",
        "PermitListen": listened or "none",
    }


def _of_groups(
    wanted: Iterable[Mapping[str, Any]],
    groups: Mapping[str, Sequence[str]],
    hostvars: Mapping[str, Mapping[str, Any]],
) -> Iterator[str]:
    """PermitOpen for the hosts of inventory groups, by name and by address: sshd compares words."""
    for one in wanted:
        if one["group"] not in groups:
            raise AnsibleFilterError(
                f"server_permit_open_groups: the inventory has no group {one['group']!r}"
            )
        for host in groups[one["group"]]:
            variables = hostvars[host]
            ports = one.get("ports") or [variables.get("ansible_port") or 22]
            for name in dict.fromkeys([host, variables.get("ansible_host") or host]):
                for port in ports:
                    yield _word("server_permit_open_groups", f"{_bracketed(name)}:{port}")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _in_force(name: str, everywhere: Mapping[str, Any], matches: Iterable[_Match]) -> Dict:
    """What sshd shall say for this account: the first block that has a keyword counts."""
    found: Dict = {}
    for match in matches:
        if name in match.names:
            found = merged(match.options, found)
    return merged(everywhere, found)


# -- files -----------------------------------------------------------------------------------------


def _files(users: Iterable[Mapping[str, Any]], *, own_name: bool = False) -> Iterator[Dict]:
    for user in users:
        name = user["name"]
        keys = user.get("authorized_keys")
        principals = user.get("principals") or ([name] if own_name else None)
        if keys:
            yield _file(f"keys/{name}", _lines(f"authorized_keys of {name}", keys))
        if principals:
            yield _file(f"principals/{name}", _lines(f"principals of {name}", principals))


def _file(name: str, lines: Iterable[str]) -> Dict:
    return {"name": name, "content": "".join(f"{line}\n" for line in lines), "mode": "0644"}


# -- what is refused -------------------------------------------------------------------------------


def _check_names(
    jumpers: Iterable[Mapping[str, Any]], staff: Iterable[Any], jump_group: str
) -> None:
    named = [
        *(("server_jump_users", user.get("name")) for user in jumpers),
        *(("server_operators", name) for name in staff),
        ("server_jump_group", jump_group),
    ]
    for variable, name in named:
        if not isinstance(name, str) or not _NAME.match(name):
            raise AnsibleFilterError(
                f"{variable}: {name!r} is no name of one word of letters, digits, dots, dashes and"
                " underscores"
            )
    names = [name for variable, name in named if variable == "server_jump_users"]
    for name in names:
        if names.count(name) > 1:
            raise AnsibleFilterError(f"server_jump_users: {name} is there twice")
        if name in staff:
            raise AnsibleFilterError(
                f"server_jump_users: {name} is an operator as well (whoever Ansible logs in as is"
                " one), and would have no shell any more"
            )


def _words(variable: str, values: Iterable[Any]) -> list[str]:
    return [_word(variable, value) for value in values]


def _listeners(variable: str, values: Iterable[Any]) -> list[str]:
    """As sshd itself says them: a port alone is one of every address."""
    return [f"*:{word}" if word.isdigit() else word for word in _words(variable, values)]


def _word(variable: str, value: Any) -> str:
    text = str(value)
    if not _WORD.match(text) or _NOT_IN_WORDS & set(text):
        raise AnsibleFilterError(f"{variable}: {text!r} is not one word of sshd_config")
    return text


def _lines(variable: str, values: Iterable[Any]) -> list[str]:
    lines = [str(value).strip() for value in values]
    for line in lines:
        if not line or not line.isprintable():
            raise AnsibleFilterError(f"{variable}: {line!r} is not one line")
    return lines


def _or(given: int | None, else_: int) -> int:
    return else_ if given is None else given
