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
ENGINE = {"engine", "system", "protocol", "model"}
# What each layer may import of the layers below it, itself included.
LAYERS = {
    "protocol": {"protocol"},
    "model": {"model"},
    "system": {"system", "protocol", "model"},
    "engine": ENGINE,
    **{edge: {"plugin_utils", *ENGINE} for edge in EDGES},
    # Ansible sends a module nothing but module_utils.
    "modules": ENGINE,
    "doc_fragments": set(),
}
PURE = ("protocol", "model", "doc_fragments")
# All that a layer without effects may import: what is not here would be one, or hide one.
HARMLESS = set(
    "__future__ base64 binascii collections contextlib dataclasses enum fnmatch functools hashlib"
    " hmac ipaddress itertools json re string struct typing unicodedata".split()
)
EFFECTS_OF_BUILTINS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}
# What has effects beyond files and descriptors: system alone uses it.
LIBRARIES = {"paramiko", "psutil", "subprocess", "multiprocessing", "ctypes"}


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


def calls(source: str) -> Iterator[str]:
    """Every builtin with an effect that a source names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield from {node.id} & EFFECTS_OF_BUILTINS


def complaint(layer: str, name: str) -> str | None:
    """Why this layer may not import that name, or None."""
    top = name.partition(".")[0]
    if name.startswith(COLLECTION):
        target = name[len(COLLECTION) :].removeprefix("module_utils.").partition(".")[0]
        return None if target in LAYERS[layer] else f"{layer} may not import {target}"
    if top == "ansible":
        allowed = {
            "engine": "ansible.module_utils.",
            "modules": "ansible.module_utils.",
            # The options of a plugin that one of ours is a kind of.
            "doc_fragments": "ansible.plugins.connection.",
        }
        prefix = allowed.get(layer, "ansible" if layer in EDGES else None)
        if prefix and name.startswith(prefix):
            return None
        return f"{layer} may not import {name}"
    if layer in PURE:
        return None if top in HARMLESS else f"{layer} has no effects, and {top} may have one"
    if top in LIBRARIES:
        return None if layer == "system" else f"{layer} leaves {top} to system"
    if top not in sys.stdlib_module_names:
        return f"{name} is neither of the standard library nor a requirement"
    return None


def complaints(layer: str, source: str, package: str) -> list[str]:
    """All that is wrong with a source."""
    found = [complaint(layer, name) for name in imports(source, package)]
    if layer in PURE:
        found += [f"{layer} has no effects, and {name} is one" for name in calls(source)]
    return [reason for reason in found if reason is not None]


SOURCES = sorted(PLUGINS.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PLUGINS)))
def test_imports_go_down_only(path: pathlib.Path) -> None:
    layer = layer_of(path)
    assert layer in LAYERS, f"{layer} is no layer: add it to the architecture first"
    package = COLLECTION + ".".join(path.relative_to(PLUGINS).parts[:-1])
    assert complaints(layer, path.read_text(encoding="utf-8"), package) == []


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
        ("modules", f"from {COLLECTION}plugin_utils import mux_action"),
        ("modules", "from ansible.plugins.action import ActionBase"),
        ("modules", "import yaml"),
        ("model", "import pathlib"),
        ("model", "import importlib"),
        ("model", "from .. import system"),
        ("protocol", "def read(path):\n    return open(path)"),
        ("model", "import ansible_collections.community.general"),
        ("engine", "import subprocess"),
        ("engine", "import psutil"),
        ("action", "import paramiko"),
    ],
)
def test_what_is_forbidden_is_found(layer: str, source: str) -> None:
    package = COLLECTION + (layer if layer in EDGES else f"module_utils.{layer}")
    assert complaints(layer, source, package)


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("protocol", "import struct, dataclasses"),
        ("protocol", "from .errors import ProtocolError"),
        ("model", "import re, json\nfrom . import errors"),
        ("system", "import os, socket, subprocess, psutil\nfrom ..protocol import wire"),
        ("engine", "from ansible.module_utils.basic import env_fallback\nfrom ..system import x"),
        ("modules", f"import os\nfrom {COLLECTION}module_utils.engine import x"),
        ("action", f"import ansible.plugins.action\nfrom {COLLECTION}module_utils.engine import x"),
    ],
)
def test_what_is_allowed_passes(layer: str, source: str) -> None:
    package = COLLECTION + (layer if layer in EDGES else f"module_utils.{layer}")
    assert complaints(layer, source, package) == []
