# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_divergence on real servers: exactly what was committed on one side, and never nothing where it could not be read."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.wal_pages import behind_record
from real_servers import Node, Pair, digest


def part(pair: Pair) -> str:
    """Promote the standby while its primary lives; returns the LSN at which they part."""
    pair.primary.write_row(1)
    pair.level()
    pair.standby.sql("SELECT pg_promote()")
    history = (pair.standby.data / "pg_wal" / "00000002.history").read_text(encoding="utf-8")
    return history.split("\t")[1]


def look(node: Node, other: Node, lsn: str, **more: Any) -> dict[str, Any]:
    """Return the one answer, after looking that nothing was changed."""
    before = digest(node.state)
    answer = node.call("pg_divergence", since=[{"other": other.name, "lsn": lsn}], **more)
    assert not answer.changed
    assert digest(node.state) == before
    [side] = answer["sides"]
    assert side["other"] == other.name and side["from_lsn"] == lsn
    return dict(side)


def test_divergence_of_two_primaries_that_wrote_nothing_is_none_on_both(each_pair: Pair) -> None:
    fork = part(each_pair)
    for node, other in ((each_pair.primary, each_pair.standby), (each_pair.standby, each_pair.primary)):
        side = look(node, other, fork)
        assert side["complete"] and side["transactions"] == 0, side
        assert side["xids"] == [] and side["relations"] == [] and side["first_at"] == ""


def test_divergence_counts_exactly_the_rows_that_were_committed_on_each_side(each_pair: Pair) -> None:
    pair = each_pair
    fork = part(pair)
    mine = [pair.primary.write_row(number) for number in (100, 101, 102)]
    theirs = [pair.standby.write_row(200)]
    old, new = look(pair.primary, pair.standby, fork), look(pair.standby, pair.primary, fork)
    assert (old["transactions"], old["xids"]) == (3, mine)
    assert (new["transactions"], new["xids"]) == (1, theirs)
    assert old["complete"] and new["complete"]
    assert old["relations"] == ["postgres: written"]
    assert old["first_at"] < old["last_at"]


