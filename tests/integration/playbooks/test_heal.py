# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""heal.yml on real servers: it keeps what loses nothing, asks where something would be lost, and mends what stands wrong.

The tests share one cluster of three nodes, and each leaves it healed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.playbooks.cluster import Cluster, unchanged, wait_for
from tests.integration.playbooks.test_refusals import refused


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Cluster:
    """Three nodes with a table of who wrote what."""
    made = set_up(3)
    made.sql("pgsql1", "CREATE TABLE written (number serial, by text)")
    made.assert_replicating("pgsql1")
    return made


def split(cluster: Cluster) -> tuple[str, str, str]:
    """Promote a standby behind the primary's back; returns (old primary, new primary, the standby that still follows the old one)."""
    old = cluster.primary()
    new, third = (name for name in cluster.names if name != old)
    cluster.assert_replicating(old)
    cluster.sql(new, "SELECT pg_promote()")
    return old, new, third


def write(cluster: Cluster, name: str) -> int:
    """Commit one row; returns its transaction's id."""
    return int(cluster.sql(name, f"INSERT INTO written (by) VALUES ('{name}') RETURNING xmin::text"))


def reports(cluster: Cluster, name: str) -> list[Path]:
    return sorted(cluster.own_state(name).glob("reports/*-lost-transactions.json"))


def lost(path: Path) -> list[int]:
    return [entry["xid"] for entry in json.loads(path.read_text(encoding="utf-8"))["transactions"]]


def assert_same_rows(cluster: Cluster) -> None:
    rows = "SELECT number, by FROM written ORDER BY 1"
    wanted = cluster.sql(cluster.primary(), rows)
    for name in cluster.names:
        wait_for(lambda name=name: cluster.sql(name, rows) == wanted, f"the rows on {name}")


# -- nothing to heal -------------------------------------------------------------------------------------------------------------------


def test_heal_of_a_healthy_cluster_says_so_and_changes_nothing(cluster: Cluster) -> None:
    with unchanged(cluster):
        done = cluster.play("heal")
        checked = cluster.play("heal", "--check", "--diff")
    assert "Cluster main: nothing to heal. Primary pgsql1." in done.output
    assert "nothing to heal" in checked.output
    assert not any(done.changed.values()) and not any(checked.changed.values())


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        pytest.param("pgsql9", ("pgsql9: is not a host of cluster main", "Correct pg_heal_keep"), id="unknown host"),
        pytest.param("pgsql2", ("pgsql2: cannot be kept as primary", "pgsql2 standby running", "one of pgsql1"), id="standby"),
        pytest.param("pgsql1,pgsql2", ("pg_heal_keep names several hosts of one cluster",), id="two of one cluster"),
    ],
)
def test_heal_that_is_to_keep_what_is_no_primary_is_refused(cluster: Cluster, keep: str, said: tuple[str, ...]) -> None:
    refused(cluster, "heal", "-e", f"pg_heal_keep={keep}", said=said)


# -- two primaries -----------------------------------------------------------------------------------------------------------------------


def test_heal_two_primaries_of_which_the_old_one_wrote_nothing_keeps_the_newest_timeline(cluster: Cluster) -> None:
    old, new, third = split(cluster)
    write(cluster, new)
    with unchanged(cluster):
        checked = cluster.play("heal", "--check", "--diff")
    for words in (f"{new} stays primary: timeline 2 is the newest", f"{old}: fenced, then rewind", f"{old} has committed nothing that {new} lacks"):
        assert words in checked.text, checked.output
    done = cluster.play("heal")
    assert f"{third}: follow" in done.text or f"{third}: rewind" in done.text  # it may have received what the old one wrote by itself
    assert "existed only here" not in done.text
    cluster.assert_replicating(new)
    assert_same_rows(cluster)
    again = cluster.play("heal")
    assert "nothing to heal" in again.text and not any(again.changed.values())


def test_heal_two_primaries_that_both_wrote_is_refused_with_both_sides_and_heals_once_told_to_keep_the_newest(cluster: Cluster) -> None:
    old, new, third = split(cluster)
    mine = [write(cluster, old), write(cluster, old)]
    write(cluster, new)
    said = (
        f"{old}: has 2 committed transaction(s) that {new} lacks",
        f"{new}: has 1 committed transaction(s) that {old} lacks",
        "in postgres: written",
        f"followed by {third}",
        f"ansible-playbook heal.yml -e pg_heal_keep={old}",
        f"ansible-playbook heal.yml -e pg_heal_keep={new}",
    )
    refused(cluster, "heal", said=said)
    refused(cluster, "heal", "--check", said=said)
    before = reports(cluster, old)
    done = cluster.play("heal", "-e", f"pg_heal_keep={new}")
    assert f"{old}: 2 committed transaction(s) existed only here" in done.text
    [report] = [path for path in reports(cluster, old) if path not in before]
    assert lost(report) == mine
    cluster.assert_replicating(new)
    assert_same_rows(cluster)


