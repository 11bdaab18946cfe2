# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a running cluster change: what a reload does not bring is said, and nothing is restarted unasked."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.integration.playbooks.cluster import Cluster

MORE = ("-e", json.dumps({"pg_settings": {"max_connections": 130, "work_mem": "5MB"}}))


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
