# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of what the first set-up of a cluster needs."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, STANDBY, Member, Node, Pending, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.setup import (
    ADOPT,
    CLONE,
    INIT,
    KEEP,
    inventory_blockers,
    plan_setup,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    HISTORIES,
    OTHER_SYSTEM,
    PAIR,
    TRIO,
    change,
    cluster,
    down,
    member,
    reasons,
)

MEMBERS = (member("pg1"), member("pg2"), member("pg3"))

# -- the inventory's words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["main", "a", "0", "My.cluster_1-b", "x" * 63])
def test_inventory_blockers_of_a_sound_inventory_are_none(name: str) -> None:
    assert inventory_blockers(name, MEMBERS) == ()


@pytest.mark.parametrize("name", ["", " ", "two words", "-a", ".a", "_a", "a/b", "a;b", "Ä", "a'b", "main\n", "x" * 64, "../main"])
def test_inventory_blockers_of_an_odd_cluster_name(name: str) -> None:
    assert [blocker.reason for blocker in inventory_blockers(name, MEMBERS)] == ["bad_cluster_name"]


def changed(host: str, **changes: Any) -> tuple[Member, ...]:
    return tuple(member(each.host, **changes) if each.host == host else each for each in MEMBERS)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        pytest.param(changed("pg1", initial_role="standby"), [("no_initial_primary", "pg1, pg2, pg3")], id="no primary named"),
        pytest.param(changed("pg2", initial_role="primary"), [("two_initial_primaries", "pg1, pg2")], id="two primaries named"),
        pytest.param(changed("pg2", initial_role="master"), [("bad_initial_role", "pg2")], id="unknown role"),
        pytest.param(changed("pg2", initial_role="Standby"), [("bad_initial_role", "pg2")], id="role in capitals"),
        pytest.param(changed("pg2", initial_role=""), [], id="no role is a standby"),
        pytest.param(changed("pg3", upstream="pg9"), [("bad_upstream", "pg3")], id="upstream is nobody"),
        pytest.param(changed("pg3", upstream="pg3"), [("bad_upstream", "pg3")], id="upstream is itself"),
        pytest.param(changed("pg3", upstream="pg2"), [], id="upstream is a member"),
        pytest.param(changed("pg2", port=0), [("bad_port", "pg2")], id="port 0"),
        pytest.param(changed("pg2", port=-1), [("bad_port", "pg2")], id="port that is no number"),
        pytest.param(changed("pg2", port=65536), [("bad_port", "pg2")], id="port too high"),
        pytest.param(changed("pg2", port=65535), [], id="the highest port"),
        pytest.param(changed("pg2", priority=-1), [("bad_priority", "pg2")], id="priority that is no number"),
        pytest.param(changed("pg2", priority=0), [], id="priority 0"),
        pytest.param(changed("pg2", address="192.0.2.1"), [("same_endpoint", "pg2")], id="same address and port"),
        pytest.param(changed("pg2", address="192.0.2.1", port=5433), [], id="same address, another port"),
        pytest.param((member("pg1", address=""), member("pg2", address="")), [], id="addresses not given"),
        pytest.param((member("pg1"),), [], id="one host"),
    ],
)
def test_inventory_blockers_name_reason_and_host(members: tuple[Member, ...], expected: list[tuple[str, str]]) -> None:
    assert reasons(inventory_blockers("main", members)) == expected


# -- the plan -----------------------------------------------------------------------------------------------------------------


def fresh(hosts: tuple[str, ...] = TRIO, **changes: Any) -> Topology:
    """Return hosts without any server."""
    values = {"state": states.ABSENT, "installed_major": 15, "disk_free_bytes": 10**11, **changes}
    return Topology("main", tuple(Node(member(host), **values) for host in hosts))


def stranger(topology: Topology, host: str, **changes: Any) -> Topology:
    """Return the topology with a server of its own on a host, as a Debian package starts one."""
    values = {
        "state": states.RUNNING,
        "role": PRIMARY,
        "system_identifier": OTHER_SYSTEM,
        "timeline": 1,
        "major": 15,
        "data_bytes": 40_000_000,
        "roles": (),
        "standby_signal": False,
        **changes,
    }
    return change(topology, host, **values)


