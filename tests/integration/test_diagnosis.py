# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way in which ssh fails to open a master, provoked for real, and the reason it is given.

The texts are what the installed ssh says, so a newer one that says it differently is noticed here.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.model.errors import MuxError
from ansible_collections.bastion.mux.plugins.module_utils.model.target import (
    Target,
    open_arguments,
)
from ansible_collections.bastion.mux.plugins.module_utils.system import master_log
from ansible_collections.bastion.mux.plugins.module_utils.system.askpass import Secrets
from ansible_collections.bastion.mux.plugins.module_utils.system.ssh import LostRace, Ssh
from tests.support.client import clients
from tests.support.services import Page, connect, free_port
from tests.support.sshd import Sshd, make_key, public_key
from tests.support.tasks import close_all
from tests.support.waiting import wait_for


class Stage:
    """A bastion, the ssh_config for it, and whatever else a failure needs."""

    def __init__(self, work: Path, make_sshd: Callable[..., Sshd], until: contextlib.ExitStack):
        self.work = work
        self.make_sshd = make_sshd
        self.until = until

    def target(self, *, sshd: Any = None, ssh: Any = None, more: str = "", **params: Any) -> Target:
        """A bastion with these options of sshd_config and, for its host, of ssh_config."""
        self.bastion = self.make_sshd(options=sshd)
        config = self.bastion.ssh_config(options=ssh, more=more)
        return Target("bastion", ssh_config=str(config), **params)

    def behind(self, *, sshd: Any = None, ssh: Any = None, port: int | None = None) -> Target:
        """A bastion behind a hop with these options, which is told to connect to `port`."""
        hop = self.make_sshd(options=sshd, name="hop")
        config = hop.ssh_config(options=ssh)
        return self.target(more=config.read_text(), jump=("hop",), port=port)

    def elsewhere(
        self, port: int = 22, *, host: str = "127.0.0.1", ssh_config: str = "none"
    ) -> Target:
        """Something that is no bastion."""
        return Target(host, port=port, ssh_config=ssh_config, connect_timeout=1)

    def file(self, text: str, mode: int = 0o600) -> str:
        path = self.work / "file"
        path.write_text(text)
        path.chmod(mode)
        return str(path)

    def key(self, name: str = "key") -> Path:
        """A key that nobody knows."""
        return make_key(self.work / name)

    def agent(self) -> dict[str, str]:
        """The options for an agent which refuses to use the key that it has."""
        path, key = self.work / "agent", self.work / "bastion" / "id"
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
        self.until.callback(agent.wait)
        self.until.callback(agent.terminate)
        wait_for(path.is_socket, "the agent")
        # -c: ask before each use; there is nobody to ask.
        command = ["ssh-add", "-q", "-c", str(key)]
        subprocess.run(command, env={"SSH_AUTH_SOCK": str(path)}, check=True)
        return {"IdentityAgent": str(path), "IdentityFile": f"{key}.pub"}

    def listener(self, backlog: int = 5) -> int:
        """The port of a listener which accepts nobody."""
        listener = self.until.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(backlog)
        return int(listener.getsockname()[1])

    def full_listener(self) -> int:
        """The port of a listener whose queue is full: the kernel drops who comes."""
        port = self.listener(backlog=0)
        with contextlib.suppress(TimeoutError):
            while True:
                self.until.enter_context(connect(("127.0.0.1", port), timeout=0.3))
        return port

    def busy(self) -> Target:
        """A bastion on which somebody else is about to log in: it takes one at a time."""
        target = self.target(sshd={"MaxStartups": "1"})
        other = self.until.enter_context(connect(("127.0.0.1", self.bastion.port)))
        assert other.recv(4) == b"SSH-"
        return target

    def page(self) -> int:
        """The port of a web server."""
        return int(self.until.enter_context(Page()).port)


@pytest.fixture
def stage(work: Path, make_sshd: Callable[..., Sshd]) -> Iterator[Stage]:
    with contextlib.ExitStack() as until:
        yield Stage(work, make_sshd, until)
        close_all(work)


def open_master(
    target: Target, path: Path, *, password: str | None = None, timeout: float = 20
) -> None:
    """Open a master as the engine does."""
    Ssh("ssh", print).open_master(
        [
            *open_arguments(str(path), target.persist, log=master_log.path_of(str(path))),
            *target.arguments(password=password is not None),
        ],
        target.host,
        control_path=str(path),
        secrets=Secrets(password=password),
        timeout=timeout,
    )


def why(target: Target, path: Path, **how: Any) -> MuxError:
    """The failure to open a master."""
    with pytest.raises(MuxError) as caught:
        open_master(target, path, **how)
    assert not path.is_socket()
    return caught.value


MISLEADING = """\
@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @
Sessions that timed out are closed. See the manual, line 7: Permission denied (really).
ControlSocket /x already exists, disabling multiplexing
"""

