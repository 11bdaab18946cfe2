# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the plan of a failover: who is fenced, who is promoted, what may be lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover import FINISH, TAKE_OVER, plan_failover
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import Limits
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    HISTORIES,
    MIB,
    NOW,
    OTHER_SYSTEM,
    PAIR,
    change,
    cluster,
    down,
    hears,
    pending,
    reasons,
    the,
)

LIMITS = Limits()
ACCEPT = Limits(unfenced="accept")
FENCE = Limits(fence_command=1)
DEAD = down(cluster(), "pg1")
SEEN_DOWN = [states.UNRESPONSIVE, states.STOPPED, states.CRASHED]


@pytest.mark.parametrize("state", SEEN_DOWN)
@pytest.mark.parametrize("hosts", [PAIR, ("pg1", "pg2", "pg3")], ids=len)
def test_plan_fences_a_dead_primary_that_was_seen_and_promotes_a_standby(hosts: tuple[str, ...], state: str) -> None:
    plan = plan_failover(down(cluster(hosts), "pg1", state), "", LIMITS)
    assert (plan.action, plan.source, plan.target, plan.fence, plan.blockers) == (TAKE_OVER, "pg1", "pg2", ("pg1",), ())
    assert plan.lost_bytes == 0


def test_plan_of_a_primary_that_is_starting_waits_for_it() -> None:
    plan = plan_failover(down(cluster(), "pg1", states.STARTING), "", LIMITS)
    assert reasons(plan.blockers) == [("primary_starting", "pg1")]
    assert reasons(plan_failover(down(cluster(), "pg1", states.STARTING), "", ACCEPT).blockers) == []


def test_plan_of_a_primary_without_data_has_nothing_to_fence() -> None:
    plan = plan_failover(down(cluster(), "pg1", states.ABSENT), "", LIMITS)
    assert (plan.source, plan.target, plan.fence, plan.lost_bytes, plan.blockers) == ("pg1", "pg2", (), None, ())


@pytest.mark.parametrize(
    ("limits", "expected"), [pytest.param(LIMITS, [("not_fenced", "pg1")], id="refused"), pytest.param(ACCEPT, [], id="accepted")]
)
def test_plan_of_an_unreachable_primary_asks_for_acceptance(limits: Limits, expected: list[tuple[str, str]]) -> None:
    plan = plan_failover(down(cluster(), "pg1", states.UNREACHABLE), "", limits)
    assert (reasons(plan.blockers), plan.fence, plan.lost_bytes) == (expected, (), None)
    assert "pg1 was NOT fenced: keep it off until start_new_standby.yml has run" in plan.notes
    assert any("cannot be known" in note for note in plan.notes)


def test_plan_of_an_unreachable_primary_with_a_fence_command_switches_it_off() -> None:
    plan = plan_failover(down(cluster(), "pg1", states.UNREACHABLE), "", FENCE)
    assert (plan.blockers, plan.fence, plan.switch_off, plan.target) == ((), (), ("pg1",), "pg2")
    assert "pg1 cannot be reached: pg_fence_command switches it off first" in plan.notes
    assert not any("NOT fenced" in note for note in plan.notes)


def test_plan_with_a_fence_command_switches_nothing_off_that_can_be_fenced_or_was_accepted() -> None:
    assert plan_failover(DEAD, "", FENCE).switch_off == ()
    accepted = plan_failover(down(cluster(), "pg1", states.UNREACHABLE), "", Limits(unfenced="accept", fence_command=1))
    assert accepted.switch_off == ()
    assert "pg1 was NOT fenced: keep it off until start_new_standby.yml has run" in accepted.notes


def test_plan_with_a_fence_command_leaves_a_starting_primary_alone() -> None:
    assert reasons(plan_failover(down(cluster(), "pg1", states.STARTING), "", FENCE).blockers) == [("primary_starting", "pg1")]


OUT_OF_REACH = down(cluster(), "pg1", states.UNREACHABLE)
CASCADE = cluster(upstreams={"pg3": "pg2"})
SECOND = cluster(primary="pg2", timeline=2)
WITHOUT = replace(cluster(), nodes=cluster().nodes[1:])


