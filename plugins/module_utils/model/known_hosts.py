# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""known_hosts as values: which lines are about which hosts, and what has to become of them.

A line is ours where it has no marker and names one of our hosts exactly, in the open or hashed;
patterns, ``@cert-authority`` and ``@revoked`` lines, comments and lines that ssh itself cannot
read are other people's and stay byte for byte. Private to the collection: no promise is made
about it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from .errors import MuxError
from .forward import is_address

#: The names of the ``key_types`` parameter, and the types of key they stand for.
KEY_TYPES: Dict[str, Tuple[str, ...]] = {
    "ed25519": ("ssh-ed25519",),
    "ecdsa": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    "rsa": ("ssh-rsa",),
}

#: What became of a key, or would.
UNCHANGED = "unchanged"
ADDED = "added"
REPLACED = "replaced"
REMOVED = "removed"
REFUSED = "refused"

#: The length of a salt: that of SHA-1, which hashed names use (hostfile.c, host_hash).
SALT_LENGTH = 20

_FINGERPRINT = re.compile(r"SHA256:([A-Za-z0-9+/]{43})=?\Z", re.ASCII)
_MD5 = re.compile(r"(MD5:)?[0-9a-f]{2}(:[0-9a-f]{2}){15}\Z", re.ASCII | re.IGNORECASE)
#: Salt and hash: 20 bytes each.
_HASHED = re.compile(rb"\|1\|([A-Za-z0-9+/]{27}=)\|([A-Za-z0-9+/]{27}=)\Z")
_FIELD = re.compile(rb"[^ \t]+")


@dataclass(frozen=True)
class HostKey:
    """A public key: its type, and its encoding as RFC 4253, 6.6 has it."""

    type: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As ``ssh-keygen -l`` shows it."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest())
        return "SHA256:" + digest.decode("ascii").rstrip("=")

    def __str__(self) -> str:
        return "%s %s" % (self.type, base64.b64encode(self.blob).decode("ascii"))


@dataclass(frozen=True)
class Host:
    """A host as ssh looks it up; in small letters, as ssh does."""

    name: str
    port: int = 22

    @property
    def entry(self) -> str:
        """Its name in the file (misc.c, put_host_port)."""
        return self.name if self.port == 22 else "[%s]:%d" % (self.name, self.port)

    def __str__(self) -> str:
        if self.port == 22:
            return self.name
        return "%s:%d" % ("[%s]" % self.name if ":" in self.name else self.name, self.port)


def parse_host(text: str) -> Host:
    """Read ``host``, ``host:port``, ``[v6]:port``, ``[v6]`` or a bare IPv6 address.

    :raises MuxError: ``invalid``.
    """
    name, port = text.strip(), "22"
    if name.startswith("["):
        name, bracket, rest = name[1:].partition("]")
        if not bracket or rest[:1] not in ("", ":") or rest == ":":
            raise MuxError("invalid", "hosts: the brackets of %r do not match" % text)
        port = rest[1:] or port
    elif name.count(":") == 1:
        name, _colon, port = name.partition(":")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise MuxError("invalid", "hosts: %r is not a port, in %r" % (port, text))
    if ":" in name and not is_address(name):
        raise MuxError("invalid", "hosts: %r is neither host:port nor an IPv6 address" % text)
    # Each of these would mean something else in the file, or to ssh.
    if not name or name[0] in "-@|#!" or re.search(r"[\s,*?\[\]/\x00-\x1f\x7f]", name):
        raise MuxError("invalid", "hosts: %r is not the name of a host" % text)
    return Host(name.lower(), int(port))


def parse_hosts(texts: Iterable[str]) -> Tuple[Host, ...]:
    """Each host once, in the order given."""
    return tuple(dict.fromkeys(parse_host(text) for text in texts))


def parse_fingerprint(text: Any) -> str:
    """A SHA-256 fingerprint as :attr:`HostKey.fingerprint` has it.

    :raises MuxError: ``invalid``, for MD5 too, which no longer vouches for anything.
    """
    found = _FINGERPRINT.match(text.strip()) if isinstance(text, str) else None
    if found:
        return "SHA256:" + found.group(1)
    if isinstance(text, str) and _MD5.match(text.strip()):
        raise MuxError(
            "invalid",
            "fingerprints: %s is an MD5 fingerprint, which proves nothing any more; give the one"
            " that begins with SHA256:, as ssh-keygen -l shows it" % text,
        )
    raise MuxError("invalid", "fingerprints: %r is not of the form SHA256:…" % (text,))


