# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the plan of a switchover, and of what speaks against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, STANDBY, Pending, Receiver, Slot, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import Limits
from ansible_collections.pg_ops.replication.plugins.module_utils.core.switchover import (
    FINISH,
    HAND_OVER,
    NOTHING,
    plan_switchover,
    switchover_blockers,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    HISTORIES,
    MIB,
    OTHER_SYSTEM,
    PAIR,
    change,
    cluster,
    down,
    pending,
    reasons,
    sender_of,
    the,
)

LIMITS = Limits()


def blockers_of(topology: Topology, limits: Limits = LIMITS) -> list[tuple[str, str]]:
    return reasons(switchover_blockers(topology, the(topology, "pg1"), the(topology, "pg2"), limits))


def test_switchover_blockers_of_a_healthy_cluster_are_none() -> None:
    assert blockers_of(cluster()) == []
    assert blockers_of(cluster(PAIR)) == []


SOURCE = [
    pytest.param({"archive_ready_files": 101}, "archive_backlog", id="archive backlog"),
    pytest.param({"archive_ready_files": 100}, None, id="archive at the limit"),
    pytest.param({"archive_failing": True, "settings": {"archive_mode": "on"}}, "archive_failing", id="archive fails"),
    pytest.param({"archive_failing": True, "settings": {"archive_mode": "off"}}, None, id="archive failed before it was switched off"),
    pytest.param({"backup_in_progress": True}, "backup_running", id="base backup"),
    pytest.param({"prepared_transactions": 1}, "prepared_transactions", id="prepared transaction"),
    pytest.param({"prepared_transactions": 0}, None, id="no prepared transaction"),
    pytest.param({"longest_transaction_seconds": 300.5}, "long_transaction", id="long transaction"),
    pytest.param({"longest_transaction_seconds": 300.0}, None, id="transaction at the limit"),
    pytest.param({"data_checksums": False, "wal_log_hints": False}, "no_rewind", id="neither checksums nor hints"),
    pytest.param({"data_checksums": False, "wal_log_hints": True}, None, id="hints alone"),
    pytest.param({"senders": ()}, "not_streaming:pg2", id="no sender"),
    pytest.param({"senders": (sender_of("pg3"), sender_of("pg2", state="catchup"))}, "not_streaming:pg2", id="sender catches up"),
    pytest.param({"senders": (sender_of("other"), sender_of("pg2"))}, None, id="another sender beside it"),
    pytest.param({"server_version_num": 140020}, "version_mismatch:pg2", id="another major version"),
    pytest.param({"server_version_num": 150009}, None, id="an older minor version: updated standbys first"),
    pytest.param({"current_lsn": "0/A000001"}, "lag:pg2", id="one byte over the lag limit"),
    pytest.param({"current_lsn": "0/A000000"}, None, id="lag at the limit"),
    pytest.param({"current_lsn": ""}, None, id="position unknown: the hand-over itself waits"),
]


@pytest.mark.parametrize(("changes", "expected"), SOURCE)
def test_switchover_blockers_about_the_source(changes: dict[str, Any], expected: str) -> None:
    reason, _colon, host = (expected or "").partition(":")
    assert blockers_of(change(cluster(), "pg1", **changes)) == ([(reason, host or "pg1")] if expected else [])


