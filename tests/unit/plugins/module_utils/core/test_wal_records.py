# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what is read from pg_waldump's output; its lines are those of PostgreSQL 15 unless said otherwise."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.wal_records import Commit, commits, next_xid, precedes

AT = "2026-01-31 03:12:45.678901 UTC"


def record(manager: str, xid: int, description: str, *, lsn: str = "0/3000148") -> str:
    return f"rmgr: {manager:<11} len (rec/tot):     54/   150, tx: {xid:>10}, lsn: {lsn}, prev 0/03000110, desc: {description}"


def certain(_xid: int) -> bool:
    """Say of each transaction that it began behind the first line."""
    return True


INSERT = "INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 0"
STATISTIC = "INSERT off 9 flags 0x00, blkref #0: rel 1663/5/2619 blk 17"
STATISTIC_INDEX = "INSERT_LEAF off 3, blkref #0: rel 1663/5/2696 blk 2"
CLASS_IN_PLACE = "INPLACE off 33, blkref #0: rel 1663/5/1259 blk 4 FPW"
HINT = ", blkref #0: rel 1663/5/16384 blk 0 FPW"


def test_commits_of_a_transaction_name_what_it_touched_once() -> None:
    lines = [record("Heap", 740, INSERT), record("Heap", 740, INSERT), record("Transaction", 740, f"COMMIT {AT}", lsn="0/3000200")]
    assert list(commits(lines, certain)) == [Commit(740, "0/3000200", AT, ("1663/5/16384",))]
    assert next(commits(lines, certain)).as_result() == {"xid": 740, "lsn": "0/3000200", "committed_at": AT, "relations": ["1663/5/16384"]}


@pytest.mark.parametrize(
    ("lines", "xids"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([record("Heap", 740, INSERT)], [], id="never committed"),
        pytest.param([record("Heap", 740, INSERT), record("Transaction", 740, f"ABORT {AT}")], [], id="rolled back"),
        pytest.param([record("Transaction", 740, f"PREPARE gid two: {AT}")], [740], id="only prepared"),
        pytest.param([record("Transaction", 0, f"COMMIT_PREPARED 740: {AT}")], [740], id="prepared and committed"),
        pytest.param([record("Transaction", 0, f"ABORT_PREPARED 740: {AT}")], [], id="prepared and rolled back"),
        pytest.param([record("Transaction", 740, f"COMMIT {AT}; inval msgs: catcache 51 relcache 16384")], [740], id="with invalidations"),
        pytest.param([record("XLOG", 0, "CHECKPOINT_ONLINE redo 0/3000110; tli 1")], [], id="a checkpoint"),
        pytest.param(["pg_waldump: error: error in WAL record at 0/3000148: invalid record length", "", "rmgr: odd"], [], id="no record"),
    ],
)
def test_commits_are_those_that_committed(lines: list[str], xids: list[int]) -> None:
    assert [commit.xid for commit in commits(lines, certain)] == xids


def test_commits_of_subtransactions_count_once_with_all_that_they_touched() -> None:
    lines = [
        record("Heap", 741, INSERT),
        record("Heap", 742, "INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16390 blk 0"),
        record("Transaction", 740, f"COMMIT {AT}; subxacts: 741 742"),
    ]
    [commit] = commits(lines, certain)
    assert (commit.xid, commit.relations) == (740, ("1663/5/16384", "1663/5/16390"))


def test_commits_forget_what_an_earlier_transaction_of_that_id_touched() -> None:
    lines = [record("Heap", 740, INSERT), record("Transaction", 740, f"ABORT {AT}"), record("Transaction", 740, f"COMMIT {AT}")]
    assert next(commits(lines, certain)).relations == ()


@pytest.mark.parametrize(
    ("records", "only_statistics"),
    [
        pytest.param([("Heap", STATISTIC)], True, id="statistics"),
        pytest.param([("Heap", STATISTIC), ("Btree", STATISTIC_INDEX), ("Heap", CLASS_IN_PLACE), ("XLOG", "FPI_FOR_HINT " + HINT)], True, id="ANALYZE"),
        pytest.param([("Heap", STATISTIC), ("Heap2", "PRUNE latestRemovedXid 0" + HINT)], True, id="with pruning"),
        pytest.param([("Heap", STATISTIC), ("Heap2", "PRUNE_ON_ACCESS snapshotConflictHorizon: 0" + HINT)], True, id="with pruning of 17"),
        pytest.param([("Heap", STATISTIC), ("Heap", INSERT)], False, id="statistics and a row"),
        pytest.param([("Heap", INSERT)], False, id="a row"),
        pytest.param([("Heap", CLASS_IN_PLACE)], False, id="in place alone"),
        pytest.param([("Heap", STATISTIC.replace("/2619", "/26190"))], False, id="a file whose number begins alike"),
        pytest.param([("Standby", "LOCK xid 740 db 5 rel 16384")], False, id="a lock alone"),
        pytest.param([], False, id="nothing known of it"),
    ],
)
def test_commits_of_analyze_alone_are_told_apart(records: list[tuple[str, str]], only_statistics: bool) -> None:
    lines = [record(manager, 740, description) for manager, description in records]
    [commit] = commits([*lines, record("Transaction", 740, f"COMMIT {AT}")], certain)
    assert commit.only_statistics is only_statistics


