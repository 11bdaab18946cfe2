# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of where WAL ends, on segments whose pages are written here: what no server leaves on demand. test_pg_divergence.py has real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.wal_pages import PAGE_BYTES, PAGE_HEADER, is_end_of_wal, unbroken_from

SEGMENT = 4 * PAGE_BYTES


def segment(directory: Path, number: int, *, pages: int = 4, timeline: int = 1, recycled_from: int | None = None) -> None:
    """Write a segment whose first pages carry their address, or that of another segment."""
    start = (number if recycled_from is None else recycled_from) * SEGMENT
    content = bytearray(SEGMENT)
    for page in range(pages):
        PAGE_HEADER.pack_into(content, page * PAGE_BYTES, *[0] * 3, start + page * PAGE_BYTES)
    per_id = 0x100000000 // SEGMENT
    (directory / f"{timeline:08X}{number // per_id:08X}{number % per_id:08X}").write_bytes(content)


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        pytest.param({}, True, id="nothing"),
        pytest.param({"number": 7}, False, id="a segment further on"),
        pytest.param({"number": 7, "recycled_from": 2}, True, id="a recycled one"),
        pytest.param({"number": 7, "timeline": 2}, True, id="one of another timeline"),
        pytest.param({"number": 3}, True, id="only what lies before"),
    ],
)
def test_wal_whose_segment_is_not_there_ends_only_where_nothing_follows(tmp_path: Path, later: dict[str, int], expected: bool) -> None:
    if later:
        segment(tmp_path, **later)
    assert is_end_of_wal(tmp_path, 1, 5 * SEGMENT + 100, SEGMENT) is expected


@pytest.mark.parametrize("before_end", [8, 16])
def test_a_record_that_begins_at_the_very_end_of_a_segment_cannot_be_looked_at(tmp_path: Path, before_end: int) -> None:
    """Its header lies over two segments: too little is left to read in the first."""
    segment(tmp_path, 5)
    segment(tmp_path, 6, pages=2)
    assert not is_end_of_wal(tmp_path, 1, 6 * SEGMENT - before_end, SEGMENT)


@pytest.mark.parametrize(
    ("numbers", "lsn", "first"),
    [
        pytest.param((5, 6, 7), 7 * SEGMENT + 100, 5, id="all of it"),
        pytest.param((2, 5, 6, 7), 7 * SEGMENT + 100, 5, id="one that waits for the archive lies alone before it"),
        pytest.param((5, 6, 9), 6 * SEGMENT + 100, 5, id="one of a timeline that was given up lies behind it"),
        pytest.param((5, 6), 7 * SEGMENT, 5, id="at a boundary, the next one not there yet"),
        pytest.param((2,), 7 * SEGMENT + 100, 0, id="none"),
        pytest.param((), 7 * SEGMENT + 100, 0, id="nothing"),
    ],
)
def test_unbroken_from_finds_what_a_standby_can_stream(tmp_path: Path, numbers: tuple[int, ...], lsn: int, first: int) -> None:
    for number in numbers:
        segment(tmp_path, number, timeline=1 if number in (2, 9) else 3)
    assert unbroken_from(tmp_path, lsn, SEGMENT) == first * SEGMENT
