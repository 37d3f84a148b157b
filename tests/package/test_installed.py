# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What users get: the collection built, installed and used from a folder that is not its own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tarfile

import pytest
import yaml
from packaging.requirements import Requirement

from dev.execution_environment import adapted
from tests.support.guide import GUIDE, blocks_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Where the documentation of plugins is, by the type that ansible-doc knows them under.
SOURCES = {"module": "modules/*.py", "connection": "connection/*.py", "filter": "filter/*.yml"}
PLUGINS = {
    kind: sorted(f"bastion.mux.{path.stem}" for path in (ROOT / "plugins").glob(pattern))
    for kind, pattern in SOURCES.items()
}
KINDS = [kind for kind, names in PLUGINS.items() if names]
DEFINITION = "extensions/execution_environment/execution-environment.yml"
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
GROUP = yaml.safe_load((ROOT / "meta/runtime.yml").read_text(encoding="utf-8"))["action_groups"]


class Installed:
    """A fresh home that has the collection, and commands that run in it."""

    def __init__(self, top: pathlib.Path) -> None:
        self.home = top / "home"
        self.elsewhere = top / "elsewhere"
        self.home.mkdir()
        self.elsewhere.mkdir()
        mine = ("ANSIBLE_", "PYTHONPATH")
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(mine)}
        self.env["HOME"] = str(self.home)
        self.env["PATH"] = os.pathsep.join(
            [str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
        )
        self.run("ansible-galaxy", "collection", "build", str(ROOT), "--output-path", str(top))
        (self.artifact,) = top.glob("bastion-mux-*.tar.gz")
        self.run("ansible-galaxy", "collection", "install", "--offline", str(self.artifact))

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.elsewhere,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("package"))


def test_the_artifact_holds_the_sources_and_nothing_of_the_workshop(installed: Installed) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    sources = {name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()}
    with tarfile.open(installed.artifact) as archive:
        shipped = {member.name for member in archive if member.isfile()}
    assert shipped - sources == {"FILES.json", "MANIFEST.json"}
    assert {name for name in sources if name.startswith(("plugins/", "playbooks/"))} <= shipped
    assert not {name for name in shipped if name.startswith((".", "dev/", "build/"))}


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_is_listed(installed: Installed, kind: str) -> None:
    listing = installed.run("ansible-doc", "--type", kind, "--list", "--json", "bastion.mux")
    assert sorted(json.loads(listing)) == PLUGINS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_can_be_read(installed: Installed, kind: str) -> None:
    pages = json.loads(installed.run("ansible-doc", "--type", kind, "--json", *PLUGINS[kind]))
    for name in PLUGINS[kind]:
        assert pages[name]["doc"]["short_description"], name
        assert pages[name]["doc"]["author"], name
        assert pages[name]["examples"], name
    text = installed.run("ansible-doc", "--type", kind, *PLUGINS[kind])
    assert all(name in text for name in PLUGINS[kind])


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_playbooks_are_found_by_name(installed: Installed, path: pathlib.Path) -> None:
    installed.run("ansible-playbook", "--syntax-check", f"bastion.mux.{path.stem}")


def test_the_demo_runs_from_any_folder(installed: Installed) -> None:
    variables = "demo_server=paramiko demo_commands=2 status_html=page.html"
    said = installed.run("ansible-playbook", "bastion.mux.demo", "-e", variables)
    assert "Left behind: 0, 0, 0, 0." in said
    assert "bastion" in (installed.elsewhere / "page.html").read_text(encoding="utf-8")


def test_status_runs_from_any_folder(installed: Installed) -> None:
    assert "No masters." in installed.run("ansible-playbook", "bastion.mux.status")


def test_an_execution_environment_gets_what_it_needs(installed: Installed) -> None:
    """What ansible-builder finds in the installed collection, for a base image of either kind."""
    found = {kind: installed.elsewhere / kind for kind in ("pip", "bindep")}
    write = [f"--write-{kind}={path}" for kind, path in found.items()]
    collections = str(installed.home / ".ansible/collections")
    installed.run("ansible-builder", "introspect", *write, collections)
    told = {
        kind: [line.partition("  #")[0] for line in path.read_text(encoding="utf-8").splitlines()]
        for kind, path in found.items()
    }
    assert [Requirement(line).name for line in told["pip"]] == ["paramiko", "psutil"]
    assert told["bindep"] == ["openssh-client [platform:dpkg]", "openssh-clients [platform:rpm]"]


def test_the_definition_of_an_execution_environment(installed: Installed) -> None:
    """It is valid, and it is that of the guide, which is built with what that says of Debian."""
    (shipped,) = installed.home.glob(f".ansible/collections/*/bastion/mux/{DEFINITION}")
    definition = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    shown, on_debian, *_others = blocks_of((GUIDE / "guide_awx.rst").read_text(encoding="utf-8"))
    assert definition == shown
    context = installed.elsewhere / "context"
    installed.run("ansible-builder", "create", "--file", str(shipped), "--context", str(context))
    asked = yaml.safe_load((context / "_build/requirements.yml").read_text(encoding="utf-8"))
    assert asked == {"collections": [{"name": "bastion.mux"}]}
    built = adapted(definition, "base", installed.artifact)
    assert built["options"] == on_debian["options"]
    (step,) = on_debian["additional_build_steps"]["prepend_base"]
    assert built["additional_build_steps"]["prepend_base"][-1] == step


def test_the_action_group_holds_every_controller_module() -> None:
    actions = {path.stem for path in (ROOT / "plugins/action").glob("*.py")}
    # Other modules have none of the parameters that name a master: a default would break them.
    assert actions == set(GROUP["mux"])
    assert {f"bastion.mux.{name}" for name in actions} <= set(PLUGINS["module"])
