# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of who is primary, who follows whom, and what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver, Slot, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import (
    Topology,
    leave_time,
    problems,
    same_cluster_blockers,
    shared_past,
    stale_primary_blockers,
    stale_slots,
    standby_problem,
    wanted_slots,
)
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    HISTORIES,
    OTHER_HISTORY_OF_2,
    OTHER_SYSTEM,
    PAIR,
    TRIO,
    change,
    cluster,
    down,
    hears,
    reasons,
    slot_of,
    the,
)

CASCADE = {"pg3": "pg2"}


@pytest.mark.parametrize(
    ("topology", "primary", "standbys"),
    [
        pytest.param(cluster(), "pg1", ["pg2", "pg3"], id="healthy"),
        pytest.param(cluster(primary="pg2", timeline=2), "pg2", ["pg1", "pg3"], id="observed, not the inventory's"),
        pytest.param(down(cluster(), "pg1"), None, ["pg2", "pg3"], id="none"),
        pytest.param(change(cluster(), "pg3", role=PRIMARY), None, ["pg2"], id="two"),
        pytest.param(change(cluster(), "pg1", state=states.STARTING), None, ["pg2", "pg3"], id="one that only starts"),
    ],
)
def test_primary_is_the_only_node_that_accepts_writes(topology: Topology, primary: str, standbys: list[str]) -> None:
    assert (topology.primary.host if topology.primary else None) == primary
    assert [node.host for node in topology.standbys] == standbys


def test_node_of_unknown_name_is_none() -> None:
    assert cluster().node("pg9") is None
    assert [node.host for node in cluster().others("pg2")] == ["pg1", "pg3"]


@pytest.mark.parametrize(
    ("changes", "upstream"),
    [
        pytest.param({}, "pg1", id="by its receiver"),
        pytest.param({"receiver": Receiver()}, "pg1", id="by its configuration"),
        pytest.param({"receiver": Receiver(sender_host="192.0.2.3", sender_port=5432)}, "pg3", id="the receiver wins"),
        pytest.param({"receiver": Receiver(sender_host="203.0.113.1", sender_port=5432)}, "pg1", id="the receiver's is no member"),
        pytest.param({"receiver": Receiver(), "upstream": Upstream("pg3", 5432)}, "pg3", id="configured by name"),
        pytest.param({"receiver": Receiver(), "upstream": Upstream("192.0.2.1", 5433)}, None, id="another port"),
        pytest.param({"receiver": Receiver(), "upstream": Upstream()}, None, id="nowhere"),
    ],
)
def test_upstream_of_finds_the_member(changes: dict[str, Any], upstream: str) -> None:
    topology = change(cluster(), "pg2", **changes)
    found = topology.upstream_of(the(topology, "pg2"))
    assert (found.host if found else None) == upstream


def test_by_endpoint_of_an_empty_address_is_nobody() -> None:
    topology = change(cluster(), "pg1", member={"address": ""})
    assert topology.by_endpoint("", 5432) is None


@pytest.mark.parametrize(
    ("upstreams", "primary", "gone", "expected"),
    [
        pytest.param({}, "pg1", "", "pg1", id="no pg_upstream"),
        pytest.param(CASCADE, "pg1", "", "pg2", id="cascade"),
        pytest.param(CASCADE, "pg2", "", "pg2", id="its upstream is the primary"),
        pytest.param({"pg3": "pg1"}, "pg1", "", "pg1", id="pg_upstream names the primary"),
        pytest.param({"pg3": "pg3"}, "pg1", "", "pg1", id="names itself"),
        pytest.param({"pg3": "pg9"}, "pg1", "", "pg1", id="names nobody"),
        pytest.param(CASCADE, "pg1", "pg2", "pg1", id="its upstream is down"),
        pytest.param({"pg3": "pg2", "pg2": "pg3"}, "pg1", "", "pg1", id="a circle of two"),
    ],
)
def test_desired_upstream_is_pg_upstream_while_that_can_be(upstreams: dict[str, str], primary: str, gone: str, expected: str) -> None:
    topology = cluster(primary=primary, members={host: {"upstream": above} for host, above in upstreams.items()})
    if gone:
        topology = down(topology, gone)
    assert topology.desired_upstream(the(topology, "pg3"), the(topology, primary)).host == expected


