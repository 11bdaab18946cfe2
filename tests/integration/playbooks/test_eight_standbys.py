# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A primary and eight standbys, the most that the documentation promises: set up, handed over, failed over, made whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_primary_and_eight_standbys_go_through_every_role_change(make: Callable[..., Cluster]) -> None:
    cluster = make(9)
    cluster.play("initial_setup")
    cluster.assert_replicating("pgsql1")
    again = cluster.play("initial_setup")
    assert not any(again.changed.values()), again.output
    cluster.play("switchover", "-e", "pg_switchover_to=pgsql9")
    cluster.assert_replicating("pgsql9")
    cluster.sql("pgsql9", "CREATE TABLE kept (number int); INSERT INTO kept VALUES (1)")
    cluster.assert_replicating("pgsql9")
    cluster.crash("pgsql9")
    cluster.play("failover")
    new = cluster.primary()
    assert new != "pgsql9"
    cluster.play("start_new_standby")
    cluster.assert_replicating(new)
    assert {cluster.sql(name, "SELECT number FROM kept") for name in cluster.names} == {"1"}
    text = cluster.play("status").text
    assert "Cluster main: healthy" in text and all(name in text for name in cluster.names)
