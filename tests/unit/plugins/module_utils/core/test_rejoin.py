# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of how a server that does not follow the primary comes back."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, STANDBY, Receiver, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import (
    FOLLOW,
    NOTHING,
    RECLONE,
    REFUSE,
    REWIND,
    START,
    RejoinPlan,
    answered_by_archive,
    plan_rejoin,
    plan_stopped,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    FORK_OF_2,
    HISTORIES,
    OTHER_HISTORY_OF_2,
    OTHER_SYSTEM,
    change,
    cluster,
    down,
    pending,
    reasons,
    the,
)

# pg2 took over from pg1: timeline 2 left timeline 1 at 0/5000000. What pg1's files then say:
OLD_PRIMARY = {
    "role": PRIMARY,
    "standby_signal": False,
    "timeline": 1,
    "control_timeline": 1,
    "timeline_history": "",
    "min_recovery_lsn": "0/0",
    "upstream": Upstream(),
    "redo_lsn": "0/4F00000",
}
PLANNED = cluster(primary="pg2", timeline=2)


def stopped(**changes: Any) -> Topology:
    files = {**OLD_PRIMARY, "control_state": "shut down", "checkpoint_lsn": "0/4FFFF88", "wal_end_lsn": FORK_OF_2}
    return down(PLANNED, "pg1", states.STOPPED, **{**files, **changes})


def crashed(**changes: Any) -> Topology:
    files = {**OLD_PRIMARY, "control_state": "in production", "checkpoint_lsn": "0/4F00028", "wal_end_lsn": "0/5400000"}
    return down(PLANNED, "pg1", states.CRASHED, **{**files, **changes})


def standby(state: str = states.STOPPED, **changes: Any) -> Topology:
    """A standby of the same timeline as the primary, down."""
    return down(PLANNED, "pg1", state, **changes)


# -- the old primary ----------------------------------------------------------------------------------------------------------

