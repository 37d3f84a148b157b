# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a master tells of its connection."""

from __future__ import annotations

from ansible_collections.bastion.mux.plugins.module_utils.model.connection import parse

#: As OpenSSH 10.6 gives it.
TEXT = """\
Connection information for box pid 18\r
  versions OpenSSH_10.6p1 Debian-1 -> OpenSSH_10.6p1 Debian-1\r
  tcp 127.0.0.1:60656 -> 127.0.0.1:2222\r
  duration 00:00:07\r
  kexalgorithm mlkem768x25519-sha256\r
  hostkeyalgorithm ssh-ed25519\r
  cipher chacha20-poly1305@openssh.com\r
  mac <implicit>\r
  compression zlib@openssh.com\r
  rekey limit none interval none\r
  traffic 9 pkts 129 blks 3.3KB in, 5 pkts 65 blks 3.4KB out\r
    compressed 261B/270B (*0.967) in, 0B/0B (*0.000) out\r
"""


def test_each_line_by_its_keyword() -> None:
    assert parse(TEXT) == {
        "versions": "OpenSSH_10.6p1 Debian-1 -> OpenSSH_10.6p1 Debian-1",
        "tcp": "127.0.0.1:60656 -> 127.0.0.1:2222",
        "peer": "127.0.0.1:2222",
        "duration": "00:00:07",
        "kexalgorithm": "mlkem768x25519-sha256",
        "hostkeyalgorithm": "ssh-ed25519",
        "cipher": "chacha20-poly1305@openssh.com",
        "mac": "<implicit>",
        "compression": "zlib@openssh.com",
        "rekey": "limit none interval none",
        "traffic": "9 pkts 129 blks 3.3KB in, 5 pkts 65 blks 3.4KB out",
        "compressed": "261B/270B (*0.967) in, 0B/0B (*0.000) out",
    }


def test_no_peer_is_told_behind_a_jump_host() -> None:
    lines = [line for line in TEXT.splitlines() if " tcp " not in line]
    assert "peer" not in parse("\r\n".join(lines))


def test_nothing_tells_nothing() -> None:
    assert parse("") == parse("Connection information\r\n\r\n") == {}
