# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh_server_config: a drop-in for sshd, judged by sshd before it is there, undone if need be.

Needs nothing but Python's standard library and sshd. Private to the collection: no promise is made
about it.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..model import server_config as model
from ..model.characters import refuse_control_characters
from ..model.config_file import Option, lines_of
from ..model.errors import MuxError
from ..model.server_config import Content, DropIn, Expectation, Mismatch, Setting
from ..system import control_dir, sshd_change, sshd_judge, sshd_undo, user_file
from ..system.sshd_change import Change, Plan, Write
from ..system.sshd_judge import Candidate, Sshd

SPEC: Dict[str, Dict[str, Any]] = {
    "state": {
        "type": "str",
        "default": "present",
        "choices": ["present", "absent", "confirmed", "restored"],
    },
    "options": {"type": "dict", "default": {}},
    "matches": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "match": {"type": "str", "required": True},
            "options": {"type": "dict", "default": {}},
        },
    },
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "content": {"type": "str", "required": True},
            "mode": {"type": "str", "default": "0644"},
        },
    },
    "expect": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "connection": {
                "type": "dict",
                "required": True,
                "options": {
                    "user": {"type": "str", "required": True},
                    "host": {"type": "str"},
                    "addr": {"type": "str"},
                    "laddr": {"type": "str"},
                    "lport": {"type": "int"},
                },
            },
            "options": {"type": "dict", "required": True},
        },
    },
    "confirm_within": {"type": "int", "default": 0},
    "reload": {"type": "bool", "default": True},
    "config_path": {"type": "path", "default": "/etc/ssh/sshd_config"},
    "drop_in": {"type": "path", "default": "/etc/ssh/sshd_config.d/00-bastion.mux.conf"},
    "directory": {"type": "path", "default": "/etc/ssh/bastion.mux"},
    "sshd_executable": {"type": "str", "default": "sshd"},
}

#: The bytes that a configuration may have.
_MOST = 1 << 20

#: The most that is shown of a file.
_SHOWN = 1 << 16


@dataclass(frozen=True)
class Request:
    """What shall be.

    :ivar drop_in: ``None``: there shall be none.
    """

    config: str
    drop_in_path: str
    directory: str
    drop_in: Optional[DropIn]
    files: Mapping[str, Content]
    expect: Sequence[Expectation]
    confirm_within: int
    reload: bool
    check_mode: bool


@dataclass(frozen=True)
class Verdict:
    """What sshd says about what shall be.

    :ivar effective: what will be in force, but for what depends on who connects.
    :ivar expected: the return value ``effective``.
    :ivar unverified: the expectations about users who are still to come.
    """

    left_out: Tuple[Setting, ...]
    effective: Mapping[str, Sequence[str]]
    expected: Sequence[Mapping[str, Any]]
    unverified: Sequence[str]


@dataclass(frozen=True)
class Seen:
    """What is there."""

    config: bytes
    drop_in: Optional[bytes]
    paths: Sequence[str]
    statuses: Mapping[str, os.stat_result]


def run(params: Mapping[str, Any], *, check_mode: bool) -> Dict[str, Any]:
    """Bring the drop-in about, or take it away; confirm that, or have it as it was.

    :returns: what the module returns.
    :raises MuxError: nothing is changed, or what was changed is undone.
    """
    if not sys.platform.startswith("linux"):
        raise MuxError("invalid", "it knows sshd on Linux only, and this is %s" % sys.platform)
    if os.geteuid() != 0:
        raise MuxError("invalid", "only root can change sshd's configuration: use become")
    request = _request(params, check_mode)
    _check_directory("config_path", os.path.dirname(request.config))
    verb = {"confirmed": _confirmed, "restored": _restored}.get(params["state"])
    if verb is not None:
        with sshd_change.locked(request.config):
            return verb(Change(request.config), check_mode)
    sshd = Sshd(params["sshd_executable"])
    with sshd_change.locked(request.config):
        return _brought_about(request, sshd, Change(request.config))


