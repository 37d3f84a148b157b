# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role server believes about sshd, asked of the sshd that is installed.

As in test_openssh_facts.py, nothing of the collection takes part. 8.4, 10.0 and 10.6 said the same
where nothing else is noted.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.accounts import Account
from tests.support.client import Said, Ssh
from tests.support.services import Echo, connect, free_port, free_ports
from tests.support.sshd import Sshd, make_key, openssh_version, public_key, sshd_path
from tests.support.tasks import close_all
from tests.support.waiting import wait_for

MakeJump = Callable[..., "Jump"]


class Jump:
    """A bastion, the one account whose key it knows, and a master of that account."""

    def __init__(self, bastion: Sshd, work: Path) -> None:
        self.bastion = bastion
        self.ssh = Ssh(bastion.ssh_config())
        self.socket = work / "s"
        self.master_log = work / "master.log"

    def log_in(self) -> None:
        # At INFO a master says nothing of a channel that was refused.
        self.ssh.open(self.socket, "-v", "-E", str(self.master_log))

    def reach(self, destination: str) -> Said:
        return self.ssh.run("-S", str(self.socket), "-W", destination)

    def session(self, *options: str) -> Said:
        """A login of its own, which wants to run something."""
        return self.ssh.run("-S", "none", *options, command="echo a shell")

    def refused(self, destination: str) -> str:
        """Why a destination is not reached, in the words that the master got for it."""
        said = len(self.master_log.read_text())
        assert self.reach(destination).rc == 255
        line = wait_for(
            lambda: [
                one
                for one in self.master_log.read_text()[said:].splitlines()
                if "open failed" in one
            ],
            "the reason",
        )[-1]
        return line.split("open failed: ", 1)[1]

    def effective(self, *, user: str | None = None) -> dict[str, str]:
        """What sshd itself says for a connection."""
        said = subprocess.run(
            [
                *(str(sshd_path()), "-T", "-f", str(self.bastion.directory / "sshd_config")),
                *("-C", f"user={user or self.bastion.user},host=h,addr=192.0.2.1"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        # 10.6 spells keywords as the manual page does, and older ones in lower case.
        lines = (line.partition(" ") for line in said.stdout.splitlines())
        return {word.lower(): value for word, _space, value in lines}


@pytest.fixture
def jump(account: Account, work: Path, make_sshd: Callable[..., Sshd]) -> Iterator[MakeJump]:
    """`jump(line, ...)`: a bastion with these lines in a Match block for its one account."""

    def make(*lines: str, match: str = "User {user}", log_in: bool = True, **more: object) -> Jump:
        block = "\n    ".join([f"Match {match.format(user=account.name)}", *lines])
        made = Jump(make_sshd(user=account.name, more=block + "\n", **more), work)
        if log_in:
            made.log_in()
        return made

    yield make
    close_all(work)


# What is logged


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("LogLevel INFO", False),
        ("LogLevel VERBOSE", False),
        ("LogLevel DEBUG", True),
        ("LogVerbose *:server_request_direct_tcpip():*", True),
    ],
)
def test_who_reached_what(jump: MakeJump, echo: Echo, line: str, names: bool) -> None:
    if line.startswith("LogVerbose") and openssh_version(sshd_path() or "") < (8, 5):
        pytest.skip("LogVerbose came with OpenSSH 8.5")
    made = jump(line)
    assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
    # The session's process logs before it answers.
    log = made.bastion.log()
    assert (f"target 127.0.0.1 port {echo.port}" in log) == names
    assert f"Accepted publickey for {made.bastion.user} from 127.0.0.1" in log


def test_the_verbose_line_tells_which_login_it_belongs_to(jump: MakeJump, echo: Echo) -> None:
    if openssh_version(sshd_path() or "") < (8, 5):
        pytest.skip("LogVerbose came with OpenSSH 8.5")
    made = jump("LogVerbose *:server_request_direct_tcpip():*")
    assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
    lines = made.bastion.log().splitlines()
    (child,) = [one.split()[-1] for one in lines if one.startswith("User child is on pid ")]
    (told,) = [one for one in lines if "server_request_direct_tcpip" in one]
    assert f"pid={child})" in told


def test_debug_names_every_permitted_destination_at_every_login(jump: MakeJump) -> None:
    made = jump("LogLevel DEBUG", "PermitOpen a:1 b:2")
    assert "allow admin local forwarding to host b port 2" in made.bastion.log()


# No shell


@pytest.mark.parametrize("line", ["MaxSessions 0", "ForceCommand /bin/false"])
def test_no_session_and_yet_forwarding(jump: MakeJump, echo: Echo, line: str) -> None:
    made = jump(line)
    assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
    for options in ((), ("-tt",), ("-S", str(made.socket))):
        said = made.session(*options)
        assert said.rc != 0
        assert "a shell" not in said.out


def test_a_shell_that_lets_nobody_in_is_enough_for_forwarding(
    jump: MakeJump, account: Account, echo: Echo
) -> None:
    subprocess.run(["usermod", "--shell", "/usr/sbin/nologin", account.name], check=True)
    made = jump("PermitTTY yes")
    assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
    assert made.session().rc == 1


def test_a_shell_that_is_not_there_lets_nobody_log_in(jump: MakeJump, account: Account) -> None:
    subprocess.run(["usermod", "--shell", "/nowhere", account.name], check=True)
    made = jump("PermitTTY yes", log_in=False)
    assert "Permission denied" in made.session().err
    assert "because shell /nowhere does not exist" in made.bastion.log()


# Where to


def test_a_refusal_is_told_from_a_failure(jump: MakeJump, echo: Echo) -> None:
    closed = free_port()
    made = jump(f"PermitOpen 127.0.0.1:{echo.port} 127.0.0.1:{closed} unknown.invalid:1")
    assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
    assert made.refused(f"127.0.0.1:{closed}") == "connect failed: Connection refused"
    assert made.refused("unknown.invalid:1").startswith("connect failed: ")
    for forbidden in ("nowhere.invalid:9", f"127.0.0.1:{free_port()}", f"localhost:{echo.port}"):
        assert made.refused(forbidden) == "administratively prohibited: open failed"


@pytest.mark.parametrize(
    ("value", "local", "remote"),
    [("yes", True, True), ("local", True, False), ("remote", False, True), ("no", False, False)],
)
def test_allow_tcp_forwarding_is_for_one_direction_or_both(
    jump: MakeJump, echo: Echo, value: str, local: bool, remote: bool
) -> None:
    made = jump(f"AllowTcpForwarding {value}", options={"AllowTcpForwarding": "no"})
    assert (made.reach(f"127.0.0.1:{echo.port}").rc == 0) == local
    spec = f"127.0.0.1:{free_port()}:127.0.0.1:{echo.port}"
    assert (made.ssh.control(made.socket, "forward", "-R", spec).rc == 0) == remote


@pytest.mark.parametrize(
    ("permitted", "asked", "granted"),
    [
        ("127.0.0.1:{port}", "127.0.0.1:{port}", True),
        # A client that names no address sends "localhost".
        ("127.0.0.1:{port}", "{port}", False),
        ("localhost:{port}", "{port}", True),
        ("*:{port}", "{port}", True),
        ("{port}", "127.0.0.1:{port}", True),
        ("127.0.0.1:{port} {other}", "127.0.0.1:{other}", True),
        ("{other}", "127.0.0.1:{port}", False),
        ("none", "127.0.0.1:{port}", False),
    ],
)
def test_permit_listen_compares_words(
    jump: MakeJump, permitted: str, asked: str, granted: bool
) -> None:
    port, other = free_ports(2)
    made = jump("PermitListen " + permitted.format(port=port, other=other))
    spec = asked.format(port=port, other=other) + ":127.0.0.1:1"
    assert (made.ssh.control(made.socket, "forward", "-R", spec).rc == 0) == granted


def test_a_thousand_destinations_on_one_line(jump: MakeJump, echo: Echo) -> None:
    words = [f"host{number}.internal.example:{number}" for number in range(1, 1001)]
    made = jump(f"PermitOpen {' '.join(words)} 127.0.0.1:{echo.port}")
    assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
    assert made.effective()["permitopen"].split()[:1000] == words


# Who


def test_the_second_file_of_keys_counts_and_a_key_may_expire(jump: MakeJump, work: Path) -> None:
    keys = work / "keys"
    keys.mkdir()
    made = jump(f"AuthorizedKeysFile {keys}/none-%u {keys}/%u", log_in=False)
    public = public_key(made.bastion.identity_file)
    mine = keys / made.bastion.user
    for options, rc in (("", 0), ('expiry-time="20990101" ', 0), ('expiry-time="20000101" ', 255)):
        mine.write_text(f"{options}{public}\n")
        assert made.session().rc == rc, made.bastion.log()


def test_keys_are_for_the_account_that_the_file_is_named_for(jump: MakeJump, work: Path) -> None:
    keys = work / "keys"
    keys.mkdir()
    made = jump(f"AuthorizedKeysFile {keys}/%u", log_in=False)
    (keys / "another").write_text(public_key(make_key(work / "k")) + "\n")
    (keys / "another").chmod(0o644)
    assert made.session().rc == 255


@pytest.mark.parametrize(
    ("match", "counts"),
    [
        ("Group {user}", True),
        ("Group {user} User !root,*", True),
        ("Group {user} User !{user},*", False),
        ("Group {user} User !root,!{user},*", False),
        ("Group nobody-else", False),
    ],
)
def test_a_group_with_exceptions(jump: MakeJump, match: str, counts: bool) -> None:
    # An account of the tests has a group of its name.
    made = jump("ForceCommand /bin/false", match=match, log_in=False)
    assert (made.session().rc != 0) == counts
    assert made.effective()["forcecommand"] == ("/bin/false" if counts else "none")


def test_sshd_knows_no_group_of_an_account_that_is_not_there(jump: MakeJump) -> None:
    made = jump("ForceCommand /bin/false", match="Group {user}", log_in=False)
    assert made.effective(user="nobody-of-this-name")["forcecommand"] == "none"


def test_the_first_block_with_a_keyword_counts(jump: MakeJump) -> None:
    made = jump("PermitOpen a:1", "Match Group {user}", "PermitOpen b:2", "MaxSessions 0")
    made.bastion.more = made.bastion.more.replace("{user}", made.bastion.user)
    made.bastion.reload()
    assert made.effective()["permitopen"] == "a:1"
    assert made.effective()["maxsessions"] == "0"


# How sshd says what it takes


@pytest.mark.parametrize(
    ("line", "word", "said"),
    [
        ("PermitListen 7000 127.0.0.1:7001", "permitlisten", "*:7000 127.0.0.1:7001"),
        ("PermitOpen b:2 a:1", "permitopen", "b:2 a:1"),
        ("PermitOpen none", "permitopen", "none"),
        ("AuthorizedKeysFile /a/%u /b/%u", "authorizedkeysfile", "/a/%u /b/%u"),
        ("LogLevel DEBUG1", "loglevel", "DEBUG"),
        ("AllowTcpForwarding local", "allowtcpforwarding", "local"),
        ("GatewayPorts no", "gatewayports", "no"),
        ("MaxSessions 0", "maxsessions", "0"),
    ],
)
def test_spelling(jump: MakeJump, line: str, word: str, said: str) -> None:
    assert jump(line, log_in=False).effective()[word] == said


# What a shared connection does not prove


def test_a_master_goes_on_where_nobody_can_log_in_any_more(jump: MakeJump, echo: Echo) -> None:
    made = jump("PermitTTY yes")
    with made.ssh.session(made.socket) as session:
        made.bastion.options["AllowUsers"] = "somebody-else"
        made.bastion.reload()
        # All that runs over the connection is served by the process that accepted it.
        assert session.echoes()
        assert made.ssh.control(made.socket, "check").rc == 0
        assert made.session("-S", str(made.socket)).out == "a shell\n"
        assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
        assert "Permission denied" in made.session().err
        assert session.end() == 0


def test_a_master_has_the_rights_of_its_login(jump: MakeJump, echo: Echo) -> None:
    made = jump("PermitOpen none")
    forbidden = f"127.0.0.1:{echo.port}"
    assert made.refused(forbidden).startswith("administratively prohibited")
    made.bastion.more = ""
    made.bastion.reload()
    assert made.refused(forbidden).startswith("administratively prohibited")
    assert made.ssh.run("-S", "none", "-W", forbidden).rc == 0


# Sizes


def test_connections_that_have_not_logged_in_are_counted(
    make_sshd: Callable[..., Sshd],
) -> None:
    bastion = make_sshd(options={"MaxStartups": "2:100:9"})
    waiting = []
    for _number in range(2):
        waiting.append(connect((bastion.host, bastion.port)))
        assert waiting[-1].recv(4) == b"SSH-"
    with connect((bastion.host, bastion.port)) as dropped:
        # 10.0 says why before it closes.
        assert dropped.recv(22) == b"Exceeded MaxStartups\r\n"
    # Who has logged in does not count any more.
    waiting.pop().close()
    ssh = Ssh(bastion.ssh_config())
    wait_for(lambda: ssh.run(command="true").rc == 0, "a login after one gave up")
    with ssh.started(command="echo up; exec cat") as session:
        assert session.stdout
        assert session.stdout.readline() == b"up\n"
        assert ssh.run(command="true").rc == 0
    waiting.pop().close()


def test_forwarded_connections_are_no_sessions(jump: MakeJump, echo: Echo) -> None:
    made = jump("MaxSessions 1")
    with made.ssh.session(made.socket) as session:
        for _number in range(3):
            assert made.reach(f"127.0.0.1:{echo.port}").rc == 0
        logins = made.bastion.logins()
        # The second session makes a login of its own, and says nothing to who wanted to share.
        assert made.session("-S", str(made.socket)).out == "a shell\n"
        assert made.bastion.logins() == logins + 1
        assert session.end() == 0