OLD_PRIMARIES = [
    pytest.param(stopped(), START, "", id="stopped cleanly before the fork"),
    pytest.param(stopped(checkpoint_lsn="0/5000000"), REWIND, FORK_OF_2, id="its shutdown checkpoint begins at the fork: the primary lacks it"),
    pytest.param(stopped(checkpoint_lsn="0/4FFFFFF"), START, "", id="a byte before the fork"),
    pytest.param(stopped(checkpoint_lsn="0/6000000"), REWIND, FORK_OF_2, id="stopped cleanly behind the fork"),
    pytest.param(stopped(data_checksums=False, wal_log_hints=True, checkpoint_lsn="0/6000000"), REWIND, FORK_OF_2, id="hints are enough"),
    pytest.param(stopped(data_checksums=False, checkpoint_lsn="0/6000000"), RECLONE, FORK_OF_2, id="pg_rewind is not possible"),
    pytest.param(stopped(data_checksums=False), START, "", id="a start needs neither"),
    pytest.param(stopped(checkpoint_lsn=""), REWIND, FORK_OF_2, id="where it stopped is unknown"),
    pytest.param(stopped(redo_lsn="0/1000000", wal_end_lsn="0/2000000"), RECLONE, "", id="the primary's WAL begins behind its end"),
    pytest.param(stopped(redo_lsn="0/1000000"), START, "", id="only what it has itself is gone at the primary"),
    pytest.param(stopped(redo_lsn="", wal_end_lsn=""), START, "", id="its end is unknown"),
    pytest.param(stopped(standby_signal=True, fenced=True), START, "", id="stopped cleanly, then fenced"),
    pytest.param(crashed(), REWIND, FORK_OF_2, id="crashed"),
    pytest.param(change(crashed(), "pg2", oldest_wal_lsn=FORK_OF_2), REWIND, FORK_OF_2, id="crashed, the primary's WAL begins at the fork"),
    pytest.param(change(crashed(), "pg2", oldest_wal_lsn="0/6000000"), RECLONE, FORK_OF_2, id="crashed, the WAL from the fork on is gone"),
    pytest.param(crashed(wal_end_lsn=""), REWIND, FORK_OF_2, id="crashed, WAL unreadable"),
    pytest.param(crashed(standby_signal=True, fenced=True, role=STANDBY), REWIND, FORK_OF_2, id="crashed and fenced"),
    pytest.param(crashed(data_checksums=False), RECLONE, FORK_OF_2, id="crashed, pg_rewind is not possible"),
    pytest.param(crashed(rewind_unfinished=True), RECLONE, "", id="a rewind broke off"),
    pytest.param(stopped(rewind_unfinished=True), RECLONE, "", id="a rewind broke off, the files look clean"),
    pytest.param(
        crashed(standby_signal=True, control_state="in archive recovery", min_recovery_lsn="0/4F80000", wal_end_lsn="0/4F82000"),
        START,
        "",
        id="started behind its fence, its WAL ends before the fork",
    ),
    pytest.param(
        crashed(standby_signal=True, control_state="in archive recovery", min_recovery_lsn="0/4F80000", wal_end_lsn="0/5002002"),
        REWIND,
        FORK_OF_2,
        id="it has received WAL beyond the fork that it did not replay",
    ),
    pytest.param(
        crashed(standby_signal=True, control_state="in archive recovery", min_recovery_lsn="0/4F80000", wal_end_lsn="0/5002000"),
        START,
        "",
        id="its WAL ends in the page of the fork: a start finds out",
    ),
    pytest.param(
        crashed(standby_signal=True, control_state="in archive recovery", min_recovery_lsn="0/5300000"),
        REWIND,
        FORK_OF_2,
        id="started behind its fence and replayed its own WAL",
    ),
    pytest.param(
        crashed(standby_signal=True, control_state="in archive recovery", min_recovery_lsn="0/0", checkpoint_lsn="0/5000000"),
        REWIND,
        FORK_OF_2,
        id="minimum recovery point 0/0, its checkpoint is behind the fork",
    ),
    pytest.param(
        stopped(standby_signal=True, control_state="shut down in recovery", min_recovery_lsn="0/5000000", checkpoint_lsn="0/5000000"),
        REWIND,
        FORK_OF_2,
        id="started as a standby from its shutdown checkpoint, got no further",
    ),
    pytest.param(
        crashed(control_state="in archive recovery", min_recovery_lsn="0/4F80000"), REWIND, FORK_OF_2, id="in recovery, no standby.signal"
    ),
    pytest.param(crashed(standby_signal=True, control_state="in crash recovery"), REWIND, FORK_OF_2, id="crashed in crash recovery"),
    pytest.param(down(PLANNED, "pg1", states.ABSENT), RECLONE, "", id="no data directory"),
    pytest.param(crashed(standby_signal=True, upstream=Upstream("192.0.2.9")), START, "", id="a copy of the last primary that was never started"),
    pytest.param(
        crashed(standby_signal=True, upstream=Upstream("192.0.2.9"), redo_lsn="0/1000000", wal_end_lsn="0/1100000"),
        RECLONE,
        "",
        id="such a copy, the WAL behind it is gone",
    ),
    pytest.param(
        crashed(standby_signal=True, upstream=Upstream("192.0.2.9"), fenced=True), REWIND, FORK_OF_2, id="fenced, it was pointed somewhere"
    ),
    pytest.param(
        crashed(standby_signal=True, upstream=Upstream("192.0.2.2"), pending=pending("switchover", "pg1", "pg2")),
        REWIND,
        FORK_OF_2,
        id="armed for a switchover, crashed before it stopped",
    ),
    pytest.param(crashed(upstream=Upstream("192.0.2.9")), REWIND, FORK_OF_2, id="a leftover upstream, no standby.signal"),
]


@pytest.mark.parametrize(("topology", "action", "fork"), OLD_PRIMARIES)
def test_plan_of_an_old_primary_is_the_cheapest_safe_way(topology: Topology, action: str, fork: str) -> None:
    plan = plan_rejoin(topology, the(topology, "pg1"))
    assert (plan.action, plan.fork_lsn, plan.own_wal, plan.blockers) == (action, fork, bool(fork), ())
    assert plan.why
    assert plan == plan_stopped(the(topology, "pg1"), the(topology, "pg2"))