def _request(params: Mapping[str, Any], check_mode: bool) -> Request:
    paths = {}
    for name in ("config_path", "drop_in", "directory"):
        path = params[name]
        refuse_control_characters(name, path)
        if not path.startswith("/"):
            raise MuxError("invalid", "%s: %r must begin with /" % (name, path))
        paths[name] = os.path.normpath(path)
    config = os.path.realpath(paths["config_path"])
    if not os.path.isfile(config):
        raise MuxError("invalid", "config_path: there is no file %s" % config)
    for path in (config, paths["drop_in"]):
        if (path + "/").startswith(paths["directory"].rstrip("/") + "/"):
            raise MuxError(
                "invalid", "directory: %s is for files of this module alone" % paths["directory"]
            )
    if params["confirm_within"] < 0:
        raise MuxError("invalid", "confirm_within: must not be negative")
    present = params["state"] == "present"
    return Request(
        config=config,
        drop_in_path=paths["drop_in"],
        directory=paths["directory"],
        drop_in=model.parse_drop_in(params["options"], params["matches"]) if present else None,
        files=model.parse_files(params["files"]) if present else {},
        expect=model.parse_expect(params["expect"]),
        confirm_within=params["confirm_within"],
        reload=params["reload"],
        check_mode=check_mode,
    )


# -- a pending change ------------------------------------------------------------------------------


def _confirmed(change: Change, check_mode: bool) -> Dict[str, Any]:
    """Have a pending change stay."""
    state = change.state()
    note = change.undone()
    if note is not None:
        raise MuxError(
            "timeout",
            "too late: %s, and it was undone at %s; what was before is in force"
            % (note["why"], note["at"]),
        )
    if state == sshd_change.UNFINISHED:
        raise MuxError(
            "invalid",
            "this change is half done or half undone, because a run was killed or sshd did not come"
            " back; have it as it was before (state: restored), and run again",
        )
    pending = state != sshd_change.NONE
    if pending and not check_mode:
        change.confirm()
    return {"changed": pending, "pending": False, "diff": []}


def _restored(change: Change, check_mode: bool) -> Dict[str, Any]:
    """Have a pending change undone."""
    state = change.state()
    pending = state not in (sshd_change.NONE, sshd_change.UNDONE)
    if not check_mode:
        if pending:
            change.undo()
        elif state == sshd_change.UNDONE:
            change.forget()
    return {"changed": pending, "pending": False, "diff": []}


# -- present, absent -------------------------------------------------------------------------------


def _brought_about(request: Request, sshd: Sshd, change: Change) -> Dict[str, Any]:
    seen = _seen(request)
    plan, verdict = _planned(request, sshd, seen)
    result: Dict[str, Any] = {
        "changed": plan.actions,
        "pending": False,
        "diff": _diff(plan),
        "left_out": [one.as_dict() for one in verdict.left_out],
        "effective": verdict.expected,
        "unverified": verdict.unverified,
        "sshd": sshd.version(),
        "reload": "unneeded",
    }
    state = change.state()
    if state == sshd_change.WAITING and not plan.actions:
        # It is what is wanted: whoever comes last says whether it needs to be confirmed.
        result["pending"] = bool(request.check_mode or request.confirm_within)
        if not request.check_mode:
            change.renew(request.confirm_within) if request.confirm_within else change.confirm()
        return result
    if state not in (sshd_change.NONE, sshd_change.UNDONE):
        result["changed"] = True
    if request.check_mode:
        return result
    if state == sshd_change.UNDONE:
        change.forget()
    elif state != sshd_change.NONE:
        change.undo()
        plan, verdict = _planned(request, sshd, _seen(request))
    if plan.actions:
        result["reload"] = _carried_out(request, sshd, change, plan, verdict)
        result["pending"] = bool(request.confirm_within)
    return result


