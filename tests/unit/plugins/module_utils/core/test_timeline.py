# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of timeline histories, with files that PostgreSQL wrote."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import TimelineError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import (
    Switch,
    contains,
    fork_point,
    format_history,
    history_file_name,
    parse_history,
)

FIXTURES = Path(__file__).parent / "fixtures"
REASON = "no recovery target specified"
FROM_1_TO_2 = (Switch(1, 100, REASON),)
FROM_1_TO_2_EARLIER = (Switch(1, 80, REASON),)
FROM_1_TO_2_TO_3 = (Switch(1, 100, REASON), Switch(2, 200, REASON))
FROM_1_TO_3 = (Switch(1, 150, REASON),)
TARGET_BEFORE_SWITCH = (Switch(1, 100, REASON), Switch(2, 60, "after LSN 0/38"))


@pytest.mark.parametrize(
    ("file_name", "switches"),
    [
        pytest.param(
            "pg15_00000003.history",
            (Switch(1, 0x30B2BD8, REASON), Switch(2, 0x30B2DE0, REASON)),
            id="pg15-two-promotions",
        ),
        pytest.param(
            "pg16_00000003.history",
            (Switch(1, 0x30B6068, REASON), Switch(2, 0x30B6270, REASON)),
            id="pg16-two-promotions",
        ),
        pytest.param(
            "pg18_00000003.history",
            (Switch(1, 0xC0B5B60, REASON), Switch(2, 0xC0B5DB0, REASON)),
            id="pg18-two-promotions",
        ),
        pytest.param(
            "pg15_after_earlier_target_00000003.history",
            (Switch(1, 0x4000000, REASON), Switch(2, 0x30B2B58, "after LSN 0/30B2B28")),
            id="pg15-recovered-to-before-the-first-switch",
        ),
    ],
)
def test_parse_history_real_file_reads_and_writes_the_same_lines(file_name: str, switches: tuple[Switch, ...]) -> None:
    text = (FIXTURES / file_name).read_bytes().decode()

    assert parse_history(text) == switches
    # A recovery target's reason ends with a line feed of its own (PostgreSQL 15), hence the strip.
    assert format_history(switches) == text.rstrip("\n") + "\n"


@pytest.mark.parametrize(
    ("text", "switches"),
    [
        pytest.param("", (), id="empty"),
        pytest.param("# a comment\n\n \t\n", (), id="comments-and-blanks"),
        pytest.param("1\t0/64", (Switch(1, 100, ""),), id="no-reason-no-line-feed"),
        pytest.param("  1 0/64 why not\n", (Switch(1, 100, "why not"),), id="blanks-for-tabs"),
        pytest.param('1\t0/64\tat "a\tb\u2028é"\n', (Switch(1, 100, 'at "a\tb\u2028é"'),), id="odd-reason"),
        pytest.param("5\t0/64\tx\n7\t0/64\ty\n", (Switch(5, 100, "x"), Switch(7, 100, "y")), id="gaps-and-equal-lsns"),
    ],
)
def test_parse_history_legal_returns_switches(text: str, switches: tuple[Switch, ...]) -> None:
    assert parse_history(text) == switches


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("one\t0/64\tx\n", id="timeline-not-a-number"),
        pytest.param("1\n", id="no-lsn"),
        pytest.param("1\t100\tx\n", id="lsn-without-slash"),
        pytest.param("1\t0/123456789\tx\n", id="lsn-too-long"),
        pytest.param("0\t0/64\tx\n", id="timeline-0"),
        pytest.param("4294967296\t0/64\tx\n", id="timeline-too-large"),
        pytest.param("2\t0/64\tx\n1\t0/64\ty\n", id="descending"),
        pytest.param("1\t0/64\tx\n1\t0/64\ty\n", id="twice"),
    ],
)
def test_parse_history_malformed_raises(text: str) -> None:
    with pytest.raises(TimelineError) as caught:
        parse_history(text)
    assert caught.value.reason == "bad_timeline_history"


def test_parse_history_malformed_names_the_line() -> None:
    with pytest.raises(TimelineError, match="line 3"):
        parse_history("1\t0/64\tx\n\nbroken\n")


def test_format_history_round_trip_keeps_random_histories() -> None:
    rng = random.Random(15)
    for dummy in range(200):
        timelines = sorted(rng.sample(range(1, 50), rng.randint(0, 6)))
        switches = tuple(
            Switch(timeline, rng.getrandbits(64), "".join(rng.choices("a '\"\\\t#:%é\u2028", k=rng.randint(0, 12))))
            for timeline in timelines
        )
        assert parse_history(format_history(switches)) == switches


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param((Switch(1, 100, "a\nb"),), id="line-break-in-reason"),
        pytest.param((Switch(2, 100, ""), Switch(1, 200, "")), id="descending"),
        pytest.param((Switch(0, 100, ""),), id="timeline-0"),
    ],
)
def test_format_history_impossible_raises(switches: tuple[Switch, ...]) -> None:
    with pytest.raises(TimelineError):
        format_history(switches)


@pytest.mark.parametrize(
    ("timeline", "name"),
    [(2, "00000002.history"), (0x1F, "0000001F.history"), (2**32 - 1, "FFFFFFFF.history")],
    ids=["two", "upper-case", "last"],
)
def test_history_file_name_legal_returns_name(timeline: int, name: str) -> None:
    assert history_file_name(timeline) == name


