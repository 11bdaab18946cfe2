# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who is primary, who follows whom, and what is wrong with a cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as nodes_module
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.confirming import LATER, synchronous_problems
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import TimelineError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import SIGN_OF_LIFE_SECONDS, Node, orphaned_slots
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import SynchronousRule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import fork_point, parse_history


@dataclass(frozen=True)
class Topology:
    """The nodes of one cluster as they were observed, in the inventory's order; `rule` is None where it replicates asynchronously."""

    cluster: str
    nodes: tuple[Node, ...]
    rule: Optional[SynchronousRule] = None

    def node(self, host: str) -> Optional[Node]:
        """Return the node of that inventory name, None when the cluster has no such host."""
        for node in self.nodes:
            if node.host == host:
                return node
        return None

    @property
    def primaries(self) -> tuple[Node, ...]:
        """Every node that accepts writes."""
        return tuple(node for node in self.nodes if node.is_running_primary)

    @property
    def primary(self) -> Optional[Node]:
        """The node that accepts writes; None when there is none or more than one."""
        return self.primaries[0] if len(self.primaries) == 1 else None

    @property
    def standbys(self) -> tuple[Node, ...]:
        """The running nodes that are in recovery."""
        return tuple(node for node in self.nodes if node.is_running_standby)

    def others(self, host: str) -> tuple[Node, ...]:
        """Every node but the named one."""
        return tuple(node for node in self.nodes if node.host != host)

    def by_endpoint(self, address: str, port: int) -> Optional[Node]:
        """Return the node that peers reach at that address and port."""
        for node in self.nodes:
            if address and address in (node.member.address, node.host) and node.member.port == port:
                return node
        return None

    def upstream_of(self, node: Node) -> Optional[Node]:
        """Return the node that a standby streams from, or is configured to."""
        if node.receiver.sender_host:
            found = self.by_endpoint(node.receiver.sender_host, node.receiver.sender_port)
            if found is not None:
                return found
        return self.by_endpoint(node.upstream.host, node.upstream.port)

    def desired_upstream(self, node: Node, primary: Node) -> Node:
        """Return where a standby should stream from when `primary` is the primary.

        `pg_upstream` holds as long as that node is a running standby and does not itself follow this one; else the primary. A delayed one never
        holds: after each start it receives nothing before it has replayed what it has, which may take its delay, and those below it wait as long.
        """
        wanted = self.node(node.member.upstream) if node.member.upstream else None
        if wanted is None or wanted.host in (node.host, primary.host) or not wanted.is_running_standby:
            return primary
        if wanted.replay_delay_ms > 0:
            return primary
        if self.follows(wanted, node, primary):
            return primary
        return wanted

    def follows(self, node: Node, ancestor: Node, primary: Node) -> bool:
        """Whether `node`, by the inventory's `pg_upstream`, hangs below `ancestor`."""
        seen: list[str] = []
        current: Optional[Node] = node
        while current is not None and current.host not in seen and current.host != primary.host:
            if current.host == ancestor.host:
                return True
            seen.append(current.host)
            current = self.node(current.member.upstream) if current.member.upstream else None
        return False


def shared_past(node: Node, primary: Node) -> Optional[tuple[int, Optional[int]]]:
    """Return the newest common point of two servers as (timeline, LSN); the LSN is None when both are on one timeline.

    None when it cannot be told, because a history file is missing or cannot be read. Two promotions of one parent may have
    taken the same number: only the histories tell their timelines apart.
    """
    try:
        return fork_point(
            parse_history(node.timeline_history), node.timeline, parse_history(primary.timeline_history), primary.timeline
        )
    except TimelineError:
        return None


def stale_primary_blockers(topology: Topology, primary: Node) -> tuple[Blocker, ...]:
    """Return a blocker when a node of the same cluster is on a newer timeline than the server that accepts writes.

    Then another server was promoted after it, and whatever follows this one leaves the newer data behind.
    """
    newer = [
        node
        for node in topology.others(primary.host)
        if node.timeline > primary.timeline and node.system_identifier == primary.system_identifier
    ]
    if not newer:
        return ()
    hint = "Stop {0}, start the newest primary or run failover.yml, then heal.yml; to give up what is newer, heal.yml says how.".format(primary.host)
    return (
        Blocker(
            "stale_primary",
            primary.host,
            "accepts writes on an older timeline than {0}".format(", ".join(node.host for node in newer)),
            str(primary.timeline),
            "at least {0}".format(max(node.timeline for node in newer)),
            hint,
        ),
    )


