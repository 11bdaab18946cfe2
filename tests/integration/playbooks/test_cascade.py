# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A standby that follows another standby, when that one dies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster

pytestmark = pytest.mark.long

CASCADE = {"pgsql3": {"pg_upstream": "pgsql2"}}


def test_start_new_standby_brings_a_dead_parent_and_its_child_back_in_one_run(set_up: Callable[[int], Cluster]) -> None:
    cluster = set_up(3)
    cluster.play("initial_setup", inventory=CASCADE)
    cluster.crash("pgsql2")
    cluster.play("start_new_standby", "-e", "pg_start_timeout_seconds=20", inventory=CASCADE)
    assert cluster.sql("pgsql2", "SELECT application_name FROM pg_stat_replication") == "pgsql3"
    assert cluster.sql("pgsql1", "SELECT application_name FROM pg_stat_replication") == "pgsql2"
    cluster.play("status", inventory=CASCADE)
