# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the first set-up of a cluster needs: a sound inventory, a primary, and room for the standbys."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, STANDBY, Member, Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import SynchronousRule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, same_cluster_blockers

CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# A clone needs the primary's size plus WAL that arrives meanwhile; a fifth more is what pg_basebackup users plan with.
CLONE_HEADROOM = 1.2
# What a primary that is yet to be made will take: template databases, a few WAL segments.
EMPTY_SERVER_BYTES = 64 * 1024 * 1024

INIT = "init"  # make a new, empty server
ADOPT = "adopt"  # take over the server that is there
CLONE = "clone"  # copy the primary
KEEP = "keep"  # it is a standby of this cluster already


@dataclass(frozen=True)
class SetupPlan:
    """What initial_setup does on one host: its role, the way to it, and what speaks against it."""

    role: str
    action: str
    primary: str
    blockers: tuple[Blocker, ...] = ()


def inventory_blockers(cluster: str, members: Sequence[Member], rule: Optional[SynchronousRule] = None) -> tuple[Blocker, ...]:
    """Return what is wrong with the inventory's words about one cluster, before any host is touched."""
    found: list[Blocker] = []
    if not CLUSTER_NAME.fullmatch(cluster):
        found.append(
            Blocker(
                "bad_cluster_name", ", ".join(m.host for m in members), "its pg_cluster_name cannot be used", repr(cluster),
                "letters, digits, '_', '.' and '-', at most 63, a letter or digit first", "Rename the cluster in the inventory.",
            )
        )
    named = [member.host for member in members if member.initial_role == PRIMARY]
    if len(named) != 1:
        found.append(
            Blocker(
                "two_initial_primaries" if named else "no_initial_primary", ", ".join(named) or ", ".join(m.host for m in members),
                "cluster {0} needs exactly one host with pg_initial_role=primary".format(cluster),
                ", ".join(named) or "none", "one", "Set pg_initial_role=primary on one host and standby on the others.",
            )
        )
    for member in members:
        found.extend(_member_blockers(member, members))
    if rule is not None:
        found.extend(_rule_blockers(cluster, members, rule))
    return tuple(found)


def _rule_blockers(cluster: str, members: Sequence[Member], rule: SynchronousRule) -> list[Blocker]:
    hosts = [member.host for member in members]
    unknown = [host for host in rule.members if host not in hosts]
    if unknown:
        return [
            Blocker("bad_synchronous_members", cluster, "pg_synchronous_members names hosts that it does not have", ", ".join(unknown),
                    "hosts among " + ", ".join(hosts), "Correct pg_synchronous_members.")
        ]
    # Whoever is primary does not confirm its own commits.
    most = max(0, len(set(rule.members)) - 1)
    if not 0 < rule.num <= most:
        return [
            Blocker("bad_synchronous_num", cluster, "pg_synchronous_num cannot be met by {0}".format(", ".join(rule.members) or "nobody"), str(rule.num),
                    "1 to {0}".format(most) if most else "two hosts or more that may be promoted",
                    "Correct pg_synchronous_num, pg_synchronous_members or pg_priority.")
        ]
    return []


def _member_blockers(member: Member, members: Sequence[Member]) -> list[Blocker]:
    found: list[Blocker] = []
    hosts = [other.host for other in members]
    if member.initial_role not in (PRIMARY, STANDBY, ""):
        found.append(
            Blocker("bad_initial_role", member.host, "has an unknown pg_initial_role", repr(member.initial_role), "primary or standby",
                    "Correct it in the inventory.")
        )
    if member.upstream and (member.upstream not in hosts or member.upstream == member.host):
        found.append(
            Blocker("bad_upstream", member.host, "its pg_upstream is not another host of its cluster", member.upstream,
                    "one of " + ", ".join(host for host in hosts if host != member.host), "Correct pg_upstream.")
        )
    if not 0 < member.port < 65536:
        found.append(Blocker("bad_port", member.host, "has an impossible pg_port", str(member.port), "1 to 65535", "Correct pg_port."))
    if member.priority < 0:
        found.append(
            Blocker("bad_priority", member.host, "its pg_priority is not a number from 0 on", "not usable", "0 (never promote) or more",
                    "Correct pg_priority.")
        )
    for other in members:
        if other.host < member.host and member.address and (other.address, other.port) == (member.address, member.port):
            found.append(
                Blocker("same_endpoint", member.host, "has the same address and port as {0}".format(other.host),
                        "{0} port {1}".format(member.address, member.port), "its own", "Correct pg_address or pg_port.")
            )
    return found


def _was_set_up(node: Node) -> bool:
    """Whether a node's files tell of a cluster: then a new primary would not be its first, and what lies there may be the only copy of the data."""
    return node.role == STANDBY or node.timeline > 1 or node.fenced or node.rewind_unfinished or bool(node.pending.operation)


def _initial_primary(topology: Topology) -> Optional[Node]:
    """Return who is primary: the running one, else the inventory's; None when that one was replaced or cannot be told.

    Servers of different systems are not one cluster's: a Debian package starts one on each host. Then the inventory's counts,
    and also against a single server on another host that has none of our roles.
    """
    running = topology.primaries
    first = next((node for node in topology.nodes if node.member.initial_role == PRIMARY), None)
    if len(running) > 1:
        strangers = len({node.system_identifier for node in running}) == len(running)
        return first if first in running and strangers else None
    if running and (first is None or running[0].roles or running[0].system_identifier == first.system_identifier != ""):
        return running[0]
    if first is None or first.standby_signal or first.fenced or first.rewind_unfinished:
        return None
    if first.state == states.ABSENT and any(_was_set_up(node) for node in topology.nodes):
        return None
    overtaken = [n for n in topology.nodes if n.timeline > first.timeline and n.system_identifier == first.system_identifier != ""]
    return None if overtaken else first


