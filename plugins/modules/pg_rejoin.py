#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_rejoin."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_rejoin
short_description: Bring a server back as a standby of the present primary
version_added: 0.1.0
description:
  - Compares this server with the primary and takes the cheapest safe way. A server whose WAL ends in the primary's past is started,
    one that has WAL of its own is rewound, and where neither can be done it is copied anew, with the old directory kept.
  - Before it is copied because the primary has recycled the WAL that it needs, its own C(restore_command) is asked for that WAL. Where segments
    from there to the oldest that the primary has are delivered, all of them or eight of many, it is started and fetches them. Check mode asks too.
  - Before anything is thrown away, a report lists the transactions that exist only here, 100,000 at the most, and their WAL is copied beside it, 64 segments
    at the most. Where there is more of both, it is copied anew and not rewound.
  - Backends that go on working although their postmaster is dead are ended first.
  - Proves at the end that the server streams and has replayed an LSN that the primary wrote after the start. Of one whose replay is held up by
    C(recovery_min_apply_delay) it proves that it is up and in recovery, for it streams only once it has replayed the WAL that it has.
  - Refuses data of another cluster, another major version, and a server that is on a newer timeline than the primary.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.peer
  - pg_ops.replication.repository
  - pg_ops.replication.attributes
options:
  oldest_wal_lsn:
    description: Where the WAL begins that the primary still has. Empty means unknown.
    type: str
    default: ""
  give_up:
    description:
      - What this server has from O(give_up_from_lsn) on is given up by somebody's decision. It is copied anew even if its timeline is newer
        than the primary's, or has the same number and history; the report is written and the old directory kept.
      - Nothing but a person's choice between two servers should set it; see the role C(heal).
    type: bool
    default: false
    version_added: 0.2.0
  give_up_from_lsn:
    description: With O(give_up=true), where the WAL begins whose transactions the report lists. Empty means unknown; then the report says that it
      lists nothing.
    type: str
    default: ""
    version_added: 0.2.0
  start_timeout_seconds:
    description:
      - How long the server may take to stream. One that fetches WAL from its archive may take O(rewind_timeout_seconds) until it accepts
        connections, then so long without any progress of its replay, and O(clone_timeout_seconds) in all.
    type: float
    default: 120
  rewind_timeout_seconds:
    description: How long crash recovery and C(pg_rewind) may take, each.
    type: float
    default: 3600
  clone_timeout_seconds:
    description: How long a new copy may take.
    type: float
    default: 86400
  max_rate:
    description: Limit of a new copy's transfer in C(pg_basebackup)'s words. Empty means none.
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Bring the old primary back
  pg_ops.replication.pg_rejoin:
    peer_name: pgsql2
    peer_address: 192.0.2.12
    host_name: pgsql1
    slot_name: pgsql1
"""

RETURN = r"""
action:
  description: What was done, or would be, C(nothing), C(follow), C(start), C(rewind) or C(reclone).
  returned: success
  type: str
  sample: rewind
why:
  description: The reason for it, with what the server's archive answered where it was asked.
  returned: success
  type: str
checkpoint_first:
  description:
    - Whether the primary has still to write the checkpoint of its promotion, without which nothing is brought back. Check mode goes on without it.
      The role C(rejoin) has it written first.
  returned: success
  type: bool
  version_added: 0.2.0
report:
  description: The file that lists the transactions that exist only here.
  returned: when there was WAL of its own
  type: str
lost_transactions:
  description: How many committed transactions exist only here.
  returned: when there was WAL of its own
  type: int
listed_transactions:
  description: How many of them the report lists.
  returned: when there was WAL of its own
  type: int
  version_added: 0.2.0
report_problem:
  description:
    - Why the report may not list all, empty when it does. WAL that is gone or cannot be read in time leaves one, and so do two servers of which
      nobody can tell where they parted, and more transactions than are listed together with more WAL than is kept. The server is copied anew then,
      and its old directory kept.
  returned: when there was WAL of its own
  type: str
