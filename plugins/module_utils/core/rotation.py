# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the secrets of a cluster may be changed, and who gets them without a proof."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems, same_cluster_blockers

# What else is wrong with a cluster does not keep new secrets from their places, and may come from the old ones.
_IN_THE_WAY = ("two_primaries", "no_primary", "primary_out_of_sight", "stale_primary", "unreachable", "no_data", "cannot_be_asked")
_DOWN = (states.STOPPED, states.CRASHED)


@dataclass(frozen=True)
class RotationPlan:
    """The server on which passwords are set (empty with blockers), the hosts whose server is down, those that replay later, and what speaks against it.

    Who replays later must not lose its connection: it asks for the next one when it has replayed all that it has.
    """

    primary: str
    down: tuple[str, ...]
    late: tuple[str, ...] = ()
    blockers: tuple[Blocker, ...] = ()


def plan_rotation(topology: Topology) -> RotationPlan:
    """Return what rotate_secrets does.

    A server that is down gets its secrets with the others: it needs them to come back. Were it refused, a change of passwords that
    ended half done when the primary died could not be finished, and without its end the old primary could not come back. A host
    that does not answer is refused, for it would come back with the old ones.
    """
    between = {node.host for node in topology.nodes if node.state in (states.STARTING, states.UNRESPONSIVE)}
    found = [
        *(problem for problem in problems(topology) if problem.reason in _IN_THE_WAY or (problem.reason == "not_running" and problem.host in between)),
        *same_cluster_blockers(topology),
    ]
    down = tuple(node.host for node in topology.nodes if node.state in _DOWN)
    late = tuple(node.host for node in topology.standbys if not node.replays_at_once)
    primary = topology.primary
    if primary is not None:
        found += _late_upstreams(topology, primary)
    return RotationPlan(primary.host if primary and not found else "", down, late, tuple(found))


def _late_upstreams(topology: Topology, primary: Node) -> list[Blocker]:
    """Return a blocker for each standby that streams to others and has passwords only when its replay gets to them: until then it lets nobody in."""
    found = []
    for node in topology.standbys:
        below = [
            other.host
            for other in topology.others(primary.host)
            if topology.desired_upstream(other, primary).host == node.host or (other.is_running_standby and topology.upstream_of(other) == node)
        ]
        if below and not node.replays_at_once:
            seen = "its replay is paused" if node.replay_paused else "its replay is delayed by {0} ms".format(node.replay_delay_ms)
            hint = node.to_resume if node.replay_paused else "Run start_new_standby.yml: it lets them follow the primary."
            found.append(
                Blocker("late_upstream", node.host, "lets {0} in with the old password until it has replayed the new one".format(", ".join(below)),
                        seen, "a replay without delay", hint)
            )
    return found
