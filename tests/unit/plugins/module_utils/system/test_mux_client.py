# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client in dialogue with the fake master, and with masters that misbehave."""

from __future__ import annotations

import contextlib
import os
import pty
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple, Type

import pytest

from ansible_collections.bastion.mux.plugins.module_utils.protocol import messages
from ansible_collections.bastion.mux.plugins.module_utils.protocol.errors import ProtocolError
from ansible_collections.bastion.mux.plugins.module_utils.protocol.messages import WireForward
from ansible_collections.bastion.mux.plugins.module_utils.system import mux_client
from ansible_collections.bastion.mux.plugins.module_utils.system.mux_client import (
    MuxClient,
    MuxClientError,
    MuxClosed,
    MuxDenied,
    MuxRefused,
    MuxTimeout,
    MuxUnsupported,
    SessionLost,
    SocketMissing,
    SocketStale,
    SocketUnusable,
    TerminalRefused,
)
from tests.support import fake_master
from tests.support.fake_master import Asked, FakeMaster, Peer, Script
from tests.support.waiting import wait_for
from tests.support.workdir import short_dir

SHORT = 0.2
LONG = 10.0
# What a busy machine may add to a deadline.
GRACE = 2.0

WEB = WireForward(messages.LOCAL, "127.0.0.1", 8080, "web", 80)
ALLOCATED = WireForward(messages.REMOTE, "", 0, "web", 80)


@pytest.fixture
def path() -> Iterator[Path]:
    with short_dir() as directory:
        yield directory / "s"


@pytest.fixture
def master(path: Path) -> Iterator[FakeMaster]:
    with FakeMaster(path) as running:
        yield running


@pytest.fixture
def client(master: FakeMaster) -> Iterator[MuxClient]:
    with connect(master) as connected:
        yield connected


@contextlib.contextmanager
def scripted(path: Path, script: Script, timeout: float = LONG) -> Iterator[MuxClient]:
    """A client whose master says hello and goes on with a script."""

    def whole(peer: Peer) -> None:
        peer.hello()
        script(peer)

    with FakeMaster(path, whole) as running, connect(running, timeout) as connected:
        yield connected


def connect(master: FakeMaster, timeout: float = LONG) -> MuxClient:
    return MuxClient.connect(str(master.path), timeout=timeout)


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """The block takes `seconds`: not less, as for a deadline that was held, and not much more."""
    start = time.monotonic()
    yield
    took = time.monotonic() - start
    assert seconds * 0.99 <= took < seconds + GRACE


