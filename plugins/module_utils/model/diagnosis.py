# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh said when it could not open a master, and what that means. Pure.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import re
from typing import Optional, Tuple

#: First match wins, whatever matches none is "unreachable". The texts are ssh's own (sshconnect.c,
#: sshconnect2.c, readconf.c, misc.c), have stood unchanged from OpenSSH 8.4 to 10.5, and are
#: provoked one by one in tests/integration/test_diagnosis.py.
_SIGNS = tuple(
    (reason, re.compile(pattern, re.MULTILINE))
    for reason, pattern in (
        ("host_key_changed", r"REMOTE HOST IDENTIFICATION HAS CHANGED|REVOKED HOST KEY DETECTED"),
        ("host_key_unknown", r"Host key verification failed"),
        # Of an unsupported option ssh only complains.
        ("invalid", r"line \d+: (?!Unsupported option)"),
        ("invalid", r"Can't open user config file|Bad owner or permissions on"),
        ("invalid", r"^usage: ssh|^Bad port|name contains invalid characters"),
        ("control_path_too_long", r"too long for Unix domain socket"),
        ("timeout", r"timed out"),
        ("auth_failed", r"Permission denied \(|Too many authentication failures"),
        # Of a control socket, for which a disk has no room.
        ("invalid", r"unix_listener: cannot |muxserver_listen: link mux listener "),
    )
)

#: Lines that tell a person nothing about the failure.
_NOISE = re.compile(r"Warning: Permanently added|debug\d:")

#: Why a server hangs up at once stands in its log alone.
_HUNG_UP = re.compile(r"^kex_exchange_identification: (?:read: )?Connection ", re.MULTILINE)
_LOOK_THERE = (
    "the server hung up before the login: look in its log for MaxStartups (too many logins at"
    " once), PerSourcePenalties or a full disk"
)

LOST_RACE = re.compile(r"^ControlSocket .* already exists, disabling multiplexing", re.MULTILINE)


def diagnose(own: str, others: str = "") -> Tuple[str, str]:
    """The failure reason and the lines that explain it.

    :param own: what ssh itself wrote.
    :param others: what its jump hosts' ssh and the server's banner had to say. It counts only
        where ssh itself has no better explanation than that the connection was closed: a banner
        may hold any text.
    """
    told = [_telling(others), _telling(own)]
    text = "\n".join(part for part in told if part)
    for part in reversed(told):
        for reason, pattern in _SIGNS:
            if pattern.search(part):
                return reason, text
    if _HUNG_UP.search(text):
        text += "\n" + _LOOK_THERE
    return "unreachable", text


def _telling(text: str) -> str:
    lines = [line.strip() for line in text.replace("\r", "").split("\n")]
    return "\n".join(line for line in lines if line and not _NOISE.match(line))


#: channels.c, channel_input_open_failure: "channel 2: open failed: connect failed: …".
_REFUSED_CHANNEL = re.compile(r"open failed: (.+)$", re.MULTILINE)


def refused_channel(log: str) -> Optional[str]:
    """Why the server refused the last connection that a master's log tells of, if it does."""
    found = _REFUSED_CHANNEL.findall(log.replace("\r", ""))
    return found[-1].strip() if found else None
