# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a module does around the engine: every failure has a reason, and none is a traceback."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import module
from ansible_collections.bastion.mux.plugins.module_utils.engine.module import attempt, run_module
from ansible_collections.bastion.mux.plugins.module_utils.engine.place import Context
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.protocol.errors import ProtocolError
from ansible_collections.bastion.mux.plugins.module_utils.system.mux_client import (
    MuxClientError,
    MuxClosed,
    MuxDenied,
    MuxRefused,
    MuxTimeout,
    SocketMissing,
    SocketStale,
)


def raising(error: Exception) -> Any:
    def run(params: Mapping[str, Any], context: Context) -> Dict[str, Any]:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (MuxError("drift", "otherwise"), "drift", "otherwise"),
        (MuxTimeout("1 s"), "timeout", "the master did not answer in time: 1 s"),
        (MuxClosed("x"), "not_running", "the master ended in the meantime: x"),
        (SocketMissing("x"), "not_running", "the master ended in the meantime: x"),
        (SocketStale("x"), "not_running", "the master ended in the meantime: x"),
        (MuxRefused("x"), "invalid", "x"),
        (MuxDenied("x"), "invalid", "x"),
        (MuxClientError("x"), "invalid", "x"),
        (ProtocolError("x"), "invalid", "x"),
        (OSError(28, "No space left on device", "/s"), "invalid", "No space left on device"),
        (PermissionError(13, "Permission denied", "/s"), "invalid", "'/s'"),
    ],
)
def test_a_failure_is_a_result(error: Exception, reason: str, message: str) -> None:
    result = attempt(raising(error), {}, Context())
    assert (result["failed"], result["changed"], result["reason"]) == (True, False, reason)
    assert message in result["msg"]


def test_a_failure_tells_what_else_it_knows() -> None:
    error = MuxError("drift", "otherwise", forwards=[1], changed=True)
    result = attempt(raising(error), {}, Context())
    assert result == {
        "failed": True,
        "changed": True,
        "forwards": [1],
        "msg": "otherwise",
        "reason": "drift",
    }


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        attempt(raising(ZeroDivisionError()), {}, Context())


def test_without_psutil_nothing_is_attempted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PSUTIL_ERROR", "the traceback")
    result = attempt(raising(ZeroDivisionError()), {}, Context())
    assert result["failed"] is True
    assert result["reason"] == "invalid"
    assert "psutil" in result["msg"]
    assert result["exception"] == "the traceback"


class Exits(Exception):
    """How the module ended."""


@pytest.mark.parametrize("check", [False, True])
def test_a_module_exits_with_the_result(monkeypatch: pytest.MonkeyPatch, check: bool) -> None:
    logged: List[str] = []

    class Module:
        def __init__(self, argument_spec: object, supports_check_mode: bool) -> None:
            assert supports_check_mode
            self.params = {"spec": argument_spec}
            self.check_mode = check
            self.debug = logged.append

        def exit_json(self, **result: Any) -> None:
            raise Exits("exit", result)

        def fail_json(self, **result: Any) -> None:
            raise Exits("fail", result)

    def run(params: Mapping[str, Any], context: Context) -> Dict[str, Any]:
        context.log("a line")
        return {"changed": context.check_mode, **params}

    monkeypatch.setattr(module, "AnsibleModule", Module)
    with pytest.raises(Exits) as caught:
        run_module({"host": {}}, run)
    assert caught.value.args == ("exit", {"changed": check, "spec": {"host": {}}})
    assert logged == ["a line"]
    with pytest.raises(Exits) as caught:
        run_module({}, raising(MuxError("drift", "otherwise")))
    failed = {"changed": False, "msg": "otherwise", "reason": "drift"}
    assert caught.value.args == ("fail", failed)
