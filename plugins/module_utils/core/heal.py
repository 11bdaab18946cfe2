# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What heal does: who stays primary when there are several, who is fenced, how every node comes back, and when a person must choose.

Only a choice that loses no committed transaction is made here. The server that stays is on the newest timeline of the cluster, and no other
one has committed anything since they parted. Everything else is a person's to decide (`pg_heal_keep`), who then sees both sides.
What a server commits between the look and its fence ends the run; that server is down and fenced then, and whoever repeats the playbook has it
come back as any fenced server does, with a report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node, Receiver, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import NOTHING, RejoinPlan, plan_given_up, plan_rejoin
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import parse_history
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems, same_cluster_blockers, shared_past

NOTHING_TO_HEAL = "nothing"  # there is nothing to heal
REPAIR = "repair"  # one primary: the others come back to it
RESOLVE = "resolve"  # one of several primaries stays, or a newer timeline is given up

SHOWN_RELATIONS = 5
SHOWN_XIDS = 5


@dataclass(frozen=True)
class Fork:
    """Two servers that may both have commits of their own: `lsn` is where they parted, empty when that cannot be told."""

    host: str
    other: str
    lsn: str


@dataclass(frozen=True)
class OwnCommits:
    """What `host` committed since it parted from `other` at `from_lsn`.

    Unless `complete`, there may be more than `transactions`, and `problem` says why it is not known. Times are PostgreSQL's texts.
    """

    host: str
    other: str
    from_lsn: str = ""
    complete: bool = False
    transactions: int = 0
    first_at: str = ""
    last_at: str = ""
    relations: tuple[str, ...] = ()
    problem: str = ""
    xids: tuple[int, ...] = ()

    @property
    def none(self) -> bool:
        """Whether it is certain that it committed nothing."""
        return self.complete and self.transactions == 0

    @property
    def text(self) -> str:
        """The count in words."""
        if self.none:
            return "has committed nothing that {0} lacks".format(self.other)
        if self.complete:
            return "has {0} committed transaction(s) that {1} lacks".format(self.transactions, self.other)
        if self.transactions:
            return "has at least {0} committed transaction(s) that {1} lacks".format(self.transactions, self.other)
        return "may have committed what {0} lacks".format(self.other)


@dataclass(frozen=True)
class GivenUp:
    """A node whose own WAL, from `from_lsn` on, is given up although the rules of a rejoin would refuse it or not see it."""

    host: str
    from_lsn: str


@dataclass(frozen=True)
class HealPlan:
    """What is done. `ways` says how each node comes back; empty `blockers` mean that it may be done."""

    action: str
    kept: str = ""
    fence: tuple[str, ...] = ()
    given_up: tuple[GivenUp, ...] = ()
    ways: tuple[tuple[str, RejoinPlan], ...] = ()
    blockers: tuple[Blocker, ...] = ()
    notes: tuple[str, ...] = ()


def own_commits_from(host: str, answer: Mapping[str, Any]) -> tuple[OwnCommits, ...]:
    """Return what pg_divergence answered on a host; nothing when it did not answer."""
    known = {f.name for f in fields(OwnCommits)} - {"host"}
    sides = []
    for side in answer.get("sides") or ():
        values = {key: value for key, value in side.items() if key in known and value is not None}
        values["relations"], values["xids"] = tuple(values.get("relations", ())), tuple(values.get("xids", ()))
        sides.append(OwnCommits(host=host, **values))
    return tuple(sides)


# -- who parted from whom ----------------------------------------------------------------------------------------------------------


def rivals(topology: Topology) -> tuple[Node, ...]:
    """Return the servers between which has to be chosen; empty when there is no such choice.

    They are the running primaries, and the nodes on a newer timeline than all of these: another server was promoted after them.
    """
    primaries = topology.primaries
    if not primaries:
        return ()
    newest = max(node.timeline for node in primaries)
    systems = {node.system_identifier for node in primaries}
    beyond = [
        node for node in topology.nodes if node.timeline > newest and not node.is_running_primary and node.system_identifier in systems
    ]
    return (*primaries, *beyond) if len(primaries) + len(beyond) > 1 else ()


def parted_at(node: Node, other: Node) -> str:
    """Return the LSN from which on the WAL of two servers may differ; empty when it cannot be told.

    Where the histories are the same, both may have been promoted at one LSN, and that is where their timeline begins.
    """
    past = shared_past(node, other)
    if past is None:
        return ""
    if past[1] is not None:
        return format_lsn(past[1])
    history = parse_history(node.timeline_history)
    return format_lsn(history[-1].switch_lsn) if history else ""


def forks(topology: Topology, host: str) -> tuple[Fork, ...]:
    """Return from whom a host parted, and where: what pg_divergence has to look for there."""
    found = rivals(topology)
    here = next((node for node in found if node.host == host), None)
    if here is None:
        return ()
    return tuple(Fork(host, other.host, parted_at(here, other)) for other in found if other.host != host)


