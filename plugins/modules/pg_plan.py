#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action plugin pg_plan; nothing runs on the managed host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_plan
short_description: Decide, from the observation of every node, what a playbook does
version_added: 0.1.0
description:
  - Runs on the controller. It takes what M(pg_ops.replication.pg_node_info) returned for every node of the host's cluster and decides.
  - Prints the plan once for each cluster. Where something speaks against it, it fails with every reason, as text and as data.
  - Every host of a cluster decides for itself from the same observations, so one cluster's refusal does not stop another one.
author: pg_ops.replication contributors (@pg-ops)
attributes:
  check_mode:
    description: Decides the same and changes nothing.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
options:
  operation:
    description: What is to be decided.
    type: str
    required: true
    choices: [failover, forks, heal, inventory, place, prove, rejoin, rotate, setup, status, switchover]
  observed:
    description: Name of the variable that the observations were registered as.
    type: str
    default: __pg_observed
  wanted:
    description:
      - Inventory name of the node to promote. Empty means the best one.
      - With O(operation=heal), the primary that stays where the choice is not certain, or several of different clusters with commas between.
    type: str
    default: ""
  source:
    description: With O(operation=failover), the old primary that the plan before the fence has found, where the plan is made again behind it.
    type: str
    default: ""
    version_added: 0.2.0
  replace_data:
    description: Whether foreign data on a standby's host may be set aside.
    type: bool
    default: false
  installs:
    description:
      - With O(operation=setup), whether the packages that the hosts need are installed next. Then a server that could not be asked without psycopg2
        is no reason to refuse, and RV(ask_again) names its host.
    type: bool
    default: false
    version_added: 0.2.0
  limits:
    description: What a role change may take for granted, by the names of the role's variables without C(pg_).
    type: dict
    default: {}
  expect_all:
    description: With O(operation=prove), whether a node that is down is a problem.
    type: bool
    default: true
  close_note:
    description:
      - With O(operation=prove), the state directory of this host, from which the note that a role change is under way is removed once the
        proof holds. Empty means that it stays.
    type: str
    default: ""
  format:
    description: With O(operation=status), how the cluster is printed; V(json) is one line.
    type: str
    choices: [json, table]
    default: table
  divergence:
    description: With O(operation=heal), name of the variable that M(pg_ops.replication.pg_divergence) was registered as.
    type: str
    default: __pg_divergence
    version_added: 0.2.0
  given_up:
    description: >-
      With O(operation=rejoin) and O(operation=place), the hosts whose WAL was given up, each with the LSN from which on, as RV(given_up) has it.
    type: dict
    default: {}
    version_added: 0.2.0
  brought_back:
    description:
      - With O(operation=place), whether the servers that had to come back were brought back in this run. Those whose host is still in the play
        have their place as standbys then, and one that failed on the way is taken for down.
      - With V(false), nobody waits for a server that is down.
    type: bool
    default: false
    version_added: 0.2.0
"""

EXAMPLES = r"""
- name: Decide whether the primary may hand over
  pg_ops.replication.pg_plan:
    operation: switchover
    wanted: pgsql2
  register: plan
"""

RETURN = r"""
action:
  description: What is done.
  returned: success
  type: str
source:
  description: The node that gives the primary role up.
  returned: when a role changes
  type: str
target:
  description: The node that is primary at the end.
  returned: when a role changes
  type: str
place:
  description: Upstream, slots and downstreams of this host at the end.
  returned: when a role changes
  type: dict
down:
  description: Hosts whose server does not run and gets the new secrets all the same.
  returned: for rotate
  type: list
  elements: str
ask_again:
  description: Hosts whose server could not be asked without psycopg2. Once they have it, observe them and plan again.
  returned: for setup
  type: list
  elements: str
since:
  description: For M(pg_ops.replication.pg_divergence), from whom this host parted, and where; empty where nothing is to be chosen.
  returned: for forks
  type: list
  elements: dict
kept:
  description: The primary that stays.
  returned: for heal
  type: str
fence_hosts:
  description: The hosts that are fenced.
  returned: for heal and failover
  type: list
  elements: str
given_up:
  description: The hosts whose WAL is given up against the ordinary rules of a rejoin, each with the LSN from which on.
  returned: for heal
  type: dict
blockers:
  description: Why it is refused, each with reason, host, message, observed, required and hint.
  returned: failure
  type: list
  elements: dict
rows:
  description: The state of the cluster, a row a node.
  returned: for status and prove
  type: list
  elements: dict
severity:
  description: V(healthy), V(degraded), or V(no_single_primary) when two nodes or more accept writes, or none.
  returned: for status
  type: str
problems:
  description: What is wrong with the cluster, as in RV(blockers), each also with C(problem), C(advice) and the C(command) that repairs it.
  returned: for status
  type: list
  elements: dict
cluster_exit_status:
  description: How a run of C(status.yml) ends because of this cluster, V(0), V(2) or V(3).
  returned: for status
  type: int
"""