@pytest.mark.long
def test_heal_told_to_keep_the_older_timeline_copies_the_newer_one_anew_and_keeps_its_directory(cluster: Cluster) -> None:
    old, new, third = split(cluster)
    write(cluster, old)
    theirs = [write(cluster, new)]
    before, timeline = reports(cluster, new), cluster.timeline(old)
    with unchanged(cluster):
        checked = cluster.play("heal", "--check", "-e", f"pg_heal_keep={old}")
    assert f"{new}: fenced, then reclone" in checked.text and f"{third}: it streams from {old}" in checked.text
    cluster.play("heal", "-e", f"pg_heal_keep={old}")
    cluster.assert_replicating(old)
    assert cluster.timeline(old) == timeline
    [report] = [path for path in reports(cluster, new) if path not in before]
    assert lost(report) == theirs
    kept = list(cluster.place(new).glob("data.kept.*"))
    assert len(kept) == 1 and (kept[0] / "PG_VERSION").exists()
    shutil.rmtree(kept[0])
    assert_same_rows(cluster)


@pytest.mark.long
def test_heal_where_only_the_older_timeline_has_commits_is_refused(cluster: Cluster) -> None:
    """Keeping the newest would lose them, and nobody has said so."""
    old, new, _third = split(cluster)
    mine = [write(cluster, old)]
    said = (f"{old}: has 1 committed transaction(s) that {new} lacks", f"{new}: has committed nothing that {old} lacks", f"pg_heal_keep={old}")
    refused(cluster, "heal", said=said)
    before = reports(cluster, old)
    cluster.play("heal", "-e", f"pg_heal_keep={new}")
    cluster.assert_replicating(new)
    assert [lost(path) for path in reports(cluster, old) if path not in before] == [mine]


