# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger: what this collection knows of one master and OpenSSH will not tell.

OpenSSH lists neither a master's forwardings nor the options it was opened with, so both are
written beside its socket. What stands there counts only for the process it was written about.
Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from .forward import Forward

VERSION = 1

#: Two starts of one process id within this many seconds cannot be: the kernel hands ids out in
#: turn. Wide enough for the rounding of start times.
SAME_START = 1.0

#: Start times counted from the boot have the kernel's resolution, a hundredth of a second.
_ONE_TICK = 0.01


@dataclass(frozen=True)
class Record:
    """One forwarding that a master holds.

    :ivar forward: with the port it really listens on.
    :ivar automatic: whether that port was chosen by us or, for remote ones, by the server.
    :ivar wire_host: the listening host exactly as the master was told: it matches by that text.
    :ivar inodes: its listening sockets, where the system names them.
    """

    forward: Forward
    automatic: bool = False
    wire_host: str = ""
    inodes: FrozenSet[int] = frozenset()

    def satisfies(self, desired: Forward) -> bool:
        """Whether this is the forwarding asked for; a port to be chosen is met by a chosen one."""
        return desired in (self.forward, self.asked)

    @property
    def asked(self) -> Forward:
        """The forwarding as it was asked for: port 0 where the port was left to be chosen."""
        return self.forward.with_port(0) if self.automatic else self.forward


@dataclass(frozen=True)
class Ledger:
    """What is known of one master.

    :ivar started: when its process was started, in seconds since the epoch.
    :ivar booted: when the system was started, by the same clock.
    :ivar managed: whether this collection opened it.
    :ivar openssh: the version of the ssh that it runs.
    :ivar target: ``host``, ``port``, ``user``, ``jump`` and ``persist`` as it was opened.
    :ivar effective: the lasting part of ``ssh -G`` at its opening.
    :ivar inodes: every socket of the process when the ledger was written: a process that has
        them all and no other has the listeners that were recorded.
    :ivar foreign: listening addresses of the process that no record explains.
    :ivar refused: remote forwardings that the server refused, oldest first. The master goes on
        to permit them: see :func:`settle`.
    """

    pid: int
    started: float
    booted: float = 0.0
    managed: bool = False
    openssh: Optional[str] = None
    target: Mapping[str, Any] = field(default_factory=dict)
    effective: Mapping[str, List[str]] = field(default_factory=dict)
    records: Tuple[Record, ...] = ()
    inodes: FrozenSet[int] = frozenset()
    foreign: Tuple[Tuple[str, int], ...] = ()
    refused: Tuple[Record, ...] = ()

    def is_about(self, pid: int, started: Optional[float], booted: Callable[[], float]) -> bool:
        """Whether it was written about this very process.

        Linux counts a start from the boot, macOS by the clock of that moment; the other count
        changes when the clock is set.
        """
        if pid != self.pid or started is None:
            return False
        if abs(started - self.started) < SAME_START:
            return True
        return abs((started - booted()) - (self.started - self.booted)) < _ONE_TICK


def settle(record: Record, refused: Sequence[Record]) -> Tuple[int, Tuple[Record, ...]]:
    """How often a remote forwarding has to be opened anew until it leads to its own far end.

    A master keeps its permission for a forwarding that the server refused, and connects what comes
    in by its oldest permission for that listener: to the refused far end (channels.c,
    permission_set_add and channel_connect_by_listen_address; mux.c, mux_confirm_remote_forward
    clears it for port 0 alone). Cancelling takes the oldest one away, whosesoever it is.

    :returns: how often, and the permissions that are left behind then.
    """
    place = (record.wire_host, record.forward.listen)
    queue = [one for one in refused if (one.wire_host, one.forward.listen) == place] + [record]
    others = [one for one in refused if (one.wire_host, one.forward.listen) != place]
    turns = 0
    while queue[0].forward != record.forward:
        queue = [*queue[1:], record]
        turns += 1
    return turns, (*others, *queue[1:])


def dump(ledger: Ledger) -> str:
    """The text of a ledger."""
    return json.dumps(
        {
            "version": VERSION,
            "pid": ledger.pid,
            "started": ledger.started,
            "booted": ledger.booted,
            "managed": ledger.managed,
            "openssh": ledger.openssh,
            "target": dict(ledger.target),
            "effective": dict(ledger.effective),
            "forwards": [_values(record) for record in ledger.records],
            "inodes": sorted(ledger.inodes),
            "foreign": [list(address) for address in ledger.foreign],
            "refused": [_values(record) for record in ledger.refused],
        },
    )


def _values(record: Record) -> Dict[str, Any]:
    return dict(
        record.forward.as_dict(),
        automatic=record.automatic,
        wire_host=record.wire_host,
        inodes=sorted(record.inodes),
    )


def load(text: str) -> Optional[Ledger]:
    """Read a ledger; ``None`` for anything that is not one, so that observation goes on without."""
    try:
        values = json.loads(text)
        if values["version"] != VERSION:
            return None
        return Ledger(
            pid=_of_type(int, values["pid"]),
            started=_of_type(float, values["started"]),
            booted=_of_type(float, values["booted"]),
            managed=_of_type(bool, values["managed"]),
            openssh=None if values["openssh"] is None else _of_type(str, values["openssh"]),
            target=_of_type(dict, values["target"]),
            effective=_string_lists(values["effective"]),
            records=tuple(_record(item) for item in values["forwards"]),
            inodes=frozenset(_of_type(int, inode) for inode in values["inodes"]),
            foreign=tuple(
                (_of_type(str, address), _of_type(int, port)) for address, port in values["foreign"]
            ),
            refused=tuple(_record(item) for item in values["refused"]),
        )
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None


def _record(item: Dict[str, Any]) -> Record:
    forward = Forward.from_dict(item)
    wire_host = item["wire_host"]
    if wire_host not in ("", "*", "localhost", forward.listen_host):
        raise ValueError("%r is no way to ask for %s" % (wire_host, forward))
    return Record(
        forward=forward,
        automatic=_of_type(bool, item["automatic"]),
        wire_host=wire_host,
        inodes=frozenset(_of_type(int, inode) for inode in item["inodes"]),
    )


def _string_lists(values: Dict[str, Any]) -> Dict[str, List[str]]:
    return {
        _of_type(str, key): [_of_type(str, value) for value in _of_type(list, items)]
        for key, items in values.items()
    }


def _of_type(type_: type, value: Any) -> Any:
    # A bool is an int to isinstance, and none to JSON.
    if not isinstance(value, type_) or isinstance(value, bool) is not (type_ is bool):
        raise ValueError("%r is not %s" % (value, type_.__name__))
    return value
