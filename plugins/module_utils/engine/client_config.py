# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_client_config: a managed block in the ssh configuration of every user.

Needs nothing but Python's standard library and ssh. Each user's files are read, judged and written
by a process that acts as that user. Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import re
import stat
import sys
import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..model import client_config as model
from ..model import config_file, control_path, target
from ..model.client_config import Block, Shadowed
from ..model.config_file import Edit, Line, Option
from ..model.errors import MuxError
from ..protocol.errors import ProtocolError
from ..system import accounts, control_dir, crew, ssh_judge, user_file
from ..system.accounts import Account
from ..system.mux_client import MuxClient, MuxClientError, SocketStale
from ..system.ssh_judge import Judge
from ..system.user_file import File, Folder

ENTRY: Dict[str, Dict[str, Any]] = {
    "host": {"type": "str"},
    "match": {"type": "str"},
    "options": {"type": "dict", "default": {}},
}

SPEC: Dict[str, Dict[str, Any]] = {
    "users": {"type": "list", "elements": "str"},
    "path": {"type": "path"},
    "name": {"type": "str", "default": "default"},
    "hosts": {
        "type": "list",
        "elements": "dict",
        "options": ENTRY,
        "mutually_exclusive": [["host", "match"]],
        "required_one_of": [["host", "match"]],
    },
    "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
    "layout": {"type": "str", "default": "block", "choices": ["block", "include"]},
    "control_dir": {"type": "str"},
    "backup": {"type": "bool", "default": False},
    "verify": {
        "type": "str",
        "default": "effective",
        "choices": ["effective", "syntax", "none"],
    },
    "ssh_executable": {"type": "str", "default": "ssh"},
}

#: Seconds for one user, whatever his files and his ``Match exec`` do to hold us up.
_TIMEOUT = 60.0

#: Seconds for a master to answer.
_MASTER_TIMEOUT = 2.0

#: The bytes that a configuration may have: a user could have us read for ever.
_MOST = 1 << 20

# Compiled once and not by the process of each user.
_HOME = re.compile("^~/")
_TOKEN = re.compile("%.")

#: Where drop-ins are, beside the configuration.
_DROP_INS = "config.d"


@dataclass(frozen=True)
class Verification:
    """What to ask ssh about a block.

    :ivar ssh: the executable.
    :ivar effective: whether all of it has to count.
    :ivar known: what shadows what within the block itself, for all users alike; ``None``: that
        has to be found out for each.
    """

    ssh: str
    block: Block
    effective: bool
    known: Optional[Sequence[Shadowed]] = None

    @property
    def host(self) -> str:
        """A host to ask about, where it does not matter which."""
        return self.block.hosts[0] if self.block.hosts else "localhost"


@dataclass(frozen=True)
class Request:
    """What shall be, for every user.

    :ivar block: ``None``: there shall be none.
    :ivar verification: ``None``: nothing is asked.
    """

    name: str
    block: Optional[Block]
    layout: str
    control_dir: Optional[str]
    backup: bool
    verification: Optional[Verification]
    check_mode: bool

    @property
    def includes(self) -> bool:
        """Whether the entries shall be in a drop-in."""
        return self.block is not None and self.layout == "include"


@dataclass(frozen=True)
class Subject:
    """Whose configuration it is.

    :ivar path: of a file that is not the user's ``~/.ssh/config``.
    """

    account: Account
    path: Optional[str] = None

    @property
    def config(self) -> str:
        return self.path or os.path.join(self.account.home, ".ssh", "config")


