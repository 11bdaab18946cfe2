# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Synchronous replication through set-up and role changes: who confirms, when commits wait, that nothing confirmed is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.playbooks.cluster import Cluster, wait_for, writing

NAMES = ("pgsql1", "pgsql2", "pgsql3")


# With what a role's name may hold that community.postgresql can write.
ROLES = {"pg_replication_user": "strea:mer's #1_ü", "pg_rewind_user": "Re:wind\\er of x.y "}


def variables(**more: Any) -> dict[str, dict[str, Any]]:
    return {name: {"pg_synchronous_mode": "any", "pg_start_timeout_seconds": 20, **ROLES, **more} for name in NAMES}


@pytest.fixture(scope="module")
def cluster(make: Callable[..., Cluster]) -> Iterator[Cluster]:
    made = make(3)
    made.play("initial_setup", inventory=variables())
    with writing(made):
        yield made


def synchronous_set(cluster: Cluster, name: str) -> str:
    return cluster.sql(name, "SHOW synchronous_standby_names")


def all_but(*away: str) -> str:
    return "ANY 1 ({})".format(", ".join(f'"{name}"' for name in NAMES if name not in away))


def assert_armed(cluster: Cluster) -> None:
    """Every node names all the others, the primary's are at work, and a commit comes back."""
    for name in NAMES:
        assert synchronous_set(cluster, name) == all_but(name)
    working = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum' AND state = 'streaming'"
    wait_for(lambda: cluster.sql(cluster.primary(), working) == "2", "both standbys to confirm")
    before = len(cluster.acknowledged_rows())
    wait_for(lambda: len(cluster.acknowledged_rows()) > before, "a commit to be confirmed")


def assert_nothing_lost(cluster: Cluster) -> None:
    acknowledged = cluster.acknowledged_rows()
    assert acknowledged <= cluster.stored_rows(cluster.primary()), "a confirmed row is lost"


def test_initial_setup_arms_every_node(cluster: Cluster) -> None:
    assert_armed(cluster)
    assert cluster.sql("pgsql1", "SHOW synchronous_commit") == "on"
    shown = cluster.play("status", inventory=variables())
    assert "quorum" in shown.text and "healthy" in shown.text
    assert "sync_state quorum" in cluster.play("verify", inventory=variables()).text


@pytest.mark.long
def test_initial_setup_again_changes_nothing(cluster: Cluster) -> None:
    again = cluster.play("initial_setup", inventory=variables())
    assert set(again.changed.values()) == {0}, again.output


def test_switchover_loses_nothing_and_leaves_no_commit_waiting(cluster: Cluster) -> None:
    cluster.play("switchover", "-e", "pg_switchover_to=pgsql2", inventory=variables())
    assert cluster.primary() == "pgsql2"
    assert_armed(cluster)
    assert_nothing_lost(cluster)


def test_failover_loses_no_confirmed_commit_and_drops_the_old_primary_from_the_set(cluster: Cluster) -> None:
    cluster.crash("pgsql2")
    done = cluster.play("failover", inventory=variables())
    new = cluster.primary()
    assert "every commit that synchronous standbys confirmed" in done.text
    assert_nothing_lost(cluster)
    assert synchronous_set(cluster, new) == all_but(new, "pgsql2")
    cluster.play("start_new_standby", inventory=variables())
    cluster.assert_replicating(new)
    assert_armed(cluster)


def test_failover_is_refused_while_it_is_not_certain_who_has_every_commit(cluster: Cluster) -> None:
    """One of two standbys confirms a commit, so the one that is left may not be it."""
    old = cluster.primary()
    gone, _left = (name for name in NAMES if name != old)
    cluster.pg_ctl(gone, "stop", "-m", "immediate")
    cluster.crash(old)
    before = cluster.snapshot()
    refused = cluster.run("failover", inventory=variables())
    assert refused.returncode != 0
    assert "it cannot be told whether it has every confirmed commit" in refused.text
    assert "pg_accept_synchronous_loss=true" in refused.text
    assert cluster.snapshot() == before
    cluster.pg_ctl(gone, "start")
    cluster.play("failover", inventory=variables())
    assert_nothing_lost(cluster)
    cluster.play("start_new_standby", inventory=variables())
    assert_armed(cluster)