def _seen(request: Request) -> Seen:
    """What is there, if it is ours to change.

    :raises MuxError: ``invalid``.
    """
    places = (
        ("drop_in", os.path.dirname(request.drop_in_path)),
        ("directory", os.path.dirname(request.directory)),
        ("directory", request.directory),
    )
    for name, path in places:
        _check_directory(name, path)
    config = user_file.read(request.config, most=_MOST)
    drop_in = user_file.read(request.drop_in_path, most=_MOST)
    if config is None:
        raise MuxError("invalid", "config_path: %s was removed at the same time" % request.config)
    if drop_in is not None and not model.is_ours(drop_in):
        raise MuxError(
            "invalid",
            "drop_in: %s was not written by this module; move it away, or name another one"
            % request.drop_in_path,
        )
    paths, statuses = sshd_change.observed(request.directory)
    if paths and os.path.join(request.directory, model.MARKER) not in paths:
        raise MuxError(
            "invalid",
            "directory: there is something in %s, and not from this module; name another one"
            % request.directory,
        )
    return Seen(config, drop_in, paths, statuses)


def _check_directory(name: str, path: str) -> None:
    """Make sure that nobody but root can put anything into a directory, or another in its place.

    :raises MuxError: ``invalid``.
    """
    if os.path.islink(path):
        raise MuxError("invalid", "%s: %s is a symbolic link" % (name, path))
    try:
        control_dir.check(path, name)
    except MuxError as error:
        raise MuxError("invalid", error.message) from None


def _planned(request: Request, sshd: Sshd, seen: Seen) -> Tuple[Plan, Verdict]:
    """What has to be done, and what sshd says about it.

    :raises MuxError: ``invalid`` where sshd refuses it, or understands something else.
    """
    drop_in = request.drop_in
    left_out: Dict[Setting, None] = {}
    while True:
        # A round for each keyword below a Match that sshd does not know: it stops there.
        config = _config(request, seen)
        body = None if drop_in is None else _body(request, seen, drop_in)
        contents = {request.config: config}
        if body is not None:
            contents[request.drop_in_path] = body
        with sshd_judge.candidate(
            sshd,
            request.config,
            contents=contents,
            absent=[] if body is not None else [request.drop_in_path],
            directory=request.directory,
            files=request.files,
        ) as made:
            accepted, said = made.check()
            unknown: Dict[Setting, None] = {}
            if drop_in is not None:
                lines = [None, *(setting for _line, setting in drop_in.lines())]
                for one in said:
                    if one.is_unknown and one.file == request.drop_in_path:
                        setting = lines[one.line - 1]
                        if setting is not None:
                            unknown[setting] = None
                if unknown:
                    left_out.update(unknown)
                    drop_in = drop_in.without(set(unknown))
                    continue
            # What is added at the top of the configuration is not there yet.
            added = len(lines_of("", config)) - len(lines_of("", seen.config))
            for index, one in enumerate(said):
                if one.file == request.config and one.line > added:
                    said[index] = replace(one, line=one.line - added)
            _refuse(request, body, accepted, said)
            verdict = _verdict(request, made, tuple(left_out), added)
        return _plan(request, seen, config, body), verdict


def _config(request: Request, seen: Seen) -> bytes:
    path = None if request.drop_in is None else request.drop_in_path
    try:
        return model.edit_config(seen.config, path).after or b""
    except MuxError as error:
        raise MuxError(error.reason, "%s, %s" % (request.config, error.message)) from None


def _body(request: Request, seen: Seen, drop_in: DropIn) -> bytes:
    missing = not os.path.isdir(os.path.dirname(request.drop_in_path))
    return drop_in.text(made_directory=missing or model.made_directory(seen.drop_in))


