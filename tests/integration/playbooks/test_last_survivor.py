# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One copy of the data is left: a fenced primary becomes primary again by a failover; a promoted server that is down is not taken for a stranger's."""

from __future__ import annotations

import shutil
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


@pytest.mark.long
def test_set_up_beside_a_promoted_server_that_is_down_waits_for_it(set_up: Callable[[int], Cluster]) -> None:
    cluster = set_up(2)
    cluster.sql("pgsql1", "CREATE TABLE kept (number int); INSERT INTO kept VALUES (1)")
    cluster.assert_replicating("pgsql1")
    cluster.crash("pgsql1")
    cluster.play("failover")
    cluster.pg_ctl("pgsql2", "stop", "-m", "fast")
    for path in (cluster.data("pgsql1"), cluster.own_state("pgsql1")):  # its machine was replaced
        shutil.rmtree(path)
    said = ("it cannot be told which node is the primary", "pgsql2 primary stopped", "where its last primary is down, start that first")
    refused(cluster, "initial_setup", "-e", "pg_standby_replace_data=true", said=said)
    cluster.pg_ctl("pgsql2", "start")
    cluster.play("initial_setup")
    cluster.assert_replicating("pgsql2")
    assert cluster.sql("pgsql1", "SELECT number FROM kept") == "1"
