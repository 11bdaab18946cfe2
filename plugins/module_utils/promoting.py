# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Promotion of the standby on this host."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.server import POLL_SECONDS, Server, ServerError, clone_directory
from ansible_collections.pg_ops.replication.plugins.module_utils.slot_sql import SlotWish, apply_slots, plan_slots, read_slots
from ansible_collections.pg_ops.replication.plugins.module_utils.wal_pages import segment_positions

ARCHIVING = """
SELECT current_setting('archive_mode') AS mode, current_setting('archive_command') AS command,
       (SELECT bytes_per_wal_segment FROM pg_control_init()) AS segment_bytes,
       greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())::text AS end_lsn
"""
STATE = """
SELECT pg_is_in_recovery() AS in_recovery, pg_is_in_recovery() AND pg_is_wal_replay_paused() AS paused,
       CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_lsn() END::text AS position_lsn,
       CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END AS timeline
"""


def read_state(session: sql.Session) -> dict[str, Any]:
    """Return whether the server is in recovery, where it is, and its timeline once it writes."""
    row = session.row(STATE)
    return {**row, "timeline": int(row["timeline"], 16) if row["timeline"] else 0}


def require_promotable(state: dict[str, Any]) -> None:
    """Raise ServerError when replay is paused: the promotion would end recovery before everything received was replayed."""
    if state["paused"]:
        raise ServerError(
            "replay is paused", reason="replay_paused", observed="paused", required="running",
            hint="Run SELECT pg_wal_replay_resume() first; not where its log says that a setting is too low: raise that and restart it.",
        )


def await_primary(session: sql.Session, *, timeout_seconds: float) -> dict[str, Any]:
    """Wait until the server that was asked to promote accepts writes; raises ServerError at the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while session.value("SELECT pg_is_in_recovery()"):
        if time.monotonic() > deadline:
            raise ServerError(
                "the promotion did not end within {0} s".format(timeout_seconds), reason="promotion_timeout", observed="in recovery",
                required="accepting writes", hint="Look at the server's log; it may still become primary.",
            )
        time.sleep(POLL_SECONDS / 2)
    return read_state(session)


def archive_again(server: Server, session: sql.Session) -> int:
    """Have the WAL that was received archived by this server once more, and return how many segments; called before the promotion.

    A standby takes all that it receives for archived, but the dead primary may not have come to it, and then no backup can be recovered
    beyond it. Only for a command that takes what the archive has already: a plain one fails at it for ever. And only whole segments of the
    newest timeline: where a timeline ended, each server has other remains behind its end, and the archive takes one of them.
    """
    archiving = session.row(ARCHIVING)
    if archiving["mode"] != "on" or not any(program in archiving["command"] for program in ("archive_wal.py", "pgbackrest")):
        return 0
    marked, segment_bytes, end = 0, archiving["segment_bytes"], parse_lsn(archiving["end_lsn"] or "0/0")
    for start, paths in segment_positions(server.data("pg_wal"), segment_bytes).items():
        done = server.data("pg_wal", "archive_status", paths[0].name + ".done")
        if start + segment_bytes <= end:
            with contextlib.suppress(FileNotFoundError):  # it is marked already, or a restartpoint has just removed both
                done.rename(done.with_suffix(".ready"))
                marked += 1
    return marked


def _give_up_copy(server: Server) -> None:
    """See to it that a copy which was not swapped in before never is, for it is older than what this server is now. Its directory stays ours to remove."""
    if server.read_note("clone") and clone_directory(server).exists():
        server.write_note("clone", {"phase": "given up"})
    else:
        server.remove_note("clone")


def promote_local(server: Server, session: sql.Session, *, slots: Sequence[str], timeout_seconds: float) -> dict[str, Any]:
    """Promote this server and return its state as primary. Slots are made first, so that no WAL the others need goes.

    pg_promote() is told not to wait, because it looks only ten times a second; we look more often.
    """
    plan = plan_slots(read_slots(session), [SlotWish(name) for name in slots], [])
    apply_slots(session, plan)
    archive_again(server, session)
    session.rows("SELECT pg_promote(false)")
    state = await_primary(session, timeout_seconds=timeout_seconds)
    server.remove_note("fenced")
    _give_up_copy(server)
    return state


def has_checkpoint(session: sql.Session, state: dict[str, Any]) -> bool:
    """Whether the control file of a primary names its timeline already."""
    return bool(session.value("SELECT timeline_id FROM pg_control_checkpoint()") == state["timeline"])


def checkpoint(session: sql.Session, *, timeout_seconds: float) -> None:
    """Write a checkpoint now: only then does the control file name the new timeline, which pg_rewind compares."""
    session.rows("CHECKPOINT", timeout_seconds=timeout_seconds)
