# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_settle on real servers: every node in its place, and proof of it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real_servers import Answer, Node, Pair, longest_silence, make_standby, own, start_module, wait_for, wait_replayed
from test_monitoring_queries import QUERIES


def upstream_of(node: Node) -> dict[str, Any]:
    return {"name": node.name, "address": "127.0.0.1", "port": node.port}


def settle(node: Node, upstream: Node | None = None, *, check_mode: bool = False, **more: Any) -> Answer:
    place = {"upstream": upstream_of(upstream)} if upstream else {}
    return node.call("pg_settle", check_mode=check_mode, host_name=node.name, slot_name=node.slot, **place, **{"timeout_seconds": 10, **more})


def test_settle_pair_in_place_changes_nothing(pair: Pair) -> None:
    pair.primary.sql("SELECT pg_drop_replication_slot(%s)", pair.spare.slot)
    primary = settle(pair.primary, slots_present=[pair.standby.slot], slots_absent=[pair.spare.slot], downstreams=["beta"])
    assert not primary.changed and primary["node"]["role"] == "primary"
    standby = settle(pair.standby, pair.primary, timeline=1, mark_lsn=primary["node"]["current_lsn"])
    assert not standby.changed and standby["node"]["role"] == "standby"
    assert standby["node"]["receiver"]["status"] == "streaming"


def test_settle_slots_are_made_and_dropped_in_check_mode_for_real_and_again(pair: Pair) -> None:
    wanted = {"slots_present": [pair.standby.slot, "new_one"], "slots_absent": [pair.spare.slot, "never_was"]}
    checked = settle(pair.primary, check_mode=True, **wanted)
    assert checked.changed and "new_one" in checked["diff"]["after"] and pair.spare.slot not in checked["diff"]["after"]
    assert set(pair.primary.slots()) == {pair.standby.slot, pair.spare.slot}
    answer = settle(pair.primary, **wanted)
    assert answer.changed and answer["diff"] == checked["diff"]
    assert set(pair.primary.slots()) == {pair.standby.slot, "new_one"}
    assert not settle(pair.primary, **wanted).changed


def test_settle_standby_follows_the_new_primary(pair: Pair) -> None:
    make_standby(pair.spare, pair.primary)
    pair.level()
    pair.primary.crash()
    assert pair.standby.call("pg_promote", slots=[pair.spare.slot]).changed
    mark = pair.standby.sql("SELECT pg_current_wal_lsn()::text")
    before = (pair.spare.data / "postgresql.auto.conf").read_text(encoding="utf-8")
    assert settle(pair.spare, pair.standby, check_mode=True, timeline=2, mark_lsn=mark).changed
    assert (pair.spare.data / "postgresql.auto.conf").read_text(encoding="utf-8") == before
    answer = settle(pair.spare, pair.standby, timeline=2, mark_lsn=mark)
    assert answer.changed and answer["node"]["timeline"] == 2
    assert not settle(pair.spare, pair.standby, timeline=2, mark_lsn=mark).changed
    pair.standby.write_row(1)
    wait_replayed(pair.standby, pair.spare)
    assert not settle(pair.standby, downstreams=["gamma"], slots_present=[pair.spare.slot]).changed


@pytest.mark.parametrize("check_mode", [True, False])
def test_settle_server_that_was_promoted_meanwhile_is_not_made_a_standby(pair: Pair, check_mode: bool) -> None:
    node = pair.primary
    before = (node.data / "postgresql.auto.conf").read_text(encoding="utf-8")
    answer = settle(node, pair.standby, check_mode=check_mode, slots_absent=[pair.standby.slot])
    assert "accepts writes and is not made a standby of beta" in answer.refusal("runs_as_primary")
    assert answer["node"]["role"] == "primary" and node.is_primary()
    assert not (node.data / "standby.signal").exists() and pair.standby.slot in node.slots()
    assert (node.data / "postgresql.auto.conf").read_text(encoding="utf-8") == before


