# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The error that crosses layers, and the page that explains its reasons."""

from __future__ import annotations

import ast
import pathlib
import re

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import REASONS, MuxError

ROOT = pathlib.Path(__file__).resolve().parents[5]


def test_it_carries_a_reason_a_message_and_more() -> None:
    error = MuxError("drift", "otherwise", forwards=[])
    assert (error.reason, error.message, error.details) == ("drift", "otherwise", {"forwards": []})
    assert str(error) == "otherwise"


def test_an_unknown_reason_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="'because'"):
        raise MuxError("because", "")


def test_every_reason_has_its_section_in_troubleshooting() -> None:
    page = ROOT / "docs" / "docsite" / "rst" / "troubleshooting.rst"
    headings = re.findall(r"^``(\w+)``\n-+$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == sorted(REASONS)


#: What naming a master can end with, whichever module does it.
NAMING = {"control_dir_insecure", "control_path_too_long", "invalid", "ssh_missing", "timeout"}


def test_every_module_documents_its_reasons() -> None:
    documented = {}
    for path in sorted((ROOT / "plugins" / "modules").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        returned = text.partition('RETURN = r"""')[2]
        documented[path.stem] = set(re.findall(r"^    - V\((\w+)\) - ", returned, re.MULTILINE))
        names_a_master = "  - bastion.mux.mux\n" in text
        assert documented[path.stem] >= (NAMING if names_a_master else {"invalid"}), path
    assert set().union(*documented.values()) == REASONS


def test_every_reason_is_given_somewhere_and_no_other() -> None:
    """Reasons are written as literals, so that a typo is found without running into it."""
    given = set()
    words = set()
    for path in sorted((ROOT / "plugins" / "module_utils").rglob("*.py")):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "MuxError":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    given.add(first.value)
    assert given <= REASONS
    assert words >= REASONS
