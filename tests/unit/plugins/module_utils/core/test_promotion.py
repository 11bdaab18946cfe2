# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of which standby may be promoted, which one should be, and who was primary."""

from __future__ import annotations

from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import (
    bytes_behind,
    candidates,
    dead_primary,
    promotion_blockers,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    HISTORIES,
    NOW,
    OTHER_SYSTEM,
    PAIR,
    change,
    cluster,
    down,
    pending,
    reasons,
    the,
)

EVERY_DOWN_STATE = [states.STARTING, states.UNRESPONSIVE, states.STOPPED, states.CRASHED, states.ABSENT, states.UNREACHABLE]
DEAD = down(cluster(), "pg1")


def test_promotion_blockers_of_a_healthy_standby_are_none() -> None:
    assert promotion_blockers(DEAD, "pg2") == ()
    assert promotion_blockers(cluster(), "pg3") == ()


@pytest.mark.parametrize("state", EVERY_DOWN_STATE)
def test_promotion_blockers_of_a_standby_that_is_not_running_is_not_a_standby(state: str) -> None:
    assert reasons(promotion_blockers(down(DEAD, "pg2", state), "pg2")) == [("not_a_standby", "pg2")]


@pytest.mark.parametrize("state", [states.RUNNING, *EVERY_DOWN_STATE])
def test_promotion_blockers_of_a_primary_is_not_a_standby(state: str) -> None:
    topology = cluster() if state == states.RUNNING else down(cluster(), "pg1", state)
    assert reasons(promotion_blockers(topology, "pg1")) == [("not_a_standby", "pg1")]


@pytest.mark.parametrize(
    ("host", "changes", "expected"),
    [
        pytest.param("pg2", {"member": {"priority": 0}}, ["priority_zero"], id="priority 0"),
        pytest.param("pg2", {"member": {"priority": -1}}, ["priority_zero"], id="priority that is no number"),
        pytest.param("pg2", {"member": {"priority": 1}}, [], id="priority 1"),
        pytest.param("pg2", {"replay_paused": True}, ["replay_paused"], id="paused"),
        pytest.param("pg2", {"replay_delay_ms": 1}, ["replay_delayed"], id="delayed"),
        pytest.param("pg2", {"replay_delay_ms": 0}, [], id="not delayed"),
        pytest.param("pg3", {"system_identifier": OTHER_SYSTEM}, ["foreign_system"], id="a sibling of another cluster"),
        pytest.param("pg3", {"timeline": 2}, ["behind_on_timeline"], id="a sibling on a newer timeline"),
        pytest.param("pg2", {"timeline": 2}, [], id="itself on the newest timeline"),
        pytest.param("pg1", {"timeline": 2}, [], id="only running standbys are compared here"),
        pytest.param("pg2", {"receive_lsn": "", "replay_lsn": ""}, [], id="its position is unknown: failover weighs that"),
        pytest.param(
            "pg2",
            {"replay_paused": True, "replay_delay_ms": 5, "member": {"priority": 0}},
            ["priority_zero", "replay_paused", "replay_delayed"],
            id="every reason at once",
        ),
    ],
)
def test_promotion_blockers_name_each_reason(host: str, changes: dict[str, Any], expected: list[str]) -> None:
    found = promotion_blockers(change(DEAD, host, **changes), "pg2")
    assert reasons(found) == [(reason, "pg2") for reason in expected]


def test_promotion_blockers_of_an_unknown_host_name_the_known_ones() -> None:
    (found,) = promotion_blockers(cluster(), "pg9")
    assert (found.reason, found.required) == ("unknown_host", "one of pg1, pg2, pg3")


@pytest.mark.parametrize(
    ("pg2", "pg3", "expected"),
    [
        pytest.param({}, {}, ["pg2", "pg3"], id="level: the inventory's order"),
        pytest.param({"receive_lsn": "0/8000000", "replay_lsn": "0/8000000"}, {}, ["pg3", "pg2"], id="the most WAL"),
        pytest.param({}, {"receive_lsn": "0/A000000"}, ["pg3", "pg2"], id="received counts, replayed or not"),
        pytest.param({"receive_lsn": "0/9000000", "replay_lsn": "0/9000148"}, {}, ["pg2", "pg3"], id="replayed counts where receive fell back"),
        pytest.param({"receive_lsn": "9/0"}, {"receive_lsn": "10/0"}, ["pg3", "pg2"], id="by value, not by text"),
        pytest.param({"receive_lsn": "A/0"}, {"timeline": 2}, ["pg3", "pg2"], id="the newest timeline, whatever the WAL"),
        pytest.param({}, {"member": {"priority": 101}}, ["pg3", "pg2"], id="level: the higher priority"),
        pytest.param({"receive_lsn": "0/A000000"}, {"member": {"priority": 101}}, ["pg2", "pg3"], id="WAL beats priority"),
        pytest.param({"member": {"priority": 0}}, {}, ["pg3"], id="never promote"),
        pytest.param({"member": {"priority": -1}}, {}, ["pg3"], id="priority that is no number"),
        pytest.param({"receive_lsn": "", "replay_lsn": ""}, {}, ["pg3", "pg2"], id="unknown position last"),
    ],
)
def test_candidates_are_the_best_first(pg2: dict[str, Any], pg3: dict[str, Any], expected: list[str]) -> None:
    topology = change(change(DEAD, "pg2", **pg2), "pg3", **pg3)
    assert [node.host for node in candidates(topology)] == expected


