#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_replication_slot."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_replication_slot
short_description: Replication slots, physical and logical
version_added: 0.1.0
description:
  - Makes slots exist or not. A slot that exists as another kind, with another plugin or in another database is an error, and so is dropping one in use.
  - An inactive physical slot whose WAL is lost is made anew, because it can never be used again.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  name:
    description: Names of the slots.
    type: list
    elements: str
    required: true
    aliases: [names]
  state:
    description: Whether the slots should exist.
    type: str
    choices: [present, absent]
    default: present
  slot_type:
    description: Kind of the slots.
    type: str
    choices: [physical, logical]
    default: physical
  plugin:
    description: Output plugin of a logical slot.
    type: str
    default: pgoutput
  reserve_wal:
    description: Keep WAL from now on, not from the first connection on. For physical slots.
    type: bool
    default: true
  failover:
    description: Have a logical slot synchronised to standbys. PostgreSQL 17 and newer.
    type: bool
    default: false
  force:
    description: With O(state=absent), end the connection that uses the slot.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Keep WAL for both standbys
  pg_ops.replication.pg_replication_slot:
    name: [pgsql2, pgsql3]

- name: Give up the slot of a node that is gone
  pg_ops.replication.pg_replication_slot:
    name: pgsql3
    state: absent
"""

RETURN = r"""
slots:
  description: Every slot of the server at the end; sizes in bytes.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "pgsql2", "type": "physical", "active": true, "restart_lsn": "0/5000148", "wal_status": "reserved", "retained_bytes": 0}]
created:
  description: Slots that were made.
  returned: success
  type: list
  elements: str
dropped:
  description: Slots that were dropped.
  returned: success
  type: list
  elements: str
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import validate_slot_name
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server
from ansible_collections.pg_ops.replication.plugins.module_utils.slot_sql import SlotError, SlotPlan, SlotWish, apply_slots, plan_slots, read_slots

FAILOVER_MAJOR = 17


def make_plan(params: dict[str, Any], present: Any, major: int) -> SlotPlan:
    """Return what the options ask for. Raises SlotError for what this server's version does not have."""
    names = list(dict.fromkeys(params["name"]))
    for name in names:
        validate_slot_name(name)
    if params["state"] == "absent":
        return plan_slots(present, [], names, force=params["force"])
    if params["slot_type"] == "physical":
        return plan_slots(present, [SlotWish(name, reserve_wal=params["reserve_wal"]) for name in names], [])
    if params["failover"] and major < FAILOVER_MAJOR:
        raise SlotError(
            "this PostgreSQL cannot synchronise slots", reason="version", observed=str(major), required="PostgreSQL 17 or newer",
            hint="Leave failover out.",
        )
    wishes = [SlotWish(name, "logical", params["plugin"], failover=params["failover"], database=params["login_db"]) for name in names]
    return plan_slots(present, wishes, [])


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Plan, show, and act."""
    with server.connect() as session:
        present = read_slots(session)
        plan = make_plan(module.params, present, int(session.value("SHOW server_version_num")) // 10000)
        created = [wish.name for wish in plan.create]
        before = {slot["name"]: "{0} {1}".format(slot["type"], slot["plugin"]).strip() for slot in present}
        after = {name: kind for name, kind in before.items() if name not in plan.drop}
        after.update({wish.name: "{0} {1}".format(wish.type, wish.plugin).strip() for wish in plan.create})
        if plan.changed and not module.check_mode:
            apply_slots(session, plan)
            present = read_slots(session)
    return {
        "changed": plan.changed,
        "diff": mapping_diff("replication slots", before, after),
        "slots": present,
        "created": created,
        "dropped": list(plan.drop),
    }


def main() -> None:
    """Run the module."""
    run_module(
        work,
        name={"type": "list", "elements": "str", "required": True, "aliases": ["names"]},
        state={"type": "str", "choices": ["present", "absent"], "default": "present"},
        slot_type={"type": "str", "choices": ["physical", "logical"], "default": "physical"},
        plugin={"type": "str", "default": "pgoutput"},
        reserve_wal={"type": "bool", "default": True},
        failover={"type": "bool", "default": False},
        force={"type": "bool", "default": False},
    )


if __name__ == "__main__":
    main()
