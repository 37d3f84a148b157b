# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks and other YAML that the guide shows."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import yaml

from tests.support.playbook import CHECKOUT

GUIDE = CHECKOUT / "docs/docsite/rst"
_CODE_BLOCK = re.compile(r"^\.\. code-block:: yaml.*\n\n((?:    .*\n|\n)+)", re.MULTILINE)


def blocks_of(text: str) -> list[Any]:
    """What the YAML of a page says, block by block."""
    return [yaml.safe_load(textwrap.dedent(block)) for block in _CODE_BLOCK.findall(text)]


def plays_of(text: str) -> list[list[dict[str, Any]]]:
    """The playbooks among the code blocks of a page."""
    return [block for block in blocks_of(text) if isinstance(block, list) and "hosts" in block[0]]
