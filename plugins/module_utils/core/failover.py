# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The plan of an unplanned failover: who is fenced, who is promoted, what may be lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.confirming import asked, failover_set_blockers, promised_is_known, promised_set
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover_slots import lost_slot_notes
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import (
    Limits,
    bytes_behind,
    candidates,
    dead_primary,
    promotion_blockers,
    refused_candidates,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import FOLLOW, NOTHING, WAL_PAGE_BYTES, plan_rejoin
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import ASYNCHRONOUS, SynchronousSet
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import (
    Topology,
    alive_blocker,
    out_of_sight,
    problems,
    same_cluster_blockers,
    shared_past,
    stale_primary_blockers,
    standby_problem,
)

TAKE_OVER = "take_over"
FINISH = "finish"


@dataclass(frozen=True)
class FailoverPlan:
    """What a failover will do. `lost_bytes` is the most that may be lost, None when it cannot be known.

    `fence` are the hosts whose servers are fenced there, `switch_off` those that cannot be reached and that the fence command ends.
    `look_again`: one of these may write until it is fenced, or its hand-over promote somebody, so that who is to take over is known only behind that.
    `left` are running standbys that have WAL which the new primary lacks: they cannot follow it before start_new_standby.
    """

    action: str
    source: str
    target: str
    fence: tuple[str, ...] = ()
    switch_off: tuple[str, ...] = ()
    look_again: bool = False
    left: tuple[str, ...] = ()
    lost_bytes: Optional[int] = None
    blockers: tuple[Blocker, ...] = ()
    notes: tuple[str, ...] = ()


def _astray(topology: Topology, primary: Node) -> tuple[Node, ...]:
    """Return the standbys that do not follow the primary; one that only streams without its slot does."""
    found = [(node, standby_problem(topology, node, primary)) for node in topology.standbys]
    return tuple(node for node, problem in found if problem is not None and problem.reason != "wrong_slot")


def _left_behind(topology: Topology, primary: Node) -> bool:
    """Whether a standby still points at another server than the primary; one that only cannot reach it is nothing that a failover mends."""
    return any(
        problem is not None and problem.reason == "wrong_upstream"
        for problem in (standby_problem(topology, node, primary) for node in topology.standbys)
    )


def _unfinished(topology: Topology, primary: Node) -> tuple[Node, ...]:
    """Return the nodes whose note says that a failover to this primary began, as long as the old primary is not its standby."""
    back = {node.host for node in topology.standbys} - {node.host for node in _astray(topology, primary)}
    return tuple(
        node
        for node in topology.nodes
        if node.pending.operation == "failover" and node.pending.target == primary.host and node.pending.source not in back
    )


def _with_primary(topology: Topology, primary: Node, wanted: str, source_host: str) -> FailoverPlan:
    """A primary is alive: finish a failover that was cut off before the others were re-pointed, or refuse.

    One that is seen behind the fence was promoted meanwhile, by the hand-over that the old primary was in: the rest of it is a failover's, too.
    """
    stale = stale_primary_blockers(topology, primary)
    if stale:
        return FailoverPlan(TAKE_OVER, primary.host, "", blockers=stale)
    pending = _unfinished(topology, primary)
    meanwhile = source_host not in ("", primary.host)
    if wanted in ("", primary.host) and primary.timeline > 1 and (meanwhile or pending or _left_behind(topology, primary)):
        source = pending[0].pending.source if pending else source_host
        left = tuple(node.host for node in topology.standbys if plan_rejoin(topology, node).action not in (NOTHING, FOLLOW))
        notes = ("{0} is primary already; the others are re-pointed".format(primary.host),)
        return FailoverPlan(FINISH, source, primary.host, left=left, notes=notes)
    blocker = Blocker(
        "primary_alive", primary.host, "is primary and answers", primary.problem or "primary running", "no primary",
        "To hand the role over as planned run switchover.yml.",
    )
    return FailoverPlan(TAKE_OVER, primary.host, "", blockers=(blocker,))


def _switched_off(topology: Topology, source: Optional[Node], limits: Limits) -> tuple[str, ...]:
    """Return the hosts that the fence command has to switch off: out of reach, and perhaps primary. A machine that does not run may be frozen only."""
    if not limits.fence_command or limits.unfenced == "accept" or source is None:
        return ()
    return tuple(node.host for node in _perhaps_primary(topology, source) if node.problem != states.OUTSIDE_RUN)


def _perhaps_primary(topology: Topology, source: Node) -> tuple[Node, ...]:
    """Return the nodes that cannot be reached and may be primary.

    Each of them where the source is one: it may have been a cascade's parent, or have handed the role on before whoever named it was re-pointed.
    Where the source was seen, each that may be promoted: the standbys that are left name the source also where it was out of reach for a while, one
    of these took over, and nobody re-pointed them. Neither the source's files nor theirs tell that from a primary that died just now.
    """
    out_of_reach = tuple(node for node in topology.nodes if node.state == states.UNREACHABLE)
    if source.state == states.UNREACHABLE:
        return out_of_reach
    return tuple(node for node in out_of_reach if node.member.priority > 0 or node.member.initial_role == states.PRIMARY)


def _starting(topology: Topology, source: Optional[Node]) -> list[Node]:
    """Return who may be the primary again in a moment: the old one, or whoever else opens read-write on the newest timeline."""
    newest = max((node.timeline for node in topology.standbys), default=0)
    return [
        node
        for node in topology.nodes
        if node.state == states.STARTING and not node.standby_signal and (node is source or not node.timeline or node.timeline >= newest)
    ]


def _fence_blockers(topology: Topology, source: Optional[Node], limits: Limits) -> list[Blocker]:
    """Return why an old primary may go on writing: which server that cannot be reached, or is starting, nobody has ended."""
    if limits.unfenced == "accept":
        return []
    starting = _starting(topology, source)
    if starting:
        return [
            Blocker(
                "primary_starting", node.host, "the old primary is starting up and may accept writes in a moment, with nothing lost",
                node.problem or node.state, "down", "Wait and look at status.yml; if it does not come up, stop it there, then repeat.",
            )
            for node in starting
        ]
    if source is None:
        return [
            Blocker(
                "old_primary_unknown", topology.cluster, "it cannot be told which node was primary", "-", "one node to fence",
                "Make sure that no other server accepts writes, then repeat with -e pg_failover_unfenced=accept.",
            )
        ]
    if source.state == states.ABSENT and source.port_taken_by:
        return [
            Blocker(
                "not_fenced", source.host, "there is no data directory where the inventory says, but something at the old primary's port",
                source.port_taken_by, "nothing there", "Look what it is. If no primary, repeat with -e pg_failover_unfenced=accept.",
            )
        ]
    return [
        _not_fenced(node, source)
        for node in _perhaps_primary(topology, source)
        if not limits.fence_command or node.problem == states.OUTSIDE_RUN
    ]


def _not_fenced(node: Node, source: Node) -> Blocker:
    problem = "the old primary cannot be reached, so it cannot be fenced"
    if node is not source:
        may = "be the primary" if source.state == states.UNREACHABLE else "have taken over from {0}".format(source.host)
        problem = "cannot be reached, so it cannot be fenced, and it may {0}".format(may)
    hint = "Switch the machine off or cut it from the clients, then repeat with -e pg_failover_unfenced=accept. Or set pg_fence_command."
    return Blocker(
        "not_fenced", node.host, problem, node.problem or "no answer",
        "fenced, or known to be off", "Repeat without --limit. " + hint if node.problem == states.OUTSIDE_RUN else hint,
    )


def _alive_blockers(topology: Topology, switch_off: tuple[str, ...]) -> list[Blocker]:
    """Return why there may be a primary that nobody reaches from here: a standby has just heard from it.

    No word of the operator's accepts that. What is switched off first may be alive until then; one of those whose address is not known can be
    the one that is heard.
    """
    nameless = any(not node.member.address for node in topology.nodes if node.host in switch_off)
    return [
        alive_blocker(heard, "silence", _hint_for_alive(topology, heard.sender))
        for heard in out_of_sight(topology)
        if heard.sender not in switch_off and not (nameless and topology.node(heard.sender) is None)
    ][:1]


def _hint_for_alive(topology: Topology, sender: str) -> str:
    """Return what to do about a server that is alive; a standby that sends to others must not be switched off alone."""
    behind = [node.host for node in topology.nodes if node.state == states.UNREACHABLE and node.host != sender]
    others = ", and {0} too, which may be the primary behind it".format(" and ".join(behind)) if behind else ""
    return "Repair the way to it and run switchover.yml, or switch it off{0}, then repeat.".format(others)


def _loss(source: Optional[Node], target: Node) -> Optional[int]:
    """Return the bytes of WAL that only the dead primary holds, as far as its files tell; None when unknown."""
    if source is None or not source.has_server_down:
        return None
    if source.timeline and target.timeline and source.timeline != target.timeline:
        return None
    return bytes_behind(target, source.wal_end_lsn)


def _down_blockers(topology: Topology, target: Node, limits: Limits) -> list[Blocker]:
    """Return why a node that is down, the old primary or a standby, should be started instead of promoting `target`."""
    allowed = max(limits.max_lag_bytes, limits.accept_data_loss_bytes)
    found: list[Blocker] = []
    for node in topology.nodes:
        lost = _loss(node, target)
        if node.has_server_down and node.timeline > target.timeline:
            found.append(
                Blocker(
                    "behind_on_timeline", target.host, "is on an older timeline than {0}, which is down".format(node.host), str(target.timeline),
                    str(node.timeline), "Instead {0}. Or take it out of the inventory when its data is given up.".format(node.to_start),
                )
            )
        elif lost is not None and lost > allowed:
            found.append(
                Blocker(
                    "data_loss", target.host, "lacks WAL that is safe on {0}".format(node.host), "{0} bytes".format(lost),
                    "at most {0}".format(allowed),
                    "Instead {0}. Or accept the loss with -e pg_accept_data_loss_bytes={1}.".format(node.to_start, lost),
                )
            )
    return found


def _ahead(topology: Topology, target: Node) -> tuple[tuple[Node, int], ...]:
    """Return the running standbys on the target's timeline that have more WAL, with how many bytes, the most first."""
    start = parse_lsn(target.position_lsn or "0/0")
    found = [
        (node, parse_lsn(node.position_lsn) - start)
        for node in topology.others(target.host)
        if node.is_running_standby and node.timeline == target.timeline and node.position_lsn
    ]
    return tuple(sorted((pair for pair in found if pair[1] > 0), key=lambda pair: -pair[1]))


def _own_branches(topology: Topology, target: Node) -> Iterator[tuple[Node, int]]:
    """Yield who is down, was never fenced, and went on writing on an older timeline, with how many bytes: a primary beside which another was promoted.

    An earlier failover may have announced that. Nobody did where a person promoted a standby by hand.
    """
    for node in topology.nodes:
        if not node.has_server_down or node.standby_signal or node.fenced or not node.wal_end_lsn or node.timeline >= target.timeline:
            continue
        past = shared_past(node, target)
        # The end that is read from files is an upper bound, to the page.
        if past is not None and past[1] is not None and parse_lsn(node.wal_end_lsn) - WAL_PAGE_BYTES > past[1]:
            yield node, parse_lsn(node.wal_end_lsn) - past[1]


def _is_able(topology: Topology, node: Node, promised: SynchronousSet) -> bool:
    """Whether a standby can be promoted: nothing speaks against it, and it is in the set whose members have the confirmed commits."""
    return (promised.num == 0 or promised.has(node.member.application_name)) and not promotion_blockers(topology, node.host)


def _ahead_blockers(topology: Topology, target: Node, limits: Limits, promised: SynchronousSet) -> list[Blocker]:
    """Return why a standby that has more WAL should be promoted, or made able to be, instead of `target`.

    One that can be promoted costs nothing; one that cannot be (paused, delayed, pg_priority 0) is weighed like the dead primary's WAL.
    """
    for node, behind in _ahead(topology, target):
        able = _is_able(topology, node, promised)
        allowed = limits.accept_data_loss_bytes if able else max(limits.max_lag_bytes, limits.accept_data_loss_bytes)
        if behind > allowed:
            hint = "Promote {0}, or accept the loss with -e pg_accept_data_loss_bytes={1}.".format(node.host, behind)
            return [
                Blocker(
                    "not_most_advanced", target.host, "has less WAL than {0}".format(node.host), target.position_lsn, node.position_lsn, hint,
                )
            ]
    return []


def _notes(
    topology: Topology, source: Optional[Node], target: Node, lost: Optional[int], switch_off: tuple[str, ...]
) -> tuple[str, ...]:
    notes = ["{0} cannot be reached: pg_fence_command switches it off first".format(host) for host in switch_off]
    old = source.host if source else "the old primary"
    if lost is None:
        notes.append("How much {0} had that {1} lacks cannot be known: its WAL could not be read".format(old, target.host))
    else:
        notes.append("At most {0} bytes of WAL that only {1} holds are lost (page precision, 8192)".format(lost, old))
    out_of_reach = () if source is None else _perhaps_primary(topology, source)
    unfenced = [old] if source is None else [node.host for node in out_of_reach if node.host not in switch_off]
    notes.extend("{0} was NOT fenced: keep it off until start_new_standby.yml has run".format(host) for host in unfenced)
    notes.extend(
        "{0} holds {1} bytes that {2} lacks: start_new_standby.yml brings it back".format(node.host, behind, target.host)
        for node, behind in _ahead(topology, target)
    )
    for node in topology.nodes:
        if node.state == states.UNREACHABLE and (source is None or node.host != source.host):
            notes.append("{0} could not be observed; it may hold more WAL than {1}".format(node.host, target.host))
    notes.extend(
        "{0} wrote up to {1} bytes of WAL on timeline {2} that {3} never had. Where that one should have stayed primary, stop here and start it instead;"
        " start_new_standby.yml lists its commits and gives them up".format(node.host, written, node.timeline, target.host)
        for node, written in _own_branches(topology, target)
    )
    notes.extend(lost_slot_notes(source, target))
    return tuple(notes)


def _no_candidate_hint(topology: Topology) -> str:
    fenced = [node.host for node in topology.nodes if node.fenced and node.has_server_down]
    if not fenced:
        return "Start a standby, or start the old primary again."
    return (
        "Start a standby. When nothing but {0} is left, which is fenced: touch boot_guard/allow in its state directory, start it (it opens read-only),"
        " then failover.yml -e pg_failover_unfenced=accept.".format(" and ".join(fenced))
    )


def _synchronous_note(source: Optional[Node], target: Node) -> str:
    if promised_is_known(source):
        return "{0} has every commit that synchronous standbys confirmed; what is lost was confirmed to no client".format(target.host)
    return (
        "{0} has every commit that the inventory's synchronous standbys confirmed. Whether {1} still asked for confirmations is not known: its files"
        " could not be read".format(target.host, source.host if source else "the old primary")
    )


def _to_have_read(node: Node) -> str:
    """Return what has to be done, or waited for, until a standby has read the WAL on its disk."""
    if node.replay_paused:
        return node.to_resume
    if node.replay_delay_ms > 0:
        return "It reads that {0} s late: wait, or set recovery_min_apply_delay to 0 there.".format(node.replay_delay_ms // 1000)
    return "Repeat in a moment."


def _unread_blockers(topology: Topology, target: Node, promised: SynchronousSet) -> list[Blocker]:
    """Return why it is too early to compare standbys: one that was just started has not read all the WAL that it has on disk."""
    return [
        Blocker(
            "still_reading", node.host, "still reads the WAL on its disk, so that nobody knows yet how far that reaches", node.replay_lsn or "unknown",
            "all of it read", _to_have_read(node),
        )
        for node in topology.nodes
        if node.is_running_standby and node.upstream.host and not node.receive_lsn
        and (node is target or _is_able(topology, node, promised) or (promised.num > 0 and promised.has(node.member.application_name)))
    ]


def _fenced_by_this_run(topology: Topology, host: str) -> Optional[Node]:
    """Return the old primary that was found before the fence, as long as it is down behind it; its files no longer tell that it was."""
    node = topology.node(host) if host else None
    return node if node is not None and node.fenced and node.has_server_down else None


def _hands_over(node: Optional[Node]) -> bool:
    """Whether a hand-over from this node began, whose end was not proven: a run that has lost its controller may go on with it until it is fenced."""
    return node is not None and node.pending.operation == "switchover"


def _told(topology: Topology) -> tuple[Node, ...]:
    """Return who may have been told to promote by a run that did not see the end of it: a failover notes that there, a hand-over on the old primary.

    A hand-over tells nobody who lacks WAL that another standby has.
    """
    own = {node.host for node in topology.nodes if node.pending.operation == "failover" and node.pending.target == node.host}
    handed = {node.pending.target for node in topology.nodes if node.has_server_down and node.pending.operation == "switchover"}
    notes = {node.pending.target for node in topology.nodes if node.pending.phase == "promoting"}
    most = max((parse_lsn(node.position_lsn) for node in topology.standbys if node.position_lsn), default=0)
    return tuple(
        node
        for node in topology.nodes
        if node.host in notes and (
            node.host in own or (node.host in handed and (node.state == states.UNRESPONSIVE or parse_lsn(node.position_lsn or "0/0") >= most))
        )
    )


def _promotion_blockers_of_others(told: Sequence[Node], target: Node) -> list[Blocker]:
    """Return which standby may become primary beside the target; one that does not answer is fenced instead."""
    return [
        Blocker(
            "promotion_under_way", node.host, "was told to promote, and may become primary at any moment", "in recovery", "primary, or its server stopped",
            "Repeat in a moment without pg_failover_to. If it still is no primary then: restart its server, which forgets it by that, and repeat.",
        )
        for node in told
        if node.host != target.host and node.is_running_standby
    ]


def _best(able: Sequence[Node], told: Sequence[Node]) -> Optional[Node]:
    """Return whom to promote, the first, or its equal that may have been told to promote: two promotions of one are one."""
    level = [node for node in able if (node.timeline, node.position_lsn) == (able[0].timeline, able[0].position_lsn)]
    return next((node for node in level if node in told), able[0] if able else None)


def plan_failover(topology: Topology, wanted: str, limits: Limits, source_host: str = "") -> FailoverPlan:
    """Return what a failover does now; `wanted` is the node to promote, empty for the most advanced standby.

    `source_host` is the old primary of the plan before, where the same run makes it again behind the fence.
    """
    if wanted and topology.node(wanted) is None:
        return FailoverPlan(TAKE_OVER, "", wanted, blockers=promotion_blockers(topology, wanted))
    if topology.primary is not None:
        return _with_primary(topology, topology.primary, wanted, source_host)
    if len(topology.primaries) > 1:
        return FailoverPlan(TAKE_OVER, "", "", blockers=problems(topology))
    fenced = _fenced_by_this_run(topology, source_host)
    source = fenced or dead_primary(topology)
    promising = asked(topology, source)
    promised = ASYNCHRONOUS if limits.accept_synchronous_loss else promised_set(topology, promising)
    able = [node for node in candidates(topology) if _is_able(topology, node, promised)]
    told = _told(topology)
    target = topology.node(wanted) if wanted else _best(able, told)
    if target is None:
        seen = "; ".join(node.seen for node in topology.nodes)
        made = any(node.state not in (states.ABSENT, states.UNREACHABLE) for node in topology.nodes)
        none = Blocker(
            "no_candidate", topology.cluster, "no standby can take over", seen, "a running standby with pg_priority above 0",
            _no_candidate_hint(topology) if made else "Run initial_setup.yml when the cluster was never set up.",
        )
        return FailoverPlan(TAKE_OVER, source.host if source else "", "", blockers=(none, *refused_candidates(topology)))
    lost = _loss(source, target)
    found = list(promotion_blockers(topology, target.host)) + list(same_cluster_blockers(topology))
    off = _switched_off(topology, source, limits)
    found.extend(_fence_blockers(topology, source, limits))
    found.extend(_alive_blockers(topology, off) if fenced is None else ())
    found.extend(_promotion_blockers_of_others(told, target))
    if target.is_running_standby:
        found.extend(_unread_blockers(topology, target, promised))
        found.extend(failover_set_blockers(topology, promising, target) if promised.num else ())
        found.extend(_ahead_blockers(topology, target, limits, promised))
        found.extend(_down_blockers(topology, target, limits))
    # The old primary, whatever else would open read-write at its next start, and who thaws and promotes as it was told to.
    fence = tuple(
        node.host
        for node in topology.nodes
        if node.has_server_down and (node is source or not node.standby_signal or (node in told and node.state == states.UNRESPONSIVE))
    )
    notes = _notes(topology, source, target, lost, off)
    if promised.num:
        notes = (*notes, _synchronous_note(promising, target))
    left = tuple(node.host for node, _bytes in _ahead(topology, target))
    writing = bool(off) or any(node.host in fence and node.state in (states.UNRESPONSIVE, states.STARTING) for node in topology.nodes)
    again = writing or _hands_over(source)
    return FailoverPlan(TAKE_OVER, source.host if source else "", target.host, fence, off, again, left, lost, tuple(found), notes)