TARGET = [
    pytest.param({"member": {"priority": 0}}, ["priority_zero"], id="priority 0"),
    pytest.param({"replay_paused": True}, ["replay_paused"], id="paused"),
    pytest.param({"replay_delay_ms": 1000}, ["replay_delayed"], id="delayed"),
    pytest.param({"settings": {"max_wal_senders": "1", "max_replication_slots": "10"}}, ["too_few_wal_senders"], id="senders"),
    pytest.param({"settings": {"max_wal_senders": "2", "max_replication_slots": "2"}}, [], id="just enough"),
    pytest.param({"settings": {"max_wal_senders": "10", "max_replication_slots": "1"}}, ["too_few_replication_slots"], id="slots"),
    pytest.param({"settings": {"max_wal_senders": "0", "max_replication_slots": "0"}}, ["too_few_wal_senders", "too_few_replication_slots"], id="none"),
    pytest.param({"settings": {}}, [], id="settings unknown"),
    pytest.param(
        {"settings": {"max_wal_senders": "2"}, "senders": (sender_of("pg3"),)}, [], id="a member that streams from it already counts once"
    ),
    pytest.param({"settings": {"max_wal_senders": "2"}, "senders": (sender_of("pg_receivewal"),)}, ["too_few_wal_senders"], id="a stranger's sender"),
    pytest.param({"settings": {"max_wal_senders": "2"}, "senders": (sender_of("pg_ops", state="startup"),)}, [], id="a standby's question"),
    pytest.param({"settings": {"max_replication_slots": "2"}, "slots": (Slot("pg1"), Slot("pg3"))}, [], id="members' slots are there"),
    pytest.param({"settings": {"max_replication_slots": "2"}, "slots": (Slot("x"),)}, ["too_few_replication_slots"], id="a stranger's slot"),
    pytest.param({"timeline": 0}, [], id="timeline not known"),
]


@pytest.mark.parametrize(("changes", "expected"), TARGET)
def test_switchover_blockers_about_the_target(changes: dict[str, Any], expected: list[str]) -> None:
    topology = change(down(cluster(), "pg3", states.STOPPED), "pg2", **changes)
    assert blockers_of(topology) == [(reason, "pg2") for reason in expected]


@pytest.mark.parametrize("state", [states.STARTING, states.UNRESPONSIVE, states.STOPPED, states.CRASHED, states.ABSENT, states.UNREACHABLE])
def test_switchover_blockers_of_a_target_that_is_down_is_not_a_standby(state: str) -> None:
    assert ("not_a_standby", "pg2") in blockers_of(down(cluster(), "pg2", state))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (states.UNREACHABLE, [("sibling_unreachable", "pg3")]),
        (states.STOPPED, []),
        (states.CRASHED, []),
        (states.ABSENT, []),
    ],
)
def test_switchover_blockers_about_a_sibling(state: str, expected: list[tuple[str, str]]) -> None:
    assert blockers_of(down(cluster(), "pg3", state)) == expected


def test_switchover_blockers_of_two_clusters_under_one_name_are_said_once() -> None:
    found = blockers_of(change(cluster(), "pg3", system_identifier=OTHER_SYSTEM))
    assert sorted(found) == [("foreign_system", "pg2"), ("foreign_system", "pg3")]


def test_switchover_blockers_with_wider_limits_are_none() -> None:
    topology = change(cluster(), "pg1", archive_ready_files=500, longest_transaction_seconds=900.0, current_lsn="0/F000000")
    limits = Limits(max_lag_bytes=200 * MIB, max_archive_ready_files=500, max_transaction_seconds=900)
    assert len(blockers_of(topology)) == 3
    assert blockers_of(topology, limits) == []


def test_switchover_blockers_with_a_gap_in_the_archive_that_is_accepted_are_none() -> None:
    topology = change(cluster(), "pg1", archive_failing=True, settings={"archive_mode": "on"})
    assert blockers_of(topology, Limits(accept_archive_gap=True)) == []


# -- the plan -----------------------------------------------------------------------------------------------------------------


def test_plan_of_a_healthy_cluster_hands_over_to_the_best() -> None:
    plan = plan_switchover(cluster(), "", LIMITS)
    assert (plan.action, plan.source, plan.target, plan.blockers) == (HAND_OVER, "pg1", "pg2", ())


@pytest.mark.parametrize("wanted", ["pg2", "pg3"])
def test_plan_of_a_named_target_takes_it(wanted: str) -> None:
    plan = plan_switchover(cluster(), wanted, LIMITS)
    assert (plan.action, plan.source, plan.target, plan.blockers) == (HAND_OVER, "pg1", wanted, ())


