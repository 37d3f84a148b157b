# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers to the questions of ssh: who is answered what, and where a secret never is."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.bastion.mux.plugins.module_utils.model.control_path import limit
from ansible_collections.bastion.mux.plugins.module_utils.system.askpass import (
    Secrets,
    answering,
    choose,
)
from tests.support.workdir import short_dir

BOTH = Secrets(password="the password", passphrase="the passphrase")
# sshconnect2.c and readpass.c: userauth_passwd, load_identity_file, notify_start.
PASSWORD = "me@bastion's password: "
KEYBOARD_INTERACTIVE = "(me@bastion) Verification code: "
PASSPHRASE = "Enter passphrase for key '/home/me/.ssh/id': "
PIN = "Enter PIN for ED25519-SK key /home/me/.ssh/id: "
UNKNOWN_HOST = "Are you sure you want to continue connecting (yes/no/[fingerprint])? "
TOUCH = "Confirm user presence for key ED25519-SK SHA256:x"
AGENT = "Allow use of key id?\nKey fingerprint SHA256:x."


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_dir() as made:
        yield made


# What is answered


@pytest.mark.parametrize("from_target", [True, False])
@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        (PASSPHRASE, "the passphrase"),
        (PIN, "the passphrase"),
        (UNKNOWN_HOST, None),
        (TOUCH, None),
        (AGENT, None),
    ],
)
def test_what_does_not_depend_on_who_asks(
    prompt: str, answer: Optional[str], from_target: bool
) -> None:
    assert choose(BOTH, prompt, from_target=from_target) == answer


@pytest.mark.parametrize("prompt", [PASSWORD, KEYBOARD_INTERACTIVE, "", "Password:"])
def test_a_password_is_for_the_target_alone(prompt: str) -> None:
    assert choose(BOTH, prompt, from_target=True) == "the password"
    assert choose(BOTH, prompt, from_target=False) is None


def test_what_is_not_given_is_not_answered() -> None:
    assert choose(Secrets(passphrase="p"), PASSWORD, from_target=True) is None
    assert choose(Secrets(password="p"), PASSPHRASE, from_target=True) is None
    assert choose(Secrets(password=""), PASSWORD, from_target=True) == ""


@given(st.text(), st.booleans())
def test_no_prompt_gets_the_other_secret(prompt: str, from_target: bool) -> None:
    answer = choose(BOTH, prompt, from_target=from_target)
    asks_for_key = prompt.lower().startswith(("enter passphrase for ", "enter pin for "))
    assert answer in (None, "the passphrase" if asks_for_key else "the password")
    assert answer is None or from_target or asks_for_key


@given(st.none() | st.text(min_size=4), st.none() | st.text(min_size=4))
def test_a_secret_is_not_shown(password: Optional[str], passphrase: Optional[str]) -> None:
    secrets = Secrets(password=password, passphrase=passphrase)
    for shown in (repr(secrets), str(secrets), "%r" % [secrets], f"{secrets}"):
        assert shown.strip("[]") == "Secrets()"
    assert bool(secrets) is not (password is None and passphrase is None)


# How it gets there

#: Asks each of its arguments as ssh does, and says what came: the status and the answer.
SSH = """\
read go
for prompt; do answer=$("$SSH_ASKPASS" "$prompt"); printf '%s %s\\n' $? "$answer"; done
"""


def ask(
    environment: Dict[str, str], *prompts: str, runs_as: Optional[List[object]] = None
) -> Tuple[bytes, int]:
    """What an ssh is answered, and its process id; `runs_as` is told it before it asks."""
    with subprocess.Popen(
        ["sh", "-c", SSH, "ssh", *prompts],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        for told in runs_as or []:
            assert callable(told)
            told(process.pid)
        return process.communicate(b"\n", timeout=20)[0], process.pid


def test_a_prompt_is_answered_once(directory: Path) -> None:
    with answering(BOTH, str(directory)) as (environment, runs_as):
        said, _pid = ask(environment, PASSWORD, PASSWORD, PASSPHRASE, AGENT, runs_as=[runs_as])
    assert said == b"0 the password\n1 \n0 the passphrase\n1 \n"


def test_another_process_gets_no_password(directory: Path) -> None:
    with answering(BOTH, str(directory)) as (environment, runs_as):
        assert ask(environment, PASSWORD)[0] == b"1 \n"
        runs_as(os.getpid())
        said, _pid = ask(environment, PASSWORD, PASSPHRASE)
    assert said == b"1 \n0 the passphrase\n"


@pytest.mark.parametrize("secret", ["", " ", "a\\b'\"$(x)", "ü€\U0001f511", "\udcff", "x" * 100000])
def test_any_secret_arrives_as_it_is(directory: Path, secret: str) -> None:
    with answering(Secrets(password=secret), str(directory)) as (environment, runs_as):
        said, _pid = ask(environment, PASSWORD, runs_as=[runs_as])
    assert said == b"0 " + secret.encode("utf-8", "surrogateescape") + b"\n"


def test_a_secret_is_in_no_file_and_no_environment(directory: Path) -> None:
    with answering(BOTH, str(directory)) as (environment, _runs_as):
        assert "the p" not in repr(environment)
        (own,) = directory.iterdir()
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        helper, listener = sorted(own.iterdir())
        assert environment["SSH_ASKPASS"] == str(helper)
        assert stat.S_IMODE(helper.stat().st_mode) == 0o700
        assert "the p" not in helper.read_text()
        assert listener.is_socket()


def test_ssh_is_made_to_ask(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given_, display in ((None, ":"), ("", ":"), (":1", ":1")):
        monkeypatch.delenv("DISPLAY", raising=False)
        if given_ is not None:
            monkeypatch.setenv("DISPLAY", given_)
        with answering(BOTH, str(directory)) as (environment, _runs_as):
            assert environment["SSH_ASKPASS_REQUIRE"] == "force"
            assert environment["DISPLAY"] == display


@pytest.mark.parametrize("sent", [None, b"", b"\xff\0" * 1000])
def test_what_is_no_question_harms_nobody(directory: Path, sent: Optional[bytes]) -> None:
    with answering(BOTH, str(directory)) as (environment, runs_as):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.path.join(os.path.dirname(environment["SSH_ASKPASS"]), "s"))
            if sent is not None:
                client.sendall(sent)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b""
        assert ask(environment, PASSWORD, runs_as=[runs_as])[0] == b"0 the password\n"


def test_nothing_is_left_of_it(directory: Path) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
    for _each in range(3):
        with pytest.raises(ZeroDivisionError), answering(BOTH, str(directory)):
            raise ZeroDivisionError
    assert list(directory.iterdir()) == []
    assert threading.active_count() == threads
    assert len(os.listdir("/dev/fd")) == descriptors


def test_it_fits_beside_the_longest_control_path() -> None:
    with short_dir() as directory:
        # The control path's name has at least one byte, after a slash.
        long = directory / ("d" * (limit(sys.platform) - 2 - len(str(directory)) - 1))
        long.mkdir()
        with answering(BOTH, str(long)) as (environment, runs_as):
            assert ask(environment, PASSWORD, runs_as=[runs_as])[0] == b"0 the password\n"
