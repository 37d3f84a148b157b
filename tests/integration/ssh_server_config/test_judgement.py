# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What sshd says before anything is changed: whoever is refused finds everything as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ssh_server_config.conftest import NEW, Server
from tests.support.accounts import Account
from tests.support.sshd import make_key, openssh_version, public_key, sshd_path
from tests.support.tasks import Tasks


def expects(user: str = "root", **options: Any) -> list[dict[str, Any]]:
    return [{"connection": {"user": user}, "options": options}]


def test_keywords_that_sshd_does_not_know_are_left_out_and_reported(
    server: Server, tasks: Tasks
) -> None:
    many = {f"NotYet{number}": "x" for number in range(3)}
    result = tasks.one(
        options={**NEW, "NotYet": "a", "RSAAuthentication": True},
        matches=[
            {"match": "User nobody", "options": {**many, "PermitTTY": False}},
            {"match": "User nobody,games", "options": {"NotYet": "b"}},
        ],
        expect=expects(NotYet="c", ForceCommand="echo new"),
    )
    assert {(one["keyword"], one["match"]) for one in result["left_out"]} == {
        ("NotYet", None),
        ("RSAAuthentication", None),
        ("NotYet0", "User nobody"),
        ("NotYet1", "User nobody"),
        ("NotYet2", "User nobody"),
        ("NotYet", "User nobody,games"),
    }
    text = server.drop_in.read_text()
    assert "NotYet" not in text
    assert "    PermitTTY no\n" in text
    assert result["effective"][0]["options"] == {"forcecommand": ["echo new"]}
    assert server.login() == "new"
    version = ".".join(map(str, openssh_version(sshd_path() or "sshd")))
    assert result["sshd"].startswith(f"OpenSSH_{version}")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a value": ({"options": {"MaxStartups": "many"}}, "MaxStartups many"),
    "a value below a Match": (
        {"matches": [{"match": "User root", "options": {"PermitTTY": "perhaps"}}]},
        "PermitTTY perhaps",
    ),
    "a keyword that a Match may not have": (
        {"matches": [{"match": "User root", "options": {"MaxStartups": 5}}]},
        "not allowed within a Match",
    ),
    "a condition": ({"matches": [{"match": "Weather fine"}]}, "Match"),
    "a newline in a value": ({"options": {"Banner": "x\nMatch all"}}, "control character"),
    "a file that is elsewhere": ({"files": [{"name": "../x", "content": ""}]}, "files[0].name"),
    "a file of a path": ({"files": [{"name": "/etc/x", "content": ""}]}, "files[0].name"),
    "a user who is not there": (
        {"expect": expects("bm-nobody-of-this-name", PermitTTY=True)},
        "no user bm-nobody",
    ),
    "an expectation that is not met": ({"expect": expects(PermitTTY=False)}, "permittty"),
    "an expectation that has no sense": ({"expect": expects(PermitTTY="perhaps")}, "expect: "),
    "an expectation about what sshd does not tell": ({"expect": expects(Foo="x")}, "Foo"),
    "a relative path": ({"drop_in": "x.conf"}, "drop_in"),
    "a configuration that is not there": ({"config_path": "/nonexistent/x"}, "no file"),
    "a directory with the configuration in it": ({"directory": "{top}"}, "this module alone"),
    "a drop-in of somebody else": ({"drop_in": "{top}/ssh_config"}, "not written by this module"),
    "the configuration as drop-in": ({"drop_in": "{top}/sshd_config"}, "not written by this"),
    "a directory of somebody else": ({"directory": "/etc"}, "not from this module"),
    "a directory without one above it": ({"directory": "{top}/a/b"}, "No such file"),
    "an sshd that is not there": ({"sshd_executable": "nosshd"}, "nosshd"),
    "a deadline before the beginning": ({"confirm_within": -1}, "confirm_within"),
}


def test_what_is_refused_changes_nothing(server: Server, tasks: Tasks) -> None:
    before = server.tree()
    top = str(server.config.parent)
    given: list[dict[str, Any]] = []
    for name, (params, _said) in REFUSED.items():
        filled: dict[str, Any] = {
            key: value.replace("{top}", top) if isinstance(value, str) else value
            for key, value in params.items()
        }
        given.append({**tasks.task(name, **filled), "ignore_errors": True})
    result = tasks.play(*given)
    for name, (_params, said) in REFUSED.items():
        failed = result.task(name)
        assert failed.event == "failed", name
        assert said in failed.msg, name
        reason = "ssh_missing" if "nosshd" in said else "invalid"
        assert failed["reason"] == reason, failed.msg
    assert "Traceback" not in result.stdout + result.stderr
    assert server.tree() == before
    assert server.login() == "old"


