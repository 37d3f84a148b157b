# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh said when it could not open a master, and what that means. Pure.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import re
from typing import Optional, Tuple

#: First match wins. The texts are ssh's own (sshconnect.c, sshconnect2.c, readconf.c, misc.c) and
#: have stood unchanged from OpenSSH 8.4 to 10.5.
_SIGNS = tuple(
    (reason, re.compile(pattern, re.IGNORECASE | re.MULTILINE))
    for reason, pattern in (
        ("host_key_changed", r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed"),
        ("host_key_changed", r"REVOKED HOST KEY DETECTED"),
        ("host_key_unknown", r"host key is known for|Host key verification failed"),
        ("invalid", r"Bad configuration option|keyword .* extra arguments|bad .* argument"),
        ("invalid", r"unsupported option|Can't open user config file|Bad owner or permissions on"),
        (
            "invalid",
            r"terminating, \d+ bad configuration|unknown option|Missing argument|usage: ssh",
        ),
        ("invalid", r"line \d+: |hostname contains invalid characters|Bad port"),
        ("control_path_too_long", r"too long for Unix domain socket|ControlPath .* too long"),
        ("timeout", r"timed out|Timeout, server .* not responding"),
        ("auth_failed", r"Permission denied \(|Too many authentication failures"),
        (
            "auth_failed",
            r"No supported authentication methods|sign_and_send_pubkey: signing failed",
        ),
        ("auth_failed", r"UNPROTECTED PRIVATE KEY FILE|Permission denied, please try again"),
        ("unreachable", r"Could not resolve hostname|Connection refused|No route to host"),
        ("unreachable", r"Network is unreachable|Connection (closed|reset)|Host is down"),
        ("unreachable", r"kex_exchange_identification|banner|stdio forwarding failed|Broken pipe"),
    )
)

#: Lines that tell a person nothing about the failure.
_NOISE = re.compile(
    r"^(Warning: Permanently added|Pseudo-terminal will not|debug\d:)", re.MULTILINE
)

LOST_RACE = re.compile(r"^ControlSocket .* already exists, disabling multiplexing", re.MULTILINE)


def diagnose(stderr: str) -> Tuple[str, str]:
    """The failure reason and the lines of ssh that explain it.

    :param stderr: all that ssh and its jump hosts wrote.
    """
    lines = [line.strip() for line in stderr.replace("\r", "").splitlines()]
    text = "\n".join(line for line in lines if line and not _NOISE.match(line))
    for reason, pattern in _SIGNS:
        if pattern.search(text):
            return reason, text
    return "unreachable", text


#: channels.c, channel_input_open_failure: "channel 2: open failed: connect failed: …".
_REFUSED_CHANNEL = re.compile(r"open failed: (.+)$", re.MULTILINE)


def refused_channel(log: str) -> Optional[str]:
    """Why the server refused the last connection that a master's log tells of, if it does."""
    found = _REFUSED_CHANNEL.findall(log.replace("\r", ""))
    return found[-1].strip() if found else None
