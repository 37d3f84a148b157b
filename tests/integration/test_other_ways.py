# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections and modules of other people go through one master, as the guide shows it.

The playbooks of guide_other_ways.rst run as they stand, but for ports and for names of a network
that does not exist here. Their far ends are real, except for Windows.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.accounts import throwaway_account
from tests.support.guide import GUIDE, plays_of
from tests.support.playbook import CHECKOUT, PlaybookResult, collections_path, run_playbook
from tests.support.postgres import Postgres, postgres_programs
from tests.support.services import Page, free_port
from tests.support.sshd import Sshd
from tests.support.tls import Certificate, make_certificate

needs_paramiko = pytest.mark.skipif(
    importlib.util.find_spec("ansible.plugins.connection.paramiko_ssh") is None,
    reason="ansible-core has no paramiko connection from 2.21 on",
)

OTHERS = CHECKOUT / ".cache/others"

PLAYBOOKS = {
    playbook[0]["name"]: playbook
    for playbook in plays_of((GUIDE / "guide_other_ways.rst").read_text(encoding="utf-8"))
}


@pytest.fixture
def bastion(make_sshd: Callable[..., Sshd]) -> Sshd:
    """One whose log also has what it connects to."""
    return make_sshd(options={"LogLevel": "DEBUG1"})


@pytest.fixture
def others(world: Mapping[str, str]) -> Mapping[str, str]:
    """An environment with what other people's plugins need, in which `ssh bastion` works."""
    if not OTHERS.is_dir():
        pytest.skip("other people's collections are missing: run 'python dev/others.py'")
    places = [str(collections_path()), str(OTHERS / "collections")]
    return {
        **world,
        "ANSIBLE_COLLECTIONS_PATH": os.pathsep.join(places),
        "PYTHONPATH": str(OTHERS / "python"),
    }


@pytest.fixture
def certificate(work: Path) -> Certificate:
    """What the servers behind the bastion prove their names by."""
    return make_certificate(work, "db.internal", "web.internal", "localhost")


@pytest.fixture
def postgres(work: Path, certificate: Certificate) -> Iterator[Postgres]:
    """A database behind the bastion."""
    if postgres_programs() is None:
        pytest.skip("PostgreSQL's server is not installed (on Debian: apt install postgresql)")
    with contextlib.ExitStack() as stack:
        place, user = work, None
        if os.getuid() == 0:
            account = stack.enter_context(throwaway_account(work))
            place, user = account.home, account.name
        yield stack.enter_context(Postgres(place / "postgres", certificate, user))


def _run(
    work: Path,
    env: Mapping[str, str],
    name: str,
    instead: Mapping[str, str],
    *more: Mapping[str, Any],
    **how: Any,
) -> PlaybookResult:
    """Run the playbook whose first play has that name, and `more` tasks at its end."""
    text = yaml.safe_dump(PLAYBOOKS[name])
    for shown, real in instead.items():
        assert shown in text, shown
        text = text.replace(shown, real)
    plays = yaml.safe_load(text)
    plays[-1]["tasks"].extend(more)
    return run_playbook(work, plays, env=env, **how)


def _reached(bastion: Sshd, port: int) -> list[str]:
    """The hosts whose `port` clients had the bastion connect to, each time, as they named them."""
    return re.findall(
        rf"server_request_direct_tcpip: .* target (\S+) port {port}$", bastion.log(), re.MULTILINE
    )


def _known(target: Sshd) -> dict[str, Any]:
    """What the inventory says of the hosts that it plays, but for their address."""
    return {
        "ansible_port": target.port,
        "ansible_user": target.user,
        "ansible_ssh_private_key_file": str(target.identity_file),
    }


@needs_paramiko
def test_paramiko_and_network_cli(
    work: Path, others: Mapping[str, str], bastion: Sshd, make_sshd: Callable[..., Sshd]
) -> None:
    # A shell with a prompt: network_cli sees no more of a device.
    target = make_sshd(
        name="target",
        addresses=["127.0.0.2", "127.0.0.3", "127.0.0.4"],
        more="Match LocalAddress 127.0.0.4\n  ForceCommand env PS1='device# ' /bin/sh\n",
    )
    hosts = {f"n{n}": {"ansible_host": f"127.0.0.{n}", **_known(target)} for n in (2, 3, 4)}
    # libssh reads no known_hosts but that of the home which the password database has.
    switch = hosts.pop("n4") | {"ansible_host_key_checking": False}
    inventory = {"servers": {"hosts": hosts}, "switches": {"hosts": {"n4": switch}}}
    name = "Log in to the bastion once, and know the hosts behind it"
    run = _run(work, others, name, {}, inventory=inventory).ok()
    assert [one["ping"] for one in run.tasks("Run a module there")] == ["pong", "pong"]
    assert "load average" in run.task("Give a command")["stdout"]
    assert target.logins() == 3
    # Not one of its connections came another way.
    assert len(_reached(bastion, target.port)) == target.connections()
    assert bastion.logins() == 1


