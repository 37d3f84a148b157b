# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything of ansible.builtin.ssh works in bastion.mux.ssh, with a bastion and without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.accounts import Account
from tests.support.services import free_port
from tests.support.sshd import make_key
from tests.support.trio import HOSTS, Row, Trio

GREETING = "grüße an «alle» €"
ALONE = {"ansible_ssh_args": "-o ControlMaster=no"}
WHO = {"raw": "id -un"}
#: Tells one TCP connection from another.
WHICH = {"raw": "echo $SSH_CONNECTION"}
SAY = {"command": f"printf %s '{GREETING}'"}
TERMINAL = {"raw": "test -t 0 && echo yes || echo no"}
SCRIPT = {"script": {"cmd": "{{ work }}/script"}}
TRANSFERS = {"sftp": "sftp ssh", "scp": "scp ssh", "piped": "ssh", "smart": "sftp ssh"}
UNKNOWN = {"ansible_ssh_args": f"{ALONE['ansible_ssh_args']} -o UserKnownHostsFile=/dev/null"}


def lines(*texts: str) -> dict[str, list[str]]:
    return {"stdout_lines": list(texts)}


def get(name: str, source: str = "{{ work }}/script") -> dict[str, dict[str, object]]:
    """Fetch to a file of this name."""
    destination = "{{ work }}/{{ inventory_hostname }}." + name
    return {"fetch": {"src": source, "flat": True, "dest": destination}}


ROWS: list[Row | dict[str, str]] = [
    Row("first", WHICH, times=1),
    Row("same", WHICH, times=1),
    Row("not ASCII", {"raw": SAY["command"]}, expected={"stdout": GREETING}),
    Row(
        "much",
        {"raw": "head -c 300000 /dev/zero | tr '\\0' x"},
        expected={"stdout": "x" * 300_000},
    ),
    Row("fails", {"raw": "echo no >&2; exit 3"}, event="failed", expected={"rc": 3}),
    Row("255", {"raw": "exit 255"}, event="unreachable", expected={"msg": "Failed to connect"}),
    Row("terminal", TERMINAL, expected=lines("yes")),
    Row("no terminal", TERMINAL, {"ansible_ssh_use_tty": False}, expected=lines("no")),
    # Modules and files
    Row("pipelined", SAY, {"ansible_pipelining": True}, expected={"stdout": GREETING}, times=1),
    Row(
        "not pipelined",
        SAY,
        {"ansible_pipelining": False},
        expected={"stdout": GREETING},
        ran="sftp ssh",
    ),
    *(
        Row(
            f"put {method}",
            SCRIPT,
            {"ansible_ssh_transfer_method": method},
            expected=lines(GREETING),
            ran=ran,
        )
        for method, ran in TRANSFERS.items()
    ),
    *(
        Row(
            f"get {method}",
            get(method),
            {"ansible_ssh_transfer_method": method, "ansible_pipelining": True},
            expected={"changed": True},
            ran=ran,
        )
        for method, ran in TRANSFERS.items()
        if method != "smart"  # which is the same choice as when a file is put
    ),
    Row(
        # Builtin's sftp alone knows how to quote such a name.
        "put a name",
        {"script": {"cmd": "'{{ work }}/grüße €'"}},
        expected=lines(GREETING),
        ran="sftp ssh",
    ),
    Row(
        "put by the old scp",
        SCRIPT,
        {"ansible_ssh_transfer_method": "scp", "ansible_scp_extra_args": "-O"},
        expected=lines(GREETING),
        ran="scp ssh",
    ),
    # Sockets
    Row("not shared", WHICH, ALONE, times=1),
    Row(
        "own socket",
        WHO,
        {
            "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=60"
            " -o ControlPath={{ work }}/own-%h"
        },
    ),
    Row(
        "named socket",
        WHO,
        {
            "ansible_control_path_dir": "{{ work }}/d",
            "ansible_control_path": "%(directory)s/named-%%h",
        },
    ),
    Row("before", WHICH),
    {"name": "reset", "meta": "reset_connection"},
    Row("after", WHICH),
    # Arguments
    *(
        Row(
            f"{kind} arguments",
            {"raw": "echo $BM_WORD"},
            {**ALONE, f"ansible_ssh_{kind}_args": f"{before} -o SetEnv=BM_WORD={kind}"},
            expected=lines(kind),
        )
        for kind, before in {"common": "{{ common }}", "extra": ""}.items()
    ),
    Row(
        "key not checked",
        WHO,
        {**UNKNOWN, "ansible_host_key_checking": False},
    ),
    # Failures
    Row(
        "key unknown",
        WHO,
        UNKNOWN,
        event="unreachable",
        expected={"msg": "Host key verification failed"},
    ),
    Row(
        "stranger",
        WHO,
        {**ALONE, "ansible_ssh_private_key_file": "{{ work }}/stranger"},
        event="unreachable",
        expected={"msg": "Permission denied (publickey"},
    ),
    *(
        Row(
            f"nobody listens, {retries} retries",
            WHO,
            {"ansible_port": "{{ closed }}", "ansible_ssh_retries": retries},
            event="unreachable",
            expected={"msg": "Connection refused"},
            times=1 + retries,
        )
        for retries in (0, 1)
    ),
    Row(
        "second attempt",
        {"raw": "echo here"},
        {**ALONE, "ansible_ssh_executable": "{{ work }}/falters", "ansible_ssh_retries": 1},
        expected=lines("here"),
        ran="falters",
        times=2,
    ),
]

