# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of synchronous replication through role changes: who confirms, what is wrong, who may be promoted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.confirming import confirming, promised_set, synchronous_problems
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover import plan_failover
from ansible_collections.pg_ops.replication.plugins.module_utils.core.placement import after_change, placement
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import Limits
from ansible_collections.pg_ops.replication.plugins.module_utils.core.setup import inventory_blockers
from ansible_collections.pg_ops.replication.plugins.module_utils.core.switchover import plan_switchover
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import ASYNCHRONOUS, SynchronousRule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, leave_time, problems
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    NOW,
    OTHER_SYSTEM,
    PAIR,
    TRIO,
    change,
    cluster,
    down,
    reasons,
    sender_of,
    the,
)

NAMES = "synchronous_standby_names"
LIMITS = Limits()


def ruled(topology: Topology, *, mode: str = "any", num: int = 1, degrade: str = "wait", members: tuple[str, ...] = ()) -> Topology:
    """Return the topology under a rule, its primary set accordingly."""
    names = members or tuple(node.host for node in topology.nodes)
    made = replace(topology, rule=SynchronousRule(mode, num, names, degrade))
    primary = made.primary
    if primary is None:
        return made
    listed = ", ".join(f'"{name}"' for name in names if name != primary.host)
    return say(made, primary.host, f"{mode.upper()} {num} ({listed})")


def say(topology: Topology, host: str, text: str) -> Topology:
    return change(topology, host, settings={**the(topology, host).settings, NAMES: text})


def hosts(topology: Topology, host: str) -> list[str]:
    return [node.host for node in confirming(topology, host)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, ["pg2", "pg3"], id="healthy"),
        pytest.param({"replay_delay_ms": 60000}, ["pg2"], id="delayed"),
        pytest.param({"system_identifier": OTHER_SYSTEM}, ["pg2"], id="foreign"),
        pytest.param({"timeline": 2}, ["pg2"], id="ahead_of_the_primary"),
        pytest.param({"state": states.STOPPED}, ["pg2", "pg3"], id="down_and_a_standby"),
        pytest.param({"state": states.CRASHED, "standby_signal": False}, ["pg2"], id="down_and_would_be_primary"),
        pytest.param({"state": states.STOPPED, "fenced": True}, ["pg2"], id="fenced"),
        pytest.param({"state": states.STOPPED, "rewind_unfinished": True}, ["pg2"], id="half_rewound"),
        pytest.param({"state": states.UNREACHABLE}, ["pg2", "pg3"], id="out_of_sight"),
        pytest.param({"state": states.ABSENT}, ["pg2"], id="no_data"),
    ],
)
def test_confirming_leaves_out_whoever_may_report_a_false_position(changes: dict[str, Any], expected: list[str]) -> None:
    assert hosts(change(ruled(cluster()), "pg3", **changes), "pg1") == expected


def test_confirming_leaves_cascaded_standbys_and_those_outside_the_members_out() -> None:
    assert hosts(ruled(cluster(upstreams={"pg3": "pg2"})), "pg1") == ["pg2"]
    assert hosts(ruled(cluster(), members=("pg3", "pg1")), "pg1") == ["pg3"]
    assert hosts(cluster(), "pg1") == []


def test_confirming_of_a_standby_names_all_others_for_the_day_of_its_promotion() -> None:
    assert hosts(ruled(cluster()), "pg2") == ["pg1", "pg3"]
    place = placement(ruled(cluster()), "pg2")
    assert place is not None and place.confirming == ("pg1", "pg3")


def test_confirming_after_a_failover_lacks_the_old_primary_and_has_it_after_a_switchover() -> None:
    dead = down(ruled(cluster()), "pg1")
    assert hosts(after_change(dead, "pg1", "pg2", source_returns=False), "pg2") == ["pg3"]
    assert hosts(after_change(ruled(cluster()), "pg1", "pg2", source_returns=True), "pg2") == ["pg1", "pg3"]


@pytest.mark.parametrize(
    ("text", "senders", "num", "expected"),
    [
        pytest.param('ANY 1 ("pg2", "pg3")', TRIO[1:], 1, [], id="right"),
        pytest.param("", TRIO[1:], 1, [("synchronous_degraded", "pg1")], id="asynchronous"),
        pytest.param("odd (", TRIO[1:], 1, [("synchronous_degraded", "pg1")], id="unreadable"),
        pytest.param('ANY 1 ("pg2", "pg3")', TRIO[1:], 2, [("synchronous_degraded", "pg1")], id="fewer_than_wanted"),
        pytest.param('ANY 1 ("pg2", "pg3")', (), 1, [("commits_wait", "pg1")], id="nobody_streams"),
        pytest.param('ANY 1 ("pg_ops_nobody")', TRIO[1:], 1, [("commits_wait", "pg1")], id="nobody_may_confirm"),
        pytest.param('ANY 1 ("pg2")', TRIO[1:], 1, [("synchronous_set", "pg1")], id="one_left_out"),
        pytest.param('FIRST 1 ("pg2", "pg3")', TRIO[1:], 1, [("synchronous_set", "pg1")], id="other_mode"),
    ],
)
def test_synchronous_problems_of_what_the_primary_says(text: str, senders: tuple[str, ...], num: int, expected: list[tuple[str, str]]) -> None:
    found = say(ruled(cluster(), num=num), "pg1", text)
    found = change(found, "pg1", senders=tuple(sender_of(host) for host in senders))
    assert reasons(synchronous_problems(found)) == expected
    assert [reason for reason in reasons(problems(found)) if reason[0] != "not_streaming"] == expected


