# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_server_config
short_description: Manage a drop-in of sshd's configuration without locking anybody out
version_added: 0.1.0
description:
  - Writes a drop-in for C(sshd), with the files that it names, and has sshd reload; or takes all of
    that away again.
  - The installed sshd judges the whole configuration before anything is changed. It is read from
    copies, so that nobody can come across half of it. Keywords that this sshd does not know are
    left out, and reported in RV(left_out). A value that it rejects, or a setting that an earlier
    line keeps from counting (O(expect)), is a failure that changes nothing.
  - A reload keeps all sessions. If sshd does not listen and answer afterwards, the change is undone
    at once.
  - With O(confirm_within) the change has to be confirmed, best after a fresh login. If that does
    not happen in time, a process on the host undoes it, whatever became of the connection, of the
    play and of the controller.
author:
  - bastion.mux contributors (@bastion-mux)
extends_documentation_fragment:
  - bastion.mux.mux.changing
requirements:
  - Python 3.8 or newer, with nothing but its standard library, on the managed host
  - OpenSSH server 8.4 or newer on the managed host
  - Root
attributes:
  async:
    description: Whether it can be used with the C(async) keyword.
    support: full
  become:
    description: Whether it can be used with C(become).
    support: full
    details:
      - Only root can change sshd's configuration.
  platform:
    description: Where it runs.
    support: full
    platforms: linux
notes:
  - The first value that sshd finds for a keyword is the one that counts, so the name of the drop-in
    begins with C(00). Where sshd's configuration does not read it before everything else, an
    C(Include) line for it is added at the top, between two marker lines. Otherwise that file is not
    changed by a byte.
  - A file that is replaced is replaced in one step. Owner, group, mode, ACLs and SELinux context of
    the configuration and of the drop-in stay. What is new belongs to root.
  - While a change is pending, what was there before is kept in a directory beside the
    configuration, such as C(/etc/ssh/sshd_config.bastion.mux-pending), which only root can enter.
    It also holds the program that undoes the change. To do that by hand, run it with that
    directory and C(now) as its arguments.
  - When the process has undone a change, a note that says so stays there, for whoever comes too
    late to confirm it. The next run with another O(state) removes it.
  - The process that waits does not outlive a reboot. The next run undoes such a change first, and
    so it does where the process was killed.
  - The module is no member of the action group C(bastion.mux.mux), because it has none of the
    parameters that name a master.
options:
  state:
    description:
      - V(present) - the drop-in is there as it is described, and sshd has read it.
      - V(absent) - the drop-in, O(directory) and our C(Include) line are gone, and sshd has
        noticed.
      - V(confirmed) - a pending change stays, and nothing waits any more. If the deadline has
        passed and it is undone already, that is a failure with the reason V(timeout).
      - V(restored) - a pending change is undone, and sshd has noticed.
      - Without a pending change, V(confirmed) and V(restored) do nothing.
    type: str
    choices: [present, absent, confirmed, restored]
    default: present
  options:
    description:
      - Keywords of sshd_config with their values, as they would be written there; V(true) and
        V(false) become C(yes) and C(no). A list gives a keyword several times.
      - Quotes are not added. A value with white space that shall be one needs its own.
    type: dict
    default: {}
  matches:
    description:
      - What is different for some connections, in this order, after O(options).
    type: list
    elements: dict
    default: []
    suboptions:
      match:
        description: The conditions of a C(Match) line.
        type: str
        required: true
      options:
        description: Keywords with their values, as in O(options).
        type: dict
        default: {}
  files:
    description:
      - Files in O(directory), which O(options) and O(matches) name by their absolute paths. They
        belong to root.
      - Whatever else is in O(directory) is removed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The name, or a folder and the name, such as V(keys/alice).
        type: str
        required: true
      content:
        description: The content.
        type: str
        required: true
      mode:
        description: The mode, in octal digits. Others must not be able to write.
        type: str
        default: "0644"
  expect:
    description:
      - What sshd has to say about connections before anything is changed (C(sshd -T -C)).
      - A keyword that was left out, because this sshd does not know it, is not compared.
      - In check mode, a user who does not exist yet is not asked about; see RV(unverified).
    type: list
    elements: dict
    default: []
    suboptions:
      connection:
        description: Who connects, and from where.
        type: dict
        required: true
        suboptions:
          user:
            description: The user who logs in.
            type: str
            required: true
          host:
            description: The name of the client; V(localhost) if it is not given.
            type: str
          addr:
            description: The address of the client; V(127.0.0.1) if it is not given.
            type: str
          laddr:
            description: The address that the client connects to; V(127.0.0.1) if it is not given.
            type: str
          lport:
            description: The port that the client connects to; V(22) if it is not given.
            type: int
      options:
        description:
          - Keywords with the values that have to be in force. Different spellings of a value, such
            as V(10m) and V(600), are the same.
        type: dict
        required: true
  confirm_within:
    description:
      - Seconds in which the change has to be confirmed by a task with O(state=confirmed), or it is
        undone. V(0) needs no confirmation.
      - A run that finds a pending change and wants the same has it wait for this time from now on,
        or confirms it with V(0). If it wants something else, it undoes the pending change first.
    type: int
    default: 0
  reload:
    description:
      - Whether sshd is told to read the change. Undoing a change then reloads sshd as well.
      - Where no sshd listens (because each connection starts its own, for one), there is nothing
        to reload, and RV(reload) says so.
    type: bool
    default: true
  config_path:
    description:
      - The configuration that sshd was started with.
    type: path
    default: /etc/ssh/sshd_config
  drop_in:
    description:
      - The drop-in. A file of another origin is refused. Its directory is made where it is missing.
    type: path
    default: /etc/ssh/sshd_config.d/00-bastion.mux.conf
  directory:
    description:
      - A directory for O(files), which belongs to this module alone. One with something else in it
        is refused.
    type: path
    default: /etc/ssh/bastion.mux
  sshd_executable:
    description:
      - The sshd to ask, a path or a name to look for in E(PATH), C(/usr/sbin), C(/sbin) and
        C(/usr/local/sbin).
    type: str
    default: sshd
