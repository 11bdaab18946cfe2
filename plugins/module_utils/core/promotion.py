# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which standby may be promoted, and which one should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology


@dataclass(frozen=True)
class Limits:
    """How much a role change may take for granted; bytes, files and seconds. `fence_command`: a host out of reach can be switched off."""

    max_lag_bytes: int = 16 * 1024 * 1024
    accept_data_loss_bytes: int = 0
    max_archive_ready_files: int = 100
    max_transaction_seconds: int = 300
    accept_archive_gap: bool = False
    accept_slot_loss: bool = False
    unfenced: str = ""
    fence_command: int = 0
    accept_synchronous_loss: bool = False


def _rank(node: Node) -> tuple[int, int, int]:
    """Order candidates: the newest timeline, then the most WAL, then the highest priority."""
    return (node.timeline, parse_lsn(node.position_lsn or "0/0"), node.member.priority)


def candidates(topology: Topology) -> tuple[Node, ...]:
    """Return the standbys that could be promoted, the best first; the inventory's order breaks ties."""
    able = [node for node in topology.standbys if node.member.priority > 0]
    return tuple(sorted(able, key=_rank, reverse=True))


def _state_blockers(node: Node) -> list[Blocker]:
    found: list[Blocker] = []
    if not node.is_running_standby:
        found.append(
            Blocker(
                "not_a_standby",
                node.host,
                "cannot be promoted",
                "{0} {1}".format(node.role or "no role", node.state),
                "a running standby",
                "Bring it back with start_new_standby.yml or name another node.",
            )
        )
    if node.member.priority <= 0:
        found.append(
            Blocker(
                "priority_zero", node.host, "must never be promoted", "pg_priority {0}".format(node.member.priority), "above 0",
                "Name another node or raise pg_priority.",
            )
        )
    if node.replay_paused:
        found.append(
            Blocker("replay_paused", node.host, "its replay is paused", "paused", "running", node.to_resume)
        )
    if node.replay_delay_ms > 0:
        found.append(
            Blocker(
                "replay_delayed",
                node.host,
                "is a delayed standby",
                "recovery_min_apply_delay {0} ms".format(node.replay_delay_ms),
                "0",
                "Name another node or set recovery_min_apply_delay to 0.",
            )
        )
    return found


def _compared_blockers(topology: Topology, node: Node) -> list[Blocker]:
    found: list[Blocker] = []
    for other in topology.standbys:
        if other.host == node.host:
            continue
        if other.system_identifier != node.system_identifier:
            found.append(
                Blocker(
                    "foreign_system",
                    node.host,
                    "belongs to another cluster than {0}".format(other.host),
                    "system identifier " + node.system_identifier,
                    other.system_identifier,
                    "Check the inventory.",
                )
            )
        elif other.timeline > node.timeline:
            found.append(
                Blocker(
                    "behind_on_timeline",
                    node.host,
                    "is on an older timeline than {0}".format(other.host),
                    str(node.timeline),
                    str(other.timeline),
                    "Promote {0} instead.".format(other.host),
                )
            )
    return found


def promotion_blockers(topology: Topology, host: str) -> tuple[Blocker, ...]:
    """Return why the named node must not be promoted, whatever the reason for the promotion; empty when nothing speaks against it."""
    node = topology.node(host)
    if node is None:
        names = ", ".join(member.host for member in topology.nodes)
        return (
            Blocker("unknown_host", host, "is not a host of cluster {0}".format(topology.cluster), host, "one of " + names, "Correct the name."),
        )
    found = _state_blockers(node)
    if node.is_running_standby:
        found.extend(_compared_blockers(topology, node))
    return tuple(found)


def refused_candidates(topology: Topology) -> tuple[Blocker, ...]:
    """Return why each running standby must not be promoted; empty when all may be."""
    return tuple(blocker for node in topology.standbys for blocker in promotion_blockers(topology, node.host))


def bytes_behind(node: Node, position_lsn: str) -> Optional[int]:
    """Return how far the node trails a position, in bytes; 0 when it has passed it, None when either is unknown."""
    if not position_lsn or not node.position_lsn:
        return None
    return max(0, parse_lsn(position_lsn) - parse_lsn(node.position_lsn))


def dead_primary(topology: Topology) -> Optional[Node]:
    """Return the node that was primary when there is none now; None when it cannot be told.

    A data directory that would open read-write on a newer timeline than every standby's says it first: the standbys had stopped
    following. Then the upstream of those on the newest timeline says it; then the one data directory on it that would open read-write,
    which it also is where that upstream lies there as a standby: a cascade's parent that died with the primary.
    A standby or a primary on an older one was left behind by a role change before.
    """
    down = [node for node in topology.nodes if node.has_server_down and not node.standby_signal]
    followed = max((node.timeline for node in topology.standbys), default=0)
    later = [node for node in down if node.timeline > followed]
    if len(later) == 1:
        return later[0]
    up = [topology.upstream_of(node) for node in topology.standbys if node.timeline == followed]
    named = [node for node in up if node is not None and not node.is_running_standby]
    hosts = {node.host for node in named}
    newest = [node for node in down if not node.timeline or node.timeline >= followed]
    if len(hosts) == 1:
        return newest[0] if named[0].lies_as_standby and len(newest) == 1 and newest[0].was_primary else named[0]
    if len(newest) == 1:
        return newest[0]
    unseen = [node for node in topology.nodes if node.state == states.UNREACHABLE]
    return unseen[0] if len(unseen) == 1 and not newest else None
