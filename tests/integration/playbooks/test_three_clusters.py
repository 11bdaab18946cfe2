# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three clusters in one inventory: every playbook works on all of them at once, and trouble in one neither stops nor touches another.

The tests build on each other, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.playbooks.cluster import Cluster, Done, unchanged, wait_for

pytestmark = pytest.mark.chained

INVENTORY: dict[str, dict[str, Any]] = {
    "pgsql1": {"pg_cluster_name": "shop"},
    "pgsql2": {"pg_cluster_name": "shop"},
    "pgsql3": {"pg_cluster_name": "bank", "pg_initial_role": "primary"},
    "pgsql4": {"pg_cluster_name": "bank"},
    "pgsql5": {"pg_cluster_name": "mill", "pg_initial_role": "primary"},
    "pgsql6": {"pg_cluster_name": "mill"},
    "pgsql7": {"pg_cluster_name": "mill", "pg_upstream": "pgsql6"},
}


@pytest.fixture(scope="module")
def cluster(make: Callable[..., Cluster]) -> Cluster:
    return make(len(INVENTORY))


@pytest.fixture(name="shop")
def first(cluster: Cluster) -> Cluster:
    return cluster.part("pgsql1", "pgsql2")


@pytest.fixture(name="bank")
def second(cluster: Cluster) -> Cluster:
    return cluster.part("pgsql3", "pgsql4")


@pytest.fixture(name="mill")
def third(cluster: Cluster) -> Cluster:
    return cluster.part("pgsql5", "pgsql6", "pgsql7")


def streams_from(cluster: Cluster) -> dict[str, str]:
    """Return, for each standby of the part, the node that it streams from."""
    names = {node.port: name for name, node in cluster.local.nodes.items()}
    statement = "SELECT coalesce((SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'), 0)"
    return {name: names.get(int(cluster.sql(name, statement)), "") for name in cluster.names if name != cluster.primary()}


def assert_cascading(mill: Cluster) -> None:
    """The mill's first node is primary, the second follows it, the third follows the second."""
    assert mill.primary() == "pgsql5"
    wait_for(lambda: streams_from(mill) == {"pgsql6": "pgsql5", "pgsql7": "pgsql6"}, "the cascade")


def failed(done: Done) -> set[str]:
    return {name for name, count in done.failed.items() if count}


