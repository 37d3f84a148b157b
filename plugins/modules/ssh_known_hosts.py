# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_known_hosts
short_description: Manage the host keys of hosts behind a bastion in a known_hosts file
version_added: 0.1.0
description:
  - Asks many hosts at once for their host keys, all of them through one master that runs, and
    writes them into a C(known_hosts) file. C(ssh-keyscan) cannot reach hosts behind a bastion.
  - Every host proves that it holds the key that it shows. That it is the right host, only
    O(fingerprints) prove; without them the first key that a host shows is believed, as
    C(StrictHostKeyChecking=accept-new) does it.
  - Only what a line says of exactly these hosts, in the open or hashed, belongs to this module.
    Comments, patterns, C(@cert-authority) and C(@revoked) lines and other hosts on the same line
    stay byte for byte.
  - All or nothing - all hosts are asked, and where one of them fails, the failure tells of each and
    the file stays as it was.
author:
  - bastion.mux contributors (@bastion-mux)
extends_documentation_fragment:
  - bastion.mux.mux
  - bastion.mux.mux.attributes
  - bastion.mux.mux.changing
requirements:
  - paramiko (Python library)
notes:
  - A host that is asked sees one connection for each of the O(key_types), none of which logs in.
options:
  through:
    description:
      - The master to go through, by the parameters that name one.
      - Left out, the same parameters of the task itself name it, as for the other modules; so
        C(module_defaults) of the group C(bastion.mux.mux) count for this one too.
      - Not needed where O(state=absent).
    type: dict
    suboptions:
      host:
        description: As O(host), for this master.
        type: str
      port:
        description: As O(port), for this master.
        type: int
      user:
        description: As O(user), for this master.
        type: str
      identity_file:
        description: As O(identity_file), for this master.
        type: path
      jump:
        description: As O(jump), for this master.
        type: list
        elements: str
        default: []
      ssh_config:
        description: As O(ssh_config), for this master.
        type: path
      ssh_options:
        description: As O(ssh_options), for this master.
        type: dict
        default: {}
      known_hosts_file:
        description: As O(known_hosts_file), for this master.
        type: path
      host_key_checking:
        description: As O(host_key_checking), for this master.
        type: str
        choices: [strict, accept-new, 'off']
        default: strict
      control_path:
        description: As O(control_path), for this master.
        type: str
      connect_timeout:
        description: As O(connect_timeout), for this master.
        type: int
        default: 10
      timeout:
        description: As O(timeout), for this master.
        type: int
        default: 10
      ssh_executable:
        description: As O(ssh_executable), for this master.
        type: str
        default: ssh
  hosts:
    description:
      - The hosts as the bastion finds them and as you will name them to ssh, each as V(host),
        V(host:port) or V([IPv6 address]:port).
    type: list
    elements: str
    required: true
  path:
    description:
      - The known_hosts file. A symbolic link is followed. Owner, mode and extended attributes
        stay.
      - A new file has mode 0600, a new directory 0700.
    type: path
    default: ~/.ssh/known_hosts
  state:
    description:
      - Whether the keys of the hosts shall be in the file.
    type: str
    choices: [present, absent]
    default: present
  fingerprints:
    description:
      - The SHA-256 fingerprints of the right keys, such as
        V(SHA256:EUNjzn2pxvn1ilibwXUbO/F7aF9/ZrTmuta/N4BJ3M0), as C(ssh-keygen -l) shows them.
        A key that is not among them is a failure, V(host_key_unknown), also where the file has it
        already.
      - A list counts for every host. A dict has a list for each host, by its name as in O(hosts);
        it must leave none of them out, and may have more.
      - List the fingerprints of all O(key_types) that a host has, or narrow O(key_types).
      - MD5 fingerprints are refused.
    type: raw
  hash:
    description:
      - Whether new lines have their host's name hashed, as C(HashKnownHosts) of ssh does it. Lines
        that are there stay as they are.
    type: bool
    default: false
  key_types:
    description:
      - Which types of key to ask for. A host that has none of one type is fine, one that has none
        of any is not.
      - Left out, it is every type; and where O(state=absent), types that are not listed here as
        well.
    type: list
    elements: str
    choices: [ed25519, ecdsa, rsa]
  replace:
    description:
      - Whether a changed key takes the place of the known one. Else it is a failure,
        V(host_key_changed), which shows the fingerprints of both.
      - A key has changed where the file has another one of its type for the host. Where the file
        has keys for the host and it shows none of these, all of them count as changed, whatever
        their type.
      - A key that the file marks as C(@revoked) is never taken.
    type: bool
    default: false
  timeout:
    description:
      - How many seconds the master may take for each answer, how many a host may take to accept a
        connection, and again for each exchange of keys.
    type: int
    default: 10