@pytest.mark.parametrize(
    ("changes", "action", "own_wal"),
    [
        pytest.param({}, RECLONE, True, id="a primary that was killed"),
        pytest.param({"standby_signal": True, "fenced": True, "role": STANDBY}, RECLONE, True, id="and fenced"),
        pytest.param({"rewind_unfinished": True}, RECLONE, False, id="a rewind broke off: the report was written before it"),
        pytest.param({"standby_signal": True, "role": STANDBY, "upstream": Upstream("192.0.2.2")}, START, False, id="a copy that follows"),
        pytest.param({"standby_signal": True, "role": STANDBY, "control_state": "in archive recovery", "min_recovery_lsn": "0/5300000"}, START, False,
                     id="a standby"),
        pytest.param({"standby_signal": True, "role": STANDBY, "control_state": "in archive recovery", "min_recovery_lsn": "0/1300000",
                      "checkpoint_lsn": "0/1200000", "redo_lsn": "0/1100000", "wal_end_lsn": "0/1400000"}, RECLONE, False,
                     id="a standby whose WAL is gone"),
    ],
)  # fmt: skip
def test_plan_on_the_primarys_own_timeline_knows_what_may_be_lost_without_a_fork(changes: dict[str, Any], action: str, own_wal: bool) -> None:
    topology = crashed(timeline=2, control_timeline=2, timeline_history=HISTORIES[2], **changes)
    plan = plan_rejoin(topology, the(topology, "pg1"))
    assert (plan.action, plan.fork_lsn, plan.own_wal) == (action, "", own_wal)


# -- standbys that are down ---------------------------------------------------------------------------------------------------

STANDBYS = [
    pytest.param(standby(), START, id="stopped"),
    pytest.param(standby(states.CRASHED), START, id="crashed"),
    pytest.param(standby(states.STARTING), START, id="starting"),
    pytest.param(standby(states.STARTING, control_state="shut down in recovery"), START, id="only just starting"),
    pytest.param(standby(states.CRASHED, data_checksums=False), START, id="crashed, pg_rewind is not possible"),
    pytest.param(standby(redo_lsn="0/1000000"), START, id="its redo point is older than the primary's WAL, its own WAL is not"),
    pytest.param(standby(redo_lsn="0/1000000", wal_end_lsn="0/2000000"), RECLONE, id="the WAL behind its end is gone"),
    pytest.param(standby(states.CRASHED, redo_lsn="0/1000000", wal_end_lsn="0/2000000"), RECLONE, id="crashed, the WAL behind its end is gone"),
    pytest.param(standby(redo_lsn="0/1000000", wal_end_lsn="0/3000000"), RECLONE, id="its end may lie in the last segment that is gone"),
    pytest.param(standby(redo_lsn="0/1000000", wal_end_lsn="0/3002000"), START, id="its end lies in the first segment that is left"),
    pytest.param(standby(redo_lsn="0/1000000", wal_end_lsn=""), RECLONE, id="its own WAL cannot be read"),
    pytest.param(
        standby(states.CRASHED, control_state="in production"), START, id="a copy that was never started: it names the primary's state"
    ),
    pytest.param(
        standby(states.CRASHED, control_state="in production", upstream=Upstream()), RECLONE, id="the same without an upstream: a server set back"
    ),
    pytest.param(
        standby(states.CRASHED, control_state="in production", standby_signal=False), RECLONE, id="it wrote on the primary's own timeline"
    ),
    pytest.param(standby(timeline_history=OTHER_HISTORY_OF_2), RECLONE, id="another timeline 2: pg_rewind could not tell them apart"),
    pytest.param(standby(states.CRASHED, timeline_history=OTHER_HISTORY_OF_2), RECLONE, id="another timeline 2, crashed"),
    pytest.param(standby(timeline=1, timeline_history="", min_recovery_lsn="0/5000000", checkpoint_lsn="0/4000000"), START, id="on timeline 1, up to the fork"),
    pytest.param(standby(timeline=1, timeline_history="", min_recovery_lsn="0/5000001"), REWIND, id="on timeline 1, a byte beyond the fork"),
    pytest.param(standby(timeline=1, timeline_history="", min_recovery_lsn="0/4000000", checkpoint_lsn=""), START, id="its checkpoint is unknown"),
    pytest.param(standby(timeline=1, timeline_history="", min_recovery_lsn="", checkpoint_lsn="0/4000000"), START, id="its recovery point is unknown"),
    pytest.param(standby(timeline=1, timeline_history="", min_recovery_lsn="", checkpoint_lsn=""), REWIND, id="both are unknown"),
]