FALTERS = """#!/bin/sh
for word; do case $word in 127.*) tried=$0-$word;; esac; done
test -e "$tried" || { touch "$tried"; echo This is the first attempt >&2; exit 255; }
exec ssh "$@"
"""


def test_the_same_tasks_end_the_same(work: Path, make_trio: Callable[..., Trio]) -> None:
    script = work / "script"
    script.write_text(f"#!/bin/sh\necho '{GREETING}'\n" + f"# {'x' * 997}\n" * 200)
    (work / "grüße €").write_bytes(script.read_bytes())
    make_key(work / "stranger")
    (work / "falters").write_text(FALTERS)
    (work / "falters").chmod(0o700)
    trio = make_trio()
    trio.variables |= {
        "closed": free_port(),
        "common": trio.variables["ansible_ssh_common_args"],
    }
    run = trio.run(ROWS)

    for host, variables in HOSTS.items():
        address = variables["ansible_host"]
        for method in ("sftp", "scp", "piped"):
            assert (work / f"{host}.{method}").read_bytes() == script.read_bytes()
        assert (work / f"own-{address}").is_socket()
        # Behind a bastion such a name would be that of another host of the same address, too.
        named = work / "d" / f"named-{address}"
        assert named.is_socket() is ("ansible_bastion" not in variables)
        names = ("first", "same", "not shared", "before", "after")
        which = {name: run.task(name, host)["stdout"].strip() for name in names}
        assert which["first"] == which["same"] == which["before"], which
        assert len(set(which.values())) == 3, which
    assert len(list((work / "d").iterdir())) == len(HOSTS)
    assert trio.bastion.logins() == 1


SU = {"become": True, "become_method": "su", "become_user": "{{ ansible_user }}"}
PASSWORD_ROWS = [
    Row("password", WHO),
    Row(
        "wrong password",
        WHO,
        {**ALONE, "ansible_password": "wrong"},
        event="unreachable",
        expected={"msg": "Permission denied"},
    ),
    Row("become", {"raw": "id -un", **SU}),
    # The first line is the end of its question.
    Row("become, a file", {**SCRIPT, **SU}, expected=lines("", GREETING), ran="sftp ssh"),
    # It wants a terminal: nothing is pipelined.
    Row("become, a module", {"command": "id -un", **SU}, ran="sftp ssh"),
    Row(
        "password for each program",
        get("passwd", "/etc/passwd"),
        {**ALONE, "ansible_pipelining": True},
        expected={"changed": True},
        ran="sftp ssh",
    ),
    Row(
        "wrong become password",
        {"raw": "id -un", **SU},
        {"ansible_become_password": "wrong"},
        event="failed",
        expected={"msg": "Incorrect su password"},
    ),
]


def test_passwords(account: Account, make_trio: Callable[..., Trio], work: Path) -> None:
    (work / "script").write_text(f"echo '{GREETING}'\n")
    trio = make_trio(user=account.name, options={"PasswordAuthentication": "yes"})
    for name in ("ansible_ssh_private_key_file", "ansible_remote_tmp"):
        del trio.variables[name]
    trio.variables["ansible_password"] = account.password
    trio.variables["ansible_become_password"] = account.password
    # This one may not execute that of the tests.
    trio.variables["ansible_python_interpreter"] = "auto_silent"
    # su asks for the password of the account that it becomes: this one's is known.
    run = trio.run(PASSWORD_ROWS, env={"ANSIBLE_BECOME_ALLOW_SAME_USER": "1"})
    for row in PASSWORD_ROWS:
        for result in run.tasks(row.name):
            if row.event == "ok" and not {"script", "fetch"} & row.module.keys():
                assert result["stdout"].split() == [account.name], result
    assert account.password not in run.stdout + run.stderr