kept_directory:
  description: Where the old data directory is kept after a new copy.
  returned: when it was copied anew
  type: str
rewind_failed:
  description: Why a rewind could not be done, when it became a new copy.
  returned: when that happened
  type: str
seconds:
  description: How long it took.
  returned: changed
  type: float
"""

from typing import Any, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.cloning import REPOSITORY_OPTIONS, require_room
from ansible_collections.pg_ops.replication.plugins.module_utils.core import rejoin as decisions
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.rejoining import (
    RejoinTerms,
    mapping_of,
    observe_here,
    observe_primary,
    plan,
    refused,
    rejoin,
    without_checkpoint,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, deaf_to_hangups
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import PEER_OPTIONS, Peer


def terms_of(params: dict[str, Any]) -> RejoinTerms:
    """Return the terms that the options name."""
    return RejoinTerms(
        host_name=params["host_name"],
        slot_name=params["slot_name"],
        oldest_wal_lsn=params["oldest_wal_lsn"],
        start_timeout_seconds=params["start_timeout_seconds"],
        rewind_timeout_seconds=params["rewind_timeout_seconds"],
        clone_timeout_seconds=params["clone_timeout_seconds"],
        max_rate=params["max_rate"],
        repository_command=tuple(params["repository_command"]),
        copy_from=params["copy_from"],
    )


def _given_up(params: dict[str, Any], here: Node, primary: Node) -> Optional[decisions.RejoinPlan]:
    """Return the plan for a server that was given up; None for any other, and for one whose new copy is there already."""
    follows = (here.upstream.host, here.upstream.port) == (primary.member.address, primary.member.port)
    done = here.is_running_standby and here.timeline == primary.timeline and follows and not here.fenced
    if not params["give_up"] or done:
        return None
    return decisions.plan_given_up(here, primary, params["give_up_from_lsn"])


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Bring the server back when no other run does: what outlived its controller would undo what this one has proven."""
    if module.check_mode:
        return work_alone(module, server)
    with server.alone():
        return work_alone(module, server)


def work_alone(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Observe both sides, plan, and act."""
    peer, terms = Peer.from_params(module.params), terms_of(module.params)
    primary, mark = observe_primary(server, peer, terms.oldest_wal_lsn)
    missing = without_checkpoint(primary)
    if missing is not None and not module.check_mode:
        raise missing
    if not module.check_mode:
        server.end_outliving()  # it would commit behind the report
    here = observe_here(server, terms)
    chosen = _given_up(module.params, here, primary) or plan(server, here, primary)
    refusal = refused(chosen)
    if refusal is not None:
        raise refusal
    changed = chosen.action != decisions.NOTHING or here.fenced
    result = {**mapping_of(chosen), "checkpoint_first": missing is not None}
    if module.check_mode and chosen.action == decisions.RECLONE:
        require_room(server, peer)
    if changed and not module.check_mode:
        with deaf_to_hangups():
            result.update(rejoin(server, peer, terms, chosen, here, primary, mark))
    before = {"role": here.role, "state": here.state, "timeline": here.timeline}
    after = {"role": "standby", "state": "running", "timeline": primary.timeline, "by": chosen.action} if changed else before
    return {"changed": changed, "diff": mapping_diff(terms.host_name, before, after), **result}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        **PEER_OPTIONS,
        **REPOSITORY_OPTIONS,
        oldest_wal_lsn={"type": "str", "default": ""},
        start_timeout_seconds={"type": "float", "default": 120},
        rewind_timeout_seconds={"type": "float", "default": 3600},
        clone_timeout_seconds={"type": "float", "default": 86400},
        max_rate={"type": "str", "default": ""},
        give_up={"type": "bool", "default": False},
        give_up_from_lsn={"type": "str", "default": ""},
    )


if __name__ == "__main__":
    main()