@pytest.mark.parametrize(
    ("topology", "limits", "expected"),
    [
        pytest.param(hears(OUT_OF_REACH, "pg2"), ACCEPT, ["pg1"], id="heard"),
        pytest.param(hears(hears(OUT_OF_REACH, "pg2"), "pg3"), ACCEPT, ["pg1"], id="heard by both: said once"),
        pytest.param(hears(OUT_OF_REACH, "pg3", silent_seconds=0.19), ACCEPT, ["pg1"], id="by one that would not be promoted"),
        pytest.param(hears(OUT_OF_REACH, "pg2", silent_seconds=0.2), ACCEPT, [], id="silent for a fifth of a second"),
        pytest.param(hears(OUT_OF_REACH, "pg2", silent_seconds=None), ACCEPT, [], id="never heard"),
        pytest.param(hears(OUT_OF_REACH, "pg2"), FENCE, [], id="switched off first"),
        pytest.param(hears(OUT_OF_REACH, "pg2", silent_seconds=-3599.0), ACCEPT, [], id="the clock was set back"),
        pytest.param(hears(DEAD, "pg2"), ACCEPT, [], id="seen down: its last words"),
        pytest.param(hears(WITHOUT, "pg2", sender="192.0.2.99"), ACCEPT, ["192.0.2.99 port 5432"], id="in no inventory any more"),
        pytest.param(hears(WITHOUT, "pg2", sender="192.0.2.99", silent_seconds=5), ACCEPT, [], id="in no inventory and silent"),
        pytest.param(hears(DEAD, "pg2", sender="192.0.2.99"), ACCEPT, [], id="somebody else's server beside a primary that was seen down"),
        pytest.param(
            hears(down(down(CASCADE, "pg1", states.UNREACHABLE), "pg2", states.UNREACHABLE), "pg3", sender="pg2"), ACCEPT, ["pg2"],
            id="a cascade's parent may be primary by now",
        ),
        pytest.param(
            hears(down(down(CASCADE, "pg1"), "pg2", states.UNREACHABLE), "pg3", sender="pg2"), ACCEPT, [], id="a cascade's parent of a dead primary"
        ),
        pytest.param(
            hears(down(down(cluster(primary="pg2", timeline=2), "pg1"), "pg2", states.UNREACHABLE), "pg3", sender="pg2"), LIMITS, ["pg2"],
            id="an older primary that never came back does not hide it",
        ),
        pytest.param(
            hears(down(down(SECOND, "pg1", standby_signal=False, fenced=True, rewind_unfinished=True), "pg2", states.UNREACHABLE), "pg3", sender="pg2"),
            ACCEPT, ["pg2"], id="nor does one whose rewind died: pg_rewind has taken its standby.signal away and brought the newer timeline's WAL",
        ),
        pytest.param(
            hears(down(down(SECOND, "pg1", standby_signal=False, rewind_unfinished=True), "pg2", states.UNREACHABLE), "pg3", sender="pg2"),
            ACCEPT, ["pg2"], id="nor one whose rewind died with the fence's note lost",
        ),
        pytest.param(
            hears(change(down(down(cluster(), "pg3"), "pg1", states.UNREACHABLE), "pg3", standby_signal=False, system_identifier="7"), "pg2"),
            ACCEPT, ["pg1"], id="nor a new cluster of another system",
        ),
        pytest.param(hears(down(cluster(), "pg1", states.ABSENT), "pg2"), LIMITS, ["pg1"], id="its files are not where the inventory says"),
        pytest.param(hears(down(cluster(), "pg1", states.ABSENT), "pg2", silent_seconds=5), LIMITS, [], id="its files are gone, and it is silent"),
    ],
)  # fmt: skip
def test_plan_of_a_primary_that_a_standby_hears_from_is_refused(topology: Topology, limits: Limits, expected: list[str]) -> None:
    found = [blocker for blocker in plan_failover(topology, "", limits).blockers if blocker.reason == "primary_out_of_sight"]
    assert [blocker.host for blocker in found] == expected


def test_plan_whose_fence_ends_another_host_than_the_one_that_is_heard_is_refused() -> None:
    topology = change(hears(down(WITHOUT, "pg3", states.UNREACHABLE), "pg2", sender="192.0.2.99"), "pg2", upstream=Upstream())
    plan = plan_failover(topology, "", FENCE)
    assert ("primary_out_of_sight", "192.0.2.99 port 5432") in reasons(plan.blockers)


def test_plan_past_a_cascades_parent_and_the_primary_out_of_reach_fences_both() -> None:
    """The child that is left names its parent, and the primary behind that may be alive."""
    topology = down(down(CASCADE, "pg1", states.UNREACHABLE), "pg2", states.UNREACHABLE)
    assert reasons(plan_failover(topology, "", LIMITS).blockers) == [("not_fenced", "pg1"), ("not_fenced", "pg2")]
    assert plan_failover(topology, "", FENCE).switch_off == ("pg1", "pg2")
    notes = plan_failover(topology, "", ACCEPT).notes
    assert [note for note in notes if "NOT fenced" in note] == [
        f"{host} was NOT fenced: keep it off until start_new_standby.yml has run" for host in ("pg1", "pg2")
    ]