def run(params: Mapping[str, Any], *, check_mode: bool) -> Dict[str, Any]:
    """Bring the block into everybody's configuration, or out of it.

    :returns: what the module returns.
    :raises MuxError: a parameter is wrong, and nothing was written; or some of the users failed,
        and the others are done.
    """
    config_file.check_name(params["name"])
    block = None
    if params["state"] == "present":
        block = model.parse_block(params["hosts"] or [])
    subjects: Dict[str, Subject] = {}
    found: Dict[str, Any] = {}
    if params["path"] is not None:
        me = accounts.myself()
        subjects[me.name] = Subject(me, os.path.abspath(params["path"]))
    names = list(subjects)
    for who in params["users"] or []:
        try:
            them = accounts.named(who, gone=block is None)
        except MuxError as error:
            names.append(who)
            found[who] = error
            continue
        for account in them:
            names.append(account.name)
            subjects[account.name] = Subject(account)
    verification = None
    if block is not None and params["verify"] != "none":
        ssh = ssh_judge.find(params["ssh_executable"])
        verification = Verification(ssh, block, params["verify"] == "effective")
        # Nothing of a user's is needed for that, and no user shall be able to hold it up; but for
        # what may depend on who asks.
        somebody = [subject.account for subject in subjects.values()]
        asks = somebody[0] if somebody and block.conditional and os.geteuid() == 0 else None
        verification = _judged(verification, asks or accounts.myself())
    request = Request(
        name=params["name"],
        block=block,
        layout=params["layout"],
        control_dir=params["control_dir"],
        backup=params["backup"],
        verification=verification,
        check_mode=check_mode,
    )
    jobs = [functools.partial(_serve, request, subject) for subject in subjects.values()]
    at_once = max(4, 2 * (os.cpu_count() or 1))
    found.update(zip(subjects, crew.run(jobs, timeout=_TIMEOUT, at_once=at_once)))
    return _result([(name, found[name]) for name in dict.fromkeys(names)], subjects)


def _result(found: Sequence[Tuple[str, Any]], subjects: Mapping[str, Subject]) -> Dict[str, Any]:
    """What the module returns for all users."""
    users: List[Dict[str, Any]] = []
    diff: List[Dict[str, str]] = []
    failed: List[MuxError] = []
    for name, outcome in found:
        user = {"name": name, "changed": False, "shadowed": [], "msg": "", "failed": False}
        user["path"] = subjects[name].config if name in subjects else None
        if isinstance(outcome, MuxError):
            failed.append(outcome)
            user.update(outcome.details, failed=True, reason=outcome.reason, msg=outcome.message)
        else:
            diff += outcome.pop("diff")
            user.update(outcome)
        users.append(user)
    result = {"changed": any(user["changed"] for user in users), "users": users, "diff": diff}
    if failed:
        reasons = {error.reason for error in failed}
        raise MuxError(
            failed[0].reason if len(reasons) == 1 else "invalid",
            "%d of %d users failed%s: %s"
            % (
                len(failed),
                len(users),
                ", the others are done" if len(failed) < len(users) else "",
                "; ".join(
                    "%s: %s" % (user["name"], user["msg"]) for user in users if user["failed"]
                ),
            ),
            **result,
        )
    return result


# -- verdicts of ssh -------------------------------------------------------------------------------


def _judged(asked: Verification, account: Account) -> Verification:
    """Have the block itself checked, once for all.

    What is at the top of a file is the first that ssh reads, so nothing but the block can shadow
    it: the verdict about a block alone is the verdict for every user who has it at the top.

    :raises MuxError: ``invalid`` for keywords and values that this ssh refuses.
    """

    def job() -> Optional[List[Dict[str, Any]]]:
        accounts.stay(account)
        judge = Judge(asked.ssh, account)
        judge.accepts(asked.block.placed("the block", 1), asked.host)
        if not asked.effective or asked.block.conditional:
            return None
        return [one.as_dict() for one in _shadowed(judge, asked.block, [], "", 1)]

    known = crew.alone(job, timeout=_TIMEOUT)
    if known is None:
        return asked
    return replace(asked, known=[Shadowed.from_dict(one) for one in known])