def _commits_of(commits: Iterable[OwnCommits], host: str, other: str) -> OwnCommits:
    for each in commits:
        if (each.host, each.other) == (host, other):
            return each
    return OwnCommits(host, other, problem="it was not found out")


# -- who stays -----------------------------------------------------------------------------------------------------------------------


def _certain(topology: Topology, commits: Sequence[OwnCommits]) -> Optional[Node]:
    """Return the primary on the newest timeline that has every commit of all its rivals; None when there is none."""
    found = rivals(topology)
    newest = max(node.timeline for node in found)
    for node in topology.primaries:
        others = [other for other in found if other.host != node.host]
        if node.timeline == newest and all(_commits_of(commits, other.host, node.host).none for other in others):
            return node
    return None


def _typed(host: str) -> str:
    return "ansible-playbook heal.yml -e pg_heal_keep={0}".format(host)


def _followers(topology: Topology, node: Node) -> str:
    names = [each.host for each in topology.standbys if (topology.upstream_of(each) or each).host == node.host]
    return "followed by " + ", ".join(names) if names else "followed by nobody"


def _side(topology: Topology, node: Node, commits: Sequence[OwnCommits]) -> Blocker:
    """Return one side of an uncertain choice: what it has that the others lack, and what to type to keep it."""
    mine = [_commits_of(commits, node.host, other.host) for other in rivals(topology) if other.host != node.host]
    facts = ["timeline {0}".format(node.timeline)]
    for each in mine:
        facts.append("parted from {0} at {1}".format(each.other, each.from_lsn or "an unknown LSN"))
        if each.transactions:
            facts.append("commits from {0} to {1}".format(each.first_at, each.last_at))
        if each.xids:
            shown = ", ".join(str(xid) for xid in each.xids[:SHOWN_XIDS])
            facts.append("transaction ids {0}{1}".format(shown, " and more" if each.transactions > SHOWN_XIDS else ""))
        if each.relations:
            more = len(each.relations) - SHOWN_RELATIONS
            facts.append("in " + ", ".join(each.relations[:SHOWN_RELATIONS]) + (" and {0} more".format(more) if more > 0 else ""))
        if each.problem:
            facts.append(each.problem)
    facts.append(_followers(topology, node))
    if node.is_running_primary:
        hint = "To keep {0}: {1}".format(node.host, _typed(node.host))
    else:
        hint = "To keep what it has: stop {0}, then start {1} or run failover.yml.".format(", ".join(p.host for p in topology.primaries), node.host)
    return Blocker("uncertain", node.host, " and ".join(each.text for each in mine), "; ".join(facts), "one primary that has every commit", hint)


def _uncertain(topology: Topology, commits: Sequence[OwnCommits]) -> tuple[Blocker, ...]:
    return tuple(_side(topology, node, commits) for node in rivals(topology))


def _unseen_blockers(topology: Topology) -> tuple[Blocker, ...]:
    """Return why a choice between primaries is not certain while a node is out of sight."""
    return tuple(
        Blocker(
            "unseen", node.host, "cannot be observed, and it may be one more primary or have a newer timeline", node.problem or "no answer",
            "an answer, or known to be off", "Make it reachable; or switch it off and name the primary that stays with -e pg_heal_keep=HOST.",
        )
        for node in topology.nodes
        if node.state == states.UNREACHABLE
    )


def _keep_blockers(topology: Topology, keep: str) -> tuple[Blocker, ...]:
    node = topology.node(keep)
    names = ", ".join(each.host for each in topology.primaries)
    if node is None:
        return (Blocker("unknown_host", keep, "is not a host of cluster {0}".format(topology.cluster), keep, "one of " + names, "Correct pg_heal_keep."),)
    if not node.is_running_primary:
        hint = "Correct pg_heal_keep; heal.yml promotes nobody, failover.yml and switchover.yml do."
        return (Blocker("not_a_primary", keep, "cannot be kept as primary", node.seen, "one of " + names, hint),)
    return ()


def _refused(blockers: Iterable[Blocker]) -> HealPlan:
    return HealPlan(RESOLVE, blockers=tuple(blockers))


# -- what follows from it ------------------------------------------------------------------------------------------------------------


def _is_alike(node: Node, kept: Node) -> bool:
    """Whether the histories do not tell the two servers apart, so that a rejoin would take all of its WAL for the primary's own."""
    past = shared_past(node, kept)
    return past is None or past[1] is None


def _is_fenced_for(node: Node, kept: Node) -> bool:
    """Whether this is a primary that an earlier run fenced in favour of `kept`, and whose history is the same."""
    return node.fenced and node.has_server_down and not node.upstream.host and node.timeline == kept.timeline and _is_alike(node, kept)


