# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""heal.yml is killed between any two tasks; the same command once more ends it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Cluster:
    """Two nodes with a table."""
    made = set_up(2)
    made.sql("pgsql1", "CREATE TABLE written (number serial, by text)")
    return made


@pytest.mark.parametrize("keep", ["newest", "older", "certain"])
def test_heal_killed_once_more_after_each_task_ends_well(cluster: Cluster, keep: str) -> None:
    """Every run gets one task further than the one before it; what is lost is in a report, whenever the runs died."""
    points = cluster.kill_points("heal")
    old, new = cluster.primary(), cluster.standby()
    cluster.assert_replicating(old)
    cluster.sql(new, "SELECT pg_promote()")
    xids = {new: int(cluster.sql(new, "INSERT INTO written (by) VALUES ('new') RETURNING xmin::text"))}
    if keep != "certain":
        xids[old] = int(cluster.sql(old, "INSERT INTO written (by) VALUES ('old') RETURNING xmin::text"))
    kept, loser = (old, new) if keep == "older" else (new, old)
    arguments = () if keep == "certain" else ("-e", f"pg_heal_keep={kept}")
    before = set(cluster.own_state(loser).glob("reports/*.json"))
    for tasks in points:
        done = cluster.run("heal", *arguments, kill_after=tasks)
        assert done.returncode == -signal.SIGKILL, f"{tasks} tasks:\n{done.output}"
    cluster.play("heal", *arguments)
    cluster.assert_replicating(kept)
    rows = "SELECT by, count(*) FROM written GROUP BY 1 ORDER BY 1"
    assert cluster.sql(loser, rows) == cluster.sql(kept, rows)
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in set(cluster.own_state(loser).glob("reports/*.json")) - before]
    reported = [entry["xid"] for report in reports for entry in report["transactions"]]
    assert set(reported) == ({xids[loser]} if loser in xids else set())
