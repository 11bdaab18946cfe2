#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_settle."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_settle
short_description: Put a running server into its place in the topology, and prove it
version_added: 0.1.0
description:
  - On a standby, sets its upstream and its slot, reloads, and waits until it streams on the primary's timeline past O(mark_lsn).
  - Takes C(standby.signal) from a primary that a switchover left with it, once no switchover is at work there.
  - On every server, makes the slots for those that stream from it and drops those that would keep WAL for nobody.
  - On a PostgreSQL 17 or newer with C(sync_replication_slots=on), keeps C(synchronized_standby_slots) of a primary in C(postgresql.auto.conf), and
    drops failover slots that a standby made while it was primary and that would stop the copying of the new primary's.
  - On a server with downstreams, waits until they stream. Observes the server at the end, for the proof.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  upstream:
    description: Where this server streams from. Leave it out on the primary. A server that is not in recovery is refused, and left as it is.
    type: dict
    suboptions:
      name:
        description: Inventory name of the upstream.
        type: str
        required: true
      address:
        description: Its address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        default: 5432
  replication_user:
    description: Role that streams WAL.
    type: str
    default: replicator
  host_name:
    description: Inventory name of this host.
    type: str
    required: true
  slot_name:
    description: The physical slot that this server uses at its upstream.
    type: str
    required: true
  slots_present:
    description: Physical slots that this server's downstreams use.
    type: list
    elements: str
    default: []
  slots_absent:
    description: Physical slots that would keep WAL for nobody.
    type: list
    elements: str
    default: []
  downstreams:
    description: Inventory names of the servers that must stream from this one at the end.
    type: list
    elements: str
    default: []
  waits:
    description:
      - Whether to wait until this standby streams from its upstream and has replayed O(mark_lsn). V(false) where that is in vain, because
        its replay is paused or delayed.
    type: bool
    default: true
    version_added: 0.2.0
  synchronized_slots:
    description:
      - Physical slots of this primary whose standbys must have a change before consumers of failover slots get it.
      - Those that nobody streams from at the time are left out. An empty list takes the setting away.
    type: list
    elements: str
    default: []
  synchronous:
    description:
      - How commits of this server are confirmed while it is primary, kept as C(synchronous_standby_names) in C(postgresql.auto.conf). A
        standby has the setting too, so that it holds from its promotion on.
      - Leave it out for asynchronous replication. Then a setting that this module wrote is taken away, and any other one stays.
    type: dict
    version_added: 0.2.0
    suboptions:
      mode:
        description: Whether the first of O(synchronous.names) that stream confirm, or any of them.
        type: str
        choices: [any, first]
        default: first
      num:
        description: How many standbys confirm each commit.
        type: int
        default: 1
      names:
        description: The application names of the standbys that may. With an empty list commits wait.
        type: list
        elements: str
        default: []
      degrade:
        description:
          - With fewer than O(synchronous.num) standbys, V(wait) has commits wait, and V(async) asks for as many confirmations as there are
            standbys, for none without one.
        type: str
        choices: [async, wait]
        default: wait
  timeline:
    description: The primary's timeline.
    type: int
    default: 0
  mark_lsn:
    description: An LSN that a standby must have replayed. Empty means none.
    type: str
    default: ""
  timeout_seconds:
    description: How long the waiting may take.
    type: float
    default: 30
"""

EXAMPLES = r"""
- name: Follow the new primary
  pg_ops.replication.pg_settle:
    host_name: pgsql3
    slot_name: pgsql3
    upstream:
      name: pgsql2
      address: 192.0.2.12
    slots_absent: [pgsql1, pgsql2]
"""

RETURN = r"""
node:
  description: What M(pg_ops.replication.pg_node_info) returns, observed at the end.
  returned: always, but for a server that cannot be asked to begin with
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import observe
from ansible_collections.pg_ops.replication.plugins.module_utils.running import failure, mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server
from ansible_collections.pg_ops.replication.plugins.module_utils.settling import Place, plan_place, settle


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Plan, show, act, observe."""
    place = Place.from_params(module.params)
    plan = plan_place(server, place)
    try:
        node = settle(server, place, plan, check_mode=module.check_mode)
    except PgOpsError as error:
        # What a failure leaves is observed as well: the proof at the playbook's end shows it beside the others.
        return failure(error, node=observe(server))
    return {"changed": plan.changed, "diff": mapping_diff(place.host_name, plan.before, plan.after), "node": node}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        upstream={
            "type": "dict",
            "options": {
                "name": {"type": "str", "required": True},
                "address": {"type": "str", "required": True},
                "port": {"type": "int", "default": 5432},
            },
        },
        replication_user={"type": "str", "default": "replicator"},
        host_name={"type": "str", "required": True},
        slot_name={"type": "str", "required": True},
        slots_present={"type": "list", "elements": "str", "default": []},
        slots_absent={"type": "list", "elements": "str", "default": []},
        downstreams={"type": "list", "elements": "str", "default": []},
        waits={"type": "bool", "default": True},
        synchronized_slots={"type": "list", "elements": "str", "default": []},
        synchronous={
            "type": "dict",
            "options": {
                "mode": {"type": "str", "choices": ["any", "first"], "default": "first"},
                "num": {"type": "int", "default": 1},
                "names": {"type": "list", "elements": "str", "default": []},
                "degrade": {"type": "str", "choices": ["async", "wait"], "default": "wait"},
            },
        },
        timeline={"type": "int", "default": 0},
        mark_lsn={"type": "str", "default": ""},
        timeout_seconds={"type": "float", "default": 30},
    )


if __name__ == "__main__":
    main()
