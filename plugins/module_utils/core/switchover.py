# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan of a planned switchover and everything that speaks against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.confirming import switchover_set_blockers
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover_slots import lost_slot_notes, switchover_slot_blockers
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.placement import after_change
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import Limits, bytes_behind, candidates, promotion_blockers, refused_candidates
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import START, plan_stopped
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems, same_cluster_blockers, stale_primary_blockers

HAND_OVER = "hand_over"  # a running primary hands its role to a standby
FINISH = "finish"  # a hand-over that was begun earlier is completed
NOTHING = "nothing"  # the wanted node is primary and everything follows it


@dataclass(frozen=True)
class SwitchoverPlan:
    """What a switchover will do: from whom, to whom, or why not."""

    action: str
    source: str
    target: str
    blockers: tuple[Blocker, ...] = ()
    notes: tuple[str, ...] = ()


def _pending(topology: Topology) -> Optional[Node]:
    """Return the node that a hand-over began on.

    Of several notes the one counts that is where the role is, the others are left from before: that of a primary which is armed, or that of the
    hand-over which made the present primary one.
    """
    primary = topology.primary
    followed = {upstream.host for upstream in map(topology.upstream_of, topology.standbys) if upstream is not None}

    def rank(node: Node) -> tuple[bool, bool, bool, bool]:
        made_primary = primary is not None and node.pending.target == primary.host
        return node is primary and node.standby_signal, made_primary, node is primary, node.host in followed

    return max((node for node in topology.nodes if node.pending.operation == "switchover"), key=rank, default=None)


def _capacity_blockers(topology: Topology, target: Node) -> list[Blocker]:
    found: list[Blocker] = []
    needed = len(topology.nodes) - 1
    # What the other nodes use there now, cascaded ones do, is among what they need.
    names = {other.member.application_name for other in topology.nodes}
    slots = {other.member.slot_name for other in topology.nodes}
    # One in "startup" is about to end, or a question like those that standbys ask while all hosts are observed.
    senders_used = len([sender for sender in target.senders if sender.application_name not in names and sender.state != "startup"])
    slots_used = len([slot for slot in target.slots if slot.name not in slots])
    for name, foreign in (("max_wal_senders", senders_used), ("max_replication_slots", slots_used)):
        if not target.settings.get(name):
            continue
        limit = int(target.settings[name])
        if limit - foreign < needed:
            found.append(
                Blocker(
                    "too_few_" + name[4:],
                    target.host,
                    "has too little room for the others to stream from it",
                    "{0} = {1}, {2} in use".format(name, limit, foreign),
                    "{0} free".format(needed),
                    "Raise {0} there and restart it.".format(name),
                )
            )
    return found


def _source_blockers(source: Node, limits: Limits) -> list[Blocker]:
    found: list[Blocker] = []
    if source.archive_ready_files > limits.max_archive_ready_files:
        found.append(
            Blocker(
                "archive_backlog",
                source.host,
                "WAL waits for the archiver, and a stop waits for it too",
                "{0} files".format(source.archive_ready_files),
                "at most {0}".format(limits.max_archive_ready_files),
                "Mend archive_command or raise pg_max_archive_ready_files.",
            )
        )
    if source.archive_failing and source.settings.get("archive_mode", "off") != "off" and not limits.accept_archive_gap:
        failed = "archive_command fails" + (" for " + source.archive_failed_wal if source.archive_failed_wal else "")
        found.append(
            Blocker(
                "archive_failing",
                source.host,
                "does not archive its WAL, and as a standby never archives what waits",
                "{0}, {1} file(s) wait".format(failed, source.archive_ready_files),
                "none fails",
                "The end of its log says why; mend it and repeat. Or accept the gap with -e pg_accept_archive_gap=true, and take a backup at once afterwards.",
            )
        )
    if source.backup_in_progress:
        found.append(Blocker("backup_running", source.host, "a base backup is running", "backup", "no backup", "Wait for it or stop it."))
    if source.prepared_transactions:
        found.append(
            Blocker(
                "prepared_transactions",
                source.host,
                "has prepared transactions",
                str(source.prepared_transactions),
                "0",
                "COMMIT PREPARED or ROLLBACK PREPARED them (pg_prepared_xacts).",
            )
        )
    if source.longest_transaction_seconds > limits.max_transaction_seconds:
        found.append(
            Blocker(
                "long_transaction",
                source.host,
                "a transaction that a stop would abort is old",
                "{0:.0f} s".format(source.longest_transaction_seconds),
                "at most {0} s".format(limits.max_transaction_seconds),
                "Let it end (pg_stat_activity) or raise pg_max_transaction_seconds.",
            )
        )
    if not (source.data_checksums or source.wal_log_hints):
        found.append(
            Blocker(
                "no_rewind", source.host, "could not be rewound later", "neither data checksums nor wal_log_hints", "one of them",
                "Run initial_setup.yml.",
            )
        )
    return found


