# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the place that every node has once a plan was carried out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.placement import (
    Placement,
    after_change,
    after_rejoin,
    placement,
    returning,
    slots_at_primary,
    slots_for_hand_over,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import FOLLOW, NOTHING, RECLONE, REFUSE, REWIND, START
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import SynchronousRule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import TRIO, change, cluster, down, the

CASCADE = {"pg3": {"upstream": "pg2"}}


def place(topology: Topology, host: str) -> tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    found = placement(topology, host)
    assert isinstance(found, Placement)
    assert found.host == host
    return (found.upstream.host if found.upstream else "", found.slots_present, found.slots_absent, found.downstreams)


@pytest.mark.parametrize(
    ("source", "target", "returns", "states_after"),
    [
        pytest.param("pg1", "pg2", True, ["standby running", "primary running", "standby running"], id="planned"),
        pytest.param("pg1", "pg2", False, ["standby stopped", "primary running", "standby running"], id="unplanned"),
        pytest.param("", "pg1", False, ["primary running", "standby running", "standby running"], id="nothing moves"),
    ],
)
def test_after_change_moves_the_role(source: str, target: str, returns: bool, states_after: list[str]) -> None:
    after = after_change(cluster(), source, target, source_returns=returns)
    assert [node.role + " " + node.state for node in after.nodes] == states_after
    assert [node.host for node in after.nodes] == list(TRIO)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param("pg1", ("pg2", (), TRIO, ()), id="old primary"),
        pytest.param("pg2", ("", ("pg1", "pg3"), ("pg2",), ("pg1", "pg3")), id="new primary"),
        pytest.param("pg3", ("pg2", (), TRIO, ()), id="sibling"),
    ],
)
def test_placement_after_a_switchover(host: str, expected: tuple[object, ...]) -> None:
    assert place(after_change(cluster(), "pg1", "pg2", source_returns=True), host) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param("pg2", ("", ("pg1", "pg3"), ("pg2",), ("pg3",)), id="new primary keeps the dead one's slot, does not wait for it"),
        pytest.param("pg3", ("pg2", (), TRIO, ()), id="sibling"),
    ],
)
def test_placement_after_a_failover(host: str, expected: tuple[object, ...]) -> None:
    assert place(after_change(down(cluster(), "pg1"), "pg1", "pg2", source_returns=False), host) == expected


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        pytest.param("pg2", "pg3", ("pg2", (), TRIO, ()), id="its upstream becomes primary"),
        pytest.param("pg3", "pg3", ("", ("pg1", "pg2"), ("pg3",), ("pg1", "pg2")), id="the cascaded one becomes primary"),
        pytest.param("pg3", "pg2", ("pg3", (), TRIO, ()), id="its upstream then follows it"),
    ],
)
def test_placement_of_a_cascade_after_a_switchover(target: str, host: str, expected: tuple[object, ...]) -> None:
    topology = cluster(upstreams={"pg3": "pg2"}, members=CASCADE)
    assert place(after_change(topology, "pg1", target, source_returns=True), host) == expected


@pytest.mark.parametrize(
    ("action", "comes"),
    [pytest.param(action, action in (START, REWIND, RECLONE), id=action) for action in (NOTHING, FOLLOW, START, REWIND, RECLONE, REFUSE)],
)
def test_returning_are_those_that_are_brought_back(action: str, comes: bool) -> None:
    assert returning({"pg1": NOTHING, "pg2": action}) == (("pg2",) if comes else ())


# The child of a standby that is away streams from the primary meanwhile.
ORPHANED = change(down(cluster(members=CASCADE), "pg2", states.STOPPED), "pg1", senders=())
WAYS = {"pg1": NOTHING, "pg2": START, "pg3": NOTHING}


@pytest.mark.parametrize(
    ("topology", "ways", "present", "upstream", "slots", "downstreams", "confirming"),
    [
        pytest.param(ORPHANED, WAYS, TRIO, "pg2", ("pg2",), ("pg2",), ("pg2",), id="it came back"),
        pytest.param(ORPHANED, WAYS, ("pg1", "pg3"), "pg1", ("pg2", "pg3"), ("pg3",), ("pg2", "pg3"), id="it failed on the way"),
        pytest.param(
            change(ORPHANED, "pg2", fenced=True), {**WAYS, "pg2": REWIND}, ("pg1", "pg3"), "pg1", ("pg2", "pg3"), ("pg3",), ("pg3",),
            id="an old primary failed on the way",
        ),
        pytest.param(
            change(cluster(members=CASCADE), "pg2", timeline=1), {**WAYS, "pg2": REWIND}, ("pg1", "pg3"), "pg1", ("pg2", "pg3"), ("pg3",), ("pg2", "pg3"),
            id="one that ran failed on the way",
        ),
        pytest.param(cluster(members=CASCADE), {**WAYS, "pg2": REFUSE}, ("pg1", "pg3"), "pg1", ("pg2", "pg3"), ("pg3",), ("pg2", "pg3"), id="it was refused"),
        pytest.param(cluster(members=CASCADE), {**WAYS, "pg2": FOLLOW}, TRIO, "pg2", ("pg2",), ("pg2",), ("pg2",), id="it only follows somebody else"),
        pytest.param(
            down(ORPHANED, "pg2", states.UNREACHABLE), {**WAYS, "pg2": REFUSE}, ("pg1", "pg3"), "pg1", ("pg2", "pg3"), ("pg3",), ("pg2", "pg3"),
            id="it is out of sight",
        ),
    ],
)  # fmt: skip
def test_after_rejoin_the_child_of_one_that_did_not_come_back_is_the_primarys(
    topology: Topology, ways: dict[str, str], present: tuple[str, ...], upstream: str, slots: tuple[str, ...], downstreams: tuple[str, ...],
    confirming: tuple[str, ...],
) -> None:  # fmt: skip
    after = after_rejoin(replace(topology, rule=SynchronousRule("any", 1, TRIO)), ways, present)
    primary, child = placement(after, "pg1"), placement(after, "pg3")
    assert primary is not None and child is not None
    assert child.upstream is not None and child.upstream.host == upstream
    assert (primary.slots_present, primary.downstreams, primary.confirming) == (slots, downstreams, confirming)