@needs_paramiko
def test_a_local_port_for_each_host(
    work: Path, others: Mapping[str, str], bastion: Sshd, make_sshd: Callable[..., Sshd]
) -> None:
    target = make_sshd(name="target", addresses=["127.0.0.2", "127.0.0.3"])
    hosts = {f"n{n}": {"ansible_host": f"127.0.0.{n}", **_known(target)} for n in (2, 3)}
    (work / "h/.ssh").mkdir(mode=0o700)
    name = "Open a local port for each host"
    who = {"uptime": "echo $SSH_CONNECTION"}
    run = _run(work, others, name, who, inventory={"appliances": {"hosts": hosts}}).ok()
    for host, known in hosts.items():
        assert known["ansible_host"] in run.task("Give a command", host)["stdout"]
    assert len(_reached(bastion, target.port)) == target.connections()
    assert bastion.logins() == 1


def test_a_database(
    work: Path,
    others: Mapping[str, str],
    bastion: Sshd,
    postgres: Postgres,
    certificate: Certificate,
) -> None:
    known = {
        "database_password": postgres.password,
        "internal_ca": str(certificate.certificate),
    }
    instead = {"db.internal:5432": f"127.0.0.1:{postgres.port}"}
    other = {
        "name": "Ask it by another name",
        "community.postgresql.postgresql_query": {
            "login_host": "mail.internal",
            "query": "TABLE x",
        },
        "ignore_errors": True,
    }
    for changed in (2, 0):
        name = "Make a database behind the bastion"
        run = _run(work, others, name, instead, other, extra_vars=known).ok()
        assert run.task("Ask it")["query_result"] == [{"current_database": "shop"}]
        assert "does not match host name" in run.task("Ask it by another name").msg
        assert run.changed() == changed
    assert set(_reached(bastion, postgres.port)) == {"127.0.0.1"}
    assert bastion.logins() == 1


def test_a_web_server_by_its_own_name(
    work: Path, others: Mapping[str, str], bastion: Sshd, certificate: Certificate
) -> None:
    with Page(tls=certificate.server()) as web:
        instead = {"web.internal:443": f"127.0.0.1:{web.port}"}
        other = PLAYBOOKS["Ask a web server by its own name"][0]["tasks"][-1]["ansible.builtin.uri"]
        run = _run(
            work,
            others,
            "Ask a web server by its own name",
            instead,
            {
                "name": "Ask it by another",
                "ansible.builtin.uri": {**other, "url": "https://mail.internal/"},
                "ignore_errors": True,
            },
            extra_vars={"internal_ca": str(certificate.certificate)},
        ).ok()
        assert web.seen == ["GET / HTTP/1.1"]
    assert "certificate is not valid for 'mail.internal'" in run.task("Ask it by another").msg
    assert set(_reached(bastion, web.port)) == {"127.0.0.1"}
    assert bastion.logins() == 1
    # A master that ssh ends leaves the file of a unix socket behind.
    (work / "h/.ansible/web.sock").unlink()


def test_a_web_server_through_socks(
    work: Path, others: Mapping[str, str], bastion: Sshd, certificate: Certificate
) -> None:
    port = free_port()
    with Page(tls=certificate.server()) as web:
        url = f"https://localhost:{web.port}/"
        run = _run(
            work,
            others,
            "Ask any web server that the bastion sees",
            {"https://web.internal/": url, "11080": str(port)},
            {
                "name": "Ask as others are told to use a proxy",
                "ansible.builtin.uri": {"url": url.replace("https", "http")},
                "environment": {"http_proxy": f"socks5h://localhost:{port}"},
                "ignore_errors": True,
            },
            extra_vars={"internal_ca": str(certificate.certificate)},
        ).ok()
        assert web.seen == ["GET / HTTP/1.1"]
    assert "unknown url type: socks5h" in run.tasks()[-1].msg
    assert _reached(bastion, web.port) == ["localhost"]
    assert bastion.logins() == 1


def test_windows_hears_from_us(work: Path, others: Mapping[str, str], bastion: Sshd) -> None:
    # There is no Windows here: that the requests arrive is all that is tested.
    with Page() as windows:
        known = {
            "ansible_host": "localhost",
            "ansible_port": windows.port,
            "ansible_user": "me",
            "ansible_password": "secret",
        }
        psrp = {"connection": "psrp", "psrp_protocol": "http", "psrp_auth": "basic"}
        psrp["psrp_message_encryption"] = "never"
        winrm = {"connection": "winrm", "winrm_scheme": "http", "winrm_transport": "basic"}
        hosts = {
            kind["connection"]: {f"ansible_{key}": value for key, value in kind.items()} | known
            for kind in (psrp, winrm)
        }
        inventory = {
            "windows": {"hosts": hosts},
            "ungrouped": {"hosts": {"localhost": {"ansible_connection": "local"}}},
        }
        name = "Open a proxy to all that the bastion reaches"
        instead = {"11080": str(free_port())}
        run = _run(work, others, name, instead, inventory=inventory)
        assert [one.event for one in run.tasks("Say who we are")] == ["unreachable"] * 2
        assert windows.seen == ["POST /wsman HTTP/1.1"] * 2, run
    assert _reached(bastion, windows.port) == ["localhost"] * 2
    assert bastion.logins() == 1