def _refuse(
    request: Request, body: Optional[bytes], accepted: bool, said: Sequence[model.Complaint]
) -> None:
    """
    :raises MuxError: ``invalid`` where sshd does, or where it would ignore one of the files.
    """
    ours = [one for one in said if request.directory + "/" in one.what]
    if accepted and not ours:
        return
    blamed = said if not accepted else ours
    lines = lines_of("", body or b"")
    words = []
    for one in blamed:
        shown = ""
        if one.file == request.drop_in_path and 0 < one.line <= len(lines):
            shown = " (%s)" % lines[one.line - 1].shown
        if not one.is_unknown or one.what.startswith("Bad"):
            words.append("%s%s" % (one, shown))
    raise MuxError("invalid", "sshd refuses it: " + ("; ".join(words) or "it does not say why"))


def _verdict(
    request: Request, made: Candidate, left_out: Tuple[Setting, ...], added: int
) -> Verdict:
    """Compare what would be in force with what is expected.

    :param added: the lines that the configuration has more than now, at its top.
    :raises MuxError: ``invalid``.
    """
    skipped = frozenset(one.option.keyword.lower() for one in left_out)
    meant: Dict[Tuple[Option, ...], Mapping[str, Sequence[str]]] = {}
    wrong: List[Mismatch] = []
    expected: List[Dict[str, Any]] = []
    unverified: List[str] = []
    for one in request.expect:
        if not _is_user(one.user):
            if not request.check_mode:
                raise MuxError("invalid", "expect: there is no user %s" % one.user)
            # The task that makes it has not run either.
            unverified.append(one.user)
            continue
        kept = tuple(each for each in one.options if each.keyword.lower() not in skipped)
        if kept not in meant:
            meant[kept] = made.meaning(kept)
        effective = made.effective(one.given)
        for miss in model.mismatches(one, effective, meant[kept], skipped):
            by = made.culprit(miss.keyword, one.given)
            if by is not None and by.file == request.config:
                by = replace(by, number=by.number - added)
            wrong.append(replace(miss, by=by))
        options = {key: list(effective.get(key, ())) for key in one.keywords(skipped)}
        expected.append({"connection": dict(one.connection), "options": options})
    if wrong:
        raise MuxError(
            "invalid",
            "nothing is changed: %s" % "; ".join(map(str, wrong)),
            mismatches=[each.as_dict() for each in wrong],
        )
    return Verdict(left_out, made.effective(), expected, unverified)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except (KeyError, ValueError):
        return False
    return True


def _plan(request: Request, seen: Seen, config: bytes, body: Optional[bytes]) -> Plan:
    """The steps from what is there to what shall be."""
    wanted = {os.path.join(request.directory, name): one for name, one in request.files.items()}
    folders = {os.path.dirname(path) for path in wanted}
    present = request.drop_in is not None
    made: List[str] = []
    modes: List[Tuple[str, int]] = []
    writes: List[Write] = []
    if present:
        for path in [os.path.dirname(request.drop_in_path), *sorted(folders)]:
            if not os.path.isdir(path):
                made.append(path)
        for path in sorted(folders - set(made)):
            status = os.lstat(path)
            if _mode(status) != 0o755 or (status.st_uid, status.st_gid) != (0, 0):
                modes.append((path, _mode(status)))
        for path, one in wanted.items():
            before = _before(path, seen)
            if before != one.content or not _is_as(seen.statuses.get(path), one.mode):
                secret = not one.mode & 0o004 or _is_secret(path, seen)
                writes.append(Write(path, before, one.content, one.mode, False, secret))
    ours = [
        Write(request.drop_in_path, seen.drop_in, body, 0o600, keeps=True),
        Write(request.config, seen.config, config, 0o600, keeps=True),
    ]
    # sshd_config never names what is not there.
    for write in ours if present else ours[::-1]:
        if write.before != write.after:
            writes.append(write)
    removed = []
    for path in reversed(seen.paths):
        if stat.S_ISDIR(seen.statuses[path].st_mode):
            if path not in folders:
                removed.append(path)
        elif path not in wanted:
            writes.append(Write(path, _before(path, seen), None, 0, False, _is_secret(path, seen)))
    if not present:
        if os.path.isdir(request.directory):
            removed.append(request.directory)
        home = os.path.dirname(request.drop_in_path)
        if model.made_directory(seen.drop_in) and os.listdir(home) == [
            os.path.basename(request.drop_in_path)
        ]:
            removed.append(home)
    return Plan(
        config=request.config,
        directory=request.directory,
        listed=seen.paths,
        made=made,
        removed=removed,
        modes=modes,
        writes=writes,
    )