def summary(topology: Topology, replace_data: bool = False) -> tuple[list[str], list[tuple[str, str]]]:
    """Return role and action of each host, and the blockers, which every host must see alike."""
    plans = [plan_setup(topology, node.host, replace_data) for node in topology.nodes]
    assert len({(plan.primary, plan.blockers) for plan in plans}) == 1
    return [plan.role + " " + plan.action for plan in plans], reasons(plans[0].blockers)


PLANS = [
    pytest.param(fresh(), ["primary init", "standby clone", "standby clone"], id="nothing there"),
    pytest.param(fresh(("pg1",)), ["primary init"], id="one host"),
    pytest.param(
        stranger(fresh(), "pg1"), ["primary adopt", "standby clone", "standby clone"], id="a server on the primary is taken over"
    ),
    pytest.param(
        stranger(fresh(), "pg1", state=states.STOPPED), ["primary adopt", "standby clone", "standby clone"], id="taken over, it is stopped"
    ),
    pytest.param(cluster(), ["primary adopt", "standby keep", "standby keep"], id="set up already"),
    pytest.param(cluster(primary="pg2", timeline=2), ["standby keep", "primary adopt", "standby keep"], id="after a failover"),
    pytest.param(down(cluster(), "pg3", states.ABSENT), ["primary adopt", "standby keep", "standby clone"], id="a standby lost its disk"),
    pytest.param(
        down(cluster(primary="pg2", timeline=2), "pg1", states.ABSENT), ["standby clone", "primary adopt", "standby keep"], id="the first primary did"
    ),
    pytest.param(down(cluster(PAIR), "pg2", states.STOPPED), ["primary adopt", "standby keep"], id="a copy that was not started yet"),
    pytest.param(down(cluster(PAIR), "pg1", states.STOPPED), ["primary adopt", "standby keep"], id="the primary is stopped"),
    pytest.param(down(down(cluster(PAIR), "pg1", states.STOPPED), "pg2", states.STOPPED), ["primary adopt", "standby keep"], id="both are stopped"),
]


@pytest.mark.parametrize(("topology", "expected"), PLANS)
def test_plan_gives_every_host_its_role(topology: Topology, expected: list[str]) -> None:
    assert summary(topology) == (expected, [])


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        pytest.param(stranger(fresh(PAIR), "pg2"), ["primary init", "standby clone"], id="a server runs on the standby's host"),
        pytest.param(stranger(fresh(PAIR), "pg2", state=states.STOPPED), ["primary init", "standby clone"], id="stopped data on the standby's host"),
        pytest.param(
            stranger(stranger(fresh(PAIR), "pg1", system_identifier="73"), "pg2"), ["primary adopt", "standby clone"], id="a server of its own on each"
        ),
        pytest.param(stranger(cluster(PAIR), "pg2"), ["primary adopt", "standby clone"], id="beside a primary that is set up"),
        pytest.param(
            stranger(fresh(PAIR), "pg2", system_identifier="", state=states.CRASHED, role=PRIMARY),
            ["primary init", "standby clone"],
            id="data of which nothing is known",
        ),
    ],
)
def test_plan_refuses_foreign_data_until_it_may_be_moved_aside(topology: Topology, expected: list[str]) -> None:
    roles, found = summary(topology)
    assert (roles, found) == (expected, [("foreign_data", "pg2")])
    assert summary(topology, replace_data=True) == (expected, [])


def test_plan_wants_room_for_a_copy_beside_the_data_that_is_moved_aside() -> None:
    topology = stranger(cluster(PAIR), "pg2", disk_free_bytes=1_199_999_999)
    assert summary(topology, replace_data=True)[1] == [("disk_too_small", "pg2")]


def test_plan_never_replaces_the_primarys_data() -> None:
    topology = stranger(fresh(PAIR), "pg1")
    assert summary(topology, replace_data=True)[0] == ["primary adopt", "standby clone"]


OVERTAKEN = change(
    down(down(cluster(TRIO, primary="pg2", timeline=2), "pg1"), "pg2", states.ABSENT),
    "pg1",
    standby_signal=False,
    role=PRIMARY,
    timeline=1,
    timeline_history="",
)

PROMOTED_IS_DOWN = down(down(cluster(PAIR, primary="pg2", timeline=2), "pg1", states.ABSENT), "pg2", states.STOPPED)

