# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what is known of one server."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import (
    PRIMARY,
    STANDBY,
    Member,
    Node,
    Pending,
    Receiver,
    Sender,
    Slot,
    Upstream,
    node_from_mapping,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import slot_name_for

EVERY_STATE = (
    states.RUNNING,
    states.STARTING,
    states.UNRESPONSIVE,
    states.STOPPED,
    states.CRASHED,
    states.ABSENT,
    states.UNREACHABLE,
)


@pytest.mark.parametrize("role", [PRIMARY, STANDBY, ""])
@pytest.mark.parametrize("state", EVERY_STATE)
def test_state_and_role_of_node_say_what_it_is(state: str, role: str) -> None:
    node = Node(Member("pg1"), state=state, role=role)
    assert node.is_running_primary == (state == "running" and role == "primary")
    assert node.is_running_standby == (state == "running" and role == "standby")
    assert node.has_server_down == (state in ("starting", "unresponsive", "stopped", "crashed"))


@pytest.mark.parametrize(
    ("values", "position"),
    [
        pytest.param({"role": PRIMARY, "current_lsn": "0/9", "replay_lsn": "0/A"}, "0/9", id="a primary writes at its current LSN"),
        pytest.param({"role": PRIMARY}, "", id="a primary of which nothing is known"),
        pytest.param({"role": STANDBY, "receive_lsn": "0/9", "replay_lsn": "0/8"}, "0/9", id="received more than replayed"),
        pytest.param(
            {"role": STANDBY, "receive_lsn": "0/5000000", "replay_lsn": "0/5000148"},
            "0/5000148",
            id="receive fell back to the segment's start after a restart",
        ),
        pytest.param({"role": STANDBY, "replay_lsn": "0/8"}, "0/8", id="never streamed"),
        pytest.param({"role": STANDBY, "receive_lsn": "0/8"}, "0/8", id="nothing replayed"),
        pytest.param({"role": STANDBY, "receive_lsn": "9/0", "replay_lsn": "10/0"}, "10/0", id="by value, not by text"),
        pytest.param({"role": STANDBY, "min_recovery_lsn": "0/7", "current_lsn": "0/9"}, "0/7", id="down: the minimum recovery point"),
        pytest.param({"role": STANDBY, "min_recovery_lsn": "0/0"}, "0/0", id="minimum recovery point of a primary's files"),
        pytest.param({}, "", id="unreachable"),
    ],
)
def test_position_lsn_is_the_greatest_that_is_known(values: dict[str, Any], position: str) -> None:
    assert Node(Member("pg1"), **values).position_lsn == position


@pytest.mark.parametrize(
    ("receiver", "timeline", "streams"),
    [
        pytest.param(Receiver("streaming", received_timeline=2), 2, True, id="same timeline"),
        pytest.param(Receiver("streaming", received_timeline=2), 1, True, id="receives the next timeline, replays the last"),
        pytest.param(Receiver("streaming", received_timeline=1), 2, False, id="an older timeline"),
        pytest.param(Receiver("catchup", received_timeline=2), 2, False, id="catching up"),
        pytest.param(Receiver("waiting", received_timeline=2), 2, False, id="waiting"),
        pytest.param(Receiver(), 0, False, id="no receiver"),
    ],
)
def test_is_streaming_asks_for_status_and_timeline(receiver: Receiver, timeline: int, streams: bool) -> None:
    assert Node(Member("pg1"), timeline=timeline, receiver=receiver).is_streaming is streams


@pytest.mark.parametrize("host", ["pgsql1", "db-1.example.com", "Ärger", "a b'c\"d\\e%f:g", "x" * 70])
def test_slot_name_of_member_is_made_from_its_host(host: str) -> None:
    assert Member(host).slot_name == slot_name_for(host)


def test_node_from_mapping_builds_every_nested_value() -> None:
    observed = {
        "state": "running",
        "role": "standby",
        "timeline": 2,
        "receiver": {"status": "streaming", "received_timeline": 2, "unknown": 1},
        "upstream": {"host": "192.0.2.1", "port": 5433},
        "pending": {"operation": "switchover", "target": "pg2"},
        "senders": [{"application_name": "pg3", "replay_lag_seconds": None}],
        "slots": [{"name": "pg3", "active": True}],
        "pending_restart": ["max_connections"],
        "roles": ["replicator"],
        "settings": {"max_wal_senders": "10"},
        "of_a_later_version": True,
    }
    node = node_from_mapping(Member("pg2"), observed)
    assert (node.state, node.role, node.timeline, node.host) == ("running", "standby", 2, "pg2")
    assert node.receiver == Receiver("streaming", received_timeline=2)
    assert node.upstream == Upstream("192.0.2.1", 5433)
    assert node.pending == Pending("switchover", target="pg2")
    assert node.senders == (Sender("pg3"),)
    assert node.slots == (Slot("pg3", active=True),)
    assert (node.pending_restart, node.roles) == (("max_connections",), ("replicator",))


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param({}, id="nothing observed"),
        pytest.param(
            {"receiver": None, "upstream": None, "pending": None, "senders": None, "slots": None, "roles": None, "timeline": None},
            id="every value is null",
        ),
    ],
)
def test_node_from_mapping_of_nothing_is_unreachable(observed: dict[str, Any]) -> None:
    assert node_from_mapping(Member("pg2"), observed) == Node(Member("pg2"))


def test_node_from_mapping_cannot_replace_the_inventorys_member() -> None:
    assert node_from_mapping(Member("pg2"), {"member": {"host": "pg9"}}).host == "pg2"


def test_node_from_mapping_leaves_what_was_observed_as_it_was() -> None:
    observed = {"senders": [{"application_name": "pg3"}], "address": "192.0.2.7"}
    node_from_mapping(Member("pg2"), observed)
    assert observed == {"senders": [{"application_name": "pg3"}], "address": "192.0.2.7"}


@pytest.mark.parametrize(
    ("configured", "observed", "address"),
    [
        pytest.param("", "192.0.2.7", "192.0.2.7", id="from the host"),
        pytest.param("192.0.2.8", "192.0.2.7", "192.0.2.8", id="pg_address wins"),
        pytest.param("", None, "", id="unknown"),
        pytest.param("", "", "", id="empty"),
    ],
)
def test_node_from_mapping_takes_the_observed_address_where_none_is_configured(configured: str, observed: Any, address: str) -> None:
    assert node_from_mapping(Member("pg2", address=configured), {"address": observed}).member.address == address
