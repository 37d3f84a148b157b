# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An answer of the real `ssh -G` is kept for as long as ssh would give it again, and no longer."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.target import (
    Argument,
    parse_effective,
)
from ansible_collections.bastion.mux.plugins.module_utils.system import ssh_answers
from ansible_collections.bastion.mux.plugins.module_utils.system.ssh import Ssh

CONFIG = "Include {work}/more/*.conf\nHost bastion\n    User one\n    IdentityFile {work}/key\n"
MORE = "Host bastion\n    Port 2201\n"


class Asker:
    """One configuration, and the question what it says about a host."""

    def __init__(self, work: Path, executable: str = "ssh") -> None:
        self.work = work
        self.executable = executable
        self.host = "bastion"
        self.options: tuple[str, ...] = ()
        self.config = work / "config"
        (work / "more").mkdir()
        (work / "more" / "1.conf").write_text(MORE)
        self.config.write_text(CONFIG.format(work=work))

    def add(self, text: str) -> None:
        """Put lines at the end of the configuration."""
        with self.config.open("a") as file:
            file.write(text)

    def ask(self) -> tuple[dict[str, list[str]], bool]:
        """The answer, which must be that of an ssh that was started now; whether it was kept."""
        lines: list[str] = []
        arguments = [Argument(("-F", str(self.config), *self.options), "test")]
        ssh = Ssh(self.executable, lines.append)
        found = ssh.effective(arguments, self.host, None)
        plain = {**found, "loglevel": ["-"]}
        command = ["timeout", "20", ssh.path, *arguments[0].values, "-T", "-G", "--", self.host]
        said = os.popen(" ".join(map(str, command))).read()
        assert plain == {**parse_effective(said), "loglevel": ["-"]}
        assert ssh.version().startswith("OpenSSH_")
        return found, bool(lines)

    @property
    def kept(self) -> list[Path]:
        """The files of the answers."""
        there = Path(ssh_answers.DIRECTORY).expanduser()
        return sorted(there.glob("[0-9a-f]*")) if there.is_dir() else []


@pytest.fixture
def asker(work: Path, monkeypatch: pytest.MonkeyPatch) -> Asker:
    """A question whose answer is at once old enough to be kept, and kept in a home of its own."""
    home = work / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(f"{ssh_answers.__name__}._SETTLED", -60.0)
    return Asker(work)


def test_an_answer_is_kept(asker: Asker) -> None:
    first, remembered = asker.ask()
    assert not remembered
    assert first["port"] == ["2201"]
    (path,) = asker.kept
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert asker.ask() == (first, True)


