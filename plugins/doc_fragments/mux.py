# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documentation that the modules share. Private to the collection: no promise is made about it."""

from __future__ import annotations


class ModuleDocFragment:
    """The parameters that name a master, mirrored by ``engine/spec.py``."""

    # What names a master
    DOCUMENTATION = r"""
requirements:
  - OpenSSH client 8.4 or newer
  - psutil (Python library)
notes:
  - Without C(delegate_to) the task runs inside the controller's worker process, as the user who
    runs Ansible; C(become) does not apply there. Where it names no O(host) and no
    O(control_path), what it leaves out comes from the inventory host - O(host) from
    C(ansible_host), O(port) from C(ansible_port), O(user) from C(ansible_user), O(identity_file)
    from C(ansible_ssh_private_key_file), and further arguments of ssh from
    C(ansible_ssh_common_args) and C(ansible_ssh_extra_args).
  - With C(delegate_to), C(localhost) included, or with C(connection=local) and C(become), it runs
    as an ordinary module on that host, as that user, and takes nothing from the inventory host.
options:
  host:
    description:
      - The bastion - a host name, an address, or a C(Host) alias of your ssh configuration.
      - Not needed where O(control_path) names a master that runs.
    type: str
  port:
    description:
      - The port of its SSH server.
      - Left out, the ssh configuration decides, else it is 22.
    type: int
  user:
    description:
      - The user to log in as.
      - Left out, the ssh configuration decides, else it is the user who runs ssh.
    type: str
  identity_file:
    description:
      - A private key to log in with, tried before those of the ssh configuration and the agent.
    type: path
  jump:
    description:
      - The hosts to jump through on the way to O(host), first one first, each as
        V([user@]host[:port]); the C(ProxyJump) of ssh_config.
      - As ssh does it, the jump hosts take their own settings from the ssh configuration;
        O(identity_file), O(known_hosts_file), O(host_key_checking) and O(ssh_options) are those of
        O(host) alone. Settings that shall count for all of them belong into O(ssh_config).
    type: list
    elements: str
    default: []
  ssh_config:
    description:
      - A configuration file to read instead of C(~/.ssh/config) and C(/etc/ssh/ssh_config); the
        C(-F) of ssh. Jump hosts read it too.
    type: path
  ssh_options:
    description:
      - Further keywords of ssh_config with their values; a list gives a keyword several times.
      - They count before anything else, as on the command line. Keywords that a parameter of its
        own sets, such as C(ControlPath) or C(LocalForward), are refused.
    type: dict
    default: {}
  known_hosts_file:
    description:
      - The file of known host keys, instead of C(~/.ssh/known_hosts).
    type: path
  host_key_checking:
    description:
      - What to do about the host key of O(host).
      - V(strict) refuses a host whose key is not known, V(accept-new) learns the key of a host that
        is not known and refuses a changed one, V(off) checks nothing.
    type: str
    choices: [strict, accept-new, 'off']
    default: strict
  control_path:
    description:
      - The control socket of the master. Alone, it names a master that runs.
      - The tokens of ssh_config (V(%C), V(%h), V(%p), V(%r), ...), V(~) and V(${VAR}) are expanded
        as ssh does it.
      - Left out, the C(ControlPath) of your ssh configuration counts where it sets one for O(host),
        so that C(ssh host) in a terminal shares the master; else it is a name below
        C(~/.ansible/mux) which stands for user, host, port and the whole path of jump hosts.
      - The directory is made with mode 0700. One that belongs to another user or that others can
        write to is refused, and so is a path that is too long for a socket (90 bytes on Linux, 86
        on macOS).
    type: str
  connect_timeout:
    description:
      - How many seconds the connection to one host may take. A login is given this long for each
        hop, and O(timeout) on top of it.
    type: int
    default: 10
  timeout:
    description:
      - How many seconds a master may take for each answer before it counts as wedged.
    type: int
    default: 10
  ssh_executable:
    description:
      - The ssh client to run, a path or a name to look for in E(PATH).
    type: str
    default: ssh
"""

    SECRETS = r"""
options:
  password:
    description:
      - The password, also for keyboard-interactive authentication. In a task that names no O(host)
        it comes from C(ansible_password).
      - It is given to ssh when it asks (C(SSH_ASKPASS)), over a socket; it is in no argument list,
        no environment, no file and no log. Jump hosts never get it.
    type: str
  passphrase:
    description:
      - The passphrase of the private key, given to ssh in the same way.
    type: str
"""

    FORWARDS = r"""
options:
  local:
    description:
      - Local forwardings, each in the spelling of C(ssh -L) - V(5432:db:5432),
        V(127.0.0.1:8080:web:80), V([::1]:8080:web:80), V(/run/a.sock:/run/b.sock),
        V(8080:/run/web.sock).
      - With the port 0, such as V(0:db:5432), a free local port is chosen and kept on every later
        run.
      - Without a listening address they listen on loopback, for IPv4 and IPv6; V(*) and an empty
        one are every interface.
    type: list
    elements: str
    default: []
  remote:
    description:
      - Remote forwardings, each in the spelling of C(ssh -R) - V(8080:localhost:80). Without a
        destination, such as V(1080), it is a SOCKS proxy for the server's side. With the port 0 the
        server chooses one.
    type: list
    elements: str
    default: []
  dynamic:
    description:
      - Dynamic forwardings (SOCKS proxies), each in the spelling of C(ssh -D) - V(1080) or
        V(127.0.0.1:1080).
    type: list
    elements: str
    default: []
"""

    ATTRIBUTES = r"""
attributes:
  action:
    description: Whether it has an action plugin, which runs on the controller.
    support: full
  action_group:
    description: Use C(group/bastion.mux.mux) in C(module_defaults) for all modules at once.
    support: full
    membership:
      - bastion.mux.mux
  async:
    description: Whether it can be used with the C(async) keyword.
    support: none
  become:
    description: Whether it can be used with C(become).
    support: partial
    details:
      - With C(delegate_to) or C(connection=local) it runs as an ordinary module and becomes the
        user asked for. Otherwise it runs in the controller's worker process and stays who it is.
  delegation:
    description: Whether it can be used with C(delegate_to).
    support: full
  platform:
    description: Where it runs.
    support: full
    platforms: posix
"""

    CHANGING = r"""
attributes:
  check_mode:
    description: Tells what it would change, without changing it.
    support: full
  diff_mode:
    description: Shows what it changes.
    support: full
"""