seealso:
  - module: bastion.mux.ssh_master
  - module: ansible.builtin.known_hosts
"""

EXAMPLES = r"""
- name: Know the hosts behind a bastion
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Log in to the bastion once
      bastion.mux.ssh_master:
        host: bastion

    - name: Learn the keys of all hosts behind it
      bastion.mux.ssh_known_hosts:
        through:
          host: bastion
        hosts:
          - web.internal
          - db.internal:2222
        hash: true

    - name: Take the right key alone
      bastion.mux.ssh_known_hosts:
        through:
          host: bastion
        hosts:
          - web.internal
        key_types:
          - ed25519
        fingerprints:
          web.internal:
            - SHA256:EUNjzn2pxvn1ilibwXUbO/F7aF9/ZrTmuta/N4BJ3M0

    - name: Forget a host
      bastion.mux.ssh_known_hosts:
        hosts:
          - web.internal
        state: absent
"""

RETURN = r"""
path:
  description: The file, where symbolic links end.
  type: str
  returned: always, where the parameters are valid and a master runs
  sample: /home/me/.ssh/known_hosts
hosts:
  description: The hosts, in the order of O(hosts), each of them once.
  type: list
  elements: dict
  returned: always, where the parameters are valid and a master runs
  contains:
    host:
      description: The name, in small letters as ssh has it.
      type: str
      returned: always
    port:
      description: The port.
      type: int
      returned: always
    keys:
      description: The keys that it showed, and those that were removed.
      type: list
      elements: dict
      returned: always
      contains:
        type:
          description: The type of the key.
          type: str
          returned: always
          sample: ssh-ed25519
        fingerprint:
          description: Its fingerprint.
          type: str
          returned: always
          sample: SHA256:EUNjzn2pxvn1ilibwXUbO/F7aF9/ZrTmuta/N4BJ3M0
        action:
          description:
            - What became of it, or would in check mode - V(unchanged), V(added), V(replaced) (it
              took the place of others of its type), V(removed), or V(refused).
          type: str
          returned: always
        previous:
          description: The fingerprints of the known keys of its type that it differs from.
          type: list
          elements: str
          returned: always
    reason:
      description: Why this host failed.
      type: str
      returned: for a host that failed
    msg:
      description: The same in a sentence.
      type: str
      returned: for a host that failed
reason:
  description:
    - Why the task failed, in one word, for C(failed_when) and C(rescue). The guide's page on
      troubleshooting has a section for each. Where hosts fail with several, it is the first of
      these.
    - V(host_key_changed) - a host showed another key than the known one, or a revoked one.
    - V(host_key_unknown) - a host showed a key that is not among O(fingerprints), or they leave
      the host out.
    - V(destination_unreachable) - a host cannot be reached from the bastion, or shows no key.
    - V(not_running) - there is no master.
    - V(wedged) - the master does not answer.
    - V(timeout) - another run holds the lock of the file.
    - V(control_dir_insecure) - others could replace the socket in the directory of
      O(control_path).
    - V(control_path_too_long) - no socket can have such a long path.
    - V(invalid) - a parameter has a value that cannot be used, or the file cannot be written.
    - V(ssh_missing) - there is no ssh client.
  type: str
  returned: failure
"""

from ansible_collections.bastion.mux.plugins.module_utils.engine import known_hosts, spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.module import run_module


def main() -> None:
    """Be the module."""
    run_module(spec.SSH_KNOWN_HOSTS, known_hosts.run)


if __name__ == "__main__":
    main()
