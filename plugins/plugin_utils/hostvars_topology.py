# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""From the controller's host variables to the core's topology."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import OUTSIDE_RUN, Member, Node, node_from_mapping
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import MODES, WAIT, SynchronousRule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology

GROUP = "pg_nodes"


def member_from_variables(host: str, variables: Mapping[str, Any]) -> Member:
    """Return what the inventory says of one host; the defaults are those of the role `common`."""
    return Member(
        host=host,
        cluster=str(variables.get("pg_cluster_name", "main")),
        address=str(variables.get("pg_address", "") or ""),
        port=_integer(variables.get("pg_port", 5432), -1),
        initial_role=str(variables.get("pg_initial_role", "")),
        upstream=str(variables.get("pg_upstream", "") or ""),
        priority=_integer(variables.get("pg_priority", 100), -1),
    )


def _integer(value: Any, otherwise: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return otherwise


def cluster_members(host: str, groups: Mapping[str, list[str]], hostvars: Mapping[str, Any]) -> list[Member]:
    """Return every member of the host's cluster, in the inventory's order."""
    cluster = str(hostvars[host].get("pg_cluster_name", "main"))
    members = [member_from_variables(name, hostvars[name]) for name in groups.get(GROUP, [])]
    return [member for member in members if member.cluster == cluster]


# A later observation leaves hosts out on purpose, those that are down for one; the first one leaves out only machines that are off.
FIRST_OBSERVATION = "__pg_observed"


def _why_unobserved(registered: Mapping[str, Any], in_play: bool, first: bool) -> str:
    if not in_play:
        return OUTSIDE_RUN
    if not registered:
        return "an earlier task of this run failed on it; its message stands above"
    if registered.get("skipped"):
        return "its machine is not running" if first else "it was left out of this step"
    text = str(registered.get("msg") or registered.get("module_stderr") or "no answer")
    return " ".join(text.split())[:300]


def node_from_registered(member: Member, registered: Mapping[str, Any], *, in_play: bool, first: bool = True) -> Node:
    """Return a node from what a task registered; without an observation it is an unreachable one."""
    observed: dict[str, Any] = dict(registered.get("node") or {})
    if not observed:
        observed = {"problem": _why_unobserved(registered, in_play, first)}
    return node_from_mapping(member, observed)


def observed_topology(host: str, task_vars: Mapping[str, Any], variable: str) -> Topology:
    """Return the topology of the host's cluster from the observations registered as `variable`."""
    hostvars, groups = task_vars["hostvars"], task_vars["groups"]
    in_play = set(task_vars.get("ansible_play_hosts_all", []))
    members = cluster_members(host, groups, hostvars)
    nodes = [
        node_from_registered(
            member, hostvars[member.host].get(variable) or {}, in_play=member.host in in_play, first=variable == FIRST_OBSERVATION
        )
        for member in members
    ]
    rule = synchronous_rule(members, hostvars[host])
    return Topology(members[0].cluster if members else "", tuple(nodes), rule)


def fenced_by_this_run(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts that tasks before this one have fenced or had switched off, by what these registered; none at the beginning of a run."""

    def registered(host: str, name: str, key: str) -> Any:
        found = hostvars[host].get(name) or {}
        return found.get(key) if not found.get("skipped") else None

    return [
        host for host in hosts if registered(host, "__pg_fenced", "fenced") is True or registered(host, "__pg_switched_off", "rc") == 0
    ]


def synchronous_rule(members: Sequence[Member], variables: Mapping[str, Any]) -> Optional[SynchronousRule]:
    """Return how the cluster replicates synchronously, None where it does not; the defaults are those of the role `common`.

    Without `pg_synchronous_members` all that may be promoted confirm, those of the highest `pg_priority` first.
    """
    mode = str(variables.get("pg_synchronous_mode", "off") or "off").lower()  # YAML reads a bare `off` as false
    if mode not in MODES:
        return None
    named = [str(name) for name in variables.get("pg_synchronous_members") or ()]
    able = [member.host for member in sorted(members, key=lambda member: -member.priority) if member.priority > 0]
    degrade = str(variables.get("pg_synchronous_degrade", WAIT))
    return SynchronousRule(mode, _integer(variables.get("pg_synchronous_num", 1), 1), tuple(named or able), degrade)
