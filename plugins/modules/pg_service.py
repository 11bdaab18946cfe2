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
  - A primary that is restarted is started again also where the boot guard hears nobody and C(pg_boot_guard_alone) is C(refuse).
  - A primary that a switchover left with C(standby.signal) is not restarted, because it would come back as a standby.
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

import contextlib
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.promoting import read_state
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError
from ansible_collections.pg_ops.replication.plugins.module_utils.sql import SqlError


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Bring the server into the wanted state."""
    state, timeout = module.params["state"], module.params["timeout_seconds"]
    running = bool(server.postmaster_pid())
    changed = {"started": not running, "stopped": running, "restarted": True, "reloaded": running}[state]
    primary = state == "restarted" and running and _is_primary(server)
    if primary:
        _require_disarmed(server)
    after = running if state == "reloaded" else state != "stopped"
    diff = mapping_diff("server", {"running": running}, {"running": after})
    if changed and not module.check_mode:
        with server.guard_allowing() if primary else contextlib.nullcontext():
            _act(server, state, running, timeout)
    return {"changed": changed, "diff": diff, "running": after}


def _is_primary(server: Server) -> bool:
    """Whether the running server is known to accept writes."""
    try:
        with server.connect() as session:
            return not read_state(session)["in_recovery"]
    except SqlError:
        return False


def _require_disarmed(server: Server) -> None:
    if server.standby_signal.exists():
        raise ServerError(
            "this server is primary and would come back as a standby", reason="armed_primary", observed="standby.signal", required="no standby.signal",
            hint="Run start_new_standby.yml to keep it primary, or switchover.yml to end the hand-over that left it so, then repeat.",
        )


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