@pytest.mark.parametrize("received", ["0/9000000", ""])
def test_desired_upstream_is_no_delayed_standby_whatever_it_has_received(received: str) -> None:
    """What it says before its start and behind it must not differ: the standby below it has one place."""
    topology = change(cluster(upstreams={"pg3": "pg2"}), "pg2", replay_delay_ms=3600000, receive_lsn=received)
    assert topology.desired_upstream(the(topology, "pg3"), the(topology, "pg1")).host == "pg1"


def test_desired_upstream_in_a_circle_of_three_is_the_primary() -> None:
    circle = {"pg2": {"upstream": "pg3"}, "pg3": {"upstream": "pg4"}, "pg4": {"upstream": "pg2"}}
    topology = cluster((*TRIO, "pg4"), members=circle)
    primary = the(topology, "pg1")
    assert {topology.desired_upstream(node, primary).host for node in topology.standbys} == {"pg1"}


@pytest.mark.parametrize(
    ("node", "primary", "past"),
    [
        pytest.param((1, ""), (1, ""), (1, None), id="one timeline"),
        pytest.param((1, ""), (2, HISTORIES[2]), (1, 0x5000000), id="the primary was promoted"),
        pytest.param((2, HISTORIES[2]), (2, OTHER_HISTORY_OF_2), (1, 0x4000000), id="two promotions with one number"),
        pytest.param((2, ""), (2, HISTORIES[2]), None, id="the node's history is missing"),
        pytest.param((1, ""), (2, ""), None, id="the primary's history is missing"),
        pytest.param((2, "nonsense"), (2, HISTORIES[2]), None, id="history cannot be read"),
        pytest.param((0, ""), (1, ""), None, id="timeline unknown"),
    ],
)
def test_shared_past_is_the_newest_common_point(node: tuple[int, str], primary: tuple[int, str], past: Any) -> None:
    topology = change(cluster(PAIR), "pg1", timeline=primary[0], timeline_history=primary[1])
    topology = change(topology, "pg2", timeline=node[0], timeline_history=node[1])
    assert shared_past(the(topology, "pg2"), the(topology, "pg1")) == past


NOT_STREAMING = {"receiver": Receiver()}
STANDBY_PROBLEMS = [
    pytest.param({}, None, id="follows as it should"),
    pytest.param({"system_identifier": OTHER_SYSTEM}, "foreign_system", id="another cluster"),
    pytest.param({"timeline_history": OTHER_HISTORY_OF_2}, "forked", id="another timeline of the same number"),
    pytest.param({"timeline_history": ""}, None, id="history not seen, the rest is right"),
    pytest.param({"receiver": Receiver("streaming", "192.0.2.3", 5432, "", 2)}, "wrong_upstream", id="follows a sibling"),
    pytest.param({"receiver": Receiver("streaming", "192.0.2.1", 5432, "", 2)}, "wrong_slot", id="without a slot"),
    pytest.param({"receiver": Receiver("streaming", "192.0.2.1", 5432, "pg3_old", 2)}, "wrong_slot", id="through another slot"),
    pytest.param({"receiver": Receiver(), "upstream": Upstream()}, "wrong_upstream", id="follows nobody"),
    pytest.param(NOT_STREAMING, "not_streaming", id="no receiver"),
    pytest.param({"receiver": Receiver("catchup", "192.0.2.1", 5432, "", 2)}, "not_streaming", id="catching up"),
    pytest.param({"timeline": 1, "timeline_history": ""}, "timeline", id="replays an older timeline"),
    pytest.param({"replay_lsn": "0/1000000"}, None, id="lag is no problem of the tie"),
]