NO_PRIMARY = [
    pytest.param(PROMOTED_IS_DOWN, id="the first primary's data is gone, the promoted server is down"),
    pytest.param(change(PROMOTED_IS_DOWN, "pg2", state=states.UNRESPONSIVE), id="the promoted server hangs"),
    pytest.param(change(PROMOTED_IS_DOWN, "pg2", state=states.RUNNING, roles=(), problem="too many clients"), id="the promoted server cannot be asked"),
    pytest.param(stranger(fresh(PAIR), "pg2", state=states.STOPPED, fenced=True), id="the first primary's data is gone, another was fenced"),
    pytest.param(stranger(fresh(PAIR), "pg2", state=states.CRASHED, rewind_unfinished=True), id="another is half rewound"),
    pytest.param(stranger(fresh(PAIR), "pg2", state=states.STOPPED, pending=Pending("switchover", "pg2", "pg1")), id="another handed over"),
    pytest.param(change(fresh(PAIR), "pg1", pending=Pending("switchover", "pg1", "pg2")), id="the first primary's data is gone, its note is not"),
    pytest.param(change(cluster(), "pg2", role=PRIMARY, standby_signal=False), id="two primaries of one cluster"),
    pytest.param(down(cluster(), "pg1", states.ABSENT), id="the primary's data is gone, standbys have it"),
    pytest.param(down(cluster(primary="pg2", timeline=2), "pg2"), id="the first primary is a standby now"),
    pytest.param(change(down(cluster(), "pg1"), "pg1", fenced=True), id="the first primary was fenced"),
    pytest.param(change(down(cluster(), "pg1"), "pg1", rewind_unfinished=True), id="the first primary is half rewound"),
    pytest.param(OVERTAKEN, id="the first primary was overtaken while it was away"),
    pytest.param(
        change(down(cluster(), "pg1"), "pg2", timeline=2, timeline_history=HISTORIES[2]), id="a running standby is on a newer timeline"
    ),
    pytest.param(
        stranger(stranger(fresh(TRIO), "pg2"), "pg3", system_identifier="73"), id="servers on two hosts, none on the primary's"
    ),
    pytest.param(Topology("main", (Node(member("pg2")),)), id="no host is named primary"),
]


@pytest.mark.parametrize("topology", NO_PRIMARY)
@pytest.mark.parametrize("replace_data", [False, True])
def test_plan_refuses_to_guess_who_is_primary(topology: Topology, replace_data: bool) -> None:
    for node in topology.nodes:
        plan = plan_setup(topology, node.host, replace_data)
        assert (plan.role, plan.action, reasons(plan.blockers)) == ("", "", [("no_clear_primary", "main")])


BLOCKED = [
    pytest.param(down(cluster(PAIR), "pg2", states.UNREACHABLE), [("unreachable", "pg2")], id="standby out of sight"),
    pytest.param(down(fresh(PAIR), "pg1", states.UNREACHABLE), [("unreachable", "pg1")], id="primary out of sight"),
    pytest.param(change(fresh(PAIR), "pg2", port_taken_by="nginx"), [("port_taken", "pg2")], id="port taken on the standby"),
    pytest.param(change(fresh(PAIR), "pg1", port_taken_by="nginx"), [("port_taken", "pg1")], id="port taken on the primary"),
    pytest.param(change(fresh(PAIR), "pg2", installed_major=16), [("version_mismatch", "pg2")], id="another version is installed"),
    pytest.param(change(fresh(PAIR), "pg2", installed_major=0), [], id="no version is installed yet"),
    pytest.param(change(stranger(fresh(PAIR), "pg1"), "pg1", major=14), [("version_mismatch", "pg2")], id="the server that is taken over is older"),
    pytest.param(change(fresh(PAIR), "pg2", disk_free_bytes=80_000_000), [("disk_too_small", "pg2")], id="disk too small for a primary yet to be made"),
    pytest.param(change(stranger(fresh(PAIR), "pg1"), "pg2", disk_free_bytes=47_999_999), [("disk_too_small", "pg2")], id="disk too small"),
    pytest.param(change(stranger(fresh(PAIR), "pg1"), "pg2", disk_free_bytes=48_000_000), [], id="disk just large enough"),
    pytest.param(change(stranger(fresh(PAIR), "pg1"), "pg2", disk_free_bytes=0), [("disk_too_small", "pg2")], id="disk full"),
    pytest.param(change(cluster(PAIR), "pg2", disk_free_bytes=0), [], id="a standby that is there needs no copy"),
    pytest.param(change(cluster(PAIR), "pg1", problem="too many clients"), [("unasked_primary", "pg1")], id="the primary runs and cannot be asked"),
    pytest.param(change(cluster(PAIR), "pg2", problem="too many clients"), [], id="a standby runs and cannot be asked"),
    pytest.param(
        change(cluster(PAIR), "pg1", state=states.STARTING, problem="the database system is starting up"), [], id="the primary is starting"
    ),
    pytest.param(change(cluster(PAIR), "pg2", upstream=Upstream(), fenced=True), [], id="it runs, whatever its files say"),
    pytest.param(change(down(cluster(PAIR), "pg2"), "pg2", fenced=True), [("not_running", "pg2")], id="down and fenced"),
    pytest.param(change(down(cluster(PAIR), "pg2"), "pg2", rewind_unfinished=True), [("not_running", "pg2")], id="down, half rewound"),
    pytest.param(change(down(cluster(PAIR), "pg2"), "pg2", upstream=Upstream()), [("not_running", "pg2")], id="down, follows nobody"),
    pytest.param(
        change(down(cluster(PAIR, primary="pg2", timeline=2), "pg1"), "pg1", standby_signal=False, role=PRIMARY),
        [("not_running", "pg1")],
        id="an old primary that would come up read-write",
    ),
    pytest.param(
        stranger(cluster(PAIR), "pg2", system_identifier="7300000000000000001", state=states.STOPPED),
        [("not_running", "pg2")],
        id="a copy of the primary that is no standby",
    ),
]