def _shadowed(
    judge: Judge, block: Block, above: Sequence[Line], file: str, first: int
) -> List[Shadowed]:
    """The settings of a block that something above them keeps from counting.

    A setting counts where nothing changes when it is given to ssh before everything else.

    :param above: what ssh reads before the block.
    :param file: where the block is.
    :param first: the line of its first entry.
    """
    lines = [*above, *block.placed(file, first)]
    cases = [
        (index, host, options)
        for index, entry in block.headers()
        for host in entry.hosts
        for options in entry.keywords().values()
        # Not on a command line (readconf.c, oInclude).
        if options[0].keyword.lower() != "include"
    ]
    together: Dict[Tuple[int, str], List[Option]] = {}
    for index, host, options in cases:
        together.setdefault((index, host), []).extend(options)
    with judge.text(lines) as text:
        plain = dict(zip(block.hosts, judge.effective(text, [(host, ()) for host in block.hosts])))
        questions = [(host, options) for (_index, host), options in together.items()]
        forced = dict(zip(together, judge.effective(text, questions)))
    found = []
    for index, host, options in cases:
        keywords = model.differing(plain[host], forced[index, host], options[0].keyword)
        by = _culprit(judge, lines[: len(above) + index], host, options) if keywords else None
        if by is not None:
            wanted, actual = (
                ", ".join(values.get(keywords[0], ["none"]))
                for values in (forced[index, host], plain[host])
            )
            found.append(Shadowed(host, options[0].keyword, wanted, actual, by))
    return found


def _culprit(
    judge: Judge, above: Sequence[Line], host: str, options: Sequence[Option]
) -> Optional[Line]:
    """The line above that keeps a keyword's options from counting for a host."""
    setting = [Line("", 0, b"Match all")]
    setting += [Line("", 0, str(one).encode("utf-8", "surrogateescape")) for one in options]

    def shadows(lines: Sequence[Line]) -> bool:
        with judge.text([*lines, *setting]) as text:
            plain, forced = judge.effective(text, [(host, ()), (host, options)])
        return bool(model.differing(plain, forced, options[0].keyword))

    def included(lines: Sequence[Line]) -> Iterator[List[Line]]:
        with judge.text(lines) as text:
            paths = judge.included(text, host)
        for path in paths:
            content = user_file.read(os.path.realpath(path), most=_MOST)
            yield config_file.lines_of(path, content or b"")

    return model.culprit(above, shadows, included)


# -- one user --------------------------------------------------------------------------------------