def test_plan_past_a_cascades_parent_that_is_down_waits_for_the_primary_that_is_starting() -> None:
    starting = down(down(CASCADE, "pg1", states.STARTING, wal_end_lsn="0/9002000"), "pg2")
    assert reasons(plan_failover(starting, "", LIMITS).blockers) == [("primary_starting", "pg1")]
    dead = plan_failover(change(starting, "pg1", state=states.CRASHED), "", LIMITS)
    assert (dead.source, dead.target, dead.fence, dead.lost_bytes, dead.blockers) == ("pg1", "pg3", ("pg1",), 8192, ())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, [("primary_starting", "pg1")], id="on the newest timeline, whomever the standbys name"),
        pytest.param({"timeline": 0}, [("primary_starting", "pg1")], id="its timeline is unknown"),
        pytest.param({"standby_signal": True}, [], id="it comes up as a standby"),
        pytest.param({"state": states.CRASHED}, [], id="it is not starting"),
    ],
)
def test_plan_waits_for_whoever_is_starting_to_accept_writes(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    """pg2 was fenced by a run that was cut off, and pg3 follows it."""
    topology = change(down(down(CASCADE, "pg1", states.STARTING), "pg2"), "pg2", fenced=True)
    plan = plan_failover(change(topology, "pg1", **changes), "", LIMITS)
    assert (plan.source, reasons(plan.blockers)) == ("pg2", expected)


def test_plan_does_not_wait_for_a_starting_primary_that_a_role_change_left_behind() -> None:
    topology = down(down(SECOND, "pg2"), "pg1", states.STARTING, standby_signal=False, timeline=1, timeline_history="")
    plan = plan_failover(topology, "", LIMITS)
    assert (plan.source, plan.target, plan.fence, plan.blockers) == ("pg2", "pg3", ("pg1", "pg2"), ())
    # Whoever promoted pg2 by hand beside a pg1 that went on writing hears of that here.
    assert [note for note in plan.notes if note.startswith("pg1 wrote up to 67108864 bytes of WAL on timeline 1 that pg3 never had")]
    unsaid: list[dict[str, Any]] = [{"wal_end_lsn": "0/5000000"}, {"wal_end_lsn": "0/5002000"}, {"fenced": True, "standby_signal": True}, {"timeline": 0}]
    for changes in unsaid:
        assert not [note for note in plan_failover(change(topology, "pg1", **changes), "", LIMITS).notes if "never had" in note], changes


@pytest.mark.parametrize("state", [states.STOPPED, states.CRASHED])
def test_plan_after_an_ordinary_death_has_nothing_to_say_of_branches(state: str) -> None:
    assert not [note for note in plan_failover(down(cluster(), "pg1", state), "", LIMITS).notes if "never had" in note]


def test_plan_past_whoever_handed_the_role_on_and_another_out_of_reach_fences_both() -> None:
    """pg2 was primary, and a run that died had promoted pg1 before pg3 was re-pointed: pg3 still names pg2."""
    topology = down(down(cluster(primary="pg2"), "pg1", states.UNREACHABLE), "pg2", states.UNREACHABLE)
    plan = plan_failover(topology, "", LIMITS)
    assert (plan.source, reasons(plan.blockers)) == ("pg2", [("not_fenced", "pg1"), ("not_fenced", "pg2")])
    assert [blocker.problem for blocker in plan.blockers] == [
        "cannot be reached, so it cannot be fenced, and it may be the primary", "the old primary cannot be reached, so it cannot be fenced",
    ]  # fmt: skip
    assert plan_failover(topology, "", FENCE).switch_off == ("pg1", "pg2")


def test_plan_with_a_fence_command_switches_off_a_machine_that_does_not_run() -> None:
    """It may be frozen, and thaw."""
    frozen = change(down(cluster(), "pg1", states.UNREACHABLE), "pg1", problem="its machine is not running")
    plan = plan_failover(frozen, "", FENCE)
    assert (plan.blockers, plan.switch_off, plan.target) == ((), ("pg1",), "pg2")
    assert reasons(plan_failover(frozen, "", LIMITS).blockers) == [("not_fenced", "pg1")]


def test_plan_with_a_fence_command_that_does_not_run_for_a_host_outside_the_run_is_refused() -> None:
    outside = change(down(cluster(), "pg1", states.UNREACHABLE), "pg1", problem=states.OUTSIDE_RUN)
    plan = plan_failover(outside, "", FENCE)
    assert (reasons(plan.blockers), plan.switch_off) == ([("not_fenced", "pg1")], ())
    assert plan.blockers[0].hint.startswith("Repeat without --limit. ")


def test_plan_past_a_living_cascades_parent_names_all_that_must_be_off() -> None:
    """The parent that is heard is a standby: switched off alone it is silent, and the primary behind it goes on."""
    topology = hears(down(down(CASCADE, "pg1", states.UNREACHABLE), "pg2", states.UNREACHABLE), "pg3", sender="pg2")
    (blocker,) = plan_failover(topology, "", ACCEPT).blockers
    assert "switch it off, and pg1 too, which may be the primary behind it" in blocker.hint
    (alone,) = plan_failover(hears(OUT_OF_REACH, "pg2"), "", ACCEPT).blockers
    assert "switch it off, then repeat" in alone.hint


@pytest.mark.parametrize(("state", "expected"), [(states.ABSENT, [("not_fenced", "pg1")]), (states.CRASHED, [])])
def test_plan_asks_about_a_listener_at_the_port_of_a_primary_whose_files_are_gone(state: str, expected: list[tuple[str, str]]) -> None:
    """Beside files that say that the server is down it is somebody else, a pooler for one."""
    topology = change(down(cluster(), "pg1", state), "pg1", port_taken_by="a listener")
    assert reasons(plan_failover(topology, "", LIMITS).blockers) == expected
    assert plan_failover(topology, "", ACCEPT).blockers == ()


@pytest.mark.parametrize("word", ["yes", "true", "Accept", "accept "])
def test_plan_takes_no_other_word_for_acceptance(word: str) -> None:
    plan = plan_failover(down(cluster(), "pg1", states.UNREACHABLE), "", Limits(unfenced=word))
    assert reasons(plan.blockers) == [("not_fenced", "pg1")]


NO_TIE = {"receiver": Receiver(), "upstream": Upstream()}


def test_plan_without_a_known_primary_asks_for_acceptance() -> None:
    topology = change(down(down(cluster(), "pg1", states.UNREACHABLE), "pg3", states.UNREACHABLE), "pg2", **NO_TIE)
    assert reasons(plan_failover(topology, "", LIMITS).blockers) == [("old_primary_unknown", "main")]
    accepted = plan_failover(topology, "", ACCEPT)
    assert (accepted.blockers, accepted.source, accepted.target) == ((), "", "pg2")
    assert "the old primary was NOT fenced: keep it off until start_new_standby.yml has run" in accepted.notes


FENCED = change(DEAD, "pg1", standby_signal=True, role="standby", fenced=True)


@pytest.mark.parametrize(
    ("topology", "limits", "expected"),
    [
        pytest.param(FENCED, LIMITS, [], id="a run that was cut off after the fence goes on"),
        pytest.param(down(FENCED, "pg3", states.STOPPED), LIMITS, [], id="a standby that is down was seen"),
        pytest.param(
            down(DEAD, "pg3", states.UNREACHABLE), LIMITS, [("not_fenced", "pg3")],
            id="nor need it have been fenced: a run accepted that it was out of reach, and died before it had re-pointed the one that is left",
        ),
        pytest.param(
            down(change(DEAD, "pg3", member={"priority": 0, "initial_role": PRIMARY}), "pg3", states.UNREACHABLE), LIMITS, [("not_fenced", "pg3")],
            id="the first primary needs no priority",
        ),
        pytest.param(
            down(FENCED, "pg3", states.UNREACHABLE), LIMITS, [("not_fenced", "pg3")], id="fenced before: the one out of sight may be primary"
        ),
        pytest.param(
            change(down(FENCED, "pg3", states.UNREACHABLE), "pg1", fenced=False), LIMITS, [("not_fenced", "pg3")], id="it would come up as a standby"
        ),
        pytest.param(
            change(down(FENCED, "pg3", states.UNREACHABLE), "pg1", standby_signal=False), LIMITS, [("not_fenced", "pg3")], id="only the fence's note"
        ),
        pytest.param(down(FENCED, "pg3", states.UNREACHABLE), ACCEPT, [], id="accepted"),
        pytest.param(
            down(change(FENCED, "pg3", member={"priority": 0}), "pg3", states.UNREACHABLE), LIMITS, [], id="one that is never promoted cannot be"
        ),
    ],
)
def test_plan_asks_about_whom_it_cannot_see_for_it_may_have_taken_over(
    topology: Topology, limits: Limits, expected: list[tuple[str, str]]
) -> None:
    assert reasons(plan_failover(topology, "", limits).blockers) == expected


def handing_over(target: str, hosts: tuple[str, ...] = ("pg1", "pg2", "pg3"), *, phase: str = "armed") -> Topology:
    """Return the cluster in the window of a switchover from pg1: it is stopped and would start as the target's standby."""
    tie = Upstream(the(cluster(hosts), target).member.address, 5432)
    note = replace(pending("switchover", "pg1", target), phase=phase)
    return down(cluster(hosts), "pg1", states.STOPPED, standby_signal=True, role="standby", upstream=tie, pending=note)


@pytest.mark.parametrize(
    ("topology", "limits", "again"),
    [
        pytest.param(DEAD, LIMITS, False, id="it was seen dead"),
        pytest.param(down(cluster(), "pg1", states.STOPPED), LIMITS, False, id="it was seen stopped"),
        pytest.param(down(cluster(), "pg1", states.UNRESPONSIVE), LIMITS, True, id="its server does not answer, and its sessions may go on"),
        pytest.param(down(cluster(), "pg1", states.STARTING), ACCEPT, True, id="it is coming up"),
        pytest.param(down(cluster(), "pg1", states.UNREACHABLE), FENCE, True, id="it is switched off first"),
        pytest.param(down(cluster(), "pg1", states.UNREACHABLE), ACCEPT, False, id="somebody has said that it is off"),
        pytest.param(handing_over("pg3"), LIMITS, True, id="its hand-over may have lost its controller and go on"),
        pytest.param(handing_over("pg3", phase="promoting"), LIMITS, True, id="the same behind the stop"),
        pytest.param(down(cluster(), "pg1", pending=pending("failover", "pg3", "pg1")), LIMITS, False, id="its own promotion was not proven"),
    ],
)
def test_plan_is_made_again_behind_the_fence_where_the_old_primary_could_write_until_then(topology: Topology, limits: Limits, again: bool) -> None:
    assert plan_failover(topology, "", limits).look_again is again


@pytest.mark.parametrize(
    ("phase", "changes", "wanted", "expected"),
    [
        pytest.param("promoting", {}, "", "pg3", id="its target, which it may have told to promote"),
        pytest.param("armed", {}, "", "pg2", id="nobody was told yet"),
        pytest.param("promoting", {"receive_lsn": "0/8000000", "replay_lsn": "0/8000000"}, "", "pg2", id="its target lacks WAL, so it was not told"),
        pytest.param("promoting", {"member": {"priority": 0}}, "", "pg2", id="its target may never be primary any more"),
        pytest.param("promoting", {"state": states.STOPPED}, "", "pg2", id="its target is down"),
    ],
)
def test_plan_behind_a_hand_over_takes_its_target_among_equals(phase: str, changes: dict[str, Any], wanted: str, expected: str) -> None:
    assert plan_failover(change(handing_over("pg3", phase=phase), "pg3", **changes), wanted, LIMITS).target == expected


TOLD = change(DEAD, "pg3", pending=replace(pending("failover", "pg1", "pg3"), phase="promoting"))


@pytest.mark.parametrize(
    ("topology", "wanted", "target", "fence", "blockers"),
    [
        pytest.param(handing_over("pg3", phase="promoting"), "pg2", "pg2", ("pg1",), [("promotion_under_way", "pg3")], id="by a hand-over"),
        pytest.param(down(handing_over("pg3", phase="promoting"), "pg3", states.UNRESPONSIVE), "", "pg2", ("pg1", "pg3"), [], id="by one, and hangs"),
        pytest.param(handing_over("pg3", phase="armed"), "pg2", "pg2", ("pg1",), [], id="by nobody yet"),
        pytest.param(TOLD, "", "pg3", ("pg1",), [], id="by a failover: it is told again"),
        pytest.param(TOLD, "pg2", "pg2", ("pg1",), [("promotion_under_way", "pg3")], id="by a failover, another one is named"),
        pytest.param(
            change(TOLD, "pg3", receive_lsn="0/8000000", replay_lsn="0/8000000"), "", "pg2", ("pg1",), [("promotion_under_way", "pg3")],
            id="by a failover, another one has more WAL",
        ),
        pytest.param(down(TOLD, "pg3", states.UNRESPONSIVE), "", "pg2", ("pg1", "pg3"), [], id="by a failover, and hangs: it is fenced"),
        pytest.param(down(TOLD, "pg3", states.CRASHED), "", "pg2", ("pg1",), [], id="by a failover, and its next start forgets it"),
    ],
)
def test_plan_beside_a_standby_that_was_told_to_promote(
    topology: Topology, wanted: str, target: str, fence: tuple[str, ...], blockers: list[tuple[str, str]]
) -> None:
    plan = plan_failover(topology, wanted, LIMITS)
    assert (plan.target, plan.fence, reasons(plan.blockers)) == (target, fence, blockers)
    assert plan.look_again is (len(fence) > 1 or (topology is not TOLD and the(topology, "pg1").pending.operation == "switchover"))


@pytest.mark.parametrize(
    ("hosts", "wanted", "expected"),
    [
        pytest.param(("pg1", "pg2", "pg3"), "", (FINISH, "pg1", "pg3", []), id="the others are re-pointed"),
        pytest.param(("pg1", "pg3"), "", (FINISH, "pg1", "pg3", []), id="there are no others"),
        pytest.param(("pg1", "pg2", "pg3"), "pg3", (FINISH, "pg1", "pg3", []), id="it was to be promoted"),
        pytest.param(("pg1", "pg2", "pg3"), "pg2", (TAKE_OVER, "pg3", "", [("primary_alive", "pg3")]), id="another one was"),
    ],
)
def test_plan_behind_the_fence_finishes_with_whom_the_hand_over_has_promoted_meanwhile(
    hosts: tuple[str, ...], wanted: str, expected: tuple[str, str, str, list[tuple[str, str]]]
) -> None:
    before = handing_over("pg3", hosts)
    first = plan_failover(before, wanted, LIMITS)
    assert (first.action, first.source, first.fence, first.look_again, first.blockers) == (TAKE_OVER, "pg1", ("pg1",), True, ())
    left_at = f"1\t{NOW}\tno recovery target specified\n"
    promoted = {"role": PRIMARY, "timeline": 2, "timeline_history": left_at, "standby_signal": False, "current_lsn": "0/9000200"}
    again = plan_failover(change(change(before, "pg1", fenced=True, upstream=Upstream()), "pg3", **promoted), wanted, LIMITS, first.source)
    assert (again.action, again.source, again.target, reasons(again.blockers)) == expected
    assert (again.fence, again.left) == ((), ())


def test_plan_behind_the_fence_does_not_finish_with_the_old_primary() -> None:
    """Where somebody started it read-write behind the fence, it is no new one."""
    assert reasons(plan_failover(cluster(timeline=2), "", LIMITS, "pg1").blockers) == [("primary_alive", "pg1")]


def test_plan_behind_the_fence_goes_on_from_what_the_one_before_it_knew() -> None:
    """pg1 hung, pg2 is out of sight, pg3 streams from it and pg4 from pg1. The fence takes from pg1's files what said that it was the primary."""
    four = cluster(("pg1", "pg2", "pg3", "pg4"), upstreams={"pg3": "pg2"})
    before = hears(down(down(four, "pg1", states.UNRESPONSIVE), "pg2", states.UNREACHABLE), "pg3", sender="pg2")
    first = plan_failover(before, "", ACCEPT)
    assert (first.source, first.fence, first.look_again, first.blockers) == ("pg1", ("pg1",), True, ())
    fenced = change(change(before, "pg1", state=states.STOPPED, standby_signal=True, fenced=True, upstream=Upstream()), "pg4", receiver=Receiver())
    again = plan_failover(fenced, "", ACCEPT, first.source)
    assert (again.source, again.target, again.blockers) == ("pg1", first.target, ())
    lost = change(fenced, "pg1", state=states.UNREACHABLE)
    assert plan_failover(lost, "", ACCEPT, first.source).blockers, "a host that was lost since is no longer known to be down"


def test_plan_beside_a_dead_primary_switches_off_whom_it_cannot_see() -> None:
    plan = plan_failover(down(DEAD, "pg2", states.UNREACHABLE), "", FENCE)
    assert (plan.blockers, plan.fence, plan.switch_off, plan.target) == ((), ("pg1",), ("pg2",), "pg3")
    accepted = plan_failover(down(DEAD, "pg2", states.UNREACHABLE), "", ACCEPT)
    assert (accepted.blockers, accepted.switch_off) == ((), ())
    assert "pg2 was NOT fenced: keep it off until start_new_standby.yml has run" in accepted.notes


def test_plan_fences_everything_that_would_come_up_read_write() -> None:
    # pg1 was primary long ago and was never fenced; pg2 came after it and just died; pg3 follows pg2.
    topology = down(down(cluster(primary="pg2", timeline=2), "pg2"), "pg1")
    topology = change(topology, "pg1", standby_signal=False, role=PRIMARY, timeline=1, timeline_history="")
    plan = plan_failover(topology, "", LIMITS)
    assert (plan.source, plan.target, plan.fence, plan.blockers) == ("pg2", "pg3", ("pg1", "pg2"), ())


def test_plan_fences_again_what_a_run_that_was_cut_off_had_fenced() -> None:
    assert plan_failover(FENCED, "", LIMITS).fence == ("pg1",)


def test_plan_leaves_a_standby_that_is_down_unfenced() -> None:
    assert plan_failover(down(DEAD, "pg3", states.STOPPED), "", LIMITS).fence == ("pg1",)


def test_plan_does_not_promote_a_standby_that_follows_the_primary_before_the_last() -> None:
    topology = down(FENCED, "pg2", timeline=2, timeline_history=HISTORIES[2], standby_signal=False)
    plan = plan_failover(topology, "", LIMITS)
    assert (plan.source, plan.target, plan.fence) == ("pg2", "pg3", ("pg2",))
    assert reasons(plan.blockers) == [("behind_on_timeline", "pg3")]
    assert plan.lost_bytes is None


# -- what is lost -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "limits", "lost", "expected"),
    [
        pytest.param({}, LIMITS, 0, [], id="level"),
        pytest.param({"wal_end_lsn": "0/8000000"}, LIMITS, 0, [], id="the dead primary is behind"),
        pytest.param({"wal_end_lsn": "0/A000000"}, LIMITS, 16 * MIB, [], id="at the limit"),
        pytest.param({"wal_end_lsn": "0/A002000"}, LIMITS, 16 * MIB + 8192, [("data_loss", "pg2")], id="a page over the limit"),
        pytest.param({"wal_end_lsn": "0/A002000"}, Limits(accept_data_loss_bytes=16 * MIB + 8192), 16 * MIB + 8192, [], id="accepted"),
        pytest.param({"wal_end_lsn": "0/9002000"}, Limits(max_lag_bytes=0), 8192, [("data_loss", "pg2")], id="a limit of nothing"),
        pytest.param({"wal_end_lsn": "1/0"}, Limits(accept_data_loss_bytes=1), 0xF7000000, [("data_loss", "pg2")], id="accepted too little"),
        pytest.param({"wal_end_lsn": ""}, LIMITS, None, [], id="its WAL cannot be read"),
        pytest.param({"wal_end_lsn": "0/9002000", "timeline": 0}, LIMITS, 8192, [], id="its timeline is unknown"),
    ],
)
def test_plan_weighs_the_wal_that_only_the_dead_primary_has(
    changes: dict[str, Any], limits: Limits, lost: Optional[int], expected: list[tuple[str, str]]
) -> None:
    plan = plan_failover(change(DEAD, "pg1", **changes), "pg2", limits)
    assert (plan.lost_bytes, reasons(plan.blockers)) == (lost, expected)