@pytest.mark.parametrize(("topology", "expected"), BLOCKED)
def test_plan_refuses_before_anything_is_changed(topology: Topology, expected: list[tuple[str, str]]) -> None:
    assert summary(topology)[1] == expected


@pytest.mark.parametrize(
    ("problem", "installs", "expected"),
    [
        (states.NO_PSYCOPG2, True, []),
        (states.NO_PSYCOPG2, False, ["unasked_primary"]),
        ("too many clients", True, ["unasked_primary"]),
        ("too many clients", False, ["unasked_primary"]),
    ],
)
def test_plan_lets_a_primary_pass_unasked_only_for_what_is_installed_next(problem: str, installs: bool, expected: list[str]) -> None:
    topology = change(stranger(fresh(PAIR), "pg1"), "pg1", problem=problem)
    for host in PAIR:
        plan = plan_setup(topology, host, installs=installs)
        assert (plan.primary, [blocker.reason for blocker in plan.blockers]) == ("pg1", expected)


def test_plan_names_two_primaries_of_one_cluster_though_the_first_is_down() -> None:
    # The roles have other names: somebody else set this pair up.
    topology = change(down(cluster(PAIR), "pg1"), "pg2", role=PRIMARY, standby_signal=False, roles=())
    assert [plan_setup(topology, host).primary for host in PAIR] == ["pg2", "pg2"]
    assert summary(topology)[1] == [("not_running", "pg1")]


@pytest.mark.parametrize(
    ("roles", "primary"),
    [
        pytest.param(("replicator",), "pg2", id="ours: it was promoted"),
        pytest.param((), "pg1", id="not ours: foreign data on a standby's host"),
    ],
)
def test_plan_tells_a_promoted_standby_from_a_strangers_server_by_our_roles(roles: tuple[str, ...], primary: str) -> None:
    topology = stranger(fresh(PAIR), "pg2", roles=roles)
    assert plan_setup(topology, "pg1").primary == primary


@pytest.mark.parametrize(("role", "standby"), [(STANDBY, True), (PRIMARY, False)])
def test_plan_of_a_cluster_that_another_member_belongs_to_is_refused(role: str, standby: bool) -> None:
    topology = change(cluster(), "pg3", system_identifier=OTHER_SYSTEM, role=STANDBY, standby_signal=standby, roles=())
    assert summary(topology)[1] == [("foreign_data", "pg3")]


def test_plan_of_an_unknown_host_is_the_primarys() -> None:
    assert plan_setup(cluster(), "pg9").role == PRIMARY


def test_actions_are_what_the_roles_compare_with() -> None:
    found: Optional[tuple[str, ...]] = (INIT, ADOPT, CLONE, KEEP)
    assert found == ("init", "adopt", "clone", "keep")