def test_divergence_sees_commits_that_have_not_waited_for_the_disk(pair: Pair) -> None:
    fork = part(pair)
    with contextlib.closing(pair.primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off; INSERT INTO written VALUES (100)")
        connection.commit()
    assert look(pair.primary, pair.standby, fork)["transactions"] == 1


def test_divergence_leaves_out_what_was_rolled_back_and_what_analyze_wrote(pair: Pair) -> None:
    fork = part(pair)
    primary = pair.primary
    with contextlib.closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO written VALUES (100)")
        connection.rollback()
    primary.sql("CHECKPOINT")  # so that ANALYZE writes page images too
    primary.sql("ANALYZE written")
    side = look(primary, pair.standby, fork)
    assert side["complete"] and side["transactions"] == 0, side
    assert side["statistics_transactions"] == 1
    primary.sql("CREATE STATISTICS of_written (ndistinct) ON number, by FROM written")
    assert look(primary, pair.standby, fork)["transactions"] == 1


def test_divergence_of_one_that_was_promoted_at_the_fork_needs_nothing_from_before_it(pair: Pair) -> None:
    pair.primary.write_row(1)
    pair.primary.sql("SELECT pg_switch_wal()")
    pair.level()
    fork = part_idle(pair)
    pair.standby.sql("ANALYZE written")
    side = look(pair.standby, pair.primary, fork)
    assert side["complete"] and (side["transactions"], side["statistics_transactions"]) == (0, 1), side


@pytest.mark.parametrize("savepoint", ["", "SAVEPOINT one; "], ids=["top", "subtransaction"])
def test_divergence_counts_a_load_of_which_only_the_statistics_lie_behind_the_fork(each_pair: Pair, savepoint: str) -> None:
    """Both have its rows, but only one has its commit."""
    primary = each_pair.primary
    with contextlib.closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(savepoint + "INSERT INTO written SELECT generate_series(100, 1099); SELECT pg_current_xact_id()::text")
        xid = int(cursor.fetchone()[0])
        fork = part(each_pair)
        cursor.execute("ANALYZE written")
        connection.commit()
    primary.sql("ANALYZE written")
    for how in ("running", "fenced"):
        if how == "fenced":
            assert primary.call("pg_fence").changed
        side = look(primary, each_pair.standby, fork)
        assert side["complete"] and side["xids"] == [xid], side
        assert (side["transactions"], side["statistics_transactions"]) == (1, 1)


def test_divergence_counts_statistics_where_no_wal_tells_that_they_are_all_of_a_transaction(pair: Pair) -> None:
    primary = pair.primary
    pair.primary.write_row(1)
    primary.sql("SELECT pg_switch_wal()")
    fork = part_idle(pair)
    primary.sql("ANALYZE written")
    before = look(primary, pair.standby, fork)
    assert (before["transactions"], before["statistics_transactions"]) == (0, 1)
    name = primary.sql("SELECT pg_walfile_name(%s::pg_lsn + 1)", fork)
    for path in (primary.data / "pg_wal").glob("00000001*"):
        if path.name < name:
            path.unlink()
    after = look(primary, pair.standby, fork)
    assert after["complete"] and (after["transactions"], after["statistics_transactions"]) == (1, 0), after


def test_divergence_names_tables_of_several_databases_and_not_those_that_are_gone(pair: Pair) -> None:
    fork = part(pair)
    primary = pair.primary
    primary.sql("CREATE DATABASE \"a shop\"")
    with contextlib.closing(primary.connect("a shop")) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE \"Orders\" (number int); INSERT INTO \"Orders\" VALUES (1)")
        connection.commit()
    primary.sql("CREATE TABLE short_lived (number int)")
    primary.sql("DROP TABLE short_lived")
    primary.write_row(100)
    side = look(primary, pair.standby, fork)
    assert side["transactions"] == 5
    assert side["relations"][:2] == ['a shop: "Orders"', "postgres: written"]
    assert set(side["relations"][2:]) == {"shared catalogs", "system catalogs"}


def test_divergence_over_many_segments_and_a_second_timeline_counts_all(pair: Pair) -> None:
    fork = part(pair)
    node = pair.standby
    node.sql("ALTER SYSTEM SET wal_keep_size = '1GB'")
    node.sql("SELECT pg_reload_conf()")
    wanted = 0
    for number in range(5):
        node.write_row(1000 + number)
        node.sql("SELECT pg_switch_wal()")
        wanted += 1
    node.stop()
    (node.data / "standby.signal").touch()
    node.append_conf("primary_conninfo = ''")
    node.start()
    node.sql("SELECT pg_promote()")  # timeline 3
    node.write_row(2000)
    side = look(node, pair.primary, fork)
    assert side["complete"], side
    assert side["transactions"] == wanted + 1, side


def test_divergence_at_the_end_of_wal_right_behind_a_switched_segment_is_complete(pair: Pair) -> None:
    fork = part(pair)
    pair.primary.write_row(100)
    pair.primary.sql("SELECT pg_switch_wal()")
    side = look(pair.primary, pair.standby, fork)
    assert side["complete"] and side["transactions"] == 1, side


@pytest.mark.parametrize("how", ["stopped", "crashed", "fenced"])
def test_divergence_of_a_server_that_is_down_counts_the_same_without_names(pair: Pair, how: str) -> None:
    fork = part(pair)
    xid = pair.primary.write_row(100)
    if how == "fenced":
        assert pair.primary.call("pg_fence").changed
    else:
        {"stopped": pair.primary.stop, "crashed": pair.primary.crash}[how]()
    side = look(pair.primary, pair.standby, fork)
    assert side["complete"] and side["xids"] == [xid], side
    assert side["relations"] == []


