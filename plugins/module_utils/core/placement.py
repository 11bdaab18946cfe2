# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The place of every node once a plan has been carried out: upstream, slots, downstreams."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.confirming import confirming
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import FOLLOW, NOTHING, REFUSE
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, wanted_slots


@dataclass(frozen=True)
class Placement:
    """Where one node belongs; `upstream` is None on the primary. `slots_absent` are the members' slots that it must not keep.

    `synchronized` are, on the primary, the slots of the standbys that may be promoted and stream from it, up or down. `waits` is false where
    waiting until it streams is in vain, because its replay is paused or delayed. `confirming` are the application names that may confirm
    this node's commits as primary.
    """

    host: str
    upstream: Optional[Node]
    slots_present: tuple[str, ...]
    slots_absent: tuple[str, ...]
    downstreams: tuple[str, ...]
    synchronized: tuple[str, ...] = ()
    waits: bool = True
    confirming: tuple[str, ...] = ()


def after_change(topology: Topology, source: str, target: str, *, source_returns: bool) -> Topology:
    """Return the topology as it will be: `target` is primary, and `source` a standby (a planned change) or down."""
    nodes = []
    for node in topology.nodes:
        if node.host == target:
            node = replace(node, state=states.RUNNING, role=states.PRIMARY)
        elif node.host == source:
            state = states.RUNNING if source_returns else states.STOPPED
            node = replace(node, state=state, role=states.STANDBY)
        nodes.append(node)
    return replace(topology, nodes=tuple(nodes))


def slots_at_primary(topology: Topology, primary: Node, arriving: Collection[str]) -> tuple[str, ...]:
    """Return the physical slots that the primary needs now: of those that stream from it, and of `arriving` hosts, which begin with it.

    A cascaded standby is copied from the primary and goes to its own upstream afterwards; once it is there it needs nothing here.
    """
    return tuple(
        node.member.slot_name
        for node in topology.others(primary.host)
        if node.host in arriving or topology.desired_upstream(node, primary).host == primary.host
    )


def slots_for_hand_over(after: Topology, source: str, target: str) -> tuple[str, ...]:
    """Return the physical slots that the target of a hand-over needs in it: those of its place, and the old primary's, which begins with it.

    One that has a pg_upstream goes there once it streams; the target keeps no slot for it then.
    """
    here, old = after.node(target), after.node(source)
    names = wanted_slots(after, here, here) if here is not None else ()
    return names if old is None or old.member.slot_name in names else (*names, old.member.slot_name)


def without(topology: Topology, hosts: Collection[str]) -> Topology:
    """Return the topology as the others see it when these hosts stay out of a change: as if they were down."""
    nodes = tuple(replace(node, state=states.STOPPED) if node.host in hosts else node for node in topology.nodes)
    return replace(topology, nodes=nodes)


def returning(ways: Mapping[str, str]) -> tuple[str, ...]:
    """Return the hosts that a rejoin starts, rewinds or copies; `ways` are the actions of their rejoin plans by host."""
    return tuple(host for host, action in ways.items() if action not in (NOTHING, FOLLOW, REFUSE))


def after_rejoin(topology: Topology, ways: Mapping[str, str], present: Collection[str]) -> Topology:
    """Return the topology behind a rejoin in which all of `present` came back that were to; `ways` as returning() has them. It needs one primary.

    Whoever did not, or was refused, is as good as down: what the inventory puts below it is the primary's meanwhile, with its slot and,
    in a synchronous set, its name. It is the same for every host: a cascaded standby goes back to its upstream in the run that brings the
    upstream back, and must not leave a parent that waits for it.
    """
    primary = topology.primary
    if primary is None:
        raise AssertionError("a rejoin without a primary is refused")
    after = topology
    arrived = [host for host in returning(ways) if host in present]
    for host in arrived:
        after = after_change(after, host, primary.host, source_returns=True)
    # One that was down before stays what it was observed to be: a host out of sight may still be in a synchronous set.
    lost = [node.host for node in after.standbys if node.host not in arrived and ways.get(node.host, NOTHING) not in (NOTHING, FOLLOW)]
    return without(after, lost)


def placement(topology: Topology, host: str) -> Optional[Placement]:
    """Return the place of one node in a topology that has one primary, else None."""
    primary, here = topology.primary, topology.node(host)
    if primary is None or here is None:
        return None
    present = wanted_slots(topology, here, primary)
    ours = [node.member.slot_name for node in topology.nodes]
    down = tuple(
        node.host
        for node in topology.standbys
        if node.host != host and node.replays_at_once and topology.desired_upstream(node, primary).host == host
    )
    upstream = None if here.host == primary.host else topology.desired_upstream(here, primary)
    able = {node.member.slot_name for node in topology.nodes if node.member.priority > 0}
    synchronized = tuple(name for name in present if name in able) if upstream is None else ()
    confirmers = tuple(node.member.application_name for node in confirming(topology, host))
    absent = tuple(name for name in ours if name not in present)
    return Placement(host, upstream, present, absent, down, synchronized, waits=here.replays_at_once, confirming=confirmers)