@pytest.mark.parametrize(("topology", "action"), STANDBYS)
def test_plan_of_a_standby_that_is_down(topology: Topology, action: str) -> None:
    plan = plan_rejoin(topology, the(topology, "pg1"))
    assert (plan.action, plan.blockers) == (action, ())


@pytest.mark.parametrize(
    ("topology", "why"),
    [
        pytest.param(standby(), "it was shut down cleanly at 0/9000000, which pg2 has passed", id="stopped"),
        pytest.param(standby(states.CRASHED), "it crashed as a standby and has no WAL of its own", id="crashed"),
    ],
)
def test_plan_says_why_a_start_is_enough(topology: Topology, why: str) -> None:
    assert plan_rejoin(topology, the(topology, "pg1")).why == why


def test_plan_across_two_promotions_uses_the_lowest_fork() -> None:
    topology = down(cluster(primary="pg2", timeline=3), "pg1", **{**OLD_PRIMARY, "control_state": "in production"})
    assert plan_rejoin(topology, the(topology, "pg1")).fork_lsn == FORK_OF_2
    topology = change(topology, "pg1", timeline=2, timeline_history=HISTORIES[2])
    assert plan_rejoin(topology, the(topology, "pg1")).fork_lsn == "0/7000000"


# -- refusals -----------------------------------------------------------------------------------------------------------------

REFUSALS = [
    pytest.param(down(PLANNED, "pg2"), "pg1", "no_primary", id="no primary"),
    pytest.param(change(PLANNED, "pg1", role=PRIMARY), "pg1", "two_primaries", id="two primaries"),
    pytest.param(down(PLANNED, "pg1", states.UNREACHABLE), "pg1", "unreachable", id="out of sight"),
    pytest.param(standby(states.UNRESPONSIVE), "pg1", "unresponsive", id="hangs"),
    pytest.param(stopped(system_identifier=OTHER_SYSTEM), "pg1", "foreign_system", id="another cluster, down"),
    pytest.param(change(PLANNED, "pg1", system_identifier=OTHER_SYSTEM), "pg1", "foreign_system", id="another cluster, running"),
    pytest.param(stopped(major=14), "pg1", "version_mismatch", id="another major version"),
    pytest.param(stopped(timeline=3, timeline_history=HISTORIES[3]), "pg1", "newer_timeline", id="newer, down"),
    pytest.param(
        change(PLANNED, "pg1", timeline=3, timeline_history=HISTORIES[3], receiver=Receiver()), "pg1", "newer_timeline", id="newer, running"
    ),
    pytest.param(change(crashed(), "pg1", state=states.STARTING), "pg1", "starting", id="starts as a primary"),
    pytest.param(standby(timeline_history=""), "pg1", "history_unknown", id="its history file is missing, down"),
    pytest.param(
        change(PLANNED, "pg1", timeline_history="", receiver=Receiver()), "pg1", "history_unknown", id="its history file is missing, running"
    ),
    pytest.param(stopped(timeline=0), "pg1", "history_unknown", id="its timeline is unknown"),
    pytest.param(change(stopped(), "pg2", timeline_history=""), "pg1", "history_unknown", id="the primary's history file is missing"),
    pytest.param(standby(timeline_history="2 nonsense"), "pg1", "history_unknown", id="its history cannot be read"),
    pytest.param(standby(min_recovery_lsn="0/9000001"), "pg1", "ahead_of_primary", id="ahead of the primary on one timeline"),
]


@pytest.mark.parametrize(("topology", "host", "reason"), REFUSALS)
def test_plan_refuses(topology: Topology, host: str, reason: str) -> None:
    plan = plan_rejoin(topology, the(topology, host))
    assert (plan.action, plan.blockers[0].reason) == (REFUSE, reason)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"major": 0}, id="its version is unknown"),
        pytest.param({"system_identifier": ""}, id="its identifier is unknown"),
        pytest.param({"min_recovery_lsn": "0/9000000"}, id="level with the primary"),
    ],
)
def test_plan_near_a_refusal_starts(changes: dict[str, Any]) -> None:
    topology = standby(**changes)
    assert plan_rejoin(topology, the(topology, "pg1")).action == START