@pytest.mark.long
def test_heal_old_primary_whose_wal_is_gone_is_refused(cluster: Cluster) -> None:
    """What it committed cannot be known any more."""
    old, new, third = split(cluster)
    cluster.pg_ctl(third, "stop", "-m", "fast")
    cluster.sql(old, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    for _segment in range(2):
        write(cluster, old)
        cluster.sql(old, "SELECT pg_switch_wal()")
    cluster.sql(old, "CHECKPOINT")
    refused(cluster, "heal", said=(f"{old}: may have committed what {new} lacks", "is gone", f"pg_heal_keep={new}"))
    cluster.play("heal", "-e", f"pg_heal_keep={new}")
    cluster.assert_replicating(new)
    for kept in cluster.state.glob("*/data.kept.*"):
        shutil.rmtree(kept)


@pytest.mark.long
def test_heal_two_primaries_on_one_timeline_says_that_nothing_can_be_listed_and_where_the_old_data_are(cluster: Cluster) -> None:
    """As after the start of a machine's copy."""
    old = cluster.primary()
    new, third = (name for name in cluster.names if name != old)
    cluster.assert_replicating(old)
    cluster.pg_ctl(new, "stop", "-m", "fast")
    (cluster.data(new) / "standby.signal").unlink()
    cluster.pg_ctl(new, "start")
    write(cluster, old)
    write(cluster, new)
    refused(cluster, "heal", said=(f"parted from {new} at an unknown LSN", f"pg_heal_keep={new}"))
    done = cluster.play("heal", "-e", f"pg_heal_keep={new}")
    for name in (old, third):  # the third has what the old one wrote
        [kept] = cluster.place(name).glob("data.kept.*")
        words = f"{name}: what existed only here could not all be listed (where they parted cannot be told); its old data are kept in {kept}"
        assert words in done.text, done.output
        shutil.rmtree(kept)
    cluster.assert_replicating(new)
    assert_same_rows(cluster)


def test_heal_stops_at_a_primary_that_commits_between_the_look_and_the_fence(cluster: Cluster) -> None:
    """Nobody has decided that this commit may be lost; the next run reports it."""
    old, new, _third = split(cluster)
    journal = cluster.state / "tasks"
    journal.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(cluster.run, "heal", kill_after=1000, PG_OPS_TEST_TASKS=str(journal))
        wait_for(lambda: journal.exists() and "Decide who stays" in journal.read_text(encoding="utf-8"), "the decision", timeout_seconds=120)
        mine = [write(cluster, old)]
        done = running.result()
    assert done.returncode != 0
    assert f"{old} committed something that {new} lacks in the moment before it was fenced" in done.text, done.output
    assert cluster.pid(old) == 0
    before = reports(cluster, old)
    cluster.play("heal")
    cluster.assert_replicating(new)
    assert [lost(path) for path in reports(cluster, old) if path not in before] == [mine]


# -- one primary -------------------------------------------------------------------------------------------------------------------------


def test_heal_without_a_primary_promotes_nobody(cluster: Cluster) -> None:
    primary = cluster.primary()
    cluster.pg_ctl(primary, "stop", "-m", "fast")
    refused(cluster, "heal", said=("no node accepts writes", "Run failover.yml"))
    cluster.pg_ctl(primary, "start")
    cluster.assert_replicating(primary)


def test_heal_brings_back_what_follows_the_wrong_server_has_lost_its_slot_or_was_fenced(cluster: Cluster) -> None:
    """All at once: the second node follows a server that is not there, the third is down behind a fence, and neither has a slot."""
    primary = cluster.primary()
    second, third = (name for name in cluster.names if name != primary)
    cluster.sql(second, "ALTER SYSTEM SET primary_conninfo = 'host=127.0.0.1 port=1 user=replicator'")
    cluster.sql(second, "SELECT pg_reload_conf()")
    fence_by_hand(cluster, third)
    wait_for(lambda: not cluster.sql(primary, "SELECT 1 FROM pg_replication_slots WHERE active"), "the slots to be idle")
    cluster.sql(primary, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    cluster.sql(primary, "SELECT pg_create_physical_replication_slot('pgsql_gone', true)")
    with unchanged(cluster):
        checked = cluster.play("heal", "--check", "--diff")
    for words in (f"{second}: follow", f"{third}: start", f"has no slot for {second}"):
        assert words in checked.text, checked.output
    cluster.play("heal")
    assert cluster.sql(primary, "SELECT pg_drop_replication_slot('pgsql_gone')") == ""  # nobody's of ours: it stays
    cluster.assert_replicating(primary)
    assert_same_rows(cluster)


def fence_by_hand(cluster: Cluster, name: str, *, by: str = "boot_guard") -> None:
    """Leave a node as a guard at boot leaves it: down, armed to start as a standby, with its note."""
    cluster.pg_ctl(name, "stop", "-m", "fast")
    for path, text in ((cluster.own_state(name) / "fenced.json", json.dumps({"by": by, "why": "a test"})), (cluster.data(name) / "standby.signal", "")):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        shutil.chown(path, cluster.account.pw_uid, cluster.account.pw_gid)


def test_heal_brings_back_an_old_primary_that_was_fenced_at_its_boot(cluster: Cluster) -> None:
    old = cluster.primary()
    new = cluster.standby()
    cluster.pg_ctl(old, "stop", "-m", "fast")
    cluster.sql(new, "SELECT pg_promote()")
    fence_by_hand_down(cluster, old)
    cluster.play("heal")
    cluster.assert_replicating(new)


def fence_by_hand_down(cluster: Cluster, name: str) -> None:
    cluster.pg_ctl(name, "start")
    fence_by_hand(cluster, name)


def test_heal_recreates_a_slot_whose_wal_is_lost(cluster: Cluster) -> None:
    primary, standby = cluster.primary(), cluster.standby()
    cluster.pg_ctl(standby, "stop", "-m", "fast")
    cluster.sql(primary, "ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    cluster.sql(primary, "SELECT pg_reload_conf()")
    for _segment in range(3):
        cluster.sql(primary, "INSERT INTO written (by) VALUES ('filler'); SELECT pg_switch_wal()")
    cluster.sql(primary, "CHECKPOINT")
    assert cluster.sql(primary, f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{standby}'") == "lost"
    cluster.sql(primary, "ALTER SYSTEM RESET max_slot_wal_keep_size")
    cluster.sql(primary, "SELECT pg_reload_conf()")
    cluster.play("heal")
    cluster.assert_replicating(primary)
    assert_same_rows(cluster)
    for kept in cluster.state.glob("*/data.kept.*"):
        shutil.rmtree(kept)


@pytest.mark.long
def test_heal_standby_that_streams_without_its_slot_uses_it_again(cluster: Cluster) -> None:
    primary, standby = cluster.primary(), cluster.standby()
    cluster.sql(standby, "ALTER SYSTEM RESET primary_slot_name")
    cluster.sql(standby, "SELECT pg_reload_conf()")
    wait_for(lambda: cluster.sql(standby, "SELECT 1 FROM pg_stat_wal_receiver WHERE status = 'streaming' AND slot_name IS NULL"), "streaming without a slot")
    checked = cluster.play("heal", "--check")
    assert f"{standby}: streams without its slot" in checked.text, checked.output
    cluster.play("heal")
    cluster.assert_replicating(primary)


def test_heal_removes_the_note_of_a_fence_from_a_standby_that_streams(cluster: Cluster) -> None:
    standby = cluster.standby()
    note = cluster.own_state(standby) / "fenced.json"
    note.write_text('{"by": "somebody"}\n', encoding="utf-8")
    shutil.chown(note, cluster.account.pw_uid, cluster.account.pw_gid)
    done = cluster.play("heal")
    assert f"{standby}: a note says that it is fenced, although it runs" in done.text
    assert done.changed[standby] == 1
    cluster.assert_replicating()
