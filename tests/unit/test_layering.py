# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The layering of plugins/: imports go down only, and only edges know Ansible."""

from __future__ import annotations

import ast
import pathlib
import sys
from collections.abc import Iterator

import pytest

PLUGINS = pathlib.Path(__file__).resolve().parents[2] / "plugins"
COLLECTION = "ansible_collections.bastion.mux.plugins."

EDGES = ("action", "connection", "filter", "modules", "plugin_utils")
# What each layer may import of the layers below it, itself included.
LAYERS = {
    "protocol": {"protocol"},
    "model": {"model"},
    "system": {"system", "protocol", "model"},
    "engine": {"engine", "system", "protocol", "model"},
    **{edge: {"plugin_utils", "engine", "system", "protocol", "model"} for edge in EDGES},
    "doc_fragments": set(),
}
PURE = ("protocol", "model", "doc_fragments")
EFFECTS = {"os", "socket", "subprocess", "time"}
LIBRARIES = {"paramiko", "psutil"}


def layer_of(path: pathlib.Path) -> str:
    """The layer that a file under plugins/ belongs to."""
    parts = path.relative_to(PLUGINS).parts
    return parts[1] if parts[0] == "module_utils" else parts[0]


def imports(source: str, package: str) -> Iterator[str]:
    """Every absolute name that a source imports, wherever in it; ``package`` resolves dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: -(node.level - 1) or None]
                base = ".".join([*parents, base]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def complaint(layer: str, name: str) -> str | None:
    """Why this layer may not import that name, or None."""
    top = name.partition(".")[0]
    if name.startswith(COLLECTION):
        target = name[len(COLLECTION) :].removeprefix("module_utils.").partition(".")[0]
        return None if target in LAYERS[layer] else f"{layer} may not import {target}"
    if top == "ansible":
        if layer in EDGES or (layer == "engine" and name.startswith("ansible.module_utils.")):
            return None
        return f"{layer} may not import {name}"
    if top in LIBRARIES:
        return f"{layer} imports the standard library only" if layer in PURE else None
    if top not in sys.stdlib_module_names:
        return f"{name} is neither of the standard library nor a requirement"
    if layer in PURE and top in EFFECTS:
        return f"{layer} has no effects, and {top} is one"
    return None


SOURCES = sorted(PLUGINS.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_imports_go_down_only(path: pathlib.Path) -> None:
    layer = layer_of(path)
    assert layer in LAYERS, f"{layer} is no layer: add it to the architecture first"
    package = COLLECTION + ".".join(path.relative_to(PLUGINS).parts[:-1])
    names = imports(path.read_text(encoding="utf-8"), package)
    assert [reason for name in names if (reason := complaint(layer, name))] == []


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("protocol", "import os"),
        ("protocol", "import socket as s"),
        ("protocol", "from time import monotonic"),
        ("protocol", "from ..model import errors"),
        ("model", "import os.path"),
        ("model", "import subprocess"),
        ("model", "import psutil"),
        ("model", "from ansible.module_utils.basic import AnsibleModule"),
        ("model", f"from {COLLECTION}module_utils.protocol import wire"),
        ("model", "def late():\n    import socket"),
        ("system", "from ..engine import run"),
        ("system", "from ansible.module_utils.basic import AnsibleModule"),
        ("engine", "from ansible.plugins.action import ActionBase"),
        ("engine", f"from {COLLECTION}plugin_utils import x"),
        ("engine", f"from {COLLECTION}modules.ssh_master import main"),
        ("modules", f"from {COLLECTION}modules import ssh_master"),
        ("modules", "import yaml"),
    ],
)
def test_what_is_forbidden_is_found(layer: str, source: str) -> None:
    package = COLLECTION + (layer if layer in EDGES else f"module_utils.{layer}")
    assert any(complaint(layer, name) for name in imports(source, package))


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("protocol", "import struct, dataclasses"),
        ("protocol", "from .errors import ProtocolError"),
        ("model", "import pathlib"),
        ("system", "import os, socket, psutil\nfrom ..protocol import wire"),
        ("engine", "from ansible.module_utils.basic import env_fallback\nfrom ..system import x"),
        ("action", f"import ansible.plugins.action\nfrom {COLLECTION}module_utils.engine import x"),
    ],
)
def test_what_is_allowed_passes(layer: str, source: str) -> None:
    package = COLLECTION + (layer if layer in EDGES else f"module_utils.{layer}")
    assert [complaint(layer, name) for name in imports(source, package)] == [None] * len(
        list(imports(source, package))
    )
