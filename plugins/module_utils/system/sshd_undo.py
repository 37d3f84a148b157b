# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a change of sshd's files back, and has sshd read them: the dead man's switch.

This file is used in two ways. The module imports it; and a copy of it lies beside the backup and
runs as a process of its own, so it imports nothing but Python's standard library.

A change goes like this, all of it under a lock (flock) on the directory of the configuration:

1. The folder of the change appears beside the configuration, in one step: ``plan.json``, the files
   as they were (hard links: owner, mode, ACLs and SELinux context are the files' own), this file.
2. The process starts, in a session of its own and with nothing open but a file of that folder. It
   holds a lock on it, which the kernel gives up with the process: whether it lives is never guessed
   from a process id.
3. The files are replaced, sshd reloads and answers, and ``applied`` is written.
4. Confirmed: the folder is renamed away in one step. The process sees that, and ends.
5. Not confirmed by the deadline: the process takes the lock, puts everything back, has sshd reload,
   and leaves ``undone.json`` for whoever comes too late.

Whatever is killed at whatever moment, the folder is there before the first file changes and until
the last one is back, and to put back what is back already changes nothing. So the next run, or a
person with ``python3 undo.py FOLDER now``, can always do it. After a reboot no process waits (the
deadline is one of the monotonic clock): the next run of the module undoes the change first.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import syslog
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

#: Files of the folder.
PLAN, DEADLINE, APPLIED, TIMER, UNDONE, SCRIPT = (
    "plan.json",
    "deadline",
    "applied",
    "timer",
    "undone.json",
    "undo.py",
)

#: Seconds between two looks.
POLL = 0.05

#: Seconds for sshd to read its configuration and to answer.
TIMEOUT = 20.0

#: Seconds after which a reload that had no effect is asked for once more: while sshd starts, it
#: does not hear (sshd.c, sighup_restart).
_AGAIN = 4.0

#: How often to try to undo a change.
_TRIES = 10

#: Where systemd runs the machine.
SYSTEMD = "/run/systemd/system"

#: The control group of systemd itself, which ends with the machine: of version 2, of both, of
#: version 1 (cgroups(7)).
GROUPS = tuple(
    "/sys/fs/cgroup/%sinit.scope/cgroup.procs" % hierarchy
    for hierarchy in ("", "unified/", "systemd/")
)

Address = Tuple[str, int]


class Failure(Exception):
    """It could not be done."""


class Busy(Failure):
    """Somebody else is at it."""


def wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for ``condition``, at most ``timeout`` seconds; what it was at the end."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL)
    return True


# -- processes (proc(5)) ---------------------------------------------------------------------------


def _stat(pid: int) -> Optional[List[str]]:
    """The fields of ``/proc/PID/stat`` from the third one on; ``None`` where it is gone."""
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if not fields or fields[0] in "ZX" else fields


def started(pid: int) -> Optional[int]:
    """When a process was started, in ticks since boot; ``None`` where it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _stack(pid: int) -> str:
    """Where the stack begins: somewhere else after each exec."""
    fields = _stat(pid)
    return fields[25] if fields else ""


def _sockets(pid: int) -> Set[str]:
    """The inodes of the sockets that a process has open."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/%d/fd" % pid):
            with contextlib.suppress(OSError):
                target = os.readlink("/proc/%d/fd/%s" % (pid, name))
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _listening() -> Dict[str, Address]:
    """All TCP sockets that listen, by inode."""
    found: Dict[str, Address] = {}
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(OSError), open("/proc/net/" + name, encoding="ascii") as file:
            for fields in (line.split() for line in file.readlines()[1:]):
                if fields[3] == "0A":
                    host, port = fields[1].split(":")
                    words = [int(host[index : index + 8], 16) for index in range(0, len(host), 8)]
                    packed = struct.pack("=%dI" % len(words), *words)
                    found[fields[9]] = (socket.inet_ntop(family, packed), int(port, 16))
    return found


