# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""failover.yml and initial_setup.yml are killed again and again, each time some tasks further on; a further run ends them."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_initial_setup_killed_again_and_again_ends_well(make: Callable[..., Cluster]) -> None:
    """From nothing; every run gets one task further than the one before it."""
    cluster, tasks = make(2), 0
    while True:
        tasks += 1
        done = cluster.run("initial_setup", kill_after=tasks)
        if "PLAY RECAP" in done.output or tasks > 100:
            break
        assert done.returncode == -signal.SIGKILL, f"{tasks} tasks:\n{done.output}"
    assert 20 < tasks <= 100
    again = cluster.play("initial_setup")
    assert set(again.changed.values()) == {0}
    cluster.assert_replicating("pgsql1")


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)])
def test_failover_killed_again_and_again_ends_well(set_up: Callable[[int], Cluster], every: int) -> None:
    """The primary is dead; every run gets so many tasks further than the one before it."""
    cluster = set_up(2)
    old, new = cluster.primary(), cluster.standby()
    cluster.sql(old, "CREATE TABLE kept (number int)")
    cluster.assert_replicating(old)
    cluster.crash(old)
    tasks, killed = 0, 0
    while True:
        tasks += every
        done = cluster.run("failover", kill_after=tasks)
        if "PLAY RECAP" in done.output or tasks > 60:
            break
        assert done.returncode == -signal.SIGKILL, f"{tasks} tasks:\n{done.output}"
        killed += 1
    assert killed >= 6 / every and tasks <= 60
    assert cluster.primary() == new
    again = cluster.run("failover")
    assert again.returncode == 0 or "is primary and answers" in again.text, again.output
    cluster.play("start_new_standby")
    cluster.assert_replicating(new)
    assert cluster.sql(new, "SELECT count(*) FROM kept") == "0"