@pytest.mark.parametrize(
    ("topology", "target"),
    [
        pytest.param(change(cluster(), "pg3", member={"priority": 101}), "pg3", id="the higher priority"),
        pytest.param(change(change(cluster(), "pg3", member={"priority": 101}), "pg2", receive_lsn="0/9000100"), "pg3", id="though less WAL was seen"),
        pytest.param(change(cluster(), "pg2", replay_paused=True), "pg3", id="a paused one is passed over"),
        pytest.param(change(cluster(), "pg2", member={"priority": 0}), "pg3", id="priority 0 is passed over"),
        pytest.param(
            change(change(cluster(upstreams={"pg2": "pg3"}), "pg2", receive_lsn="0/9000100"), "pg2", member={"priority": 200}),
            "pg3",
            id="a cascaded one does not stream from the primary",
        ),
        pytest.param(down(cluster(), "pg2", states.STOPPED), "pg3", id="one that is down is passed over"),
        pytest.param(
            change(cluster(), "pg2", server_version_num=140009, member={"priority": 200}), "pg3", id="one that something speaks against is passed over"
        ),
        pytest.param(change(cluster(), "pg2", pending=pending("switchover", "pg2", "pg3")), "pg2", id="the note of another hand-over is no wish"),
        pytest.param(change(cluster(), "pg2", receive_lsn="0/1000000", replay_lsn="0/1000000"), "pg3", id="one that is far behind is passed over"),
    ],
)
def test_plan_without_a_name_takes_one_that_nothing_speaks_against(topology: Topology, target: str) -> None:
    plan = plan_switchover(topology, "", LIMITS)
    assert (plan.target, plan.blockers) == (target, ())


def test_plan_that_the_source_blocks_still_names_a_target() -> None:
    plan = plan_switchover(change(cluster(), "pg1", backup_in_progress=True), "", LIMITS)
    assert (plan.target, reasons(plan.blockers)) == ("pg2", [("backup_running", "pg1")])


@pytest.mark.parametrize(
    ("topology", "wanted", "expected"),
    [
        pytest.param(cluster(), "pg9", [("unknown_host", "pg9")], id="unknown target"),
        pytest.param(cluster(("pg1",)), "", [("no_candidate", "main")], id="nobody else"),
        pytest.param(down(cluster(PAIR), "pg2"), "", [("no_candidate", "main")], id="the other is down"),
        pytest.param(
            change(cluster(PAIR), "pg2", member={"priority": 0}), "", [("no_candidate", "main"), ("priority_zero", "pg2")], id="the other must not",
        ),
        pytest.param(down(cluster(PAIR), "pg1"), "", [("no_primary", "main"), ("not_running", "pg1")], id="the primary is dead"),
        pytest.param(down(cluster(PAIR), "pg1"), "pg2", [("no_primary", "main"), ("not_running", "pg1")], id="the same, target named"),
        pytest.param(
            change(cluster(PAIR), "pg2", role=PRIMARY, standby_signal=False),
            "pg2",
            [("two_primaries", "pg1"), ("two_primaries", "pg2")],
            id="two primaries",
        ),
        pytest.param(
            change(cluster(PAIR, primary="pg2", timeline=2), "pg1", role=PRIMARY, standby_signal=False, pending=pending("switchover", "pg1", "pg2")),
            "",
            [("two_primaries", "pg1"), ("two_primaries", "pg2")],
            id="two primaries and the note of a hand-over",
        ),
        pytest.param(
            change(cluster(upstreams={"pg3": "pg2"}), "pg2", replay_paused=True), "", [("not_streaming", "pg3")], id="only a cascaded one is left"
        ),
        pytest.param(
            change(cluster(), "pg3", timeline=2, timeline_history=HISTORIES[2]), "", [("stale_primary", "pg1")], id="an old primary came back"
        ),
        pytest.param(
            change(cluster(), "pg3", timeline=2, timeline_history=HISTORIES[2]),
            "pg1",
            [("stale_primary", "pg1")],
            id="nothing is pointed at an old primary either",
        ),
    ],
)
def test_plan_refuses(topology: Topology, wanted: str, expected: list[tuple[str, str]]) -> None:
    plan = plan_switchover(topology, wanted, LIMITS)
    assert (plan.action, reasons(plan.blockers)) == (HAND_OVER, expected)