@dataclass
class _Place:
    """A file of a user's, where symbolic links end."""

    path: str
    account: Account
    folder: Optional[Folder] = None
    file: Optional[File] = None

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def content(self) -> Optional[bytes]:
        return None if self.file is None else self.file.content

    @property
    def new(self) -> List[str]:
        return [config_file.DIRECTORY] if self.folder is None else []

    @property
    def needs_root(self) -> bool:
        """Whether only root may be able to give a new file the group of this one."""
        return self.file is not None and self.file.status.st_gid != self.account.gid

    def look(self, stack: contextlib.ExitStack) -> None:
        """Open the directory and the file, as far as they are there and are the user's own."""
        directory = os.path.dirname(self.path)
        try:
            self.folder = stack.enter_context(Folder(directory))
            self._own(directory, self.folder.status)
            self.file = stack.enter_context(self.folder.opened(self.name, most=_MOST))
        except FileNotFoundError:
            return
        except OSError as error:
            raise MuxError(
                "invalid", "%s cannot be read: %s" % (self.path, error.strerror)
            ) from None
        if self.file is not None:
            self._own(self.path, self.file.status)

    def _own(self, path: str, status: os.stat_result) -> None:
        if status.st_uid != self.account.uid:
            raise MuxError(
                "invalid",
                "%s belongs to user id %d and not to %s: nothing is written there"
                % (path, status.st_uid, self.account.name),
            )

    def edited(self, change: Callable[..., Edit], *arguments: Any) -> Edit:
        """What becomes of the file."""
        try:
            return change(self.content, *arguments)
        except MuxError as error:
            raise MuxError(error.reason, "%s, %s" % (self.path, error.message)) from None

    def apply(self, edit: Edit, stack: contextlib.ExitStack, *, wide: int, backup: bool) -> str:
        """Write what the edit says, if the file is still what it was.

        :param wide: a mode; who could read by it, can read what is new.
        :returns: the path of the copy of what was there before; empty where there is none.
        """
        if self.folder is None:
            user_file.make_directory(self.path)
            if wide & 0o055:
                os.chmod(os.path.dirname(self.path), 0o700 | wide & 0o055)
            self.look(stack)
        folder, file = self.folder, self.file
        if folder is None or self.content != edit.before or not folder.is_still(self.name, file):
            raise MuxError("invalid", "%s was changed at the same time; run again" % self.path)
        copy = ""
        try:
            if backup and file is not None:
                # By the name that Ansible gives to its own.
                stamp = time.strftime("%Y-%m-%d@%H:%M:%S~", time.localtime())
                copy = "%s.%d.%s" % (self.name, os.getpid(), stamp)
                folder.replace(copy, file.content, old=file, chown=accounts.chown)
            if edit.after is None:
                folder.unlink(self.name)
            else:
                folder.replace(
                    self.name, edit.after, old=file, mode=0o600 | wide & 0o044, chown=accounts.chown
                )
        except OSError as error:
            raise MuxError(
                "invalid", "%s cannot be written: %s" % (self.path, error.strerror)
            ) from None
        return copy and os.path.join(folder.path, copy)


def _serve(request: Request, subject: Subject) -> Dict[str, Any]:
    """Do one user's part, in a process that is for this user alone."""
    account = subject.account
    accounts.become(account)
    if request.block is not None:
        _check_control_paths(request.block, account)
    path = _found(subject)
    drop_in = _found(subject, _DROP_INS, "bastion.mux-%s.conf" % request.name)
    sockets = _expand(request.control_dir, account)
    with contextlib.ExitStack() as stack:
        config, extra = _Place(path, account), _Place(drop_in, account)
        config.look(stack)
        # A directory that there is no need for may be whatever it is.
        if request.includes or os.path.lexists(drop_in):
            extra.look(stack)
        new = list(config.new)
        makes_dir = (
            request.block is not None
            and sockets is not None
            and not control_dir.check(sockets, "control_dir")
        )
        if makes_dir:
            new.append(config_file.CONTROL_DIR)
        edits = _edits(request, subject, config, extra, new)
        if request.verification is not None:
            shadowed = _verdict(request.verification, subject, config, edits)
            if shadowed:
                raise MuxError(
                    "invalid",
                    "; ".join(map(str, shadowed)),
                    shadowed=[one.as_dict() for one in shadowed],
                )
        result: Dict[str, Any] = {
            "changed": makes_dir or any(edit.actions for _place, edit in edits),
            "path": path,
            "diff": [_diff(place, edit) for place, edit in edits if edit.actions],
        }
        if request.check_mode:
            return result
        # What is not a user's own is for everybody who can see its directory.
        wide = config.folder.status.st_mode if subject.path and config.folder else 0
        for place, edit in edits:
            if edit.actions:
                copy = place.apply(edit, stack, wide=wide, backup=request.backup)
                if copy:
                    result["backup_file"] = copy
        if makes_dir and sockets is not None:
            control_dir.make(sockets, "control_dir")
        _sweep(edits, sockets)
        return result


