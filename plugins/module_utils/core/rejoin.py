# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a server that is not a standby of the present primary becomes one, by the cheapest safe way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems, shared_past, standby_problem

NOTHING = "nothing"  # it streams as it should
FOLLOW = "follow"  # it runs as a standby and only follows the wrong server
START = "start"  # its WAL ends in the past of the primary
REWIND = "rewind"  # it has WAL that the primary lacks; pg_rewind takes it back
RECLONE = "reclone"  # only a new copy helps; the old directory is kept
REFUSE = "refuse"

WAL_PAGE_BYTES = 8192


@dataclass(frozen=True)
class RejoinPlan:
    """What is done with one node, and why.

    `own_wal`: it has, or may have, WAL that the primary lacks, and that is thrown away; `fork_lsn`: from where on, empty when that cannot be told.
    `missing_lsn`: from where on the primary lacks WAL that the node's archive may have, or, where it is not copied, has; otherwise empty.
    `archive_lacks`: the archive was asked and does not have it, so that a copy of a backup would lack it too.
    """

    action: str
    why: str
    fork_lsn: str = ""
    blockers: tuple[Blocker, ...] = ()
    missing_lsn: str = ""
    archive_lacks: bool = False
    own_wal: bool = False

    @property
    def said(self) -> str:
        """The plan as people read it; whether the archive has that WAL is asked on the host, at the moment of acting."""
        unless = ", unless its restore_command fetches that WAL" if self.action == RECLONE and self.missing_lsn else ""
        return "{0}, because {1}{2}".format(self.action, self.why, unless)


def _refuse(reason: str, node: Node, problem: str, observed: str, required: str, hint: str) -> RejoinPlan:
    return RejoinPlan(REFUSE, problem, blockers=(Blocker(reason, node.host, problem, observed, required, hint),))


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
            "Run heal.yml.",
        )
    if node.timeline > primary.timeline:
        return _refuse(
            "newer_timeline", node, "it is on a newer timeline than {0}".format(primary.host), str(node.timeline),
            "at most {0}".format(primary.timeline), "It was promoted after {0}; heal.yml shows what each of the two has.".format(primary.host),
        )
    return None


def _unknown_history(node: Node, primary: Node) -> RejoinPlan:
    return _refuse(
        "history_unknown", node, "its past cannot be compared with that of {0}".format(primary.host),
        "timelines {0} and {1}".format(node.timeline, primary.timeline), "a history file in pg_wal on both for every timeline above 1",
        "Put the file back from the WAL archive, or move the data directory aside and repeat: then it is copied anew.",
    )


def _is_past(node: Node, past: tuple[int, Optional[int]], end: int) -> bool:
    """Whether WAL of the node up to `end` is all in the past that it shares with the primary."""
    timeline, lsn = past
    return timeline == node.timeline and (lsn is None or end <= lsn)


def plan_stopped(node: Node, primary: Node) -> RejoinPlan:
    """Return what to do with a server that is down: start, rewind, re-clone or refuse.

    A shutdown checkpoint that lies in the primary's past means that nothing was written behind it, so a start is enough.
    A crashed primary may hold WAL behind its last checkpoint: pg_rewind finds out. A crashed standby has none of its own.
    """
    refusal = _identity_refusal(node, primary)
    if refusal is not None:
        return refusal
    if node.state == states.ABSENT:
        return RejoinPlan(RECLONE, "there is no data directory")
    if node.rewind_unfinished:
        return RejoinPlan(RECLONE, "an earlier rewind did not finish, so its files cannot be trusted")
    if node.state == states.STARTING and not node.standby_signal:
        return _refuse("starting", node, "its server is starting, to accept writes", node.problem or "starting", "stopped", "Stop it, then repeat.")
    past = shared_past(node, primary)
    if past is None:
        return _unknown_history(node, primary)
    end = _end_of_wal(node)
    if end is not None and _is_past(node, past, max(end, _received(node))):
        return _start_or_copy(node, primary, end, past)
    if past[1] is None and node.standby_signal and node.upstream.host:
        return RejoinPlan(START, "it is on the primary's own timeline")
    if _is_unstarted_copy(node):
        if _wal_is_gone(node, primary):
            return _copy_or_fetch(node, "it is a copy that was never started, and the WAL that it needs is no longer on {0}".format(primary.host))
        return RejoinPlan(START, "it is a copy that was never started")
    return _throw_away(node, primary, past)


