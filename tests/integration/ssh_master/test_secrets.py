# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_master and what has to stay secret: passwords, passphrases, keyboard-interactive."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.accounts import Account
from tests.support.playbook import PlaybookResult, run_playbook
from tests.support.sshd import Sshd, make_key, public_key
from tests.support.tasks import CHANGES, Tasks

MakeSshd = Callable[..., Sshd]

#: How a server may ask for a password.
ASKING = {
    "password": {"PasswordAuthentication": "yes"},
    "keyboard-interactive": {"KbdInteractiveAuthentication": "yes", "UsePAM": "yes"},
}
NO_KEYS = {"PubkeyAuthentication": "no"}


def veiled(secret: str) -> str:
    """A template for the secret: it is in no playbook, no variable and no argument as it stands."""
    return "{{ '%s' | b64decode }}" % base64.b64encode(secret.encode()).decode()


class Spy:
    """Reads what new processes show, and every file of a directory, over and over."""

    def __init__(self, directory: Path, secret: str) -> None:
        self._directory = directory
        self._secret = secret.encode()
        self._over = threading.Event()
        self._older = set(Path("/proc").glob("[0-9]*"))
        self.found: set[Path] = set()
        self.saw_the_login = False

    def look(self) -> None:
        for process in set(Path("/proc").glob("[0-9]*")) - self._older:
            self._read(process / "cmdline", process / "environ")
        with contextlib.suppress(OSError):
            self._read(*(path for path in self._directory.rglob("*") if path.is_file()))

    def _read(self, *paths: Path) -> None:
        for path in paths:
            with contextlib.suppress(OSError):
                content = path.read_bytes()
                if self._secret in content:
                    self.found.add(path)
                if path.name == "environ" and b"/.ask" in content:
                    self.saw_the_login = True

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        def watch() -> None:
            while not self._over.is_set():
                self.look()

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
        self.look()


def assert_silent(run: PlaybookResult, secret: str) -> None:
    """Neither the user saw it nor a callback was given it."""
    assert secret not in run.stdout + run.stderr
    assert secret not in json.dumps([one.result for one in run.results], ensure_ascii=False)


def failures(bastion: Sshd) -> int:
    """How many attempts the server refused that had a password in them."""
    return len(re.findall(r"(?m)^Failed (password|keyboard-interactive\S*) for", bastion.log()))


@pytest.fixture(params=ASKING)
def asking(request: pytest.FixtureRequest, account: Account, make_sshd: MakeSshd) -> Sshd:
    """A bastion which lets the account in with its password alone."""
    return make_sshd(user=account.name, options={**ASKING[request.param], **NO_KEYS})


@pytest.fixture
def asked(work: Path, asking: Sshd, path: Path) -> Tasks:
    config = str(asking.ssh_config())
    return Tasks(work, {"host": "bastion", "ssh_config": config, "control_path": str(path)})


class TestPassword:
    def test_is_nowhere_to_be_seen(self, asked: Tasks, account: Account, asking: Sshd) -> None:
        spy = Spy(asked.work, account.password)
        with spy.watching():
            run = asked.play(asked.task(password=veiled(account.password)), verbosity=5).ok()
        assert run.task("do").changed
        assert asking.logins() == 1
        assert spy.saw_the_login
        assert not spy.found
        assert_silent(run, account.password)

    def test_a_wrong_one_is_tried_once(self, asked: Tasks, asking: Sshd, path: Path) -> None:
        wrong = secrets.token_hex()
        spy = Spy(asked.work, wrong)
        with spy.watching():
            run = asked.play(asked.task(password=veiled(wrong)), verbosity=5)
        failed = run.task("do")
        assert failed["reason"] == "auth_failed"
        assert "Permission denied" in failed.msg
        assert failures(asking) == 1
        assert not path.exists()
        assert spy.saw_the_login
        assert not spy.found
        assert_silent(run, wrong)

    def test_missing_is_not_asked_for(self, asked: Tasks, asking: Sshd) -> None:
        assert asked.fails()["reason"] == "auth_failed"
        assert failures(asking) == 0

    def test_of_the_inventory(self, asked: Tasks, asking: Sshd, account: Account) -> None:
        asked.params["host"] = None
        asked.params["ssh_options"] = asking.ssh_options()
        variables = {
            "ansible_host": "127.0.0.1",
            "ansible_port": asking.port,
            "ansible_user": account.name,
            "ansible_password": veiled(account.password),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={asking.known_hosts}",
        }
        run = run_playbook(
            asked.work,
            {"hosts": "all", "gather_facts": False, "tasks": [asked.task(ssh_config="none")]},
            inventory={"all": {"hosts": {"one": variables}}},
            verbosity=5,
        ).ok()
        assert asking.logins() == 1
        assert_silent(run, account.password)

    def test_in_the_module_on_another_host(
        self, asked: Tasks, asking: Sshd, account: Account
    ) -> None:
        task = asked.task(password=veiled(account.password)) | {"delegate_to": "localhost"}
        run = asked.play(task, verbosity=5).ok()
        assert asking.logins() == 1
        assert "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" in run.stdout
        assert_silent(run, account.password)
        spy = Spy(asked.work, account.password)
        spy.look()
        assert not spy.found