seealso:
  - module: bastion.mux.ssh_client_config
  - module: bastion.mux.ssh_master
"""

EXAMPLES = r"""
- name: Have a bastion that only forwards for the group jump
  hosts: bastions
  become: true
  gather_facts: false
  tasks:
    - name: Change sshd, to be undone if nobody confirms it within two minutes
      bastion.mux.ssh_server_config:
        options:
          MaxStartups: 100:30:200
          AllowTcpForwarding: false
          PerSourcePenaltyExemptList: 192.0.2.0/24 # left out before OpenSSH 9.8
        matches:
          - match: Group jump
            options:
              AllowTcpForwarding: local
              PermitOpen: db.example.com:5432 web.example.com:443
              PermitTTY: false
              ForceCommand: /bin/false
              AuthorizedKeysFile: /etc/ssh/bastion.mux/keys/%u
        files:
          - name: keys/jump
            content: "{{ lookup('ansible.builtin.file', 'jump.pub') }}"
        expect:
          - connection:
              user: root
              addr: 192.0.2.10
            options:
              PermitTTY: true
        confirm_within: 120

    - name: Log in once more, over a connection of its own
      ansible.builtin.command: ssh -o ControlPath=none {{ inventory_hostname }} true
      delegate_to: localhost
      become: false
      changed_when: false

    - name: Keep the change
      bastion.mux.ssh_server_config:
        state: confirmed

- name: Take it all away again
  hosts: bastions
  become: true
  gather_facts: false
  tasks:
    - name: Have sshd as it was
      bastion.mux.ssh_server_config:
        state: absent
"""

RETURN = r"""
left_out:
  description: The settings that this sshd has no use for.
  type: list
  elements: dict
  returned: O(state=present) and O(state=absent)
  contains:
    keyword:
      description: The keyword.
      type: str
      returned: always
      sample: PerSourcePenaltyExemptList
    match:
      description: The condition that it is below; V(null) where it is among O(options).
      type: str
      returned: always
pending:
  description: Whether a change waits to be confirmed now.
  type: bool
  returned: success
sshd:
  description: The version of sshd.
  type: str
  returned: O(state=present) and O(state=absent)
  sample: OpenSSH_9.2p1
effective:
  description: What is in force for each connection of O(expect), by sshd's own words.
  type: list
  elements: dict
  returned: O(state=present) and O(state=absent)
  contains:
    connection:
      description: The connection, with what was not given.
      type: dict
      returned: always
    options:
      description: The keywords that O(expect) has, in small letters, each with its values.
      type: dict
      returned: always
      sample:
        permittty: ["yes"]
unverified:
  description: The users of O(expect) who do not exist yet, in check mode.
  type: list
  elements: str
  returned: O(state=present) and O(state=absent)
reload:
  description:
    - With V(done), sshd has reloaded and answers. V(unneeded) is said where nothing was changed and
      in check mode, V(off) with O(reload=false), and V(nobody listens) where there is no sshd to
      tell, because the next connection starts one.
  type: str
  returned: O(state=present) and O(state=absent)
mismatches:
  description: What is otherwise than O(expect) says.
  type: list
  elements: dict
  returned: failure, because of O(expect)
  contains:
    connection:
      description: For whom.
      type: str
      returned: always
      sample: user=root,host=localhost,addr=192.0.2.10,laddr=127.0.0.1,lport=22
    keyword:
      description: The keyword, in small letters.
      type: str
      returned: always
    meant:
      description: The values that O(expect) has.
      type: list
      elements: str
      returned: always
    found:
      description: The values that would be in force.
      type: list
      elements: str
      returned: always
    file:
      description: The file that has the say; V(null) where no single line has it.
      type: str
      returned: always
    line:
      description: The line there.
      type: int
      returned: always
reason:
  description:
    - Why the task failed, in one word, for C(failed_when) and C(rescue). The guide's page on
      troubleshooting has a section for each.
    - V(invalid) - a parameter has a value that cannot be used, sshd rejects the configuration,
      O(expect) is not met, or a file is not as it must be or cannot be written.
    - V(not_running) - sshd did not come back after its reload. RV(ignore:msg) says whether it runs
      again with what was there before.
    - V(timeout) - O(state=confirmed) came too late, sshd gave no answer, or another run was at it
      all the time.
    - V(ssh_missing) - there is no sshd.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.bastion.mux.plugins.module_utils.engine import server_config
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError


def main() -> None:
    """Be the module."""
    module = AnsibleModule(argument_spec=server_config.SPEC, supports_check_mode=True)
    try:
        result = server_config.run(module.params, check_mode=module.check_mode)
    except (MuxError, OSError) as error:
        # OSError: no process, no memory, no space.
        failure = error if isinstance(error, MuxError) else MuxError("invalid", str(error))
        module.fail_json(msg=failure.message, reason=failure.reason, **failure.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
