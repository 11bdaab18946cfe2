# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the fault suite's checker concludes from the ledger's log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.chaos import checker
from tests.chaos.checker import Events, Split, Term, Write

ONE, TWO = Term("10.0.0.1", "100.5", 1), Term("10.0.0.2", "200.5", 2)


def write(term: Term, sent: float, at: float, number: int = 0, xid: int = 0) -> Write:
    return Write(term, sent, at, number, xid)


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"kind": kind, **fields}) + "\n"


SERVER = {"address": "10.0.0.1", "timeline": 1, "started": "100.5"}
LOG = (
    event("ack", number=7, sent=1.0, at=1.25, xid=740, **SERVER)
    + event("accept", sent=2.0, at=2.25, **SERVER)
    + event("read", number=7, sent=3.0, at=3.25, xid=740, **SERVER)
    + event("down", at=4.0, reason="gone")
)


def test_parse_events_of_each_kind_returns_them() -> None:
    assert checker.parse_events(LOG) == Events((write(ONE, 1.0, 1.25, 7, 740),), (write(ONE, 2.0, 2.25),), (write(ONE, 3.0, 3.25, 7, 740),))


def test_parse_events_with_unfinished_last_line_ignores_it() -> None:
    assert checker.parse_events(LOG + LOG.splitlines()[0]) == checker.parse_events(LOG)


@pytest.mark.parametrize("line", ["nonsense\n", event("other"), event("ack", number=1), event("ack", number=1, sent=0, at=0, xid="x", **SERVER), "[]\n"])
def test_parse_events_with_foreign_line_raises(line: str) -> None:
    with pytest.raises(checker.CheckerError):
        checker.parse_events(line + LOG)


SPLITS = {
    "one after the other": ([write(ONE, 1, 2), write(ONE, 3, 4)], [write(TWO, 5, 6), write(TWO, 7, 8)], None),
    "first returns after the second": ([write(ONE, 1, 2), write(ONE, 9, 10)], [write(TWO, 5, 6)], 0.0),
    "both at once": ([write(ONE, 1, 2), write(ONE, 6, 7)], [write(TWO, 3, 4), write(TWO, 8, 9)], 2.0),
    "asked at the same time, once each": ([write(ONE, 1, 3)], [write(TWO, 2, 4)], None),
    "a late answer proves nothing": ([write(ONE, 1, 2), write(ONE, 3, 9)], [write(TWO, 5, 6), write(TWO, 7, 8)], None),
    "same server again, restarted": ([write(ONE, 1, 2), write(Term("10.0.0.1", "300.5", 3), 9, 10)], [write(TWO, 5, 6)], None),
}


@pytest.mark.parametrize(("one", "other", "seconds"), SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize("by_witness", [False, True], ids=["commits", "witness"])
def test_splits_finds_two_servers_that_accepted_at_once(one: list[Write], other: list[Write], seconds: float | None, by_witness: bool) -> None:
    events = Events(tuple(one), tuple(other), ()) if by_witness else Events((*one, *other), (), ())
    found = checker.splits(events)
    assert bool(found) == (seconds is not None)
    assert [split.addresses for split in found] == [("10.0.0.1", "10.0.0.2")] * len(found)
    if seconds:
        assert found == (Split(("10.0.0.1", "10.0.0.2"), seconds),)


def events_of(*numbers: int, read: tuple[int, ...] = ()) -> Events:
    return Events(
        tuple(write(ONE, n, n + 0.5, n, 700 + n) for n in numbers), (), tuple(write(ONE, n, n + 0.5, n, 700 + n) for n in read)
    )


def test_check_rows_all_present_finds_nothing() -> None:
    assert checker.check_rows(events_of(1, 2, 3), [1, 2, 3, 4], forgiven=(), reported=()) == checker.Rows((), (), (), ())


def test_check_rows_reported_row_missing_is_not_unreported() -> None:
    rows = checker.check_rows(events_of(1, 2, 3), [1], forgiven=(), reported={(1, 703)})
    assert rows == checker.Rows(missing=(2, 3), unreported=(2,), reported_but_present=(), twice=())


def test_check_rows_report_of_another_timeline_does_not_count() -> None:
    assert checker.check_rows(events_of(1), [], forgiven=(), reported={(2, 701)}).unreported == (1,)


def test_check_rows_row_that_was_read_and_never_acknowledged_counts() -> None:
    assert checker.check_rows(events_of(1, read=(2,)), [1], forgiven=(), reported=()).missing == (2,)


def test_check_rows_forgiven_row_is_not_missed_again() -> None:
    assert checker.check_rows(events_of(1, 2), [1], forgiven={2}, reported=()).missing == ()


ANNOUNCED = "  At most 16384 bytes of WAL that only\n  pgsql1 holds are lost (page precision, 8192)\n"
UNKNOWN = "  How much the old primary had that pgsql2 lacks\n  cannot be known: its WAL could not be read\n"


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        pytest.param([], None, id="no failover"),
        pytest.param(["Refused: pgsql1 is primary and answers"], None, id="refused"),
        pytest.param([ANNOUNCED], 16384, id="one"),
        pytest.param([ANNOUNCED + ANNOUNCED], 16384, id="one that says it twice"),
        pytest.param([ANNOUNCED, ANNOUNCED.replace("16384", "0")], 16384, id="two failovers"),
        pytest.param([ANNOUNCED, UNKNOWN], None, id="one could not know"),
        pytest.param([UNKNOWN.replace("the old primary", "pgsql1")], None, id="a host's name"),
    ],
)
def test_announced_bytes_of_failovers(outputs: list[str], expected: int | None) -> None:
    assert checker.announced_bytes(outputs) == expected


@pytest.mark.parametrize(
    ("missing", "announced", "expected"), [(0, 0, False), (1, 0, True), (1, 150, False), (120, 16384, True), (120, None, False)]
)
def test_more_than_announced_counts_the_least_that_a_row_takes(missing: int, announced: int | None, expected: bool) -> None:
    assert checker.more_than_announced(missing, announced) is expected


def test_check_rows_reported_row_that_is_there_is_named() -> None:
    assert checker.check_rows(events_of(1), [1], forgiven=(), reported={(1, 701)}).reported_but_present == (1,)


def test_check_rows_row_twice_is_named() -> None:
    assert checker.check_rows(events_of(1), [1, 1], forgiven=(), reported=()).twice == (1,)


@pytest.mark.parametrize(("numbers", "longest"), [((1, 2, 3), 6.5), ((), 10.0), ((1, 9), 8.0), ((1, 5), 4.5)], ids=str)
def test_longest_gap_counts_the_edges(numbers: tuple[int, ...], longest: float) -> None:
    assert checker.longest_gap(events_of(*numbers), 0.0, 10.0) == longest


def test_since_leaves_out_what_was_sent_before() -> None:
    assert [w.number for w in events_of(1, 2, 3).since(2).commits] == [2, 3]


def test_reported_transactions_names_timeline_and_xid() -> None:
    reports = [{"timeline": 3, "transactions": [{"xid": 5}, {"xid": 6}]}, {"timeline": 4, "transactions": []}]
    assert checker.reported_transactions(reports) == {(3, 5), (3, 6)}


@pytest.mark.parametrize("report", [{}, {"timeline": "3", "transactions": []}, {"timeline": 3}], ids=str)
def test_reported_transactions_of_something_else_raises(report: dict[str, object]) -> None:
    with pytest.raises(checker.CheckerError):
        checker.reported_transactions([report])
