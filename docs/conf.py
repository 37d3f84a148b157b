# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx settings of `make docs`, which needs no network."""

from __future__ import annotations

project = "bastion.mux"
author = "bastion.mux contributors"
title = html_short_title = html_title = "bastion.mux"

extensions = ["sphinx_antsibull_ext"]
pygments_style = "ansible"
highlight_language = "YAML+Jinja"

html_theme = "alabaster"
html_theme_options = {"description": "OpenSSH multiplexing as state", "page_width": "1100px"}
html_copy_source = False
html_show_sphinx = False
html_use_index = False

# Modules and playbooks of ansible-core are named by label; their pages are elsewhere.
nitpicky = False
suppress_warnings = ["ref.ref"]
