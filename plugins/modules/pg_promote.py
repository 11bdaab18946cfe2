#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_promote."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_promote
short_description: Promote the standby on this host
version_added: 0.1.0
description:
  - Promotes the standby, waits until it accepts writes on its new timeline, then writes a checkpoint, without which pg_rewind would be fooled.
  - Refuses while replay is paused, and where the server has less WAL than O(min_lsn).
  - Where C(archive_command) is the role archive's or another one of pgBackRest, the WAL that was received is archived once more from here,
    for the old primary may not have come to it.
  - A server that is primary already is left alone, except that the checkpoint of its promotion is written where it is missing.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  host_name:
    description: Inventory name of this host, for the note that a failover is under way.
    type: str
    default: ""
  old_primary:
    description: Inventory name of the primary that is replaced, for the same note.
    type: str
    default: ""
  slots:
    description: Physical slots that are made before the promotion, so that no WAL is recycled that the other standbys need.
    type: list
    elements: str
    default: []
  min_lsn:
    description: The standby must have received or replayed this LSN. Empty means no such check.
    type: str
    default: ""
  timeout_seconds:
    description: How long the promotion may take.
    type: float
    default: 60
  checkpoint_timeout_seconds:
    description: How long the checkpoint after it may take.
    type: float
    default: 600
"""

EXAMPLES = r"""
- name: Promote this standby
  pg_ops.replication.pg_promote:
    slots: [pgsql1, pgsql3]
"""

RETURN = r"""
timeline:
  description: The server's timeline at the end.
  returned: success
  type: int
  sample: 2
mark_lsn:
  description: An LSN on that timeline. A standby that has replayed it follows the new primary.
  returned: success
  type: str
  sample: 0/5000220
promote_seconds:
  description: From the request to the first moment in which writes were accepted.
  returned: changed
  type: float
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.promoting import checkpoint, has_checkpoint, promote_local, read_state, require_promotable
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError, deaf_to_hangups


def require_wal(state: dict[str, Any], min_lsn: str) -> None:
    """Raise ServerError when the standby has less WAL than it must."""
    if min_lsn and parse_lsn(state["position_lsn"] or "0/0") < parse_lsn(min_lsn):
        raise ServerError(
            "the standby has less WAL than required", reason="lag", observed=state["position_lsn"], required=min_lsn,
            hint="Promote the most advanced standby.",
        )


def promote(module: AnsibleModule, server: Server, session: sql.Session) -> dict[str, Any]:
    """Promote and checkpoint; what a dying controller sends does not cut it in two."""
    params = module.params
    with deaf_to_hangups():
        if params["old_primary"]:
            note = {"operation": "failover", "source": params["old_primary"], "target": params["host_name"], "phase": "promoting"}
            server.write_note("pending", note)
        started = time.monotonic()
        state = promote_local(server, session, slots=params["slots"], timeout_seconds=params["timeout_seconds"])
        seconds = round(time.monotonic() - started, 3)
        checkpoint(session, timeout_seconds=params["checkpoint_timeout_seconds"])
    return {"timeline": state["timeline"], "mark_lsn": state["position_lsn"], "promote_seconds": seconds}


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Promote unless the server is primary."""
    with server.connect() as session:
        state = read_state(session)
        changed = bool(state["in_recovery"])
        result: dict[str, Any] = {"timeline": state["timeline"], "mark_lsn": state["position_lsn"]}
        if changed:
            require_promotable(state)
            require_wal(state, module.params["min_lsn"])
            if not module.check_mode:
                result = promote(module, server, session)
        elif not has_checkpoint(session, state):  # a run that was cut off behind the promotion
            changed = True
            if not module.check_mode:
                checkpoint(session, timeout_seconds=module.params["checkpoint_timeout_seconds"])
    diff = mapping_diff("server", {"role": "standby" if state["in_recovery"] else "primary"}, {"role": "primary"})
    return {"changed": changed, "diff": diff, **result}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        host_name={"type": "str", "default": ""},
        old_primary={"type": "str", "default": ""},
        slots={"type": "list", "elements": "str", "default": []},
        min_lsn={"type": "str", "default": ""},
        timeout_seconds={"type": "float", "default": 60},
        checkpoint_timeout_seconds={"type": "float", "default": 600},
    )


if __name__ == "__main__":
    main()