@pytest.mark.parametrize(("changes", "reason"), STANDBY_PROBLEMS)
def test_standby_problem_names_the_first_thing_that_is_wrong(changes: dict[str, Any], reason: str) -> None:
    topology = change(cluster(timeline=2), "pg2", **changes)
    found = standby_problem(topology, the(topology, "pg2"), the(topology, "pg1"))
    assert (found.reason if found else None) == reason
    if reason:
        assert (reason, "pg2") in reasons(problems(topology))


def test_standby_problem_of_a_cascaded_node_that_follows_the_primary_is_wrong_upstream() -> None:
    topology = cluster(members={"pg3": {"upstream": "pg2"}})
    found = standby_problem(topology, the(topology, "pg3"), the(topology, "pg1"))
    assert found is not None
    assert (found.reason, found.observed, found.required) == ("wrong_upstream", "pg1", "pg2")


@pytest.mark.parametrize("hosts", [("pg1",), PAIR, TRIO, (*TRIO, "pg4", "pg5")], ids=len)
@pytest.mark.parametrize("timeline", [1, 2, 3])
def test_problems_of_a_healthy_cluster_are_none(hosts: tuple[str, ...], timeline: int) -> None:
    assert problems(cluster(hosts, timeline=timeline)) == ()


@pytest.mark.parametrize("primary", TRIO)
def test_problems_of_a_healthy_cascade_are_none(primary: str) -> None:
    upstreams = {} if primary == "pg2" else {"pg3": "pg2"} if primary == "pg1" else {}
    members = {} if primary == "pg1" else {"pg3": {"upstream": "pg2"}}
    assert problems(cluster(primary=primary, upstreams=upstreams, members=members)) == ()


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        pytest.param(
            change(cluster(), "pg3", role=PRIMARY, standby_signal=False),
            [("two_primaries", "pg1"), ("two_primaries", "pg3")],
            id="two primaries",
        ),
        pytest.param(change(cluster(PAIR), "pg2", problem="too many clients"), [("cannot_be_asked", "pg2")], id="answers with an error"),
        pytest.param(down(cluster(PAIR), "pg1"), [("no_primary", "main"), ("not_running", "pg1")], id="primary crashed"),
        pytest.param(
            hears(down(cluster(PAIR), "pg1", states.UNREACHABLE), "pg2"),
            [("primary_out_of_sight", "pg1"), ("unreachable", "pg1")],
            id="primary out of sight, a standby hears from it",
        ),
        pytest.param(
            hears(down(cluster(PAIR), "pg1", states.UNREACHABLE), "pg2", silent_seconds=0.2),
            [("no_primary", "main"), ("unreachable", "pg1")],
            id="primary unreachable and silent",
        ),
        pytest.param(hears(cluster(PAIR), "pg2"), [], id="hears from the primary that was seen"),
        pytest.param(
            hears(down(cluster(PAIR), "pg1"), "pg2", sender="192.0.2.99"),
            [("no_primary", "main"), ("not_running", "pg1")],
            id="primary crashed, a standby hears from somebody else's server",
        ),
        pytest.param(down(cluster(PAIR), "pg2", states.STOPPED), [("not_running", "pg2")], id="standby stopped"),
        pytest.param(down(cluster(PAIR), "pg2", states.STARTING), [("not_running", "pg2")], id="standby starting"),
        pytest.param(down(cluster(PAIR), "pg2", states.UNRESPONSIVE), [("not_running", "pg2")], id="standby unresponsive"),
        pytest.param(down(cluster(PAIR), "pg2", states.UNREACHABLE), [("unreachable", "pg2")], id="standby unreachable"),
        pytest.param(down(cluster(PAIR), "pg2", states.ABSENT), [("no_data", "pg2")], id="standby without data"),
        pytest.param(change(cluster(PAIR), "pg2", replay_paused=True), [("replay_paused", "pg2")], id="replay paused"),
        pytest.param(change(cluster(PAIR), "pg1", slots=()), [("slot_missing", "pg1")], id="slot missing"),
        pytest.param(
            change(cluster(PAIR), "pg1", slots=(Slot("pg2", wal_status="lost"),)), [("slot_lost", "pg1")], id="slot lost"
        ),
        pytest.param(change(cluster(PAIR), "pg1", slots=(Slot("pg2", wal_status="unreserved"),)), [], id="slot unreserved"),
        pytest.param(
            change(cluster(PAIR), "pg2", slots=(Slot("pg1"), Slot("somebody_elses"))), [("slot_stale", "pg2")], id="stale slot on a standby"
        ),
        pytest.param(
            change(cluster(upstreams=CASCADE), "pg1", slots=(Slot("pg2"), Slot("pg3"))),
            [("slot_stale", "pg1")],
            id="the primary keeps a slot for a node that was moved below another",
        ),
        pytest.param(
            change(cluster(upstreams=CASCADE), "pg2", slots=()), [("slot_missing", "pg2")], id="a cascaded node's slot is missing"
        ),
        pytest.param(
            change(cluster(PAIR), "pg1", slots=(Slot("pg2"), Slot("pg1", type="logical"))), [], id="a logical slot is somebody else's"
        ),
        pytest.param(
            change(down(cluster(), "pg3", states.STOPPED), "pg3", timeline=2, timeline_history=HISTORIES[2]),
            [("not_running", "pg3"), ("stale_primary", "pg1")],
            id="the primary is older than another node",
        ),
        pytest.param(change(cluster(PAIR), "pg1", standby_signal=True), [("armed_primary", "pg1")], id="the primary would start as a standby"),
        pytest.param(
            change(change(cluster(PAIR), "pg1", standby_signal=True), "pg2", role=PRIMARY),
            [("two_primaries", "pg1"), ("two_primaries", "pg2")],
            id="two primaries, one of them armed",
        ),
    ],
)
def test_problems_name_reason_and_host(topology: Topology, expected: list[tuple[str, str]]) -> None:
    assert reasons(problems(topology)) == expected


