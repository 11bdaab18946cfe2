# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters for the decisions' truth tables: a healthy one, and what can become of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import (
    PRIMARY,
    STANDBY,
    Member,
    Node,
    Pending,
    Receiver,
    Sender,
    Slot,
    Upstream,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology

SYSTEM = "7300000000000000001"
OTHER_SYSTEM = "7300000000000000002"
TRIO = ("pg1", "pg2", "pg3")
PAIR = ("pg1", "pg2")
# Timeline 2 left timeline 1 at 0/5000000, timeline 3 left timeline 2 at 0/7000000.
FORK_OF_2 = "0/5000000"
FORK_OF_3 = "0/7000000"
HISTORIES = {
    1: "",
    2: "1\t0/5000000\tno recovery target specified\n",
    3: "1\t0/5000000\tno recovery target specified\n\n2\t0/7000000\tno recovery target specified\n",
}
# Another promotion of timeline 1, which took the number 2 as well.
OTHER_HISTORY_OF_2 = "1\t0/4000000\tno recovery target specified\n"
NOW = "0/9000000"
MIB = 1024 * 1024


def member(host: str, **changes: Any) -> Member:
    """Return a member; the address ends in the number that ends its name."""
    digits = "".join(letter for letter in host if letter.isdigit()) or "99"
    values: dict[str, Any] = {"address": "192.0.2." + digits[-2:].lstrip("0"), "initial_role": "primary" if host == "pg1" else "standby", **changes}
    return Member(host, **values)


def sender_of(host: str, **changes: Any) -> Sender:
    """Return the connection through which a host takes its WAL."""
    values: dict[str, Any] = {"application_name": host, "state": "streaming", "sync_state": "async", "replay_lsn": NOW, "replay_lag_seconds": 0.0, **changes}
    return Sender(**values)


def slot_of(who: Member, **changes: Any) -> Slot:
    """Return the slot of a member."""
    values: dict[str, Any] = {"name": who.slot_name, "active": True, "restart_lsn": NOW, "wal_status": "reserved", **changes}
    return Slot(**values)


def cluster(
    hosts: Sequence[str] = TRIO,
    *,
    primary: str = "pg1",
    timeline: int = 1,
    upstreams: Optional[Mapping[str, str]] = None,
    members: Optional[Mapping[str, Mapping[str, Any]]] = None,
) -> Topology:
    """Return a healthy cluster. `upstreams` holds cascaded hosts (pg_upstream), `members` changes of members by host."""
    above = {host: (upstreams or {}).get(host, primary) for host in hosts if host != primary}
    known = {
        host: member(host, **{"upstream": (upstreams or {}).get(host, ""), **(members or {}).get(host, {})}) for host in hosts
    }
    nodes = []
    for host in hosts:
        below = [other for other in above if above[other] == host]
        node = _common(known[host], timeline, below=[known[other] for other in below])
        if host == primary:
            node = replace(node, role=PRIMARY, current_lsn=NOW)
        else:
            up = known[above[host]]
            node = replace(
                node,
                role=STANDBY,
                receive_lsn=NOW,
                replay_lsn=NOW,
                standby_signal=True,
                upstream=Upstream(up.address, up.port, "replicator", host, known[host].slot_name),
                receiver=Receiver("streaming", up.address, up.port, known[host].slot_name, timeline),
            )
        nodes.append(node)
    return Topology("main", tuple(nodes))


def _common(who: Member, timeline: int, *, below: Iterable[Member]) -> Node:
    below = list(below)
    return Node(
        who,
        state=states.RUNNING,
        major=15,
        server_version_num=150008,
        installed_major=15,
        system_identifier=SYSTEM,
        timeline=timeline,
        control_timeline=timeline,
        control_state="in production",
        checkpoint_lsn="0/8000100",
        redo_lsn="0/8000000",
        oldest_wal_lsn="0/3000000",
        timeline_history=HISTORIES[timeline],
        senders=tuple(sender_of(other.host) for other in below),
        slots=tuple(slot_of(other) for other in below),
        settings={"max_wal_senders": "10", "max_replication_slots": "10"},
        roles=("replicator", "rewinder"),
        data_checksums=True,
        disk_free_bytes=100_000_000_000,
        data_bytes=1_000_000_000,
    )


