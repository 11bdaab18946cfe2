# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""failover.yml switches a host off that it cannot reach, by pg_fence_command; where that fails nobody is promoted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster, local_children, unchanged

OUT_OF_REACH = {"pgsql1": {"ansible_connection": "ssh", "ansible_port": 1, "ansible_host": "127.0.0.1"}}


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Cluster:
    return set_up(2)


def fence(*argv: str) -> tuple[str, str]:
    return ("-e", json.dumps({"pg_fence_command": argv}))


def test_failover_whose_fence_command_fails_promotes_nobody(cluster: Cluster) -> None:
    with unchanged(cluster):
        done = cluster.run("failover", *fence("false"), inventory=OUT_OF_REACH)
    assert done.returncode != 0
    assert "did not become primary" in done.text
    assert cluster.primary() == "pgsql1"


def test_failover_in_check_mode_runs_no_fence_command(cluster: Cluster) -> None:
    with unchanged(cluster):
        cluster.play("failover", *fence("touch", str(cluster.state / "fenced")), "--check", inventory=OUT_OF_REACH)
    assert not (cluster.state / "fenced").exists()


def test_failover_of_a_primary_that_answers_runs_no_fence_command(cluster: Cluster) -> None:
    done = cluster.run("failover", *fence("touch", str(cluster.state / "fenced")))
    assert done.returncode != 0 and "is primary and answers" in done.text
    assert not (cluster.state / "fenced").exists()


def test_failover_whose_fence_command_ends_the_primary_promotes(cluster: Cluster) -> None:
    """The command knows the host's variables, and really ends the server."""
    pid = cluster.running_pid("pgsql1")
    children = " ".join(str(each) for each in local_children(pid))
    # One of the children may have ended by then, a session of somebody who asked.
    script = f"test {{{{ inventory_hostname }}}} = pgsql1 && kill -KILL {pid} && {{ kill -KILL {children}; :; }}"
    cluster.play("failover", *fence("sh", "-c", script), inventory=OUT_OF_REACH)
    assert cluster.primary() == "pgsql2"
    cluster.play("start_new_standby")
    cluster.assert_replicating("pgsql2")
