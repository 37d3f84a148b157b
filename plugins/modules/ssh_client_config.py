# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ssh_client_config
short_description: Manage a block in the ssh configuration of every user
version_added: 0.1.0
description:
  - Brings entries for C(ssh) into C(~/.ssh/config) of any number of users, in one go, or takes
    them away again. They are one block between two marker lines; nothing outside of it is read for
    its meaning or changed by a byte.
  - A new block goes to the top of the file, because the first value that ssh finds for a setting
    is the one that counts. It ends with C(Match all), so that what follows keeps its meaning. A
    block that is there is renewed where it is.
  - Each user's files are read and written by a process that acts as this user. Root never writes
    where a user could lead it.
  - A user for whom it cannot be done is reported, and the others are done. Then the task fails at
    its end, and its RV(users) tells who and why.
author:
  - bastion.mux contributors (@bastion-mux)
extends_documentation_fragment:
  - bastion.mux.mux.changing
requirements:
  - Python 3.8 or newer, with nothing but its standard library, on the managed host
  - OpenSSH client 8.4 or newer on the managed host, unless O(verify=none)
attributes:
  async:
    description: Whether it can be used with the C(async) keyword.
    support: full
  become:
    description: Whether it can be used with C(become).
    support: full
    details:
      - Only root can manage other users' files. Everybody can manage their own.
  platform:
    description: Where it runs.
    support: full
    platforms: posix
notes:
  - What it made, it notes in the first marker line of the block, so that O(state=absent) gives
    everything back as it was - a file or a directory that was not there before goes away again, if
    nothing else is in it by then.
  - The file is replaced in one step. Owner, group, mode, ACLs, extended attributes and SELinux
    context stay; other hard links to it keep the old content.
  - C(Match final) and C(Match canonical) in O(hosts[].match) have ssh read all configuration a
    second time for every host. Prefer other conditions.
  - The module is no member of the action group C(bastion.mux.mux), because it has none of the
    parameters that name a master.
options:
  users:
    description:
      - The users whose C(~/.ssh/config) it is about, by name.
      - V(%GROUP) is everybody in this group who has a login shell and a home of their own, and V(*)
        is all such people of the machine, from the first user id of a person on (C(UID_MIN) of
        C(/etc/login.defs)). Where a directory service lists nobody, name its groups. With
        O(state=absent) the shell does not count.
      - Either this or O(path).
    type: list
    elements: str
  path:
    description:
      - A file that is not a user's own configuration, such as
        V(/etc/ssh/ssh_config.d/20-bastion.conf), written as the user who runs the module. Nobody
        else may be able to change the directories that lead there.
      - A new file can be read by whoever can read its directory.
      - With O(verify=effective), what the C(ssh_config) of the directory above says before it
        includes this file is taken into account; what users say in files of their own is not.
    type: path
  name:
    description:
      - The name of the block, which tells it from other blocks in the same file.
      - Letters, digits, dots, dashes and underscores, 64 at most.
    type: str
    default: default
  hosts:
    description:
      - The entries of the block, in this order. Needed where O(state=present).
    type: list
    elements: dict
    suboptions:
      host:
        description:
          - The names and patterns of a C(Host) line.
          - Either this or O(hosts[].match).
        type: str
      match:
        description: The conditions of a C(Match) line.
        type: str
      options:
        description:
          - Keywords of ssh_config with their values, as they would be written there; V(true) and
            V(false) become C(yes) and C(no). A list gives a keyword several times.
          - Quotes are not added. A value with white space that shall be one needs its own.
        type: dict
        default: {}
  state:
    description:
      - Whether the block shall be there.
    type: str
    choices: [present, absent]
    default: present
  layout:
    description:
      - V(block) has the entries in the configuration itself.
      - V(include) has them in C(config.d/bastion.mux-NAME.conf) beside it, and the block is one
        C(Include) line that counts for every host.
      - The other one is taken away, whichever it is.
    type: str
    choices: [block, include]
    default: block
  control_dir:
    description:
      - A directory for control sockets, made with mode 0700 for each user where it is missing.
        V(~), V(%d) (the home), V(%u) (the name) and V(%i) (the user id) are the user's.
      - One that belongs to somebody else, or that others could change, is refused.
      - With O(state=absent) it goes away again where this module made it and nothing but sockets is
        in it. Masters that still run have no socket then, and end after their last session.
    type: str
  backup:
    description:
      - Whether a copy of a file is kept before it is changed.
    type: bool
    default: false
  verify:
    description:
      - What to make sure of before anything is written for a user. In any case a newline or a
        control character in a value is refused.
      - V(syntax) has the installed ssh read the block, and the whole of the file where it changes.
        Keywords and values that it does not know, it refuses.
      - V(effective) also asks it (C(ssh -G), as this user) for each host name among O(hosts[].host)
        whether all settings would count. One that is shadowed by an earlier line is a failure for
        this user, and changes nothing; RV(users[].shadowed) has the line.
      - V(none) does not run ssh.
      - Where O(state=absent) there is nothing to verify.
    type: str
    choices: [effective, syntax, none]
    default: effective
  ssh_executable:
    description:
      - The ssh client to verify with, a path or a name to look for in E(PATH).
    type: str
    default: ssh