def test_plan_to_a_cascaded_standby_says_what_keeps_it_there() -> None:
    plan = plan_switchover(cluster(upstreams={"pg3": "pg2"}), "pg3", LIMITS)
    assert reasons(plan.blockers) == [("not_streaming", "pg3")]
    assert "hand over to that one, or take its pg_upstream out, run start_new_standby.yml" in plan.blockers[0].hint


def test_plan_to_the_present_primary_of_a_healthy_cluster_is_nothing() -> None:
    assert plan_switchover(cluster(), "pg1", LIMITS) == plan_switchover(cluster(), "pg1", LIMITS)
    assert (plan_switchover(cluster(), "pg1", LIMITS).action, plan_switchover(cluster(), "pg1", LIMITS).blockers) == (NOTHING, ())


def test_plan_to_the_present_primary_finishes_what_is_wrong() -> None:
    topology = change(cluster(), "pg3", receiver=Receiver("streaming", "192.0.2.2", 5432, "", 1))
    assert plan_switchover(topology, "pg1", LIMITS).action == FINISH


def test_plan_of_an_update_names_who_is_older_than_the_new_primary() -> None:
    """The standbys have the new minor version, pg1 has not: the switchover goes on, and says what comes next."""
    topology = change(change(change(cluster(), "pg1", server_version_num=150009), "pg2", server_version_num=150012), "pg3", server_version_num=150012)
    plan = plan_switchover(topology, "pg2", LIMITS)
    assert plan.blockers == ()
    assert plan.notes == ("pg1 runs PostgreSQL 15.9, older than 15.12 on pg2; update it next",)
    assert plan_switchover(change(topology, "pg1", server_version_num=150012), "pg2", LIMITS).notes == ()


# -- a hand-over that was cut off ---------------------------------------------------------------------------------------------

# pg1 had armed itself for pg2 and is down; pg2 was not promoted.
CUT = change(down(cluster(), "pg1", states.STOPPED), "pg1", standby_signal=True, role=STANDBY, pending=pending("switchover", "pg1", "pg2"))


@pytest.mark.parametrize("wanted", ["", "pg2", "pg3"])
def test_plan_takes_a_hand_over_up_again_to_the_target_that_it_had(wanted: str) -> None:
    plan = plan_switchover(CUT, wanted, LIMITS)
    assert (plan.action, plan.source, plan.target, plan.blockers) == (HAND_OVER, "pg1", "pg2", ())
    assert plan.notes == ("an interrupted switchover is taken up again",)


# The same on timeline 2, where pg3 does not answer and would open read-write.
LATER = change(
    change(change(down(CUT, "pg3", states.UNRESPONSIVE), "pg3", standby_signal=False, role=PRIMARY, timeline=2), "pg2", timeline=2), "pg1", timeline=2
)

