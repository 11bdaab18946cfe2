# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modes that the other tests do not set: encryption without checking names and its end, two confirming standbys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.playbooks.cluster import Cluster, wait_for
from tests.integration.playbooks.test_rotate_secrets import let_encrypt, secrets, senders

pytestmark = pytest.mark.long

NAMES = ("pgsql1", "pgsql2", "pgsql3")
LINES = "SELECT DISTINCT type FROM pg_hba_file_rules WHERE 'replicator' = ANY (user_name) ORDER BY 1"


def encrypted(cluster: Cluster) -> list[str]:
    """The standbys that stream encrypted."""
    return [line.split("|")[0] for line in senders(cluster) if line.endswith("|t")]


def test_a_running_cluster_is_encrypted_and_no_longer(set_up: Callable[[int], Cluster]) -> None:
    cluster = let_encrypt(set_up(2))
    cluster.play("initial_setup", *secrets(cluster, pg_tls="on"))
    wait_for(lambda: encrypted(cluster) == ["pgsql2"], "an encrypted stream")
    assert cluster.sql("pgsql1", LINES) == "hostssl"
    cluster.play("switchover", *secrets(cluster, pg_tls="on"))
    cluster.assert_replicating("pgsql2")
    assert encrypted(cluster) == ["pgsql1"]
    cluster.play("switchover", *secrets(cluster, pg_tls="on"))
    started = {name: cluster.pid(name) for name in cluster.names}
    cluster.play("initial_setup", *secrets(cluster, pg_tls="off"))
    assert {name: cluster.pid(name) for name in cluster.names} == started
    assert cluster.sql("pgsql1", LINES) == "host"
    cluster.assert_replicating("pgsql1")
    again = cluster.play("initial_setup", *secrets(cluster, pg_tls="off"))
    assert not any(again.changed.values()), again.output
    cluster.play("switchover", *secrets(cluster, pg_tls="off"))
    cluster.assert_replicating("pgsql2")


def two(mode: str) -> dict[str, dict[str, Any]]:
    return {name: {"pg_synchronous_mode": mode, "pg_synchronous_num": 2, "pg_start_timeout_seconds": 20} for name in NAMES}


@pytest.mark.parametrize(("mode", "state"), [("first", "sync"), ("any", "quorum")])
def test_two_standbys_confirm_each_commit(set_up: Callable[[int], Cluster], mode: str, state: str) -> None:
    cluster = set_up(3)
    cluster.play("initial_setup", inventory=two(mode))
    working = f"SELECT count(*) FROM pg_stat_replication WHERE sync_state = '{state}' AND state = 'streaming'"
    wait_for(lambda: cluster.sql("pgsql1", working) == "2", "both standbys to confirm")
    assert cluster.sql("pgsql1", "SHOW synchronous_standby_names") == f'{mode.upper()} 2 ("pgsql2", "pgsql3")'
    cluster.play("switchover", "-e", "pg_switchover_to=pgsql3", inventory=two(mode))
    wait_for(lambda: cluster.sql("pgsql3", working) == "2", "both standbys of the new primary to confirm")
    cluster.sql("pgsql3", "CREATE TABLE confirmed (number int)")
    cluster.crash("pgsql3")
    cluster.play("failover", inventory=two(mode))
    assert cluster.sql(cluster.primary(), "SELECT to_regclass('confirmed') IS NOT NULL") == "t"
    cluster.play("start_new_standby", inventory=two(mode))
    new = cluster.primary()
    wait_for(lambda: cluster.sql(new, working) == "2", "both standbys to confirm again")
    cluster.play("status", inventory=two(mode))
