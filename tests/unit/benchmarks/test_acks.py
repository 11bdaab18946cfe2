# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe's log: round trip, gaps, lost rows."""

from __future__ import annotations

import pytest

from benchmarks import acks
from benchmarks.acks import Ack, AckLog


def log_of(*points: tuple[float, str], stop: float | None = None) -> AckLog:
    return AckLog(0.0, stop, tuple(Ack(number, at, host) for number, (at, host) in enumerate(points, 1)))


def test_parse_ack_log_written_lines_round_trip() -> None:
    log = AckLog(1.5, 9.25, (Ack(1, 2.0, "a:5432"), Ack(3, 4.000001, "b:5432")))
    text = acks.format_start(1.5) + acks.format_ack(log.acks[0]) + acks.format_down(3.0, "a:5432 server\nclosed  it")
    text += acks.format_ack(log.acks[1]) + acks.format_stop(9.25)
    assert acks.parse_ack_log(text) == log


def test_parse_ack_log_killed_probe_ignores_torn_line() -> None:
    assert acks.parse_ack_log("start 1.0\nack 1 2.0 a\nack 2 3.") == AckLog(1.0, None, (Ack(1, 2.0, "a"),))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ack 1 2.0 a\n",
        "start 1.0\nack 1 2.0\n",
        "start 1.0\nack x 2.0 a\n",
        "start\n",
        "start 1.0\nnoise 2\n",
        "start 1.0\n\nstop 2.0\n",
    ],
    ids=["empty", "no_start", "short_ack", "bad_number", "bare_start", "unknown", "blank"],
)
def test_parse_ack_log_foreign_text_is_refused(text: str) -> None:
    with pytest.raises(acks.AckLogError):
        acks.parse_ack_log(text)


@pytest.mark.parametrize(
    ("log", "seconds"),
    [
        (log_of(), None),
        (log_of((1.0, "a")), None),
        (log_of((1.0, "a"), stop=3.0), 2.0),
        (log_of((1.0, "a"), (1.5, "a"), (4.0, "b"), (4.5, "b"), stop=5.0), 2.5),
        (log_of((1.0, "a"), (2.0, "a"), stop=12.0), 10.0),
        (log_of((1.0, "a"), (2.0, "a")), 1.0),
    ],
    ids=["no_ack", "one_ack_no_stop", "one_ack_then_stop", "in_the_middle", "never_came_back", "killed_probe"],
)
def test_longest_gap(log: AckLog, seconds: float | None) -> None:
    gap = acks.longest_gap(log)
    assert (gap.seconds if gap else None) == seconds


def test_longest_gap_without_return_names_no_host() -> None:
    gap = acks.longest_gap(log_of((1.0, "a"), stop=3.0))
    assert gap is not None and (gap.host_before, gap.host_after) == ("a", None)


def test_handover_gap_is_not_a_longer_stall_on_one_host() -> None:
    log = log_of((1.0, "a"), (5.0, "a"), (6.0, "b"), (9.0, "b"), stop=20.0)
    gap = acks.handover_gap(log)
    assert gap is not None and (gap.start_seconds, gap.end_seconds, gap.host_after) == (5.0, 6.0, "b")


def test_handover_gap_writes_that_stay_give_none() -> None:
    assert acks.handover_gap(log_of((1.0, "a"), (2.0, "a"), stop=9.0)) is None


@pytest.mark.parametrize(("since", "number"), [(0.0, 1), (1.0, 1), (1.1, 2), (2.1, None)])
def test_first_ack_since(since: float, number: int | None) -> None:
    found = acks.first_ack_since(log_of((1.0, "a"), (2.0, "b")), since)
    assert (found.number if found else None) == number


def test_check_rows_finds_lost_doubled_and_unacknowledged() -> None:
    log = log_of((1.0, "a"), (2.0, "a"), (3.0, "a"), (4.0, "b"))
    rows = acks.check_rows(log, [1, 3, 3, 7, 4])
    assert rows == acks.RowCheck(acknowledged=4, lost=(2,), twice=(3,), unacknowledged=(7,))


def test_check_rows_all_present_is_clean() -> None:
    assert acks.check_rows(log_of((1.0, "a"), (2.0, "a")), [2, 1]) == acks.RowCheck(2, (), (), ())