def test_plan_stopped_refuses_a_server_that_accepts_writes() -> None:
    topology = cluster()
    plan = plan_stopped(the(topology, "pg1"), the(cluster(primary="pg2"), "pg2"))
    assert (plan.action, reasons(plan.blockers)) == (REFUSE, [("runs_as_primary", "pg1")])


# -- nodes that run -----------------------------------------------------------------------------------------------------------

ON_1 = {"timeline": 1, "control_timeline": 1, "timeline_history": "", "receiver": Receiver()}
RUNNING = [
    pytest.param({}, NOTHING, id="streams as it should"),
    pytest.param({"timeline_history": ""}, NOTHING, id="streams, its history was not seen"),
    pytest.param({"receiver": Receiver()}, FOLLOW, id="does not stream"),
    pytest.param({"receiver": Receiver("streaming", "192.0.2.1", 5432, "", 2)}, FOLLOW, id="follows a sibling"),
    pytest.param({"receiver": Receiver(), "upstream": Upstream()}, FOLLOW, id="follows nobody"),
    pytest.param({**ON_1, "receive_lsn": "0/5000000", "replay_lsn": "0/5000000"}, FOLLOW, id="on timeline 1, up to the fork"),
    pytest.param({**ON_1, "receive_lsn": "0/5000000", "replay_lsn": "0/5000001"}, REWIND, id="on timeline 1, replayed a byte beyond"),
    pytest.param({**ON_1, "receive_lsn": "0/5000001", "replay_lsn": "0/5000000"}, REWIND, id="on timeline 1, received a byte beyond"),
    pytest.param({**ON_1, "data_checksums": False}, RECLONE, id="beyond the fork, pg_rewind is not possible"),
    pytest.param({"timeline_history": OTHER_HISTORY_OF_2}, RECLONE, id="another timeline 2, it seems to stream"),
    pytest.param({"receiver": Receiver(), "replay_lsn": "0/2000000", "receive_lsn": "0/2000000", "redo_lsn": "0/1000000"}, RECLONE, id="its WAL is gone"),
    pytest.param(
        {"receiver": Receiver(), "replay_lsn": "0/2000000", "receive_lsn": "", "redo_lsn": "0/1000000"}, FOLLOW, id="it has more WAL on its disk, perhaps"
    ),
    pytest.param(
        {**ON_1, "receive_lsn": "", "replay_lsn": "0/5000001"}, REWIND, id="it has not read all of its WAL, but more than it shares"
    ),
    pytest.param({"receiver": Receiver(), "redo_lsn": "0/1000000"}, FOLLOW, id="its redo point is old, its position is not"),
    pytest.param(
        {**ON_1, "upstream": Upstream(), "replay_lsn": "0/2000000", "receive_lsn": "0/2000000", "redo_lsn": "0/1000000"},
        RECLONE,
        id="follows nobody and its WAL is gone",
    ),
    pytest.param({"receiver": Receiver(), "receive_lsn": "", "replay_lsn": "", "redo_lsn": ""}, FOLLOW, id="its position is unknown"),
    pytest.param({"replay_paused": True}, NOTHING, id="paused, but in its place"),
]


@pytest.mark.parametrize(("changes", "action"), RUNNING)
def test_plan_of_a_running_standby(changes: dict[str, Any], action: str) -> None:
    topology = change(PLANNED, "pg3", **changes)
    plan = plan_rejoin(topology, the(topology, "pg3"))
    assert (plan.action, plan.blockers) == (action, ())


# -- WAL that only an archive may have -------------------------------------------------------------------------------------------

ENDED = {"redo_lsn": "0/1000000", "wal_end_lsn": "0/2002000"}
GONE = "the WAL that it needs is no longer on pg2"
NEVER_STARTED = {"standby_signal": True, "upstream": Upstream("192.0.2.9"), **ENDED}
STOOD_STILL = {"receiver": Receiver(), "replay_lsn": "0/2000000", "receive_lsn": "0/2000000", "redo_lsn": "0/1000000"}
ASKED = [
    pytest.param(standby(**ENDED), "pg1", START, GONE, id="stopped"),
    pytest.param(standby(states.CRASHED, **ENDED), "pg1", START, GONE, id="crashed"),
    pytest.param(stopped(**ENDED), "pg1", START, GONE, id="an old primary that handed over"),
    pytest.param(crashed(**NEVER_STARTED), "pg1", START, "it is a copy that was never started, and " + GONE, id="a copy that was never started"),
    pytest.param(change(PLANNED, "pg3", **STOOD_STILL), "pg3", FOLLOW, GONE, id="running"),
]


