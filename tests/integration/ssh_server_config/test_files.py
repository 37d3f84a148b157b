# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files: how sshd comes to read the drop-in, what survives of what is there, what goes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.ssh_server_config.conftest import NEW, Server
from tests.support.tasks import CHANGES, STAYS, Tasks

BEGIN = b"# BEGIN bastion.mux server\n"

#: What is above what sshd needs in a configuration, and below it; `{d}` is the drop-ins' directory.
HOSTILE: dict[str, tuple[bytes, bytes]] = {
    "CRLF, no newline at the end": (b"# theirs\r\nUseDNS no\r\n", b"MaxAuthTries 3"),
    "after settings": (b"", b"Include {d}/*.conf\n"),
    "inside of a Match": (b"", b"Match User nobody\n    Include {d}/*.conf\n"),
    "other files": (b"Include {d}/5*.conf\n", b"\n\n\n"),
    "every condition, and bytes": (
        b"# M\xfcller\n",
        b"Match LocalPort 33 Host x LocalAddress ::1 Group x\n  X11Forwarding no\n",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_configuration_that_does_not_read_it_first_gets_a_line(
    server: Server, tasks: Tasks, name: str
) -> None:
    above, below = (text.replace(b"{d}", bytes(server.drop_in.parent)) for text in HOSTILE[name])
    server.has(above, where="before")
    original = server.has(below)
    before = server.tree()
    result = tasks.one()
    assert result.changed
    line_end = b"\r\n" if b"\r\n" in original else b"\n"
    block = BEGIN + b"Include %s\n# END bastion.mux server\n" % bytes(server.drop_in)
    assert server.config.read_bytes() == block.replace(b"\n", line_end) + original
    assert server.login() == "new"
    assert not tasks.one().changed
    tasks.one(state="absent", options=None)
    assert server.tree() == before
    assert server.login() == "old"


def test_a_configuration_that_reads_all_drop_ins_first_is_left_alone(
    server: Server, tasks: Tasks
) -> None:
    other = server.drops("50-other.conf", "ForceCommand echo theirs\nMatch all\nPermitTTY no\n")
    server.drops("99-not.conf.off", "nonsense\n")
    (server.drop_in.parent / "99-directory.conf").mkdir()
    before = server.tree()
    config = server.config.stat()
    rows = tasks.rows()
    assert rows.changed == CHANGES
    assert server.config.stat() == config
    assert server.login() == "new"
    other.unlink()
    assert tasks.rows(state="absent", options=None).changed == CHANGES
    other.write_text("ForceCommand echo theirs\nMatch all\nPermitTTY no\n")
    assert server.tree() == before


def test_what_a_replaced_file_has_it_keeps(server: Server, tasks: Tasks) -> None:
    server.config.chmod(0o640)
    os.chown(server.config, 0, 4)
    os.setxattr(server.config, "user.bastion", b"theirs")
    # Another user may read it: an ACL, as setfacl -m u:65534:r would make it (acl(5), xattr(7)).
    acl = bytes.fromhex(
        "0200000001000600ffffffff02000400feff000004000400ffffffff10000400ffffffff20000000ffffffff"
    )
    os.setxattr(server.config, "system.posix_acl_access", acl)
    before = server.config.stat()
    tasks.one()
    server.drop_in.chmod(0o644)
    tasks.one(options={**NEW, "PermitTTY": False})
    for path, mode in ((server.config, before.st_mode), (server.drop_in, 0o100644)):
        assert path.stat().st_mode == mode
    after = server.config.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid) == (0, 4)
    assert os.getxattr(server.config, "user.bastion") == b"theirs"
    assert os.getxattr(server.config, "system.posix_acl_access") == acl


def test_what_is_new_belongs_to_root(server: Server, tasks: Tasks) -> None:
    files = [
        {"name": "keys/alice", "content": "key\n"},
        {"name": "secret", "content": "s\n", "mode": "0600"},
    ]
    result = tasks.one(files=files)
    shown = {Path(one["after_header"]).name: one["after"] for one in result["diff"]}
    assert shown["alice"] == "key\n"
    assert shown["secret"] == "(2 bytes that others may not read)\n"
    made = {
        server.drop_in.parent: 0o40755,
        server.drop_in: 0o100600,
        server.directory: 0o40755,
        server.directory / "keys": 0o40755,
        server.directory / "keys/alice": 0o100644,
        server.directory / "secret": 0o100600,
    }
    for path, mode in made.items():
        status = path.stat()
        assert (oct(status.st_mode), status.st_uid, status.st_gid) == (oct(mode), 0, 0), path


def test_the_directory_of_files_is_made_what_it_shall_be(
    server: Server, tasks: Tasks, work: Path
) -> None:
    files = [{"name": "keys/alice", "content": "key\n"}, {"name": "ca", "content": "ca\n"}]
    tasks.one(files=files)
    wanted = server.tree()
    outside = work / "outside"
    outside.write_text("theirs")

    def spoil() -> None:
        alice = server.directory / "keys/alice"
        alice.chmod(0o666)
        os.chown(alice, 65534, 65534)
        (server.directory / "keys").chmod(0o700)
        (server.directory / "ca").unlink()
        (server.directory / "ca").symlink_to(outside)
        (server.directory / "keys/mallory").write_text("let me in")
        (server.directory / "deep/er").mkdir(parents=True)
        (server.directory / "deep/er/x").symlink_to(outside)
        os.mkfifo(server.directory / "pipe")

    spoil()
    spoiled = server.tree()
    rows = tasks.rows(files=files)
    assert rows.changed == CHANGES
    assert server.tree() == wanted
    assert outside.read_text() == "theirs"

    spoil()
    tasks.one(files=files, confirm_within=900)
    tasks.one(state="restored")
    assert server.tree() == spoiled
    assert tasks.rows(files=files[:1]).changed == CHANGES
    assert not (server.directory / "ca").exists()


def test_absent_without_anything_there_is_nothing(server: Server, tasks: Tasks) -> None:
    before = server.tree()
    assert tasks.rows(state="absent", options=None).changed == STAYS
    assert server.tree() == before


def test_a_configuration_behind_a_symbolic_link_is_changed_where_it_is(
    server: Server, tasks: Tasks, work: Path
) -> None:
    link = work / "link"
    link.symlink_to(server.config)
    tasks.one(config_path=str(link))
    assert link.is_symlink()
    assert server.login() == "new"


def test_a_path_with_spaces(server: Server, tasks: Tasks) -> None:
    folder = server.config.parent / "my drop ins"
    drop_in = folder / "00 mine.conf"
    rows = tasks.rows(drop_in=str(drop_in), directory=str(folder.parent / "my files"))
    assert rows.changed == CHANGES
    assert server.login() == "new"


@pytest.mark.parametrize("version", ["3.8"])
def test_nothing_but_an_old_python_is_needed(server: Server, tasks: Tasks, version: str) -> None:
    root = Path(os.environ.get("PYENV_ROOT", "/root/.pyenv"))
    found = sorted(root.glob(f"versions/{version}.*/bin/python"))
    if not found:
        pytest.skip(f"there is no Python {version} here")
    variables = {"ansible_python_interpreter": str(found[-1])}
    for state, options in (("present", NEW), ("absent", None)):
        task = tasks.task(state=state, options=options, confirm_within=900)
        for changed in (True, False):
            result = tasks.play(task, extra_vars=variables).ok().task("do")
            assert result.changed is changed
            assert result["pending"]
        (timer,) = server.timers()
        assert version in timer.cmdline()[0]
        confirmed = tasks.task(state="confirmed")
        assert tasks.play(confirmed, extra_vars=variables).ok().task("do").changed
    assert server.login() == "old"
