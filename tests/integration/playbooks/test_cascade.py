# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Switchovers from a primary that as a standby belongs below another one than the new primary."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster

BELOW = {"pgsql1": {"pg_upstream": "pgsql2"}}
PARENT = "SELECT sender_port || ' ' || slot_name FROM pg_stat_wal_receiver WHERE status = 'streaming'"
SLOTS = "SELECT coalesce(string_agg(slot_name, ' ' ORDER BY slot_name), '') FROM pg_replication_slots"


@pytest.mark.long
def test_switchover_from_a_primary_with_an_upstream_puts_it_there(set_up: Callable[[int], Cluster]) -> None:
    cluster = set_up(3)
    cluster.play("switchover", "-e", "pg_switchover_to=pgsql3", inventory=BELOW)
    assert cluster.sql("pgsql1", PARENT) == f"{cluster.sql('pgsql2', 'SHOW port')} pgsql1"
    assert {name: cluster.sql(name, SLOTS) for name in cluster.names} == {"pgsql1": "", "pgsql2": "pgsql1", "pgsql3": "pgsql2"}
    cluster.play("switchover", "-e", "pg_switchover_to=pgsql2", inventory=BELOW)
    cluster.assert_replicating("pgsql2")
