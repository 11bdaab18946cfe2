# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of LSN arithmetic."""

from __future__ import annotations

import random

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import LsnError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import (
    format_lsn,
    lag_bytes,
    most_advanced,
    parse_lsn,
    segment_name,
)

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("text", "position"),
    [
        pytest.param("0/0", 0, id="none"),
        pytest.param("16/B374D848", 0x16B374D848, id="documented"),
        pytest.param("16/b374d848", 0x16B374D848, id="lower-case"),
        pytest.param("1/00000000", 2**32, id="padded"),
        pytest.param("FFFFFFFF/FFFFFFFF", 2**64 - 1, id="last"),
    ],
)
def test_parse_lsn_legal_returns_position(text: str, position: int) -> None:
    assert parse_lsn(text) == position


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("16", id="no-slash"),
        pytest.param("/1", id="no-high-half"),
        pytest.param("1/", id="no-low-half"),
        pytest.param("1/2/3", id="two-slashes"),
        pytest.param(" 0/1", id="blank-before"),
        pytest.param("0/1\n", id="line-feed-after"),
        pytest.param("0/G", id="not-hexadecimal"),
        pytest.param("0/-1", id="negative"),
        pytest.param("0/0x1", id="prefixed"),
        pytest.param("0/123456789", id="nine-digits"),
        pytest.param("123456789/0", id="nine-digits-high"),
        pytest.param("0/\u0661", id="non-ascii-digit"),
    ],
)
def test_parse_lsn_malformed_raises(text: str) -> None:
    with pytest.raises(LsnError) as caught:
        parse_lsn(text)
    assert caught.value.reason == "bad_lsn"
    assert caught.value.observed == text


def test_format_lsn_round_trip_keeps_position() -> None:
    rng = random.Random(20)
    positions = [0, 1, 2**32 - 1, 2**32, 2**64 - 1, *(rng.getrandbits(rng.randint(1, 64)) for dummy in range(500))]

    assert [parse_lsn(format_lsn(position)) for position in positions] == positions


def test_format_lsn_needs_no_padding_and_is_upper_case() -> None:
    assert format_lsn(0xA0000000B) == "A/B"


@pytest.mark.parametrize("position", [-1, 2**64], ids=["negative", "too-large"])
def test_format_lsn_out_of_range_raises(position: int) -> None:
    with pytest.raises(LsnError):
        format_lsn(position)


@pytest.mark.parametrize(
    ("ahead", "behind", "distance"),
    [
        pytest.param("0/3000060", "0/3000060", 0, id="level"),
        pytest.param("0/3000060", "0/3000000", 0x60, id="one-record"),
        pytest.param("1/0", "0/FFFFFFFF", 1, id="across-the-halves"),
    ],
)
def test_lag_bytes_not_ahead_returns_distance(ahead: str, behind: str, distance: int) -> None:
    assert lag_bytes(ahead, behind) == distance


def test_lag_bytes_standby_ahead_raises_with_both_positions() -> None:
    with pytest.raises(LsnError, match="96 bytes ahead") as caught:
        lag_bytes("0/3000000", "0/3000060")
    assert (caught.value.reason, caught.value.observed) == ("lsn_ahead", "0/3000060")
    assert caught.value.required == "at most 0/3000000"


@pytest.mark.parametrize(
    ("lsns", "greatest"),
    [
        pytest.param((), None, id="nothing-given"),
        pytest.param((None, None), None, id="nothing-known"),
        pytest.param((None, "0/5"), "0/5", id="not-yet-streaming"),
        pytest.param(("0/3000000", "0/30B2BD8"), "0/30B2BD8", id="receive-fell-back-to-segment-start"),
        pytest.param(("9/0", "10/0"), "10/0", id="by-number-not-by-text"),
        pytest.param(("00/0a",), "0/A", id="written-as-postgresql-does"),
    ],
)
def test_most_advanced_known_and_unknown_returns_greatest(lsns: tuple[str | None, ...], greatest: str | None) -> None:
    assert most_advanced(*lsns) == greatest


def test_most_advanced_malformed_raises() -> None:
    with pytest.raises(LsnError):
        most_advanced("0/1", "")


@pytest.mark.parametrize(
    ("lsn", "timeline", "segment_bytes", "name"),
    [
        pytest.param("0/1500708", 1, 16 * MIB, "000000010000000000000001", id="from-pg_controldata-15"),
        pytest.param("0/C0B5B60", 2, 64 * MIB, "000000020000000000000003", id="64-MiB"),
        pytest.param("0/FFFFFFFF", 1, 16 * MIB, "0000000100000000000000FF", id="last-of-a-4-GiB-unit"),
        pytest.param("1/0", 1, 16 * MIB, "000000010000000100000000", id="boundary-names-the-next"),
        pytest.param("A/40000000", 0x1F, 1024 * MIB, "0000001F0000000A00000001", id="1-GiB"),
        pytest.param("0/100000", 1, MIB, "000000010000000000000001", id="1-MiB"),
    ],
)
def test_segment_name_legal_returns_file_name(lsn: str, timeline: int, segment_bytes: int, name: str) -> None:
    assert segment_name(lsn, timeline, segment_bytes=segment_bytes) == name


def test_segment_name_size_not_given_takes_16_mib() -> None:
    assert segment_name("0/2000000", 1) == "000000010000000000000002"


@pytest.mark.parametrize(
    ("timeline", "segment_bytes", "reason"),
    [
        pytest.param(0, 16 * MIB, "bad_timeline", id="timeline-0"),
        pytest.param(2**32, 16 * MIB, "bad_timeline", id="timeline-too-large"),
        pytest.param(1, 0, "bad_segment_size", id="no-size"),
        pytest.param(1, 3 * MIB, "bad_segment_size", id="not-a-power-of-two"),
        pytest.param(1, MIB // 2, "bad_segment_size", id="too-small"),
        pytest.param(1, 2048 * MIB, "bad_segment_size", id="too-large"),
    ],
)
def test_segment_name_impossible_raises(timeline: int, segment_bytes: int, reason: str) -> None:
    with pytest.raises(LsnError) as caught:
        segment_name("0/0", timeline, segment_bytes=segment_bytes)
    assert caught.value.reason == reason
