# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be wrong with the bytes of a peer.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations


class ProtocolError(Exception):
    """The peer sent something malformed, or something that is no answer to what was asked."""
