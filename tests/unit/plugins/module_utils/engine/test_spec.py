# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What parameters become."""

from __future__ import annotations

import os
from typing import Any, Dict

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.engine import spec
from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.target import Target, flatten


def defaults(argument_spec: Dict[str, Dict[str, Any]]) -> Dict[str, Any]:
    return {name: option.get("default") for name, option in argument_spec.items()}


@pytest.mark.parametrize(
    "argument_spec", [spec.SSH_MASTER, spec.SSH_FORWARD, spec.SSH_MASTER_INFO, spec.SSH_KNOWN_HOSTS]
)
def test_what_is_left_out_is_the_default_of_a_login(argument_spec: Any) -> None:
    params = defaults(argument_spec)
    assert spec.target_of(params) is None
    assert spec.target_of({**params, "host": "bastion"}) == Target("bastion")
    # Tasks give strings, and what a spec does not have is not asked for.
    assert spec.target_of({"host": "bastion"}) == Target("bastion")


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({"port": 2222, "user": "me"}, Target("b", port=2222, user="me")),
        ({"jump": ["x", "y"]}, Target("b", jump=("x", "y"))),
        ({"ssh_options": {"Ciphers": "c"}}, Target("b", ssh_options=(("Ciphers", "c"),))),
        ({"persist": "10m"}, Target("b", persist="600")),
        ({"compression": False}, Target("b", compression=False)),
        ({"alive_interval": 0}, Target("b", alive_interval=0)),
        ({"host_key_checking": "off"}, Target("b", host_key_checking="off")),
        ({spec.EXTRA_ARGUMENTS: ["-C"]}, Target("b", extra_arguments=("-C",))),
        ({"identity_file": "/k/../id"}, Target("b", identity_file="/id")),
    ],
)
def test_parameters_are_a_login(params: Dict[str, Any], wanted: Target) -> None:
    assert spec.target_of({**defaults(spec.SSH_MASTER), "host": "b", **params}) == wanted


@pytest.mark.parametrize(
    ("given", "absolute"),
    [
        ("id", "/here/id"),
        ("~/id", "/home/me/id"),
        ("~nobody-of-this-name/id", "/here/~nobody-of-this-name/id"),
        ("/id", "/id"),
        ("%d/id", "%d/id"),
        ("${KEYS}/id", "${KEYS}/id"),
        ("none", "none"),
    ],
)
def test_paths_are_those_of_who_runs_the_task(
    given: str, absolute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwd", lambda: "/here")
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("identity_file", "ssh_config", "known_hosts_file"):
        target = spec.target_of({"host": "b", name: given})
        assert getattr(target, name) == absolute


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1, "host": "b"}, "timeout"),
        ({"drain_timeout": -1}, "drain_timeout"),
        ({"connect_timeout": 0, "host": "b"}, "connect_timeout"),
        ({"persist": "long", "host": "b"}, "persist"),
        ({"ssh_options": {"ControlPath": "x"}, "host": "b"}, "ssh_options"),
    ],
)
def test_what_no_ssh_could_take_is_refused(params: Dict[str, Any], named: str) -> None:
    with pytest.raises(MuxError, match="^%s: " % named) as caught:
        spec.target_of(params)
    assert caught.value.reason == "invalid"


def test_secrets_are_marked_as_such_and_never_arguments() -> None:
    for argument_spec in (spec.SSH_MASTER, spec.SSH_FORWARD):
        for name in spec.SECRETS:
            assert argument_spec[name]["no_log"] is True
    params = {"host": "b", "password": "the password", "passphrase": ""}
    secrets = spec.secrets_of(params)
    assert (secrets.password, secrets.passphrase) == ("the password", "")
    target = spec.target_of(params)
    assert target is not None
    arguments = flatten(spec.arguments_of(target, params))
    assert "the password" not in " ".join(arguments)
    assert "NumberOfPasswordPrompts=1" in arguments
    assert "BatchMode=yes" in flatten(spec.arguments_of(target, {"host": "b"}))
