# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Synchronous replication through role changes: who may confirm a commit, when commits wait, who has them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import application_name_for
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import (
    ASYNCHRONOUS,
    NOBODY,
    WAIT,
    SynchronousRule,
    SynchronousSet,
    format_set,
    needed_in_sight,
    parse_set,
)

if TYPE_CHECKING:  # topology.py imports this
    from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology

# What stands for a cluster whose commits wait, or do not wait although they should.
COMMITS_WAIT = "commits_wait"
DEGRADED = "synchronous_degraded"
WRONG_SET = "synchronous_set"
# A role change that leaves nodes behind may end so; the playbook that brings them back may not.
LATER = (COMMITS_WAIT, DEGRADED)


def confirming(topology: Topology, host: str) -> tuple[Node, ...]:
    """Return who may confirm the commits of `host` as primary, in the rule's order; empty without a rule.

    A cascaded standby never does, it is no sender's of the primary. Nor does a server that may have WAL of its own: on its way to be
    found out it can report a position that a commit never had there.
    """
    rule, primary = topology.rule, topology.node(host)
    if rule is None or primary is None:
        return ()
    named = [topology.node(name) for name in rule.members if name != host]
    return tuple(
        node
        for node in named
        if node is not None and node.replay_delay_ms == 0 and topology.desired_upstream(node, primary).host == host and _is_trusted(topology, node, primary)
    )


def _is_trusted(topology: Topology, node: Node, primary: Node) -> bool:
    """Whether what this node reports is a position in the primary's WAL, now or when it starts again."""
    if node.state in (states.ABSENT, states.UNREACHABLE):
        return node.state == states.UNREACHABLE
    if node.system_identifier != primary.system_identifier:
        return False
    if node.is_running_standby:
        return node.timeline <= max(primary.timeline, *(each.timeline for each in topology.primaries), 0)
    # A standby that sees nobody promoted asks for it: the present primary is among those that will confirm.
    waits_for_primary = node.is_running_primary and primary.is_running_standby
    return waits_for_primary or (node.standby_signal and not node.fenced and not node.rewind_unfinished)


def set_of(node: Node) -> Optional[SynchronousSet]:
    """Return what a node's synchronous_standby_names says, running or not; None when it is not known."""
    text = node.settings.get("synchronous_standby_names")
    return None if text is None else parse_set(text)


def _streaming(primary: Node, found: SynchronousSet) -> tuple[str, ...]:
    return tuple(sender.application_name for sender in primary.senders if sender.state == "streaming" and found.has(sender.application_name))


def _rule_text(rule: SynchronousRule) -> str:
    return "{0} {1} of {2}".format(rule.mode, rule.num, ", ".join(rule.members) or "nobody")


def synchronous_problems(topology: Topology) -> tuple[Blocker, ...]:
    """Return what is wrong with the synchronous replication of a cluster that has one primary and a rule."""
    rule, primary = topology.rule, topology.primary
    if rule is None or primary is None or primary.problem:
        return ()
    found = set_of(primary)
    text = primary.settings.get("synchronous_standby_names", "")
    if found is None or found.num < rule.num:
        hint = "A crash of {0} may lose commits. heal.yml asks for {1} again when as many standbys stream.".format(primary.host, rule.num)
        return (Blocker(DEGRADED, primary.host, "does not wait for its synchronous standbys", text or "asynchronous", _rule_text(rule), hint),)
    streaming = _streaming(primary, found)
    if len(streaming) < found.num:
        seen = "{0} of {1} stream; {2} session(s) wait".format(len(streaming), found.num, primary.sessions_waiting_for_standby)
        hint = "Bring a standby back, start_new_standby.yml does; or go on without with heal.yml -e pg_synchronous_degrade=async."
        return (Blocker(COMMITS_WAIT, primary.host, "COMMITS WAIT for synchronous standbys", seen, _rule_text(rule), hint),)
    able = [node.member.application_name for node in confirming(topology, primary.host)]
    here = {sender.application_name for sender in primary.senders if sender.state == "streaming"}
    left_out = sorted(name for name in able if name in here and not found.has(name))
    if left_out or found.mode != rule.mode or found.num != rule.num:
        return (
            Blocker(
                WRONG_SET, primary.host, "its synchronous set is not the inventory's", text, _rule_text(rule), "Run heal.yml.",
            ),
        )
    return ()