@pytest.mark.parametrize(("topology", "host", "action", "why"), ASKED)
def test_plan_of_a_node_whose_wal_is_gone_is_what_its_archive_answers(topology: Topology, host: str, action: str, why: str) -> None:
    assert plan_rejoin(topology, the(topology, host)) == RejoinPlan(RECLONE, why), "nobody is asked who fetches nothing"
    topology = change(topology, host, has_restore_command=True)
    node = the(topology, host)
    plan = plan_rejoin(topology, node)
    assert plan == RejoinPlan(RECLONE, why, missing_lsn="0/2000000")
    assert plan.said == f"reclone, because {why}, unless its restore_command fetches that WAL"
    delivered = answered_by_archive(plan, node, "")
    assert delivered == RejoinPlan(action, f"{why}, but its archive has it", missing_lsn="0/2000000")
    assert delivered.said == f"{action}, because {why}, but its archive has it"
    lacking = answered_by_archive(plan, node, "000000010000000000000002: exit status 1")
    why = f"{why}, nor does its restore_command fetch it (000000010000000000000002: exit status 1)"
    assert lacking == RejoinPlan(RECLONE, why, archive_lacks=True)
    assert lacking.said == f"reclone, because {lacking.why}"


def test_plan_of_a_standby_that_has_not_come_to_the_end_of_what_it_can_read_is_no_copy() -> None:
    """Its archive is asked all the same: where that has the rest, the standby is waited for as long as replay advances."""
    reading = {**STOOD_STILL, "receive_lsn": ""}
    topology = change(PLANNED, "pg3", **reading)
    assert plan_rejoin(topology, the(topology, "pg3")) == RejoinPlan(FOLLOW, "it still reads the WAL on its disk")
    topology = change(topology, "pg3", has_restore_command=True)
    plan = plan_rejoin(topology, the(topology, "pg3"))
    assert plan == RejoinPlan(RECLONE, GONE, missing_lsn="0/2000000")
    assert answered_by_archive(plan, the(topology, "pg3"), "").action == FOLLOW
    assert answered_by_archive(plan, the(topology, "pg3"), "it lacks one") == RejoinPlan(FOLLOW, "it still reads the WAL on its disk")


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(standby(), id="the primary has it"),
        pytest.param(change(crashed(), "pg2", oldest_wal_lsn="0/6000000"), id="the WAL from the fork on is gone"),
        pytest.param(crashed(data_checksums=False), id="pg_rewind is not possible"),
        pytest.param(standby(rewind_unfinished=True, **ENDED), id="a rewind broke off"),
        pytest.param(down(PLANNED, "pg1", states.ABSENT), id="no data directory"),
    ],
)
def test_plan_for_other_reasons_asks_no_archive(topology: Topology) -> None:
    topology = change(topology, "pg1", has_restore_command=True)
    assert plan_rejoin(topology, the(topology, "pg1")).missing_lsn == ""


def test_plan_of_the_primary_is_nothing() -> None:
    assert plan_rejoin(PLANNED, the(PLANNED, "pg2")).action == NOTHING


def test_plan_of_a_cascaded_node_whose_upstream_keeps_wal_follows_it() -> None:
    """One that no upstream has WAL for any more is copied: its parent could only make it wait for ever."""
    topology = cluster(members={"pg3": {"upstream": "pg2"}})
    topology = change(topology, "pg3", receiver=Receiver(), receive_lsn="0/2000000", replay_lsn="0/2000000", redo_lsn="0/1000000")
    keeping = change(topology, "pg2", oldest_wal_lsn="0/1000000")
    assert plan_rejoin(keeping, the(keeping, "pg3")).action == FOLLOW
    assert plan_rejoin(topology, the(topology, "pg3")).action == RECLONE
