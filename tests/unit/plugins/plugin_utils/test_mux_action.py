# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every action adds to the engine: where it runs, and what comes from the inventory."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import spec
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.plugin_utils import mux_action
from ansible_collections.bastion.mux.plugins.plugin_utils.mux_action import MuxAction

CALLS: list[tuple[Mapping[str, Any], Context]] = []


def engine(params: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """An engine that says what it was called with."""
    CALLS.append((params, context))
    context.log("a line")
    if params["state"] == "absent":
        raise MuxError("drift", "otherwise", more=1)
    return {"changed": False}


class Action(MuxAction):
    engine_run = engine
    argument_spec = spec.SSH_MASTER


class Run:
    """One run of the action; `params` and `context` are what the engine got, if it was called."""

    def __init__(
        self,
        args: dict[str, Any] | None = None,
        task_vars: dict[str, Any] | None = None,
        *,
        connection: str = "ssh",
        become: bool = False,
        delegate_to: str | None = None,
        check: bool = False,
    ) -> None:
        task = SimpleNamespace(
            args=args or {}, delegate_to=delegate_to, check_mode=check, async_val=0, _uuid="task"
        )
        # What a variable holds is a template itself.
        templar = SimpleNamespace(
            template=lambda value: "bastion7" if value == "{{ name }}" else value
        )
        self.modules: list[Mapping[str, Any]] = []
        make: Any = Action  # its parts are stand-ins
        action = make(
            task,
            SimpleNamespace(_shell=SimpleNamespace(tmpdir="")),
            SimpleNamespace(connection=connection, become=become, check_mode=check),
            None,
            templar,
            None,
        )
        action._execute_module = self._execute_module
        CALLS.clear()
        self.result = action.run(task_vars={"inventory_hostname": "inv", **(task_vars or {})})
        self.params, self.context = CALLS[0] if CALLS else ({}, Context())

    def _execute_module(self, *, task_vars: Mapping[str, Any]) -> dict[str, Any]:
        self.modules.append(task_vars)
        return {"changed": True}


def given(params: Mapping[str, Any]) -> dict[str, Any]:
    """What is not the default."""
    found = {
        name: params[name]
        for name, option in spec.SSH_MASTER.items()
        if params[name] != option.get("default")
    }
    if params[spec.EXTRA_ARGUMENTS]:
        found["extra"] = params[spec.EXTRA_ARGUMENTS]
    return found


# What comes from the inventory


@pytest.mark.parametrize(
    ("args", "variables", "wanted"),
    [
        ({}, {}, {"host": "inv"}),
        ({}, {"ansible_host": "10.0.0.1"}, {"host": "10.0.0.1"}),
        ({}, {"ansible_host": "{{ name }}"}, {"host": "bastion7"}),
        ({}, {"ansible_host": ""}, {"host": "inv"}),
        ({}, {"ansible_port": "22"}, {"host": "inv", "port": 22}),
        ({"port": 7}, {"ansible_port": 22}, {"host": "inv", "port": 7}),
        ({}, {"ansible_user": "me", "ansible_ssh_user": "you"}, {"host": "inv", "user": "me"}),
        ({}, {"ansible_user": None, "ansible_ssh_user": "you"}, {"host": "inv", "user": "you"}),
        (
            {},
            {"ansible_ssh_private_key_file": "/k", "ansible_password": "p"},
            {"host": "inv", "identity_file": "/k", "password": "p"},
        ),
        (
            {},
            {"ansible_ssh_common_args": "-o 'A=b c'", "ansible_ssh_extra_args": "-C"},
            {"host": "inv", "extra": ["-o", "A=b c", "-C"]},
        ),
        # The path of a bastion's master, and how to open it.
        (
            {"control_path": "/s"},
            {"ansible_user": "me"},
            {"control_path": "/s", "host": "inv", "user": "me"},
        ),
        # A host is named: nothing of another one counts.
        (
            {"host": "b"},
            {"ansible_host": "h", "ansible_port": 22, "ansible_ssh_common_args": "-C"},
            {"host": "b"},
        ),
    ],
)
def test_what_a_task_leaves_out_is_the_inventory_hosts(
    args: dict[str, Any], variables: dict[str, Any], wanted: dict[str, Any]
) -> None:
    assert given(Run(args, variables).params) == wanted


@pytest.mark.parametrize("connection", ["local", "ansible.builtin.local"])
def test_a_path_in_a_play_on_the_controller_names_the_master_alone(connection: str) -> None:
    run = Run({"control_path": "/s"}, {"ansible_user": "me"}, connection=connection)
    assert given(run.params) == {"control_path": "/s"}


# Where it runs


@pytest.mark.parametrize(
    ("how", "as_module"),
    [
        ({}, False),
        ({"become": True}, False),
        ({"connection": "local"}, False),
        ({"connection": "local", "become": True}, True),
        ({"connection": "ansible.builtin.local", "become": True}, True),
        ({"delegate_to": "localhost"}, True),
        ({"delegate_to": "somehost", "become": True}, True),
    ],
)
def test_it_runs_in_the_worker_or_where_it_is_sent(how: dict[str, Any], as_module: bool) -> None:
    run = Run({"host": "b"}, **how)
    assert (len(run.modules), len(CALLS)) == ((1, 0) if as_module else (0, 1))
    assert run.result["changed"] is as_module


def test_a_module_is_not_sent_what_is_wrong_anyway() -> None:
    run = Run({"host": "b", "state": "gone"}, delegate_to="somehost")
    assert (run.result["failed"], run.result["reason"]) == (True, "invalid")
    assert run.modules == []


# What goes wrong


@pytest.mark.parametrize(
    ("args", "variables", "text"),
    [
        ({"state": "gone"}, {}, "state"),
        ({"sate": "absent"}, {}, "sate"),
        ({"port": "many"}, {}, "port"),
        ({}, {"ansible_port": "many"}, "port"),
        ({}, {"ansible_ssh_common_args": "-o 'A"}, "ansible_ssh_common_args: "),
        ({"jump": {"a": 1}}, {}, "jump"),
    ],
)
def test_what_is_wrong_is_named(args: dict[str, Any], variables: dict[str, Any], text: str) -> None:
    run = Run(args, variables)
    assert (run.result["failed"], run.result["reason"]) == (True, "invalid")
    assert text in run.result["msg"]
    assert CALLS == []


def test_a_failure_of_the_engine_is_one_of_the_task() -> None:
    assert Run({"state": "absent"}).result == {
        "failed": True,
        "changed": False,
        "reason": "drift",
        "msg": "otherwise",
        "more": 1,
    }


# What the engine is told


def test_the_engine_knows_the_mode_and_logs_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    logged = []
    monkeypatch.setattr(
        mux_action.display, "vvv", lambda line, host=None: logged.append((line, host))
    )
    assert Run({}, check=True).context.check_mode is True
    assert Run({"host": "b"}).context.check_mode is False
    assert logged == [("a line", "inv"), ("a line", "b")]


def test_hosts_of_one_try_share_a_round_and_no_other_does() -> None:
    first, second = Run({}).context, Run({}).context
    assert first.run_key == second.run_key
    assert len(first.run_key) == 32
    # The next try of a task, or the next item of its loop, in the same worker.
    assert first.round != second.round
    assert first.round.startswith("task ")
