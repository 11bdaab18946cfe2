# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a new copy of a standby is made of: the primary, or the newest backup in the repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.restore import Backup
from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import format_bytes

AUTO, PRIMARY, REPOSITORY = "auto", "primary", "repository"
# Replay is one process, and each segment is fetched for it: what a server that was just started gets through within minutes.
MOST_WAL_BYTES = 1024**3


@dataclass(frozen=True)
class Source:
    """PRIMARY or REPOSITORY, and why."""

    name: str
    why: str


def choose_source(
    wish: str, backups: Sequence[Backup], *, database_bytes: int, current_lsn: str, timeline: int, has_tablespaces: bool
) -> Source:
    """Return what to copy. `backups` are this cluster's, the oldest first; size, position and timeline are those of the server that would be copied.

    AUTO takes the way on which fewer bytes travel: the backup as the repository holds it, compressed, and the WAL since then, if that is not much,
    or the databases as they are. A backup of an older timeline is left to those who ask for it: it may have been taken of a branch that was given up.
    """
    if wish == PRIMARY:
        return Source(PRIMARY, "that is what was asked for")
    if not backups:
        return Source(PRIMARY, "the repository has no backup of this cluster")
    newest = backups[-1]
    if wish == REPOSITORY:
        return Source(REPOSITORY, "that is what was asked for")
    if has_tablespaces:
        return Source(PRIMARY, "it has tablespaces, whose places a restore would fill")
    if newest.timeline != timeline:
        return Source(PRIMARY, "the newest backup is of timeline {0}, and it is on {1}".format(newest.timeline or "unknown", timeline))
    if not newest.repository_bytes or not newest.stop_lsn:
        return Source(PRIMARY, "the repository does not say how large its newest backup is")
    since = max(0, parse_lsn(current_lsn) - parse_lsn(newest.stop_lsn))
    figures = "the newest backup takes {0} and the WAL since then {1}, the databases take {2}".format(
        format_bytes(newest.repository_bytes), format_bytes(since), format_bytes(database_bytes)
    )
    shorter = newest.repository_bytes + since < database_bytes and since <= MOST_WAL_BYTES
    return Source(REPOSITORY if shorter else PRIMARY, figures)
