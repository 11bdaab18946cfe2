# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The fence: a server behind it accepts no writes and cannot be started read-write by mistake."""

from __future__ import annotations

from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server


def is_fenced(server: Server) -> bool:
    """Whether the server is down, would start as a standby, and carries the fence's note."""
    if not server.exists():
        return True
    noted = server.standby_signal.exists() and bool(server.read_note("fenced"))
    return noted and not server.postmaster_pid() and not server.outliving()


def lay_as_standby(server: Server) -> bool:
    """Whether the server was a standby before the fence, whose own files make every server look like one; a hand-over's do, too."""
    before = server.read_note("fenced")
    if before:
        return bool(before.get("standby"))
    return server.standby_signal.exists() and server.read_note("pending").get("operation") != "switchover"


def write_fence(server: Server, by: str, standby: bool) -> None:
    """Note the fence, and whether a standby is behind it: what its files say of a primary's promises is not said by one."""
    server.write_note("fenced", {"by": by, "standby": standby})


def fence(server: Server) -> bool:
    """Arm first, then end the server: a start that slips in between already is a standby's. Return whether one ran, or a part of one.

    The upstream is taken out, so that the fenced server does not follow anybody by itself until it is rejoined.
    """
    write_fence(server, "pg_fence", lay_as_standby(server))
    server.write_standby_signal()
    server.set_auto_conf({"primary_conninfo": None, "primary_slot_name": None})
    ran = bool(server.postmaster_pid())
    if ran:
        server.kill()
    return server.end_outliving(timeout_seconds=2, hanging_counts=False) or ran