def test_placement_of_a_cascade_at_rest() -> None:
    topology = cluster(upstreams={"pg3": "pg2"}, members=CASCADE)
    assert place(topology, "pg1") == ("", ("pg2",), ("pg1", "pg3"), ("pg2",))
    assert place(topology, "pg2") == ("pg1", ("pg3",), ("pg1", "pg2"), ("pg3",))


@pytest.mark.parametrize("state", [states.STOPPED, states.CRASHED, states.ABSENT, states.UNREACHABLE])
def test_placement_of_a_cascade_whose_middle_is_away_is_below_the_primary(state: str) -> None:
    topology = down(cluster(upstreams={"pg3": "pg2"}, members=CASCADE), "pg2", state)
    assert place(topology, "pg3")[0] == "pg1"
    assert place(topology, "pg1")[1] == ("pg2", "pg3")


def test_placement_uses_legal_slot_names_for_odd_hosts() -> None:
    topology = cluster(("pg1", "db-2.example.com", "Ärger 3"))
    upstream, present, absent, downstreams = place(topology, "pg1")
    assert present == tuple(the(topology, host).member.slot_name for host in ("db-2.example.com", "Ärger 3"))
    assert all(name.replace("_", "").isalnum() and name.isascii() for name in present)
    assert (upstream, absent, downstreams) == ("", ("pg1",), ("db-2.example.com", "Ärger 3"))


@pytest.mark.parametrize(
    ("topology", "host"),
    [
        pytest.param(down(cluster(), "pg1"), "pg2", id="no primary"),
        pytest.param(cluster(), "pg9", id="unknown host"),
    ],
)
def test_placement_without_one_primary_or_of_a_stranger_is_none(topology: Topology, host: str) -> None:
    assert placement(topology, host) is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param("pg1", ("pg2", "pg3"), id="primary: every direct standby that may be promoted, up or down"),
        pytest.param("pg2", (), id="standby with a cascaded one"),
        pytest.param("pg4", (), id="cascaded standby"),
    ],
)
def test_placement_synchronized_are_the_primarys_promotable_standbys(host: str, expected: tuple[str, ...]) -> None:
    members = {"pg5": {"priority": 0}}
    topology = down(cluster(("pg1", "pg2", "pg3", "pg4", "pg5"), upstreams={"pg4": "pg2"}, members=members), "pg3")
    found = placement(topology, host)
    assert found is not None and found.synchronized == expected


@pytest.mark.parametrize(
    ("arriving", "expected"),
    [
        pytest.param((), ("pg2",), id="the cascaded standby streams from its upstream"),
        pytest.param(("pg3",), ("pg2", "pg3"), id="the cascaded standby is copied from the primary"),
    ],
)
def test_slots_at_primary_of_a_cascade(arriving: tuple[str, ...], expected: tuple[str, ...]) -> None:
    topology = cluster(upstreams={"pg3": "pg2"})
    assert slots_at_primary(topology, the(topology, "pg1"), arriving) == expected


def test_slots_at_primary_of_a_cascade_whose_upstream_is_down() -> None:
    topology = down(cluster(upstreams={"pg3": "pg2"}), "pg2")
    assert slots_at_primary(topology, the(topology, "pg1"), ()) == ("pg2", "pg3")


@pytest.mark.parametrize(
    ("members", "source", "target", "expected"),
    [
        pytest.param({}, "pg1", "pg2", ("pg1", "pg3"), id="all follow the target"),
        pytest.param({"pg1": {"upstream": "pg2"}}, "pg1", "pg3", ("pg2", "pg1"), id="the source goes below another later"),
        pytest.param({"pg1": {"upstream": "pg2"}}, "pg1", "pg2", ("pg1", "pg3"), id="the target is the source's upstream"),
        pytest.param({"pg3": {"upstream": "pg2"}}, "pg1", "pg2", ("pg1", "pg3"), id="a cascaded one follows the target"),
        pytest.param({"pg3": {"upstream": "pg1"}}, "pg1", "pg2", ("pg1",), id="a cascaded one follows the source"),
        pytest.param({"pg1": {"upstream": "pg2", "slot": "own"}}, "pg1", "pg3", ("pg2", "own"), id="the source's slot has a name of its own"),
        pytest.param({}, "", "pg1", ("pg2", "pg3"), id="nobody hands over"),
        pytest.param({}, "pg1", "pg9", ("pg1",), id="a target that is no host"),
    ],
)
def test_slots_for_hand_over_are_those_of_the_place_and_the_sources(
    members: dict[str, dict[str, str]], source: str, target: str, expected: tuple[str, ...]
) -> None:
    after = after_change(cluster(members=members), source, target, source_returns=True)
    assert slots_for_hand_over(after, source, target) == expected


@pytest.mark.parametrize("changes", [{"replay_paused": True}, {"replay_delay_ms": 1}])
def test_placement_nobody_waits_for_a_standby_that_does_not_replay(changes: dict[str, object]) -> None:
    topology = change(cluster(), "pg3", **changes)
    primary, standby = placement(topology, "pg1"), placement(topology, "pg3")
    assert primary is not None and standby is not None
    assert "pg3" not in primary.downstreams and "pg3" in primary.slots_present
    assert standby.upstream is not None and not standby.waits and primary.waits
