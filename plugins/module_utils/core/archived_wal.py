# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which WAL segments a standby needs from an archive, and how its restore_command is asked for one."""

from __future__ import annotations

import re

from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn, segment_name
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import parse_history

# Each is fetched in full, and once more by the server. An archive lacks WAL at its old end (expired) or at its new one (not archived), which two
# segments tell; those between find a longer hole. A server that stops at a hole which they miss loses nothing: with the next run that hole is
# where the WAL that it needs begins, so that it is asked for, and the server is copied anew.
MOST_ASKED = 8
HISTORY = ".history"
# PostgreSQL's own %r as long as it knows of no restart point: nothing may be removed from the archive.
NO_RESTART_POINT = "0" * 24

_PLACEHOLDER = re.compile("%([fpr%])")


def missing_segments(primary: Node, from_lsn: str, *, segment_bytes: int) -> tuple[str, ...]:
    """Return the names of the segments from the one that holds `from_lsn` up to the oldest that the primary still has, without that one.

    Each has the newest timeline that begins in it or before it: recovery asks for that one first, and a promotion copies the WAL before
    its fork into it (XLogFileReadAnyTLI, PostgreSQL 13 to 18). Raises TimelineError or LsnError.
    """
    first = parse_lsn(from_lsn) // segment_bytes * segment_bytes
    switches = parse_history(primary.timeline_history)
    names = []
    for start in range(first, parse_lsn(primary.oldest_wal_lsn), segment_bytes):
        timeline = primary.timeline
        for switch in reversed(switches):
            if switch.switch_lsn < start + segment_bytes:
                break
            timeline = switch.timeline
        names.append(segment_name(format_lsn(start), timeline, segment_bytes=segment_bytes))
    return tuple(names)


def asked_files(missing: tuple[str, ...], *, own_timeline: int, timeline: int) -> tuple[str, ...]:
    """Return what the archive is asked for: all segments when they are few, otherwise the first, the last and some between.

    Where the primary's timeline is newer, its history file comes first: without it recovery would take the server's own for the last one.
    """
    history = ("{0:08X}{1}".format(timeline, HISTORY),) if timeline > own_timeline else ()
    if len(missing) <= MOST_ASKED:
        return history + missing
    return history + tuple(missing[number * (len(missing) - 1) // (MOST_ASKED - 1)] for number in range(MOST_ASKED))


def shell_command(restore_command: str, *, segment: str, path: str) -> str:
    """Return the shell's command that fetches a segment; what stands behind other percent signs stays, as in PostgreSQL 13 to 15."""
    values = {"f": segment, "p": path, "r": NO_RESTART_POINT, "%": "%"}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], restore_command)
