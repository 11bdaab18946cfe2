# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Logical slots when the primary role moves: which ones go along, which stay behind, and which are in the way.

PostgreSQL 17 and newer copy a slot that was created with `failover` to standbys (the slot sync worker, `sync_replication_slots`).
Before 17, and for every other logical slot, a new primary has nothing of it.
"""

from __future__ import annotations

from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import RUNNING, Node, Slot, orphaned_slots
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology


def logical_slots(node: Node) -> tuple[Slot, ...]:
    """Return the logical slots of a node that a consumer can still use; a temporary one ends with its connection."""
    return tuple(slot for slot in node.slots if slot.type == "logical" and not slot.temporary and slot.wal_status != "lost")


def carried(target: Node, name: str) -> bool:
    """Whether a consumer of the slot could go on at `target` once that is promoted.

    A copy is temporary until it has all that its consumer may need; PostgreSQL drops such a copy at the promotion.
    """
    return _copy_state(target, name) == ""


def _copy_state(target: Node, name: str) -> str:
    """Return what a copy of the slot lacks on `target`, in words; empty when it is complete."""
    copy: Optional[Slot] = next((slot for slot in target.slots if slot.name == name), None)
    if copy is None:
        return "no copy"
    if not copy.synced:
        return "a slot of its own by that name"
    if copy.invalidation_reason or copy.wal_status == "lost":
        return "a copy that is lost ({0})".format(copy.invalidation_reason or copy.wal_status)
    return "a copy that is not complete yet" if copy.temporary else ""


def switchover_slot_blockers(source: Node, target: Node, *, accept_loss: bool) -> tuple[Blocker, ...]:
    """Return a blocker for each failover slot of `source` whose consumer could not go on at `target`."""
    if accept_loss:
        return ()
    if target.settings.get("sync_replication_slots", "on") != "on":
        hint = "Set wal_level=logical in pg_settings and leave pg_failover_slots on, run initial_setup.yml, restart {0}.".format(target.host)
    else:
        hint = "The copy is renewed every 30 s at most; one that stays incomplete waits for its consumer to read on."
    price = " Or give the slots up with -e pg_accept_slot_loss=true."
    return tuple(
        Blocker(
            "slot_not_synced", target.host, "does not have the failover slot {0} of {1}".format(slot.name, source.host),
            _copy_state(target, slot.name), "a synced copy", hint + price,
        )
        for slot in logical_slots(source)
        if slot.failover and not carried(target, slot.name)
    )


def lost_slot_notes(source: Optional[Node], target: Node) -> tuple[str, ...]:
    """Return a sentence for each logical slot of the old primary, as far as it is known, that the new one will not have."""
    if source is None:
        return ()
    return tuple(
        "logical slot {0} of {1} does not go along: {2} has {3}".format(slot.name, source.host, target.host, _copy_state(target, slot.name))
        for slot in logical_slots(source)
        if not carried(target, slot.name)
    )


def stray_slot_notes(topology: Topology) -> tuple[str, ...]:
    """Return a sentence for each slot that keeps WAL and that nobody reads, where only its owner knows whether it is needed.

    A logical one on a standby may be left from that node's time as primary or be somebody's who decodes there. A physical one that is no host's of
    the inventory may be a backup's, or what is left of a standby that was taken out.
    """
    ours = {node.member.slot_name for node in topology.nodes}
    physical = tuple(
        "{0} keeps {1} bytes of WAL for slot {2}, which is no host's of the inventory and which nobody reads; if its owner is gone, drop it:"
        " SELECT pg_drop_replication_slot('{2}')".format(node.host, slot.retained_bytes, slot.name)
        for node in topology.nodes
        for slot in node.slots
        if node.state == RUNNING and slot.type == "physical" and slot.restart_lsn and not slot.active and not slot.temporary and slot.name not in ours
    )
    return physical + tuple(
        "{0} keeps WAL for logical slot {1}, which nobody reads there; if it is left from its time as primary, drop it".format(node.host, slot.name)
        for node in topology.standbys
        for slot in logical_slots(node)
        if not slot.synced and not slot.active and slot not in orphaned_slots(node)
    )