ALLOW = "touch boot_guard/allow in the state directory of pg1, which is fenced, start it (it opens read-only), then failover.yml -e pg_failover_unfenced="


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        pytest.param(DEAD, "Instead start pg1 again. ", id="it is not fenced"),
        pytest.param(FENCED, f"Instead {ALLOW}accept. Or ", id="it is, and its boot guard would refuse"),
    ],
)
@pytest.mark.parametrize("changes", [{"wal_end_lsn": "0/F000000"}, {"timeline": 2, "standby_signal": False}])
def test_hint_to_start_the_dead_primary_says_how(topology: Topology, expected: str, changes: dict[str, Any]) -> None:
    (blocker,) = plan_failover(change(topology, "pg1", **changes), "", LIMITS).blockers
    assert blocker.hint.startswith(expected)


def test_plan_weighs_the_wal_of_a_standby_that_is_down() -> None:
    topology = down(DEAD, "pg3", states.STOPPED, wal_end_lsn="0/F000000")
    plan = plan_failover(topology, "", LIMITS)
    assert [(blocker.reason, blocker.problem) for blocker in plan.blockers] == [("data_loss", "lacks WAL that is safe on pg3")]


@pytest.mark.parametrize(
    ("wanted", "limits", "expected"),
    [
        pytest.param("", LIMITS, [], id="the most advanced is taken"),
        pytest.param("pg3", LIMITS, [], id="or named"),
        pytest.param("pg2", LIMITS, [("not_most_advanced", "pg2")], id="one that is behind is refused"),
        pytest.param("pg2", Limits(accept_data_loss_bytes=255), [("not_most_advanced", "pg2")], id="accepted a byte too little"),
        pytest.param("pg2", Limits(accept_data_loss_bytes=256), [], id="accepted"),
    ],
)
def test_plan_takes_the_most_advanced_standby(wanted: str, limits: Limits, expected: list[tuple[str, str]]) -> None:
    plan = plan_failover(change(DEAD, "pg3", replay_lsn="0/9000100"), wanted, limits)
    assert (plan.target, reasons(plan.blockers)) == (wanted or "pg3", expected)