def listeners_of(pid: int) -> Dict[str, Address]:
    """The TCP sockets that a process listens on, by inode."""
    mine = _sockets(pid)
    return {inode: address for inode, address in _listening().items() if inode in mine}


# -- sshd ------------------------------------------------------------------------------------------


def find(addresses: Iterable[Address], name: str = "sshd") -> Optional[Dict[str, Any]]:
    """The sshd that listens on one of these addresses.

    :param name: of its program.
    :returns: what :func:`reload` and :func:`revive` need, fit for JSON.
    """
    wanted = list(addresses)
    open_ = {
        inode: address
        for inode, address in _listening().items()
        if any(_same(address, one) for one in wanted)
    }
    found = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            with open("/proc/%d/comm" % pid, encoding="utf-8", errors="replace") as file:
                comm = file.read().rstrip("\n")
        except OSError:
            continue
        if comm.startswith("sshd") or comm == name[:15]:
            fields = _stat(pid)
            if fields and _sockets(pid) & set(open_):
                found[pid] = int(fields[1])
    # Not a child that has not closed them yet.
    for pid in sorted(pid for pid, parent in found.items() if parent not in found):
        begun = started(pid)
        if begun is not None:
            return {"pid": pid, "started": begun, "command": _command(pid), "unit": _unit(pid)}
    return None


def _same(one: Address, other: Address) -> bool:
    wild = {"0.0.0.0", "::"}
    return one[1] == other[1] and (one[0] == other[0] or one[0] in wild or other[0] in wild)


def _command(pid: int) -> List[str]:
    """How it was started: its title has the arguments (sshd.c, prepare_proctitle)."""
    with open("/proc/%d/cmdline" % pid, "rb") as file:
        words = file.read().rstrip(b"\0 ").split(b"\0")
    title = re.match(rb"\S+: (.*) \[listener\]", b" ".join(words))
    given = title.group(1).split() if title else words
    return [os.fsdecode(word) for word in given]


def _unit(pid: int) -> Optional[str]:
    """The unit of systemd that it belongs to."""
    if not os.path.isdir(SYSTEMD):
        return None
    with open("/proc/%d/cgroup" % pid, encoding="utf-8") as file:
        found = re.search(r":/system\.slice/([^/\n]+\.service)$", file.read(), re.MULTILINE)
    return found.group(1) if found else None


def _greets(addresses: Iterable[Address]) -> bool:
    """Whether sshd answers at one of these addresses."""
    for host, port in addresses:
        where = ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)
        try:
            with socket.create_connection(where, timeout=5) as connection:
                said = connection.recv(64)
        except OSError:
            continue
        # Before the version, a server that is too busy or does not like us says so.
        if said.startswith((b"SSH-", b"Exceeded", b"Not allowed")):
            return True
    return False


def is_there(listener: Dict[str, Any]) -> bool:
    """Whether this very process still runs."""
    return bool(started(listener["pid"]) == listener["started"])


def reload(listener: Dict[str, Any], timeout: float = TIMEOUT) -> None:
    """Have sshd read its configuration; its sessions live on.

    :raises Failure: it does not listen and answer afterwards.
    """
    pid = listener["pid"]
    before, stack = set(listeners_of(pid)), _stack(pid)

    def done() -> bool:
        now = listeners_of(pid)
        anew = not before & set(now) or _stack(pid) != stack
        return bool(now) and anew and _greets(now.values())

    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            pass
        wait_until(lambda: done() or not is_there(listener), min(_AGAIN, timeout))
        if not is_there(listener):
            raise Failure("sshd (process %d) ended when it was told to reload" % pid)
        if done():
            return
    raise Failure(
        "sshd (process %d) did not answer within %g seconds after it was told to reload"
        % (pid, timeout)
    )