@pytest.mark.parametrize(
    ("problem", "observed"), [("", "crashed"), ("the server does not answer within 3 s", "the server does not answer within 3 s")]
)
def test_problems_of_a_node_that_is_down_say_what_was_seen(problem: str, observed: str) -> None:
    (found,) = problems(down(cluster(PAIR), "pg2", problem=problem))
    assert (found.observed, found.required) == (observed, "running")


def test_problems_of_hosts_that_are_not_expected_are_left_out() -> None:
    topology = down(cluster(), "pg3", states.UNREACHABLE)
    assert reasons(problems(topology)) == [("unreachable", "pg3")]
    assert problems(topology, ["pg1", "pg2"]) == ()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        pytest.param({"timeline": 3}, True, id="newer"),
        pytest.param({"timeline": 2}, False, id="level"),
        pytest.param({"timeline": 1}, False, id="older"),
        pytest.param({"timeline": 3, "system_identifier": OTHER_SYSTEM}, False, id="newer, of another cluster"),
    ],
)
def test_stale_primary_is_one_that_another_node_has_overtaken(changes: dict[str, Any], found: bool) -> None:
    topology = change(cluster(timeline=2), "pg3", **changes)
    assert bool(stale_primary_blockers(topology, the(topology, "pg1"))) is found


