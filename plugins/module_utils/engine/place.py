# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which socket the parameters mean.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import os
import pwd
import re
import sys
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ..model import control_path as control_paths
from ..model.errors import MuxError
from ..model.target import Argument, Target, identity_hash
from ..system import control_dir, listeners
from ..system.askpass import Secrets
from ..system.listeners import Listener
from ..system.mux_client import MuxClient
from ..system.ssh import Log, Ssh
from . import spec

#: Where sockets lie that no configuration places elsewhere.
DEFAULT_DIRECTORY = "~/.ansible/mux"


Listening = Callable[[int], Optional[Tuple[Listener, ...]]]


def _silent(line: str) -> None:
    """Log nothing."""


@dataclass(frozen=True)
class Context:
    """What an edge gives the engine.

    :ivar log: takes a line for ``-vvv``.
    :ivar run_key: a secret of this run of Ansible, and ``round`` what tells one attempt of one of
        its tasks from all others: its hosts share a login that failed. Both empty where unknown.
    :ivar connect: opens a connection to a master; another one in unit tests.
    :ivar listening: the listening sockets of a process.
    """

    check_mode: bool = False
    log: Log = _silent
    run_key: bytes = field(default=b"", repr=False)
    round: str = ""
    connect: Callable[..., MuxClient] = MuxClient.connect
    listening: Listening = listeners.listening

    def connector(self, control_path: str, timeout: float) -> Callable[[], MuxClient]:
        """A function that connects to one master."""
        return lambda: self.connect(control_path, timeout=timeout)


@dataclass(frozen=True)
class Place:
    """One master's socket and how to log in to it.

    :ivar target: ``None`` where ``control_path`` alone names the master.
    :ivar arguments: what every ssh for the target is given.
    :ivar effective: ``ssh -G`` for the target; empty where nothing asked for it.
    :ivar timeout: the bound on every answer of the master, in seconds.
    """

    control_path: str
    ssh: Ssh
    timeout: float
    target: Optional[Target] = None
    arguments: Sequence[Argument] = ()
    secrets: Secrets = field(default_factory=Secrets)
    effective: Mapping[str, List[str]] = field(default_factory=dict)

    def summary(self) -> Dict[str, Any]:
        """What the target says of the master: the part of ``master`` that is known without it."""
        if self.target is None:
            return {"host": None, "port": None, "user": None, "jump": [], "persist": None}
        port = self.effective.get("port", [self.target.port])[0]
        user = self.effective.get("user", [self.target.user])[0]
        hops = self.effective.get("proxyjump", [",".join(self.target.jump)])[0] or "none"
        return {
            "host": self.target.host,
            "port": None if port is None else int(port),
            "user": user,
            "jump": [] if hops == "none" else hops.split(","),
            "persist": self.target.persist,
        }


def locate(params: Mapping[str, Any], context: Context, *, login: bool = False) -> Place:
    """Find the socket that the parameters name.

    :param login: whether a master may have to be opened: asks ssh for all of its configuration.
    :raises MuxError: ``invalid``, ``control_path_too_long``, ``control_dir_insecure``,
        ``ssh_missing``.
    """
    given = params.get("control_path")
    if given == "":
        raise MuxError("invalid", "control_path: is empty")
    target = spec.target_of(params)
    ssh = Ssh(params.get("ssh_executable") or "ssh", context.log)
    if given is None and target is None:
        raise MuxError("invalid", "host or control_path is needed to name a master")
    arguments = [] if target is None else spec.arguments_of(target, params)
    effective: Dict[str, List[str]] = {}
    if target is not None and (login or given is None or _has_tokens(given)):
        effective = ssh.effective(arguments, target.host, given)
        path = effective.get("controlpath", ["none"])[0]
        if path == "none" and given is not None:
            raise MuxError("invalid", "control_path: none is no socket")
        if path == "none":
            path = os.path.join(os.path.expanduser(DEFAULT_DIRECTORY), identity_hash(effective))
    else:
        path = _expand(str(given))
    path = os.path.normpath(path) if path.startswith("/") else path
    control_paths.check(path, sys.platform)
    control_dir.check(os.path.dirname(path))
    return Place(
        control_path=path,
        ssh=ssh,
        timeout=float(params.get("timeout") or 10),
        target=target,
        arguments=arguments,
        secrets=spec.secrets_of(params),
        effective=effective,
    )


def _has_tokens(path: str) -> bool:
    return "%" in path or "${" in path or path.startswith("~")


def _expand(path: str) -> str:
    """Expand what needs no host as ssh does it, where none is given.

    :raises MuxError: ``invalid`` for what needs one.
    """
    if path.startswith("~"):
        # ssh asks the user database and not HOME (misc.c, tilde_expand).
        name, slash, rest = path[1:].partition("/")
        try:
            user = pwd.getpwnam(name) if name else pwd.getpwuid(os.getuid())
        except KeyError:
            raise MuxError("invalid", "control_path: there is no user %r" % name) from None
        path = user.pw_dir + slash + rest
    parts = re.split(r"\$\{([^}]*)\}", path)
    for index in range(1, len(parts), 2):
        if parts[index] not in os.environ:
            raise MuxError("invalid", "control_path: %s is not set" % parts[index])
        parts[index] = os.environ[parts[index]]
    path = "".join(parts)
    if "%" in path.replace("%%", ""):
        raise MuxError("invalid", "control_path: %r has tokens that need a host" % path)
    return path.replace("%%", "%")