def _pair_blockers(topology: Topology, source: Node, target: Node, limits: Limits) -> list[Blocker]:
    found: list[Blocker] = []
    majors = (target.server_version_num // 10000, source.server_version_num // 10000)
    if majors[0] != majors[1]:
        found.append(
            Blocker(
                "version_mismatch", target.host, "has another PostgreSQL major version than {0}".format(source.host), str(majors[0]), str(majors[1]),
                "Check the inventory.",
            )
        )
    names = {sender.application_name: sender for sender in source.senders}
    sender = names.get(target.member.application_name)
    if sender is None or sender.state != "streaming":
        upstream = topology.upstream_of(target)
        seen = sender.state if sender else "follows {0}".format(upstream.host if upstream else "nobody")
        hint = "Run start_new_standby.yml."
        if not sender and upstream and target.member.upstream == upstream.host:
            way = "hand over to that one, or take its pg_upstream out, run start_new_standby.yml and repeat."
            hint = "The inventory puts it below {0}: {1}".format(upstream.host, way)
        found.append(Blocker("not_streaming", target.host, "does not stream from {0}".format(source.host), seen, "streaming", hint))
    behind = bytes_behind(target, source.current_lsn)
    if behind is not None and behind > limits.max_lag_bytes:
        found.append(
            Blocker(
                "lag", target.host, "its WAL is behind", "{0} bytes".format(behind), "at most {0}".format(limits.max_lag_bytes),
                "Wait for replay or raise pg_max_lag_bytes.",
            )
        )
    return found


def _version(number: int) -> str:
    """Return server_version_num as people write it: 150012 is 15.12."""
    return "{0}.{1}".format(number // 10000, number % 10000)


def _minor_notes(topology: Topology, target: Node) -> tuple[str, ...]:
    """Return which nodes have an older minor version than the new primary's.

    An update to a new minor version begins with the standbys, so a role change between two of them is part of it; one that reads WAL of a
    newer one is what should not last. Source: PostgreSQL's documentation, "Log-Shipping Standby Servers", planning.
    """
    return tuple(
        "{0} runs PostgreSQL {1}, older than {2} on {3}; update it next".format(
            node.host, _version(node.server_version_num), _version(target.server_version_num), target.host
        )
        for node in topology.nodes
        if node.host != target.host and 0 < node.server_version_num < target.server_version_num
    )


def _sibling_notes(topology: Topology, source: Node, target: Node) -> tuple[str, ...]:
    """Return what is to be said of nodes that are down already: the hand-over neither needs nor repairs them."""
    return tuple(
        "{0} is down and stays so; start_new_standby.yml brings it back".format(node.host)
        for node in topology.nodes
        if node.host not in (source.host, target.host) and node.has_server_down
    )


def _sibling_blockers(topology: Topology, source: Node, target: Node) -> list[Blocker]:
    return [
        Blocker(
            "sibling_unreachable", node.host, "cannot be re-pointed to the new primary", node.problem or node.state, "reachable",
            "Repair it, or take it out of the inventory.",
        )
        for node in topology.nodes
        if node.host not in (source.host, target.host) and node.state == states.UNREACHABLE
    ]


def switchover_blockers(topology: Topology, source: Node, target: Node, limits: Limits) -> tuple[Blocker, ...]:
    """Return why `source` must not hand over to `target`; empty when nothing speaks against it.

    Follows what `repmgr standby switchover` and `patronictl switchover` check before they touch anything.
    """
    found = list(promotion_blockers(topology, target.host))
    found.extend(same_cluster_blockers(topology))
    if target.is_running_standby:
        found.extend(_pair_blockers(topology, source, target, limits))
        found.extend(_capacity_blockers(topology, target))
        found.extend(switchover_slot_blockers(source, target, accept_loss=limits.accept_slot_loss))
    found.extend(_source_blockers(source, limits))
    found.extend(_sibling_blockers(topology, source, target))
    unique = {(blocker.reason, blocker.host, blocker.observed): blocker for blocker in found}
    return tuple(unique.values())


def _is_unpromoted(target: Node) -> bool:
    """Whether a node was seen and is a standby still: a promotion removes standby.signal, and one that is under way hides."""
    return target.is_running_standby or (target.state in (states.STOPPED, states.CRASHED) and target.standby_signal)


def _resume_hint(unsure: str, source: Node) -> str:
    """Return what to do where a host may be primary by now; without standby.signal a start would open the source read-write beside it."""
    if not source.standby_signal:
        return "Bring {0} back and repeat. If it is lost and off, do not start {1}: failover.yml -e pg_failover_unfenced=accept.".format(unsure, source.host)
    return "Bring {0} back and repeat. If it is lost, start the server on {1}, a standby now, and run failover.yml.".format(unsure, source.host)


def _moved_on(topology: Topology, source: Node, target: Node) -> Optional[str]:
    """Return what shows that the role has moved since a hand-over was cut off, None where nothing does.

    An armed source points at its target. Another server that is down as a primary leaves one, on the source's timeline, was its upstream since.
    """
    if source.fenced:
        return "fenced"
    newest = max(node.timeline for node in topology.nodes)
    if newest > source.timeline:
        return "timeline {0}".format(newest)
    followed = topology.upstream_of(source) if source.standby_signal else None
    if followed is not None and followed.host != target.host:
        return "it follows {0}".format(followed.host)
    for node in topology.others(source.host):
        # One with a note of a fence as well: somebody may have promoted it by hand.
        if node.has_server_down and not (node.standby_signal or node.rewind_unfinished) and node.timeline >= source.timeline:
            return "{0} on timeline {1}".format(node.seen, node.timeline)
    return None


def _resume_blockers(topology: Topology, source: Node) -> tuple[Blocker, ...]:
    """Return why a hand-over that was cut off must not be taken up again: it may have ended, or the world went on without it.

    Taking it up makes the source primary again when the target cannot take over, so the target must be known not to be one.
    """
    target = topology.node(source.pending.target)
    if target is None or not _is_unpromoted(target):
        return (
            Blocker(
                "resume_target_unsure", source.host, "its switchover to {0} was cut off and may have ended there".format(source.pending.target),
                "{0} {1}".format(target.role or "-", target.state) if target else "not in the inventory", "a running standby",
                _resume_hint(source.pending.target, source),
            ),
        )
    moved = _moved_on(topology, source, target)
    if moved is not None:
        return (
            Blocker(
                "resume_overtaken", source.host, "its switchover to {0} was cut off, and the role has moved since".format(target.host),
                moved, "timeline {0}".format(source.timeline), "Bring the newest primary back, or run failover.yml.",
            ),
        )
    unseen = [node for node in topology.others(source.host) if node.state == states.UNREACHABLE]
    if unseen:
        return (
            Blocker(
                "resume_unseen", source.host,
                "its switchover to {0} was cut off, and a failover since may have promoted {1}".format(target.host, unseen[0].host),
                unseen[0].problem or "no answer", "reachable",
                _resume_hint(unseen[0].host, source),
            ),
        )
    # One that stopped cleanly was on its way back to being primary; taking the hand-over up arms it again.
    if not source.standby_signal and source.state != states.STOPPED:
        return (
            Blocker(
                "resume_not_armed", source.host, "its switchover to {0} was cut off, and its next start is a primary's".format(target.host),
                "no standby.signal", "standby.signal", "Start the server on {0}, nothing was promoted, then repeat.".format(source.host),
            ),
        )
    return ()


def _without_primary(topology: Topology, pending: Optional[Node]) -> SwitchoverPlan:
    if pending is None:
        return SwitchoverPlan(HAND_OVER, "", "", problems(topology))
    blockers = _resume_blockers(topology, pending)
    notes = () if blockers else ("an interrupted switchover is taken up again",)
    return SwitchoverPlan(HAND_OVER, pending.host, pending.pending.target, blockers, notes)


def _finish_blockers(source: Node, primary: Node) -> tuple[Blocker, ...]:
    """Return why the old primary of a hand-over that has its new primary cannot simply be started as that one's standby."""
    if source.state not in (states.STOPPED, states.CRASHED):
        return ()
    if not source.fenced and source.standby_signal and plan_stopped(source, primary).action == START:
        return ()
    return (
        Blocker(
            "source_needs_rejoin", source.host, "it is down, and a start would not make it a standby of {0}".format(primary.host),
            "{0}{1}".format(source.state, ", fenced" if source.fenced else ""), "stopped cleanly, ready to be a standby", "Run start_new_standby.yml.",
        ),
    )


def _best(topology: Topology, primary: Node, limits: Limits) -> Optional[Node]:
    """Return the standby to hand over to: one that nothing speaks against and, as all of them catch up, of the highest priority."""
    able = [node for node in candidates(topology) if not promotion_blockers(topology, node.host)]
    ready = [node for node in able if not switchover_blockers(topology, primary, node, limits)]
    direct = [node for node in able if topology.upstream_of(node) is primary]
    return max(ready or direct or able, key=lambda node: node.member.priority, default=None)


def plan_switchover(topology: Topology, wanted: str, limits: Limits) -> SwitchoverPlan:
    """Return what a switchover does now; `wanted` is the node to promote, empty for the best standby.

    A hand-over that was interrupted is finished first, to the target that it had.
    """
    if wanted and topology.node(wanted) is None:
        return SwitchoverPlan(HAND_OVER, "", wanted, promotion_blockers(topology, wanted))
    pending = _pending(topology)
    primary = topology.primary
    if primary is None:
        if len(topology.primaries) > 1:
            return SwitchoverPlan(HAND_OVER, "", wanted, problems(topology))
        return _without_primary(topology, pending)
    stale = stale_primary_blockers(topology, primary)
    if stale:
        return SwitchoverPlan(HAND_OVER, primary.host, wanted, stale)
    if pending is not None and pending.pending.target == primary.host and wanted in ("", primary.host):
        return SwitchoverPlan(FINISH, pending.host, primary.host, _finish_blockers(pending, primary))
    if wanted == primary.host:
        action = FINISH if problems(topology) else NOTHING
        return SwitchoverPlan(action, "", primary.host)
    if pending is not None and pending.host == primary.host and not wanted:
        wanted = pending.pending.target
    target = topology.node(wanted) if wanted else _best(topology, primary, limits)
    if target is None:
        none = Blocker(
            "no_candidate", topology.cluster, "no standby can take over",
            "; ".join(node.seen for node in topology.others(primary.host)) or "no other node",
            "a running standby with pg_priority above 0", "Run start_new_standby.yml first.",
        )
        return SwitchoverPlan(HAND_OVER, primary.host, "", (none, *refused_candidates(topology)))
    notes = (*_sibling_notes(topology, primary, target), *_minor_notes(topology, target), *lost_slot_notes(primary, target))
    after = after_change(topology, primary.host, target.host, source_returns=True)
    blockers = (*switchover_blockers(topology, primary, target, limits), *switchover_set_blockers(topology, after, target.host))
    return SwitchoverPlan(HAND_OVER, primary.host, target.host, blockers, notes)