@pytest.mark.parametrize("down", [False, True])
def test_divergence_from_the_end_of_a_full_segment_is_none(pair: Pair, down: bool) -> None:
    """The segment in which they parted was never begun here."""
    pair.primary.write_row(1)
    pair.primary.sql("SELECT pg_switch_wal()")
    fork = part_idle(pair)
    if down:
        assert pair.primary.call("pg_fence").changed
    side = look(pair.primary, pair.standby, fork)
    assert side["complete"] and side["transactions"] == 0, side


def part_idle(pair: Pair) -> str:
    """Promote the standby of a primary that has written nothing since it switched its segment."""
    pair.level()
    pair.standby.sql("SELECT pg_promote()")
    fork = (pair.standby.data / "pg_wal" / "00000002.history").read_text(encoding="utf-8").split("\t")[1]
    assert fork.endswith("000000")
    segment = "00000001{:08X}{:08X}".format(0, int(fork.split("/")[1], 16) // 2**24)
    assert not (pair.primary.data / "pg_wal" / segment).exists()
    return fork


def test_divergence_behind_recycled_wal_is_unknown(pair: Pair) -> None:
    fork = part(pair)
    primary = pair.primary
    primary.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active")
    for number in range(3):
        primary.write_row(100 + number)
        primary.sql("SELECT pg_switch_wal()")
    primary.sql("CHECKPOINT")
    side = look(primary, pair.standby, fork)
    assert not side["complete"]
    assert side["problem"] == f"its WAL from {fork} on is gone"


def test_divergence_from_an_unknown_point_is_unknown(pair: Pair) -> None:
    part(pair)
    side = look(pair.primary, pair.standby, "")
    assert not side["complete"] and "cannot be told" in side["problem"]


def test_divergence_that_is_not_read_in_time_is_unknown(pair: Pair) -> None:
    fork = part(pair)
    pair.primary.write_row(100)
    side = look(pair.primary, pair.standby, fork, timeout_seconds=0.0)
    assert not side["complete"] and "in time" in side["problem"]


def test_divergence_with_damaged_wal_is_unknown(pair: Pair) -> None:
    """A record in the middle that cannot be read is not the end of WAL while the server runs."""
    fork = part(pair)
    primary = pair.primary
    primary.write_row(100)
    damaged = primary.sql("SELECT pg_walfile_name(pg_current_wal_lsn()) || ' ' || (pg_walfile_name_offset(pg_current_wal_lsn())).file_offset")
    primary.write_row(101)
    name, offset = damaged.split()
    with (primary.data / "pg_wal" / name).open("r+b") as stream:
        stream.seek(int(offset))
        stream.write(b"\x00" * 24)
    side = look(primary, pair.standby, fork)
    assert not side["complete"] and "cannot be read" in side["problem"], side
    assert side["transactions"] >= 1


def test_divergence_in_check_mode_answers_the_same(pair: Pair) -> None:
    fork = part(pair)
    pair.primary.write_row(100)
    answer = pair.primary.call("pg_divergence", check_mode=True, since=[{"other": "beta", "lsn": fork}])
    assert not answer.changed and answer["sides"][0]["transactions"] == 1


def test_records_end_where_pg_waldump_has_the_next_one(pair: Pair) -> None:
    """Over pages, and over the end of a segment."""
    size = int(pair.primary.control("Bytes per WAL segment"))
    start = pair.primary.sql("SELECT pg_current_wal_insert_lsn()::text")
    pair.primary.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', %s))", size + size // 2)
    for number in range(50):
        pair.primary.write_row(number)
    dump = pair.primary.program("pg_waldump", "-p", str(pair.primary.data / "pg_wal"), "-t", "1", "-s", start, check=False)
    records = [(parse_lsn(lsn), int(total)) for total, lsn in re.findall(r"len \(rec/tot\):\s*\d+/\s*(\d+), tx:\s*\d+, lsn: ([0-9A-F]+/[0-9A-F]+),", dump)]
    ends = [behind_record(lsn, total, size) for lsn, total in records]
    assert len(records) > 50 and records[-1][0] // size > parse_lsn(start) // size
    assert ends[:-1] == [lsn for lsn, _total in records[1:]]
