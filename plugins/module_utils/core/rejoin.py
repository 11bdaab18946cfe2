# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a server that is not a standby of the present primary becomes one, by the cheapest safe way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import Switch, contains, fork_point, parse_history
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems, standby_problem

NOTHING = "nothing"  # it streams as it should
FOLLOW = "follow"  # it runs as a standby and only follows the wrong server
START = "start"  # its WAL ends in the past of the primary
REWIND = "rewind"  # it has WAL that the primary lacks; pg_rewind takes it back
RECLONE = "reclone"  # only a new copy helps; the old directory is kept
REFUSE = "refuse"


@dataclass(frozen=True)
class RejoinPlan:
    """What is done with one node, why, and from where on its WAL is its own (empty when nothing is lost)."""

    action: str
    why: str
    fork_lsn: str = ""
    blockers: tuple[Blocker, ...] = ()


def _refuse(reason: str, node: Node, problem: str, observed: str, required: str, hint: str) -> RejoinPlan:
    return RejoinPlan(REFUSE, problem, blockers=(Blocker(reason, node.host, problem, observed, required, hint),))


def _history(node: Node) -> tuple[Switch, ...]:
    return parse_history(node.timeline_history) if node.timeline_history else ()


def _identity_refusal(node: Node, primary: Node) -> Optional[RejoinPlan]:
    if node.system_identifier and node.system_identifier != primary.system_identifier:
        return _refuse(
            "foreign_system", node, "its data belongs to another cluster", "system identifier " + node.system_identifier,
            primary.system_identifier, "Check the inventory; initial_setup.yml with -e pg_standby_replace_data=true sets the data aside.",
        )
    if node.major and primary.major and node.major != primary.major:
        return _refuse(
            "version_mismatch", node, "its data directory has another major version than {0}".format(primary.host), str(node.major),
            str(primary.major), "Install PostgreSQL {0} there.".format(primary.major),
        )
    if node.is_running_primary:
        return _refuse(
            "runs_as_primary", node, "it accepts writes beside {0}".format(primary.host), "running primary", "a stopped server or a standby",
            "Decide which of the two is right, stop the other, then repeat.",
        )
    return None


def _fork_lsn(node: Node, primary: Node) -> str:
    _timeline, lsn = fork_point(_history(node), node.timeline, _history(primary), primary.timeline)
    if lsn is None:
        return ""
    return format_lsn(lsn)


def plan_stopped(node: Node, primary: Node) -> RejoinPlan:
    """Return what to do with a server that is down: start, rewind, re-clone or refuse.

    A shutdown checkpoint that lies in the primary's past means that nothing was written behind it, so a start is enough.
    A crashed server may hold WAL behind its last checkpoint: pg_rewind finds out.
    """
    refusal = _identity_refusal(node, primary)
    if refusal is not None:
        return refusal
    if node.state == states.ABSENT:
        return RejoinPlan(RECLONE, "there is no data directory")
    if node.rewind_unfinished:
        return RejoinPlan(RECLONE, "an earlier rewind did not finish, so its files cannot be trusted")
    fork = _fork_lsn(node, primary)
    end = _end_of_wal(node)
    clean = node.state == states.STOPPED
    history = _history(primary)
    if node.timeline > primary.timeline:
        return _refuse(
            "newer_timeline", node, "it is on a newer timeline than {0}".format(primary.host), str(node.timeline),
            "at most {0}".format(primary.timeline), "It was promoted after {0}; decide which of the two is right.".format(primary.host),
        )
    if clean and contains(history, primary.timeline, node.timeline, end):
        if _wal_is_gone(node, primary):
            return RejoinPlan(RECLONE, "the WAL that it needs is no longer on {0}".format(primary.host))
        return RejoinPlan(START, "it was shut down cleanly at {0}, which {1} has passed".format(format_lsn(end), primary.host))
    crashed_standby = node.standby_signal and node.control_state == "in archive recovery"
    if crashed_standby and contains(history, primary.timeline, node.timeline, parse_lsn(node.min_recovery_lsn or "0/0")):
        return RejoinPlan(START, "it crashed as a standby and has no WAL of its own")
    if not (node.data_checksums or node.wal_log_hints):
        return RejoinPlan(RECLONE, "pg_rewind needs data checksums or wal_log_hints, it has neither", fork)
    if not fork and node.timeline == primary.timeline:
        return RejoinPlan(START, "it is on the primary's own timeline")
    return RejoinPlan(REWIND, "its WAL may go beyond {0}, where timeline {1} of {2} begins".format(fork, primary.timeline, primary.host), fork)


def _end_of_wal(node: Node) -> int:
    """Return a position that a primary must have passed to hold all of a cleanly stopped node's WAL.

    A shutdown checkpoint's LSN is where its record begins: a primary that forked off exactly there lacks the record.
    """
    if node.control_state == "shut down in recovery":
        return parse_lsn(node.min_recovery_lsn)
    return parse_lsn(node.checkpoint_lsn) + 1


def _wal_is_gone(node: Node, primary: Node) -> bool:
    if not primary.oldest_wal_lsn or not node.redo_lsn:
        return False
    return parse_lsn(node.redo_lsn) < parse_lsn(primary.oldest_wal_lsn)


def plan_rejoin(topology: Topology, node: Node) -> RejoinPlan:
    """Return what start_new_standby does with one node of the cluster."""
    primary = topology.primary
    if primary is None:
        found = problems(topology)
        return RejoinPlan(REFUSE, "there is not exactly one primary to follow", blockers=found[:2])
    if node.host == primary.host:
        return RejoinPlan(NOTHING, "it is the primary")
    if node.state == states.UNREACHABLE:
        return _refuse("unreachable", node, "it cannot be observed", node.problem or "no answer", "an answer", "Repair the host or its connection.")
    refusal = _identity_refusal(node, primary)
    if refusal is not None:
        return refusal
    if node.state == states.UNRESPONSIVE:
        return _refuse("unresponsive", node, "its server does not answer", node.problem, "stopped or answering", "Stop it, then repeat.")
    if not node.is_running_standby:
        return plan_stopped(node, primary)
    wrong = standby_problem(topology, node, primary)
    if wrong is None:
        return RejoinPlan(NOTHING, "it streams from {0}".format(primary.host))
    if contains(_history(primary), primary.timeline, node.timeline, parse_lsn(node.position_lsn or "0/0")):
        if wrong.reason == "not_streaming" and _wal_is_gone(node, primary):
            return RejoinPlan(RECLONE, "the WAL that it needs is no longer on {0}".format(primary.host))
        return RejoinPlan(FOLLOW, wrong.problem)
    return RejoinPlan(REWIND, "it has replayed WAL that {0} lacks".format(primary.host), _fork_lsn(node, primary))
