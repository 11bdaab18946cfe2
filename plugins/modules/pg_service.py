#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_service
short_description: Start, stop, restart or reload a PostgreSQL server
version_added: 0.1.0
description:
  - Works the same where systemd runs the server and where nothing does (O(service_manager=pg_ctl)).
  - A start waits until the server accepts connections and fails with the end of its log.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  state:
    description:
      - V(started) and V(stopped) do nothing when that is so already.
      - V(restarted) and V(reloaded) always act; a server that is down is started by V(restarted) and left alone by V(reloaded).
    type: str
    choices: [started, stopped, restarted, reloaded]
    default: started
  timeout_seconds:
    description: How long a start or a stop may take.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Start the server
  pg_ops.replication.pg_service:
    state: started
"""

RETURN = r"""
running:
  description: Whether the server runs at the end.
  returned: success
  type: bool
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Bring the server into the wanted state."""
    state, timeout = module.params["state"], module.params["timeout_seconds"]
    running = bool(server.postmaster_pid())
    changed = {"started": not running, "stopped": running, "restarted": True, "reloaded": running}[state]
    after = running if state == "reloaded" else state != "stopped"
    diff = mapping_diff("server", {"running": running}, {"running": after})
    if changed and not module.check_mode:
        _act(server, state, running, timeout)
    return {"changed": changed, "diff": diff, "running": after}


def _act(server: Server, state: str, running: bool, timeout_seconds: float) -> None:
    if state == "reloaded":
        server.reload()
        return
    if running:
        server.stop(timeout_seconds=timeout_seconds)
    if state != "stopped":
        server.start(timeout_seconds=timeout_seconds)
        server.wait_for_sql(timeout_seconds=timeout_seconds).close()


def main() -> None:
    """Run the module."""
    run_module(
        work,
        state={"type": "str", "choices": ["started", "stopped", "restarted", "reloaded"], "default": "started"},
        timeout_seconds={"type": "float", "default": 60},
    )


if __name__ == "__main__":
    main()