@pytest.mark.parametrize(
    "why",
    [
        pytest.param({"replay_paused": True}, id="paused"),
        pytest.param({"replay_delay_ms": 60000}, id="delayed"),
        pytest.param({"member": {"priority": 0}}, id="priority 0"),
    ],
)
@pytest.mark.parametrize(
    ("position", "limits", "expected"),
    [
        pytest.param("0/A000000", LIMITS, [], id="within the limit"),
        pytest.param("0/A000001", LIMITS, [("not_most_advanced", "pg2")], id="over the limit"),
        pytest.param("0/A000001", Limits(accept_data_loss_bytes=16 * MIB + 1), [], id="accepted"),
    ],
)
def test_plan_weighs_the_wal_of_a_standby_that_cannot_be_promoted(
    why: dict[str, Any], position: str, limits: Limits, expected: list[tuple[str, str]]
) -> None:
    plan = plan_failover(change(DEAD, "pg3", receive_lsn=position, **why), "", limits)
    assert (plan.target, reasons(plan.blockers)) == ("pg2", expected)
    assert any(note.startswith("pg3 holds ") for note in plan.notes)


def test_plan_refuses_a_named_standby_whose_position_is_unknown_beside_one_that_is_known() -> None:
    topology = change(DEAD, "pg2", receive_lsn="", replay_lsn="")
    assert reasons(plan_failover(topology, "pg2", LIMITS).blockers) == [("still_reading", "pg2"), ("not_most_advanced", "pg2")]
    assert plan_failover(topology, "", LIMITS).target == "pg3"


