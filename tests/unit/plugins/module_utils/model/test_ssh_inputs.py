# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is read out of ssh's words and of its configuration.

The real ssh is in tests/integration.
"""

from __future__ import annotations

from typing import Dict, List, Optional

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model import ssh_inputs

SAID = """\
debug1: OpenSSH_10.0p2 Debian-7+deb13u4, OpenSSL 3.5.9 29 Sep 2026\r
debug1: Reading configuration data /root/.ssh/config\r
debug1: Reading configuration data /etc/ssh/ssh_config\r
debug1: /etc/ssh/ssh_config line 21: Applying options for *\r
/root/.ssh/config: line 3: a complaint\r
debug1: Reading configuration data /root/.ssh/config\r
"""


def test_what_ssh_says() -> None:
    heard = ssh_inputs.heard(SAID)
    assert heard.version == "OpenSSH_10.0p2"
    assert heard.files == ("/root/.ssh/config", "/etc/ssh/ssh_config")
    assert heard.errors.split("\r\n") == ["/root/.ssh/config: line 3: a complaint", ""]
    assert ssh_inputs.heard("") == ("", None, ())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"Host *\n  User x # include exec\n# Include ${HOME} \n", None),
        (b"# Include a\n\t#exec $HOME\n", []),
        (b"Include a b\n \t iNcLuDe\t~/c*.conf\r\nInclude=d\n", ["a", "b", "~/c*.conf", "d"]),
        (b"Include = /e\n", ["/e"]),
        (b"Match all\nMatch originalhost x\n", []),
        (b"Match host x EXEC true\n", None),
        (b"Match LocalNetwork 10.0.0.0/8\n", None),
        (b"ControlPath ${HOME}/s\n", None),
        (b"SecurityKeyProvider $SK\n", None),
        (b'Include "a b"\n', None),
        (b"Include a\\ b\n", None),
        (b"Include %d/a\n", None),
        (b"Include [^a]*\n", None),
        (b"Include {a,b}\n", None),
        (b"Include ~other/a\n", None),
        (b"Include\n", None),
        (b"Include \xff\n", ["\udcff"]),
    ],
)
def test_what_a_configuration_includes(content: bytes, expected: Optional[List[str]]) -> None:
    assert ssh_inputs.includes(content) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/a/*", ["/a/*"]),
        ("~/a", ["/home/x/a"]),
        ("a", ["/home/x/.ssh/a", "/etc/ssh/a"]),
    ],
)
def test_where_ssh_looks_for_it(pattern: str, expected: List[str]) -> None:
    files = ["/home/x/.ssh/config", "/etc/ssh/ssh_config"]
    assert ssh_inputs.places(pattern, "/home/x", files) == expected


@pytest.mark.parametrize(
    ("effective", "expected"),
    [
        ({}, True),
        ({"canonicalizehostname": ["false"]}, True),
        ({"canonicalizehostname": ["no"]}, True),
        ({"canonicalizehostname": ["always"]}, False),
        ({"canonicalizehostname": ["true"]}, False),
    ],
)
def test_name_servers(effective: Dict[str, List[str]], expected: bool) -> None:
    assert ssh_inputs.is_lasting(effective) == expected