def _found(subject: Subject, *below: str) -> str:
    """Where a file is, where symbolic links end.

    :raises MuxError: ``invalid`` where there can be none.
    """
    account, path = subject.account, subject.config
    directory = os.path.dirname(path)
    try:
        if subject.path is None:
            os.stat(account.home)
        os.lstat(directory)
        os.stat(directory)
    except FileNotFoundError as error:
        if error.filename == account.home:
            raise MuxError("invalid", "its home %s does not exist" % account.home) from None
        if os.path.islink(directory):
            raise MuxError("invalid", "the symbolic link %s leads nowhere" % directory) from None
        if subject.path is not None and os.path.dirname(directory) != account.home:
            raise MuxError("invalid", "the directory %s does not exist" % directory) from None
    except OSError as error:
        raise MuxError(
            "invalid",
            "%s cannot be entered as this user: %s" % (error.filename, error.strerror),
        ) from None
    if subject.path is not None:
        try:
            control_dir.check(os.path.realpath(directory), "path")
        except MuxError as error:
            raise MuxError(
                "invalid", "%s; for a file in a home, name its user in users" % error.message
            ) from None
    return os.path.realpath(os.path.join(directory, *below) if below else path)


def _expand(directory: Optional[str], account: Account) -> Optional[str]:
    """The directory of control sockets, with what ssh would make of ``~``, %d, %u and %i."""
    if directory is None:
        return None
    if directory == "~" or directory.startswith("~/"):
        directory = account.home + directory[1:]
    tokens = (("%d", account.home), ("%u", account.name), ("%i", str(account.uid)))
    for token, value in tokens:
        directory = directory.replace(token, value)
    if not directory.startswith("/") or "%" in directory:
        raise MuxError(
            "invalid",
            "control_dir: %r must begin with / or ~/ and may hold %%d, %%u and %%i" % directory,
        )
    return os.path.normpath(directory)


def _check_control_paths(block: Block, account: Account) -> None:
    """Refuse a ControlPath that no master of this user's could bind: ssh would end with an error.

    :raises MuxError: ``control_path_too_long``.
    """
    # Tokens that depend on the connection are taken as empty, so that nothing is refused which
    # might do.
    words = {"%d": account.home, "%u": account.name, "%i": str(account.uid), "%%": "%"}
    words["%C"] = "C" * 40
    for entry in block.entries:
        for option in entry.keywords().get("controlpath", ()):
            path = _HOME.sub("%d/", option.value.strip('"'))
            path = _TOKEN.sub(lambda token: words.get(token.group(), ""), path)
            length, most = len(os.fsencode(path)), control_path.limit(sys.platform)
            if path.startswith("/") and length > most:
                raise MuxError(
                    "control_path_too_long",
                    "ControlPath %s has %d bytes for this user, and ssh can bind %d here; use a"
                    " shorter one" % (option.value, length, most),
                )


def _edits(
    request: Request, subject: Subject, config: _Place, extra: _Place, new: Sequence[str]
) -> List[Tuple[_Place, Edit]]:
    """What becomes of the configuration and of the drop-in, in the order to do it in."""
    name = request.name
    if request.block is None:
        return [(place, place.edited(config_file.edit_absent, name)) for place in (config, extra)]
    body = request.block.body()
    if not request.includes:
        main = config.edited(config_file.edit_present, name, body, set(new))
        return [(config, main), (extra, extra.edited(config_file.edit_absent, name))]
    # Relative to ~/.ssh, for a user's own configuration.
    included = extra.path if subject.path else "%s/%s" % (_DROP_INS, extra.name)
    # Somebody may have put a Host above it, which would narrow the Include.
    include = ["Match all", "Include " + target.quote(included)]
    return [
        (extra, extra.edited(config_file.edit_present, name, body, set(extra.new))),
        (config, config.edited(config_file.edit_present, name, include, set(new))),
    ]