def test_plan_waits_for_a_standby_that_still_reads_its_own_wal() -> None:
    """It was just started, and nobody knows yet how much it has. One that cannot be promoted is not waited for."""
    topology = change(DEAD, "pg3", receive_lsn="", replay_lsn="0/8000000")
    assert reasons(plan_failover(topology, "", LIMITS).blockers) == [("still_reading", "pg3")]
    assert plan_failover(change(topology, "pg3", replay_delay_ms=3_600_000), "", LIMITS).blockers == ()


def test_plan_counts_the_replay_where_the_receive_lsn_fell_back() -> None:
    # pg2 was restarted after the primary died: its receive LSN is the segment's start, its replay LSN is not.
    topology = change(change(DEAD, "pg2", receive_lsn="0/9000000", replay_lsn="0/9000200"), "pg3", receive_lsn="0/9000100", replay_lsn="0/9000100")
    assert plan_failover(topology, "", LIMITS).target == "pg2"


# -- refusals -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "wanted", "expected"),
    [
        pytest.param(cluster(), "", [("primary_alive", "pg1")], id="the primary is healthy"),
        pytest.param(cluster(), "pg2", [("primary_alive", "pg1")], id="target named"),
        pytest.param(cluster(timeline=2), "", [("primary_alive", "pg1")], id="healthy after an earlier failover"),
        pytest.param(down(cluster(timeline=2), "pg3"), "", [("primary_alive", "pg1")], id="a standby is down"),
        pytest.param(change(cluster(), "pg3", receiver=Receiver()), "", [("primary_alive", "pg1")], id="a standby is astray, nothing was promoted yet"),
        pytest.param(
            change(cluster(primary="pg2", timeline=2), "pg2", pending=pending("failover", "pg1", "pg2")),
            "",
            [("primary_alive", "pg2")],
            id="the old primary is back: the note is history",
        ),
        pytest.param(
            change(cluster(PAIR), "pg2", role=PRIMARY), "", [("two_primaries", "pg1"), ("two_primaries", "pg2")], id="two primaries"
        ),
        pytest.param(DEAD, "pg9", [("unknown_host", "pg9")], id="unknown target"),
        pytest.param(DEAD, "pg1", [("not_a_standby", "pg1")], id="the dead primary itself"),
        pytest.param(down(DEAD, "pg2", states.STOPPED), "pg2", [("not_a_standby", "pg2")], id="a standby that is down"),
        pytest.param(down(DEAD, "pg2", states.UNREACHABLE), "pg2", [("not_a_standby", "pg2"), ("not_fenced", "pg2")], id="a standby out of sight"),
        pytest.param(down(down(cluster(PAIR), "pg1"), "pg2"), "", [("no_candidate", "main")], id="no standby runs"),
        pytest.param(
            change(down(cluster(PAIR), "pg1"), "pg2", member={"priority": 0}), "", [("no_candidate", "main"), ("priority_zero", "pg2")],
            id="only priority 0",
        ),
        pytest.param(change(DEAD, "pg2", member={"priority": 0}), "pg2", [("priority_zero", "pg2")], id="priority 0 named"),
        pytest.param(change(DEAD, "pg2", replay_paused=True), "pg2", [("replay_paused", "pg2")], id="paused, named"),
        pytest.param(change(DEAD, "pg2", replay_delay_ms=1), "pg2", [("replay_delayed", "pg2")], id="delayed, named"),
        pytest.param(change(DEAD, "pg1", system_identifier=OTHER_SYSTEM), "", [("foreign_system", "pg1")], id="two clusters under one name"),
        pytest.param(change(DEAD, "pg1", timeline=2), "", [("behind_on_timeline", "pg2")], id="the dead primary is on a newer timeline"),
        pytest.param(
            change(DEAD, "pg3", timeline=2, timeline_history=HISTORIES[2]), "pg2", [("behind_on_timeline", "pg2")], id="a sibling is too"
        ),
        pytest.param(
            change(cluster(timeline=2), "pg3", timeline=3, timeline_history=HISTORIES[3]),
            "",
            [("stale_primary", "pg1")],
            id="an old primary came back: the others are not pointed at it",
        ),
    ],
)
def test_plan_refuses(topology: Topology, wanted: str, expected: list[tuple[str, str]]) -> None:
    plan = plan_failover(topology, wanted, LIMITS)
    assert (plan.action, reasons(plan.blockers)) == (TAKE_OVER, expected)


