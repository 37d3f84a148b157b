# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which variables of an inventory host say how to log in to it.

Imports nothing of weight: each task over a bastion of the inventory reads it anew. Private to the
collection: no promise is made about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HOST = ("ansible_host", "inventory_hostname")

#: Which variables stand for a parameter that nobody gave.
FROM_INVENTORY = {
    "port": ("ansible_port", "ansible_ssh_port"),
    "user": ("ansible_user", "ansible_ssh_user"),
    "identity_file": ("ansible_ssh_private_key_file", "ansible_private_key_file"),
    "password": ("ansible_password", "ansible_ssh_password", "ansible_ssh_pass"),
}

#: Further arguments of ssh.
ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")


def login(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a host's variables say of these; ``arguments`` are the texts of :data:`ARGUMENTS`."""

    def first(names: tuple[str, ...]) -> Any:
        for name in names:
            if name in variables:
                value = variables[name]
                if value not in (None, ""):
                    return value
        return None

    found = {name: first(names) for name, names in {"host": HOST, **FROM_INVENTORY}.items()}
    arguments = [first((name,)) for name in ARGUMENTS]
    return {
        **{name: value for name, value in found.items() if value is not None},
        "arguments": [str(text) for text in arguments if text],
    }