def _verdict(
    asked: Verification, subject: Subject, config: _Place, edits: Sequence[Tuple[_Place, Edit]]
) -> Sequence[Shadowed]:
    """What ssh says about the block in this user's configuration.

    :raises MuxError: ``invalid`` where it refuses the configuration.
    """
    block, account = asked.block, subject.account
    main = next(edit for place, edit in edits if place is config)
    # The last one that is written with the block in it.
    holder, held = edits[0]
    above, below = main.around(config.path)
    above = [*_read_before(config.path, subject), *above]
    first = held.line + 1
    alone = asked.known is not None and not any(line.is_setting for line in above)
    looks = asked.effective and not alone
    changes = any(edit.actions for _place, edit in edits)
    composed = changes and any(line.is_setting for line in [*above, *below])
    guarded = config.file is not None and config.file.status.st_mode & 0o022 != 0
    needs_root = any(place.needs_root for place, _edit in edits)

    def job() -> List[Dict[str, Any]]:
        # What the user has in his files may run now.
        accounts.stay(account)
        judge = Judge(asked.ssh, account)
        if guarded:
            complaint = judge.complains_about_permissions(asked.host)
            if complaint:
                raise MuxError("invalid", "ssh refuses the file: %s" % complaint)
        if composed:
            judge.accepts([*above, *block.placed(holder.path, first), *below], asked.host)
        if not looks:
            return []
        return [one.as_dict() for one in _shadowed(judge, block, above, holder.path, first)]

    if looks or composed or guarded:
        answer = crew.alone(job, timeout=_TIMEOUT) if needs_root else job()
        if looks:
            return [Shadowed.from_dict(one) for one in answer]
    return [one.moved(holder.path, held.line) for one in asked.known or ()]


def _read_before(path: str, subject: Subject) -> List[Line]:
    """What the system-wide configuration says before it includes this file."""
    if subject.path is None:
        return []
    directory = os.path.dirname(path)
    above = os.path.dirname(directory)
    system = os.path.join(above, "ssh_config")
    lines = config_file.lines_of(system, user_file.read(system) or b"")
    for number, line in enumerate(lines):
        words = line.text.decode("utf-8", "replace").split()
        if not words or words[0].lower() != "include":
            continue
        for pattern in (os.path.join(above, word.strip('"')) for word in words[1:]):
            where, names = os.path.split(pattern)
            if os.path.realpath(where) != directory:
                continue
            if fnmatch.fnmatch(os.path.basename(path), names):
                earlier = [
                    os.path.join(directory, name)
                    for name in sorted(os.listdir(directory))
                    if name < os.path.basename(path) and fnmatch.fnmatch(name, names)
                ]
                return lines[:number] + [
                    Line(system, line.number, b"Include " + os.fsencode(target.quote(one)))
                    for one in earlier
                ]
    return []


def _sweep(edits: Sequence[Tuple[_Place, Edit]], sockets: Optional[str]) -> None:
    """Remove the directories that were made for what is gone, where nothing else is in them."""
    gone = [place for place, edit in edits if config_file.DIRECTORY in edit.gone]
    made = [os.path.dirname(place.path) for place in gone]
    if sockets is not None and any(config_file.CONTROL_DIR in edit.gone for _place, edit in edits):
        _retire(sockets)
        made.append(sockets)
    for directory in sorted(made, key=len, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


def _retire(sockets: str) -> None:
    """Have the masters of a directory take their sockets away; their sessions go on.

    A master that ControlPersist keeps would otherwise leave its socket there when all else is gone.
    """
    with contextlib.suppress(OSError), os.scandir(sockets) as entries:
        for entry in entries:
            if not stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode):
                continue
            try:
                with MuxClient.connect(entry.path, timeout=_MASTER_TIMEOUT) as master:
                    master.stop_listening()
            except SocketStale:
                os.unlink(entry.path)
            except (MuxClientError, ProtocolError):
                # Wedged, or no master at all: it is left alone.
                continue


def _diff(place: _Place, edit: Edit) -> Dict[str, str]:
    return {
        "before_header": place.path,
        "after_header": place.path,
        "before": (edit.before or b"").decode("utf-8", "backslashreplace"),
        "after": (edit.after or b"").decode("utf-8", "backslashreplace"),
    }