def test_refusal_of_a_healthy_primary_names_the_playbook_for_planned_changes() -> None:
    (blocker,) = plan_failover(cluster(), "", LIMITS).blockers
    assert "switchover.yml" in blocker.hint


# -- a failover that was cut off ----------------------------------------------------------------------------------------------

PROMOTED = change(down(cluster(primary="pg2", timeline=2), "pg1", standby_signal=True), "pg2", pending=pending("failover", "pg1", "pg2"))
ASTRAY = {"receiver": Receiver(), "upstream": Upstream("192.0.2.1", 5432), "timeline": 1, "timeline_history": ""}


@pytest.mark.parametrize(
    ("topology", "wanted", "source"),
    [
        pytest.param(PROMOTED, "", "pg1", id="promoted, the note is there"),
        pytest.param(PROMOTED, "pg2", "pg1", id="the same target named"),
        pytest.param(change(PROMOTED, "pg3", **ASTRAY), "", "pg1", id="a sibling still follows the old primary"),
        pytest.param(change(down(cluster(primary="pg2", timeline=2), "pg1"), "pg3", **ASTRAY), "", "", id="the same without a note"),
    ],
)
def test_plan_finishes_a_failover_that_was_cut_off(topology: Topology, wanted: str, source: str) -> None:
    plan = plan_failover(topology, wanted, LIMITS)
    assert (plan.action, plan.source, plan.target, plan.blockers, plan.fence) == (FINISH, source, "pg2", (), ())