def test_settle_slot_that_a_sibling_leaves_late_is_dropped_in_the_end(pair: Pair) -> None:
    name = pair.standby.slot
    options = pair.primary.options(host_name="alpha", slot_name=pair.primary.slot, slots_absent=[name], timeout_seconds=10)
    run = start_module("pg_settle", options)
    wait_for(lambda: pair.primary.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_ops'"), "the module's session")
    pair.standby.stop()
    assert run.wait().changed
    assert name not in pair.primary.slots()


def test_settle_slot_that_stays_in_use_says_what_to_do_and_leaves_no_set_of_those_who_did_not_come(pair: Pair) -> None:
    """With degrade=async commits would wait for a standby that was to come, and did not."""
    wish = {"mode": "any", "num": 1, "names": ["gamma"], "degrade": "async"}
    answer = settle(pair.primary, slots_absent=[pair.standby.slot], downstreams=["gamma"], synchronous=wish, timeout_seconds=1)
    assert pair.standby.slot in answer.refusal("slot_active")
    assert "status.yml" in answer["hint"]
    wait_for(lambda: pair.primary.sql("SHOW synchronous_standby_names") == "", "the set without the one that did not come")


def test_settle_missing_downstream_is_named(pair: Pair) -> None:
    message = settle(pair.primary, downstreams=["beta", "gamma"], timeout_seconds=1).refusal("not_streaming")
    assert "gamma" in message and "beta" not in message


def test_settle_standby_that_forked_off_is_refused(pair: Pair) -> None:
    """pg_stat_replication shows it as streaming now and then; only replay past the mark is proof."""
    make_standby(pair.spare, pair.primary)
    pair.level()
    pair.standby.stop()
    pair.primary.write_row(100)
    wait_replayed(pair.primary, pair.spare)
    pair.primary.crash()
    pair.standby.start()
    assert pair.standby.call("pg_promote", slots=[pair.spare.slot]).changed
    mark = pair.standby.sql("SELECT pg_current_wal_lsn()::text")
    answer = settle(pair.spare, pair.standby, timeline=2, mark_lsn=mark, timeout_seconds=2)
    answer.refusal("not_streaming")
    assert answer["hint"]


def test_settle_wakes_a_postmaster_that_sleeps_over_the_wish_for_a_receiver(pair: Pair) -> None:
    """Up to 15 only a new connection may wake it; who waits in one session waits 15 seconds then, once in a thousand times."""
    pair.standby.append_conf("log_connections = on")
    pair.standby.sql("SELECT pg_reload_conf()")
    pair.primary.stop()
    begun = pair.standby.log.stat().st_size
    settle(pair.standby, pair.primary, timeout_seconds=4).refusal("not_streaming")
    assert longest_silence(pair.standby, begun) < 3


def test_settle_lost_slot_is_made_anew(stopped_pair: Pair) -> None:
    node = stopped_pair.primary
    node.append_conf("max_slot_wal_keep_size = 1MB\nmax_wal_size = 32MB\nmin_wal_size = 32MB")
    node.start()
    for _each in range(4):
        node.sql("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()")
    node.sql("CHECKPOINT")
    wait_for(lambda: node.slots()[stopped_pair.spare.slot] == "lost", "the slot's loss")
    assert settle(node, slots_present=[stopped_pair.spare.slot]).changed
    assert node.slots()[stopped_pair.spare.slot] == "reserved"


def test_settle_server_down_is_one_clear_error(stopped_pair: Pair) -> None:
    answer = settle(stopped_pair.primary)
    assert answer.failed and "Traceback" not in answer.text


def arm(node: Node) -> Path:
    """Leave a running primary as a switchover does that is killed before it stops it; returns its standby.signal."""
    node.write_note("pending", {"operation": "switchover", "source": node.name, "target": "beta", "phase": "armed"})
    with (node.data / "postgresql.auto.conf").open("a", encoding="utf-8") as stream:
        stream.write("primary_conninfo = 'host=127.0.0.1 port=1'\nprimary_slot_name = 'x'\n")
    (node.data / "standby.signal").touch()
    own(node.data)
    return node.data / "standby.signal"


@contextlib.contextmanager
def locked(node: Node) -> Iterator[None]:
    """Keep other runs from a server, as a switchover does that lost its controller."""
    program = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    # A process of its own: a module that is forked from here would have the lock, too.
    with subprocess.Popen([sys.executable, "-c", program, str(node.state)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        try:
            yield
        finally:
            holder.kill()


def test_settle_primary_that_a_killed_switchover_armed_stays_primary_at_its_next_start(pair: Pair) -> None:
    primary, signal_file = pair.primary, arm(pair.primary)
    primary.call("pg_service", state="restarted").refusal("armed_primary")
    checked = settle(primary, slots_present=[pair.standby.slot], check_mode=True)
    assert checked.changed and signal_file.exists() and primary.note("pending")
    answer = settle(primary, slots_present=[pair.standby.slot])
    assert answer.changed and answer["diff"] == checked["diff"]
    assert not signal_file.exists() and not answer["node"]["standby_signal"] and primary.note("pending") == {}
    assert "primary_" not in (primary.data / "postgresql.auto.conf").read_text(encoding="utf-8")
    assert not settle(primary, slots_present=[pair.standby.slot]).changed
    assert primary.call("pg_service", state="restarted").changed and primary.is_primary()


@pytest.mark.parametrize("goes_on", [True, False], ids=["it stops the server", "it gives up"])
def test_settle_beside_a_switchover_that_is_under_way_waits_and_does_not_disarm_it(pair: Pair, goes_on: bool) -> None:
    primary, signal_file = pair.primary, arm(pair.primary)
    with locked(primary):
        run = start_module("pg_settle", primary.options(host_name="alpha", slot_name=primary.slot, timeout_seconds=10))
        with pytest.raises(AssertionError):
            wait_for(lambda: run.ended or not signal_file.exists(), "an end that must not come", 1.5)
        if goes_on:
            primary.stop()
            primary.start()
    answer = run.wait()
    if goes_on:
        answer.refusal("superseded")
    assert signal_file.exists() is goes_on and bool(primary.note("pending")) is goes_on
    assert answer.failed is goes_on, answer.text


@pytest.fixture
def copying(newer_pair: Pair) -> Pair:
    """A pair whose standby copies failover slots."""
    for node in (newer_pair.primary, newer_pair.standby):
        node.append_conf("wal_level = logical\nsync_replication_slots = on\nhot_standby_feedback = on")
        with (node.data / "pg_hba.conf").open("a", encoding="utf-8") as stream:
            stream.write("host postgres replicator 127.0.0.1/32 scram-sha-256\n")
        node.stop()
    newer_pair.primary.start()
    newer_pair.standby.start()
    wait_for(lambda: newer_pair.primary.sql("SELECT active FROM pg_replication_slots WHERE slot_name = %s", newer_pair.standby.slot), "the standby")
    return newer_pair


def waits_for(node: Node) -> str:
    return str(node.sql("SHOW synchronized_standby_slots"))


def test_settle_primary_has_consumers_wait_for_its_standbys(copying: Pair) -> None:
    primary, standby = copying.primary, copying.standby
    wanted = {"downstreams": ["beta"], "slots_present": [standby.slot, "away"], "synchronized_slots": [standby.slot, "away"]}
    # The name of the slot of the host beta is beta where inventory names are used; here the active slot says that it streams.
    checked = settle(primary, check_mode=True, **wanted)
    assert checked.changed and waits_for(primary) == ""
    answer = settle(primary, **wanted)
    assert answer.changed and answer["diff"] == checked["diff"]
    wait_for(lambda: waits_for(primary) == standby.slot, "the reload")
    assert not settle(primary, **wanted).changed
    standby.stop()
    assert settle(primary, **{**wanted, "downstreams": []}).changed
    wait_for(lambda: waits_for(primary) == "", "the standby that is away to be taken off")
    assert "synchronized_standby_slots" not in (primary.data / "postgresql.auto.conf").read_text(encoding="utf-8")


@pytest.mark.thorough
def test_settle_demoted_primary_drops_its_failover_slots_and_copies_the_new_primarys(copying: Pair) -> None:
    old, new = copying.primary, copying.standby
    for name, failover in (("goes_along", True), ("somebodys", False)):
        old.sql("SELECT pg_create_logical_replication_slot(%s, 'pgoutput', failover => %s)", name, failover)
    assert settle(old, slots_present=[new.slot], synchronized_slots=[new.slot]).changed
    synced = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = 'goes_along'"
    wait_for(lambda: old.sql("SELECT pg_log_standby_snapshot()") and new.sql(synced), "the copy", timeout_seconds=45)
    watched = f"SELECT count(*) FROM ({QUERIES['pg_ops_slot']['query']}) AS slots WHERE slot_name = 'goes_along'"
    assert (old.sql(watched), new.sql(watched)) == (1, 0), "the monitoring leaves copies out"
    assert old.call_towards("pg_switchover", new, candidate_slots=[old.slot]).changed
    assert (old.sql(watched), new.sql(watched)) == (1, 1), "what was a copy is the slot that keeps WAL now"
    assert "synchronized_standby_slots" not in (old.data / "postgresql.auto.conf").read_text(encoding="utf-8")
    mark = new.sql("SELECT pg_current_wal_lsn()::text")
    place = {"timeline": 2, "mark_lsn": mark, "slots_absent": [old.slot, new.slot, copying.spare.slot]}
    checked = settle(old, new, check_mode=True, **place)
    assert checked.changed and "goes_along" in old.slots()
    assert not old.sql(synced)
    answer = settle(old, new, **place)
    assert answer.changed and "goes_along" not in answer["diff"]["after"] and "somebodys" in old.slots()
    # A copy starts where the standby's own catalog begins: its consumer has to have read up to there.
    read_on = "SELECT pg_log_standby_snapshot(), pg_replication_slot_advance('goes_along', pg_current_wal_lsn())"
    wait_for(lambda: new.sql(read_on) and old.sql(synced), "the copy of the new primary's", timeout_seconds=45)
    assert not settle(old, new, **place).changed


def test_settle_killed_before_the_reload_has_the_server_read_what_was_written(pair: Pair) -> None:
    """The file says all that is wanted; only the server does not know."""
    standby = pair.standby
    pair.primary.sql("SELECT pg_create_physical_replication_slot('unread', true)")
    written = standby.data / "postgresql.auto.conf"
    written.write_text(f"{written.read_text(encoding='utf-8')}primary_slot_name = 'unread'\n", encoding="utf-8")
    place = {"slot_name": "unread", "host_name": standby.name}
    checked = standby.call("pg_settle", check_mode=True, upstream=upstream_of(pair.primary), timeout_seconds=10, **place)
    answer = standby.call("pg_settle", upstream=upstream_of(pair.primary), timeout_seconds=10, **place)
    assert checked.changed and answer.changed and "not read" in answer["diff"]["before"]
    assert standby.sql("SELECT slot_name FROM pg_stat_wal_receiver") == "unread"
    assert not standby.call("pg_settle", upstream=upstream_of(pair.primary), timeout_seconds=10, **place).changed

    written = pair.primary.data / "postgresql.auto.conf"
    written.write_text(f"{written.read_text(encoding='utf-8')}synchronous_standby_names = 'away'\n", encoding="utf-8")
    pair.primary.sql("SELECT pg_reload_conf()")
    wait_for(lambda: pair.primary.sql("SHOW synchronous_standby_names") == "away", "the reload")
    written.write_text(written.read_text(encoding="utf-8").replace("synchronous_standby_names = 'away'\n", ""), encoding="utf-8")
    assert settle(pair.primary).changed
    wait_for(lambda: pair.primary.sql("SHOW synchronous_standby_names") == "", "the reload")
    assert not settle(pair.primary).changed


def test_settle_standby_that_streams_without_its_slot_uses_it_at_the_end(pair: Pair) -> None:
    standby = pair.standby
    standby.sql("ALTER SYSTEM RESET primary_slot_name")
    standby.sql("SELECT pg_reload_conf()")
    bare = "SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND slot_name IS NULL"
    wait_for(lambda: standby.sql(bare), "streaming without a slot")
    message = settle(pair.primary, downstreams=["beta"], slots_present=[standby.slot], timeout_seconds=1).refusal("not_streaming")
    assert "beta" in message
    answer = settle(standby, pair.primary)
    assert answer.changed
    assert answer["node"]["receiver"]["slot_name"] == standby.slot
    assert not settle(pair.primary, downstreams=["beta"], slots_present=[standby.slot]).changed
