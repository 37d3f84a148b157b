# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ssh says and what that means. tests/integration/test_diagnosis.py has ssh itself say it."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.diagnosis import (
    LOST_RACE,
    diagnose,
    refused_channel,
)
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import REASONS

DENIED = "me@bastion: Permission denied (publickey)."
CHANGED = "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @"
UNVERIFIED = "Host key verification failed."
CLOSED = "Connection closed by UNKNOWN port 65535"
DROPPED = "kex_exchange_identification: read: Connection reset by peer"
LOOK_THERE = (
    "the server hung up before the login: look in its log for MaxStartups (too many logins at"
    " once), PerSourcePenalties or a full disk"
)
NO_SPACE = "No space left on device"
FULL = f"cannot bind to path /a.KrfLjaSikvFdp8sW: {NO_SPACE}"
TIMED_OUT = "ssh: connect to host bastion port 22: Connection timed out"


@pytest.mark.parametrize(
    ("own", "others", "reason", "text"),
    [
        ("", "", "unreachable", ""),
        ("something new", "", "unreachable", "something new"),
        (DENIED, "", "auth_failed", DENIED),
        # The end of the line as ssh writes it (log.c), and lines of no use.
        (f"\r\n  {DENIED}\r\n\r\n", "", "auth_failed", DENIED),
        (f"debug1: timed out\nWarning: Permanently added 'x'\n{DENIED}", "", "auth_failed", DENIED),
        # The gravest of several.
        (f"{CHANGED}\n{UNVERIFIED}", "", "host_key_changed", f"{CHANGED}\n{UNVERIFIED}"),
        # Who is dropped is not told why.
        (DROPPED, "", "unreachable", f"{DROPPED}\n{LOOK_THERE}"),
        (CLOSED, DROPPED, "unreachable", f"{DROPPED}\n{CLOSED}\n{LOOK_THERE}"),
        # A hop says why, and the target's own ssh only that it is gone.
        (CLOSED, DENIED, "auth_failed", f"{DENIED}\n{CLOSED}"),
        (CLOSED, UNVERIFIED, "host_key_unknown", f"{UNVERIFIED}\n{CLOSED}"),
        (CLOSED, "", "unreachable", CLOSED),
        # A banner has nothing to say where ssh itself has.
        (DENIED, CHANGED, "auth_failed", f"{CHANGED}\n{DENIED}"),
        (TIMED_OUT, DENIED, "timeout", f"{DENIED}\n{TIMED_OUT}"),
        (f"unix_listener: {FULL}", "", "invalid", ...),
        (f"muxserver_listen: link mux listener /a => /b: {NO_SPACE}", "", "invalid", ...),
        # What only looks like a reason.
        (f'/c line 3: Unsupported option "x"\n{DENIED}', "", "auth_failed", ...),
        ("ssh: connect to host 255.255.255.255 port 22: Permission denied", "", "unreachable", ...),
        ("we saw Bad port and usage: ssh", "", "unreachable", ...),
    ],
)
def test_the_reason_and_the_lines_that_explain_it(
    own: str, others: str, reason: str, text: object
) -> None:
    assert diagnose(own, others) == (reason, own if text is ... else text)


words = st.text() | st.lists(
    st.sampled_from(
        [DENIED, CHANGED, UNVERIFIED, CLOSED, TIMED_OUT, "debug1: x", "\r", "\x85", "\udcff"]
    )
).map("\n".join)


@given(words, words)
def test_whatever_was_said_has_a_documented_reason(own: str, others: str) -> None:
    reason, text = diagnose(own, others)
    assert reason in REASONS
    assert "\r" not in text
    assert not any(line.startswith("debug1: ") for line in text.split("\n"))
    # What others say never weakens what ssh itself said.
    alone, _text = diagnose(own)
    assert alone in ("unreachable", reason)


def test_a_lost_race_is_said_on_a_line_of_its_own() -> None:
    said = "ControlSocket /a b/s already exists, disabling multiplexing"
    assert LOST_RACE.search("first\n%s\r\n" % said)
    assert not LOST_RACE.search("he said: " + said)


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("", None),
        ("channel 2: open failed: ", None),
        (
            "channel 2: open failed: connect failed: Connection refused\r\n",
            "connect failed: Connection refused",
        ),
        ("channel 2: open failed: a\nother\nchannel 3: open failed: b: c\n", "b: c"),
    ],
)
def test_the_last_refusal_counts(log: str, why: Optional[str]) -> None:
    assert refused_channel(log) == why
