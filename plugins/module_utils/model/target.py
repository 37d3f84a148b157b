# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a master connects to and how, as values, and the ssh arguments that say so.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from .characters import refuse_control_characters
from .errors import MuxError

#: Keywords that this collection sets by a parameter of its own, and where to give them instead.
_OWNED_OPTIONS = {
    "controlmaster": "state",
    "controlpath": "control_path",
    "controlpersist": "persist",
    "localforward": "local",
    "remoteforward": "remote",
    "dynamicforward": "dynamic",
    "forkafterauthentication": "persist",
    "sessiontype": "state",
    "stdinnull": "state",
    "proxyjump": "jump",
}

#: Keywords of ``ssh -G`` that no running master depends on: they belong to one login, to the
#: client of a session, or to the forwardings that the plan decides about. SendEnv and SetEnv are
#: not among them: every session gets the master's (clientloop.c, client_session2_setup).
_NOT_OF_THE_MASTER = frozenset(
    "batchmode clearallforwardings connectionattempts connecttimeout controlmaster controlpath"
    " dynamicforward enableescapecommandline escapechar exitonforwardfailure fingerprinthash"
    " forkafterauthentication hashknownhosts host kbdinteractiveauthentication localcommand"
    " localforward loglevel logverbose numberofpasswordprompts passwordauthentication"
    " permitlocalcommand remotecommand remoteforward requesttty sessiontype stdinnull"
    " stricthostkeychecking syslogfacility updatehostkeys visualhostkey warnweakcrypto".split()
)

#: Keywords that ``ssh -G`` prints only where they are set (readconf.c, dump_client_config).
_PRINTED_IF_SET = frozenset(
    "bindaddress bindinterface certificatefile hostkeyalias identityagent kbdinteractivedevices"
    " knownhostscommand pkcs11provider preferredauthentications proxycommand proxyjump sendenv"
    " setenv".split()
)

#: What tells one connection from another: the endpoint and every hop on the way there. Ansible's
#: own name and ``%C`` before OpenSSH 9.6 leave the hops out (ansible#57400, readconf.c).
_IDENTITY = ("user", "hostname", "port", "proxyjump", "proxycommand")

_PERSIST = re.compile(r"(?:[0-9]+[smhdw]?)+\Z", re.IGNORECASE | re.ASCII)
_PERSIST_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_KEYWORD = re.compile(r"[A-Za-z][A-Za-z0-9]*\Z", re.ASCII)