def revive(
    listener: Dict[str, Any], addresses: Iterable[Address], timeout: float = TIMEOUT
) -> None:
    """Start an sshd that has ended, as it had been started.

    :raises Failure: it does not listen and answer afterwards.
    """
    quiet: Dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    unit = listener["unit"]
    try:
        if unit:
            for verb in ("reset-failed", "restart"):
                subprocess.run(["systemctl", verb, unit], timeout=timeout, check=False, **quiet)
        else:
            command = listener["command"]
            subprocess.Popen(command, cwd="/", start_new_session=True, **quiet)
    except (OSError, subprocess.SubprocessError) as error:
        raise Failure("sshd could not be started again: %s" % error) from None
    wanted = list(addresses)
    if not wait_until(lambda: find(wanted) is not None and _greets(wanted), timeout):
        raise Failure("sshd was started again, and does not answer")


def settle(plan: Dict[str, Any]) -> None:
    """Have sshd run with the files as they are, whatever became of it.

    :raises Failure: it does not.
    """
    listener = plan["listener"]
    addresses: List[Address] = [(one[0], one[1]) for one in plan["addresses"]]
    there = listener if listener and is_there(listener) else find(addresses)
    if there is not None:
        try:
            reload(there)
            return
        except Failure:
            if is_there(there):
                raise
    if listener:
        revive(listener, addresses)


# -- files -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(config: str, timeout: Optional[float] = None) -> Iterator[None]:
    """Hold the lock of a configuration: a lock on its directory, which leaves nothing behind.

    :raises Busy: somebody else held it all the time.
    """
    descriptor = os.open(os.path.dirname(config), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if timeout is None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        elif not wait_until(lambda: _try_lock(descriptor), timeout):
            raise Busy("another run held %s for %g seconds" % (config, timeout))
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def save(path: str, backup: str) -> None:
    """Keep a file as it is, under another name."""
    try:
        os.link(path, backup, follow_symlinks=False)
    except OSError:
        # Another file system.
        _copy(path, backup)


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target, follow_symlinks=False)
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    if not os.path.islink(target):
        # Both may have taken a bit of the mode away.
        shutil.copystat(source, target)


def digest(path: str) -> Optional[str]:
    """What tells one content from another; ``None`` where there is no file."""
    try:
        if os.path.islink(path):
            return "link " + os.readlink(path)
        if not os.path.isfile(path):
            # A pipe would wait for somebody who writes.
            return "special" if os.path.exists(path) else None
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return None


def put_back(plan: Dict[str, Any], folder: str) -> None:
    """Have every file and directory as it was."""
    for made in plan["removed"]:
        with contextlib.suppress(FileExistsError):
            os.mkdir(made["path"], 0o700)
            os.chown(made["path"], made["uid"], made["gid"])
            os.chmod(made["path"], made["mode"])
    for entry in reversed(plan["files"]):
        path = entry["path"]
        backup = entry["backup"] and os.path.join(folder, entry["backup"])
        now = digest(path)
        if now not in (None, entry["written"], digest(backup) if backup else None):
            # Somebody else's work since then: not in force any more, but not lost. Whatever is in
            # its way, such as a full disk, is not in ours.
            kept = "%s.bastion.mux-kept-%s" % (plan["config"], os.path.basename(path))
            with contextlib.suppress(OSError):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(kept)
                save(path, kept)
        if backup is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        elif not (os.path.lexists(path) and os.path.samestat(os.lstat(path), os.lstat(backup))):
            temporary = "%s/.%s.%s" % (os.path.dirname(path), os.path.basename(path), plan["token"])
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            save(backup, temporary)
            os.replace(temporary, path)
    _sweep(plan["directory"], set(plan["listed"]))
    for path in reversed(plan["made"]):
        with contextlib.suppress(OSError):
            os.rmdir(path)
    for was in plan["modes"]:
        with contextlib.suppress(FileNotFoundError):
            os.chown(was["path"], was["uid"], was["gid"])
            os.chmod(was["path"], was["mode"])