@pytest.mark.parametrize(
    ("primary", "host", "wanted", "stale"),
    [
        ("pg1", "pg1", ("pg2",), ("pg1", "pg3")),
        ("pg1", "pg2", ("pg3",), ("pg1", "pg2")),
        ("pg1", "pg3", (), TRIO),
        ("pg2", "pg2", ("pg1", "pg3"), ("pg2",)),
        ("pg2", "pg1", (), TRIO),
        ("pg3", "pg3", ("pg1", "pg2"), ("pg3",)),
    ],
)
def test_slots_of_a_cascade_are_wanted_where_the_node_streams_from(
    primary: str, host: str, wanted: tuple[str, ...], stale: tuple[str, ...]
) -> None:
    topology = cluster(primary=primary, members={"pg3": {"upstream": "pg2"}})
    everything = tuple(slot_of(node.member) for node in topology.nodes)
    topology = change(topology, host, slots=(*everything, Slot("other"), Slot("pg1", type="logical")))
    at, node = the(topology, primary), the(topology, host)
    assert wanted_slots(topology, node, at) == wanted
    assert stale_slots(topology, node, at) == stale


@pytest.mark.parametrize("state", [states.ABSENT, states.UNREACHABLE, states.STOPPED, states.CRASHED])
def test_wanted_slots_keep_the_one_of_a_node_that_is_away(state: str) -> None:
    topology = down(cluster(), "pg3", state)
    assert wanted_slots(topology, the(topology, "pg1"), the(topology, "pg1")) == ("pg2", "pg3")


@pytest.mark.parametrize(
    ("topology", "hosts"),
    [
        pytest.param(cluster(), [], id="one cluster"),
        pytest.param(change(cluster(), "pg3", system_identifier=OTHER_SYSTEM), ["pg3"], id="the primary's is right"),
        pytest.param(
            change(change(cluster(), "pg3", system_identifier=OTHER_SYSTEM), "pg2", system_identifier=OTHER_SYSTEM),
            ["pg2", "pg3"],
            id="the primary's is right against two",
        ),
        pytest.param(change(down(cluster(), "pg1"), "pg1", system_identifier=OTHER_SYSTEM), ["pg1"], id="without a primary the most"),
        pytest.param(down(cluster(), "pg3", states.UNREACHABLE), [], id="unknown is not another"),
    ],
)
def test_same_cluster_blockers_name_the_stranger(topology: Topology, hosts: list[str]) -> None:
    assert reasons(same_cluster_blockers(topology)) == [("foreign_system", host) for host in hosts]


@pytest.mark.parametrize("timelines", [(1, 2), (3, 2), (2, 2)])
def test_problems_of_two_primaries_name_heal(timelines: tuple[int, int]) -> None:
    split = change(cluster(PAIR), "pg1", timeline=timelines[0])
    split = change(split, "pg2", role=PRIMARY, standby_signal=False, timeline=timelines[1])
    found = {problem.host: problem.hint for problem in problems(split) if problem.reason == "two_primaries"}
    assert [found[host].startswith("Run heal.yml") for host in PAIR] == [True, True]


BEHIND = {"receiver": Receiver(), "timeline": 1, "timeline_history": ""}


@pytest.mark.parametrize(
    ("changes", "paused_too", "left", "noted"),
    [
        pytest.param({"replay_paused": True}, True, [], ["pg2"], id="paused, in a role change"),
        pytest.param({"replay_paused": True}, False, ["not_streaming", "replay_paused"], [], id="paused, where all must be well"),
        pytest.param({"replay_delay_ms": 300000}, True, [], ["pg2"], id="delayed, in a role change"),
        pytest.param({"replay_delay_ms": 300000}, False, [], ["pg2"], id="delayed, where all must be well"),
        pytest.param({}, True, ["not_streaming"], [], id="neither"),
        pytest.param({"replay_delay_ms": 1, "system_identifier": OTHER_SYSTEM}, True, ["foreign_system"], ["pg2"], id="delayed and foreign"),
    ],
)
def test_leave_time_excuses_only_what_time_mends(changes: dict[str, Any], paused_too: bool, left: list[str], noted: list[str]) -> None:
    topology = change(cluster(primary="pg1", timeline=2), "pg2", **{**BEHIND, **changes})
    kept, notes = leave_time(topology, problems(topology), paused_too=paused_too)
    assert [problem.reason for problem in kept if problem.host == "pg2"] == left
    assert [note.split(":")[0] for note in notes] == noted