Make = Callable[[Stage], Target]
FAILURES: dict[str, tuple[Make, str, str]] = {
    "unknown host key": (
        lambda stage: stage.target(ssh={"UserKnownHostsFile": "/dev/null"}),
        "host_key_unknown",
        "No ED25519 host key is known for .*Host key verification failed",
    ),
    "unknown host key of a hop": (
        lambda stage: stage.behind(ssh={"UserKnownHostsFile": "/dev/null"}),
        "host_key_unknown",
        "Host key verification failed",
    ),
    "changed host key": (
        lambda stage: stage.target(
            known_hosts_file=stage.file(f"* {public_key(stage.key())}\n"),
        ),
        "host_key_changed",
        "REMOTE HOST IDENTIFICATION HAS CHANGED.*Host key verification failed",
    ),
    "changed host key, new ones accepted": (
        lambda stage: stage.target(
            known_hosts_file=stage.file(f"* {public_key(stage.key())}\n"),
            host_key_checking="accept-new",
        ),
        "host_key_changed",
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
    ),
    "changed host key of a hop": (
        lambda stage: stage.behind(
            ssh={"UserKnownHostsFile": stage.file(f"* {public_key(stage.key())}\n")}
        ),
        "host_key_changed",
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
    ),
    "revoked host key": (
        lambda stage: stage.target(
            sshd={"HostKey": str(stage.key())},
            known_hosts_file=stage.file(f"@revoked * {public_key(stage.work / 'key')}\n"),
        ),
        "host_key_changed",
        "REVOKED HOST KEY DETECTED",
    ),
    "no key that the server takes": (
        lambda stage: stage.target(sshd={"AuthorizedKeysFile": "none"}),
        "auth_failed",
        r"Permission denied \(publickey\)",
    ),
    "no key that a hop takes": (
        lambda stage: stage.behind(sshd={"AuthorizedKeysFile": "none"}),
        "auth_failed",
        r"Permission denied \(publickey\)",
    ),
    "no way to log in that both know": (
        lambda stage: stage.target(ssh={"PreferredAuthentications": "password"}),
        "auth_failed",
        r"Permission denied \(publickey\)",
    ),
    "too many keys": (
        lambda stage: stage.target(
            sshd={"AuthorizedKeysFile": "none", "MaxAuthTries": 1},
            ssh={"IdentityFile": [str(stage.key(name)) for name in "abc"]},
        ),
        "auth_failed",
        "Too many authentication failures",
    ),
    "a key that others can read": (
        lambda stage: stage.target(
            sshd={"AuthorizedKeysFile": f"{stage.key()}.pub"},
            ssh={"IdentityFile": stage.file((stage.work / "key").read_text(), 0o644)},
        ),
        "auth_failed",
        "UNPROTECTED PRIVATE KEY FILE",
    ),
    "a key that needs a passphrase": (
        lambda stage: stage.target(
            identity_file=str(make_key(stage.work / "locked", passphrase="secret")),
            sshd={"AuthorizedKeysFile": f"{stage.work}/locked.pub"},
        ),
        "auth_failed",
        r"Permission denied \(publickey\)",
    ),
    "a misleading banner": (
        lambda stage: stage.target(
            sshd={"AuthorizedKeysFile": "none", "Banner": stage.file(MISLEADING)}
        ),
        "auth_failed",
        r"Permission denied \(publickey\)",
    ),
    "a configuration that wants silence": (
        lambda stage: stage.target(sshd={"AuthorizedKeysFile": "none"}, ssh={"LogLevel": "QUIET"}),
        "auth_failed",
        r"Permission denied \(publickey\)",
    ),
    "a configuration of long ago": (
        lambda stage: stage.target(
            sshd={"AuthorizedKeysFile": "none"}, ssh={"RSAAuthentication": "yes"}
        ),
        "auth_failed",
        "Unsupported option.*Permission denied",
    ),
    "nobody listens": (
        lambda stage: stage.elsewhere(free_port()),
        "unreachable",
        "connect to host 127.0.0.1 port .*: Connection refused",
    ),
    "no such name": (
        lambda stage: stage.elsewhere(host="none.invalid"),
        "unreachable",
        "Could not resolve hostname none.invalid",
    ),
    "no route": (
        lambda stage: stage.elsewhere(host="255.255.255.255"),
        "unreachable",
        "connect to host 255.255.255.255 port 22: ",
    ),
    "not an ssh server": (
        lambda stage: stage.elsewhere(stage.page()),
        "unreachable",
        "kex_exchange_identification: ",
    ),
    "a server that takes no more logins": (
        lambda stage: stage.busy(),
        "unreachable",
        "^no master to bastion: kex_exchange_identification: .*Connection .*MaxStartups",
    ),
    "no cipher that both know": (
        lambda stage: stage.target(sshd={"Ciphers": "aes128-ctr"}, ssh={"Ciphers": "aes256-ctr"}),
        "unreachable",
        "Unable to negotiate .* no matching cipher found",
    ),
    "a hop on which nobody listens": (
        lambda stage: stage.target(jump=(f"127.0.0.1:{free_port()}",)),
        "unreachable",
        "Connection refused",
    ),
    "nobody listens behind the hop": (
        lambda stage: stage.behind(port=free_port()),
        "unreachable",
        "open failed: connect failed: Connection refused.*stdio forwarding failed",
    ),
    "a hop that forwards nothing": (
        lambda stage: stage.behind(sshd={"AllowTcpForwarding": "no"}),
        "unreachable",
        "open failed: administratively prohibited.*stdio forwarding failed",
    ),
    "packets that are dropped": (
        lambda stage: stage.elsewhere(stage.full_listener()),
        "timeout",
        "connect to host 127.0.0.1 port .*: Connection timed out",
    ),
    "a server that says nothing": (
        lambda stage: stage.elsewhere(stage.listener()),
        "timeout",
        "Connection timed out during banner exchange",
    ),
    "no such keyword": (
        lambda stage: stage.target(ssh_options=(("NoSuchKeyword", "x"),)),
        "invalid",
        "Bad configuration option: nosuchkeyword",
    ),
    "no such value": (
        lambda stage: stage.target(ssh_options=(("Compression", "perhaps"),)),
        "invalid",
        'command-line line 0: .*"perhaps"',
    ),
    "a value too many": (
        lambda stage: stage.target(ssh_options=(("Compression", "yes no"),)),
        "invalid",
        "line 0: .*extra arguments",
    ),
    "no value": (
        lambda stage: stage.target(ssh_options=(("Compression", ""),)),
        "invalid",
        "line 0: (no|[Mm]issing) argument",
    ),
    "an error in the file": (
        lambda stage: stage.elsewhere(ssh_config=stage.file("Host x\n  Port many\n")),
        "invalid",
        "line 2: Bad",
    ),
    "no such file": (
        lambda stage: stage.elsewhere(ssh_config="/none"),
        "invalid",
        "Can't open user config file /none",
    ),
    "a file that others can write": (
        lambda stage: stage.target(more=f"Include {stage.file('', 0o666)}\n"),
        "invalid",
        "Bad owner or permissions on ",
    ),
    "no such option": (
        lambda stage: stage.target(extra_arguments=("-z",)),
        "invalid",
        "(unknown|illegal|invalid) option .*usage: ssh",
    ),
    "a port that is no number": (
        lambda stage: stage.target(extra_arguments=("-p", "many")),
        "invalid",
        "Bad port 'many'",
    ),
    "a host that a shell would run": (
        lambda stage: stage.elsewhere(host="$(x)"),
        "invalid",
        "hostname contains invalid characters",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_reason(stage: Stage, name: str) -> None:
    make, reason, text = FAILURES[name]
    error = why(make(stage), stage.work / "s")
    assert re.search(text, error.message, re.DOTALL), error.message
    assert error.reason == reason, error.message


def test_a_path_that_is_too_long(stage: Stage) -> None:
    path = stage.work / ("s" * (95 - len(str(stage.work)) - 1))
    error = why(stage.target(), path)
    assert "too long for Unix domain socket" in error.message
    assert error.reason == "control_path_too_long"


def test_a_wrong_password(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    target = stage.target(
        sshd={"PasswordAuthentication": "yes", "AuthorizedKeysFile": "none"},
        ssh={"PreferredAuthentications": "password"},
    )
    error = why(target, stage.work / "s", password="wrong-secret")
    assert re.search(r"Permission denied \(publickey,password\)", error.message), error.message
    assert error.reason == "auth_failed"
    assert "wrong-secret" not in error.message + capsys.readouterr().out


def test_an_agent_that_refuses(stage: Stage) -> None:
    target = stage.target()
    extra = tuple(f"-o{key}={value}" for key, value in stage.agent().items())
    config = Path(str(target.ssh_config))
    kept = [line for line in config.read_text().splitlines() if "Identity" not in line]
    config.write_text("\n".join(kept))
    error = why(Target("bastion", ssh_config=str(config), extra_arguments=extra), stage.work / "s")
    assert re.search("signing failed for .*Permission denied", error.message, re.DOTALL)
    assert error.reason == "auth_failed"


def test_a_login_that_takes_too_long(stage: Stage) -> None:
    target = Target("127.0.0.1", port=stage.listener(), ssh_config="none", connect_timeout=30)
    error = why(target, stage.work / "s", timeout=1)
    assert error.message == "the login did not end within 1 seconds"
    assert error.reason == "timeout"


def test_what_the_stage_sets_up_is_no_failure_by_itself(stage: Stage) -> None:
    path = stage.work / "s"
    open_master(stage.behind(), path)
    assert path.is_socket()


def test_a_lost_race_leaves_the_winner_and_no_orphan(stage: Stage) -> None:
    path, target = stage.work / "s", stage.target(ssh={"LogLevel": "QUIET"})
    open_master(target, path)
    (winner,) = clients(stage.bastion.port)
    for persist in ("yes", "600"):
        with pytest.raises(LostRace):
            open_master(replace(target, persist=persist), path)
        assert path.is_socket()
        wait_for(lambda: len(clients(stage.bastion.port)) == 1, "the end of the loser")
    assert clients(stage.bastion.port) == [winner]
