# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A consumer of a failover slot goes on at each new primary: it has every row of the table there once, and no other.

The tests build on each other, in this order, on PostgreSQL 18.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.playbooks.cluster import Cluster, unchanged, wait_for, writing

HERE = Path(__file__).resolve().parent
LOGICAL = ("-e", json.dumps({"pg_settings": {"wal_level": "logical"}}))
NEW_SLOT = "SELECT pg_create_logical_replication_slot('{0}', 'pgoutput', failover => {1})"


@pytest.fixture(scope="module")
def cluster(make: Callable[..., Cluster]) -> Cluster:
    made = make(3, programs="pip")
    made.play("initial_setup", *LOGICAL)
    return made


def copied(cluster: Cluster, standby: str, slot: str) -> bool:
    """Whether a standby has all of the slot. The standby waits for a snapshot of running transactions, which a quiet primary writes rarely."""
    cluster.sql(cluster.primary(), "SELECT pg_log_standby_snapshot()")
    return cluster.sql(standby, f"SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = '{slot}'") == "t"


def wait_copied(cluster: Cluster, slot: str) -> None:
    for standby in cluster.names:
        if standby != cluster.primary():
            # The worker that looks after slots sleeps for half a minute when nothing happens.
            wait_for(lambda standby=standby: copied(cluster, standby, slot), f"{slot} on {standby}", timeout_seconds=45)


def waits_for(cluster: Cluster) -> str:
    return cluster.sql(cluster.primary(), "SHOW synchronized_standby_slots")


@contextmanager
def frozen(cluster: Cluster, backend: str) -> Iterator[None]:
    """Have one kind of process on all standbys do nothing."""
    statement = f"SELECT pid FROM pg_stat_activity WHERE backend_type = '{backend}'"
    pids = [int(cluster.sql(name, statement)) for name in cluster.names if name != cluster.primary()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def consuming(cluster: Cluster) -> Iterator[None]:
    """Have a consumer read the slot `consumer` of the primary, whichever it is, while the block runs."""
    program = (HERE / "consumer.py").read_text(encoding="utf-8")
    with (cluster.state / "consumed").open("w") as output, (cluster.state / "consumer.log").open("w") as log:
        argv = [cluster.local.interpreter, "-c", program, cluster.conninfo, "consumer", "numbers"]
        client = subprocess.Popen(argv, cwd="/", env={"PATH": "/usr/bin:/bin"}, stdout=output, stderr=log, **cluster.switch)
        try:
            yield
        finally:
            client.kill()
            client.wait()


def consumed(cluster: Cluster) -> list[str]:
    return [line.split()[1] for line in (cluster.state / "consumed").read_text(encoding="ascii").split("\n")[:-1]]


def test_initial_setup_has_standbys_copy_slots(cluster: Cluster) -> None:
    for name in cluster.names:
        assert cluster.sql(name, "SHOW sync_replication_slots") == "on"
        assert cluster.sql(name, "SHOW hot_standby_feedback") == "on"
    assert waits_for(cluster) == "pgsql2,pgsql3"
    assert "synchronized" not in (cluster.data("pgsql2") / "postgresql.auto.conf").read_text(encoding="utf-8")
    with unchanged(cluster):
        again = cluster.play("initial_setup", *LOGICAL)
    assert not any(again.changed.values()), again.output


def test_switchover_to_a_standby_without_the_slot_is_refused(cluster: Cluster) -> None:
    with frozen(cluster, "slotsync worker"):
        cluster.sql("pgsql1", NEW_SLOT.format("unready", "true"))
        with unchanged(cluster):
            done = cluster.run("switchover", "-e", "pg_switchover_to=pgsql2", *LOGICAL)
    assert done.returncode == 2, done.output
    assert "pgsql2: does not have the failover slot unready of pgsql1 (observed: no copy; required: a synced copy)" in done.text
    assert "pg_accept_slot_loss=true" in done.text
    cluster.sql("pgsql1", "SELECT pg_drop_replication_slot('unready')")


def test_consumer_loses_and_repeats_nothing_in_switchover_and_failover(cluster: Cluster) -> None:
    cluster.sql("pgsql1", "CREATE PUBLICATION numbers FOR ALL TABLES")
    cluster.sql("pgsql1", NEW_SLOT.format("consumer", "true"))
    cluster.sql("pgsql1", NEW_SLOT.format("left_behind", "false"))
    with consuming(cluster):
        with writing(cluster):
            hand_over(cluster)
            crash_and_take_over(cluster)
            cluster.play("start_new_standby", *LOGICAL)
            assert waits_for(cluster) == ",".join(name for name in cluster.names if name != cluster.primary())
            wait_copied(cluster, "consumer")
            cluster.play("switchover", "-e", "pg_switchover_to=pgsql2", *LOGICAL)
            wait_for_rows(cluster)
        stored = cluster.stored_rows("pgsql2")
        wait_for(lambda: len(consumed(cluster)) >= len(stored), "the consumer to come to the end")
        rows = consumed(cluster)
    assert len(rows) == len(set(rows)), f"came twice: {sorted({row for row in rows if rows.count(row) > 1})}"
    assert set(rows) == stored, f"missing: {sorted(stored - set(rows))}; not in the table: {sorted(set(rows) - stored)}"
    assert rows == sorted(rows, key=int)


def hand_over(cluster: Cluster) -> None:
    wait_copied(cluster, "consumer")
    done = cluster.play("switchover", "-e", "pg_switchover_to=pgsql2", *LOGICAL)
    assert "logical slot left_behind of pgsql1 does not go along: pgsql2 has no copy" in done.text
    assert "pgsql1 keeps WAL for logical slot left_behind" in done.text
    assert waits_for(cluster) == "pgsql1,pgsql3"
    wait_for_rows(cluster)


def crash_and_take_over(cluster: Cluster) -> None:
    """The primary is killed when it has acknowledged rows that no standby has: the consumer must not have them either."""
    wait_copied(cluster, "consumer")
    acknowledged = len(cluster.acknowledged_rows())
    senders = [int(pid) for pid in cluster.sql("pgsql2", "SELECT pid FROM pg_stat_replication WHERE application_name LIKE 'pgsql_'").split()]
    for pid in senders:
        os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: len(cluster.acknowledged_rows()) > acknowledged + 50, "rows that no standby has")
    for pid in (cluster.running_pid("pgsql2"), *senders):  # in this order: a server that loses a process alone starts all of them again
        os.kill(pid, signal.SIGKILL)
    cluster.play("failover", *LOGICAL)
    new = cluster.primary()
    assert len(cluster.acknowledged_rows() - cluster.stored_rows(new)) > 20, "the standbys were not behind"
    assert waits_for(cluster) == ("pgsql3" if new == "pgsql1" else "pgsql1")
    wait_for_rows(cluster)


def wait_for_rows(cluster: Cluster) -> None:
    before = len(consumed(cluster))
    wait_for(lambda: len(consumed(cluster)) > before + 20, "the consumer to go on")


def test_status_after_all_of_it_is_healthy(cluster: Cluster) -> None:
    cluster.play("status", *LOGICAL)


@pytest.mark.long
def test_initial_setup_that_does_not_name_wal_level_keeps_logical(cluster: Cluster) -> None:
    """With less, a server that has logical slots would not start again."""
    with unchanged(cluster):
        again = cluster.play("initial_setup")
    assert not any(again.changed.values()), again.output