def test_synchronous_problems_without_a_rule_are_none() -> None:
    assert synchronous_problems(say(cluster(), "pg1", 'ANY 1 ("nobody")')) == ()


def test_leave_time_turns_waiting_commits_into_a_note_where_nodes_are_left_behind() -> None:
    found = synchronous_problems(change(ruled(cluster()), "pg1", senders=(), sessions_waiting_for_standby=3))
    kept, notes = leave_time(cluster(), found, paused_too=True)
    assert kept == () and "3 session(s) wait" in notes[0]
    assert leave_time(cluster(), found, paused_too=False)[0] == found


@pytest.mark.parametrize(("degrade", "expected"), [("wait", [("too_few_synchronous", "pg2")]), ("async", [])])
def test_plan_switchover_that_would_leave_commits_waiting_is_refused(degrade: str, expected: list[tuple[str, str]]) -> None:
    topology = down(ruled(cluster(), num=2, degrade=degrade), "pg3", states.STOPPED)
    assert reasons(plan_switchover(topology, "pg2", LIMITS).blockers) == expected
    assert plan_switchover(ruled(cluster(), num=2), "pg2", LIMITS).blockers == ()


def crashed(topology: Topology, text: Optional[str] = None) -> Topology:
    """Return the topology with its primary dead; `text` is what its files say, None where that is not known."""
    return down(topology, "pg1", settings={} if text is None else {NAMES: text})


@pytest.mark.parametrize(
    ("topology", "wanted", "expected"),
    [
        pytest.param(crashed(ruled(cluster())), "", [], id="all_in_sight"),
        pytest.param(crashed(ruled(cluster(PAIR))), "", [], id="a_pair"),
        pytest.param(down(crashed(ruled(cluster())), "pg3", states.UNREACHABLE), "", [("synchronous_unseen", "pg2")], id="one_out_of_sight"),
        pytest.param(down(crashed(ruled(cluster(), num=2)), "pg3", states.UNREACHABLE), "", [], id="two_confirm_one_is_enough"),
        pytest.param(crashed(ruled(cluster(), members=("pg1", "pg3"))), "", [], id="takes_the_member"),
        pytest.param(crashed(ruled(cluster(), members=("pg1", "pg3"))), "pg2", [("not_synchronous", "pg2")], id="not_a_member"),
        pytest.param(crashed(ruled(cluster()), 'ANY 1 ("pg3")'), "pg2", [("not_synchronous", "pg2")], id="the_files_say_otherwise"),
        pytest.param(down(crashed(ruled(cluster()), ""), "pg3", states.UNREACHABLE), "", [], id="was_degraded"),
        pytest.param(crashed(ruled(cluster(), degrade="async")), "", [("synchronous_unknown", "pg2")], id="may_have_been_degraded"),
        pytest.param(crashed(ruled(cluster(), degrade="async"), 'ANY 1 ("pg2", "pg3")'), "", [], id="was_not_degraded"),
        pytest.param(
            change(crashed(ruled(cluster())), "pg3", receive_lsn="0/9000100", replay_paused=True), "", [("not_most_advanced", "pg2")], id="paused_and_ahead"
        ),
        pytest.param(
            change(crashed(ruled(cluster())), "pg3", member={"priority": 0}, receive_lsn="", replay_lsn="0/1000000"), "", [("still_reading", "pg3")],
            id="one_that_is_never_promoted_still_reads_what_it_may_have_confirmed",
        ),
    ],
)
def test_plan_failover_promotes_nobody_who_may_lack_a_confirmed_commit(topology: Topology, wanted: str, expected: list[tuple[str, str]]) -> None:
    plan = plan_failover(topology, wanted, Limits(unfenced="accept"))
    assert reasons(plan.blockers) == expected
    accepted = plan_failover(topology, wanted, Limits(unfenced="accept", accept_synchronous_loss=True))
    assert accepted.blockers == ()


@pytest.mark.parametrize(("degrade", "expected"), [("wait", "synchronous_unseen"), ("async", "synchronous_unknown")])
def test_plan_failover_does_not_take_a_dead_parents_set_for_that_of_a_primary_out_of_reach(degrade: str, expected: str) -> None:
    """pg2, which confirmed to pg1, died with it; its own setting, of one that would be primary, asks pg3."""
    topology = ruled(cluster(members={"pg3": {"upstream": "pg2"}}, upstreams={"pg3": "pg2"}), members=("pg2", "pg3"), degrade=degrade)
    topology = down(down(topology, "pg1", states.UNREACHABLE), "pg2", settings={NAMES: 'ANY 1 ("pg3")'})
    for parent in ({}, {"fenced": True, "fenced_standby": True}):  # by an earlier run, in the primary's place
        plan = plan_failover(change(topology, "pg2", **parent), "", Limits(unfenced="accept"))
        assert (plan.target, reasons(plan.blockers)) == ("pg3", [(expected, "pg3")])


