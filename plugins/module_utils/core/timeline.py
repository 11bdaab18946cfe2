# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Timeline history files, and what they say about the common past of two servers.

A history lists the ancestors of one timeline, oldest first, each with the LSN at which its child left it. It does not
hold the timeline whose history it is, so every function takes that one next to it. Timeline 1 has no history file; its
history is empty. Source: timeline.c and pg_rewind's findCommonAncestorTimeline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import LsnError, TimelineError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn

_LINE = re.compile(r"[ \t]*([0-9]+)[ \t]+([0-9A-Fa-f/]+)(?:[ \t](.*))?")
_MAX_TIMELINE = 2**32 - 1


@dataclass(frozen=True)
class Switch:
    """The end of one ancestor: `timeline` was left at byte position `switch_lsn`, for `reason` (free text)."""

    timeline: int
    switch_lsn: int
    reason: str


def parse_history(text: str) -> tuple[Switch, ...]:
    """Return the switches of a history file, oldest first; empty for an empty file.

    Blank lines and lines that start with `#` are skipped, as PostgreSQL does. Raises TimelineError on a line that is
    not `timeline, LSN, reason`, and on timelines that do not ascend.
    """
    switches = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip(" \t\r")
        if content and not content.startswith("#"):
            switches.append(_parse_line(line, number))
    _require_ascending([switch.timeline for switch in switches])
    return tuple(switches)


def format_history(switches: Iterable[Switch]) -> str:
    """Return the history file for the switches, byte for byte as a promotion writes it.

    PostgreSQL copies the parent's file and puts an empty line before the line that it adds.
    Raises TimelineError if the switches do not ascend or a reason has a line break.
    """
    lines = []
    timelines = []
    for switch in switches:
        if "\n" in switch.reason:
            raise TimelineError(
                f"Cannot write the history line of timeline {switch.timeline}: its reason has a line break.",
                observed=switch.reason,
                required="a reason on one line",
            )
        timelines.append(switch.timeline)
        lines.append(f"{switch.timeline}\t{format_lsn(switch.switch_lsn)}\t{switch.reason}\n")
    _require_ascending(timelines)
    return "\n".join(lines)


def history_file_name(timeline: int) -> str:
    """Return the name of the history file of a timeline, such as `00000002.history`. Raises TimelineError."""
    _require_ascending([timeline])
    return f"{timeline:08X}.history"


def fork_point(
    history_a: Sequence[Switch],
    timeline_a: int,
    history_b: Sequence[Switch],
    timeline_b: int,
) -> tuple[int, int | None]:
    """Return the newest common point of two servers as (timeline, LSN).

    The LSN is None when both are still on one timeline, so that only their positions tell them apart. Two promotions
    of the same parent that took the same number at the same LSN look like one timeline; a history cannot show more.
    Raises TimelineError, reason `no_common_timeline`, if the servers share no ancestor, and reason
    `bad_timeline_history` if a history cannot belong to its timeline.
    """
    path_a = _path(history_a, timeline_a)
    path_b = _path(history_b, timeline_b)
    common = _common_length(path_a, path_b)
    if common == 0:
        raise TimelineError(
            f"Timelines {timeline_a} and {timeline_b} have no common ancestor: one history starts at timeline"
            f" {path_a[0][0]}, the other at {path_b[0][0]}.",
            reason="no_common_timeline",
            observed=f"{path_a[0][0]} and {path_b[0][0]}",
            required="the same first timeline",
            hint="Check that both servers are of one cluster and that the history files are complete.",
        )
    ends = [end for _timeline, end in path_a[common - 1 :] + path_b[common - 1 :] if end is not None]
    if not ends:
        return timeline_a, None
    lsn = min(ends)
    # Point-in-time recovery to a point before an earlier switch writes a later switch with a lower LSN; what the
    # servers share then ends on the older timeline that was being written at that LSN.
    while common > 1 and lsn < (path_a[common - 2][1] or 0):
        common -= 1
    return path_a[common - 1][0], lsn


def contains(history: Sequence[Switch], timeline: int, of_timeline: int, lsn: int) -> bool:
    """Return whether position (`of_timeline`, `lsn`) is in the past of a server on `timeline` with `history`.

    The position is an end of WAL, such as a replay LSN or a minimum recovery LSN: the switch point itself is still
    common. A record lies behind its LSN, so that one which starts at the switch point is not: for a checkpoint LSN
    pass that plus one. The server's own timeline has no end here, so how far the server has come must be compared
    separately. Raises TimelineError if the history cannot belong to the timeline.
    """
    path = _path(history, timeline)
    if of_timeline not in [ancestor for ancestor, _end in path]:
        return False
    # The lowest of the later switches counts, see fork_point.
    return all(lsn <= end for ancestor, end in path if end is not None and ancestor >= of_timeline)


def _parse_line(line: str, number: int) -> Switch:
    match = _LINE.fullmatch(line)
    if match is None:
        raise TimelineError(
            f"Cannot read line {number} of the timeline history: it is not a timeline, an LSN and a reason.",
            observed=line,
            required="timeline, LSN and reason, separated by tabs",
            hint="Compare the file with the copy in the WAL archive.",
        )
    try:
        switch_lsn = parse_lsn(match.group(2))
    except LsnError as error:
        raise TimelineError(
            f"Cannot read line {number} of the timeline history: {match.group(2)} is not an LSN.",
            observed=line,
            required=error.required,
            hint="Compare the file with the copy in the WAL archive.",
        ) from error
    return Switch(timeline=int(match.group(1)), switch_lsn=switch_lsn, reason=match.group(3) or "")


def _require_ascending(timelines: Sequence[int]) -> None:
    """Raise TimelineError unless the timelines ascend within 1 to 2**32 - 1."""
    previous = 0
    for timeline in timelines:
        if not previous < timeline <= _MAX_TIMELINE:
            raise TimelineError(
                f"Timeline {timeline} cannot stand here: it must be above {previous} and fit into 32 bits.",
                observed=", ".join(str(each) for each in timelines),
                required=f"ascending numbers from 1 to {_MAX_TIMELINE}",
                hint="Check that the history file belongs to this timeline.",
            )
        previous = timeline


def _path(history: Sequence[Switch], timeline: int) -> list[tuple[int, int | None]]:
    """Return each timeline that led to `timeline`, and it, with its end; the last has none."""
    _require_ascending([switch.timeline for switch in history] + [timeline])
    path: list[tuple[int, int | None]] = [(switch.timeline, switch.switch_lsn) for switch in history]
    return [*path, (timeline, None)]


def _common_length(path_a: Sequence[tuple[int, int | None]], path_b: Sequence[tuple[int, int | None]]) -> int:
    """Return how many leading timelines are the same: equal number, equal beginning."""
    length = 0
    begin_a: int | None = None
    begin_b: int | None = None
    for (timeline_a, end_a), (timeline_b, end_b) in zip(path_a, path_b):
        if timeline_a != timeline_b or begin_a != begin_b:
            break
        length += 1
        begin_a, begin_b = end_a, end_b
    return length
