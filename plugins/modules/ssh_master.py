# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_master
short_description: Manage OpenSSH master connections
version_added: 0.1.0
description:
  - Opens, closes, stops and renews the master of an OpenSSH connection (C(ControlMaster)), which
    any number of sessions and port forwardings then share - one TCP connection, one login.
  - A master which runs with these options is left alone. One that was lost since the last run is
    opened again with the forwardings that it had.
  - Any number of hosts and playbooks may open the same master at the same time; they end with one.
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
      - V(present) opens a master where none answers. Its connection is tested with a forwarding
        that the server has to refuse, since a master answers by itself for a while after its
        network died.
      - V(absent) ends it and whatever runs through it, and waits until process and socket are gone.
      - V(stopped) cancels its forwardings and lets it take no new session; running ones go on, and
        it ends by itself after the last one (see O(drain_timeout)).
      - V(restarted) hands over to a new master, which takes the socket and the forwardings. Running
        sessions go on through the old one, which ends after the last of them.
    type: str
    choices: [present, absent, stopped, restarted]
    default: present
  persist:
    description:
      - How long the master stays without a session - V(yes) forever, or a time such as V(10m), the
        C(ControlPersist) of ssh_config. Forwardings do not count as sessions, so a master that
        shall hold them needs V(yes).
      - V(no) is without C(ControlPersist); the master goes to the background by C(ssh -f) and stays
        until it is ended.
    type: str
    default: 'yes'
  alive_interval:
    description:
      - After how many seconds without data the server is asked whether it is still there; 0 never.
    type: int
    default: 15
  alive_count_max:
    description:
      - After how many such questions without an answer the master ends.
    type: int
    default: 3
  forward_agent:
    description:
      - Whether sessions can use the authentication agent. That belongs to the master, for all of
        its sessions.
    type: bool
    default: false
  forward_x11:
    description:
      - Whether sessions can use the X11 display. That belongs to the master, for all of its
        sessions.
    type: bool
    default: false
  compression:
    description:
      - Whether to compress; left out, the ssh configuration decides.
    type: bool
  on_drift:
    description:
      - What to do about a master that was opened with other options than those asked for now - the
        parameters of this module, or the ssh configuration behind them.
      - V(restart) hands over to a new one as O(state=restarted) does, V(fail) fails, V(ignore)
        uses it as it is.
    type: str
    choices: [restart, fail, ignore]
    default: restart
  restore:
    description:
      - Whether a master that takes the place of another, or of one that was lost, gets its
        forwardings.
    type: bool
    default: true
  drain_timeout:
    description:
      - How many seconds to wait for the sessions of a master that was stopped or handed over; what
        is left of it then is ended.
      - Left out, the task does not wait and no session is cut; the old process ends by itself with
        its last session.
    type: int
  force:
    description:
      - Whether a master may be ended that another program opened or that does not answer.
    type: bool
    default: false
seealso:
  - module: bastion.mux.ssh_forward
  - module: bastion.mux.ssh_master_info
  - name: ssh_config(5)
    description: ControlMaster, ControlPath, ControlPersist and ProxyJump.
    link: https://man.openbsd.org/ssh_config
"""

EXAMPLES = r"""
- name: A master to every bastion of the inventory
  hosts: bastions
  gather_facts: false
  tasks:
    - name: Open it
      bastion.mux.ssh_master:

- name: A master by name, for as long as the play runs
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Work through the bastion
      block:
        - name: Open a master with a forwarding to the database
          bastion.mux.ssh_master:
            host: bastion
            local:
              - "0:db.internal:5432"
          register: bastion

        - name: Say where the database is reached
          ansible.builtin.debug:
            msg: "localhost:{{ bastion.master.forwards[0].allocated_port }}"

        - name: Run a command over the same connection
          ansible.builtin.command:
            argv: "{{ ['ssh'] + bastion.ssh_args + ['bastion', 'true'] }}"
          changed_when: false

        - name: Renew the connection without cutting a running session
          bastion.mux.ssh_master:
            host: bastion
            state: restarted

      always:
        - name: Close it
          bastion.mux.ssh_master:
            host: bastion
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
master:
  description: The master as it is after the task.
  type: dict
  returned: success
  contains:
    control_path:
      description: The control socket.
      type: str
      returned: always
    pid:
      description: The process of the master; null where there is none.
      type: int
      returned: always
    alive:
      description: Whether a master answers at the socket.
      type: bool
      returned: always
    managed:
      description:
        - Whether this collection opened it. Another one is used, and never ended without force.
      type: bool
      returned: always
    host:
      description: The bastion, as it was named; null where it cannot be known.
      type: str
      returned: always
    port:
      description: The port of its SSH server.
      type: int
      returned: always
    user:
      description: The user who is logged in.
      type: str
      returned: always
    jump:
      description: The hosts it was jumped through.
      type: list
      elements: str
      returned: always
    persist:
      description: V(yes), V(no), or the seconds without a session after which it ends by itself.
      type: str
      returned: always
    started:
      description: When its process was started, in UTC.
      type: str
      returned: always
      sample: "2026-11-24T06:56:05Z"
    openssh:
      description: The version of the ssh that it runs; null for a master of another program.
      type: str
      returned: always
      sample: OpenSSH_9.2p1
    forwards:
      description:
        - Every forwarding that it is known to hold, each as M(bastion.mux.ssh_forward) returns it.
      type: list
      elements: dict
      returned: always
    reason:
      description:
        - Why it is not alive - V(not_running) or V(wedged); null for a master that is alive.
      type: str
      returned: always
forwards:
  description: What became of each forwarding, where one of them failed.
  type: list
  elements: dict
  returned: failure of a forwarding
reason:
  description:
    - Why the task failed, in one word, for C(failed_when) and C(rescue). The guide's page on
      troubleshooting has a section for each.
    - V(auth_failed) - the server accepted neither key nor password.
    - V(control_dir_insecure) - others could replace the socket in the directory of
      O(control_path).
    - V(control_path_too_long) - no socket can have such a long path.
    - V(drift) - the master was opened with other options (O(on_drift=fail)).
    - V(forward_conflict) - this master already holds another forwarding there.
    - V(forward_refused) - the master or the server refuses the forwarding.
    - V(host_key_changed) - the host key is not the one that is known.
    - V(host_key_unknown) - the host key is not known.
    - V(invalid) - a parameter has a value that cannot be used; nothing was changed.
    - V(listen_in_use) - another process already listens there.
    - V(not_running) - there is no master, and this task does not open one, or it ended meanwhile.
    - V(ssh_missing) - there is no ssh client.
    - V(timeout) - the login took too long, or another run kept the master locked.
    - V(unmanaged) - another program opened the master, and O(force) is not set.
    - V(unreachable) - there is no connection to the bastion, or it is dead.
    - V(wedged) - the master does not answer within O(timeout).
  type: str
  returned: failure
"""

from ansible_collections.bastion.mux.plugins.module_utils.engine import master, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.module import run_module


def main() -> None:
    """Be the module."""
    run_module(spec.SSH_MASTER, master.run)


if __name__ == "__main__":
    main()