def _sweep(directory: str, listed: Set[str]) -> None:
    """Remove what was not in the directory: it belongs to the module as a whole."""
    if os.path.islink(directory):
        return
    for top, folders, files in os.walk(directory, topdown=False):
        for name in files + folders:
            path = os.path.join(top, name)
            if path not in listed:
                if os.path.isdir(path) and not os.path.islink(path):
                    os.rmdir(path)
                else:
                    os.unlink(path)


# -- the change ------------------------------------------------------------------------------------


def read_plan(folder: str) -> Optional[Dict[str, Any]]:
    """The plan of a folder; ``None`` where there is none."""
    try:
        with open(os.path.join(folder, PLAN), encoding="utf-8") as file:
            plan: Dict[str, Any] = json.load(file)
            return plan
    except (OSError, ValueError):
        return None


def write(folder: str, name: str, text: str) -> None:
    """Write a file of the folder in one step."""
    path = os.path.join(folder, name)
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def undo(folder: str, why: Optional[str] = None) -> None:
    """Take the change of a folder back. The lock is held.

    :param why: what to tell who comes too late; without it nothing stays behind.
    :raises Failure: sshd does not come back. The files are as they were.
    """
    plan = read_plan(folder)
    if plan is None:
        raise Failure("%s holds no change" % folder)
    # From here on it cannot be confirmed any more.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, APPLIED))
    put_back(plan, folder)
    if plan["reload"]:
        settle(plan)
    if why is not None:
        note = json.dumps({"why": why, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        # A full disk keeps nobody from having it undone.
        with contextlib.suppress(OSError):
            write(folder, UNDONE, note)
            for name in os.listdir(folder):
                if name != UNDONE:
                    os.unlink(os.path.join(folder, name))
            return
    remove(folder)


def remove(folder: str) -> None:
    """Have the folder go in one step."""
    gone = folder + ".gone"
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone)


def _left(folder: str, token: str) -> Optional[float]:
    """Seconds to the deadline; ``None`` where the change is confirmed or undone."""
    plan = read_plan(folder)
    if plan is None or plan["token"] != token:
        return None
    try:
        with open(os.path.join(folder, DEADLINE), encoding="ascii") as file:
            return float(file.read()) - time.monotonic()
    except (OSError, ValueError):
        return 0.0


def leave_session(groups: Iterable[str] = GROUPS) -> None:
    """Leave the control group of the login, which systemd may kill as a whole when that ends.

    It does so for people with KillUserProcesses=yes (logind.conf(5)), whoever of them became root.
    """
    for path in groups:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"0")
            finally:
                os.close(descriptor)


def watch(folder: str) -> None:
    """Wait for the deadline, and undo the change then."""
    plan = read_plan(folder)
    tries = 0
    while plan is not None:
        left = _left(folder, plan["token"])
        if left is None:
            return
        if left > 0:
            time.sleep(min(left, 0.2))
            continue
        say = "nobody confirmed the change of %s in time" % plan["config"]
        try:
            # Not for long: who has the lock may be confirming it, and waits for us to see that.
            with locked(plan["config"], 0.5):
                left = _left(folder, plan["token"])
                if left is None or left > 0:
                    continue
                tries += 1
                undo(folder, say)
                syslog.syslog(syslog.LOG_WARNING, say + ": it is undone")
                return
        except Busy:
            continue
        except (OSError, Failure) as error:
            syslog.syslog(syslog.LOG_ERR, "%s, and to undo it failed: %s" % (say, error))
            if tries == _TRIES:
                return
            time.sleep(3)


def main(folder: str, *now: str) -> None:
    """Be the process, or undo the change at once."""
    os.chdir("/")
    syslog.openlog("bastion.mux", syslog.LOG_PID, syslog.LOG_AUTH)
    if now:
        plan = read_plan(folder)
        if plan is not None:
            with locked(plan["config"]):
                undo(folder)
        return
    # Of nobody any more: who started us only waits for this.
    if os.fork():
        os._exit(0)
    if os.path.isdir(SYSTEMD):
        leave_session()
    watch(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