def _unasked_blockers(primary: Node, installs: bool) -> list[Blocker]:
    """Refuse a primary that runs and could not be asked: settings that must be kept and roles with their passwords are known from its answer alone.

    With `installs` what it lacks for that comes yet, and it is asked again.
    """
    if not (primary.is_running_primary and primary.problem) or (installs and primary.problem == states.NO_PSYCOPG2):
        return []
    lacking = primary.problem == states.NO_PSYCOPG2
    hint = "Install python3-psycopg2 there; without --check initial_setup.yml does, unless pg_node_install is off."
    return [
        Blocker("unasked_primary", primary.host, "its server runs and could not be asked for its settings and roles", primary.problem, "an answer",
                hint if lacking else "Look at its log; let pg_superuser in over its socket.")
    ]


def _node_blockers(node: Node, primary: Node, replace_data: bool) -> list[Blocker]:
    found: list[Blocker] = []
    if node.state == states.UNREACHABLE:
        return [Blocker("unreachable", node.host, "cannot be observed", node.problem or "no answer", "an answer", "Repair the host or take it out.")]
    if not node.member.address:
        found.append(
            Blocker("no_address", node.host, "nobody knows where the others reach it", "no pg_address, no IPv4 default route", "an address", "Set pg_address.")
        )
    if node.port_taken_by:
        found.append(
            Blocker("port_taken", node.host, "its port is taken by something else", "port {0}: {1}".format(node.member.port, node.port_taken_by),
                    "a free port", "Stop that program or set another pg_port.")
        )
    majors = (node.major or node.installed_major, primary.major or primary.installed_major)
    if all(majors) and majors[0] != majors[1]:
        found.append(
            Blocker("version_mismatch", node.host, "has another PostgreSQL major version than {0}".format(primary.host), str(majors[0]),
                    str(majors[1]), "Set pg_version to one version for the whole cluster.")
        )
    if node.host != primary.host:
        found.extend(_standby_blockers(node, primary, replace_data))
    return found


def _comes_up_by_itself(node: Node) -> bool:
    """Whether a start is all that the node needs: it runs, or it is a copy that an interrupted set-up did not start yet."""
    if node.is_running_standby or node.is_running_primary:
        return True
    return node.standby_signal and bool(node.upstream.host) and not node.fenced and not node.rewind_unfinished


def _standby_blockers(node: Node, primary: Node, replace_data: bool) -> list[Blocker]:
    found: list[Blocker] = []
    same = node.system_identifier == primary.system_identifier and bool(node.system_identifier)
    if node.state != states.ABSENT and not same and not replace_data:
        found.append(
            Blocker("foreign_data", node.host, "holds data that is not this cluster's",
                    "system identifier {0}, {1}, {2} bytes".format(node.system_identifier or "unknown", node.state, node.data_bytes),
                    "no data directory, or a standby of {0}".format(primary.host),
                    "Look at it; -e pg_standby_replace_data=true moves it aside (it is never deleted).")
        )
    if same and node.is_running_primary:
        found.append(
            Blocker("two_primaries", node.host, "accepts writes beside {0}".format(primary.host), "running primary", "one primary",
                    "Run heal.yml.")
        )
    if same and not _comes_up_by_itself(node):
        found.append(
            Blocker("not_running", node.host, "is a node of this cluster that is down, and it must not be started unseen",
                    "{0} {1}{2}".format(node.role, node.state, ", fenced" if node.fenced else ""), "a running standby",
                    "Run start_new_standby.yml.")
        )
    needed = int((primary.data_bytes or EMPTY_SERVER_BYTES) * CLONE_HEADROOM)
    if (node.state == states.ABSENT or not same) and node.disk_free_bytes < needed:
        found.append(
            Blocker("disk_too_small", node.host, "has too little disk for a copy of {0}".format(primary.host),
                    "{0} bytes free".format(node.disk_free_bytes), "{0} bytes".format(needed), "Free space or enlarge the disk.")
        )
    return found


def plan_setup(topology: Topology, host: str, replace_data: bool = False, installs: bool = False) -> SetupPlan:
    """Return what initial_setup does on one host; the blockers are the whole cluster's, so that nothing is half done.

    `installs` says that packages are installed next, and that the plan is made again where a server could not be asked without them.
    """
    primary = _initial_primary(topology)
    if primary is None:
        seen = "; ".join(node.seen for node in topology.nodes)
        return SetupPlan("", "", "", (
            Blocker("no_clear_primary", topology.cluster, "it cannot be told which node is the primary", seen, "one primary",
                    "Use failover.yml or start_new_standby.yml for a cluster that was set up before; where its last primary is down, start that first. "
                    "Data of another cluster that stands in the way: move it away yourself. To begin anew where the data is gone, move "
                    "DATA_DIRECTORY.pg_ops away too, on each host: its notes and reports are of the old cluster."),
        ))
    found = _unasked_blockers(primary, installs)
    for node in topology.nodes:
        found.extend(_node_blockers(node, primary, replace_data))
    if not any(blocker.reason in ("foreign_data", "two_primaries") for blocker in found) and not replace_data:
        found.extend(same_cluster_blockers(topology))
    here = topology.node(host)
    if here is None or host == primary.host:
        action = INIT if primary.state == states.ABSENT else ADOPT
        return SetupPlan(PRIMARY, action, primary.host, tuple(found))
    same = bool(here.system_identifier) and here.system_identifier == primary.system_identifier
    return SetupPlan(STANDBY, KEEP if same else CLONE, primary.host, tuple(found))