def change(topology: Topology, host: str, **changes: Any) -> Topology:
    """Return the topology with one node changed; `member` may be a mapping of changes to the member."""
    changed = []
    for node in topology.nodes:
        if node.host == host:
            values = dict(changes)
            if isinstance(values.get("member"), Mapping):
                values["member"] = replace(node.member, **values["member"])
            node = replace(node, **values)
        changed.append(node)
    return replace(topology, nodes=tuple(changed))


def down(topology: Topology, host: str, state: str = states.CRASHED, **changes: Any) -> Topology:
    """Return the topology with one server down: what its files say stays known, and nobody streams from it."""
    here = topology.node(host)
    assert here is not None
    if state == states.UNREACHABLE:
        values: dict[str, Any] = {"problem": "no route to host"}
        return _unheard(_replaced(topology, Node(here.member, **{**values, **changes})), host)
    if state == states.ABSENT:
        return _unheard(_replaced(topology, Node(here.member, state=states.ABSENT, installed_major=15, disk_free_bytes=here.disk_free_bytes)), host)
    clean, crashed = ("shut down in recovery", "in archive recovery") if here.role == STANDBY else ("shut down", "in production")
    values = {
        "state": state,
        "role": STANDBY if here.standby_signal else PRIMARY,
        "control_state": clean if state == states.STOPPED else crashed,
        "min_recovery_lsn": here.replay_lsn or "0/0",
        "wal_end_lsn": here.position_lsn,
        "checkpoint_lsn": here.current_lsn if state == states.STOPPED and here.current_lsn else here.checkpoint_lsn,
        "current_lsn": "",
        "receive_lsn": "",
        "replay_lsn": "",
        "server_version_num": 0,
        "senders": (),
        "slots": (),
        "receiver": Receiver(),
        "settings": {},
        **changes,
    }
    return _unheard(change(topology, host, **values), host)


def _replaced(topology: Topology, node: Node) -> Topology:
    return replace(topology, nodes=tuple(node if other.host == node.host else other for other in topology.nodes))


def _unheard(topology: Topology, host: str) -> Topology:
    """Return the topology in which those that streamed from the host, or sent to it, do no more."""
    gone = topology.node(host)
    assert gone is not None
    nodes = []
    for node in topology.nodes:
        if node.receiver.sender_host and node.receiver.sender_host == gone.member.address:
            node = replace(node, receiver=Receiver())
        senders = tuple(sender for sender in node.senders if sender.application_name != host)
        slots = tuple(replace(slot, active=slot.active and slot.name != gone.member.slot_name) for slot in node.slots)
        nodes.append(replace(node, senders=senders, slots=slots))
    return replace(topology, nodes=tuple(nodes))


def hears(topology: Topology, host: str, *, silent_seconds: Optional[float] = 0.1, sender: str = "pg1") -> Topology:
    """Return the topology in which a standby got its last message from a host, or an address, that long ago."""
    address = the(cluster(), sender).member.address if sender in TRIO else sender
    return change(topology, host, receiver=Receiver("streaming", address, 5432, host, 1, silent_seconds))


def pending(operation: str, source: str, target: str) -> Pending:
    """Return the note of a role change that was begun."""
    return Pending(operation, source, target, "armed")


def the(topology: Topology, host: str) -> Node:
    """Return the node of that name."""
    node = topology.node(host)
    assert node is not None
    return node


def reasons(blockers: Iterable[Blocker]) -> list[tuple[str, str]]:
    """Return (reason, host) of each blocker."""
    return [(blocker.reason, blocker.host) for blocker in blockers]
