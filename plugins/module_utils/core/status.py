# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The state of a cluster for people and programs: how bad it is, what repairs it, one row a node."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.archive import archive_problems
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover_slots import stray_slot_notes
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import ABSENT, OUTSIDE_RUN, PRIMARY, Node, Sender, Slot
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, out_of_sight, problems

COLUMNS = ("node", "role", "state", "tli", "lsn", "lag", "from", "slot", "sync")

HEALTHY = "healthy"
DEGRADED = "degraded"  # one node accepts writes, something else is wrong
NO_SINGLE_PRIMARY = "no_single_primary"  # two nodes or more accept writes, or none that could be seen
# How a run of status.yml ends, the worst cluster deciding. 1 and 4 are Ansible's own.
EXIT_STATUSES = {HEALTHY: 0, DEGRADED: 2, NO_SINGLE_PRIMARY: 3}

# The number of the JSON document's shape. Keys may be added under the same number; none is removed or changes its meaning.
SCHEMA = 1

_START_NEW_STANDBY = "ansible-playbook start_new_standby.yml"
# What repairs a problem, by its reason. Fields: {host} and {port} of the node that the problem is about.
_COMMANDS = {
    "two_primaries": "ansible-playbook heal.yml",
    "stale_primary": "ansible-playbook heal.yml",
    "unreachable": "ansible {host} -m ansible.builtin.ping",
    "primary_out_of_sight": "ansible-playbook status.yml",
    "no_data": "ansible-playbook initial_setup.yml",
    "cannot_be_asked": "ansible-playbook status.yml",
    "synchronous_degraded": "ansible-playbook heal.yml",
    "synchronous_set": "ansible-playbook heal.yml",
    "foreign_system": "ansible-inventory --host {host}",
    "archive_failing": "ansible-playbook initial_setup.yml",
    "archive_behind": "ansible-playbook initial_setup.yml",
    "replay_paused": "psql -p {port} -c 'SELECT pg_wal_replay_resume()'",
}
# A hint that says no more than the command does.
_ONLY_PLAYBOOKS = re.compile(r"Run \w+\.yml( first, then \w+\.yml|, or \w+\.yml when the cluster was never set up)?\.")


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


def format_seconds(seconds: float) -> str:
    """Return a time in seconds, with a tenth below ten: 0.0s, 9.9s, 120s."""
    return "{0:.{1}f}s".format(seconds, 1 if seconds < 9.95 else 0)


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
        lag = format_bytes(row["lag_bytes"]) + ("" if seconds is None else " " + format_seconds(seconds))
    slot = "-"
    if row["slot_active"] is not None:
        slot = ("on " if row["slot_active"] else "off ") + format_bytes(row["slot_retained_bytes"])
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


def is_partly_seen(topology: Topology) -> bool:
    """Whether --limit left hosts out, of which one may be the primary: none that is in sight was it."""
    return any(node.problem == OUTSIDE_RUN for node in topology.nodes) and not any(node.role == PRIMARY for node in topology.nodes)


def severity(topology: Topology, found: Sequence[Blocker]) -> str:
    """Return HEALTHY, DEGRADED or NO_SINGLE_PRIMARY for a cluster and its problems."""
    if topology.primary is None and not is_partly_seen(topology):
        return NO_SINGLE_PRIMARY
    return DEGRADED if found else HEALTHY


def worst(severities: Iterable[str]) -> str:
    """Return the worst of several clusters' severities; HEALTHY for none."""
    return max(severities, key=lambda each: EXIT_STATUSES[each], default=HEALTHY)


def repair_command(topology: Topology, problem: Blocker) -> str:
    """Return what to type against a problem: in the directory playbooks, or on the host itself where the advice says so."""
    if problem.reason in ("no_primary", "not_running") and is_partly_seen(topology):
        return "ansible-playbook status.yml"  # without --limit
    if problem.reason == "no_primary":
        never = all(node.state == ABSENT for node in topology.nodes)
        return "ansible-playbook " + ("initial_setup.yml" if never else "failover.yml")
    if problem.reason == "not_running" and not topology.primaries:
        return "ansible-playbook status.yml" if out_of_sight(topology) else "ansible-playbook failover.yml && " + _START_NEW_STANDBY
    node = topology.node(problem.host)
    if problem.reason == "replay_paused" and node and node.settings_too_low:
        name, value = min(node.settings_too_low.items())
        return "psql -p {0} -c 'ALTER SYSTEM SET {1} = {2}'".format(node.member.port, name, value)
    return _COMMANDS.get(problem.reason, _START_NEW_STANDBY).format(host=shlex.quote(problem.host), port=node.member.port if node else "")


def repair_advice(problem: Blocker) -> str:
    """Return what must be known before the command is typed; empty where the command says it all."""
    return "" if _ONLY_PLAYBOOKS.fullmatch(problem.hint) else problem.hint


def problem_entries(topology: Topology, found: Sequence[Blocker]) -> list[dict[str, str]]:
    """Return the problems as plain data: each blocker with the command that repairs it, and what to know before."""
    return [
        {**each.as_result(), "problem": each.problem, "advice": repair_advice(each), "command": repair_command(topology, each)} for each in found
    ]


def status_document(topology: Topology, *, observed_at: str) -> dict[str, Any]:
    """Return the cluster's state as the document that pg_status_format=json prints; plain data only, keys as README of the role has them."""
    found = (*problems(topology), *archive_problems(topology))
    level = severity(topology, found)
    return {
        "schema": SCHEMA,
        "cluster": topology.cluster,
        "observed_at": observed_at,
        "severity": level,
        "exit_status": EXIT_STATUSES[level],
        "primaries": [node.host for node in topology.primaries],
        "problems": problem_entries(topology, found),
        "notes": list(stray_slot_notes(topology)),
        "rows": status_rows(topology),
    }


def render_json(document: dict[str, Any]) -> str:
    """Return a document as one line, which begins with a brace and so can be told from Ansible's own lines."""
    return json.dumps(document, ensure_ascii=True, separators=(", ", ": "))


def headline(document: dict[str, Any]) -> str:
    """Return how the cluster of a document is, in a few words."""
    count = len(document["problems"])
    if document["severity"] == HEALTHY:
        return HEALTHY
    primaries = "{0} primaries".format(len(document["primaries"])) if document["primaries"] else "no primary"
    what = DEGRADED if document["severity"] == DEGRADED else primaries
    return "{0}, {1} problem{2}".format(what, count, "" if count == 1 else "s")


def _problem_line(problem: dict[str, str]) -> str:
    facts = ""
    if problem["observed"] or problem["required"]:
        facts = " (observed: {0}; required: {1})".format(problem["observed"] or "-", problem["required"] or "-")
    advice = problem["advice"] + " " if problem["advice"] else ""
    return "  ! {0}: {1}{2}. {3}Type: {4}".format(problem["host"], problem["problem"], facts, advice, problem["command"])


def render_document(document: dict[str, Any]) -> str:
    """Return the document of one cluster as text: its problems first, each ending with the command that repairs it, then one table."""
    lines = ["Cluster {0}: {1}".format(document["cluster"], headline(document))]
    lines.extend(_problem_line(problem) for problem in document["problems"])
    lines.extend("  - {0}".format(note) for note in document["notes"])
    lines.append(render_table([name.upper() for name in COLUMNS], [_cells(row) for row in document["rows"]]))
    return "\n".join(lines)


def render_status(topology: Topology) -> str:
    """Return the cluster as text, as people see it."""
    return render_document(status_document(topology, observed_at=""))