@dataclass(frozen=True)
class Argument:
    """Consecutive arguments of ssh with the reason they are there, for ``-vvv``."""

    values: Tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Target:
    """Everything that decides what one login to a bastion is; validated at construction."""

    host: str
    port: Optional[int] = None
    user: Optional[str] = None
    identity_file: Optional[str] = None
    jump: Tuple[str, ...] = ()
    ssh_config: Optional[str] = None
    ssh_options: Tuple[Tuple[str, str], ...] = ()
    known_hosts_file: Optional[str] = None
    host_key_checking: str = "strict"
    connect_timeout: int = 10
    extra_arguments: Tuple[str, ...] = ()
    persist: str = "yes"
    alive_interval: int = 15
    alive_count_max: int = 3
    forward_agent: bool = False
    forward_x11: bool = False
    compression: Optional[bool] = None

    def __post_init__(self) -> None:
        _refuse_unsafe("host", self.host)
        if self.user is not None:
            _refuse_unsafe("user", self.user)
        for hop in self.jump:
            _refuse_unsafe("jump", hop)
            if "," in hop or any(char.isspace() for char in hop):
                raise MuxError("invalid", "jump: %r is not one hop; give a list" % hop)
        if any(char.isspace() for char in self.host):
            raise MuxError("invalid", "host: %r contains white space" % self.host)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise MuxError("invalid", "port: %d is not between 1 and 65535" % self.port)
        for name in ("identity_file", "ssh_config", "known_hosts_file"):
            refuse_control_characters(name, getattr(self, name) or "")
        for name, least in (("connect_timeout", 1), ("alive_interval", 0), ("alive_count_max", 1)):
            if getattr(self, name) < least:
                raise MuxError("invalid", "%s: must be at least %d" % (name, least))

    def arguments(self, *, password: bool = False, passphrase: bool = False) -> List[Argument]:
        """What every ssh for this target is given, in order: the first value of a keyword wins.

        :param password: whether there is one to answer with.
        :param passphrase: whether there is one to answer with.
        """
        found = []

        def add(reason: str, *values: str) -> None:
            found.append(Argument(values, reason))

        if self.ssh_config is not None:
            add("ssh_config", "-F", self.ssh_config)
        for keyword, value in self.ssh_options:
            add("ssh_options", "-o", "%s=%s" % (keyword, value))
        # A configuration for people may say QUIET: neither a failure nor a lost race would be seen.
        add("what it says is read", "-o", "LogLevel=INFO")
        if self.port is not None:
            add("port", "-p", str(self.port))
        if self.user is not None:
            add("user", "-l", self.user)
        if self.identity_file is not None:
            add("identity_file", "-i", self.identity_file)
        if self.jump:
            add("jump", "-o", "ProxyJump=" + ",".join(self.jump))
        if self.known_hosts_file is not None:
            add("known_hosts_file", "-o", "UserKnownHostsFile=" + quote(self.known_hosts_file))
        checking = {"strict": "yes", "off": "no"}.get(
            self.host_key_checking, self.host_key_checking
        )
        add("host_key_checking", "-o", "StrictHostKeyChecking=" + checking)
        add("connect_timeout", "-o", "ConnectTimeout=%d" % self.connect_timeout)
        add("persist", "-o", "ControlPersist=" + self.persist)
        add("alive_interval", "-o", "ServerAliveInterval=%d" % self.alive_interval)
        add("alive_count_max", "-o", "ServerAliveCountMax=%d" % self.alive_count_max)
        add("forward_agent", "-o", "ForwardAgent=" + _yes_no(self.forward_agent))
        add("forward_x11", "-o", "ForwardX11=" + _yes_no(self.forward_x11))
        if self.compression is not None:
            add("compression", "-o", "Compression=" + _yes_no(self.compression))
        if password or passphrase:
            # One attempt for each secret that was given: asking again would only repeat it.
            add("password or passphrase is given", "-o", "NumberOfPasswordPrompts=1")
        else:
            add("nothing could answer a question", "-o", "BatchMode=yes")
        if passphrase and not password:
            # ssh takes a refused question for an empty password and sends it (readpass.c).
            add("no password is given", "-o", "PasswordAuthentication=no")
            add("no password is given", "-o", "KbdInteractiveAuthentication=no")
        if self.extra_arguments:
            add("ssh arguments of the inventory", *self.extra_arguments)
        return found


def open_arguments(control_path: str, persist: str, *, log: str) -> List[Argument]:
    """What turns an ssh for a target into the start of a master in the background.

    :param log: the file for what it says once it is there.
    """
    arguments = [
        # -S is taken as it stands, -o would want quoting; "%" is ssh's token character.
        Argument(("-S", control_path.replace("%", "%%")), "control_path"),
        Argument(("-E", log), "only its log tells why the server refused a connection"),
        Argument(("-o", "ControlMaster=yes"), "become the master"),
        Argument(("-N", "-T"), "no session of its own"),
        Argument(
            ("-o", "ClearAllForwardings=yes"),
            "LocalForward lines of the configuration would be forwardings nobody declared",
        ),
        Argument(("-o", "RemoteCommand=none"), "-N and a configured RemoteCommand exclude another"),
        Argument(("-o", "PermitLocalCommand=no"), "no session of its own"),
    ]
    if persist in ("yes", "no"):
        # A master of -N stays until it is ended, with ControlPersist or without. With it, what
        # jump hosts say is thrown away (sshconnect.c, ssh_proxy_connect).
        arguments.append(Argument(("-f",), "into the background after the login"))
        arguments.append(
            Argument(("-o", "ControlPersist=no"), "lets jump hosts say why they failed")
        )
    return arguments


def flatten(arguments: Iterable[Argument]) -> List[str]:
    """The plain argument list."""
    return [value for argument in arguments for value in argument.values]


def ssh_args(control_path: str) -> List[str]:
    """The arguments that make any ssh, scp, sftp or rsync share the master, never open one."""
    return [
        "-o",
        "ControlMaster=no",
        "-o",
        "ControlPath=" + quote(control_path.replace("%", "%%")),
    ]


