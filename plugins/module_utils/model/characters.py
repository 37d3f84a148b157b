# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Characters that neither an argument of a program nor a path can hold.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import re

from .errors import MuxError

#: Control characters, and surrogates but for those that stand for a byte (PEP 383).
_REFUSED = re.compile("[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")


def refuse_control_characters(name: str, value: str) -> None:
    """Refuse the value of a parameter that holds one.

    :raises MuxError: ``invalid``.
    """
    if _REFUSED.search(value):
        raise MuxError("invalid", "%s: %r contains a control character" % (name, value))