@pytest.mark.parametrize(
    ("topology", "wanted"),
    [
        pytest.param(PROMOTED, "pg3", id="another target named"),
        pytest.param(change(PROMOTED, "pg2", pending=pending("failover", "pg2", "pg3")), "", id="the note is of another failover"),
        pytest.param(change(PROMOTED, "pg2", pending=pending("switchover", "pg1", "pg2")), "", id="the note is of a switchover"),
        pytest.param(change(cluster(primary="pg2", timeline=2), "pg3", receiver=Receiver()), "", id="a standby is cut off from it"),
    ],
)
def test_plan_with_a_living_primary_refuses_anything_else(topology: Topology, wanted: str) -> None:
    assert reasons(plan_failover(topology, wanted, LIMITS).blockers) == [("primary_alive", "pg2")]


def test_plan_of_a_cascade_promotes_the_middle() -> None:
    topology = down(cluster(upstreams={"pg3": "pg2"}), "pg1")
    plan = plan_failover(topology, "", LIMITS)
    assert (plan.source, plan.target, plan.blockers) == ("pg1", "pg2", ())


def test_plan_leaves_out_a_standby_that_is_ahead_and_may_not_be_promoted() -> None:
    further = format_lsn(parse_lsn(the(DEAD, "pg2").position_lsn) + 8192)
    member = replace(the(DEAD, "pg3").member, priority=0)
    topology = change(DEAD, "pg3", receive_lsn=further, replay_lsn=further, member=member)
    plan = plan_failover(topology, "", LIMITS)
    assert (plan.target, plan.left, plan.blockers) == ("pg2", ("pg3",), ())


def test_notes_name_a_standby_that_could_not_be_observed() -> None:
    plan = plan_failover(down(DEAD, "pg3", states.UNREACHABLE), "", LIMITS)
    assert "pg3 could not be observed; it may hold more WAL than pg2" in plan.notes
    assert the(DEAD, "pg3").host not in plan.fence