@pytest.mark.parametrize("timeline", [0, -1, 2**32])
def test_history_file_name_impossible_raises(timeline: int) -> None:
    with pytest.raises(TimelineError):
        history_file_name(timeline)


@pytest.mark.parametrize(
    ("history_a", "timeline_a", "history_b", "timeline_b", "common"),
    [
        pytest.param((), 1, (), 1, (1, None), id="both-on-1"),
        pytest.param(FROM_1_TO_2, 2, FROM_1_TO_2, 2, (2, None), id="both-on-2"),
        pytest.param((), 1, FROM_1_TO_2, 2, (1, 100), id="old-primary-and-promoted"),
        pytest.param((), 1, FROM_1_TO_2_TO_3, 3, (1, 100), id="two-promotions-behind"),
        pytest.param(FROM_1_TO_2, 2, FROM_1_TO_2_TO_3, 3, (2, 200), id="second-promotion"),
        pytest.param(FROM_1_TO_2, 2, FROM_1_TO_3, 3, (1, 100), id="both-promoted-from-1"),
        pytest.param(FROM_1_TO_2, 2, FROM_1_TO_2_EARLIER, 2, (1, 80), id="same-number-other-switch"),
        pytest.param(FROM_1_TO_2_EARLIER, 2, FROM_1_TO_2_TO_3, 3, (1, 80), id="same-number-other-switch-deeper"),
        pytest.param((), 1, TARGET_BEFORE_SWITCH, 3, (1, 60), id="target-before-first-switch-seen-from-1"),
        pytest.param(FROM_1_TO_2, 2, TARGET_BEFORE_SWITCH, 3, (1, 60), id="target-before-first-switch-seen-from-2"),
    ],
)
def test_fork_point_two_servers_returns_newest_common_point(
    history_a: tuple[Switch, ...],
    timeline_a: int,
    history_b: tuple[Switch, ...],
    timeline_b: int,
    common: tuple[int, int | None],
) -> None:
    servers = [(history_a, timeline_a), (history_b, timeline_b)]
    for one, other in (servers, servers[::-1]):
        assert fork_point(*one, *other) == common


def test_fork_point_no_common_ancestor_raises() -> None:
    with pytest.raises(TimelineError) as caught:
        fork_point((), 2, FROM_1_TO_2, 2)
    assert caught.value.reason == "no_common_timeline"
    assert caught.value.observed == "2 and 1"


@pytest.mark.parametrize("timeline", [1, 2], ids=["below", "equal"])
def test_fork_point_history_of_another_timeline_raises(timeline: int) -> None:
    with pytest.raises(TimelineError) as caught:
        fork_point(FROM_1_TO_2_TO_3, timeline, (), 1)
    assert caught.value.reason == "bad_timeline_history"


@pytest.mark.parametrize(
    ("history", "timeline", "of_timeline", "lsn", "expected"),
    [
        pytest.param((), 1, 1, 10**9, True, id="own-timeline-has-no-end"),
        pytest.param(FROM_1_TO_2, 2, 2, 10**9, True, id="own-timeline-after-promotion"),
        pytest.param(FROM_1_TO_2, 2, 1, 99, True, id="ancestor-before-switch"),
        pytest.param(FROM_1_TO_2, 2, 1, 100, True, id="ancestor-at-switch"),
        pytest.param(FROM_1_TO_2, 2, 1, 101, False, id="ancestor-past-switch"),
        pytest.param(FROM_1_TO_2_TO_3, 3, 2, 200, True, id="middle-at-switch"),
        pytest.param(FROM_1_TO_2_TO_3, 3, 2, 201, False, id="middle-past-switch"),
        pytest.param(FROM_1_TO_2_TO_3, 3, 1, 101, False, id="first-past-its-own-switch"),
        pytest.param((), 1, 2, 0, False, id="future-timeline"),
        pytest.param(FROM_1_TO_3, 3, 2, 0, False, id="sibling-timeline"),
        pytest.param(TARGET_BEFORE_SWITCH, 3, 1, 60, True, id="at-target-before-first-switch"),
        pytest.param(TARGET_BEFORE_SWITCH, 3, 1, 61, False, id="past-target-before-first-switch"),
        pytest.param(TARGET_BEFORE_SWITCH, 3, 2, 100, False, id="middle-timeline-left-no-wal"),
    ],
)
def test_contains_position_is_in_the_past_or_not(
    history: tuple[Switch, ...], timeline: int, of_timeline: int, lsn: int, expected: bool
) -> None:
    assert contains(history, timeline, of_timeline, lsn) is expected


def test_contains_history_of_another_timeline_raises() -> None:
    with pytest.raises(TimelineError):
        contains(FROM_1_TO_2_TO_3, 2, 1, 0)


def test_contains_shutdown_checkpoint_that_starts_at_the_switch_is_not_in_the_past() -> None:
    # PostgreSQL 15: the standby was down when the primary stopped, then promoted at the LSN where the old primary's
    # shutdown checkpoint starts. The old primary cannot follow: "forked off ... before current recovery point".
    history = parse_history("1\t0/3015FB0\tno recovery target specified\n")
    checkpoint_lsn = 0x3015FB0

    assert contains(history, 2, 1, checkpoint_lsn) is True
    assert contains(history, 2, 1, checkpoint_lsn + 1) is False