def test_any_password_is_given_as_it_is(
    work: Path, account: Account, make_sshd: MakeSshd, path: Path
) -> None:
    password = " sp ace'\"$(x)`\\ -ä€ #{{ 1 }}% "
    change = f"{account.name}:{password}\n".encode()
    subprocess.run(["chpasswd"], input=change, check=True)
    bastion = make_sshd(user=account.name, options={**ASKING["password"], **NO_KEYS})
    tasks = Tasks(work, {"host": "bastion", "ssh_config": str(bastion.ssh_config())})
    tasks.params |= {"control_path": str(path), "password": veiled(password)}
    assert tasks.rows().changed == CHANGES
    assert not tasks.one(password="another").changed


class TestPassphrase:
    @pytest.fixture
    def passphrase(self, bastion: Sshd) -> str:
        """Of the only key that the bastion lets in."""
        passphrase = secrets.token_hex()
        bastion.identity_file.unlink()
        key = make_key(bastion.identity_file, passphrase)
        bastion.authorized_keys.write_text(public_key(key) + "\n")
        return passphrase

    def test_is_nowhere_to_be_seen(self, tasks: Tasks, bastion: Sshd, passphrase: str) -> None:
        spy = Spy(tasks.work, passphrase)
        with spy.watching():
            run = tasks.play(tasks.task(passphrase=veiled(passphrase)), verbosity=5).ok()
        assert bastion.logins() == 1
        assert spy.saw_the_login
        assert not spy.found
        assert_silent(run, passphrase)

    @pytest.mark.parametrize(
        "params",
        [{}, {"passphrase": "wrong"}, {"password": "wrong"}],
        ids=["none", "wrong", "password alone"],
    )
    def test_a_wrong_one_is_told(
        self, tasks: Tasks, bastion: Sshd, passphrase: str, params: Any
    ) -> None:
        failed = tasks.fails(**params)
        assert failed["reason"] == "auth_failed"
        assert "Permission denied" in failed.msg
        assert failures(bastion) == 0

    def test_a_wrong_one_is_not_sent_as_a_password(
        self, work: Path, account: Account, make_sshd: MakeSshd
    ) -> None:
        bastion = make_sshd(user=account.name, options=ASKING["password"])
        bastion.identity_file.unlink()
        make_key(bastion.identity_file, "right")
        tasks = Tasks(work, {"host": "bastion", "ssh_config": str(bastion.ssh_config())})
        assert tasks.fails(passphrase="wrong")["reason"] == "auth_failed"
        assert failures(bastion) == 0

    def test_and_a_password_where_both_are_needed(
        self, work: Path, account: Account, make_sshd: MakeSshd
    ) -> None:
        both = {"AuthenticationMethods": "publickey,password", **ASKING["password"]}
        bastion = make_sshd(user=account.name, options=both)
        bastion.identity_file.unlink()
        key = make_key(bastion.identity_file, "right")
        bastion.authorized_keys.write_text(public_key(key) + "\n")
        tasks = Tasks(work, {"host": "bastion", "ssh_config": str(bastion.ssh_config())})
        tasks.one(passphrase="right", password=veiled(account.password))
        assert bastion.logins() == 1


class TestJump:
    """The hosts on the way are asked their own questions, by an ssh of their own."""

    @pytest.fixture
    def hop(self, account: Account, make_sshd: MakeSshd) -> Sshd:
        """A jump host which would take the account's password."""
        return make_sshd(name="hop", user=account.name, options=ASKING["password"])

    @pytest.fixture
    def tasks(self, work: Path, account: Account, hop: Sshd, make_sshd: MakeSshd) -> Tasks:
        """Tasks for a bastion behind it, which takes nothing else."""
        bastion = make_sshd(user=account.name, options={**ASKING["password"], **NO_KEYS})
        config = bastion.ssh_config(more=hop.ssh_config().read_text())
        params = {"host": "bastion", "jump": ["hop"], "ssh_config": str(config)}
        return Tasks(work, {**params, "password": veiled(account.password)})

    def test_the_password_is_for_the_bastion(self, tasks: Tasks, hop: Sshd) -> None:
        assert tasks.one()["master"]["jump"] == ["hop"]
        assert hop.logins() == 1
        assert failures(hop) == 0

    def test_a_jump_host_never_gets_it(self, tasks: Tasks, hop: Sshd) -> None:
        hop.authorized_keys.write_text("")
        failed = tasks.fails()
        assert failed["reason"] == "auth_failed"
        assert "Permission denied" in failed.msg
        assert hop.logins() == 0

    def test_a_passphrase_is_for_every_key(self, tasks: Tasks, hop: Sshd) -> None:
        hop.identity_file.unlink()
        hop.authorized_keys.write_text(public_key(make_key(hop.identity_file, "right")) + "\n")
        tasks.one(passphrase="right")
        assert hop.logins() == 1
