# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what is read from pg_waldump's output; its lines are those of PostgreSQL 15 unless said otherwise."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.wal_records import Commit, commits

AT = "2026-01-31 03:12:45.678901 UTC"


def record(manager: str, xid: int, description: str, *, lsn: str = "0/3000148") -> str:
    return f"rmgr: {manager:<11} len (rec/tot):     54/   150, tx: {xid:>10}, lsn: {lsn}, prev 0/03000110, desc: {description}"


INSERT = "INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 0"
STATISTIC = "INSERT off 9 flags 0x00, blkref #0: rel 1663/5/2619 blk 17"
STATISTIC_INDEX = "INSERT_LEAF off 3, blkref #0: rel 1663/5/2696 blk 2"
CLASS_IN_PLACE = "INPLACE off 33, blkref #0: rel 1663/5/1259 blk 4 FPW"
HINT = ", blkref #0: rel 1663/5/16384 blk 0 FPW"


def test_commits_of_a_transaction_name_what_it_touched_once() -> None:
    lines = [record("Heap", 740, INSERT), record("Heap", 740, INSERT), record("Transaction", 740, f"COMMIT {AT}", lsn="0/3000200")]
    assert list(commits(lines)) == [Commit(740, "0/3000200", AT, ("1663/5/16384",))]
    assert next(commits(lines)).as_result() == {"xid": 740, "lsn": "0/3000200", "committed_at": AT, "relations": ["1663/5/16384"]}


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
    assert [commit.xid for commit in commits(lines)] == xids


def test_commits_of_subtransactions_count_once_with_all_that_they_touched() -> None:
    lines = [
        record("Heap", 741, INSERT),
        record("Heap", 742, "INSERT off 1 flags 0x00, blkref #0: rel 1663/5/16390 blk 0"),
        record("Transaction", 740, f"COMMIT {AT}; subxacts: 741 742"),
    ]
    [commit] = commits(lines)
    assert (commit.xid, commit.relations) == (740, ("1663/5/16384", "1663/5/16390"))


def test_commits_forget_what_an_earlier_transaction_of_that_id_touched() -> None:
    lines = [record("Heap", 740, INSERT), record("Transaction", 740, f"ABORT {AT}"), record("Transaction", 740, f"COMMIT {AT}")]
    assert next(commits(lines)).relations == ()


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
    [commit] = commits([*lines, record("Transaction", 740, f"COMMIT {AT}")])
    assert commit.only_statistics is only_statistics