def test_initial_setup_makes_all_of_them(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    cluster.play("initial_setup", inventory=INVENTORY)
    shop.assert_replicating("pgsql1")
    bank.assert_replicating("pgsql3")
    assert_cascading(mill)
    text = cluster.play("verify", inventory=INVENTORY).text
    assert all(f"found the row of {name} and refused to write" in text for name in ("pgsql1", "pgsql3", "pgsql5"))


@pytest.mark.long
def test_initial_setup_again_changes_nothing_in_any_of_them(cluster: Cluster) -> None:
    again = cluster.play("initial_setup", inventory=INVENTORY)
    assert not any(again.changed.values()), again.output


def test_switchover_refused_in_one_hands_over_in_the_others(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    cluster.sql("pgsql2", "SELECT pg_wal_replay_pause()")
    done = cluster.run("switchover", inventory=INVENTORY)
    cluster.sql("pgsql2", "SELECT pg_wal_replay_resume()")
    assert done.returncode == 2
    assert failed(done) == set(shop.names)
    assert "pgsql2" in done.text and "paused" in done.text
    shop.assert_replicating("pgsql1")
    bank.assert_replicating("pgsql4")
    mill.assert_replicating("pgsql6")


def test_switchover_hands_over_in_all_of_them(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    done = cluster.play("switchover", inventory=INVENTORY)
    shop.assert_replicating("pgsql2")
    bank.assert_replicating("pgsql3")
    assert_cascading(mill)
    assert [done.output.count(f"Cluster {name}: proven.") for name in ("shop", "bank", "mill")] == [1, 1, 1]


def test_failover_of_one_whose_primary_is_dead_leaves_the_others_alone(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    cluster.crash("pgsql3")
    with unchanged(shop), unchanged(mill):
        done = cluster.run("failover", inventory=INVENTORY)
    assert done.returncode == 2
    assert failed(done) == {*shop.names, *mill.names}
    assert "pgsql2: is primary and answers" in done.text and "pgsql5: is primary and answers" in done.text
    assert bank.part("pgsql4").primary() == "pgsql4" and bank.timeline("pgsql4") == 4
    assert "Cluster bank: proven. Primary pgsql4 on timeline 4" in done.text


def test_cluster_without_a_primary_does_not_keep_others_from_repair(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    """The bank's old primary comes back, the mill has a standby started, the shop cannot be helped by start_new_standby."""
    cluster.crash("pgsql2")
    cluster.pg_ctl("pgsql7", "stop", "-m", "fast")
    with unchanged(shop.part("pgsql1")):
        done = cluster.run("start_new_standby", inventory=INVENTORY)
    assert done.returncode == 2
    assert failed(done) == set(shop.names)
    assert "shop: no node accepts writes" in done.text
    bank.assert_replicating("pgsql4")
    assert_cascading(mill)


def test_standby_that_cannot_be_repaired_stops_its_own_cluster_only(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    with unchanged(bank), unchanged(mill):
        done = cluster.run("failover", inventory=INVENTORY)
    assert failed(done) == {*bank.names, *mill.names}
    assert shop.part("pgsql1").primary() == "pgsql1"
    damaged = cluster.data("pgsql2") / "global" / "pg_control"
    good = damaged.read_bytes()
    damaged.write_bytes(b"")
    cluster.pg_ctl("pgsql3", "stop", "-m", "fast")
    done = cluster.run("start_new_standby", inventory=INVENTORY)
    assert done.returncode == 2
    assert failed(done) <= set(shop.names) and "pgsql2" in failed(done)
    bank.assert_replicating("pgsql4")
    assert shop.part("pgsql1").primary() == "pgsql1"
    damaged.write_bytes(good)


def test_start_new_standby_makes_all_of_them_whole(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    """The mill's dead standby is another one's upstream: both are back after one run."""
    cluster.crash("pgsql6")
    cluster.play("start_new_standby", "-e", "pg_start_timeout_seconds=20", inventory=INVENTORY)
    shop.assert_replicating("pgsql1")
    bank.assert_replicating("pgsql4")
    assert_cascading(mill)
    text = cluster.play("status", inventory=INVENTORY).text
    assert all(f"Cluster {name}: healthy" in text for name in ("shop", "bank", "mill"))


def test_heal_refusal_in_one_cluster_does_not_stop_the_other(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    """Two of them have two primaries; in the shop both wrote, in the bank only the newest did."""
    for old, new in (("pgsql1", "pgsql2"), ("pgsql4", "pgsql3")):
        cluster.sql(old, "CREATE TABLE written (number serial, by text)")
        wait_for(lambda new=new: cluster.sql(new, "SELECT to_regclass('written') IS NOT NULL") == "t", f"the table on {new}")
        cluster.sql(new, "SELECT pg_promote()")
        cluster.sql(new, f"INSERT INTO written (by) VALUES ('{new}')")
    cluster.sql("pgsql1", "INSERT INTO written (by) VALUES ('pgsql1')")
    with unchanged(mill):
        done = cluster.run("heal", inventory=INVENTORY)
    assert failed(done) == set(shop.names), done.output
    assert "Refused: healing cluster shop" in done.text and "Cluster bank: proven" in done.text
    bank.assert_replicating("pgsql3")
    # What a person decides about the shop decides nothing about the bank: there the last look before its commits are given up is taken.
    cluster.sql("pgsql4", "SELECT pg_promote()")
    cluster.sql("pgsql4", "INSERT INTO written (by) VALUES ('pgsql4')")
    done = cluster.play("heal", "-v", "-e", "pg_heal_keep=pgsql1", inventory=INVENTORY)
    looked = done.output.partition("Look again at what it committed")[2].partition("TASK [")[0]
    assert "[pgsql3]" in looked and "ok: [pgsql2]" not in looked, looked
    shop.assert_replicating("pgsql1")
    bank.assert_replicating("pgsql4")


@pytest.mark.long
def test_setup_that_is_refused_in_one_goes_on_in_the_others(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    wrong = {**INVENTORY, "pgsql2": {**INVENTORY["pgsql2"], "pg_priority": -1}}
    watcher = cluster.state / "watcher.json"
    watcher.write_text(json.dumps({"pg_monitoring": {"hosts": {"pgsql1": None}}}), encoding="utf-8")
    with unchanged(shop):
        done = cluster.run("initial_setup", "-i", str(watcher), "-e", "pg_max_slot_wal_keep_size=9GB", inventory=wrong)
    assert done.returncode == 2
    assert done.text.count("pgsql1: failed above, or is not in this run, and goes on watching what it knew before.") == 1, done.output
    assert failed(done) == set(shop.names), done.output
    assert "pgsql2: its pg_priority is not a number from 0 on" in done.text
    for name in (*bank.names, *mill.names):
        assert cluster.sql(name, "SHOW max_slot_wal_keep_size") == "9GB"
    bank.assert_replicating("pgsql4")
    assert_cascading(mill)


@pytest.mark.long
def test_new_secrets_that_one_cannot_take_are_taken_by_the_others(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    passwords = cluster.state / "new_secrets.json"
    passwords.touch(mode=0o600)
    passwords.write_text(json.dumps({"pg_replication_password": "new to three", "pg_rewind_password": "new to three as well"}), encoding="utf-8")
    verifier = "SELECT rolpassword FROM pg_authid WHERE rolname = 'replicator'"
    before = {name: cluster.sql(name, verifier) for name in ("pgsql3", "pgsql5")}
    kept = shop.primary()
    cluster.crash(kept)
    done = cluster.run("rotate_secrets", "-e", f"@{passwords}", inventory=INVENTORY)
    assert done.returncode == 2
    assert failed(done) == set(shop.names), done.output
    for name, old in before.items():
        assert cluster.sql(name, verifier) != old
    assert_cascading(mill)
    cluster.pg_ctl(kept, "start")
    cluster.play("rotate_secrets", "-e", f"@{passwords}", inventory=INVENTORY)
    for part in (shop, bank):
        part.assert_replicating(part.primary())
    cluster.play("rotate_secrets", inventory=INVENTORY)


def test_a_limit_to_all_hosts_of_one_works_on_that_one_alone(cluster: Cluster, shop: Cluster, bank: Cluster, mill: Cluster) -> None:
    with unchanged(shop), unchanged(mill):
        cluster.play("switchover", "--limit", ",".join(bank.names), inventory=INVENTORY)
    bank.assert_replicating("pgsql3")