class Heard(NamedTuple):
    """A sign of life: what a standby heard from a server, a host's name or an address, so many seconds ago."""

    standby: Node
    sender: str
    seconds_ago: float


def _seen_dead(topology: Topology) -> bool:
    """Whether a host of the standbys' own system is down that was primary on the newest timeline."""
    newest = max((node.timeline for node in topology.standbys), default=0)
    systems = {node.system_identifier for node in topology.standbys}
    return any(node.was_primary and node.timeline >= newest and node.system_identifier in systems for node in topology.nodes)


def out_of_sight(topology: Topology) -> tuple[Heard, ...]:
    """Return which standbys have just heard from a server that could not be observed: it is alive, and may be the primary.

    The server is a host that cannot be reached from here, one whose files are not where the inventory says, or an address that is no host's.
    Nobody counts where the primary was seen dead. Silence proves nothing: a server that hangs may go on later. A negative age is a clock that
    was set back.
    """
    if _seen_dead(topology):
        return ()
    found = []
    for node in topology.standbys:
        receiver = node.receiver
        age = receiver.silent_seconds
        if receiver.status != "streaming" or age is None or not 0 <= age < SIGN_OF_LIFE_SECONDS:
            continue
        sender = topology.by_endpoint(receiver.sender_host, receiver.sender_port)
        if sender is None:
            found.append(Heard(node, "{0} port {1}".format(receiver.sender_host, receiver.sender_port), age))
        elif sender.state in (nodes_module.UNREACHABLE, nodes_module.ABSENT):
            found.append(Heard(node, sender.host, age))
    return tuple(found)


def alive_blocker(heard: Heard, required: str, hint: str) -> Blocker:
    """Return the blocker for a sign of life."""
    return Blocker(
        "primary_out_of_sight", heard.sender, "cannot be observed from here, and {0} hears from it: it is alive".format(heard.standby.host),
        "a message {0:.1f} s ago".format(heard.seconds_ago), required, hint,
    )


def _primary_problems(topology: Topology) -> list[Blocker]:
    primaries = topology.primaries
    names = ", ".join(node.host for node in primaries)
    if len(primaries) > 1:
        return [
            Blocker(
                "two_primaries",
                node.host,
                "accepts writes beside another primary",
                "timeline {0}; primaries: {1}".format(node.timeline, names),
                "one primary",
                "Run heal.yml: it keeps the one that loses nothing, or shows both sides and asks.",
            )
            for node in primaries
        ]
    alive = out_of_sight(topology)
    if not primaries and alive:
        return [alive_blocker(alive[0], "an answer", "Do not fail over: repair the way to it.")]
    if not primaries:
        return [
            Blocker(
                "no_primary",
                topology.cluster,
                "no node accepts writes",
                "; ".join(node.seen for node in topology.nodes),
                "one primary",
                "Run failover.yml, or initial_setup.yml when the cluster was never set up.",
            )
        ]
    return []


def _armed_problem(primary: Node) -> Optional[Blocker]:
    """Return what is wrong with a primary that a hand-over armed before it died: at its next start there would be none."""
    if not primary.standby_signal:
        return None
    return Blocker(
        "armed_primary", primary.host, "is primary, and its next start would be a standby's", "standby.signal", "no standby.signal",
        "Run start_new_standby.yml to keep it primary, or switchover.yml to end the hand-over that left it so.",
    )


def _hint_for_what_is_down(topology: Topology) -> str:
    if topology.primaries:
        return "Run start_new_standby.yml."
    if out_of_sight(topology):
        return "Once the primary can be seen run start_new_standby.yml."
    return "Run failover.yml first, then start_new_standby.yml."