@contextlib.contextmanager
def pipe() -> Iterator[Tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


# Connecting


def test_nothing_at_the_path(path: Path) -> None:
    for missing in (path, path / "below"):
        with pytest.raises(SocketMissing, match="no control socket"):
            MuxClient.connect(str(missing), timeout=LONG)


def test_a_path_below_a_file(path: Path) -> None:
    path.write_text("")
    with pytest.raises(SocketMissing, match="no control socket"):
        MuxClient.connect(str(path / "below"), timeout=LONG)


def test_a_stale_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(SocketStale, match="nobody listens"):
        MuxClient.connect(str(path), timeout=LONG)


def test_a_file_that_is_no_socket(path: Path) -> None:
    path.write_text("")
    with pytest.raises(SocketUnusable, match="not a socket"):
        MuxClient.connect(str(path), timeout=LONG)


def test_a_link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")
    with pytest.raises(SocketUnusable, match="not a socket"):
        MuxClient.connect(str(path), timeout=LONG)


def test_a_path_that_is_too_long(path: Path) -> None:
    with pytest.raises(SocketUnusable, match="path too long"):
        MuxClient.connect(str(path) + "s" * 200, timeout=LONG)


def test_another_kind_of_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        with pytest.raises(SocketUnusable, match=r"[Pp]rotocol"):
            MuxClient.connect(str(path), timeout=LONG)


@contextlib.contextmanager
def full_backlog(path: Path) -> Iterator[Tuple[socket.socket, contextlib.ExitStack]]:
    """A listener whose backlog has no room left, and what closes those who wait there."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(path))
        listener.listen(1)
        listener.settimeout(LONG)
        with contextlib.suppress(BlockingIOError):
            while True:
                one = waiting.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                one.connect(str(path))
        yield listener, waiting


needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="a full backlog refuses at once elsewhere"
)


@needs_linux
def test_a_full_backlog(path: Path) -> None:
    with full_backlog(path), within(SHORT), pytest.raises(MuxTimeout, match="too many wait"):
        MuxClient.connect(str(path), timeout=SHORT)


@needs_linux
def test_a_backlog_that_was_full(path: Path) -> None:
    with full_backlog(path) as (listener, waiting):

        def serve() -> None:
            time.sleep(0.05)
            waiting.close()
            with contextlib.suppress(fake_master.Gone):
                while True:
                    connection, _address = listener.accept()
                    with connection:
                        data = connection.recv(4, socket.MSG_PEEK)
                        if data:
                            Peer(connection).hello()
                            Peer(connection).hold()

        thread = threading.Thread(target=serve)
        thread.start()
        with MuxClient.connect(str(path), timeout=LONG) as client:
            assert client.extensions == {}
        thread.join()


def test_a_master_that_says_nothing(path: Path) -> None:
    silent = FakeMaster(path, Peer.hold)
    with silent, within(SHORT), pytest.raises(MuxTimeout, match="did not answer in time"):
        connect(silent, SHORT)


def test_a_master_that_never_comes_to_its_point(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.raw(b"\0\x04\0\0")
        while True:
            peer.raw(b"x")
            time.sleep(0.001)

    with FakeMaster(path, script) as trickling, within(SHORT), pytest.raises(MuxTimeout):
        connect(trickling, SHORT)


def test_a_master_that_hangs_up(path: Path) -> None:
    with FakeMaster(path, Peer.hang_up) as rude, pytest.raises(MuxClosed):
        connect(rude)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (fake_master.frame(fake_master.HELLO, 5), "version 5"),
        (fake_master.frame(fake_master.HELLO, 4, "info"), "early"),
        (fake_master.frame(fake_master.OK, 0), "instead of a hello"),
        (b"\0\0\0\0", "early"),
        (b"\0\x04\0\x01", "262145 bytes"),
        (b"SSH-2.0-OpenSSH_10.5\r\n", "1397966893 bytes"),
    ],
)
def test_a_peer_that_is_no_master(path: Path, said: bytes, complaint: str) -> None:
    def script(peer: Peer) -> None:
        peer.raw(said)
        peer.hold()

    with FakeMaster(path, script) as stranger, pytest.raises(ProtocolError, match=complaint):
        connect(stranger)


def test_extensions_are_kept(path: Path) -> None:
    announced: Dict[str, fake_master.Value] = {"info": "0", "else@example.org": b"\xff"}
    with FakeMaster(path, extensions=announced) as running, connect(running) as client:
        assert client.extensions == {"info": b"0", "else@example.org": b"\xff"}
        assert client.check() == running.pid


def test_our_hello(path: Path) -> None:
    heard: List[Any] = []
    with FakeMaster(path, lambda peer: heard.append(peer.hello())) as running, connect(running):
        pass
    assert heard == [(fake_master.HELLO, 4)]


def test_no_descriptor_is_lost(path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/dev/fd"))

    with FakeMaster(path, lambda peer: peer.send(fake_master.OK)) as wrong:
        before = count()
        with pytest.raises(ProtocolError) as refused:
            connect(wrong)
        with pytest.raises(SocketMissing) as missing:
            MuxClient.connect(str(path) + "x", timeout=LONG)
        # The fake master's own end closes when its thread comes to it. The errors are kept so
        # long, with all that they hold: it is not for the garbage collector to close ours.
        wait_for(lambda: count() == before, "all is closed")
        assert all((refused.value, missing.value))


def test_a_descriptor_beyond_what_select_takes(master: FakeMaster) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], 1600), limits[1]))
    try:
        with socket.socket(socket.AF_UNIX) as low:
            low.connect(str(master.path))
            os.dup2(low.fileno(), 1500)
        with MuxClient(socket.socket(fileno=1500), timeout=LONG) as client:
            assert client.check() == master.pid
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# One request, one reply


def test_check(client: MuxClient, master: FakeMaster) -> None:
    assert [client.check(), client.check()] == [master.pid, master.pid]


def test_a_reply_in_pieces(path: Path) -> None:
    def script(peer: Peer) -> None:
        for byte in fake_master.frame(fake_master.ALIVE, peer.request().id, 4242):
            peer.raw(bytes([byte]))
            time.sleep(0.001)

    with scripted(path, script) as client:
        assert client.check() == 4242


def test_requests_of_a_connection_have_different_ids(client: MuxClient, master: FakeMaster) -> None:
    client.check()
    client.open_forwards([WEB, WEB])
    ids = [asked.id for asked in master.requests]
    assert len(set(ids)) == 3


Call = Callable[[MuxClient], Any]

CALLS: Dict[str, Call] = {
    "check": MuxClient.check,
    "open_forward": lambda client: client.open_forward(WEB),
    "close_forward": lambda client: client.close_forward(WEB),
    "open_forwards": lambda client: client.open_forwards([WEB, ALLOCATED]),
    "terminate": MuxClient.terminate,
    "stop_listening": MuxClient.stop_listening,
    "session": lambda client: client.session("true", stdin=0, stdout=1, stderr=2),
    "stdio_forward": lambda client: client.stdio_forward("web", 80, stdin=0, stdout=1),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture
def not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pytest's own descriptors are."""
    monkeypatch.setattr(os, "isatty", lambda _: False)


@pytest.mark.usefixtures("not_a_terminal")
@each_call
def test_a_wedged_master(path: Path, call: Call) -> None:
    with scripted(path, Peer.hold, SHORT) as client:
        with within(SHORT), pytest.raises(MuxTimeout, match="did not answer in time"):
            call(client)
        with pytest.raises(MuxClientError, match="closed before"):
            client.check()


@pytest.mark.usefixtures("not_a_terminal")
@each_call
def test_another_requests_reply(path: Path, call: Call) -> None:
    def script(peer: Peer) -> None:
        peer.send(fake_master.OK, peer.request().id + 77)
        peer.hold()

    with scripted(path, script) as client:
        with pytest.raises(ProtocolError, match="which is not open"):
            call(client)
        with pytest.raises(MuxClientError, match="closed before"):
            client.check()


@pytest.mark.usefixtures("not_a_terminal")
@each_call
@pytest.mark.parametrize("kind", [fake_master.EXIT_MESSAGE, fake_master.TTY_ALLOC_FAIL])
def test_what_answers_no_request(path: Path, call: Call, kind: int) -> None:
    def script(peer: Peer) -> None:
        peer.send(kind, peer.request().id, 0)
        peer.hold()

    with scripted(path, script) as client, pytest.raises(ProtocolError, match="is no answer to"):
        call(client)


@pytest.mark.usefixtures("not_a_terminal")
@pytest.mark.parametrize("name", [name for name in CALLS if name != "terminate"])
def test_a_master_that_hangs_up_instead(path: Path, name: str) -> None:
    with scripted(path, Peer.hang_up) as client, pytest.raises(MuxClosed):
        CALLS[name](client)


@pytest.mark.usefixtures("not_a_terminal")
@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("check", "open_forwards")])
@pytest.mark.parametrize(
    ("kind", "error"),
    [(fake_master.FAILURE, MuxRefused), (fake_master.PERMISSION_DENIED, MuxDenied)],
)
def test_a_refusal_is_no_end(path: Path, name: str, kind: int, error: Type[MuxRefused]) -> None:
    def script(peer: Peer) -> None:
        asked = peer.request()
        peer.descriptors({"session": 3, "stdio_forward": 2}.get(name, 0), keep=False)
        peer.send(kind, asked.id, "the reason")
        peer.send(fake_master.ALIVE, peer.request().id, 7)

    with scripted(path, script) as client:
        with pytest.raises(error, match=r"^the reason$") as caught:
            CALLS[name](client)
        assert caught.type is error
        assert client.check() == 7