def _given_up(topology: Topology, kept: Node, fence: Sequence[str], *, chosen: bool) -> tuple[GivenUp, ...]:
    """Return the nodes whose WAL a rejoin to `kept` would refuse, or take for the primary's own.

    They are those on a newer timeline, and the fenced ones whose history is the same, each with the standbys that follow it.
    """
    alike = {node.host for node in topology.nodes if node.host in fence and _is_alike(node, kept)}
    if chosen:
        alike |= {node.host for node in topology.others(kept.host) if _is_fenced_for(node, kept)}
    for _round in topology.nodes:
        alike |= {n.host for n in topology.others(kept.host) if (topology.upstream_of(n) or kept).host in alike and n.timeline == kept.timeline}
    found = []
    for node in topology.others(kept.host):
        here = node.state not in (states.UNREACHABLE, states.ABSENT) and node.system_identifier == kept.system_identifier
        if here and (node.timeline > kept.timeline or node.host in alike):
            found.append(GivenUp(node.host, parted_at(node, kept)))
    return tuple(found)


def after_fence(topology: Topology, fence: Iterable[str]) -> Topology:
    """Return the topology as it will be once these servers are fenced."""
    hosts = set(fence)
    nodes = [
        replace(node, state=states.CRASHED, role=states.STANDBY, standby_signal=True, fenced=True, upstream=Upstream(), receiver=Receiver(), senders=())
        if node.host in hosts
        else node
        for node in topology.nodes
    ]
    return replace(topology, nodes=tuple(nodes))


def way_back(topology: Topology, host: str, given_up: Mapping[str, str]) -> RejoinPlan:
    """Return how a node comes back to the one primary; `given_up` maps hosts to the LSN from which on their WAL is given up."""
    node, primary = topology.node(host), topology.primary
    if node is None:
        raise AssertionError("{0} is no host of cluster {1}".format(host, topology.cluster))
    if primary is not None and host in given_up:
        return plan_given_up(node, primary, given_up[host])
    return plan_rejoin(topology, node)


def _resolved(topology: Topology, kept: Node, *, chosen: bool, notes: Sequence[str]) -> HealPlan:
    fence = tuple(node.host for node in topology.primaries if node.host != kept.host)
    given_up = _given_up(topology, kept, fence, chosen=chosen)
    later = after_fence(topology, fence)
    lsns = {each.host: each.from_lsn for each in given_up}
    ways = tuple((node.host, way_back(later, node.host, lsns)) for node in topology.others(kept.host))
    return HealPlan(RESOLVE if fence or given_up else REPAIR, kept.host, fence, given_up, ways, notes=tuple(notes))


def _kept_notes(kept: Node, others: Sequence[Node], commits: Sequence[OwnCommits], *, chosen: bool) -> list[str]:
    """Return why the primary stays, and what each of the others had."""
    why = "pg_heal_keep names it" if chosen else "timeline {0} is the newest, and nobody else has a commit that it lacks".format(kept.timeline)
    notes = ["{0} stays primary: {1}".format(kept.host, why)]
    notes.extend("{0} {1}".format(other.host, _commits_of(commits, other.host, kept.host).text) for other in others)
    return notes


def plan_heal(topology: Topology, commits: Sequence[OwnCommits] = (), keep: str = "") -> HealPlan:
    """Return what heal does with a cluster now. `keep` is the primary that a person chose, empty when nobody did.

    It promotes nobody: without a primary it refuses.
    """
    if not topology.primaries:
        return _refused(problems(topology)[:1])
    wrong = _keep_blockers(topology, keep) if keep else ()
    if not wrong and topology.primary is None:
        wrong = same_cluster_blockers(topology)
    if wrong:
        return _refused(wrong)
    found = rivals(topology)
    if not found:
        return _repair(topology, chosen=bool(keep))
    kept = topology.node(keep) if keep else _certain(topology, commits)
    if not keep:
        unseen = _unseen_blockers(topology)
        if kept is None or unseen:
            return _refused((*unseen, *(() if kept is not None else _uncertain(topology, commits))))
    if kept is None:
        raise AssertionError  # a name that is no primary's was refused before
    others = [node for node in found if node.host != kept.host]
    return _resolved(topology, kept, chosen=bool(keep), notes=_kept_notes(kept, others, commits, chosen=bool(keep)))


def _repair(topology: Topology, *, chosen: bool) -> HealPlan:
    primary = topology.primary
    if primary is None:
        raise AssertionError  # without one the plan was refused before
    plan = _resolved(topology, primary, chosen=chosen, notes=[found.message for found in problems(topology)])
    fenced = [node for node in topology.nodes if node.fenced and node.state == states.RUNNING]
    notes = [*plan.notes, *("{0}: a note says that it is fenced, although it runs; the note is removed".format(node.host) for node in fenced)]
    idle = not notes and all(way.action == NOTHING for _host, way in plan.ways)
    return replace(plan, action=NOTHING_TO_HEAL if idle else plan.action, notes=tuple(notes))
