#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_node_info."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_node_info
short_description: Everything that a decision needs to know of one PostgreSQL server
version_added: 0.1.0
description:
  - Observes the server on the managed host, whether it runs or not, and changes nothing.
  - A running server is asked over its local socket. Of a server that is down the control file, the WAL and the configuration are read.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  roles:
    description: Database roles whose existence is asked for.
    type: list
    elements: str
    default: []
  sizes:
    description: Measure the data directory too, which takes time where there are many files.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Observe the server
  pg_ops.replication.pg_node_info:
  register: observed

- name: Show its role
  ansible.builtin.debug:
    msg: "{{ observed.node.role }} on timeline {{ observed.node.timeline }}"
"""

RETURN = r"""
node:
  description:
    - The server's state. V(state) is one of V(running), V(starting), V(unresponsive), V(stopped), V(crashed) and V(absent).
    - V(role) is V(primary) or V(standby); of a server that is down, what it would start as.
    - LSNs are texts, sizes are bytes. Unknown values are absent or empty.
  returned: success
  type: dict
  sample: {"state": "running", "role": "primary", "timeline": 3, "current_lsn": "0/5000148", "system_identifier": "7423190841321985062"}
paths:
  description: Where the server's files are.
  returned: success
  type: dict
  sample: {"data_directory": "/var/lib/postgresql/15/main", "hba_file": "/etc/postgresql/15/main/pg_hba.conf"}
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import observe, paths_of
from ansible_collections.pg_ops.replication.plugins.module_utils.running import run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Observe the server."""
    node = observe(server, roles=module.params["roles"], sizes=module.params["sizes"])
    return {"changed": False, "node": node, "paths": paths_of(server)}


def main() -> None:
    """Run the module."""
    run_module(work, roles={"type": "list", "elements": "str", "default": []}, sizes={"type": "bool", "default": False})


if __name__ == "__main__":
    main()