seealso:
  - module: bastion.mux.ssh_master
  - module: ansible.builtin.blockinfile
"""

EXAMPLES = r"""
- name: Give two people the bastion
  hosts: localhost
  gather_facts: false
  tasks:
    - name: Share one connection to it, and reach a network through it
      bastion.mux.ssh_client_config:
        users:
          - alice
          - bob
        name: team
        control_dir: ~/.ssh/mux
        hosts:
          - host: bastion
            options:
              HostName: bastion.example.com
              User: jump
              ControlMaster: auto
              ControlPath: ~/.ssh/mux/%C
              ControlPersist: 10m
              ServerAliveInterval: 15
              ForwardAgent: false
          - host: 172.16.*
            options:
              ProxyJump: bastion

    - name: Take it away again, as if it had never been there
      bastion.mux.ssh_client_config:
        users:
          - alice
          - bob
        name: team
        control_dir: ~/.ssh/mux
        state: absent

    - name: Give it to everybody on the machine
      bastion.mux.ssh_client_config:
        path: /etc/ssh/ssh_config.d/20-team.conf
        name: team
        hosts:
          - host: bastion
            options:
              HostName: bastion.example.com
"""

RETURN = r"""
users:
  description:
    - The users, in the order of O(users); with O(path), the one who ran the module. A group that
      does not exist is one of them, and failed.
  type: list
  elements: dict
  returned: always, where the parameters are valid
  contains:
    name:
      description: The user's name.
      type: str
      returned: always
    changed:
      description: Whether anything of this user's was changed, or would be in check mode.
      type: bool
      returned: always
    failed:
      description: Whether this user failed.
      type: bool
      returned: always
    msg:
      description: Why the user failed; empty where it did not.
      type: str
      returned: always
    reason:
      description: The same in one word.
      type: str
      returned: for a user who failed
    path:
      description: The configuration, where symbolic links end; V(null) where there is no such user.
      type: str
      returned: always
      sample: /home/alice/.ssh/config
    shadowed:
      description: The settings that would not count.
      type: list
      elements: dict
      returned: always
      contains:
        host:
          description: For which host.
          type: str
          returned: always
        keyword:
          description: The keyword.
          type: str
          returned: always
          sample: Port
        wanted:
          description: What O(hosts) say.
          type: str
          returned: always
          sample: "2222"
        actual:
          description: What is in force.
          type: str
          returned: always
          sample: "22"
        file:
          description: The file that has the say.
          type: str
          returned: always
          sample: /home/alice/.ssh/config
        line:
          description: The line there. In the block itself, as it would be written.
          type: int
          returned: always
    backup_file:
      description: The copy of what was there before.
      type: str
      returned: where O(backup) and a file was changed
reason:
  description:
    - Why the task failed, in one word, for C(failed_when) and C(rescue). The guide's page on
      troubleshooting has a section for each. Where users fail with several, it is V(invalid).
    - V(invalid) - a parameter has a value that cannot be used, a file is not as it must be or
      cannot be written, or a setting is shadowed.
    - V(control_dir_insecure) - others could change O(control_dir).
    - V(control_path_too_long) - a C(ControlPath) would be longer than this platform has room for
      in a user's home.
    - V(timeout) - a user's C(Match exec) or file system did not answer.
    - V(ssh_missing) - there is no ssh client to verify with.
  type: str
  returned: failure
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.bastion.mux.plugins.module_utils.engine import client_config
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError


def main() -> None:
    """Be the module."""
    module = AnsibleModule(
        argument_spec=client_config.SPEC,
        mutually_exclusive=[["users", "path"]],
        required_one_of=[["users", "path"]],
        required_if=[["state", "present", ["hosts"]]],
        supports_check_mode=True,
    )
    try:
        result = client_config.run(module.params, check_mode=module.check_mode)
    except (MuxError, OSError) as error:
        # OSError: no process, no memory, no space.
        failure = error if isinstance(error, MuxError) else MuxError("invalid", str(error))
        module.fail_json(msg=failure.message, reason=failure.reason, **failure.details)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
