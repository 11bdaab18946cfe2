# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The state of a cluster as rows for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Node, Sender, Slot
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems

COLUMNS = ("node", "role", "state", "tli", "lsn", "lag", "from", "slot", "sync")


def format_bytes(count: Optional[int]) -> str:
    """Return a count of bytes in at most six characters: 0, 812, 64k, 16M, 3.1G; '-' for None."""
    if count is None:
        return "-"
    size = float(count)
    for unit in ("", "k", "M", "G", "T"):
        if size < 1024 or unit == "T":
            break
        size /= 1024
    if not unit:
        return str(count)
    return "{0:.1f}{1}".format(size, unit) if size < 10 else "{0:.0f}{1}".format(size, unit)


def _sender_of(topology: Topology, node: Node) -> tuple[Optional[Node], Optional[Sender], Optional[Slot]]:
    upstream = topology.upstream_of(node)
    if upstream is None:
        return None, None, None
    senders = {sender.application_name: sender for sender in upstream.senders}
    slots = {slot.name: slot for slot in upstream.slots}
    return upstream, senders.get(node.member.application_name), slots.get(node.member.slot_name)


def _lag_bytes(topology: Topology, node: Node) -> Optional[int]:
    primary = topology.primary
    if primary is None or not primary.current_lsn or not node.replay_lsn or node.host == primary.host:
        return None
    return max(0, parse_lsn(primary.current_lsn) - parse_lsn(node.replay_lsn))


def _lag_seconds(sender: Optional[Sender], lag_bytes: Optional[int]) -> Optional[float]:
    if lag_bytes == 0:
        return 0.0
    return sender.replay_lag_seconds if sender else None


def status_rows(topology: Topology) -> list[dict[str, Any]]:
    """Return one row a node, the primary first: plain data, sizes in bytes, lag in bytes and seconds (None: unknown)."""
    rows: list[dict[str, Any]] = []
    for node in sorted(topology.nodes, key=lambda item: not item.is_running_primary):
        upstream, sender, slot = _sender_of(topology, node)
        primary = node.role == PRIMARY
        lag = _lag_bytes(topology, node)
        rows.append(
            {
                "node": node.host,
                "role": node.role or "-",
                "state": "streaming" if node.is_running_standby and node.is_streaming else ("fenced" if node.fenced else node.state),
                "timeline": node.timeline or node.control_timeline,
                "lsn": (node.current_lsn if primary else node.replay_lsn) or node.checkpoint_lsn,
                "lag_bytes": lag,
                "lag_seconds": None if primary else _lag_seconds(sender, lag),
                "upstream": "" if primary else (upstream.host if upstream else node.upstream.host),
                "slot": slot.name if slot and not primary else "",
                "slot_active": slot.active if slot and not primary else None,
                "slot_retained_bytes": slot.retained_bytes if slot and not primary else None,
                "sync_state": sender.sync_state if sender and not primary else "",
            }
        )
    return rows


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    lag = "-"
    if row["lag_bytes"] is not None:
        seconds = row["lag_seconds"]
        lag = format_bytes(row["lag_bytes"]) + ("" if seconds is None else " {0:.{1}f}s".format(seconds, 1 if seconds < 10 else 0))
    slot = "-"
    if row["slot_active"] is not None:
        slot = format_bytes(row["slot_retained_bytes"]) + ("" if row["slot_active"] else " off")
    return (
        row["node"], row["role"], row["state"], str(row["timeline"] or "-"), row["lsn"] or "-", lag, row["upstream"] or "-", slot,
        row["sync_state"] or "-",
    )


def render_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the rows below their headings in columns as wide as their widest cell; three nodes' state fits into 80 columns."""
    widths = [max(len(str(line[i])) for line in [headings, *rows]) for i in range(len(headings))]
    lines = []
    for line in [headings, *rows]:
        lines.append("  ".join(str(cell).ljust(width) for cell, width in zip(line, widths)).rstrip())
    return "\n".join(lines)


def render_status(topology: Topology) -> str:
    """Return the cluster as text: its problems first, each with the command that repairs it, then one table."""
    found = problems(topology)
    head = "Cluster {0}: {1}".format(topology.cluster, "healthy" if not found else "{0} problem(s)".format(len(found)))
    lines = [head]
    lines.extend("  ! " + problem.message for problem in found)
    lines.append(render_table([name.upper() for name in COLUMNS], [_cells(row) for row in status_rows(topology)]))
    return "\n".join(lines)
