# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of who stays primary, who is asked about, and how the others come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.heal import (
    NOTHING_TO_HEAL,
    REPAIR,
    RESOLVE,
    OwnCommits,
    after_fence,
    forks,
    own_commits_from,
    parted_at,
    plan_heal,
    rivals,
    way_back,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import FOLLOW, NOTHING, RECLONE, REFUSE, REWIND, START, plan_given_up
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    FORK_OF_2,
    HISTORIES,
    OTHER_HISTORY_OF_2,
    OTHER_SYSTEM,
    change,
    cluster,
    down,
    reasons,
    the,
)

ALONE = {
    "role": PRIMARY, "standby_signal": False, "receiver": Receiver(), "upstream": Upstream(), "current_lsn": "0/9100000", "receive_lsn": "",
    "replay_lsn": "",
}  # fmt: skip
# pg2 was promoted to timeline 2 while pg1 lived; pg3 follows pg1 still, and has not come to where they parted.
SPLIT = change(change(cluster(), "pg2", **ALONE, timeline=2, timeline_history=HISTORIES[2]), "pg3", receive_lsn="0/4000000", replay_lsn="0/4000000")
# Both were promoted from timeline 1: at different LSNs, and at the same one.
TWINS = change(change(SPLIT, "pg1", timeline=2, timeline_history=OTHER_HISTORY_OF_2), "pg3", state=states.STOPPED)
ALIKE = change(SPLIT, "pg1", timeline=2, timeline_history=HISTORIES[2])
NONE, SOME, UNKNOWN = 0, 3, None


def commits(host: str, other: str, transactions: Optional[int]) -> OwnCommits:
    if transactions is None:
        return OwnCommits(host, other, FORK_OF_2, problem="its WAL is gone")
    return OwnCommits(host, other, FORK_OF_2, complete=True, transactions=transactions, first_at="03:00", last_at="03:05", relations=("shop: orders",))


def sides(older: Optional[int], newer: Optional[int]) -> list[OwnCommits]:
    return [commits("pg1", "pg2", older), commits("pg2", "pg1", newer)]


# -- the choice -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "older", "newer", "kept"),
    [
        pytest.param(SPLIT, NONE, NONE, "pg2", id="nobody wrote: the newest timeline"),
        pytest.param(SPLIT, NONE, SOME, "pg2", id="only the newest wrote"),
        pytest.param(SPLIT, NONE, UNKNOWN, "pg2", id="the newest may have written"),
        pytest.param(SPLIT, SOME, NONE, None, id="only the older wrote: the newest would lose it"),
        pytest.param(SPLIT, SOME, SOME, None, id="both wrote"),
        pytest.param(SPLIT, SOME, UNKNOWN, None, id="the older wrote, the newest may have"),
        pytest.param(SPLIT, UNKNOWN, NONE, None, id="the older may have written"),
        pytest.param(SPLIT, UNKNOWN, SOME, None, id="the newest wrote, the older may have"),
        pytest.param(SPLIT, UNKNOWN, UNKNOWN, None, id="nothing is known"),
        *(
            pytest.param(topology, *counts, kept, id=f"{name}: {title}")
            for name, topology in (("one number, two histories", TWINS), ("one number, one history", ALIKE))
            for counts, kept, title in (
                ((NONE, NONE), "pg1", "nobody wrote"),
                ((SOME, NONE), "pg1", "the first wrote"),
                ((NONE, SOME), "pg2", "the second wrote"),
                ((SOME, SOME), None, "both wrote"),
                ((UNKNOWN, NONE), "pg1", "the first may have written"),
                ((UNKNOWN, SOME), None, "the second wrote, the first may have"),
            )
        ),
    ],
)
def test_plan_heal_of_two_primaries_keeps_the_one_that_loses_nothing(
    topology: Topology, older: Optional[int], newer: Optional[int], kept: Optional[str]
) -> None:
    plan = plan_heal(topology, sides(older, newer))
    assert plan.action == RESOLVE
    if kept is None:
        assert reasons(plan.blockers) == [("uncertain", "pg1"), ("uncertain", "pg2")]
        assert plan.fence == ()
    else:
        assert plan.blockers == ()
        assert (plan.kept, plan.fence) == (kept, ("pg2" if kept == "pg1" else "pg1",))