def switchover_set_blockers(topology: Topology, after: Topology, target: str) -> tuple[Blocker, ...]:
    """Return a blocker when commits would wait at `target` once the hand-over is done; `after` is the topology then."""
    rule = topology.rule
    if rule is None or rule.degrade != WAIT:
        return ()
    able = [node.host for node in confirming(after, target) if node.is_running_standby]
    if len(able) >= rule.num:
        return ()
    return (
        Blocker(
            "too_few_synchronous", target, "commits would wait there for synchronous standbys", ", ".join(able) or "nobody to confirm", _rule_text(rule),
            "Bring the others back with start_new_standby.yml, or set pg_synchronous_degrade=async.",
        ),
    )


def asked(topology: Topology, source: Optional[Node]) -> Optional[Node]:
    """Return the dead primary whose clients were promised something; None where that one is out of reach.

    What stands in its place then, a cascade's parent that died with it, asked nobody for confirmations and may be the one that gave them.
    """
    away = any(node.state == states.UNREACHABLE for node in topology.nodes)
    return None if source is not None and source.lies_as_standby and away else source


def promised_set(topology: Topology, source: Optional[Node]) -> SynchronousSet:
    """Return the set that the dead primary's clients relied on: what its files say, else the inventory's. num 0: nothing was promised."""
    rule = topology.rule
    if rule is None:
        return ASYNCHRONOUS
    said = set_of(source) if source is not None else None
    return said if said is not None else SynchronousSet(rule.mode, rule.num, tuple(application_name_for(host) for host in rule.members))


def promised_is_known(source: Optional[Node]) -> bool:
    """Whether the dead primary's own files say what its clients relied on; heal.yml may have let it go on without confirmations."""
    return source is not None and set_of(source) is not None


def _names_without_host(topology: Topology, promised: SynchronousSet) -> list[str]:
    """Return the names of a set that are no host's of this cluster; each once, as PostgreSQL compares them."""
    known = {node.member.application_name.lower() for node in topology.nodes} | {"*", NOBODY}
    return sorted({name.lower(): name for name in promised.names if name.lower() not in known}.values())


def failover_set_blockers(topology: Topology, source: Optional[Node], target: Node) -> tuple[Blocker, ...]:
    """Return why promoting `target` could lose a commit that its client was told of; empty where nothing was promised."""
    promised = promised_set(topology, source)
    if promised.num == 0:
        return ()
    price = " Or accept that with -e pg_accept_synchronous_loss=true."
    start = source.to_start if source is not None else "start the old primary"
    if topology.rule is not None and topology.rule.degrade != WAIT and not promised_is_known(source):
        return (
            Blocker(
                "synchronous_unknown", target.host, "it cannot be told whether the old primary still asked for confirmations",
                "pg_synchronous_degrade {0}, its files cannot be read".format(topology.rule.degrade), "its files",
                "Make the old primary's host reachable, or {0}.{1}".format(start, price),
            ),
        )
    members = [node for node in topology.nodes if (source is None or node.host != source.host) and promised.has(node.member.application_name)]
    if target.host not in [node.host for node in members]:
        hint = "Name one of its members." + price
        text = format_set(promised)
        return (Blocker("not_synchronous", target.host, "is not in the synchronous set, so it may lack confirmed commits", text, "a member", hint),)
    in_sight = [node for node in members if node.is_running_standby and node.position_lsn]
    unknown = _names_without_host(topology, promised)
    # Each of these may hold a commit alone: one that was just taken out of the inventory confirms until a playbook has written the set anew.
    needed = needed_in_sight(promised.num, len(members) + len(unknown))
    if len(in_sight) < needed:
        away = [node.host for node in members if node not in in_sight]
        seen = [words + " and ".join(names) for words, names in (("not running: ", away), ("not in the inventory: ", unknown)) if names]
        up = " and ".join([*away, *unknown]) + (" into the inventory and" if unknown else "")
        hint = "Bring {0} up, or {1}.{2}".format(up, start, price)
        return (
            Blocker(
                "synchronous_unseen", target.host, "it cannot be told whether it has every confirmed commit", "; ".join(seen),
                "{0} running synchronous standby(s)".format(needed), hint,
            ),
        )
    best = max(in_sight, key=lambda node: parse_lsn(node.position_lsn))
    if parse_lsn(best.position_lsn) > parse_lsn(target.position_lsn or "0/0"):
        hint = "Promote {0}.{1}".format(best.host, price)
        text = "may lack a confirmed commit that {0} has".format(best.host)
        return (Blocker("not_most_advanced", target.host, text, target.position_lsn, best.position_lsn, hint),)
    return ()
