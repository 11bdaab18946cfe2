# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a running cluster change: what a reload does not bring is said, and nothing is restarted unasked."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster, unchanged

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


@pytest.mark.long
def test_a_restart_leaves_a_primary_the_slots_that_it_may_have(set_up: Callable[[int], Cluster]) -> None:
    """With more slots than it may have it would not start, whether it ran when it was looked at or not."""
    cluster = set_up(2)
    cluster.play("initial_setup", "-e", json.dumps({"pg_settings": {"max_replication_slots": 50}}), "-e", "pg_primary_restart=true")
    cluster.sql("pgsql1", "SELECT pg_create_physical_replication_slot('consumer_' || number) FROM generate_series(1, 25) AS number")
    cluster.play("initial_setup", "-e", "pg_primary_restart=true")
    assert {cluster.sql(name, "SHOW max_replication_slots") for name in cluster.names} == {"50"}
    cluster.pg_ctl("pgsql1", "stop", "-m", "fast")
    cluster.play("initial_setup", "-e", "pg_primary_restart=true")
    assert {cluster.sql(name, "SHOW max_replication_slots") for name in cluster.names} == {"50"}

    cluster.sql("pgsql1", "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'consumer%'")
    cluster.play("initial_setup", "-e", json.dumps({"pg_settings": {"max_replication_slots": 12}}), "-e", "pg_primary_restart=true")
    assert cluster.sql("pgsql1", "SHOW max_replication_slots") == "12"
    cluster.assert_replicating("pgsql1")


@pytest.mark.long
def test_a_limit_below_what_a_slot_keeps_is_refused(set_up: Callable[[int], Cluster]) -> None:
    cluster = set_up(2)
    cluster.sql("pgsql1", "SELECT pg_create_physical_replication_slot('consumer', true)")
    cluster.sql("pgsql1", "SELECT pg_logical_emit_message(false, 'x', repeat('y', 3000000))")

    def assert_refused(limit: str, *arguments: str) -> None:
        with unchanged(cluster):
            done = cluster.run("initial_setup", *arguments)
        assert done.returncode != 0, done.output
        assert f"pgsql1: max_slot_wal_keep_size is to be {limit}, and these slots keep more WAL than that: consumer " in done.text, done.output
        assert "Nothing was changed. Set pg_max_slot_wal_keep_size to more" in done.text, done.output
        assert "pg_drop_replication_slot('consumer')" in done.text, done.output

    assert_refused("1", "-e", json.dumps({"pg_settings": {"max_slot_wal_keep_size": 1}}))  # megabytes
    cluster.play("initial_setup", "-e", json.dumps({"pg_settings": {"max_slot_wal_keep_size": -1}}))
    assert_refused("1024kB", "-e", "pg_max_slot_wal_keep_size=1024kB")
    cluster.pg_ctl("pgsql1", "stop", "-m", "fast")
    assert_refused("1024kB", "-e", "pg_max_slot_wal_keep_size=1024kB")
    cluster.play("initial_setup")
    assert cluster.sql("pgsql1", "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'consumer'") == "reserved"
    # What is in force already is no news, and a standby that is away too long must not keep the set-up from copying it anew.
    cluster.sql("pgsql1", "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; SELECT pg_reload_conf()")
    cluster.play("initial_setup", "-e", "pg_max_slot_wal_keep_size=1MB")


def test_a_primary_that_was_down_keeps_the_passwords_that_it_has(set_up: Callable[[int], Cluster]) -> None:
    """Before it was started it could not be asked; without consent no password is replaced all the same."""
    cluster = set_up(2)
    cluster.pg_ctl("pgsql1", "stop", "-m", "fast")
    done = cluster.run("initial_setup", "-e", "pg_rewind_password=another")
    assert done.returncode == 2, done.output
    assert "pgsql1: the role rewinder exists with another password than the vault's. It was started, with its new settings" in done.text, done.output
    cluster.play("initial_setup")
    cluster.assert_replicating("pgsql1")
    checked = cluster.run("initial_setup", "--check", "-e", "pg_rewind_password=another")
    assert "exists with another password than the vault's. Nothing was changed." in checked.text, checked.output