def plan_given_up(node: Node, primary: Node, from_lsn: str) -> RejoinPlan:
    """Return what to do with a server whose WAL from `from_lsn` on a person has given up: a new copy, the report and the old directory kept.

    That holds for a newer timeline than the primary's too, which plan_rejoin refuses. pg_rewind would leave the choice between the two
    timelines to what else is in pg_wal or in an archive.
    """
    if node.is_running_primary or node.system_identifier != primary.system_identifier or node.major != primary.major:
        refusal = _identity_refusal(node, primary)
        if refusal is not None:
            return refusal
    if node.state == states.ABSENT:
        return RejoinPlan(RECLONE, "there is no data directory")
    return RejoinPlan(RECLONE, "what it has on timeline {0} is given up for {1}".format(node.timeline, primary.host), from_lsn, own_wal=True)


def plan_with_own_wal(node: Node, primary: Node) -> RejoinPlan:
    """Return what to do with a server that is down and holds WAL behind the point where the primary left its timeline."""
    past = shared_past(node, primary)
    return _unknown_history(node, primary) if past is None else _throw_away(node, primary, past)


def _received(node: Node) -> int:
    """Return a position that the WAL of a crashed standby certainly reaches, replayed or not; 0 when that does not matter.

    The end that is read from files is an upper bound to the page. pg_rewind goes by what a cleanly stopped standby has replayed.
    """
    if node.state != states.CRASHED or not node.wal_end_lsn:
        return 0
    return max(0, parse_lsn(node.wal_end_lsn) - WAL_PAGE_BYTES)


def _is_unstarted_copy(node: Node) -> bool:
    """Whether this is a fresh copy of a primary, whose control file it still has: recovering it alone would write WAL of its own."""
    files = node.state == states.CRASHED and node.control_state == "in production" and node.standby_signal and bool(node.upstream.host)
    return files and not node.fenced and not node.pending.operation


def _start_or_copy(node: Node, primary: Node, end: int, past: tuple[int, Optional[int]]) -> RejoinPlan:
    """Return the plan for a server whose WAL ends in the primary's past."""
    if past[1] is None and primary.current_lsn and end > parse_lsn(primary.current_lsn):
        return _refuse(
            "ahead_of_primary", node, "it is ahead of {0} on the same timeline".format(primary.host), format_lsn(end),
            "at most " + primary.current_lsn, "One of the two is a copy that was set back; decide which of them is right.",
        )
    if _wal_is_gone(node, primary):
        return _copy_or_fetch(node, "the WAL that it needs is no longer on {0}".format(primary.host))
    if node.control_state.startswith("shut down"):
        return RejoinPlan(START, "it was shut down cleanly at {0}, which {1} has passed".format(format_lsn(end), primary.host))
    return RejoinPlan(START, "it crashed as a standby and has no WAL of its own")


def _throw_away(node: Node, primary: Node, past: tuple[int, Optional[int]]) -> RejoinPlan:
    """Return the plan for a server that has, or may have, WAL that the primary lacks."""
    fork = format_lsn(past[1]) if past[1] is not None else ""
    if node.timeline == primary.timeline:
        # pg_rewind compares timelines by number and would end with 'no rewind required'.
        return RejoinPlan(RECLONE, "its timeline has the number of the primary's, so pg_rewind cannot tell them apart", fork, own_wal=True)
    if not (node.data_checksums or node.wal_log_hints):
        return RejoinPlan(RECLONE, "pg_rewind needs data checksums or wal_log_hints, it has neither", fork, own_wal=True)
    if past[1] is not None and primary.oldest_wal_lsn and past[1] < parse_lsn(primary.oldest_wal_lsn):
        # Rewound to a checkpoint before the fork, it would wait for that WAL for ever.
        return RejoinPlan(RECLONE, "the WAL from {0}, where it parted, is no longer on {1}".format(fork, primary.host), fork, own_wal=True)
    if node.is_running_standby:
        return RejoinPlan(REWIND, "it has replayed WAL that {0} lacks".format(primary.host), fork, own_wal=True)
    return RejoinPlan(REWIND, "its WAL may go beyond {0}, where timeline {1} of {2} begins".format(fork, primary.timeline, primary.host), fork, own_wal=True)