def test_plan_heal_without_any_answer_takes_it_for_commits() -> None:
    assert reasons(plan_heal(SPLIT).blockers) == [("uncertain", "pg1"), ("uncertain", "pg2")]


@pytest.mark.parametrize("keep", ["pg1", "pg2"])
@pytest.mark.parametrize("older", [NONE, SOME, UNKNOWN])
@pytest.mark.parametrize("newer", [NONE, SOME, UNKNOWN])
@pytest.mark.parametrize("topology", [pytest.param(SPLIT, id="split"), pytest.param(TWINS, id="twins"), pytest.param(ALIKE, id="alike")])
def test_plan_heal_keeps_the_primary_that_a_person_names(topology: Topology, keep: str, older: Optional[int], newer: Optional[int]) -> None:
    plan = plan_heal(topology, sides(older, newer), keep)
    assert plan.blockers == ()
    assert (plan.kept, plan.fence) == (keep, ("pg2" if keep == "pg1" else "pg1",))
    assert plan.notes[0] == f"{keep} stays primary: pg_heal_keep names it"


def test_plan_heal_of_two_primaries_prints_both_sides_and_what_to_type() -> None:
    older, newer = (blocker.message for blocker in plan_heal(SPLIT, sides(SOME, UNKNOWN)).blockers)
    for words in ("pg1: has 3 committed transaction(s) that pg2 lacks", "timeline 1", FORK_OF_2, "from 03:00 to 03:05", "in shop: orders", "followed by pg3"):
        assert words in older
    assert older.endswith("To keep pg1: ansible-playbook heal.yml -e pg_heal_keep=pg1")
    for words in ("pg2: may have committed what pg1 lacks", "timeline 2", "its WAL is gone", "followed by nobody", "-e pg_heal_keep=pg2"):
        assert words in newer


def test_plan_heal_shows_a_few_relations_and_counts_the_rest() -> None:
    many = replace(commits("pg1", "pg2", SOME), relations=tuple(f"shop: t{number}" for number in range(8)))
    message = plan_heal(SPLIT, [many, commits("pg2", "pg1", SOME)]).blockers[0].message
    assert "shop: t4 and 3 more" in message and "shop: t5" not in message


@pytest.mark.parametrize(("count", "said"), [(2, "transaction ids 701, 702;"), (9, "transaction ids 701, 702, 703, 704, 705 and more;")])
def test_plan_heal_shows_the_ids_of_a_few_transactions(count: int, said: str) -> None:
    mine = replace(commits("pg1", "pg2", count), xids=tuple(range(701, 701 + count)))
    assert said in plan_heal(SPLIT, [mine, commits("pg2", "pg1", SOME)]).blockers[0].message


def test_own_commits_that_were_counted_in_part_say_at_least() -> None:
    assert "at least 3" in replace(commits("pg1", "pg2", SOME), complete=False).text


def test_plan_heal_of_three_primaries_keeps_the_newest_only_if_neither_other_wrote() -> None:
    trio = change(SPLIT, "pg3", **ALONE, timeline=3, timeline_history=HISTORIES[3])
    pairs = [(a, b) for a in ("pg1", "pg2", "pg3") for b in ("pg1", "pg2", "pg3") if a != b]
    quiet = [commits(host, other, NONE) for host, other in pairs]
    assert (plan_heal(trio, quiet).kept, plan_heal(trio, quiet).fence) == ("pg3", ("pg1", "pg2"))
    one_wrote = [commits(host, other, SOME if host == "pg2" else NONE) for host, other in pairs]
    assert len(plan_heal(trio, one_wrote).blockers) == 3


