# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples that the documentation shows work as they stand, against a real bastion.

Names of a network that does not exist here (`db.internal`) are replaced by services on loopback,
and `ssh` by one that finds `bastion` in a configuration of the test's own.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.accounts import Account
from tests.support.guide import GUIDE, plays_of
from tests.support.playbook import CHECKOUT, ansible_environment, run_playbook
from tests.support.services import Page
from tests.support.sshd import Sshd

MODULES = ("ssh_forward", "ssh_master", "ssh_master_info")


#: Pages whose playbooks need what the tests of these names have.
ELSEWHERE = {"guide_other_ways": "test_other_ways", "guide_thousand": "connection/test_guide"}


def _pages(kind: str) -> list[Any]:
    """The playbooks of the guide, of one kind."""
    return [
        pytest.param(plays, id=f"{page.stem}-{number}")
        for page in sorted(GUIDE.glob("*.rst"))
        if page.stem not in ELSEWHERE
        for number, plays in enumerate(plays_of(page.read_text(encoding="utf-8")))
        if _kind(plays[0]) == kind
    ]


def _kind(play: Mapping[str, Any]) -> str:
    # test_role_server.py has the bastions for those.
    if "bastion.mux.server" in play.get("roles", ()):
        return "server"
    return "laptops" if play["hosts"] == "laptops" else "bastion"


@pytest.fixture
def service() -> Iterator[Page]:
    """Stands for whatever the examples look for behind the bastion."""
    with Page() as running:
        yield running


def _localised(text: str, service: Page) -> str:
    far_end = f"127.0.0.1:{service.port}"
    text = text.replace("http://web.internal/", f"http://{far_end}/")
    return re.sub(r"\b(?:db|web)\.internal:\d+", far_end, text)


def _run_twice(
    work: Path, world: Mapping[str, str], playbook: str, server: Sshd, **extra: Any
) -> None:
    inventory = {
        "all": {
            "hosts": {"localhost": {"ansible_connection": "local"}},
            "children": {"bastions": {"hosts": {"bastion": {}}}},
        }
    }
    first = run_playbook(work, playbook, inventory=inventory, env=world, extra_vars=extra).ok()
    assert first.results
    logins = server.logins()
    second = run_playbook(work, playbook, inventory=inventory, env=world, extra_vars=extra).ok()
    if "absent" not in playbook and "restarted" not in playbook:
        assert second.changed() == 0, str(second)
        assert server.logins() == logins


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_module(
    module: str, work: Path, world: Mapping[str, str], bastion: Sshd, service: Page
) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "ansible", "doc", "--json", f"bastion.mux.{module}"],
        env=ansible_environment(work),
        check=True,
        capture_output=True,
        text=True,
    )
    examples = json.loads(shown.stdout)[f"bastion.mux.{module}"]["examples"]
    _run_twice(work, world, _localised(examples, service), bastion)


@pytest.mark.parametrize("plays", _pages("bastion"))
def test_playbooks_of_the_guide(
    plays: list[dict[str, Any]],
    work: Path,
    world: Mapping[str, str],
    bastion: Sshd,
    service: Page,
) -> None:
    _run_twice(work, world, _localised(yaml.safe_dump(plays), service), bastion)


@pytest.mark.parametrize("plays", _pages("laptops"))
def test_playbooks_of_the_guide_for_laptops(
    plays: list[dict[str, Any]], work: Path, account: Account
) -> None:
    inventory = {"laptops": {"hosts": {"laptop": {"ansible_connection": "local"}}}}
    # This machine has people of its own, and an /etc.
    instead = {
        "client_users": [account.name],
        "client_known_hosts_path": str(work / "known_hosts"),
        "ansible_become": False,
    }
    for changes in (plays[0]["vars"].get("client_state") != "absent", False):
        done = run_playbook(work, plays, inventory=inventory, extra_vars=instead).ok()
        assert bool(done.changed()) == changes


def _first_playbook() -> str:
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    first = re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert first is not None
    return first.group(1)


def test_first_playbook_of_the_readme(
    work: Path, world: Mapping[str, str], bastion: Sshd, service: Page
) -> None:
    names = {"bastion": "bastion", "web": f"127.0.0.1:{service.port}"}
    for changes in (1, 0):
        dry: dict[str, Any] = {"check": True, "diff": True, "env": world, "extra_vars": names}
        foretold = run_playbook(work, _first_playbook(), **dry).ok()
        assert foretold.changed() == changes
        assert foretold.task("Show its answer").event == ("skipped" if changes else "ok")
        assert "template error" not in foretold.stdout + foretold.stderr
        _run_twice(work, world, _first_playbook(), bastion, **names)


def test_first_playbook_with_the_bastion_of_make(work: Path) -> None:
    def make(*arguments: str) -> str:
        program = [sys.executable, str(CHECKOUT / "dev/bastion.py"), str(work / "b"), *arguments]
        return subprocess.run(program, check=True, capture_output=True, text=True).stdout

    said = make()
    try:
        assert " listens on 127.0.0.1 port " in said
        names = json.loads((work / "b/vars.json").read_text(encoding="utf-8"))
        assert f"-e @{work}/b/vars.json" in said
        for changes in (1, 0):
            run = run_playbook(work, _first_playbook(), extra_vars=names).ok()
            assert run.changed() == changes
            assert "embedded-bastion" in run.task("Show its answer")["page.content"]
        assert " already listens on " in make()
        shown = re.search(r"^    ansible (.*)$", said.replace("\\\n", " "), re.MULTILINE)
        assert shown is not None
        command = [sys.executable, "-m", "ansible", "adhoc", *shlex.split(shown.group(1))]
        closed = subprocess.run(
            command, env=ansible_environment(work), check=True, capture_output=True, text=True
        )
        assert "CHANGED" in closed.stdout
        run_playbook(work, _first_playbook(), extra_vars=names).ok()
    finally:
        assert make("stop") == "The bastion has ended.\n"
    assert make("stop") == "There is no bastion to end.\n"
    gone = run_playbook(work, _first_playbook(), extra_vars=names)
    assert gone.results[0]["reason"] == "invalid"
    assert f"{work}/b/ssh_config" in gone.results[0].msg
