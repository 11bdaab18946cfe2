# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How far the WAL in a directory reaches, read from its pages: for a server that is down and cannot be asked."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn, segment_name

PAGE_BYTES = 8192
SHORT_HEADER_BYTES, LONG_HEADER_BYTES = 24, 40  # of a page, and of a segment's first one
# XLogPageHeaderData (access/xlog_internal.h): uint16 magic, uint16 info, uint32 timeline, uint64 page address.
PAGE_HEADER = struct.Struct("<HHIQ")
# XLogRecord (access/xlogrecord.h) begins with: uint32 total length, uint32 transaction id, uint64 LSN of the record before it.
RECORD_HEADER = struct.Struct("<IIQ")
# XLogLongPageHeaderData, a segment's first: the short one, uint32 length of a record that goes on, padding, uint64 system identifier.
LONG_HEADER = struct.Struct("<HHIQI4xQ")
SEGMENT = re.compile(r"^([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})$")


def segment_positions(directory: Path, segment_bytes: int) -> dict[int, list[Path]]:
    """Return the WAL segments of a directory by their start position, each with the newest timeline first."""
    per_id = 0x100000000 // segment_bytes
    found: dict[int, list[Path]] = {}
    for path in directory.iterdir():
        match = SEGMENT.match(path.name)
        if match:
            start = (int(match.group(2), 16) * per_id + int(match.group(3), 16)) * segment_bytes
            found.setdefault(start, []).append(path)
    for paths in found.values():
        paths.sort(reverse=True)
    return found


def is_segment_of(path: Path, system_identifier: str, segment_bytes: int) -> bool:
    """Whether a file is a whole WAL segment that was written by that cluster; an archive may hold an earlier cluster's under the same names."""
    if not path.is_file() or path.stat().st_size != segment_bytes:
        return False
    with path.open("rb") as stream:
        return str(LONG_HEADER.unpack(stream.read(LONG_HEADER.size))[5]) == system_identifier


def newest_timeline(directory: Path) -> int:
    """Return the newest timeline that a segment in the directory is named after; 0 when there is none."""
    names = [path.name for path in directory.iterdir() if SEGMENT.match(path.name)]
    return max((int(name[:8], 16) for name in names), default=0)


def oldest_position(directory: Path, segment_bytes: int) -> int:
    """Return where the oldest segment in the directory starts; 0 when there is none."""
    return min(segment_positions(directory, segment_bytes), default=0)


def unbroken_from(directory: Path, lsn: int, segment_bytes: int) -> int:
    """Return where the unbroken run of segments begins that reaches to `lsn`; 0 when there is none.

    A segment that waits for an archive, or is left of a timeline that was given up, may lie before it, or behind it, alone.
    """
    positions = segment_positions(directory, segment_bytes)
    start = lsn - lsn % segment_bytes
    if start not in positions:  # at a boundary the next one may not be there yet
        start -= segment_bytes
    while start - segment_bytes in positions:
        start -= segment_bytes
    return start if start in positions else 0


def _valid_pages(path: Path, start: int, first_page: int) -> int:
    """Return how many pages from `first_page` on carry the address that they must have; a recycled segment keeps its old ones."""
    count = 0
    with path.open("rb") as stream:
        offset = first_page * PAGE_BYTES
        while True:
            stream.seek(offset)
            header = stream.read(PAGE_HEADER.size)
            if len(header) < PAGE_HEADER.size:
                return count
            if PAGE_HEADER.unpack(header)[3] != start + offset:
                return count
            count += 1
            offset += PAGE_BYTES


def behind_record(lsn: int, total_bytes: int, segment_bytes: int) -> int:
    """Return where the record behind one begins that starts at `lsn` and has `total_bytes`; page headers lie between its parts."""
    rest = total_bytes + -total_bytes % 8  # records are aligned
    while True:
        if lsn % PAGE_BYTES == 0:
            lsn += LONG_HEADER_BYTES if lsn % segment_bytes == 0 else SHORT_HEADER_BYTES
        here = min(rest, PAGE_BYTES - lsn % PAGE_BYTES)
        lsn, rest = lsn + here, rest - here
        if not rest and lsn % PAGE_BYTES:
            return lsn