#: The fingerprints that are pinned for each host; ``None``: none for any.
Pins = Optional[Mapping[Host, FrozenSet[str]]]


def parse_pins(fingerprints: Any, hosts: Sequence[Host]) -> Pins:
    """The ``fingerprints`` parameter: a list for every host, or a list for each by its name.

    :raises MuxError: ``invalid``; ``host_key_unknown`` where the dict leaves out a host: a
        forgotten host must not pass for a checked one.
    """
    if fingerprints is None:
        return None
    if isinstance(fingerprints, str):
        fingerprints = [fingerprints]
    if isinstance(fingerprints, (list, tuple)):
        everyones = frozenset(parse_fingerprint(text) for text in fingerprints)
        return dict.fromkeys(hosts, everyones)
    if not isinstance(fingerprints, dict):
        raise MuxError("invalid", "fingerprints: must be a list, or a dict of hosts and lists")
    pins: Dict[Host, FrozenSet[str]] = {}
    for name, texts in fingerprints.items():
        several = [texts] if isinstance(texts, str) else texts
        if not isinstance(several, (list, tuple)):
            raise MuxError("invalid", "fingerprints: %s needs a list" % name)
        pins[parse_host(str(name))] = frozenset(parse_fingerprint(text) for text in several)
    forgotten = [str(host) for host in hosts if host not in pins]
    if forgotten:
        raise MuxError(
            "host_key_unknown", "fingerprints: there is none for %s" % ", ".join(forgotten)
        )
    return pins


# -- the file --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line with its end of line, and what ssh reads in it (hostfile.c, hostkeys_foreach_file).

    :ivar names: the field of names; empty where the line has no key.
    :ivar at: where in ``raw`` that field begins.
    """

    raw: bytes
    marker: bytes = b""
    names: bytes = b""
    at: int = 0
    key: Optional[HostKey] = None

    def named(self, wanted: Mapping[bytes, Host]) -> List[Host]:
        """Which of the hosts the line names exactly.

        :param wanted: the hosts by their entry.
        """
        if self.key is None or self.marker:
            return []
        if self.names.startswith(b"|"):
            is_hash_of = self._hashes()
            return [host for entry, host in wanted.items() if is_hash_of(entry)]
        names = dict.fromkeys(self.names.lower().split(b","))
        return [wanted[name] for name in names if name in wanted]

    def covers(self, entry: bytes) -> bool:
        """Whether the line applies to a host, by patterns as well (match.c, match_pattern_list)."""
        if self.names.startswith(b"|"):
            return self._hashes()(entry)
        covered = False
        for pattern in self.names.lower().split(b","):
            if _matches(pattern.lstrip(b"!"), entry):
                if pattern.startswith(b"!"):
                    return False
                covered = True
        return covered

    def without(self, entries: Set[bytes]) -> bytes:
        """The line less these names; nothing where no name is left."""
        if self.names.startswith(b"|"):
            return b""
        kept = [name for name in self.names.split(b",") if name.lower() not in entries]
        if not kept:
            return b""
        end = self.at + len(self.names)
        return self.raw[: self.at] + b",".join(kept) + self.raw[end:]

    def _hashes(self) -> Callable[[bytes], bool]:
        """Whether the field is the hash of an entry (hostfile.c, match_maybe_hashed)."""
        found = _HASHED.match(self.names)
        if found is None:
            return lambda _entry: False
        salt, digest = (base64.b64decode(part) for part in found.groups())
        return lambda entry: hmac.digest(salt, entry, "sha1") == digest


def parse(content: bytes) -> List[Line]:
    """The lines of a file; joined, their ``raw`` is the file again."""
    return [_parse_line(raw) for raw in re.findall(rb"[^\n]*\n|[^\n]+", content)]


def _parse_line(raw: bytes) -> Line:
    fields = list(_FIELD.finditer(raw.rstrip(b"\r\n")))
    if not fields or fields[0].group().startswith(b"#"):
        return Line(raw)
    marker = b""
    if fields[0].group().startswith(b"@"):
        marker = fields.pop(0).group()
    if len(fields) < 3 or marker not in (b"", b"@cert-authority", b"@revoked"):
        return Line(raw)
    names, key_type, text = fields[:3]
    try:
        blob = base64.b64decode(text.group(), validate=True)
        name = key_type.group().decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        return Line(raw)
    if blob[: 4 + len(name)] != len(name).to_bytes(4, "big") + key_type.group():
        return Line(raw)
    return Line(raw, marker, names.group(), names.start(), HostKey(name, blob))


def _matches(pattern: bytes, entry: bytes) -> bool:
    # Not fnmatch: "[" is an ordinary character here.
    expression = re.escape(pattern).replace(rb"\*", b".*").replace(rb"\?", b".")
    return re.match(expression + rb"\Z", entry, re.DOTALL) is not None


def hashed(entry: bytes, salt: bytes) -> str:
    """A name as ``HashKnownHosts`` writes it (hostfile.c, host_hash)."""
    digest = hmac.digest(salt, entry, "sha1")
    parts = (base64.b64encode(part).decode("ascii") for part in (salt, digest))
    return "|1|" + "|".join(parts)


# -- decisions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyPlan:
    """What becomes of one key of one host, and the fingerprints that it takes the place of."""

    host: Host
    key: HostKey
    action: str
    previous: Tuple[str, ...] = ()

    def as_dict(self) -> Dict[str, Any]:
        """The key's part of the ``hosts`` return value."""
        return {
            "type": self.key.type,
            "fingerprint": self.key.fingerprint,
            "action": self.action,
            "previous": list(self.previous),
        }