def statistics_of(xid: int, end: str = "") -> list[str]:
    """Return what is left to read of a transaction whose earlier records lie before the first line."""
    return [record("Heap", xid, STATISTIC), record("Btree", xid, STATISTIC_INDEX), record("Transaction", xid, f"COMMIT {AT}{end}")]


def test_commits_of_a_load_whose_rows_lie_before_the_first_line_are_not_statistics_alone() -> None:
    asked: list[int] = []

    def began_at_741(xid: int) -> bool:
        asked.append(xid)
        return xid >= 741

    lines = [*statistics_of(740), *statistics_of(741), record("Heap", 742, INSERT), record("Transaction", 742, f"COMMIT {AT}")]
    assert [(commit.xid, commit.only_statistics) for commit in commits(lines, began_at_741)] == [(740, False), (741, True), (742, False)]
    assert asked == [740, 741], "only where it matters"


def test_commits_of_a_parent_that_began_before_the_first_line_are_not_statistics_alone() -> None:
    lines = [record("Heap", 745, STATISTIC), record("Transaction", 740, f"COMMIT {AT}; subxacts: 745")]
    [commit] = commits(lines, lambda xid: xid >= 741)
    assert (commit.xid, commit.only_statistics) == (740, False)


def test_commits_of_prepared_statistics_are_never_told_apart() -> None:
    lines = [record("Heap", 740, STATISTIC), record("Transaction", 740, f"PREPARE gid two: {AT}"), record("Transaction", 0, f"COMMIT_PREPARED 740: {AT}")]
    assert [commit.only_statistics for commit in commits(lines, certain)] == [False]
    assert [commit.only_statistics for commit in commits(lines[:2], certain)] == [False]


def snapshot(following: int, running: str = "") -> str:
    return record("Standby", 0, f"RUNNING_XACTS nextXid {following} latestCompletedXid {following - 1} oldestRunningXid {following}{running}")


@pytest.mark.parametrize(
    ("lines", "following"),
    [
        pytest.param([], None, id="nothing"),
        pytest.param([record("Heap", 740, INSERT), record("Transaction", 740, f"COMMIT {AT}")], None, id="no snapshot: others may have been assigned before"),
        pytest.param([record("XLOG", 0, "CHECKPOINT_ONLINE redo 0/3000110; tli 1; xid 0:740")], None, id="an online checkpoint's id is older than its record"),
        pytest.param([snapshot(740)], 740, id="a snapshot"),
        pytest.param([snapshot(740, "; 2 xacts: 738 739"), record("Heap", 738, INSERT)], 740, id="a snapshot, and one that was running"),
        pytest.param([record("Heap", 739, INSERT), snapshot(740), record("Heap", 741, INSERT)], 742, id="a record behind it"),
        pytest.param([snapshot(740), record("Heap", 741, INSERT), record("Heap", 740, INSERT)], 742, id="the latest id is not the last"),
        pytest.param([snapshot(740), record("Heap", 741, INSERT), snapshot(750)], 750, id="a second snapshot"),
        pytest.param([snapshot(740), record("Heap2", 0, "PRUNE latestRemovedXid 0")], 740, id="no transaction's record"),
        pytest.param([snapshot(2**32 - 1), record("Heap", 2**32 - 1, INSERT)], 0, id="the last id of 32 bits"),
        pytest.param([snapshot(2**32 - 1), record("Heap", 3, INSERT)], 4, id="ids began anew"),
        pytest.param([snapshot(3), record("Heap", 2**32 - 1, INSERT)], 3, id="an old one behind that"),
        pytest.param(["first record is after 0/3000000, at 0/3000028, skipping over 40 bytes", snapshot(740)], 740, id="no record"),
    ],
)
def test_next_xid_is_the_first_without_a_record(lines: list[str], following: int | None) -> None:
    assert next_xid(lines) == following


@pytest.mark.parametrize(
    ("xid", "other", "older"),
    [(739, 740, True), (740, 740, False), (741, 740, False), (2**32 - 1, 3, True), (3, 2**32 - 1, False), (0, 2**31, True)],
)
def test_precedes_goes_by_a_circle_of_32_bits(xid: int, other: int, older: bool) -> None:
    assert precedes(xid, other) is older