def _before(path: str, seen: Seen) -> Optional[bytes]:
    """The content of a regular file."""
    status = seen.statuses.get(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return user_file.read(path)


def _is_secret(path: str, seen: Seen) -> bool:
    """Whether others may not read a file."""
    status = seen.statuses.get(path)
    return status is not None and not status.st_mode & 0o004


def _mode(status: os.stat_result) -> int:
    return stat.S_IMODE(status.st_mode)


def _is_as(status: Optional[os.stat_result], mode: int) -> bool:
    """Whether a file is root's and has this mode."""
    return status is not None and (status.st_uid, status.st_gid, _mode(status)) == (0, 0, mode)


def _carried_out(request: Request, sshd: Sshd, change: Change, plan: Plan, verdict: Verdict) -> str:
    """Do it, and have sshd read it; whatever goes wrong, it is undone.

    :returns: what became of the reload.
    :raises MuxError: it is undone.
    """
    try:
        addresses = model.addresses(sshd.effective(request.config))
    except MuxError:
        # As it is, sshd refuses it, and could not have been started with it.
        addresses = model.addresses(verdict.effective)
    name = os.path.basename(sshd.executable)
    listener = sshd_undo.find(addresses, name) if request.reload else None
    try:
        change.begin(
            plan,
            listener=listener,
            addresses=addresses,
            reload=request.reload,
            confirm_within=request.confirm_within,
        )
        sshd_change.apply(plan)
        _compare(sshd.effective(request.config), verdict.effective)
        if listener is not None:
            sshd_undo.reload(listener)
    except (MuxError, OSError, sshd_undo.Failure) as error:
        reason = "not_running" if isinstance(error, sshd_undo.Failure) else "invalid"
        if change.state() != sshd_change.NONE:
            try:
                change.undo()
            except MuxError as worse:
                raise MuxError(worse.reason, "%s; %s" % (error, worse.message)) from None
        raise MuxError(reason, "%s; everything is as it was before" % error) from None
    change.applied()
    if request.confirm_within:
        change.renew(request.confirm_within)
    else:
        change.confirm()
    if not request.reload:
        return "off"
    return "done" if listener is not None else "nobody listens"


def _compare(found: Mapping[str, Sequence[str]], judged: Mapping[str, Sequence[str]]) -> None:
    """Make sure that sshd reads what was judged.

    :raises MuxError: ``invalid``.
    """
    keywords = [key for key in {**judged, **found} if found.get(key) != judged.get(key)]
    if keywords:
        raise MuxError(
            "invalid",
            "sshd reads other files than were judged: %s differs" % ", ".join(sorted(keywords)),
        )


def _diff(plan: Plan) -> List[Dict[str, str]]:
    """What the plan does, directories first."""
    found = [(path, "", "directory\n") for path in plan.made]
    found += [(path, "mode %04o\n" % mode, "mode 0755\n") for path, mode in plan.modes]
    found += [
        (one.path, _text(one.before, one.secret), _text(one.after, one.secret))
        for one in plan.writes
    ]
    found += [(path, "directory\n", "") for path in plan.removed]
    return [
        {"before_header": path, "after_header": path, "before": before, "after": after}
        for path, before, after in found
    ]


def _text(content: Optional[bytes], secret: bool) -> str:
    if content and secret:
        return "(%d bytes that others may not read)\n" % len(content)
    return (content or b"")[:_SHOWN].decode("utf-8", "backslashreplace")
