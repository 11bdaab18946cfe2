# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_replication_slot on real servers: create, drop, each in check mode, for real, and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_servers import Answer, Node, Pair, Ports, copy_pair, end_below, start_pair, wait_for


@pytest.fixture(scope="module")
def running(template: Pair, place: Path, ports: Ports) -> Iterator[Pair]:
    """One pair for this module's tests; each test uses slot names of its own."""
    made = copy_pair(template, place / "slots", ports)
    made.primary.append_conf("wal_level = logical\nmax_replication_slots = 20")
    start_pair(made)
    yield made
    end_below(place / "slots")


@pytest.fixture(scope="module")
def newer_running(newer_template: Pair, place: Path, ports: Ports) -> Iterator[Node]:
    made = copy_pair(newer_template, place / "newer_slots", ports)
    made.primary.append_conf("wal_level = logical")
    made.primary.start()
    yield made.primary
    end_below(place / "newer_slots")


def slots(node: Node, *names: str, check_mode: bool = False, **more: Any) -> Answer:
    return node.call("pg_replication_slot", check_mode=check_mode, name=list(names), **more)


@pytest.mark.parametrize(
    "options", [{}, {"slot_type": "logical"}, {"slot_type": "logical", "plugin": "test_decoding"}], ids=["physical", "pgoutput", "test_decoding"]
)
def test_slot_life_in_check_mode_for_real_and_again(running: Pair, options: dict[str, Any]) -> None:
    node, names = running.primary, ("life_one", "life_two")
    for state, present in (("present", True), ("absent", False)):
        checked = slots(node, *names, check_mode=True, state=state, **options)
        assert checked.changed
        assert ("life_one" in node.slots()) is not present
        done = slots(node, *names, state=state, **options)
        assert done.changed and done["diff"] == checked["diff"]
        assert ("life_one" in done["diff"]["after"]) is present and ("life_one" in done["diff"]["before"]) is not present
        assert done["created" if present else "dropped"] == list(names)
        assert ("life_two" in node.slots()) is present
        assert not slots(node, *names, state=state, **options).changed
        assert not slots(node, *names, check_mode=True, state=state, **options).changed


def test_slot_physical_reserves_wal_unless_told_otherwise(running: Pair) -> None:
    assert slots(running.primary, "reserved_one").changed
    assert slots(running.primary, "unreserved_one", reserve_wal=False).changed
    found = running.primary.slots()
    assert found["reserved_one"] == "reserved" and found["unreserved_one"] is None


def test_slot_named_twice_is_made_once(running: Pair) -> None:
    assert slots(running.primary, "twice", "twice")["created"] == ["twice"]
    assert slots(running.primary, "twice", "twice", state="absent")["dropped"] == ["twice"]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"slot_type": "logical"}),
        ({"slot_type": "logical"}, {}),
        ({"slot_type": "logical"}, {"slot_type": "logical", "plugin": "test_decoding"}),
        ({"slot_type": "logical"}, {"slot_type": "logical", "login_db": "template1"}),
    ],
    ids=["physical_for_logical", "logical_for_physical", "other_plugin", "other_database"],
)
def test_slot_of_another_kind_is_an_error(running: Pair, first: dict[str, Any], then: dict[str, Any]) -> None:
    assert slots(running.primary, "kind", **first).changed
    for check_mode in (True, False):
        answer = slots(running.primary, "fresh_kind", "kind", check_mode=check_mode, **then)
        assert "kind" in answer.refusal("slot_kind")
        assert answer["observed"] != answer["required"] and answer["hint"]
    assert "fresh_kind" not in running.primary.slots()
    assert slots(running.primary, "kind", state="absent").changed


def test_slot_in_use_is_not_dropped(running: Pair) -> None:
    name = running.standby.slot
    wait_for(lambda: running.primary.sql("SELECT active FROM pg_replication_slots WHERE slot_name = %s", name), "the slot's use")
    answer = slots(running.primary, name, state="absent")
    assert name in answer.refusal("slot_active")
    assert name in running.primary.slots()


def test_slot_in_use_is_dropped_by_force(pair: Pair) -> None:
    name = pair.standby.slot
    assert slots(pair.primary, name, state="absent", force=True).changed
    assert name not in pair.primary.slots()


@pytest.mark.parametrize("name", ["Upper", "hy-phen", "", "x" * 64, "sp ace", "ä", "it's"])
def test_slot_bad_name_is_one_clear_error(running: Pair, name: str) -> None:
    assert slots(running.primary, name).refusal("bad_slot_name")


def test_slot_lost_is_made_anew(stopped_pair: Pair) -> None:
    node = stopped_pair.primary
    node.append_conf("max_slot_wal_keep_size = 1MB\nmax_wal_size = 32MB\nmin_wal_size = 32MB")
    node.start()
    assert slots(node, "behind").changed
    for _each in range(4):
        node.sql("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()")
    node.sql("CHECKPOINT")
    wait_for(lambda: node.slots()["behind"] == "lost", "the slot's loss")
    checked = slots(node, "behind", check_mode=True)
    assert checked.changed and checked["created"] == checked["dropped"] == ["behind"]
    assert slots(node, "behind").changed
    assert node.slots()["behind"] == "reserved"
    assert not slots(node, "behind").changed


def test_slot_logical_without_wal_level_is_an_error(pair: Pair) -> None:
    answer = slots(pair.primary, "decoding", slot_type="logical")
    assert answer.failed and "wal_level" in answer["msg"], answer.text


def test_slot_failover_before_17_is_an_error_before_anything(running: Pair, programs: Any) -> None:
    if programs.version >= 17:
        pytest.skip("this PostgreSQL has failover slots")
    answer = slots(running.primary, "sync", slot_type="logical", failover=True, check_mode=True)
    answer.refusal("version")
    assert "17" in answer["required"]


def test_slot_failover_is_made_and_kept(newer_running: Node) -> None:
    node = newer_running
    assert slots(node, "sync", slot_type="logical", failover=True).changed
    assert node.sql("SELECT failover FROM pg_replication_slots WHERE slot_name = 'sync'")
    assert not slots(node, "sync", slot_type="logical", failover=True).changed
    assert slots(node, "plain", slot_type="logical").changed
    slots(node, "plain", slot_type="logical", failover=True).refusal("slot_kind")


def test_slot_server_down_is_one_clear_error(stopped_pair: Pair) -> None:
    answer = slots(stopped_pair.primary, "any")
    assert answer.failed and answer["reason"] and "Traceback" not in answer.text