@dataclass(frozen=True)
class Refusal:
    """Why nothing may be written."""

    host: Host
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What becomes of the file: check mode, diff and apply all read this."""

    before: bytes
    after: bytes
    keys: Tuple[KeyPlan, ...]
    refusals: Tuple[Refusal, ...] = ()

    @property
    def actions(self) -> bool:
        """Whether there is anything to do."""
        return self.before != self.after


@dataclass
class _Edit:
    """Changes to a file, collected and then made at once."""

    lines: List[Line]
    removed: Dict[int, Set[bytes]] = field(default_factory=dict)
    inserted: Dict[int, List[str]] = field(default_factory=dict)

    def remove(self, index: int, host: Host) -> None:
        self.removed.setdefault(index, set()).add(host.entry.encode("utf-8"))

    def insert(self, index: int, text: str) -> None:
        self.inserted.setdefault(index, []).append(text)

    def result(self) -> bytes:
        parts: List[bytes] = []
        last = next((line.raw for line in reversed(self.lines) if line.raw.endswith(b"\n")), b"")
        end = b"\r\n" if last.endswith(b"\r\n") else b"\n"
        for index in range(len(self.lines) + 1):
            if index < len(self.lines):
                line, gone = self.lines[index], self.removed.get(index)
                parts.append(line.raw if gone is None else line.without(gone))
            for text in self.inserted.get(index, ()):
                before = next((part for part in reversed(parts) if part), b"\n")
                parts.append(b"" if before.endswith(b"\n") else end)
                parts.append(text.encode("utf-8") + end)
        return b"".join(parts)


def _entries(hosts: Iterable[Host]) -> Dict[bytes, Host]:
    return {host.entry.encode("utf-8"): host for host in hosts}


def _known(lines: Sequence[Line], hosts: Iterable[Host]) -> Dict[Host, List[Tuple[int, HostKey]]]:
    wanted = _entries(hosts)
    known: Dict[Host, List[Tuple[int, HostKey]]] = {host: [] for host in wanted.values()}
    for index, line in enumerate(lines):
        for host in line.named(wanted):
            if line.key is not None:
                known[host].append((index, line.key))
    return known


def plan_present(
    content: bytes,
    shown: Mapping[Host, Sequence[HostKey]],
    *,
    pins: Pins = None,
    replace: bool = False,
    salt: Optional[Callable[[], bytes]] = None,
) -> Plan:
    """Bring the keys that hosts showed into a file.

    A key that is known stays as it is. A key is *changed* where the file has another one of its
    type for the host; and where the file has keys for the host of which it showed none, all of
    them are: else somebody in between could get in with a key of a type not seen before.

    :param pins: the fingerprints that are vouched for.
    :param replace: whether a changed key takes the place of the known one.
    :param salt: makes a salt for each new line; ``None`` writes names in the open.
    """
    edit = _Edit(parse(content))
    known = _known(edit.lines, shown)
    revoked = [line for line in edit.lines if line.marker == b"@revoked"]
    plans: List[KeyPlan] = []
    refusals: List[Refusal] = []
    for host, keys in shown.items():
        unlisted = [key for key in keys if pins is not None and key.fingerprint not in pins[host]]
        withdrawn = [key for key in keys if _is_revoked(key, host, revoked)]
        rivals = _rivals(keys, known[host])
        changed = [] if replace else rivals
        refusals += _refusals(host, keys, unlisted, withdrawn, changed)
        for key in keys:
            same = [(index, rival) for index, rival in rivals if rival.type == key.type]
            action = REPLACED if same else ADDED
            if any(key == other for _index, other in known[host]):
                action = UNCHANGED
            else:
                name = host.entry if salt is None else hashed(host.entry.encode("utf-8"), salt())
                edit.insert(same[0][0] if same else len(edit.lines), "%s %s" % (name, key))
            if key in unlisted or key in withdrawn or (changed and action != UNCHANGED):
                action = REFUSED
            plans.append(KeyPlan(host, key, action, tuple(old.fingerprint for _index, old in same)))
        for index, rival in rivals:
            edit.remove(index, host)
            if rival.type not in {key.type for key in keys}:
                plans.append(KeyPlan(host, rival, REMOVED if replace else REFUSED))
    after = content if refusals else edit.result()
    return Plan(content, after, tuple(plans), tuple(refusals))


def plan_absent(
    content: bytes, hosts: Iterable[Host], *, types: Optional[Iterable[str]] = None
) -> Plan:
    """Take hosts out of a file.

    :param types: the types of key to take out; ``None`` for every type.
    """
    edit = _Edit(parse(content))
    only = None if types is None else set(types)
    keys = []
    for host, its in _known(edit.lines, hosts).items():
        for index, key in its:
            if only is None or key.type in only:
                edit.remove(index, host)
                keys.append(KeyPlan(host, key, REMOVED))
    return Plan(content, edit.result(), tuple(keys))


def _rivals(
    shown: Sequence[HostKey], known: Sequence[Tuple[int, HostKey]]
) -> List[Tuple[int, HostKey]]:
    """The known keys that the shown ones contradict."""
    if not any(key in shown for _index, key in known):
        return list(known)
    strange = {key.type for key in shown} - {key.type for _index, key in known if key in shown}
    return [(index, key) for index, key in known if key.type in strange]


def _is_revoked(key: HostKey, host: Host, revoked: Sequence[Line]) -> bool:
    entry = host.entry.encode("utf-8")
    return any(line.key == key and line.covers(entry) for line in revoked)


def _refusals(
    host: Host,
    shown: Sequence[HostKey],
    unlisted: Sequence[HostKey],
    withdrawn: Sequence[HostKey],
    changed: Sequence[Tuple[int, HostKey]],
) -> List[Refusal]:
    def spell(keys: Iterable[HostKey]) -> str:
        return ", ".join("%s %s" % (key.type, key.fingerprint) for key in keys)

    found = []
    if withdrawn:
        text = "%s: the file marks as revoked what it shows: %s" % (host, spell(withdrawn))
        found.append(Refusal(host, "host_key_changed", text))
    if changed:
        known = ("%s (line %d)" % (spell([key]), index + 1) for index, key in changed)
        text = (
            "%s: its host key has changed: it shows %s, known is %s; somebody may be in between;"
            " if the change is genuine, set replace: true" % (host, spell(shown), ", ".join(known))
        )
        found.append(Refusal(host, "host_key_changed", text))
    if unlisted:
        text = "%s: not among the fingerprints: %s; list it, or narrow key_types" % (
            host,
            spell(unlisted),
        )
        found.append(Refusal(host, "host_key_unknown", text))
    return found