def dump_arguments(directory: Path, timeline: int, start: int, end: int, segment_bytes: int) -> list[str]:
    """Return pg_waldump's arguments for a timeline's WAL from `start` to `end`, or as far as there are segments where that is 0.

    The first and the last segment are named. Without a name pg_waldump learns the size of segments from whichever file it meets first, and where that
    one was made and not written to yet, it ends with an error before the first record (PostgreSQL 15; seen after a kill).
    """
    first = start - start % segment_bytes
    there = max(_of_timeline(segment_positions(directory, segment_bytes), timeline), default=first)
    last = (end - 1) // segment_bytes * segment_bytes if end else there
    names = [segment_name(format_lsn(position), timeline, segment_bytes=segment_bytes) for position in (first, max(first, last))]
    return ["-p", str(directory), "-s", format_lsn(start), *(["-e", format_lsn(end)] if end else []), *names]


def is_end_of_wal(directory: Path, timeline: int, lsn: int, segment_bytes: int) -> bool:
    """Whether a timeline's WAL ends at `lsn`, behind the last record that could be read: nothing follows, or one record that was not completed."""
    end = wal_end(directory, lsn, segment_bytes, timeline=timeline)
    if end is None:
        return not _goes_on_behind(directory, timeline, lsn, segment_bytes)
    bound = parse_lsn(end)
    if bound <= lsn + PAGE_BYTES - lsn % PAGE_BYTES:
        return True
    lsn = behind_record(lsn, 0, segment_bytes)  # never in a page's header
    # What lies over two pages cannot be looked at like this, and anything else than a record's begin is damage.
    if PAGE_BYTES - lsn % PAGE_BYTES < RECORD_HEADER.size:
        return False
    (path,) = _of_timeline(segment_positions(directory, segment_bytes), timeline)[lsn - lsn % segment_bytes]
    with path.open("rb") as stream:
        stream.seek(lsn % segment_bytes)
        claimed, _xid, previous = RECORD_HEADER.unpack(stream.read(RECORD_HEADER.size))
    return 0 < previous < lsn and claimed > 0 and behind_record(lsn, claimed, segment_bytes) > bound


def _goes_on_behind(directory: Path, timeline: int, lsn: int, segment_bytes: int) -> bool:
    """Whether a timeline has WAL behind a position whose own segment is not there; a recycled segment has none yet."""
    later = {start: paths for start, paths in _of_timeline(segment_positions(directory, segment_bytes), timeline).items() if start > lsn}
    return any(_valid_pages(path, start, 0) for start, paths in later.items() for path in paths)


def _of_timeline(segments: dict[int, list[Path]], timeline: int) -> dict[int, list[Path]]:
    name = "{0:08X}".format(timeline)
    kept = {position: [path for path in paths if path.name.startswith(name)] for position, paths in segments.items()}
    return {position: paths for position, paths in kept.items() if paths}


def wal_end(directory: Path, start_lsn: int, segment_bytes: int, *, timeline: int = 0) -> Optional[str]:
    """Return an upper bound, to the page, of where valid WAL from `start_lsn` on ends, on any timeline or one; None when that WAL is not there."""
    segments = segment_positions(directory, segment_bytes)
    if timeline:
        segments = _of_timeline(segments, timeline)
    position = start_lsn - start_lsn % segment_bytes
    page = (start_lsn - position) // PAGE_BYTES
    end = None
    while position in segments:
        pages = max(_valid_pages(path, position, page) for path in segments[position])
        if pages:
            end = position + (page + pages) * PAGE_BYTES
        elif page == 0:
            break
        # A segment that was switched away from ends early (pg_switch_wal, archive_timeout): the next one tells whether WAL goes on.
        position, page = position + segment_bytes, 0
    return format_lsn(end) if end is not None else None
