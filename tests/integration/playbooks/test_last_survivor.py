# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary was fenced, its successor is lost for good: the only copy that is left becomes primary again by a failover."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster
from tests.integration.playbooks.test_refusals import refused

pytestmark = pytest.mark.long


def test_fenced_primary_takes_over_when_its_successor_is_lost(set_up: Callable[[int], Cluster]) -> None:
    cluster = set_up(2)
    cluster.sql("pgsql1", "CREATE TABLE kept (number int); INSERT INTO kept VALUES (1)")
    cluster.assert_replicating("pgsql1")
    cluster.crash("pgsql1")
    cluster.play("failover")
    cluster.crash("pgsql2")
    cluster.data("pgsql2").rename(cluster.place("pgsql2") / "lost")
    said = ("no standby can take over", "When nothing but pgsql1 is left, which is fenced: touch boot_guard/allow")
    refused(cluster, "failover", "-e", "pg_failover_unfenced=accept", said=said)
    (cluster.own_state("pgsql1") / "boot_guard" / "allow").touch()
    cluster.pg_ctl("pgsql1", "start")
    assert cluster.sql("pgsql1", "SELECT pg_is_in_recovery()") == "t"
    cluster.play("failover", "-e", "pg_failover_unfenced=accept")
    cluster.play("start_new_standby")
    cluster.assert_replicating("pgsql1")
    assert cluster.sql("pgsql2", "SELECT number FROM kept") == "1"
