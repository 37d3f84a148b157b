# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: ssh
author:
  - bastion.mux contributors (@bastion-mux)
short_description: Connect over SSH, through a bastion that is logged in to once
version_added: 0.1.0
description:
  - The connection plugin P(ansible.builtin.ssh#connection) with a bastion as a setting.
    Whatever that plugin does and can be told, this one does and can be told in the same way; it
    runs the code of the ansible-core that is installed.
  - With O(bastion), the bastion's master is opened before the first host needs it - one login,
    whatever C(forks) is and however many playbooks run - and every host's connection goes through
    it. No process per host stays for that.
  - Without O(bastion) it differs from P(ansible.builtin.ssh#connection) in the name of the control
    socket alone, which stands for the whole way to the host. Two hosts of one address behind two
    bastions never share one.
notes:
  - The master is the one that M(bastion.mux.ssh_master) opens with the same parameters; a task of
    it beforehand is not needed. M(bastion.mux.ssh_master_info) shows it, and
    M(bastion.mux.ssh_forward) forwards ports through it.
  - A C(ProxyJump) or C(ProxyCommand) of the ssh configuration or of C(ansible_ssh_common_args) does
    not count for a host that has a O(bastion), and C(-J) there is an error of ssh.
  - Where your ssh configuration asks programs or the network (C(Match exec),
    C(CanonicalizeHostname)), ssh is asked in each task which way it means now. That takes a tenth
    of a second.
requirements:
  - OpenSSH client 8.4 or newer
  - psutil (Python library)
extends_documentation_fragment:
  # The first one that has an option counts: builtin's own pipelining has further names.
  - bastion.mux.ssh_connection
  - connection_pipelining
options:
  bastion:
    description:
      - The host through which this one is reached.
      - A name, V(user@host:port) or V([::1]:22). What it does not say comes from your ssh
        configuration.
      - The name of a host of the inventory stands for that host, with its C(ansible_host),
        C(ansible_port), C(ansible_user), C(ansible_ssh_private_key_file), C(ansible_password),
        C(ansible_ssh_common_args) and C(ansible_ssh_extra_args); a C(ProxyJump) there is the way to
        the bastion. As for every host, C(--user) and C(--ask-pass) stand in for what is not there.
        It is not reached through itself, so that the variable may be one of a group that it belongs
        to.
      - A list, or names with commas between them, are several bastions; O(bastion_strategy) says
        which one a host is reached through.
    type: raw
    ini:
      - section: ssh_connection
        key: bastion
    env:
      - name: ANSIBLE_BASTION
    vars:
      - name: ansible_bastion
  bastion_strategy:
    description:
      - Which one of several bastions a host is reached through.
      - With V(failover), the first one that can be logged in to. One that could not is tried again
        a minute later.
      - With V(spread), hosts are divided among them by their names, and each goes on with the next
        one where its own cannot be logged in to.
    type: str
    choices: [failover, spread]
    default: failover
    ini:
      - section: ssh_connection
        key: bastion_strategy
    env:
      - name: ANSIBLE_BASTION_STRATEGY
    vars:
      - name: ansible_bastion_strategy
  bastion_persist:
    description:
      - How long the bastion's master stays.
      - V(yes) is until somebody ends it, as O(bastion.mux.ssh_master#module:persist) has it.
      - A time such as V(10m) is that long after the last connection through it has ended.
      - With V(no), a master that this plugin opened is closed when the last run of Ansible that
        uses it has ended, however it ended.
    type: str
    default: 'yes'
    ini:
      - section: ssh_connection
        key: bastion_persist
    env:
      - name: ANSIBLE_BASTION_PERSIST
    vars:
      - name: ansible_bastion_persist
  bastion_max_setups:
    description:
      - How many connections through one bastion are set up at the same time, by all processes of
        this user on this machine. Further ones wait in order.
      - The default is what an SSH server with the default C(MaxStartups) takes in any case.
    type: int
    default: 10
    ini:
      - section: ssh_connection
        key: bastion_max_setups
    env:
      - name: ANSIBLE_BASTION_MAX_SETUPS
    vars:
      - name: ansible_bastion_max_setups
  bastion_max_channels:
    description:
      - How many connections may go through one bastion's master. Further ones wait in order for one
        to end, twelve times O(timeout), and fail then.
      - The default is what an SSH server takes that may open 1024 files for a connection, as most
        do. V(0) is no limit.
      - They are counted on Linux alone.
    type: int
    default: 1000
    ini:
      - section: ssh_connection
        key: bastion_max_channels
    env:
      - name: ANSIBLE_BASTION_MAX_CHANNELS
    vars:
      - name: ansible_bastion_max_channels
"""

EXAMPLES = r"""
# An inventory. The bastion is a host of it, the others are reached through it:
#   ansible all -i inventory.yml -m ansible.builtin.ping
all:
  vars:
    ansible_connection: bastion.mux.ssh

bastions:
  hosts:
    bastion:
      ansible_host: bastion.example.com
      ansible_user: jump
    # For whatever the other one cannot do at the moment.
    spare:
      ansible_host: spare.example.com
      ansible_user: jump

web:
  hosts:
    web1:
      ansible_host: 10.0.1.1
    web2:
      ansible_host: 10.0.1.2
  vars:
    ansible_bastion: bastion

# The first one that can be logged in to. With "spread", each takes a part of the hosts.
database:
  hosts:
    db1:
      ansible_host: 10.0.2.1
  vars:
    ansible_bastion: [bastion, spare]
    ansible_bastion_strategy: failover
    # Where one is lost, try again, and so over the other one.
    ansible_ssh_retries: 2

# A bastion that is no host of the inventory, whose master is closed with the last run. What is not
# said here comes from your ssh configuration.
backup:
  hosts:
    backup1:
      ansible_host: 10.0.3.1
  vars:
    ansible_bastion: jump@[2001:db8::1]:2222
    ansible_bastion_persist: 'no'
"""

import functools
import glob
import hashlib
import itertools
import os
import pwd
import shlex
import socket
import sys
import zlib
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from typing import Any

from ansible import context
from ansible.constants import config
from ansible.plugins.connection import ssh

_PLUGINS = "ansible_collections.bastion.mux.plugins"
_OWN = (f"{_PLUGINS}.plugin_utils", f"{_PLUGINS}.module_utils")

#: Where it registers what its options are, under the name that the loader gives it.
_DEFINITIONS = __name__

_KINDS: dict[str, dict[str, Any]] = {
    "bastion": {"type": "raw"},
    "bastion_strategy": {
        "type": "str",
        "default": "failover",
        "choices": ["failover", "spread"],
    },
    "bastion_persist": {"type": "str", "default": "yes"},
    "bastion_max_setups": {"type": "int", "default": 10},
    "bastion_max_channels": {"type": "int", "default": 1000},
}

#: The options of its own, as DOCUMENTATION has them: a unit test compares.
OPTIONS = {
    name: {
        **kind,
        "ini": [{"section": "ssh_connection", "key": name}],
        "env": [{"name": f"ANSIBLE_{name.upper()}"}],
        "vars": [{"name": f"ansible_{name}"}],
    }
    for name, kind in _KINDS.items()
}


def _define_options() -> None:
    """Take the builtin plugin's definitions as they are in memory, and add those of our own.

    A worker is forked for each task of each host, and loads a collection's plugin anew: to parse
    the documentation of all the options would be the larger part of a small task. Where they are
    not in memory, Ansible parses the documentation, with the same result.
    """
    for name in ("ssh", "ansible.builtin.ssh", ssh.__name__):
        if config.has_configuration_definition("connection", name):
            found: Any = config.get_configuration_definitions("connection", name)
            config.initialize_plugin_configuration_definitions(
                "connection", _DEFINITIONS, {**found, **OPTIONS}
            )
            return


_define_options()

# No regular expressions from here on: each worker would compile them anew.

#: Words without which a configuration neither changes by itself nor includes another one.
_TELLING = (b"include", b"exec", b"localnetwork", b"canonicalize", b"$")

#: Keywords that say where a host is.
_WHERE = (b"hostname", b"user", b"port", b"proxyjump")

#: There as long as a master is to be closed after the last run that uses it: plugin_utils/runs.py.
_RUNS = "~/.cache/bastion.mux.runs"

#: readconf.c, READCONF_MAX_DEPTH.
_DEPTH = 16

#: The options of ssh without an argument.
_FLAGS = set("46AaCfGgKkMNnqsTtVvXxYy")


def _includes(text: bytes) -> list[bytes] | None:
    """What a configuration includes; ``None`` where only ssh itself can tell what it means.

    It may depend on programs, the network or the environment.
    """
    lowered = text.lower()
    found: list[bytes] = []
    if not any(word in lowered for word in _TELLING):
        return found
    for line in text.splitlines():
        keyword, rest = [*line.replace(b"=", b" ", 1).split(None, 1), b"", b""][:2]
        keyword, said = keyword.lower(), rest.lower()
        if keyword == b"include":
            found.append(rest)
        elif (
            (keyword == b"match" and (b"exec" in said or b"localnetwork" in said))
            or (keyword == b"canonicalizehostname" and said.strip() not in (b"no", b"false"))
            or (keyword in _WHERE and b"$" in rest)
        ):
            return None
    return found


def configuration_file(arguments: Sequence[str]) -> str | None:
    """The file that ``-F`` names."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flags, found, file = argument[1:].partition("F")
        if argument.startswith("-") and found and _FLAGS.issuperset(flags):
            return file or following
    return None


def configuration(given: str | None) -> bytes | None:
    """What ssh reads of its configuration, as text that stands for it.

    :param given: the file that is read in place of the user's and the system's.
    :returns: ``None`` where the text alone does not tell what it means.
    """
    try:
        home = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return b""  # ssh does nothing for such a user, and says so
    begin = [(f"{home}/.ssh/config", f"{home}/.ssh"), ("/etc/ssh/ssh_config", "/etc/ssh")]
    if given is not None:
        begin = [(given, f"{home}/.ssh")]
    texts: list[bytes] = []

    def read(path: str, base: str, depth: int) -> bool:
        try:
            with open(os.path.expanduser(path), "rb") as file:
                text = file.read()
        except OSError:
            return True
        texts.append(text)
        includes = _includes(text)
        if includes is None or depth == _DEPTH:
            return False
        for line in includes:
            for pattern in shlex.split(os.fsdecode(line), comments=True):
                whole = os.path.join(base, os.path.expanduser(pattern))
                if not all(read(name, base, depth + 1) for name in sorted(glob.glob(whole))):
                    return False
        return True

    try:
        understood = all(read(path, base, 0) for path, base in begin)
    except ValueError:
        return None  # quotes that do not match
    return b"\0".join(texts) if understood else None


class _OwnFinder:
    """Has Python's own loader import what this collection brings.

    It keeps what it has compiled. That of Ansible's collections compiles whatever is imported, in
    each worker, which takes longer than all that is done here.
    """

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, _target: Any = None) -> ModuleSpec | None:
        if path is None or not name.startswith(_OWN):
            return None
        return FileFinder(path[0], (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)


def _not_sooner(name: str) -> Any:
    """A module of plugin_utils: a task over a connection that is there does not pay for it."""
    if _OwnFinder not in sys.meta_path:
        sys.meta_path.insert(0, _OwnFinder)
    return import_module(f"{_OWN[0]}.{name}")


def is_up(path: str) -> bool:
    """Whether somebody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # with many in line before us
        except OSError:
            return False
        return True


def _control_path(command: list[bytes]) -> str | None:
    """The control socket that a command names; ``None`` where ssh would have to expand it."""
    for argument in command:
        # As "-o" and its value, or as one.
        option = argument.removeprefix(b"-o").strip()
        if option[:11].lower() == b"controlpath":
            path = os.fsdecode(option[11:].strip(b" \t=").strip(b'"'))
            return path if path.startswith("/") and "%" not in path else None
    return None


def parse(name: str) -> dict[str, Any]:
    """``user@host:port`` as parameters of ssh_master."""
    user, _at, place = name.rpartition("@")
    if place.startswith("["):
        host, _bracket, port = place[1:].partition("]")
        port = port.removeprefix(":")
    elif place.count(":") == 1:
        host, _colon, port = place.partition(":")
    else:
        host, port = place, ""
    params: dict[str, Any] = {"host": host}
    if port:
        params["port"] = port
    if user:
        params["user"] = user
    return params


class Connection(ssh.Connection):
    """ansible.builtin.ssh with a bastion, and with a socket's name that tells hosts apart."""

    transport = "bastion.mux.ssh"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: The task, for what its hosts share.
        self._task = (kwargs.get("ansible_playbook_pid"), kwargs.get("task_uuid"))
        self._attempts = itertools.count()
        self._hostvars: Any = {}
        self._inventory_hostname: str | None = None
        self._bastions: list[dict[str, Any]] = []
        self._name = ""
        self._own_path: str | None = None
        self._text = functools.lru_cache(configuration)

    def _resolve_option_variables(self, variables: Any, templar: Any) -> Any:
        # Before the options are set. A host's variables are worked out when they are looked at.
        self._hostvars = variables.get("hostvars") or {}
        self._inventory_hostname = variables.get("inventory_hostname")
        resolve: Any = super()._resolve_option_variables
        return resolve(variables, templar)

    def get_option(self, option: str, hostvars: Any = None) -> Any:
        """As every plugin's; the path of the target's socket is one that no other target has."""
        get: Any = super().get_option
        given = get(option, hostvars)
        if option != "control_path" or not self._name:
            return given
        if not given:
            return "%(directory)s/" + self._name
        if self._bastions and "%%" in given:
            # A template such as %%h-%%r has the same name for two hosts behind two bastions.
            directory = os.path.dirname(given)
            return ("%(directory)s" if "%%" in directory else directory) + "/" + self._name
        return given

    def _build_command(self, binary: str, subsystem: str, *other_args: bytes | str) -> list[bytes]:
        self._bastions = self._find_bastions()
        self._name = self._name_of_target(subsystem)
        command: list[bytes] = super()._build_command(binary, subsystem, *other_args)
        self._own_path = _control_path(command)
        return command

    def _bare_run(
        self, cmd: list[bytes], in_data: bytes | None, sudoable: bool = True, checkrc: bool = True
    ) -> tuple[int, bytes, bytes]:
        connected = self._own_path is not None and is_up(self._own_path)
        if not self._bastions or (connected and not os.path.isdir(os.path.expanduser(_RUNS))):
            return self._run_as_builtin(cmd, in_data, sudoable, checkrc)
        bastions = _not_sooner("bastions")
        run, task = self._task
        settings = bastions.Settings(
            ssh_executable=self.get_option("ssh_executable"),
            persist=self.get_option("bastion_persist"),
            max_setups=self.get_option("bastion_max_setups"),
            max_channels=self.get_option("bastion_max_channels"),
            seconds=float(self.get_option("timeout")),
            task=(run, task, next(self._attempts)),
            run=None if run is None else int(run),
            log=lambda line: ssh.display.vvv(line, host=self.host),
            warn=ssh.display.warning,
        )
        way = bastions.Way(self._in_order(), self._configuration, settings)
        if connected:
            way.use()
            return self._run_as_builtin(cmd, in_data, sudoable, checkrc)
        with way.to_target(self._own_path) as proxy:
            # After sshpass and its arguments; the first value that ssh gets counts.
            first = 1 + (0 if cmd[0] != b"sshpass" else 4 if cmd[2] == b"-P" else 2)
            return self._run_as_builtin(
                [*cmd[:first], *proxy, *cmd[first:]], in_data, sudoable, checkrc
            )

    def _in_order(self) -> list[dict[str, Any]]:
        """The bastions, those first that are to be tried first."""
        if self.get_option("bastion_strategy") != "spread" or not self._bastions:
            return self._bastions
        name = f"{self._inventory_hostname or self.host}".encode("utf-8", "surrogateescape")
        first = zlib.crc32(name) % len(self._bastions)
        return [*self._bastions[first:], *self._bastions[:first]]

    def _run_as_builtin(
        self, cmd: list[bytes], in_data: bytes | None, sudoable: bool, checkrc: bool
    ) -> tuple[int, bytes, bytes]:
        result: tuple[int, bytes, bytes] = super()._bare_run(cmd, in_data, sudoable, checkrc)
        return result

    def _configuration(self, arguments: Sequence[str]) -> bytes | None:
        return self._text(configuration_file(arguments))

    def _ssh_arguments(self, subsystem: str) -> list[str]:
        """What may say where the target is, of the arguments that ssh gets."""
        found: list[str] = []
        for option in ("ssh_args", "ssh_common_args", f"{subsystem}_extra_args"):
            found += self._split_ssh_args(self.get_option(option) or "")
        return found

    def _name_of_target(self, subsystem: str) -> str:
        """A name for its socket which stands for the whole way there.

        Ansible's own stands for the host, the port and the user (ansible#57400, #84148).
        """
        arguments = self._ssh_arguments(subsystem)
        text = self._configuration(arguments)
        user, port = self.get_option("remote_user"), self.get_option("port")
        way: list[Any] = [self.host, port, user, arguments, text]
        way += [
            [(key, one[key]) for key in sorted(one) if key != "password"] for one in self._bastions
        ]
        if text is None:
            known = [("-p", port), ("-l", user)]
            given = [word for flag, value in known if value for word in (flag, str(value))]
            way.append(
                _not_sooner("opening").effective(
                    self.get_option("ssh_executable"),
                    [*given, *self._ssh_arguments("ssh")],
                    self.host,
                )
            )
        return hashlib.sha256(repr(way).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def _find_bastions(self) -> list[dict[str, Any]]:
        given = self.get_option("bastion") or []
        names = given.split(",") if isinstance(given, str) else list(given)
        names = [str(name).strip() for name in names]
        if self._inventory_hostname in names:
            return []
        return [self._bastion(name) for name in names if name]

    def _bastion(self, name: str) -> dict[str, Any]:
        if name not in self._hostvars:
            params = parse(name)
            # As with ProxyJump, the file that the target's ssh reads counts for the bastion's.
            file = configuration_file(self._ssh_arguments("ssh"))
            return params if file is None else {**params, "ssh_config": file}
        login: Callable[[Any], dict[str, Any]] = _not_sooner("inventory").login
        found = login(self._hostvars[name])
        # What the command line says is of every host, and becomes a variable of the task's alone.
        user = context.CLIARGS.get("remote_user")
        if user:
            found.setdefault("user", user)
        password = self._play_context.password
        # There one of the target's own would take the place of the one that was asked for.
        if password and not login(self._hostvars.get(self._inventory_hostname, {})).get("password"):
            found.setdefault("password", password)
        return found