@pytest.mark.parametrize(
    ("text", "away", "expected"),
    [
        pytest.param('ANY 1 ("pg2", "pg3", "pg4")', (), "not in the inventory: pg4", id="taken out, and it still confirms"),
        pytest.param('ANY 1 ("pg2", "pg3", "pg4", "PG5")', ("pg3",), "not running: pg3; not in the inventory: PG5 and pg4", id="with one that is down"),
        pytest.param('ANY 2 ("pg2", "pg3", "pg4")', (), "", id="two confirm, and two of the three are in sight"),
        pytest.param('ANY 2 ("pg2", "pg3", "pg4", "pg5")', (), "not in the inventory: pg4 and pg5", id="two confirm, and two of the four are not"),
        pytest.param('ANY 1 ("pg1", "pg2", "pg3")', (), "", id="the old primary itself confirmed nothing"),
        pytest.param('ANY 1 ("PG2", "pg3", "Pg3")', (), "", id="without regard to case, and each once"),
        pytest.param("ANY 1 (*)", (), "", id="whoever streams: who that may have been nobody knows"),
        pytest.param('ANY 1 (pg2, "pg3", "*")', (), "", id="named and whoever streams"),
    ],
)
def test_plan_failover_counts_who_confirms_and_is_in_no_inventory_any_more(text: str, away: tuple[str, ...], expected: str) -> None:
    topology = crashed(ruled(cluster()), text)
    for host in away:
        topology = down(topology, host, states.STOPPED)
    found = [blocker for blocker in plan_failover(topology, "", LIMITS).blockers if blocker.reason == "synchronous_unseen"]
    assert [blocker.observed for blocker in found] == ([expected] if expected else [])
    assert all("pg4" in blocker.hint and "into the inventory" in blocker.hint for blocker in found)


@pytest.mark.parametrize(("fenced", "expected"), [(False, "Bring pg3 up, or start pg1 again. Or"), (True, "Bring pg3 up, or touch boot_guard/allow in ")])
def test_hint_of_a_member_out_of_sight_says_how_the_old_primary_starts(fenced: bool, expected: str) -> None:
    dead = down(crashed(ruled(cluster()), 'ANY 1 ("pg2", "pg3")'), "pg3", states.STOPPED)
    (blocker,) = plan_failover(change(dead, "pg1", fenced=fenced), "", LIMITS).blockers
    assert (blocker.reason, blocker.hint.startswith(expected)) == ("synchronous_unseen", True), blocker.hint


def test_promised_set_of_the_inventory_has_the_names_that_standbys_give() -> None:
    topology = ruled(cluster(("pg1", "pg2", "pgä3")))
    dead = down(topology, "pg1", states.UNREACHABLE)
    assert plan_failover(dead, "", Limits(unfenced="accept")).blockers == ()


def test_plan_failover_takes_a_member_before_an_asynchronous_standby_that_is_ahead() -> None:
    topology = change(crashed(ruled(cluster(), members=("pg1", "pg2")), 'ANY 1 ("pg2")'), "pg3", receive_lsn="0/9000100")
    plan = plan_failover(topology, "", LIMITS)
    assert (plan.target, plan.left, plan.blockers) == ("pg2", ("pg3",), ())
    assert any("every commit that synchronous standbys confirmed; what is lost was confirmed to no client" in note for note in plan.notes)


def test_plan_failover_does_not_say_of_a_primary_out_of_sight_that_nothing_confirmed_is_lost() -> None:
    notes = plan_failover(crashed(ruled(cluster())), "", LIMITS).notes
    assert any("Whether pg1 still asked for confirmations is not known" in note for note in notes)
    assert not any("confirmed to no client" in note for note in notes)


def test_promised_set_is_what_the_files_say_else_the_inventory_s() -> None:
    topology = crashed(ruled(cluster()), 'FIRST 1 ("pg2")')
    assert promised_set(topology, the(topology, "pg1")).names == ("pg2",)
    unseen = crashed(ruled(cluster(), num=2))
    assert promised_set(unseen, the(unseen, "pg1")).num == promised_set(unseen, None).num == 2
    assert promised_set(cluster(), None) == ASYNCHRONOUS
    assert the(topology, "pg2").position_lsn == NOW


@pytest.mark.parametrize(
    ("num", "members", "expected"),
    [
        (1, ("pg1", "pg2"), []),
        (2, TRIO, []),
        (3, TRIO, ["bad_synchronous_num"]),
        (0, TRIO, ["bad_synchronous_num"]),
        (1, ("pg1",), ["bad_synchronous_num"]),
        (1, ("pg1", "pg9"), ["bad_synchronous_members"]),
    ],
)
def test_inventory_blockers_of_a_rule(num: int, members: tuple[str, ...], expected: list[str]) -> None:
    known = [node.member for node in cluster().nodes]
    found = inventory_blockers("main", known, SynchronousRule("any", num, members))
    assert [blocker.reason for blocker in found] == expected
