# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of when the secrets of a cluster may be changed."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rotation import plan_rotation
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    OTHER_SYSTEM,
    PAIR,
    change,
    cluster,
    down,
    reasons,
)

AFTER_FAILOVER = change(down(cluster(primary="pg2", timeline=2), "pg1"), "pg1", standby_signal=False, role=PRIMARY, fenced=True, timeline=1, control_timeline=1)
BELOW_PG2 = Upstream(cluster().node("pg2").member.address, 5432, "replicator", "pg3", "pg3")
BELOW_A_DELAYED = change(change(cluster(), "pg2", replay_delay_ms=1000), "pg3", upstream=BELOW_PG2, receiver=Receiver())


@pytest.mark.parametrize(
    ("topology", "primary", "absent"),
    [
        pytest.param(cluster(), "pg1", (), id="all run"),
        pytest.param(cluster(("pg1",)), "pg1", (), id="a primary alone"),
        pytest.param(cluster(primary="pg3", timeline=2), "pg3", (), id="the roles have changed"),
        pytest.param(down(cluster(), "pg2"), "pg1", ("pg2",), id="a standby crashed"),
        pytest.param(down(cluster(), "pg2", states.STOPPED), "pg1", ("pg2",), id="a standby was stopped"),
        pytest.param(down(down(cluster(), "pg2"), "pg3", states.STOPPED), "pg1", ("pg2", "pg3"), id="all standbys are down"),
        pytest.param(AFTER_FAILOVER, "pg2", ("pg1",), id="behind a failover, the old primary fenced"),
        pytest.param(change(cluster(), "pg2", receiver=Receiver()), "pg1", (), id="a standby that the old password keeps out"),
        pytest.param(change(cluster(), "pg2", replay_delay_ms=1000), "pg1", (), id="a delayed standby that nobody follows"),
        pytest.param(change(cluster(), "pg2", upstream=Upstream("192.0.2.9", 5432, "replicator", "pg2", "pg2")), "pg1", (), id="one follows somebody else"),
    ],
)
def test_plan_names_the_primary_and_who_is_down(topology: Topology, primary: str, absent: tuple[str, ...]) -> None:
    plan = plan_rotation(topology)
    assert (plan.primary, plan.down, plan.blockers) == (primary, absent, ())


@pytest.mark.parametrize("held", [{"replay_delay_ms": 1000}, {"replay_paused": True}])
def test_plan_names_who_replays_later_for_its_connection_is_not_cut(held: dict[str, object]) -> None:
    plan = plan_rotation(change(cluster(), "pg3", **held))
    assert (plan.primary, plan.late) == ("pg1", ("pg3",))


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        pytest.param(down(cluster(PAIR), "pg2", states.UNREACHABLE), [("unreachable", "pg2")], id="a host does not answer"),
        pytest.param(down(cluster(PAIR), "pg2", states.ABSENT), [("no_data", "pg2")], id="a host was never set up"),
        pytest.param(down(cluster(PAIR), "pg2", states.STARTING), [("not_running", "pg2")], id="it is about to run"),
        pytest.param(down(cluster(PAIR), "pg2", states.UNRESPONSIVE), [("not_running", "pg2")], id="it does not answer"),
        pytest.param(change(cluster(PAIR), "pg2", problem="too many clients"), [("cannot_be_asked", "pg2")], id="it cannot be asked"),
        pytest.param(down(cluster(PAIR), "pg1"), [("no_primary", "main")], id="the primary is dead"),
        pytest.param(
            change(cluster(PAIR), "pg2", role=PRIMARY, standby_signal=False), [("two_primaries", "pg1"), ("two_primaries", "pg2")], id="two primaries"
        ),
        pytest.param(change(down(cluster(PAIR), "pg2"), "pg2", timeline=2), [("stale_primary", "pg1")], id="the newest primary is the one that is down"),
        pytest.param(BELOW_A_DELAYED, [("late_upstream", "pg2")], id="one still follows a delayed standby"),
        pytest.param(change(cluster(upstreams={"pg3": "pg2"}), "pg2", replay_paused=True), [("late_upstream", "pg2")], id="a cascade's parent is paused"),
        pytest.param(change(cluster(PAIR), "pg2", system_identifier=OTHER_SYSTEM), [("foreign_system", "pg2")], id="another cluster's data"),
    ],
)
def test_plan_refuses_before_anything_is_changed(topology: Topology, expected: list[tuple[str, str]]) -> None:
    plan = plan_rotation(topology)
    assert reasons(plan.blockers) == expected
    assert plan.primary == ""