# -- what speaks against a choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "keep", "expected"),
    [
        pytest.param(down(cluster(), "pg1"), "", [("no_primary", "main")], id="no primary"),
        pytest.param(down(cluster(), "pg1"), "pg2", [("no_primary", "main")], id="no primary, one is named"),
        pytest.param(SPLIT, "pg9", [("unknown_host", "pg9")], id="unknown host"),
        pytest.param(SPLIT, "pg3", [("not_a_primary", "pg3")], id="a standby"),
        pytest.param(cluster(), "pg2", [("not_a_primary", "pg2")], id="a standby of a healthy cluster"),
        pytest.param(change(SPLIT, "pg2", state=states.UNRESPONSIVE), "pg2", [("not_a_primary", "pg2")], id="one that hangs"),
        pytest.param(change(SPLIT, "pg2", system_identifier=OTHER_SYSTEM), "", [("foreign_system", "pg2")], id="another cluster's"),
        pytest.param(down(SPLIT, "pg3", states.UNREACHABLE), "", [("unseen", "pg3")], id="a third that cannot be seen"),
    ],
)
def test_plan_heal_refuses(topology: Topology, keep: str, expected: list[tuple[str, str]]) -> None:
    assert reasons(plan_heal(topology, sides(NONE, NONE), keep).blockers) == expected


def test_plan_heal_with_a_third_out_of_sight_goes_by_the_person() -> None:
    assert plan_heal(down(SPLIT, "pg3", states.UNREACHABLE), sides(SOME, SOME), "pg2").blockers == ()


@pytest.mark.parametrize("state", [states.STOPPED, states.CRASHED])
def test_plan_heal_of_a_primary_beside_a_newer_one_that_is_down_is_a_persons_choice(state: str) -> None:
    """What was promoted last is down: to keep the older one gives it up."""
    stale = down(SPLIT, "pg2", state)
    refused = plan_heal(stale, sides(NONE, NONE))
    assert reasons(refused.blockers) == [("uncertain", "pg1"), ("uncertain", "pg2")]
    assert "start pg2 or run failover.yml" in refused.blockers[1].hint
    plan = plan_heal(stale, sides(SOME, SOME), "pg1")
    assert (plan.action, plan.kept, plan.fence) == (RESOLVE, "pg1", ())
    assert [(each.host, each.from_lsn) for each in plan.given_up] == [("pg2", FORK_OF_2)]


# -- how the others come back ------------------------------------------------------------------------------------------------------------


def ways(topology: Topology, keep: str) -> dict[str, str]:
    return {host: way.action for host, way in plan_heal(topology, sides(SOME, SOME), keep).ways}


@pytest.mark.parametrize(
    ("topology", "keep", "expected"),
    [
        pytest.param(SPLIT, "pg2", {"pg1": REWIND, "pg3": FOLLOW}, id="newest kept, the third follows"),
        pytest.param(change(SPLIT, "pg3", replay_lsn="0/9000000"), "pg2", {"pg1": REWIND, "pg3": REWIND}, id="newest kept, the third has the older's WAL"),
        pytest.param(SPLIT, "pg1", {"pg2": RECLONE, "pg3": NOTHING}, id="older kept"),
        pytest.param(change(SPLIT, "pg1", data_checksums=False), "pg2", {"pg1": RECLONE, "pg3": FOLLOW}, id="no checksums"),
        pytest.param(TWINS, "pg2", {"pg1": RECLONE, "pg3": START}, id="one number, two histories"),
        pytest.param(change(SPLIT, "pg2", timeline_history=""), "pg1", {"pg2": RECLONE, "pg3": NOTHING}, id="history missing"),
    ],
)
def test_plan_heal_says_how_each_node_comes_back(topology: Topology, keep: str, expected: dict[str, str]) -> None:
    if topology is TWINS:
        topology = change(down(SPLIT, "pg3", states.STOPPED, checkpoint_lsn="0/3500000", min_recovery_lsn="0/3500000", wal_end_lsn="0/3500000"), "pg1",
                          timeline=2, timeline_history=OTHER_HISTORY_OF_2)  # fmt: skip
    assert ways(topology, keep) == expected


