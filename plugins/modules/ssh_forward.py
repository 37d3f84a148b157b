# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_forward
short_description: Manage port forwardings of an OpenSSH master connection
version_added: 0.1.0
description:
  - Adds forwardings to a master that runs, and removes them - local, remote, dynamic (SOCKS), and
    between unix sockets.
  - OpenSSH neither lists the forwardings of a master nor tells whether a request changed anything.
    This module keeps a ledger beside the control socket and compares it with the sockets on which
    the process of the master listens, so it knows both.
  - Spellings that mean the same are the same forwarding. All forwardings of a task go over one
    connection to the master.
author:
  - bastion.mux contributors (@bastion-mux)
extends_documentation_fragment:
  - bastion.mux.mux
  - bastion.mux.mux.secrets
  - bastion.mux.mux.forwards
  - bastion.mux.mux.attributes
  - bastion.mux.mux.changing
options:
  state:
    description:
      - Whether the forwardings shall be there. Without a master, V(absent) has nothing to do.
    type: str
    choices: [present, absent]
    default: present
  exclusive:
    description:
      - Whether every other forwarding of this master goes.
    type: bool
    default: false
  on_conflict:
    description:
      - What to do about another forwarding of this master that listens where one of these shall -
        V(fail), or V(replace) it.
    type: str
    choices: [fail, replace]
    default: fail
  verify:
    description:
      - V(listen) makes sure that every listener is the master's own, and opens a forwarding anew
        whose listener no longer is.
      - V(connect) tries the far end of each forwarding as well, through the master, before anything
        is changed. A listening port alone proves nothing about it. A far end that is a unix socket
        can only be tried by a master of OpenSSH 9.4 or newer which this collection opened.
      - V(none) takes the word of the master.
    type: str
    choices: [listen, connect, none]
    default: listen
  open:
    description:
      - Whether to open a master where none runs, as M(bastion.mux.ssh_master) does with its
        defaults.
    type: bool
    default: false
notes:
  - If a forwarding fails, the others of the task are in place nevertheless. What it was to replace
    comes back.
  - Listeners on the server cannot be seen. A remote forwarding is known by the ledger, and each
    task asks the master for it once more. So one that somebody else cancelled is there again
    afterwards, which counts as no change, and O(state=absent) also cancels one that somebody else
    opened, which check mode cannot foretell. O(exclusive) removes those of the ledger.
seealso:
  - module: bastion.mux.ssh_master
  - module: bastion.mux.ssh_master_info
"""

EXAMPLES = r"""
- name: Reach what only the bastion reaches
  hosts: localhost
  gather_facts: false
  module_defaults:
    group/bastion.mux.mux:
      host: bastion
  tasks:
    - name: Forward ports, each kind once
      bastion.mux.ssh_forward:
        open: true
        local:
          - "15432:db.internal:5432"
          - "0:web.internal:80"
        dynamic:
          - "11080"
        remote:
          - "0:localhost:8000"
      register: through

    - name: Say which local port leads to the web server
      ansible.builtin.debug:
        msg: "http://localhost:{{ through.forwards[1].allocated_port }}/"

    - name: Keep the database alone, and make sure that it can be reached
      bastion.mux.ssh_forward:
        local:
          - "15432:db.internal:5432"
        exclusive: true
        verify: connect

    - name: Remove it
      bastion.mux.ssh_forward:
        local:
          - "15432:db.internal:5432"
        state: absent
"""

RETURN = r"""
control_path:
  description: The control socket, for C(ansible_control_path) and for C(ssh -S).
  type: str
  returned: always
  sample: /home/me/.ansible/mux/0d8a53bba1ff0b5b5c39
ssh_args:
  description:
    - The arguments that make any ssh, scp or sftp share this master, and never open one. For rsync
      give them to its C(-e).
  type: list
  elements: str
  returned: always
  sample: ["-o", "ControlMaster=no", "-o", "ControlPath=/home/me/.ansible/mux/0d8a53bba1ff0b5b5c39"]
forwards:
  description:
    - The forwardings of the task, in the order of O(local), O(remote) and O(dynamic), and after
      them those that were removed because of O(exclusive) or O(on_conflict).
  type: list
  elements: dict
  returned: success, and when a forwarding failed
  contains:
    type:
      description: V(local), V(remote) or V(dynamic).
      type: str
      returned: always
    listen_host:
      description:
        - The address that it listens on. V(localhost) stands for loopback of IPv4 and IPv6, V(*)
          for every interface. Null for a unix socket.
      type: str
      returned: always
    listen_port:
      description: The port that it listens on, also where it was chosen. Null for a unix socket.
      type: int
      returned: always
    listen_socket:
      description: The unix socket that it listens on, or null.
      type: str
      returned: always
    connect_host:
      description: The host at the far end; null for a unix socket and for SOCKS.
      type: str
      returned: always
    connect_port:
      description: The port at the far end; null for a unix socket and for SOCKS.
      type: int
      returned: always
    connect_socket:
      description: The unix socket at the far end, or null.
      type: str
      returned: always
    allocated_port:
      description: The port that was chosen, where 0 was asked for; else null.
      type: int
      returned: always
    state:
      description:
        - V(present), V(absent), or V(failed) in a task that failed; there C(reason) and C(msg) say
          why.
      type: str
      returned: always
    evidence:
      description:
        - How that is known - V(listener), the process of the master listens there; V(master), the
          master confirmed it; V(ledger), it was opened by this collection and the listener is on
          the server, where it cannot be seen.
      type: str
      returned: always
reason:
  description:
    - Why the task failed, in one word, for C(failed_when) and C(rescue). The guide's page on
      troubleshooting has a section for each.
    - V(auth_failed) - the server accepted neither key nor password.
    - V(control_dir_insecure) - others could replace the socket in the directory of
      O(control_path).
    - V(control_path_too_long) - no socket can have such a long path.
    - V(destination_unreachable) - the far end of a forwarding cannot be reached
      (O(verify=connect)).
    - V(forward_conflict) - this master already holds another forwarding there.
    - V(forward_refused) - the master or the server refuses the forwarding.
    - V(host_key_changed) - the host key is not the one that is known.
    - V(host_key_unknown) - the host key is not known.
    - V(invalid) - a parameter has a value that cannot be used; nothing was changed.
    - V(listen_in_use) - another process already listens there.
    - V(not_running) - there is no master, and this task does not open one, or it ended meanwhile.
    - V(ssh_missing) - there is no ssh client.
    - V(timeout) - the login took too long, the server did not answer, or another run kept the
      master locked.
    - V(unreachable) - there is no connection to the bastion, or it is dead.
    - V(wedged) - the master does not answer within O(timeout).
  type: str
  returned: failure
"""

from ansible_collections.bastion.mux.plugins.module_utils.engine import forward, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.module import run_module


def main() -> None:
    """Be the module."""
    run_module(spec.SSH_FORWARD, forward.run)


if __name__ == "__main__":
    main()
