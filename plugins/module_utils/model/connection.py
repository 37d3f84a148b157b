# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a master of OpenSSH 10.3 and later tells of its connection, as values. Pure.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

from typing import Dict


def parse(text: str) -> Dict[str, str]:
    """The lines that follow the heading, by their keyword (packet.c, connection_info_message).

    The keywords are those of ssh; ``peer`` is the far end of its ``tcp``, which a connection
    through a jump host has not.
    """
    found = {}
    for line in text.splitlines()[1:]:
        keyword, _space, value = line.strip().partition(" ")
        if keyword:
            found[keyword] = value
    if "tcp" in found:
        found["peer"] = found["tcp"].rpartition(" -> ")[2]
    return found