def test_plan_heal_gives_up_the_standby_of_a_loser_that_histories_do_not_tell_apart() -> None:
    """It has the loser's WAL, and would stream on from the kept one as if nothing had been."""
    address = the(ALIKE, "pg1").member.address
    following = change(
        ALIKE, "pg3", timeline=2, timeline_history=HISTORIES[2], replay_lsn="0/9000000", receiver=Receiver("streaming", address, 5432, "pg3", 2)
    )
    plan = plan_heal(following, sides(SOME, SOME), "pg2")
    assert [(each.host, each.from_lsn) for each in plan.given_up] == [("pg1", FORK_OF_2), ("pg3", FORK_OF_2)]
    assert {host: way.action for host, way in plan.ways} == {"pg1": RECLONE, "pg3": RECLONE}
    assert plan_heal(following, sides(SOME, SOME), "pg1").given_up[0].host == "pg2"


def test_plan_heal_run_again_behind_the_fence_comes_to_the_same() -> None:
    for topology, keep in ((SPLIT, "pg1"), (SPLIT, "pg2"), (ALIKE, "pg1"), (ALIKE, "pg2")):
        first = plan_heal(topology, sides(SOME, SOME), keep)
        again = plan_heal(after_fence(topology, first.fence), sides(SOME, SOME), keep)
        assert again.blockers == ()
        assert (again.kept, again.given_up) == (first.kept, first.given_up)
        assert {host: way.action for host, way in again.ways} == {host: way.action for host, way in first.ways}


def test_after_fence_leaves_one_primary_and_the_fenced_one_armed() -> None:
    later = after_fence(SPLIT, ["pg1"])
    assert later.primary is the(later, "pg2")
    assert the(later, "pg1").fenced and the(later, "pg1").standby_signal and the(later, "pg1").has_server_down


@pytest.mark.parametrize(
    "topology",
    [
        pytest.param(change(SPLIT, "pg2", timeline=1, timeline_history=""), id="both on timeline 1"),
        pytest.param(change(SPLIT, "pg2", timeline_history=""), id="history missing"),
    ],
)
def test_plan_heal_where_nobody_can_tell_where_they_parted_knows_that_something_may_be_lost(topology: Topology) -> None:
    plan = plan_heal(topology, sides(SOME, SOME), "pg1")
    assert [(each.host, each.from_lsn) for each in plan.given_up] == [("pg2", "")]
    way = dict(plan.ways)["pg2"]
    assert (way.action, way.fork_lsn, way.own_wal) == (RECLONE, "", True)


@pytest.mark.parametrize(
    ("changes", "action", "own_wal"),
    [
        pytest.param({}, REFUSE, False, id="it still runs as primary"),
        pytest.param({"state": states.CRASHED}, RECLONE, True, id="down on a newer timeline"),
        pytest.param({"state": states.CRASHED, "system_identifier": OTHER_SYSTEM}, REFUSE, False, id="another cluster's"),
        pytest.param({"state": states.CRASHED, "major": 14}, REFUSE, False, id="another version"),
        pytest.param({"state": states.ABSENT, "system_identifier": "", "major": 0, "timeline": 0}, RECLONE, False, id="gone"),
    ],
)
def test_plan_given_up_copies_anew_what_may_be(changes: dict[str, Any], action: str, own_wal: bool) -> None:
    topology = change(SPLIT, "pg2", **changes)
    for lsn in (FORK_OF_2, ""):
        plan = plan_given_up(the(topology, "pg2"), the(topology, "pg1"), lsn)
        assert (plan.action, plan.fork_lsn, plan.own_wal) == (action, *((lsn, own_wal) if own_wal else ("", False)))


def test_way_back_of_a_node_that_was_not_given_up_is_the_rejoins() -> None:
    later = after_fence(SPLIT, ["pg2"])
    assert way_back(later, "pg2", {}).action == REFUSE  # a newer timeline
    assert way_back(later, "pg2", {"pg2": FORK_OF_2}).fork_lsn == FORK_OF_2


# -- one primary ---------------------------------------------------------------------------------------------------------------------------