def _end_of_wal(node: Node) -> Optional[int]:
    """Return a position that a primary must have passed to hold all WAL of a node that is down; None when a crash leaves it unknown.

    A checkpoint's LSN is where its record begins: a primary that forked off exactly there lacks the record. A standby that was
    started from a stopped primary's files and never got further names that LSN as its minimum recovery point too.
    """
    checkpoint = parse_lsn(node.checkpoint_lsn) + 1 if node.checkpoint_lsn else None
    if node.control_state == "shut down":
        return checkpoint
    as_standby = node.control_state == "shut down in recovery" or (node.standby_signal and node.control_state == "in archive recovery")
    if not as_standby or not (checkpoint or node.min_recovery_lsn):
        return None
    return max(checkpoint or 0, parse_lsn(node.min_recovery_lsn or "0/0"))


def _needed_position(node: Node) -> int:
    """Return where the node's own WAL ends: streaming starts in that segment. 0 when it is unknown.

    The WAL from the node's redo point to that end lies in its own pg_wal. The end read from files is an upper bound to the page.
    """
    end = parse_lsn((node.position_lsn if node.is_running_standby else node.wal_end_lsn) or "0/0")
    if not node.is_running_standby:
        end = max(0, end - WAL_PAGE_BYTES)
    return max(end, parse_lsn(node.redo_lsn or "0/0"))


def _wal_is_gone(node: Node, primary: Node) -> bool:
    """Whether the primary has recycled WAL that the node needs."""
    needed = _needed_position(node)
    return bool(needed and primary.oldest_wal_lsn) and needed < parse_lsn(primary.oldest_wal_lsn)


STILL_READS = "it still reads the WAL on its disk"


def _still_reads(node: Node) -> bool:
    """Whether a standby that runs has not asked its upstream for anything since its start.

    It does so behind the end of what its archive and its own disk have, so what it lacks is not known before.
    """
    return node.is_running_standby and bool(node.replay_lsn and node.upstream.host) and not node.receive_lsn and not node.is_streaming


def _copy_or_fetch(node: Node, why: str) -> RejoinPlan:
    """Return the plan for a node whose WAL is gone from the primary: a copy, as long as its archive has not answered."""
    return RejoinPlan(RECLONE, why, missing_lsn=format_lsn(_needed_position(node)) if node.has_restore_command else "")


def answered_by_archive(chosen: RejoinPlan, node: Node, undelivered: str) -> RejoinPlan:
    """Return a plan that waits for the archive with its answer: which segment it does not deliver and why, empty when it has what is missing.

    A standby that runs is fetching that WAL already, and would stream behind it.
    """
    if undelivered and _still_reads(node):
        return RejoinPlan(FOLLOW, STILL_READS)
    if undelivered:
        why = "{0}, nor does its restore_command fetch it ({1})".format(chosen.why, undelivered)
        return replace(chosen, why=why, missing_lsn="", archive_lacks=True)
    return replace(chosen, action=FOLLOW if node.is_running_standby else START, why="{0}, but its archive has it".format(chosen.why))


def _plan_running(topology: Topology, node: Node, primary: Node) -> RejoinPlan:
    """Return the plan for a standby that runs."""
    if node.rewind_unfinished:
        return RejoinPlan(RECLONE, "an earlier rewind did not finish, so its files cannot be trusted")
    wrong = standby_problem(topology, node, primary)
    if wrong is None:
        return RejoinPlan(NOTHING, "it streams from {0}".format(primary.host))
    past = shared_past(node, primary)
    if past is None:
        return _unknown_history(node, primary)
    if not _is_past(node, past, parse_lsn(node.position_lsn or "0/0")):
        return _throw_away(node, primary, past)
    if _still_reads(node) and not node.has_restore_command:
        return RejoinPlan(FOLLOW, STILL_READS)
    if not node.is_streaming and _wal_is_gone(node, primary) and _wal_is_gone(node, topology.desired_upstream(node, primary)):
        return _copy_or_fetch(node, "the WAL that it needs is no longer on {0}".format(primary.host))
    return RejoinPlan(FOLLOW, wrong.problem)


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
    return _plan_running(topology, node, primary)
