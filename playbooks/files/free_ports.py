#!/usr/bin/env python
# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print COUNT ports of loopback on which nobody listens, as JSON: `free_ports.py COUNT`."""

from __future__ import annotations

import json
import random
import socket
import sys


def main() -> int:
    held: list[socket.socket] = []
    while len(held) < int(sys.argv[1]):
        # Below those that Linux and macOS give out by themselves: nobody is likely to take one
        # between now and its use.
        port = random.randrange(20000, 32000)
        try:
            held.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
    json.dump([one.getsockname()[1] for one in held], sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
