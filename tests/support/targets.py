# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many targets behind one bastion, on loopback: one sshd that answers at as many addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.sshd import Sshd

SERVER: dict[str, Any] = {
    "name": "targets",
    # An sshd listens at 16 addresses at most, or at all of them.
    "addresses": ["0.0.0.0"],
    "options": {"AllowUsers": "*@127.*", "MaxStartups": "2000"},
}
"""What makes an Sshd play the targets."""


class Targets:
    """`count` targets, t000 and so on, each with an address of its own, and their bastion.

    `config` is what the user's ~/.ssh/config would say. It lets every ssh to `bastion` share
    `socket`, as a careful user writes it.
    """

    def __init__(self, work: Path, bastion: Sshd, sshd: Sshd, count: int) -> None:
        self.bastion = bastion
        self.addresses = {
            f"t{number:03}": f"127.1.{number // 250}.{number % 250 + 1}" for number in range(count)
        }
        self.socket = work / "b"
        sharing = {"ControlMaster": "auto", "ControlPersist": "60", "ControlPath": self.socket}
        shared = {key: str(value) for key, value in sharing.items()}
        text = bastion.ssh_config(alias="bastion", options=shared).read_text()
        self.config = sshd.ssh_config(alias="127.1.*", options={"HostName": "%h"}, more=text)

    @property
    def file(self) -> str:
        """The argument of ssh's commands which makes them read `config`."""
        return f"-F {self.config}"

    def inventory(self, **variables: Any) -> dict[str, Any]:
        """The group `targets` with these variables, the host `bastion` and localhost."""
        shared = {"ansible_ssh_common_args": self.file, **variables}
        targets = {name: {"ansible_host": at} for name, at in self.addresses.items()}
        bastion = {
            "ansible_host": self.bastion.host,
            "ansible_port": self.bastion.port,
            "ansible_user": self.bastion.user,
            "ansible_ssh_private_key_file": str(self.bastion.identity_file),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.bastion.known_hosts}",
        }
        return {
            "targets": {"hosts": targets, "vars": shared},
            "bastions": {"hosts": {"bastion": bastion}},
            "ungrouped": {"hosts": {"localhost": {"ansible_connection": "local"}}},
        }
