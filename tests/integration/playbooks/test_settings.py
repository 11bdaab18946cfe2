# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a running cluster change: what a reload does not bring is said, and nothing is restarted unasked."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster

LOGICAL = ("-e", json.dumps({"pg_settings": {"wal_level": "logical", "max_wal_senders": 25}}), "-e", "pg_primary_restart=true")
MORE = ("-e", json.dumps({"pg_settings": {"max_connections": 130, "work_mem": "5MB"}}))
ADDRESSES = {"listen_addresses": "0.0.0.0"}
OTHERS = ("-e", json.dumps({"pg_settings": {**ADDRESSES, "wal_log_hints": "off"}}))


@pytest.mark.long
def test_a_setting_that_needs_a_restart_is_said_on_each_host_and_comes_with_consent(set_up: Callable[[int], Cluster]) -> None:
    cluster = set_up(2)
    before = {name: cluster.pid(name) for name in cluster.names}
    said = cluster.play("initial_setup", *MORE).text
    for name in cluster.names:
        assert f"{name}: max_connections will be as written after the next restart" in said, said
        assert cluster.sql(name, "SHOW work_mem") == "5MB"
    assert {name: cluster.pid(name) for name in cluster.names} == before

    cluster.play("initial_setup", *MORE, "-e", "pg_primary_restart=true")
    for name in cluster.names:
        assert cluster.sql(name, "SHOW max_connections") == "130"
    cluster.assert_replicating("pgsql1")


@pytest.mark.long
def test_a_primary_that_is_down_keeps_what_its_logical_slots_and_standbys_need(set_up: Callable[[int], Cluster]) -> None:
    """Its files alone say that it ran with more than the inventory asks for; with wal_level=replica it would not start."""
    cluster = set_up(2)
    cluster.play("initial_setup", *LOGICAL)
    cluster.sql("pgsql1", "SELECT pg_create_logical_replication_slot('subscriber', 'pgoutput')")
    cluster.pg_ctl("pgsql1", "stop", "-m", "fast")
    cluster.play("initial_setup")
    assert [cluster.sql("pgsql1", f"SHOW {name}") for name in ("wal_level", "max_wal_senders")] == ["logical", "25"]
    cluster.sql("pgsql1", "SELECT pg_drop_replication_slot('subscriber')")
    cluster.assert_replicating("pgsql1")


@pytest.mark.long
def test_set_up_again_with_other_addresses_and_without_hints_changes_nothing(set_up: Callable[[int], Cluster]) -> None:
    cluster = set_up(2)
    cluster.play("initial_setup", *OTHERS, "-e", "pg_primary_restart=true")
    assert [cluster.sql("pgsql1", f"SHOW {name}") for name in ("listen_addresses", "wal_log_hints")] == ["0.0.0.0", "off"]
    again = cluster.play("initial_setup", *OTHERS)
    assert not any(again.changed.values()), again.output
    # Checksums do what the hints are for: no need to agree to a restart.
    said = cluster.play("initial_setup", "-e", json.dumps({"pg_settings": ADDRESSES})).text
    assert "pgsql1: wal_log_hints will be as written after the next restart" in said, said