def test_a_file_that_may_still_be_written_is_not_trusted(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{ssh_answers.__name__}._SETTLED", 2.0)
    asker.ask()
    assert not asker.kept


@pytest.mark.parametrize(
    "text",
    [
        'Match exec "true"\n    User two\n',
        'MATCH host bastion EXEC "true"\n    User two\n',
        "Host bastion\n    ControlPath ${{HOME}}/x\n",
        "Host bastion\n    SecurityKeyProvider $PROVIDER\n",
        'Include "{work}/more/1.conf"\n',
        '"Include" {work}/more/1.conf\n',
        "Include {work}/more/[0-9].conf\n",
        "Include ~nobody/more\n",
        "CanonicalizeHostname always\n",
    ],
)
def test_what_may_change_without_a_file_is_not_kept(asker: Asker, text: str) -> None:
    asker.add("Match all\n" + text.format(work=asker.work))
    asker.ask()
    assert not asker.kept
    asker.ask()


def test_what_an_included_file_asks_is_not_kept(asker: Asker) -> None:
    (asker.work / "more" / "1.conf").write_text('Match exec "true"\n    User two\n')
    asker.ask()
    assert not asker.kept


def test_a_wrapper_is_asked_each_time(asker: Asker) -> None:
    wrapper = asker.work / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nexec ssh -o Port="$(cat {asker.work}/port)" "$@"\n')
    wrapper.chmod(0o755)
    asker.executable = str(wrapper)
    for port in ("2301", "2302"):
        (asker.work / "port").write_text(port)
        assert asker.ask()[0]["port"] == [port]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as somebody else")
def test_a_program_that_cannot_be_read_is_asked_each_time(asker: Asker) -> None:
    program = asker.work / "ssh"
    shutil.copy(shutil.which("ssh") or "", program)
    program.chmod(0o711)
    asker.executable = str(program)
    asker.work.chmod(0o711)
    os.seteuid(65534)
    try:
        assert asker.ask()[0]["port"] == ["2201"]
    finally:
        os.seteuid(0)
    assert not asker.kept


def test_a_configuration_from_a_pipe_is_left_to_ssh(asker: Asker) -> None:
    asker.config = asker.work / "pipe"
    os.mkfifo(asker.config)

    def feed() -> None:
        for _reader in range(2):
            asker.config.write_text("Port 2206\n")
            time.sleep(0.1)  # what is written at once would be read by one

    writer = threading.Thread(target=feed, daemon=True)
    writer.start()
    assert asker.ask()[0]["port"] == ["2206"]
    assert not asker.kept
    writer.join()


def renewed(asker: Asker) -> None:
    # As editors do: the same size, another file.
    copy = asker.work / "copy"
    copy.write_text(asker.config.read_text().replace("one", "two"))
    copy.replace(asker.config)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.add("    Port 2202\n"),
        lambda a: a.config.write_text(a.config.read_text().replace("one", "two")),
        renewed,
        lambda a: (a.work / "more" / "1.conf").write_text(MORE.replace("2201", "2203")),
        lambda a: (a.work / "more" / "1.conf").unlink(),
        lambda a: (a.work / "more" / "0.conf").write_text(MORE.replace("2201", "2204")),
        lambda a: (a.work / "more" / "1.conf").chmod(0),
        lambda a: setattr(a, "host", "other"),
        lambda a: setattr(a, "options", ("-p", "2205")),
        lambda a: setattr(a, "config", a.config.rename(a.work / "renamed")),
    ],
)
def test_a_change_is_seen(asker: Asker, change: Callable[[Asker], object]) -> None:
    asker.ask()
    change(asker)
    _found, remembered = asker.ask()
    assert not remembered
    assert asker.ask()[1]


def test_a_relative_name_is_of_this_directory(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (asker.work / name).mkdir()
        (asker.work / name / "config").write_text(f"User {name}\n")
    asker.config = Path("config")
    for name in ("a", "b"):
        monkeypatch.chdir(asker.work / name)
        assert asker.ask()[0]["user"] == [name]


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def linked(path: Path) -> None:
    path.replace(path.with_name("moved"))
    path.symlink_to("moved")


def foreign(path: Path) -> None:
    path.write_text(json.dumps({"files": [], "patterns": {}, "effective": {}, "version": ""}))


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [damaged, linked, foreign, piped])
def test_a_damaged_answer_is_none(asker: Asker, harm: Callable[[Path], None]) -> None:
    asker.ask()
    harm(asker.kept[0])
    assert not asker.ask()[1]


@pytest.mark.parametrize("days", [2, -2])
def test_an_old_answer_is_none(asker: Asker, days: int) -> None:
    asker.ask()
    moment = time.time() - days * 86400
    os.utime(asker.kept[0], (moment, moment))
    assert not asker.ask()[1]


def test_old_answers_are_removed(asker: Asker) -> None:
    asker.ask()
    (path,) = asker.kept
    moment = time.time() - 2 * 86400
    for old in (path, path.with_name(".cleared")):
        os.utime(old, (moment, moment))
    asker.host = "other"
    asker.ask()
    assert path not in asker.kept
    assert len(asker.kept) == 1


def test_a_home_that_takes_no_answer_is_no_failure(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc")
    asker.ask()
    asker.ask()