@pytest.mark.parametrize(
    ("position", "behind"),
    [
        pytest.param("0/9000010", 16, id="behind"),
        pytest.param(NOW, 0, id="level"),
        pytest.param("0/1", 0, id="passed"),
        pytest.param("1/0", 0x100000000 - 0x9000000, id="across 4 GiB"),
        pytest.param("", None, id="unknown"),
    ],
)
def test_bytes_behind_is_never_negative(position: str, behind: Optional[int]) -> None:
    assert bytes_behind(the(cluster(), "pg2"), position) == behind


def test_bytes_behind_of_a_node_without_position_is_unknown() -> None:
    assert bytes_behind(the(change(cluster(), "pg2", receive_lsn="", replay_lsn=""), "pg2"), NOW) is None


NO_TIE = {"receiver": Receiver(), "upstream": Upstream()}


# pg2 took over from pg1 and is out of sight by now; pg3 follows it, pg4 was left behind on timeline 1, and pg1 was never fenced.
FOUR = ("pg1", "pg2", "pg3", "pg4")
LEFT_BEHIND = change(
    change(
        down(cluster(FOUR, primary="pg2", timeline=2), "pg2", states.UNREACHABLE),
        "pg1", state=states.CRASHED, role=PRIMARY, standby_signal=False, timeline=1, timeline_history="",
    ),
    "pg4", timeline=1, timeline_history="", upstream=Upstream("192.0.2.1", 5432), receiver=Receiver(),
)  # fmt: skip


CASCADE_DOWN = down(down(cluster(upstreams={"pg3": "pg2"}), "pg1"), "pg2")


@pytest.mark.parametrize("state", EVERY_DOWN_STATE)
def test_dead_primary_is_whom_the_standbys_follow(state: str) -> None:
    found = dead_primary(down(cluster(), "pg1", state))
    assert found is not None
    assert found.host == "pg1"


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        pytest.param(change(DEAD, "pg1", standby_signal=True, fenced=True), "pg1", id="fenced by a run that was cut off"),
        pytest.param(LEFT_BEHIND, "pg2", id="one that an earlier role change left behind still names the primary of then, which is down"),
        pytest.param(change(LEFT_BEHIND, "pg3", **NO_TIE), "pg2", id="nor is that one taken where nobody says whom the others follow"),
        pytest.param(down(cluster(upstreams={"pg3": "pg2"}), "pg1"), "pg1", id="cascade: the middle is no primary"),
        pytest.param(
            change(change(DEAD, "pg2", **NO_TIE), "pg3", **NO_TIE), "pg1", id="nobody is followed: the files would open read-write"
        ),
        pytest.param(
            change(change(down(cluster(), "pg1", states.UNREACHABLE), "pg2", **NO_TIE), "pg3", **NO_TIE), "pg1", id="the only one out of sight"
        ),
        pytest.param(
            down(change(down(cluster(), "pg1", states.UNREACHABLE), "pg2", **NO_TIE), "pg3", states.UNREACHABLE), None, id="two out of sight"
        ),
        pytest.param(
            change(down(DEAD, "pg2", standby_signal=False), "pg3", **NO_TIE), None, id="two data directories that would open read-write"
        ),
        pytest.param(
            down(change(DEAD, "pg1", standby_signal=True, fenced=True), "pg2", timeline=2, timeline_history=HISTORIES[2], standby_signal=False),
            "pg2",
            id="a standby still follows the one before the last",
        ),
        pytest.param(
            down(DEAD, "pg2", timeline=2, timeline_history=HISTORIES[2], standby_signal=False), "pg2", id="and that one was never fenced"
        ),
        pytest.param(
            down(DEAD, "pg2", timeline=2, timeline_history=HISTORIES[2]), "pg1", id="a standby that is down cannot have been primary"
        ),
        pytest.param(CASCADE_DOWN, "pg1", id="a cascade's parent that died with the primary"),
        pytest.param(change(CASCADE_DOWN, "pg1", state=states.STARTING), "pg1", id="the same, and the primary is coming up again"),
        pytest.param(change(CASCADE_DOWN, "pg2", state=states.STARTING), "pg1", id="the same, and the parent is"),
        pytest.param(change(CASCADE_DOWN, "pg2", fenced=True), "pg2", id="a parent that is fenced was the primary"),
        pytest.param(change(CASCADE_DOWN, "pg2", pending=pending("switchover", "pg2", "pg3")), "pg2", id="so was one that hands over"),
        pytest.param(change(CASCADE_DOWN, "pg2", standby_signal=False), "pg2", id="and one that would open read-write itself"),
        pytest.param(change(CASCADE_DOWN, "pg1", standby_signal=True), "pg2", id="nobody would open read-write"),
        pytest.param(change(CASCADE_DOWN, "pg1", rewind_unfinished=True), "pg2", id="who would is half rewound"),
        pytest.param(down(CASCADE_DOWN, "pg2", states.UNREACHABLE), "pg2", id="a parent out of sight may have taken over"),
        pytest.param(down(down(cluster(PAIR), "pg1"), "pg2"), "pg1", id="no standby runs"),
        pytest.param(change(cluster(PAIR), "pg1", role="standby", upstream=Upstream("192.0.2.2")), None, id="a circle of standbys"),
    ],
)
def test_dead_primary_is_told_or_nobody(topology: Topology, expected: Optional[str]) -> None:
    found = dead_primary(topology)
    assert (found.host if found else None) == expected
