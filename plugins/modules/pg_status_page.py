#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action plugin pg_status_page; nothing runs on the managed host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_status_page
short_description: Write the state of all clusters of a run into one HTML page
version_added: 0.1.0
description:
  - Runs on the controller. It takes what M(pg_ops.replication.pg_node_info) returned for every node and writes one page with all clusters,
    the worst first, each with its problems, a picture of its topology and a table of its nodes.
  - The page needs no other file, no network and no script. It replaces the one before it in one step and has mode V(0644).
  - Use it with C(run_once), for every host would write the same page.
author: pg_ops.replication contributors (@pg-ops)
attributes:
  check_mode:
    description: Renders the page and does not write it.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
options:
  path:
    description: The file to write. A relative path starts at the directory that the playbook was started from, which must exist.
    type: str
    required: true
  observed:
    description: Name of the variable that the observations were registered as.
    type: str
    default: __pg_observed
  template:
    description: The page's template, found as M(ansible.builtin.template) finds its own.
    type: str
    default: status.html.j2
"""

EXAMPLES = r"""
- name: Write all clusters into one page
  pg_ops.replication.pg_status_page:
    path: /var/www/html/replication.html
  run_once: true
"""

RETURN = r"""
path:
  description: The absolute path of the page.
  returned: success
  type: str
"""
