# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""start_new_standby.yml is killed between any two tasks, and inside its module; a second run ends it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster, kill_tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Cluster:
    """Two nodes with a table of numbers."""
    made = set_up(2)
    made.sql("pgsql1", "CREATE TABLE numbers (number serial, origin text)")
    return made


def diverge(cluster: Cluster) -> tuple[str, str]:
    """Crash the primary with a row that no standby has, and promote the standby; returns (dead, new primary)."""
    dead, alive = cluster.primary(), cluster.standby()
    cluster.pg_ctl(alive, "stop", "-m", "fast")
    cluster.sql(dead, "INSERT INTO numbers (origin) VALUES ('lost')")
    cluster.crash(dead)
    cluster.pg_ctl(alive, "start")
    cluster.sql(alive, "SELECT pg_promote()")
    cluster.sql(alive, "INSERT INTO numbers (origin) VALUES ('kept')")
    return dead, alive


def assert_back(cluster: Cluster, back: str, primary: str) -> None:
    """The node streams, shows the primary's rows and not its own, and what it lost is in one report."""
    cluster.assert_replicating(primary)
    rows = "SELECT origin, count(*) FROM numbers GROUP BY 1 ORDER BY 1"
    assert cluster.sql(back, rows) == cluster.sql(primary, rows)
    assert "lost" not in cluster.sql(back, rows)
    assert list(cluster.own_state(back).glob("reports/*-lost-transactions.json"))


def test_start_new_standby_killed_once_more_after_each_task_ends_well(cluster: Cluster) -> None:
    """Every run gets one task further than the one before it."""
    points = cluster.kill_points("start_new_standby")
    back, primary = diverge(cluster)
    for tasks in points:
        done = cluster.run("start_new_standby", kill_after=tasks)
        assert done.returncode == -signal.SIGKILL, f"{tasks} tasks:\n{done.output}"
    cluster.play("start_new_standby")
    assert_back(cluster, back, primary)


@pytest.mark.long
def test_start_new_standby_killed_after_each_task_that_acts_ends_well(cluster: Cluster) -> None:
    """From the rewind on each kill gets a cluster of its own; before it the test above sees the same states."""
    killed = 0
    points = cluster.kill_points("start_new_standby")
    back, primary = diverge(cluster)
    for tasks in points:
        if killed:
            back, primary = diverge(cluster)
        first = cluster.run("start_new_standby", kill_after=tasks)
        if cluster.pid(back) == 0:
            continue
        if "PLAY RECAP" in first.output:
            break
        assert first.returncode == -signal.SIGKILL, f"{tasks} tasks:\n{first.output}"
        second = cluster.run("start_new_standby")
        assert second.returncode == 0, f"after {tasks} tasks:\n{first.output}\n{second.output}"
        assert_back(cluster, back, primary)
        killed += 1
    assert killed >= 2
    assert_back(cluster, back, primary)


@pytest.mark.parametrize("note", [pytest.param("fenced", marks=pytest.mark.long), "rewind"])
def test_start_new_standby_killed_inside_a_rewind_ends_well(cluster: Cluster, note: str) -> None:
    """All processes of the run die at once, pg_rewind too."""
    back, primary = diverge(cluster)
    kill_when(cluster, (cluster.own_state(back) / f"{note}.json").exists)
    cluster.play("start_new_standby")
    assert_back(cluster, back, primary)


@pytest.mark.parametrize("moment", ["copying", pytest.param("swapped", marks=pytest.mark.long)])
def test_start_new_standby_killed_inside_a_copy_ends_well(cluster: Cluster, moment: str) -> None:
    """The data directory is gone, so that only a copy helps."""
    cluster.play("start_new_standby")
    back, primary = cluster.standby(), cluster.primary()
    cluster.pg_ctl(back, "stop", "-m", "fast")
    shutil.rmtree(cluster.data(back))
    copy = cluster.place(back) / "data.clone"
    reached = {"copying": (copy / "base").exists, "swapped": (cluster.data(back) / "PG_VERSION").exists}[moment]
    kill_when(cluster, reached)
    cluster.play("start_new_standby")
    cluster.assert_replicating(primary)
    assert not copy.exists()


def kill_when(cluster: Cluster, reached: Callable[[], bool]) -> None:
    """Start the playbook and kill all of it as soon as `reached` says so."""
    process = cluster.start("start_new_standby", output=subprocess.DEVNULL)
    while process.poll() is None and not reached():
        time.sleep(0.0005)
    kill_tree(process.pid)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
