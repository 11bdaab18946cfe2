# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Action plugin pg_plan: what a playbook is about to do, decided by the core from every node's observation."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Callable, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker, refusal
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover import TAKE_OVER, plan_failover
from ansible_collections.pg_ops.replication.plugins.module_utils.core.failover_slots import stray_slot_notes
from ansible_collections.pg_ops.replication.plugins.module_utils.core.heal import (
    NOTHING_TO_HEAL,
    HealPlan,
    OwnCommits,
    forks,
    own_commits_from,
    plan_heal,
    way_back,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import NO_PSYCOPG2, PRIMARY, STANDBY, Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.placement import (
    after_change,
    after_rejoin,
    placement,
    returning,
    slots_at_primary,
    slots_for_hand_over,
    without,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.promotion import Limits
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rejoin import NOTHING, REFUSE, RejoinPlan
from ansible_collections.pg_ops.replication.plugins.module_utils.core.rotation import plan_rotation
from ansible_collections.pg_ops.replication.plugins.module_utils.core.setup import KEEP, inventory_blockers, plan_setup
from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import (
    HEALTHY,
    render_document,
    render_json,
    render_status,
    status_document,
    status_rows,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.switchover import HAND_OVER, plan_switchover
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, leave_time, problems
from ansible_collections.pg_ops.replication.plugins.plugin_utils.hostvars_topology import (
    GROUP,
    cluster_members,
    fenced_by_this_run,
    observed_topology,
    synchronous_rule,
)

Result = dict[str, Any]
display = Display()


def _synchronous(topology: Topology, names: Sequence[str]) -> Optional[Result]:
    rule = topology.rule
    return {"mode": rule.mode, "num": rule.num, "names": list(names), "degrade": rule.degrade} if rule else None


def _place(topology: Topology, host: str) -> Optional[Result]:
    found = placement(topology, host)
    if found is None:
        return None
    up = found.upstream
    return {
        "upstream": {"name": up.host, "address": up.member.address, "port": up.member.port} if up else None,
        "slots_present": list(found.slots_present),
        "slots_absent": list(found.slots_absent),
        "downstreams": list(found.downstreams),
        "synchronized": list(found.synchronized),
        "waits": found.waits,
        "synchronous": _synchronous(topology, found.confirming),
    }


def _endpoint(topology: Topology, host: str) -> Result:
    node = topology.node(host)
    return {"name": host, "address": node.member.address if node else "", "port": node.member.port if node else 0}


def _decided(topology: Topology, after: Topology, host: str, action: str, source: str, target: str) -> Result:
    here = topology.node(host)
    return {
        "cluster": topology.cluster,
        "action": action,
        "source": source,
        "target": target,
        "primary": _endpoint(after, target),
        "place": _place(after, host),
        "target_slots": (_place(after, target) or {}).get("slots_present", []),
        "members": [_endpoint(topology, node.host) for node in topology.nodes],
        "is_source": host == source,
        "is_target": host == target,
        # A node that is down before the change stays out of it.
        "settles": host == target or bool(here and here.is_running_standby),
    }


def _actions(ways: dict[str, RejoinPlan]) -> dict[str, str]:
    return {host: plan.action for host, plan in ways.items()}


class ActionModule(ActionBase):
    """Decides on the controller; no module runs on the host."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: Any = None, task_vars: Any = None) -> Result:
        """Return the plan for this host; fails with every reason when it must not be carried out."""
        result = super().run(tmp, task_vars)
        _unused, options = self.validate_argument_spec(
            argument_spec={
                "operation": {"type": "str", "required": True, "choices": sorted(self._operations())},
                "observed": {"type": "str", "default": "__pg_observed"},
                "wanted": {"type": "str", "default": ""},
                "source": {"type": "str", "default": ""},
                "replace_data": {"type": "bool", "default": False},
                "installs": {"type": "bool", "default": False},
                "limits": {"type": "dict", "default": {}},
                "expect_all": {"type": "bool", "default": True},
                "close_note": {"type": "str", "default": ""},
                "format": {"type": "str", "default": "table", "choices": ["json", "table"]},
                "divergence": {"type": "str", "default": "__pg_divergence"},
                "given_up": {"type": "dict", "default": {}},
                "brought_back": {"type": "bool", "default": False},
            }
        )
        self._host = str(task_vars["inventory_hostname"])
        self._vars = task_vars
        self._options = options
        decided = self._operations()[options["operation"]]()
        result.update(changed=False, **decided)
        return result

    def _operations(self) -> dict[str, Callable[[], Result]]:
        return {
            "inventory": self._inventory,
            "setup": self._setup,
            "rotate": self._rotate,
            "switchover": self._switchover,
            "failover": self._failover,
            "rejoin": self._rejoin,
            "place": self._places,
            "forks": self._forks,
            "heal": self._heal,
            "prove": self._prove,
            "status": self._status,
        }

    # -- what all operations share ---------------------------------------------------------------------------------------

    def _topology(self) -> Topology:
        return observed_topology(self._host, self._vars, self._options["observed"])

    def _limits(self) -> Limits:
        given = {key: value for key, value in self._options["limits"].items() if value not in (None, "")}
        return Limits(**{key: value if key == "unfenced" else int(value) for key, value in given.items()})

    def _speaks(self, cluster: str) -> bool:
        """Whether this host is the one of its cluster that prints; the others would say the same. One that is down may be left out of a task."""
        hostvars = self._vars["hostvars"]
        playing = self._vars.get("ansible_play_hosts", [])
        mine = [name for name in playing if str(hostvars[name].get("pg_cluster_name", "main")) == cluster]
        running = [name for name in mine if self._state(name) == "running"]
        return not mine or (running or mine)[0] == self._host

    def _state(self, host: str) -> str:
        """Return what state a host's server was last observed in, empty where it was not."""
        observed = self._vars["hostvars"][host].get("__pg_observed") or {}
        return str((observed.get("node") or {}).get("state", ""))

    def _say(self, cluster: str, lines: Sequence[str]) -> None:
        if self._speaks(cluster):
            for line in lines:
                display.display(line)

    def _refuse(self, cluster: str, what: str, blockers: Sequence[Blocker], changed: str = "Nothing was changed.") -> None:
        data: Result = {"blockers": [blocker.as_result() for blocker in blockers], "reason": blockers[0].reason}
        text = refusal(what, blockers, changed) if self._speaks(cluster) else "Refused: {0}. The reasons stand at the first host.".format(what)
        raise AnsibleActionFail(text, result=data)

    # -- the operations ----------------------------------------------------------------------------------------------------

    def _inventory(self) -> Result:
        members = cluster_members(self._host, self._vars["groups"], self._vars["hostvars"])
        cluster = members[0].cluster
        blockers = inventory_blockers(cluster, members, synchronous_rule(members, self._vars["hostvars"][self._host]))
        if blockers:
            self._refuse(cluster, "cluster {0!r} as the inventory describes it".format(cluster), blockers)
        return {"cluster": cluster, "members": [asdict(member) for member in members]}

    def _setup(self) -> Result:
        topology = self._topology()
        allowed = (self._options["replace_data"], self._options["installs"])
        plan = plan_setup(topology, self._host, *allowed)
        if plan.blockers:
            self._refuse(topology.cluster, "setting up cluster {0}".format(topology.cluster), plan.blockers)
        actions = {node.host: plan_setup(topology, node.host, *allowed).action for node in topology.nodes}
        if self._speaks(topology.cluster):
            steps = ["{0} {1}".format(host, action) for host, action in actions.items()]
            display.display("Cluster {0}: primary {1}; {2}".format(topology.cluster, plan.primary, ", ".join(steps)))
        after = after_change(topology, "", plan.primary, source_returns=False)
        decided = _decided(topology, after, self._host, plan.action, "", plan.primary)
        decided["role"] = plan.role
        decided["ask_again"] = [node.host for node in topology.nodes if node.problem == NO_PSYCOPG2]
        primary = next(node for node in topology.nodes if node.host == plan.primary)
        arriving = [host for host, action in actions.items() if action != KEEP]
        decided["slots"] = list(slots_at_primary(topology, primary, arriving))
        decided["slot_name"] = next(node.member.slot_name for node in topology.nodes if node.host == self._host)
        return decided

    def _rotate(self) -> Result:
        topology = self._topology()
        plan = plan_rotation(topology)
        if plan.blockers:
            self._refuse(topology.cluster, "changing the secrets of cluster {0}".format(topology.cluster), plan.blockers)
        lines = ["Cluster {0}: new secrets, set on primary {1}.".format(topology.cluster, plan.primary)]
        if plan.down:
            lines.append("  {0}: does not run and gets them too; bring it back afterwards: start_new_standby.yml".format(", ".join(plan.down)))
        if plan.late:
            lines.append("  {0}: keeps its connection, and logs in with the new secrets when its replay has ended it".format(", ".join(plan.late)))
        self._say(topology.cluster, lines)
        return {
            "cluster": topology.cluster, "target": plan.primary, "role": PRIMARY if self._host == plan.primary else STANDBY, "down": list(plan.down),
            "late": list(plan.late),
            "members": [_endpoint(topology, node.host) for node in topology.nodes],
        }

    def _switchover(self) -> Result:
        topology = self._topology()
        plan = plan_switchover(topology, self._options["wanted"], self._limits())
        if plan.blockers:
            self._refuse(topology.cluster, "switchover of cluster {0} to {1}".format(topology.cluster, plan.target or "a standby"), plan.blockers)
        if plan.action == HAND_OVER:
            lines = ["Cluster {0}: {1} hands over to {2}.".format(topology.cluster, plan.source, plan.target)]
        else:
            doing = {"finish": "finishing what an earlier run began", "nothing": "nothing is to be done"}[plan.action]
            lines = ["Cluster {0}: {1} is primary; {2}.".format(topology.cluster, plan.target, doing)]
        self._say(topology.cluster, [*lines, *("  " + note for note in plan.notes)])
        after = after_change(topology, plan.source, plan.target, source_returns=True)
        decided = _decided(topology, after, self._host, plan.action, plan.source, plan.target)
        return {**decided, "target_slots": list(slots_for_hand_over(after, plan.source, plan.target))}

    def _failover(self) -> Result:
        topology = self._topology()
        plan = plan_failover(topology, self._options["wanted"], self._limits(), self._options["source"])
        if plan.blockers:
            fenced = fenced_by_this_run([node.host for node in topology.nodes], self._vars["hostvars"])
            changed = "{0} {1} fenced; nobody was promoted by this run.".format(" and ".join(fenced), "was" if len(fenced) == 1 else "were")
            what = "failover of cluster {0}".format(topology.cluster)
            self._refuse(topology.cluster, what, plan.blockers, changed if fenced else "Nothing was changed.")
        if plan.action == TAKE_OVER:
            lines = ["Cluster {0}: {1} takes over from {2}.".format(topology.cluster, plan.target, plan.source or "an unknown primary")]
        else:
            lines = ["Cluster {0}: finishing a failover to {1}.".format(topology.cluster, plan.target)]
        self._say(topology.cluster, [*lines, *("  " + note for note in plan.notes)])
        after = without(after_change(topology, plan.source, plan.target, source_returns=False), plan.left)
        decided = _decided(topology, after, self._host, plan.action, plan.source, plan.target)
        decided["settles"] = decided["settles"] and self._host not in plan.left
        fence = {"fence": self._host in plan.fence, "fence_hosts": list(plan.fence), "switch_off_hosts": list(plan.switch_off), "look_again": plan.look_again}
        return {**decided, **fence, "lost_bytes": plan.lost_bytes, "notes": list(plan.notes)}

    def _ways_back(self) -> tuple[Topology, Node, dict[str, RejoinPlan]]:
        """Return the cluster, its primary, and how every node comes back to it; refuses without one primary, and where this host's way is refused."""
        topology = self._topology()
        primary = topology.primary
        if primary is None or topology.node(self._host) is None:
            self._refuse(topology.cluster, "bringing back nodes of cluster {0}".format(topology.cluster), problems(topology)[:2])
            raise AssertionError  # _refuse does not return
        ways = {node.host: way_back(topology, node.host, self._given_up()) for node in topology.nodes}
        if ways[self._host].action == REFUSE:
            self._refuse_alone(ways[self._host].blockers)
        return topology, primary, ways

    def _given_up(self) -> dict[str, str]:
        return {str(host): str(lsn) for host, lsn in self._options["given_up"].items()}

    def _rejoin(self) -> Result:
        topology, primary, ways = self._ways_back()
        plan = ways[self._host]
        if plan.action != NOTHING:
            display.display("{0}: {1}".format(self._host, plan.said))
        actions = _actions(ways)
        decided = _decided(topology, after_rejoin(topology, actions, list(actions)), self._host, plan.action, "", primary.host)
        stale = primary.host == self._host and primary.control_timeline < primary.timeline
        slots = list(slots_at_primary(topology, primary, returning(actions)))
        fenced = any(node.host == self._host and node.fenced for node in topology.others(primary.host))
        given_up = self._given_up()
        return {
            **decided, "why": plan.why, "checkpoint": stale, "oldest_wal_lsn": primary.oldest_wal_lsn, "slots": slots, "fenced": fenced,
            "give_up": self._host in given_up, "give_up_from_lsn": given_up.get(self._host, ""),
        }

    def _places(self) -> Result:
        topology, primary, ways = self._ways_back()
        after = after_rejoin(topology, _actions(ways), self._vars["ansible_play_hosts"]) if self._options["brought_back"] else topology
        return _decided(topology, after, self._host, ways[self._host].action, "", primary.host)

    def _refuse_alone(self, blockers: Sequence[Blocker]) -> None:
        data = {"blockers": [blocker.as_result() for blocker in blockers], "reason": blockers[0].reason if blockers else "refused"}
        raise AnsibleActionFail(refusal("bringing back {0}".format(self._host), blockers), result=data)

    def _forks(self) -> Result:
        topology = self._topology()
        return {"cluster": topology.cluster, "since": [{"other": fork.other, "lsn": fork.lsn} for fork in forks(topology, self._host)]}

    def _own_commits(self, topology: Topology) -> list[OwnCommits]:
        """Return what each host of the cluster found out about its own commits."""
        hostvars, name = self._vars["hostvars"], self._options["divergence"]
        return [found for node in topology.nodes for found in own_commits_from(node.host, hostvars[node.host].get(name) or {})]

    def _keep(self, topology: Topology) -> str:
        """Return the primary that a person chose in this cluster; empty when the choice is about other clusters of the inventory."""
        names = [name.strip() for name in self._options["wanted"].split(",") if name.strip()]
        elsewhere = [name for name in names if topology.node(name) is None and name in self._vars["groups"].get(GROUP, [])]
        here = [name for name in names if name not in elsewhere]
        if len(here) > 1:
            blocker = Blocker(
                "several_kept", topology.cluster, "pg_heal_keep names several hosts of one cluster", ", ".join(here), "one", "Name one of them.",
            )
            self._refuse(topology.cluster, "healing cluster {0}".format(topology.cluster), [blocker])
        return here[0] if here else ""

    def _heal(self) -> Result:
        topology = self._topology()
        chosen = self._keep(topology)
        plan = plan_heal(topology, self._own_commits(topology), chosen)
        if plan.blockers:
            self._refuse(topology.cluster, "healing cluster {0}".format(topology.cluster), plan.blockers)
        self._say(topology.cluster, self._heal_lines(topology, plan))
        return {
            "cluster": topology.cluster, "action": plan.action, "kept": plan.kept, "fence": self._host in plan.fence, "fence_hosts": list(plan.fence),
            "given_up": {each.host: each.from_lsn for each in plan.given_up}, "notes": list(plan.notes), "chosen": bool(chosen),
        }

    def _heal_lines(self, topology: Topology, plan: HealPlan) -> list[str]:
        if plan.action == NOTHING_TO_HEAL:
            return ["Cluster {0}: nothing to heal. Primary {1}.".format(topology.cluster, plan.kept)]
        lines = ["Cluster {0}: what is to be healed".format(topology.cluster), *("  " + note for note in plan.notes)]
        for host, way in plan.ways:
            words = way.said if way.action not in (NOTHING, REFUSE) else way.why
            fenced = "fenced, then " if host in plan.fence else ""
            lines.append("  {0}: {1}{2}".format(host, fenced, words))
        return lines

    def _prove(self) -> Result:
        topology = self._topology()
        expected: list[str] = [] if self._options["expect_all"] else [n.host for n in topology.nodes if n.state == "running"]
        found, later = leave_time(topology, problems(topology, expected), paused_too=not self._options["expect_all"])
        if found:
            self._say(topology.cluster, [render_status(topology)])
            lines = ["The end state of cluster {0} is not what it must be:".format(topology.cluster)]
            lines.extend("  - " + problem.message for problem in found)
            raise AnsibleActionFail("\n".join(lines), result={"blockers": [problem.as_result() for problem in found]})
        self._close_note(topology)
        primary = topology.primary
        self._say(
            topology.cluster,
            ["Cluster {0}: proven. Primary {1} on timeline {2}, {3} standby(s) streaming.".format(
                topology.cluster, primary.host if primary else "-", primary.timeline if primary else "-", len(topology.standbys)),
             *("  " + note for note in (*later, *stray_slot_notes(topology)))],
        )
        return {"cluster": topology.cluster, "primary": primary.host if primary else "", "rows": status_rows(topology)}

    def _close_note(self, topology: Topology) -> None:
        """Remove the note that a role change is under way, now that its end is proven; one command, not a task of its own.

        And the note of a fence on the proven primary: no fence holds there any more, and it must not stop its next start.
        """
        here = topology.node(self._host)
        if not self._options["close_note"] or here is None or self._task.check_mode:
            return
        names = ["pending"] if here.pending.operation else []
        if here.fenced and here.is_running_primary:
            names.append("fenced")
        if not names:
            return
        command = " ".join(["rm -f --", *(shlex.quote("{0}/{1}.json".format(self._options["close_note"], name)) for name in names)])
        done = self._low_level_execute_command(command)
        if done["rc"] != 0:
            raise AnsibleActionFail("{0}: a note of an earlier run could not be removed: {1}".format(self._host, done["stderr"].strip()))

    def _status(self) -> Result:
        topology = self._topology()
        document = status_document(topology, observed_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
        render = render_json if self._options["format"] == "json" else render_document
        self._say(topology.cluster, [render(document)])
        # cluster_exit_status is what the callback plugin of the playbooks looks for.
        return {**document, "healthy": document["severity"] == HEALTHY, "cluster_exit_status": document["exit_status"]}