def quote(value: str) -> str:
    """One ssh_config argument, quoted where it must be (readconf.c splits at white space)."""
    if not re.search(r"[\s\"'#\\]", value):
        return value
    return '"%s"' % value.replace("\\", "\\\\").replace('"', '\\"')


def option_pairs(options: Mapping[str, Any]) -> Tuple[Tuple[str, str], ...]:
    """``ssh_options`` as keyword and value, one pair for each value of a list.

    :raises MuxError: ``invalid`` for a keyword that has a parameter of its own or is no keyword.
    """
    pairs = []
    for keyword, value in options.items():
        if not isinstance(keyword, str) or not _KEYWORD.match(keyword):
            raise MuxError("invalid", "ssh_options: %r is not a keyword of ssh_config" % (keyword,))
        if keyword.lower() in _OWNED_OPTIONS:
            raise MuxError(
                "invalid",
                "ssh_options: %s is set by the parameter %s"
                % (keyword, _OWNED_OPTIONS[keyword.lower()]),
            )
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item is None or isinstance(item, (dict, list)):
                raise MuxError("invalid", "ssh_options: %s needs a string" % keyword)
            text = _yes_no(item) if isinstance(item, bool) else str(item)
            refuse_control_characters("ssh_options: " + keyword, text)
            pairs.append((keyword, text))
    return tuple(pairs)


def persist_value(value: str) -> str:
    """ControlPersist, normalised: ``yes``, ``no`` or seconds.

    :raises MuxError: ``invalid`` for anything else.
    """
    lowered = value.strip().lower()
    if lowered in ("yes", "true", "0"):
        # ssh_config(5): "If set to yes or 0, the master stays indefinitely".
        return "yes"
    if lowered in ("no", "false"):
        return "no"
    if not _PERSIST.match(lowered):
        raise MuxError("invalid", "persist: %r is neither yes, no nor a time such as 10m" % value)
    parts = re.findall(r"([0-9]+)([smhdw]?)", lowered)
    seconds = sum(int(number) * _PERSIST_UNITS[unit] for number, unit in parts)
    return str(seconds) if seconds else "yes"


def parse_effective(text: str) -> Dict[str, List[str]]:
    """The output of ``ssh -G``: keyword (in small letters) to its values in order."""
    found: Dict[str, List[str]] = {}
    # Not splitlines: a value may hold what that takes for the end of a line, such as U+2028.
    for line in text.split("\n"):
        keyword, _space, value = line.partition(" ")
        if keyword:
            found.setdefault(keyword.lower(), []).append(value)
    return found


def lasting(effective: Mapping[str, List[str]]) -> Dict[str, List[str]]:
    """The part of ``ssh -G`` that a running master was opened with and cannot change."""
    return {key: values for key, values in effective.items() if key not in _NOT_OF_THE_MASTER}


@dataclass(frozen=True)
class Difference:
    """One keyword that a master was opened with, and that is otherwise now."""

    keyword: str
    before: str
    after: str

    def __str__(self) -> str:
        return "%s: %s -> %s" % (self.keyword, self.before, self.after)


def drift(opened: Mapping[str, List[str]], wanted: Mapping[str, List[str]]) -> List[Difference]:
    """How a running master differs from what is wanted.

    A keyword which only one side knows is no difference: a newer ssh has more of them, all with
    defaults. Except where ``ssh -G`` prints it only if it is set.
    """
    found = []
    for keyword in sorted(set(opened) | set(wanted)):
        unset = ["none"] if keyword in _PRINTED_IF_SET else None
        before = opened.get(keyword, unset)
        after = wanted.get(keyword, unset)
        if before is not None and after is not None and before != after:
            found.append(Difference(keyword, ", ".join(before), ", ".join(after)))
    return found


def identity_hash(effective: Mapping[str, List[str]]) -> str:
    """The default socket's name: one for each user, host, port and whole path of hops."""
    identity = [effective.get(keyword, []) for keyword in _IDENTITY]
    return hashlib.sha256(json.dumps(identity).encode("utf-8")).hexdigest()[:20]


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _refuse_unsafe(name: str, value: str) -> None:
    """What ssh would take for an option, or a shell of a ProxyCommand for more than a name."""
    refuse_control_characters(name, value)
    if not value:
        raise MuxError("invalid", "%s: is empty" % name)
    if value.startswith("-"):
        raise MuxError("invalid", "%s: %r begins with a dash" % (name, value))