def test_a_refusal_before_all_was_sent(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.read(200)
        peer.send(fake_master.FAILURE, 1, "too much")

    big = messages.NewSession("x" * 262000).encode(1)
    assert len(big) > 200
    with scripted(path, script) as client, pipe() as (read, write), pytest.raises(MuxRefused):
        client.session("x" * 262000, stdin=read, stdout=write, stderr=write)


def test_sigpipe_does_not_kill(path: Path) -> None:
    previous = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with scripted(path, Peer.hang_up) as client:
            time.sleep(0.05)
            with pytest.raises(MuxClosed):
                client.check()
    finally:
        signal.signal(signal.SIGPIPE, previous)


def test_signals_neither_end_nor_prolong_a_wait(path: Path) -> None:
    seen: List[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, _frame: seen.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        wedged = scripted(path, Peer.hold, SHORT)
        with wedged as client, within(SHORT), pytest.raises(MuxTimeout):
            client.check()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(seen) > 5


# Forwardings


def test_forwarding(client: MuxClient, master: FakeMaster) -> None:
    assert [client.open_forward(WEB), client.open_forward(WEB)] == [None, None]
    assert master.forwards == [(1, b"127.0.0.1", 8080, b"web", 80)]
    client.close_forward(WEB)
    assert master.forwards == []
    with pytest.raises(MuxRefused, match="port not forwarded"):
        client.close_forward(WEB)


def test_an_allocated_port_is_repeated(client: MuxClient) -> None:
    assert [client.open_forward(ALLOCATED), client.open_forward(ALLOCATED)] == [40000, 40000]
    client.close_forward(ALLOCATED)


def test_a_port_that_nobody_knows_yet(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send(fake_master.REMOTE_PORT, peer.request().id, 0)

    with scripted(path, script) as client, pytest.raises(MuxRefused, match="earlier request"):
        client.open_forward(ALLOCATED)


def test_a_cancel_is_not_answered_with_a_port(path: Path) -> None:
    def script(peer: Peer) -> None:
        peer.send(fake_master.REMOTE_PORT, peer.request().id, 40000)

    with scripted(path, script) as client, pytest.raises(ProtocolError, match="no answer"):
        client.close_forward(ALLOCATED)


def forwards(count: int) -> List[WireForward]:
    return [WireForward(messages.LOCAL, "", port, "web", 80) for port in range(1, count + 1)]


def test_a_batch_of_every_outcome(path: Path) -> None:
    def script(peer: Peer) -> None:
        asked = [peer.request() for _each in range(4)]
        # Not in the order of the requests.
        peer.send(fake_master.REMOTE_PORT, asked[3].id, 40000)
        peer.send(fake_master.PERMISSION_DENIED, asked[1].id, "no")
        peer.send(fake_master.OK, asked[0].id)
        peer.send(fake_master.FAILURE, asked[2].id, "taken")

    batch = [*forwards(3), ALLOCATED]
    with scripted(path, script) as client:
        outcomes = client.open_forwards(batch)
    assert outcomes == [
        mux_client.ForwardOutcome(batch[0], True),
        mux_client.ForwardOutcome(batch[1], False, message="no", permission_denied=True),
        mux_client.ForwardOutcome(batch[2], False, message="taken"),
        mux_client.ForwardOutcome(ALLOCATED, True, port=40000),
    ]


def test_an_empty_batch(client: MuxClient, master: FakeMaster) -> None:
    assert client.open_forwards([]) == []
    assert client.close_forwards([]) == []
    assert master.requests == []


def test_a_batch_may_take_the_timeout_for_each_reply(path: Path) -> None:
    def script(peer: Peer) -> None:
        for _each in range(5):
            asked = peer.request()
            time.sleep(SHORT / 2)
            peer.send(fake_master.OK, asked.id)

    with scripted(path, script, SHORT) as client, within(SHORT * 2.5):
        assert all(outcome.ok for outcome in client.open_forwards(forwards(5)))


@pytest.mark.parametrize(("end", "error"), [(Peer.hold, MuxTimeout), (Peer.hang_up, MuxClosed)])
def test_a_batch_that_breaks_off_says_how_far_it_came(
    path: Path, end: Script, error: Type[MuxClientError]
) -> None:
    def script(peer: Peer) -> None:
        asked = [peer.request() for _each in range(3)]
        peer.send(fake_master.OK, asked[2].id)
        peer.send(fake_master.FAILURE, asked[0].id, "taken")
        end(peer)

    batch = forwards(3)
    with scripted(path, script, SHORT) as client, pytest.raises(error) as caught:
        client.open_forwards(batch)
    assert [(outcome.forward, outcome.ok) for outcome in caught.value.outcomes] == [
        (batch[0], False),
        (batch[2], True),
    ]


def test_a_reply_comes_once(path: Path) -> None:
    def script(peer: Peer) -> None:
        asked = peer.request()
        peer.send(fake_master.OK, asked.id)
        peer.send(fake_master.OK, asked.id)

    with scripted(path, script) as client, pytest.raises(ProtocolError, match="not open"):
        client.open_forwards(forwards(2))


def test_sending_does_not_wait_for_a_peer_that_waits_for_us() -> None:
    count = 2000
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    refused: List[Asked] = []

    def serve() -> None:
        peer = Peer(theirs)
        peer.hello()
        for _each in range(count):
            asked = peer.request()
            peer.send(fake_master.FAILURE, asked.id, "x" * 200)
            refused.append(asked)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with theirs, MuxClient(ours, timeout=LONG) as client:
        outcomes = client.open_forwards(forwards(count))
        assert [outcome.message for outcome in outcomes] == ["x" * 200] * count
        thread.join()
    assert len(refused) == count


# The master's end


@pytest.mark.parametrize(
    "said",
    [fake_master.frame(fake_master.OK, 1), b"", b"\0\0\0\x08\x80"],
    ids=["reply", "end of file", "half a reply"],
)
def test_terminate(path: Path, said: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.raw(said)

    with scripted(path, script) as client:
        client.terminate()


def test_terminate_ends_the_fake(client: MuxClient, master: FakeMaster) -> None:
    client.terminate()
    assert not master.path.exists()


def test_terminating_what_hung_up_before_is_no_success(path: Path) -> None:
    over = threading.Event()

    def script(peer: Peer) -> None:
        peer.hang_up()
        over.set()

    with scripted(path, script) as client:
        assert over.wait(LONG)
        with pytest.raises(MuxClosed):
            client.terminate()


def test_stop_listening(client: MuxClient, master: FakeMaster) -> None:
    client.stop_listening()
    assert not master.path.exists()
    assert client.check() == master.pid


def test_info(path: Path) -> None:
    with FakeMaster(path, extensions={"info": "0"}) as running, connect(running) as client:
        assert client.info("connection") == "about the connection\n"
        with pytest.raises(MuxUnsupported, match="not supported"):
            client.info("weather")
        assert client.info("channels") == "about the channels\n"


def test_info_is_not_asked_for_unannounced(client: MuxClient, master: FakeMaster) -> None:
    with pytest.raises(MuxUnsupported, match="no information"):
        client.info("connection")
    assert master.requests == []


# Sessions and stdio forwardings


def test_session(client: MuxClient, master: FakeMaster) -> None:
    master.exit_status = 3
    with pipe() as (read, write):
        command = client.session(
            b"echo \xff",
            stdin=read,
            stdout=write,
            stderr=write,
            environment=[("LANG", "C"), ("A", "b=c")],
            agent=True,
        )
        with command as session:
            assert session.id == 7
            assert [session.wait(LONG), session.wait(LONG)] == [3, 3]
        assert os.read(read, 100) == b"output\n"
    assert master.requests[-1].values == (
        b"", 0, 0, 1, 0, 0xFFFFFFFF, b"", b"echo \xff", b"LANG=C", b"A=b=c",
    )  # fmt: skip


def test_subsystem(client: MuxClient, master: FakeMaster) -> None:
    with pipe() as (read, write):
        client.session("sftp", subsystem=True, x11=True, stdin=read, stdout=write, stderr=write)
    assert master.requests[-1].values[2:5] == (1, 0, 1)


def test_each_descriptor_is_the_one_that_was_given(path: Path) -> None:
    def script(peer: Peer) -> None:
        asked = peer.request()
        stdin, stdout, stderr = peer.descriptors(3)
        peer.send(fake_master.SESSION_OPENED, asked.id, 1)
        os.write(stdout, os.read(stdin, 100) + b" out")
        os.write(stderr, b"err")
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
        peer.send(fake_master.EXIT_MESSAGE, 1, 0)

    with scripted(path, script) as client, pipe() as stdin, pipe() as stdout, pipe() as stderr:
        os.write(stdin[1], b"in")
        session = client.session("x", stdin=stdin[0], stdout=stdout[1], stderr=stderr[1])
        assert session.wait(LONG) == 0
        assert os.read(stdout[0], 100) == b"in out"
        assert os.read(stderr[0], 100) == b"err"


@contextlib.contextmanager
def running(path: Path, rest: Script) -> Iterator[mux_client.MuxSession]:
    """A session that its master opened as number 5; the script says how it goes on."""

    def script(peer: Peer) -> None:
        asked = peer.request()
        peer.descriptors(3, keep=False)
        peer.send(fake_master.SESSION_OPENED, asked.id, 5)
        rest(peer)

    with scripted(path, script) as client, pipe() as (read, write):
        yield client.session("x", stdin=read, stdout=write, stderr=write)


def test_a_session_that_lasts_can_be_waited_for_again(path: Path) -> None:
    go_on = threading.Event()

    def rest(peer: Peer) -> None:
        peer.send(fake_master.TTY_ALLOC_FAIL, 5)
        go_on.wait(LONG)
        peer.send(fake_master.EXIT_MESSAGE, 5, 255)

    with running(path, rest) as session:
        with within(SHORT), pytest.raises(MuxTimeout):
            session.wait(SHORT)
        go_on.set()
        assert session.wait(LONG) == 255


def test_a_session_is_over_when_the_master_hangs_up(path: Path) -> None:
    def rest(peer: Peer) -> None:
        peer.send(fake_master.EXIT_MESSAGE, 5, 0)
        peer.hold()

    with running(path, rest) as session, within(SHORT), pytest.raises(MuxTimeout):
        session.wait(SHORT)


def test_a_session_without_a_status(path: Path) -> None:
    with running(path, Peer.hang_up) as session:
        for _each in range(2):
            with pytest.raises(SessionLost, match="without an exit status"):
                session.wait(LONG)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ([fake_master.frame(fake_master.EXIT_MESSAGE, 6, 0)], "about session 6, not 5"),
        ([fake_master.frame(fake_master.OK, 5)], "nothing to say about a session"),
        ([fake_master.frame(fake_master.EXIT_MESSAGE, 5, 0)] * 2, "nothing to say"),
        ([b"\xff\xff\xff\xff"], "4294967295 bytes"),
    ],
)
def test_a_master_that_talks_nonsense_of_a_session(
    path: Path, said: List[bytes], complaint: str
) -> None:
    def rest(peer: Peer) -> None:
        peer.raw(b"".join(said))

    with running(path, rest) as session, pytest.raises(ProtocolError, match=complaint):
        session.wait(LONG)


def test_closing_a_session_hangs_up(path: Path) -> None:
    gone = threading.Event()

    def rest(peer: Peer) -> None:
        with pytest.raises(fake_master.Gone):
            peer.hold()
        gone.set()

    with running(path, rest) as session:
        with session:
            pass
        assert gone.wait(LONG)
        with pytest.raises(MuxClientError, match="closed before"):
            session.wait(LONG)


def test_stdio_forward(client: MuxClient, master: FakeMaster) -> None:
    with pipe() as (read, write):
        with client.stdio_forward("web", 80, stdin=read, stdout=write) as forward:
            assert forward.id == 7
        assert os.read(read, 100) == b"output\n"
    assert master.requests[-1].values == (b"", b"web", 80)


def test_stdio_forward_to_a_unix_socket(client: MuxClient, master: FakeMaster) -> None:
    with pipe() as (read, write):
        client.stdio_forward("/run/s", messages.STREAMLOCAL, stdin=read, stdout=write)
    assert master.requests[-1].values == (b"", b"/run/s", 0xFFFFFFFE)


def test_a_terminal_is_not_passed(client: MuxClient, master: FakeMaster) -> None:
    terminal, other = pty.openpty()
    try:
        with pipe() as (read, write):
            with pytest.raises(TerminalRefused):
                client.session("x", stdin=read, stdout=write, stderr=other)
            with pytest.raises(TerminalRefused):
                client.stdio_forward("web", 80, stdin=other, stdout=write)
        assert client.check() == master.pid
        assert [asked.type for asked in master.requests] == [fake_master.ALIVE_CHECK]
    finally:
        os.close(terminal)
        os.close(other)


def test_a_descriptor_that_is_none_leaves_no_master_waiting(client: MuxClient) -> None:
    with pipe() as (read, write):
        pass
    with pytest.raises(MuxClientError, match="Bad file descriptor"):
        client.session("x", stdin=read, stdout=write, stderr=write)
    with pytest.raises(MuxClientError, match="closed before"):
        client.check()


def test_what_a_master_cannot_read_is_not_sent(client: MuxClient, master: FakeMaster) -> None:
    with pytest.raises(ValueError, match="NUL"):
        client.session("a\0b", stdin=0, stdout=1, stderr=2)
    assert client.check() == master.pid
    assert [asked.type for asked in master.requests] == [fake_master.ALIVE_CHECK]


def test_importing_it_is_cheap() -> None:
    program = "import sys; before = set(sys.modules); import %s; print(*set(sys.modules) - before)"
    loaded = subprocess.run(
        [sys.executable, "-c", program % mux_client.__name__],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ).stdout.split()
    assert mux_client.__name__ in loaded
    costly = {"asyncio", "ctypes", "json", "logging", "psutil", "ssl", "subprocess", "tempfile"}
    assert not costly & set(loaded)
    assert not [name for name in loaded if name.split(".")[0] == "ansible"]
