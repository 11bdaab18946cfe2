# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""switchover.yml is killed between any two tasks, and inside its module, while a client writes; a second run ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.playbooks.cluster import Cluster, kill_tree, wait_for, writing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Iterator[Cluster]:
    """Two nodes, with a client that writes to the primary all the time."""
    made = set_up(2)
    with writing(made):
        yield made


def roles(cluster: Cluster) -> tuple[str, str]:
    """Return primary and standby."""
    return cluster.primary(), cluster.standby()


def has_begun(cluster: Cluster, source: str) -> bool:
    """Whether an earlier run has done anything that a new run would have to find."""
    return (cluster.own_state(source) / "pending.json").exists() or cluster.pid(source) == 0 or cluster.primary() != source


def test_switchover_killed_after_each_task_is_finished_by_the_next_run(cluster: Cluster) -> None:
    killed_after_change = 0
    for tasks in cluster.kill_points("switchover"):
        source, target = roles(cluster)
        killed = cluster.run("switchover", kill_after=tasks)
        assert killed.returncode == -signal.SIGKILL, killed.output
        if not has_begun(cluster, source):
            continue  # nothing but questions so far: the next kill starts from the same state
        if "PLAY RECAP" in killed.output:
            break  # that was the last task: the run was complete, and another one would be a switchover of its own
        finished = cluster.run("switchover")
        assert finished.returncode == 0, f"after {tasks} tasks:\n{killed.output}\n{finished.output}"
        assert cluster.primary() == target, f"after {tasks} tasks the second run switched back:\n{finished.output}"
        cluster.assert_replicating()
        killed_after_change += 1
    assert killed_after_change >= 2
    cluster.assert_replicating()


@pytest.mark.long
def test_switchover_to_a_node_killed_once_more_after_each_task_ends_there(cluster: Cluster) -> None:
    """Every run gets one task further than the one before it."""
    points = cluster.kill_points("switchover")
    target = cluster.standby()
    for tasks in points:
        done = cluster.run("switchover", "-e", f"pg_switchover_to={target}", kill_after=tasks)
        assert done.returncode == -signal.SIGKILL, f"{tasks} tasks:\n{done.output}"
    cluster.play("switchover", "-e", f"pg_switchover_to={target}")
    cluster.assert_replicating(target)


def moments(cluster: Cluster, source: str, target: str) -> dict[str, Callable[[], bool]]:
    """Return how to see, from outside, how far a hand-over is."""
    armed = cluster.own_state(source) / "pending.json"
    pid_file = cluster.data(source) / "postmaster.pid"
    recovering = cluster.data(target) / "standby.signal"
    return {
        "armed": armed.exists,
        "stopped": lambda: not pid_file.exists(),
        "promoted": lambda: not recovering.exists(),
        "started_again": lambda: not recovering.exists() and pid_file.exists(),
    }


@pytest.mark.parametrize("moment", ["armed", "promoted", *(pytest.param(moment, marks=pytest.mark.long) for moment in ("stopped", "started_again"))])
def test_switchover_killed_inside_its_module_is_finished_by_the_next_run(cluster: Cluster, moment: str) -> None:
    """All processes of the run die at once, the module's too, as when both machines' processes are killed."""
    source, target = roles(cluster)
    reached = moments(cluster, source, target)[moment]
    process = cluster.start("switchover", output=subprocess.DEVNULL)
    while process.poll() is None and not reached():
        time.sleep(0.0005)
    kill_tree(process.pid)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    finished = cluster.run("switchover")
    assert finished.returncode == 0, finished.output
    assert cluster.primary() == target
    cluster.assert_replicating()


def test_switchover_whose_controller_is_killed_inside_the_module_ends_well(cluster: Cluster) -> None:
    """Only ansible-playbook dies; what it started on the host goes on by itself."""
    source, target = roles(cluster)
    process = cluster.start("switchover", output=subprocess.DEVNULL)
    wait_for((cluster.own_state(source) / "pending.json").exists, "the hand-over to begin")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not Path(cluster.data(target), "standby.signal").exists(), "the promotion")
    wait_for(lambda: cluster.pid(source) != 0, "the old primary to start again")
    cluster.play("switchover")
    assert cluster.primary() == target
    cluster.assert_replicating()


def test_switchover_repeated_at_once_behind_its_controller_waits_for_what_goes_on(cluster: Cluster) -> None:
    source, target = roles(cluster)
    process = cluster.start("switchover", output=subprocess.DEVNULL)
    wait_for((cluster.own_state(source) / "pending.json").exists, "the hand-over to begin")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cluster.play("switchover", "-e", f"pg_switchover_to={target}")
    assert cluster.primary() == target
    cluster.assert_replicating()


def test_switchovers_lost_no_acknowledged_row(cluster: Cluster) -> None:
    """The last test of this file: the client wrote through all of the above."""
    acknowledged = cluster.acknowledged_rows()
    assert len(acknowledged) > 100
    for name in cluster.names:
        wait_for(lambda name=name: acknowledged <= cluster.stored_rows(name), f"{name} to hold {len(acknowledged)} acknowledged rows")