RESUMED = [
    pytest.param(CUT, "pg1", {"state": states.RUNNING}, None, id="the source runs as a standby"),
    pytest.param(CUT, "pg1", {"state": states.CRASHED}, None, id="the source crashed while it stopped"),
    pytest.param(down(CUT, "pg2", states.STOPPED), "pg2", {}, None, id="the target is stopped, a standby still: the source is taken back"),
    pytest.param(down(CUT, "pg2", states.CRASHED), "pg2", {}, None, id="the target crashed, a standby still"),
    pytest.param(down(CUT, "pg2", states.UNREACHABLE), "pg2", {}, "resume_target_unsure", id="the target is out of sight: it may be primary"),
    pytest.param(down(CUT, "pg2", states.UNRESPONSIVE), "pg2", {}, "resume_target_unsure", id="the target hangs: it may promote"),
    pytest.param(down(CUT, "pg2", states.STARTING), "pg2", {}, "resume_target_unsure", id="the target starts"),
    pytest.param(down(CUT, "pg2", states.ABSENT), "pg2", {}, "resume_target_unsure", id="the target's data is gone"),
    pytest.param(down(CUT, "pg2"), "pg2", {"standby_signal": False}, "resume_target_unsure", id="the target was promoted and died"),
    pytest.param(CUT, "pg1", {"pending": pending("switchover", "pg1", "pg9")}, "resume_target_unsure", id="the target left the inventory"),
    pytest.param(CUT, "pg1", {"pending": Pending("switchover")}, "resume_target_unsure", id="the note says nothing"),
    pytest.param(CUT, "pg1", {"fenced": True}, "resume_overtaken", id="a failover has fenced the source since"),
    pytest.param(CUT, "pg3", {"timeline": 2}, "resume_overtaken", id="a sibling is on a newer timeline"),
    pytest.param(CUT, "pg2", {"timeline": 2}, "resume_overtaken", id="the target is on a newer timeline"),
    pytest.param(down(CUT, "pg3", states.UNREACHABLE), "pg3", {}, "resume_unseen", id="a sibling is out of sight: a failover may have promoted it"),
    pytest.param(down(CUT, "pg3", states.CRASHED), "pg3", {}, None, id="a sibling is down: it was seen"),
    pytest.param(LATER, "pg3", {}, "resume_overtaken", id="a sibling hangs as a primary on the source's timeline"),
    pytest.param(LATER, "pg3", {"state": states.STARTING}, "resume_overtaken", id="a sibling starts as a primary"),
    pytest.param(LATER, "pg3", {"state": states.STOPPED}, "resume_overtaken", id="a sibling was stopped as a primary"),
    pytest.param(LATER, "pg3", {"fenced": True}, "resume_overtaken", id="a sibling that was fenced was promoted by hand"),
    pytest.param(LATER, "pg3", {"timeline": 1, "state": states.CRASHED}, None, id="a sibling is left from an older timeline"),
    pytest.param(LATER, "pg3", {"rewind_unfinished": True, "state": states.STOPPED}, None, id="a sibling was being rewound"),
    pytest.param(LATER, "pg3", {"standby_signal": True}, None, id="a sibling hangs as a standby"),
    pytest.param(
        change(LATER, "pg3", standby_signal=True), "pg1", {"upstream": Upstream("192.0.2.3", 5432)}, "resume_overtaken", id="the source follows a sibling"
    ),
    pytest.param(change(LATER, "pg3", standby_signal=True), "pg1", {"upstream": Upstream("192.0.2.2", 5432)}, None, id="the source points at the target"),
    pytest.param(CUT, "pg1", {"standby_signal": False, "role": PRIMARY}, None, id="a run died while it took the hand-over back"),
    pytest.param(
        CUT, "pg1", {"standby_signal": False, "role": PRIMARY, "state": states.CRASHED}, "resume_not_armed", id="the source crashed as a primary"
    ),
]


@pytest.mark.parametrize(("topology", "host", "changes", "reason"), RESUMED)
def test_plan_takes_a_hand_over_up_only_while_the_target_cannot_be_primary(
    topology: Topology, host: str, changes: dict[str, Any], reason: str
) -> None:
    plan = plan_switchover(change(topology, host, **changes), "", LIMITS)
    assert reasons(plan.blockers) == ([(reason, "pg1")] if reason else [])
    assert (plan.action, plan.source) == (HAND_OVER, "pg1")


@pytest.mark.parametrize("state", [states.STOPPED, states.CRASHED])
def test_plan_does_not_advise_to_start_a_server_that_would_open_read_write(state: str) -> None:
    topology = change(down(CUT, "pg3", states.UNREACHABLE), "pg1", standby_signal=False, role=PRIMARY, state=state)
    (blocker,) = plan_switchover(topology, "", LIMITS).blockers
    assert blocker.reason == "resume_unseen" and "do not start pg1" in blocker.hint


def test_plan_finishes_a_hand_over_whose_target_is_primary() -> None:
    topology = change(down(cluster(primary="pg2", timeline=2), "pg1"), "pg1", pending=pending("switchover", "pg1", "pg2"))
    for wanted in ("", "pg2"):
        plan = plan_switchover(topology, wanted, LIMITS)
        assert (plan.action, plan.source, plan.target, plan.blockers) == (FINISH, "pg1", "pg2", ())