def test_plan_heal_of_a_healthy_cluster_has_nothing_to_do() -> None:
    for keep in ("", "pg1"):
        plan = plan_heal(cluster(), (), keep)
        assert (plan.action, plan.kept, plan.notes, plan.blockers, plan.given_up) == (NOTHING_TO_HEAL, "pg1", (), (), ())


@pytest.mark.parametrize(
    ("topology", "way", "note"),
    [
        pytest.param(down(cluster(), "pg2", states.STOPPED), START, "the server does not run", id="down"),
        pytest.param(down(cluster(), "pg2", states.CRASHED, fenced=True), START, "the server does not run", id="fenced"),
        pytest.param(change(cluster(), "pg2", upstream=Upstream("192.0.2.9"), receiver=Receiver()), FOLLOW, "follows the wrong server", id="dead upstream"),
        pytest.param(change(cluster(), "pg1", slots=()), NOTHING, "has no slot for pg2", id="slots gone"),
        pytest.param(change(cluster(), "pg2", fenced=True), NOTHING, "a note says that it is fenced, although it runs", id="a note that is not true"),
        pytest.param(change(cluster(), "pg2", replay_paused=True), NOTHING, "replay is paused", id="replay paused: only said"),
    ],
)
def test_plan_heal_with_one_primary_says_what_it_found_and_how_it_is_mended(topology: Topology, way: str, note: str) -> None:
    plan = plan_heal(topology)
    assert (plan.action, plan.kept, plan.fence, plan.blockers) == (REPAIR, "pg1", (), ())
    assert dict(plan.ways)["pg2"].action == way
    assert any(note in line for line in plan.notes), plan.notes


# -- forks ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "hosts"),
    [
        pytest.param(cluster(), [], id="healthy"),
        pytest.param(down(cluster(), "pg1"), [], id="no primary"),
        pytest.param(down(cluster(), "pg2"), [], id="a standby is down"),
        pytest.param(SPLIT, ["pg1", "pg2"], id="two primaries"),
        pytest.param(down(SPLIT, "pg2"), ["pg1", "pg2"], id="the newer one is down"),
        pytest.param(down(SPLIT, "pg1"), [], id="the older one is down"),
        pytest.param(down(change(SPLIT, "pg2", system_identifier=OTHER_SYSTEM), "pg2"), [], id="another cluster's is down"),
    ],
)
def test_rivals_are_the_primaries_and_what_was_promoted_after_them(topology: Topology, hosts: list[str]) -> None:
    assert [node.host for node in rivals(topology)] == hosts
    assert [host for host in ("pg1", "pg2", "pg3") if forks(topology, host)] == hosts


@pytest.mark.parametrize(
    ("topology", "lsn"),
    [
        pytest.param(SPLIT, FORK_OF_2, id="parent and child"),
        pytest.param(TWINS, "0/4000000", id="two children: the first that left"),
        pytest.param(ALIKE, FORK_OF_2, id="one history: where its timeline begins"),
        pytest.param(change(SPLIT, "pg2", timeline=1, timeline_history=""), "", id="both on timeline 1"),
        pytest.param(change(SPLIT, "pg2", timeline_history="rubbish"), "", id="history cannot be read"),
    ],
)
def test_parted_at_is_where_both_still_had_the_same(topology: Topology, lsn: str) -> None:
    assert parted_at(the(topology, "pg1"), the(topology, "pg2")) == lsn
    assert [fork.lsn for fork in forks(topology, "pg2")] == [lsn]


def test_own_commits_from_an_answer_takes_what_it_knows() -> None:
    answer = {"sides": [{"other": "pg2", "from_lsn": FORK_OF_2, "complete": True, "transactions": 1, "xids": [7], "relations": ["a: b"], "later": 1}]}
    assert own_commits_from("pg1", answer) == (OwnCommits("pg1", "pg2", FORK_OF_2, True, 1, relations=("a: b",), xids=(7,)),)
    assert own_commits_from("pg1", {"failed": True, "msg": "timed out"}) == ()
