# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_settle on real servers: every node in its place, and proof of it."""

from __future__ import annotations

from typing import Any

from real_servers import Answer, Node, Pair, make_standby, start_module, wait_for, wait_replayed


def settle(node: Node, upstream: Node | None = None, *, check_mode: bool = False, **more: Any) -> Answer:
    place = {"upstream": {"name": upstream.name, "address": "127.0.0.1", "port": upstream.port}} if upstream else {}
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


def test_settle_slot_that_a_sibling_leaves_late_is_dropped_in_the_end(pair: Pair) -> None:
    name = pair.standby.slot
    options = pair.primary.options(host_name="alpha", slot_name=pair.primary.slot, slots_absent=[name], timeout_seconds=10)
    run = start_module("pg_settle", options)
    wait_for(lambda: pair.primary.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_ops'"), "the module's session")
    pair.standby.stop()
    assert run.wait().changed
    assert name not in pair.primary.slots()


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