def test_what_an_earlier_line_shadows_is_told_by_its_place(server: Server, tasks: Tasks) -> None:
    other = server.drops("00-a.conf", "# theirs\nForceCommand echo theirs\n")
    before = server.tree()
    failed = tasks.fails(expect=expects(ForceCommand="echo new"))
    assert failed["reason"] == "invalid"
    assert f"line 2 of {other}" in failed.msg
    assert "echo theirs" in failed.msg
    assert failed["mismatches"][0]["file"] == str(other)
    assert failed["mismatches"][0]["line"] == 2
    assert server.tree() == before

    other.write_text("Match User root\n  ForceCommand echo theirs\n")
    failed = tasks.fails(expect=expects(ForceCommand="echo new"))
    assert f"line 2 of {other}" in failed.msg
    # It does not shadow anything for others; and nobody asked about anything else.
    ok = tasks.one(
        expect=[
            *expects("nobody", ForceCommand="echo new"),
            *expects(ForceCommand="echo theirs", PermitTTY=True),
        ],
    )
    assert ok.changed


def test_spellings_of_a_value_do_not_matter(server: Server, tasks: Tasks) -> None:
    result = tasks.one(
        options={"ClientAliveInterval": "2m", "PermitRootLogin": "prohibit-password"},
        expect=expects(ClientAliveInterval=120, PermitRootLogin="without-password"),
    )
    assert result["effective"][0]["options"]["clientaliveinterval"] == ["120"]


def test_who_does_not_exist_yet_is_no_matter_for_check_mode(tasks: Tasks) -> None:
    result = tasks.one(check=True, expect=expects("bm-still-to-come", PermitTTY=False))
    assert result["unverified"] == ["bm-still-to-come"]
    assert result.changed


def test_a_host_certificate_that_sshd_would_ignore_is_refused(
    server: Server, tasks: Tasks, work: Path
) -> None:
    def certificate(key: Path) -> str:
        path = work / "cert.pub"
        path.write_text(public_key(key) + "\n")
        sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "x", "-h", "-n", "localhost"]
        subprocess.run([*sign, str(path)], check=True, stdin=subprocess.DEVNULL)
        return (work / "cert-cert.pub").read_text()

    authority = make_key(work / "ca")
    options = {"HostCertificate": f"{server.directory}/host-cert.pub"}
    for content in ("nonsense\n", certificate(make_key(work / "other"))):
        before = server.tree()
        failed = tasks.fails(options=options, files=[{"name": "host-cert.pub", "content": content}])
        assert "certificate" in failed.msg
        assert f"{server.directory}/host-cert.pub" in failed.msg
        assert server.tree() == before
    good = certificate(server.sshd.host_key)
    assert tasks.one(options=options, files=[{"name": "host-cert.pub", "content": good}]).changed
    assert server.login() == "old"


@pytest.mark.parametrize("what", ["drop_in", "directory", "drop-ins"])
def test_symbolic_links_are_not_followed(
    server: Server, tasks: Tasks, work: Path, what: str
) -> None:
    target = work / "target"
    target.mkdir(mode=0o755)
    link = {
        "drop_in": server.drop_in,
        "directory": server.directory,
        "drop-ins": server.drop_in.parent,
    }[what]
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target / "x" if what == "drop_in" else target)
    failed = tasks.fails()
    assert failed["reason"] == "invalid"
    assert str(link) in failed.msg
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("what", ["owner", "mode"])
def test_a_directory_that_others_can_change_is_refused(
    server: Server, tasks: Tasks, what: str
) -> None:
    server.directory.mkdir(mode=0o755)
    if what == "owner":
        os.chown(server.directory, 65534, 65534)
    else:
        server.directory.chmod(0o777)
    failed = tasks.fails()
    assert failed["reason"] == "invalid"
    assert str(server.directory) in failed.msg


def test_only_root_can_do_it(
    make_server: Callable[..., Server], account: Account, work: Path
) -> None:
    work.chmod(0o711)
    server = make_server(user=account.name)
    before = server.tree()
    tasks = Tasks(work, {**server.params, "options": NEW}, "bastion.mux.ssh_server_config")
    result = tasks.play(tasks.task(), inventory=server.inventory()).task("do")
    assert result.event == "failed"
    assert result["reason"] == "invalid"
    assert "only root" in result.msg
    assert server.tree() == before


def test_a_configuration_that_sshd_refuses_already_is_told_with_its_line(
    server: Server, tasks: Tasks
) -> None:
    before = server.has(b"MaxStartups many\n", where="before")
    failed = tasks.fails()
    assert f"line 1 of {server.config}" in failed.msg
    assert server.config.read_bytes() == before


def test_a_file_that_includes_itself_is_for_sshd_to_refuse(server: Server, tasks: Tasks) -> None:
    server.has(f"Include {server.config}\n".encode(), where="before")
    assert "Too many recursive configuration includes" in tasks.fails().msg
