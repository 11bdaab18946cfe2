#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_switchover."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_switchover
short_description: Hand the primary role over to a standby, as planned, without losing a commit
version_added: 0.1.0
description:
  - Runs on the primary's host, in one process, so that nothing happens between the stop and the promotion but what must.
  - Checks the candidate, makes the slots that it will need, writes a checkpoint, makes sure that this server can only come back as a standby,
    stops it, waits until the candidate has the shutdown checkpoint, promotes it over SQL, and starts this server as its standby.
  - When the candidate cannot take over, this server is primary again. After the promotion was asked for nothing is taken back. This server
    stays a standby then, because the candidate may become primary at any moment.
  - A hand-over that was cut off is taken up again. One that is complete is left alone.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.peer
  - pg_ops.replication.attributes
options:
  candidate_slots:
    description: Physical slots that the candidate needs for its standbys.
    type: list
    elements: str
    default: []
  max_lag_bytes:
    description: How far the candidate may be behind when the stop begins.
    type: int
    default: 16777216
  stop_timeout_seconds:
    description: How long the checkpoint and the stop may take, each.
    type: float
    default: 60
  catch_up_timeout_seconds:
    description: How long the candidate may take to receive and replay everything.
    type: float
    default: 30
  promote_timeout_seconds:
    description: How long the promotion may take.
    type: float
    default: 60
  start_timeout_seconds:
    description: How long this server may take to stream from the new primary.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Hand over to pgsql2
  pg_ops.replication.pg_switchover:
    peer_name: pgsql2
    peer_address: 192.0.2.12
    host_name: pgsql1
    slot_name: pgsql1
    candidate_slots: [pgsql1, pgsql3]
"""

RETURN = r"""
timeline:
  description: The new primary's timeline.
  returned: changed, and when another run has handed over already
  type: int
  sample: 2
mark_lsn:
  description: An LSN on that timeline. A standby that has replayed it follows the new primary.
  returned: as timeline
  type: str
  sample: 0/5000220
shutdown_checkpoint_lsn:
  description: Where the old primary's last record begins; the new primary has replayed it.
  returned: changed
  type: str
window_seconds:
  description: How long nobody accepted writes, with its parts stop_seconds, catch_up_seconds and promote_seconds.
  returned: changed
  type: float
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.handover import HandOver, hand_over, has_handed_over, require_candidate, resume
from ansible_collections.pg_ops.replication.plugins.module_utils.promoting import read_state
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import POLL_SECONDS, Server, ServerError
from ansible_collections.pg_ops.replication.plugins.module_utils.sql import SqlError
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import PEER_OPTIONS, Peer

# How long a server that cuts connections off is asked again before that is an error.
CUT_OFF_SECONDS = 2.0


def terms_of(params: dict[str, Any]) -> HandOver:
    """Return the terms that the options name."""
    return HandOver(
        host_name=params["host_name"],
        slot_name=params["slot_name"],
        candidate_slots=tuple(params["candidate_slots"]),
        max_lag_bytes=params["max_lag_bytes"],
        stop_timeout_seconds=params["stop_timeout_seconds"],
        catch_up_timeout_seconds=params["catch_up_timeout_seconds"],
        promote_timeout_seconds=params["promote_timeout_seconds"],
        start_timeout_seconds=params["start_timeout_seconds"],
    )


def is_primary(server: Server, stop_timeout_seconds: float) -> bool:
    """Whether the server runs and accepts writes. One that still stops, for a run that was killed behind its stop, is waited for."""
    deadline = time.monotonic() + CUT_OFF_SECONDS
    while server.postmaster_pid():
        try:
            with server.connect() as session:
                return not read_state(session)["in_recovery"]
        except SqlError as error:
            if "shutting down" in error.message and server.wait_stopped(timeout_seconds=stop_timeout_seconds):
                return False
            # Whoever connects at the moment of the stop is cut off without a word.
            if error.reason not in ("connect", "sql") or time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)
    return False


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Hand over when no other run does."""
    if module.check_mode:
        return work_alone(module, server)
    with server.alone():
        return work_alone(module, server)


def work_alone(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Hand over, or take a hand-over up again that was cut off."""
    peer = Peer.from_params(module.params)
    terms = terms_of(module.params)
    primary = is_primary(server, terms.stop_timeout_seconds)
    diff = mapping_diff("primary role", {"primary": terms.host_name}, {"primary": peer.name})
    done = None if primary else has_handed_over(server, peer, terms)
    if done is not None:
        # Where it was waited for, the siblings are still to be re-pointed: by what they need to know of the new primary.
        return {"changed": False, "diff": mapping_diff("primary role", {"primary": peer.name}, {"primary": peer.name}), **done}
    # A fence that another run has set since means that somebody else may be primary.
    interrupted = not primary and server.read_note("pending").get("target") == peer.name and not server.read_note("fenced")
    if not primary and not interrupted:
        raise ServerError(
            "this server is not primary", reason="not_primary", observed="standby or down", required="a running primary",
            hint="Run status.yml to see who is primary.",
        )
    if module.check_mode:
        if primary:
            require_candidate(server, peer, system_identifier=server.control_data().system_identifier)
        return {"changed": True, "diff": diff}
    result = resume(server, peer, terms) if interrupted else hand_over(server, peer, terms)
    return {"changed": True, "diff": diff, **result}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        **PEER_OPTIONS,
        candidate_slots={"type": "list", "elements": "str", "default": []},
        max_lag_bytes={"type": "int", "default": 16777216},
        stop_timeout_seconds={"type": "float", "default": 60},
        catch_up_timeout_seconds={"type": "float", "default": 30},
        promote_timeout_seconds={"type": "float", "default": 60},
        start_timeout_seconds={"type": "float", "default": 60},
    )


if __name__ == "__main__":
    main()
