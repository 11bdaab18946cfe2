# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what becomes of logical slots when the primary role moves."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover import plan_failover
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover_slots import (
    lost_slot_notes,
    stray_slot_notes,
    switchover_slot_blockers,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Slot, orphaned_slots
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import Limits
from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import status_document
from ansible_collections.pg_ops.replication.plugins.module_utils.core.switchover import plan_switchover
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import change, cluster, down, reasons, the

COPIES = {"sync_replication_slots": "on", "max_wal_senders": "10", "max_replication_slots": "10"}


def logical(name: str = "shop", **changes: Any) -> Slot:
    return Slot(**{"name": name, "type": "logical", "plugin": "pgoutput", "wal_status": "reserved", **changes})


def with_slots(topology: Topology, **slots: tuple[Slot, ...]) -> Topology:
    """Return the topology with these slots beside the physical ones, by host, where slots are copied."""
    for node in topology.nodes:
        topology = change(topology, node.host, slots=(*node.slots, *slots.get(node.host, ())), settings=COPIES)
    return topology


SYNCED = logical(failover=True, synced=True)
OF_PRIMARY = logical(failover=True, active=True)
CASES = [
    pytest.param((OF_PRIMARY,), (SYNCED,), "", "", id="copied"),
    pytest.param((OF_PRIMARY,), (), "no copy", "no copy", id="no copy"),
    pytest.param((OF_PRIMARY,), (logical(failover=True, synced=True, temporary=True),), "not complete yet", "not complete yet", id="temporary"),
    pytest.param((OF_PRIMARY,), (logical(failover=True, synced=True, invalidation_reason="wal_removed"),), "wal_removed", "wal_removed", id="invalid"),
    pytest.param((OF_PRIMARY,), (logical(failover=True, synced=True, wal_status="lost"),), "lost", "lost", id="lost copy"),
    pytest.param((OF_PRIMARY,), (logical(),), "of its own", "of its own", id="somebody else's of that name"),
    pytest.param((logical(),), (), "", "no copy", id="not meant to go along"),
    pytest.param((logical(failover=True, temporary=True),), (), "", "", id="temporary at the primary"),
    pytest.param((logical(failover=True, wal_status="lost"),), (), "", "", id="lost at the primary"),
    pytest.param((), (), "", "", id="no logical slot"),
]


@pytest.mark.parametrize(("primary", "standby", "blocked", "noted"), CASES)
def test_switchover_slot_blockers_and_notes(primary: tuple[Slot, ...], standby: tuple[Slot, ...], blocked: str, noted: str) -> None:
    topology = with_slots(cluster(), pg1=primary, pg2=standby)
    source, target = the(topology, "pg1"), the(topology, "pg2")
    found = switchover_slot_blockers(source, target, accept_loss=False)
    assert reasons(found) == ([("slot_not_synced", "pg2")] if blocked else [])
    assert all(blocked in blocker.observed and "pg_accept_slot_loss" in blocker.hint for blocker in found)
    assert switchover_slot_blockers(source, target, accept_loss=True) == ()
    notes = lost_slot_notes(source, target)
    assert len(notes) == bool(noted) and all(noted in note and "shop" in note for note in notes)


def test_switchover_slot_blocker_where_nothing_is_copied_names_the_setting() -> None:
    topology = with_slots(cluster(), pg1=(OF_PRIMARY,))
    target = change(topology, "pg2", settings={**COPIES, "sync_replication_slots": "off"})
    [blocker] = switchover_slot_blockers(the(topology, "pg1"), the(target, "pg2"), accept_loss=False)
    assert "wal_level=logical" in blocker.hint


def test_plan_switchover_goes_by_the_copies() -> None:
    topology = with_slots(cluster(), pg1=(OF_PRIMARY,), pg3=(SYNCED,))
    assert reasons(plan_switchover(topology, "pg2", Limits()).blockers) == [("slot_not_synced", "pg2")]
    assert plan_switchover(topology, "pg3", Limits()).blockers == ()
    assert plan_switchover(topology, "", Limits()).target == "pg3"
    accepted = plan_switchover(topology, "pg2", Limits(accept_slot_loss=True))
    assert accepted.blockers == () and any("shop" in note for note in accepted.notes)


def test_plan_failover_names_the_slots_that_do_not_survive() -> None:
    topology = down(with_slots(cluster(), pg2=(SYNCED,), pg3=(SYNCED,)), "pg1", slots=(logical(), logical("bank")))
    plan = plan_failover(topology, "", Limits())
    assert plan.blockers == ()
    assert [note for note in plan.notes if "logical slot" in note] == [
        "logical slot bank of pg1 does not go along: {0} has no copy".format(plan.target)
    ]


@pytest.mark.parametrize(
    ("slot", "orphaned", "noted"),
    [
        pytest.param(logical(failover=True), True, False, id="of its time as primary"),
        pytest.param(SYNCED, False, False, id="copied"),
        pytest.param(logical(), False, True, id="without failover: somebody's"),
        pytest.param(logical(active=True), False, False, id="read on the standby"),
    ],
)
def test_slot_on_a_standby_is_an_orphan_or_a_stray(slot: Slot, orphaned: bool, noted: bool) -> None:
    topology = with_slots(cluster(), pg2=(slot,))
    assert bool(orphaned_slots(the(topology, "pg2"))) is orphaned
    assert reasons(problems(topology)) == ([("slot_orphaned", "pg2")] if orphaned else [])
    assert bool(stray_slot_notes(topology)) is noted


@pytest.mark.parametrize(
    ("changes", "noted"),
    [
        pytest.param({}, True, id="of a standby that was taken out"),
        pytest.param({"active": True}, False, id="somebody streams from it"),
        pytest.param({"restart_lsn": ""}, False, id="it keeps nothing yet"),
        pytest.param({"temporary": True}, False, id="it goes with its session"),
        pytest.param({"name": "pg3"}, False, id="of a member, which problems name"),
    ],
)
def test_physical_slot_that_keeps_wal_for_nobody_known_is_noted(changes: dict[str, Any], noted: bool) -> None:
    slot = Slot(**{"name": "gone", "restart_lsn": "0/1000000", "retained_bytes": 5_000_000, **changes})
    topology = change(cluster(), "pg1", slots=(*(each for each in the(cluster(), "pg1").slots if each.name != slot.name), slot))
    notes = stray_slot_notes(topology)
    expected = "pg1 keeps 5000000 bytes of WAL for slot gone, which is no host's of the inventory"
    assert [note.startswith(expected) for note in notes] == ([True] if noted else [])
    assert status_document(topology, observed_at="")["notes"] == list(notes)


def test_orphaned_slots_of_a_primary_or_where_nothing_is_copied_are_none() -> None:
    topology = with_slots(cluster(), pg1=(OF_PRIMARY,), pg2=(logical(failover=True),))
    assert orphaned_slots(the(topology, "pg1")) == ()
    topology = change(topology, "pg2", settings={})
    assert orphaned_slots(the(topology, "pg2")) == ()
    assert problems(topology) == () and len(stray_slot_notes(topology)) == 1
