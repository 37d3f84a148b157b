# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_master_info
short_description: Gather information about OpenSSH master connections
version_added: 0.1.0
description:
  - Describes one master, or every control socket of a directory, with its forwardings.
  - Nothing is changed and nothing hangs - masters that do not answer cost one O(timeout) together.
author:
  - bastion.mux contributors (@bastion-mux)
extends_documentation_fragment:
  - bastion.mux.mux
  - bastion.mux.mux.attributes
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
options:
  control_dir:
    description:
      - A directory of control sockets, all of which are described; goes without O(host) and
        O(control_path).
      - A module without any of the three looks at C(~/.ansible/mux).
    type: path
  probe:
    description:
      - Whether to test each master over its network, and every local forwarding to its far end. The
        test is a connection that the server refuses or closes again; it may log that.
    type: bool
    default: false
seealso:
  - module: bastion.mux.ssh_master
  - module: bastion.mux.ssh_forward
"""

EXAMPLES = r"""
- name: What is open
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Look at every master of this user
      bastion.mux.ssh_master_info:
        control_dir: ~/.ansible/mux
        probe: true
      register: mux

    - name: Name those that lead nowhere
      ansible.builtin.debug:
        msg: "{{ item.control_path }}: {{ item.reason }}"
      loop: "{{ mux.masters | selectattr('reason') }}"
      loop_control:
        label: "{{ item.control_path }}"
"""

RETURN = r"""
masters:
  description: The masters, in the order of their sockets' names.
  type: list
  elements: dict
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
        - Why it is not alive - V(not_running), V(wedged), or V(invalid) where something else than
          a master listens; null for a master that is alive; V(unreachable) for one that is alive
          but whose connection is dead (O(probe=true)).
      type: str
      returned: always
    msg:
      description: What listens there instead of a master.
      type: str
      returned: RV(masters[].reason=invalid)
    stale:
      description: Whether it is a socket that a dead master left behind.
      type: bool
      returned: always
    connection:
      description:
        - What the master says about its connection - C(peer), C(cipher), C(duration), C(traffic)
          and more, by the keywords of C(ssh -O conninfo). Behind a jump host it knows no C(peer).
      type: dict
      returned: OpenSSH 10.3 and newer
    probe:
      description:
        - Whether the server answered, as C(reachable), and if not, why, as C(msg).
        - A forwarding that cannot be tried has none (see
          O(bastion.mux.ssh_forward#module:verify)).
      type: dict
      returned: O(probe=true), for masters that are alive and their local forwardings
reason:
  description:
    - Why the task failed, in one word, for C(failed_when) and C(rescue). The guide's page on
      troubleshooting has a section for each.
    - V(control_dir_insecure) - others could replace the socket in the directory of
      O(control_path).
    - V(control_path_too_long) - no socket can have such a long path.
    - V(invalid) - a parameter has a value that cannot be used; nothing was changed.
    - V(ssh_missing) - there is no ssh client.
    - V(timeout) - ssh did not tell its configuration.
  type: str
  returned: failure
"""

from ansible_collections.bastion.mux.plugins.module_utils.engine import info, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.module import run_module


def main() -> None:
    """Be the module."""
    run_module(spec.SSH_MASTER_INFO, info.run)


if __name__ == "__main__":
    main()