FINISHED = [
    pytest.param({}, None, id="it runs"),
    pytest.param({"state": states.STOPPED, "control_state": "shut down in recovery", "checkpoint_lsn": "0/1", "min_recovery_lsn": "0/4"}, None, id="stopped"),
    pytest.param(
        {"state": states.STOPPED, "control_state": "shut down", "checkpoint_lsn": "0/4FFFF88", "timeline": 1, "timeline_history": ""},
        None,
        id="stopped by the hand-over",
    ),
    pytest.param({"state": states.UNREACHABLE, "standby_signal": False}, None, id="out of sight: the others are given their places"),
    pytest.param({"state": states.STOPPED, "fenced": True}, "source_needs_rejoin", id="fenced since"),
    pytest.param({"state": states.STOPPED, "standby_signal": False, "control_state": "shut down"}, "source_needs_rejoin", id="it would be primary"),
    pytest.param(
        {"state": states.CRASHED, "control_state": "in production", "timeline": 1, "timeline_history": ""}, "source_needs_rejoin", id="it crashed as primary"
    ),
]


@pytest.mark.parametrize(("changes", "reason"), FINISHED)
def test_plan_that_finishes_starts_the_old_primary_only_where_a_start_is_enough(changes: dict[str, Any], reason: str) -> None:
    topology = change(cluster(primary="pg2", timeline=2), "pg1", pending=pending("switchover", "pg1", "pg2"), **changes)
    plan = plan_switchover(topology, "", LIMITS)
    assert (plan.action, reasons(plan.blockers)) == (FINISH, [(reason, "pg1")] if reason else [])


def test_plan_to_a_third_node_is_not_held_up_by_a_hand_over_that_ended() -> None:
    topology = change(cluster(primary="pg2", timeline=2), "pg1", pending=pending("switchover", "pg1", "pg2"))
    plan = plan_switchover(topology, "pg3", LIMITS)
    assert (plan.action, plan.source, plan.target, plan.blockers) == (HAND_OVER, "pg2", "pg3", ())


@pytest.mark.parametrize(("wanted", "target"), [("", "pg3"), ("pg2", "pg2")])
def test_plan_of_a_primary_that_had_armed_itself_goes_to_the_same_target(wanted: str, target: str) -> None:
    topology = change(cluster(), "pg1", pending=pending("switchover", "pg1", "pg3"), standby_signal=True)
    assert plan_switchover(topology, wanted, LIMITS).target == target


@pytest.mark.parametrize(
    ("topology", "source", "target"),
    [
        pytest.param(cluster(primary="pg3"), "pg3", "pg2", id="that of the primary"),
        pytest.param(down(cluster(primary="pg3"), "pg3", states.STOPPED, standby_signal=True, role=STANDBY), "pg3", "pg2", id="of whom the standbys follow"),
    ],
)
def test_plan_takes_the_newer_of_two_notes(topology: Topology, source: str, target: str) -> None:
    topology = change(change(topology, "pg1", pending=pending("switchover", "pg1", "pg2")), "pg3", pending=pending("switchover", "pg3", "pg2"))
    plan = plan_switchover(topology, "", LIMITS)
    assert (plan.action, plan.source, plan.target, plan.blockers) == (HAND_OVER, source, target, ())


def test_plan_does_not_hand_back_what_the_newer_of_two_notes_has_handed_over() -> None:
    """Neither of the two hand-overs could be proven, for a third node does not stream."""
    topology = change(cluster(), "pg1", pending=pending("switchover", "pg1", "pg2"))
    topology = change(topology, "pg2", pending=pending("switchover", "pg2", "pg1"))
    plan = plan_switchover(topology, "", LIMITS)
    assert (plan.action, plan.source, plan.target, plan.blockers) == (FINISH, "pg2", "pg1", ())


def test_plan_ignores_the_note_of_a_failover() -> None:
    topology = change(cluster(primary="pg2", timeline=2), "pg2", pending=pending("failover", "pg1", "pg2"))
    assert plan_switchover(topology, "", LIMITS).target == "pg1"


def test_plan_is_the_same_on_every_host() -> None:
    topology = cluster()
    copies = [Topology(topology.cluster, tuple(replace(node) for node in topology.nodes)) for _host in topology.nodes]
    assert {plan_switchover(copy, "", LIMITS) for copy in copies} == {plan_switchover(topology, "", LIMITS)}