def test_failover_to_a_host_outside_the_set_is_refused(cluster: Cluster) -> None:
    members = ["pgsql1", "pgsql2", "pgsql3"]
    outside = next(name for name in NAMES if name != cluster.primary())
    chosen = variables(pg_synchronous_members=[name for name in members if name != outside])
    cluster.play("heal", inventory=chosen)
    old = cluster.primary()
    assert outside not in synchronous_set(cluster, old)
    cluster.crash(old)
    refused = cluster.run("failover", "-e", f"pg_failover_to={outside}", inventory=chosen)
    assert refused.returncode != 0
    assert "is not in the synchronous set" in refused.text
    cluster.play("failover", inventory=chosen)
    assert cluster.primary() not in (old, outside)
    assert_nothing_lost(cluster)
    cluster.play("start_new_standby", inventory=variables())
    assert_armed(cluster)


def test_commits_wait_loudly_and_go_on_once_a_playbook_was_told_so(cluster: Cluster) -> None:
    primary = cluster.primary()
    standbys = [name for name in NAMES if name != primary]
    for name in standbys:
        cluster.pg_ctl(name, "stop", "-m", "fast")
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    wait_for(lambda: cluster.sql(primary, waiting) == "1", "a commit to wait")
    shown = cluster.run("status", inventory=variables())
    assert shown.returncode == 2
    assert "COMMITS WAIT for synchronous standbys" in shown.text
    assert "0 of 1 stream; 1 session(s) wait" in shown.text

    off = {**variables(), **{name: {**variables()[name], "pg_host_available": False} for name in standbys}}
    told = cluster.run("heal", "-e", "pg_synchronous_degrade=async", inventory=off)
    assert told.returncode != 0, "two hosts are down"
    assert synchronous_set(cluster, primary) == ""
    before = len(cluster.acknowledged_rows())
    wait_for(lambda: len(cluster.acknowledged_rows()) > before, "commits to go on")
    shown = cluster.run("status", inventory=variables(pg_synchronous_degrade="async"))
    assert shown.returncode == 2
    assert "does not wait for its synchronous standbys" in shown.text

    cluster.play("heal", inventory=variables(pg_synchronous_degrade="async"))
    assert_armed(cluster)


@pytest.mark.long
@pytest.mark.parametrize("degrade", ["wait", "async"])
def test_child_of_a_standby_that_fails_on_the_way_back_goes_on_confirming(cluster: Cluster, degrade: str) -> None:
    """By the inventory it hangs below that standby, and it streams from the primary while that one is away."""
    primary = cluster.primary()
    parent, child = (name for name in NAMES if name != primary)
    cascade = variables(pg_synchronous_degrade=degrade)
    cascade[child]["pg_upstream"] = parent
    cluster.pg_ctl(parent, "stop", "-m", "fast")
    configuration = cluster.data(parent) / "postgresql.conf"
    good = configuration.read_text(encoding="utf-8")
    configuration.write_text(good + "no_such_setting = on\n", encoding="utf-8")
    failed = cluster.run("start_new_standby", inventory=cascade)
    configuration.write_text(good, encoding="utf-8")
    assert failed.returncode != 0 and f"{parent}: start, because" in failed.text, failed.output
    assert "is in use and cannot be dropped" not in failed.text and "does not stream from this server" not in failed.text, failed.output
    assert failed.seconds < 60
    assert child in synchronous_set(cluster, primary)
    assert cluster.sql(primary, f"SELECT active FROM pg_replication_slots WHERE slot_name = '{child}'") == "t"
    before = len(cluster.acknowledged_rows())
    wait_for(lambda: len(cluster.acknowledged_rows()) > before, "commits to go on")

    cluster.play("start_new_standby", inventory=cascade)
    assert synchronous_set(cluster, primary) == all_but(primary, child)
    assert cluster.sql(parent, "SELECT application_name FROM pg_stat_replication") == child
    cluster.play("start_new_standby", inventory=variables())
    assert_armed(cluster)


@pytest.mark.long
def test_a_set_that_is_not_ours_stays_and_ours_is_taken_away(cluster: Cluster) -> None:
    """The last test of this file: synchronous replication is switched off."""
    cluster.play("heal", inventory=variables(pg_synchronous_mode="off"))
    cluster.play("start_new_standby", inventory=variables(pg_synchronous_mode="off"))
    for name in NAMES:
        assert synchronous_set(cluster, name) == ""
        assert not Path(cluster.own_state(name), "synchronous.json").exists()
    cluster.sql(cluster.primary(), "ALTER SYSTEM SET synchronous_standby_names = 'pgsql1'; SELECT pg_reload_conf()")
    cluster.play("start_new_standby", inventory=variables(pg_synchronous_mode="off"))
    assert synchronous_set(cluster, cluster.primary()) == "pgsql1"
