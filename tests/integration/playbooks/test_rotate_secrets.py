# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""rotate_secrets.yml changes the passwords of a running cluster, and is killed on the way; a client writes all the time."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.integration.playbooks.cluster import Cluster, Done, wait_for, writing

KILLED_EVERY = 9


@pytest.fixture(scope="module")
def cluster(make: Callable[..., Cluster]) -> Iterator[Cluster]:
    made = make(2)
    made.play("initial_setup")
    with writing(made):
        yield made


def rotate(cluster: Cluster, password: str, *, kill_after: int = 0) -> Done:
    """Run rotate_secrets.yml as if the vault had these passwords."""
    secrets = cluster.state / "secrets.json"
    secrets.touch(mode=0o600)
    secrets.write_text(json.dumps({"pg_replication_password": password, "pg_rewind_password": password + " of rewind"}), encoding="utf-8")
    return cluster.run("rotate_secrets", "-e", f"@{secrets}", kill_after=kill_after)


def logs_in(cluster: Cluster, name: str, password: str) -> bool:
    """Whether the replication role gets in with this password, over TCP as a peer does."""
    port = cluster.local.nodes[name].port
    conninfo = f"host=127.0.0.1 port={port} user=replicator replication=true dbname=postgres connect_timeout=3"
    script = 'IFS= read -r PGPASSWORD; export PGPASSWORD; exec "$0" -XAtqw -d "$1" -c IDENTIFY_SYSTEM'
    done = cluster.run_as_owner("sh", "-c", script, cluster.program("psql"), conninfo, stdin=password + "\n")
    return done.returncode == 0


def test_new_passwords_replace_the_old_ones_and_nothing_stops(cluster: Cluster) -> None:
    before = len(cluster.acknowledged_rows())
    done = rotate(cluster, "first 'new\\ \"one\" é")
    assert done.returncode == 0, done.output
    assert "proven" in done.text
    assert "first 'new" not in done.output
    assert logs_in(cluster, "pgsql1", "first 'new\\ \"one\" é")
    assert not logs_in(cluster, "pgsql1", "first")
    cluster.assert_replicating("pgsql1")
    assert len(cluster.acknowledged_rows()) > before
    cluster.play("switchover")
    cluster.play("switchover")


def test_killed_on_the_way_it_is_repeated(cluster: Cluster) -> None:
    for number in range(2, 200, KILLED_EVERY):
        password = f"secret number {number}"
        killed = rotate(cluster, password, kill_after=number)
        if killed.returncode != -signal.SIGKILL:
            assert killed.returncode == 0, killed.output
            break
        cluster.assert_replicating("pgsql1")
        done = rotate(cluster, password)
        assert done.returncode == 0, f"after {number} tasks:\n{done.output}"
        assert logs_in(cluster, "pgsql1", password)
    cluster.assert_replicating("pgsql1")


def test_a_server_that_is_down_is_brought_back_first(cluster: Cluster) -> None:
    cluster.pg_ctl("pgsql2", "stop", "-m", "fast")
    before = cluster.snapshot()
    refused = rotate(cluster, "too early")
    assert refused.returncode != 0
    assert "pgsql2 stopped" in refused.text and "start_new_standby.yml" in refused.text
    assert cluster.snapshot() == before
    cluster.play("start_new_standby")


def test_rotations_lost_no_acknowledged_row(cluster: Cluster) -> None:
    """The last test of this file: the client wrote through all of the above."""
    acknowledged = cluster.acknowledged_rows()
    for name in cluster.names:
        wait_for(lambda name=name: acknowledged <= cluster.stored_rows(name), f"{name} to hold {len(acknowledged)} acknowledged rows")
