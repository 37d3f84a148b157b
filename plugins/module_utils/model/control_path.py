# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a control socket may lie: the length that fits. Pure; the directories are system's.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

from .characters import refuse_control_characters
from .errors import MuxError

#: sizeof(sun_path) in bytes, the terminator included, by ``sys.platform``.
_SUN_PATH = {"linux": 108}
_SUN_PATH_BSD = 104

#: ssh binds ``<path>.<16 random characters>`` and links it to its place (mux.c,
#: muxserver_listen): the usable length is that much shorter.
_TEMPORARY_SUFFIX = 17


def limit(platform: str) -> int:
    """The longest usable control path in bytes: 90 on Linux, 86 on macOS and the BSDs."""
    return _SUN_PATH.get(platform, _SUN_PATH_BSD) - 1 - _TEMPORARY_SUFFIX


def check(path: str, platform: str) -> None:
    """Refuse a control path that ssh could not bind, or that cannot be given to it.

    :raises MuxError: ``control_path_too_long`` or ``invalid``.
    """
    if not path.startswith("/"):
        raise MuxError("invalid", "control_path: %r is not absolute" % path)
    refuse_control_characters("control_path", path)
    if "${" in path:
        raise MuxError("invalid", "control_path: %r holds ${, which ssh would expand" % path)
    length = len(path.encode("utf-8", "surrogateescape"))
    most = limit(platform)
    if length > most:
        name = path.rsplit("/", 1)[1]
        room = most - len(name.encode("utf-8", "surrogateescape")) - 1
        fits = "the same name fits in a directory of up to %d bytes, or " % room
        raise MuxError(
            "control_path_too_long",
            "control_path: %r has %d bytes, ssh can bind %d here; %sset control_path to something"
            " short such as ~/.ssh/m/%%C" % (path, length, most, fits if room > 0 else ""),
            control_path=path,
            length=length,
            limit=most,
        )