def _down_problem(node: Node, hint: str) -> Optional[Blocker]:
    """Return what is wrong with a node that cannot be asked; `hint` says how a server comes back that is down."""
    if node.state == nodes_module.UNREACHABLE:
        return Blocker(
            "unreachable", node.host, "cannot be observed", node.problem or "no answer", "an answer", "Repair the host or its connection."
        )
    if node.state == nodes_module.ABSENT:
        return Blocker("no_data", node.host, "has no server", "no data directory", "a standby", "Run initial_setup.yml.")
    if node.state != nodes_module.RUNNING:
        return Blocker("not_running", node.host, "the server does not run", node.problem or node.state, "running", hint)
    if node.problem:
        return Blocker(
            "cannot_be_asked", node.host, "the server runs and cannot be asked", node.problem, "a connection", "Mend that, then repeat."
        )
    return None


def standby_problem(topology: Topology, node: Node, primary: Node) -> Optional[Blocker]:
    """Return what is wrong with a running standby of `primary`, None when it follows as it should."""
    hint = "Run start_new_standby.yml."
    if node.system_identifier != primary.system_identifier:
        return Blocker(
            "foreign_system",
            node.host,
            "belongs to another cluster",
            "system identifier " + node.system_identifier,
            primary.system_identifier,
            "Check pg_address and pg_cluster_name of this host.",
        )
    past = shared_past(node, primary)
    if node.timeline == primary.timeline and past is not None and past[1] is not None:
        return Blocker(
            "forked",
            node.host,
            "is on another timeline of the same number",
            "forked from {0} at {1}".format(primary.host, format_lsn(past[1])),
            "the timeline of {0}".format(primary.host),
            hint,
        )
    wanted = topology.desired_upstream(node, primary)
    followed = topology.upstream_of(node)
    if followed is None or followed.host != wanted.host:
        return Blocker(
            "wrong_upstream",
            node.host,
            "follows the wrong server",
            followed.host if followed else (node.receiver.sender_host or node.upstream.host or "nobody"),
            wanted.host,
            hint,
        )
    if not node.is_streaming:
        return Blocker("not_streaming", node.host, "does not stream", node.receiver.status or "no WAL receiver", "streaming", hint)
    if node.receiver.slot_name != node.member.slot_name:
        # Its slot is there, idle, and keeps WAL until the disk or max_slot_wal_keep_size is full, while the WAL that it needs is not kept.
        return Blocker(
            "wrong_slot", node.host, "streams without its slot", node.receiver.slot_name or "no slot", node.member.slot_name, "Run heal.yml."
        )
    if node.timeline != primary.timeline:
        return Blocker("timeline", node.host, "is on another timeline", str(node.timeline), str(primary.timeline), hint)
    return None


def _slot_problems(topology: Topology, primary: Node) -> list[Blocker]:
    found: list[Blocker] = []
    for node in topology.standbys:
        wanted = topology.desired_upstream(node, primary)
        slot = {slot.name: slot for slot in wanted.slots}.get(node.member.slot_name)
        if slot is None:
            found.append(
                Blocker(
                    "slot_missing",
                    wanted.host,
                    "has no slot for {0}".format(node.host),
                    "no slot",
                    node.member.slot_name,
                    "Run start_new_standby.yml.",
                )
            )
        elif slot.wal_status == "lost":
            found.append(
                Blocker(
                    "slot_lost", wanted.host, "lost the WAL of slot " + slot.name, "lost", "reserved", "Run start_new_standby.yml."
                )
            )
    return found


def stale_slots(topology: Topology, node: Node, primary: Node) -> tuple[str, ...]:
    """Return the physical slots on `node` that belong to a member which does not stream from it.

    Such a slot keeps WAL until the disk is full. Slots of other names are somebody else's and stay.
    """
    downstream = {
        other.member.slot_name
        for other in topology.nodes
        if other.host not in (node.host, primary.host) and topology.desired_upstream(other, primary).host == node.host
    }
    ours = {other.member.slot_name for other in topology.nodes}
    return tuple(
        slot.name for slot in node.slots if slot.type == "physical" and slot.name in ours and slot.name not in downstream
    )


