# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the way from host variables to a topology."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import UNREACHABLE, Member
from ansible_collections.pg_ops.replication.plugins.plugin_utils.hostvars_topology import (
    cluster_members,
    fenced_by_this_run,
    member_from_variables,
    node_from_registered,
    observed_topology,
)

OBSERVED = {"node": {"state": "running", "role": "primary", "timeline": 1, "address": "192.0.2.1"}}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        pytest.param({}, Member("pg1"), id="defaults"),
        pytest.param(
            {
                "pg_cluster_name": "orders",
                "pg_address": "192.0.2.1",
                "pg_port": "5433",
                "pg_initial_role": "primary",
                "pg_upstream": "pg2",
                "pg_priority": "50",
            },
            Member("pg1", "orders", "192.0.2.1", 5433, "primary", "pg2", 50),
            id="everything, numbers as text",
        ),
        pytest.param({"pg_address": None, "pg_upstream": None}, Member("pg1"), id="empty values"),
        pytest.param({"pg_port": "five"}, Member("pg1", port=-1), id="a port that is no number is refused later"),
        pytest.param({"pg_port": None}, Member("pg1", port=-1), id="an empty port too"),
        pytest.param({"pg_priority": "never"}, Member("pg1", priority=-1), id="a priority that is no number never promotes"),
        pytest.param({"pg_priority": None}, Member("pg1", priority=-1), id="an empty priority neither"),
        pytest.param({"pg_priority": 0}, Member("pg1", priority=0), id="priority 0"),
        pytest.param({"pg_priority": False}, Member("pg1", priority=0), id="priority no"),
        pytest.param({"pg_cluster_name": 15}, Member("pg1", cluster="15"), id="a name that YAML reads as a number"),
    ],
)
def test_member_from_variables_has_the_roles_defaults(variables: dict[str, Any], expected: Member) -> None:
    assert member_from_variables("pg1", variables) == expected


HOSTVARS: dict[str, dict[str, Any]] = {
    "b": {"pg_cluster_name": "one"},
    "a": {"pg_cluster_name": "one"},
    "c": {"pg_cluster_name": "two"},
    "d": {},
    "elsewhere": {"pg_cluster_name": "one"},
}
GROUPS = {"pg_nodes": ["b", "a", "c", "d"], "all": [*HOSTVARS]}


@pytest.mark.parametrize(("host", "expected"), [("a", ["b", "a"]), ("b", ["b", "a"]), ("c", ["c"]), ("d", ["d"])])
def test_cluster_members_are_the_groups_hosts_of_one_cluster_in_its_order(host: str, expected: list[str]) -> None:
    assert [member.host for member in cluster_members(host, GROUPS, HOSTVARS)] == expected


def test_cluster_members_without_the_group_are_none() -> None:
    assert cluster_members("a", {}, HOSTVARS) == []


@pytest.mark.parametrize(
    ("registered", "in_play", "problem"),
    [
        pytest.param({}, True, "an earlier task of this run failed on it; its message stands above", id="nothing registered"),
        pytest.param({}, False, "it is outside this run (--limit)", id="not in this run"),
        pytest.param({"skipped": True}, True, "its machine is not running", id="machine off"),
        pytest.param({"unreachable": True, "msg": "Failed to connect:\n  no route"}, True, "Failed to connect: no route", id="unreachable"),
        pytest.param({"failed": True, "msg": "", "module_stderr": "Traceback"}, True, "Traceback", id="module died"),
        pytest.param({"node": {}, "msg": "odd"}, True, "odd", id="empty observation"),
        pytest.param({"node": None}, True, "no answer", id="null observation"),
        pytest.param({"msg": "x" * 900}, True, "x" * 300, id="long text is cut"),
    ],
)
def test_node_from_registered_without_observation_is_unreachable(registered: dict[str, Any], in_play: bool, problem: str) -> None:
    node = node_from_registered(Member("pg1"), registered, in_play=in_play)
    assert (node.state, node.role, node.problem) == (UNREACHABLE, "", problem)


def test_node_from_registered_is_what_was_observed() -> None:
    node = node_from_registered(Member("pg1"), OBSERVED, in_play=True)
    assert (node.is_running_primary, node.problem, node.member.address) == (True, "", "192.0.2.1")


def variables(**registered: Any) -> dict[str, Any]:
    hostvars = {host: {"pg_cluster_name": "one", **({"__seen": registered[host]} if host in registered else {})} for host in ("pg1", "pg2", "pg3")}
    return {"hostvars": hostvars, "groups": {"pg_nodes": ["pg1", "pg2", "pg3"]}, "ansible_play_hosts_all": ["pg1", "pg2"]}


@pytest.mark.parametrize("host", ["pg1", "pg2", "pg3"])
def test_observed_topology_is_the_same_from_every_host(host: str) -> None:
    topology = observed_topology(host, variables(pg1=OBSERVED, pg2={"failed": True, "msg": "boom"}), "__seen")
    assert topology.cluster == "one"
    assert [(node.host, node.state, node.problem) for node in topology.nodes] == [
        ("pg1", "running", ""),
        ("pg2", "unreachable", "boom"),
        ("pg3", "unreachable", "it is outside this run (--limit)"),
    ]


def test_observed_topology_of_another_variable_is_unobserved() -> None:
    topology = observed_topology("pg1", variables(pg1=OBSERVED), "__other")
    assert {node.state for node in topology.nodes} == {UNREACHABLE}


def test_observed_topology_of_a_host_outside_the_group_is_empty() -> None:
    task_vars = {"hostvars": {"x": {}}, "groups": {"pg_nodes": []}}
    assert (observed_topology("x", task_vars, "__seen").cluster, observed_topology("x", task_vars, "__seen").nodes) == ("", ())


@pytest.mark.parametrize(
    ("registered", "expected"),
    [
        pytest.param({}, [], id="before the fence"),
        pytest.param({"__pg_fenced": {"fenced": True}}, ["pg1"], id="fenced"),
        pytest.param({"__pg_fenced": {"skipped": True}, "__pg_switched_off": {"rc": 0}}, ["pg1"], id="switched off"),
        pytest.param({"__pg_fenced": {"skipped": True}, "__pg_switched_off": {"skipped": True, "rc": 0}}, [], id="left alone"),
        pytest.param({"__pg_switched_off": {"rc": 1}}, [], id="the command failed"),
        pytest.param({"__pg_fenced": {"unreachable": True}}, [], id="lost while it was fenced"),
        pytest.param({"__pg_fenced": None}, [], id="nothing was registered"),
    ],
)
def test_fenced_by_this_run_are_those_of_whom_that_is_certain(registered: dict[str, Any], expected: list[str]) -> None:
    assert fenced_by_this_run(["pg1", "pg2"], {"pg1": registered, "pg2": {}}) == expected