def wanted_slots(topology: Topology, node: Node, primary: Node) -> tuple[str, ...]:
    """Return the physical slots that `node` needs for the members that should stream from it."""
    return tuple(
        other.member.slot_name
        for other in topology.nodes
        if other.host not in (node.host, primary.host) and topology.desired_upstream(other, primary).host == node.host
    )


def problems(topology: Topology, expected: Iterable[str] = ()) -> tuple[Blocker, ...]:
    """Return everything that is wrong with the cluster, the worst first; empty when it is healthy.

    `expected` names the hosts whose absence is a problem (all of them when empty).
    """
    wanted = set(expected) or {node.host for node in topology.nodes}
    found = [*_primary_problems(topology), *synchronous_problems(topology)]
    hint = _hint_for_what_is_down(topology)
    for node in topology.nodes:
        problem = _down_problem(node, hint)
        if problem is not None and node.host in wanted:
            found.append(problem)
    primary = topology.primary
    if primary is None:
        return tuple(found)
    found.extend(stale_primary_blockers(topology, primary))
    armed = _armed_problem(primary)
    found.extend((armed,) if armed is not None else ())
    for node in topology.standbys:
        problem = standby_problem(topology, node, primary)
        if problem is not None:
            found.append(problem)
        if node.replay_paused:
            found.append(Blocker("replay_paused", node.host, "replay is paused", "paused", "running", node.to_resume))
    found.extend(_slot_problems(topology, primary))
    found.extend(
        Blocker(
            "slot_orphaned", node.host, "cannot copy the primary's failover slots", "slot {0} of its time as primary".format(slot.name), "no such slot",
            "Run start_new_standby.yml.",
        )
        for node in topology.standbys
        for slot in orphaned_slots(node)
    )
    for node in (primary, *topology.standbys):
        for name in stale_slots(topology, node, primary):
            found.append(
                Blocker("slot_stale", node.host, "keeps WAL for a node that does not follow it", name, "no slot", "Run start_new_standby.yml.")
            )
    return tuple(found)


# What is to be expected of a standby whose replay has not reached the primary's timeline yet.
_FOLLOWS_LATER = ("not_streaming", "timeline", "replay_paused", "wrong_slot")


def leave_time(topology: Topology, found: Iterable[Blocker], *, paused_too: bool) -> tuple[tuple[Blocker, ...], tuple[str, ...]]:
    """Return the problems without those that only time or a person ends, and a note for each standby that these are about.

    A delayed standby streams on a new timeline when its replay gets there, a paused one when somebody lets it go on. No role change
    can wait for that.
    """
    late = {node.host: node for node in topology.standbys if node.replay_delay_ms > 0 or (node.replay_paused and paused_too)}
    problems_now = tuple(problem for problem in found if problem.host not in late or problem.reason not in _FOLLOWS_LATER)
    kept = tuple(problem for problem in problems_now if not paused_too or problem.reason not in LATER)
    notes = [problem.message for problem in problems_now if problem not in kept]
    for host, node in late.items():
        if node.replay_paused:
            notes.append("{0}: its replay is paused and follows after that. {1}".format(host, node.to_resume))
        else:
            notes.append("{0}: its replay is delayed by {1} ms; it follows when it gets there".format(host, node.replay_delay_ms))
    return kept, tuple(notes)


def same_cluster_blockers(topology: Topology) -> tuple[Blocker, ...]:
    """Return a blocker for each node whose system identifier is not the others' (two clusters under one name)."""
    primary = topology.primary
    seen: dict[str, list[str]] = {}
    for node in topology.nodes:
        if node.system_identifier:
            seen.setdefault(node.system_identifier, []).append(node.host)
    if len(seen) < 2:
        return ()
    right = primary.system_identifier if primary else max(seen, key=lambda key: len(seen[key]))
    return tuple(
        Blocker(
            "foreign_system",
            host,
            "holds data of another cluster",
            "system identifier " + identifier,
            right,
            "Check that this host belongs to cluster {0}.".format(topology.cluster),
        )
        for identifier, hosts in seen.items()
        if identifier != right
        for host in hosts
    )
