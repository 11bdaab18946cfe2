#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_basebackup_standby."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_basebackup_standby
short_description: Make a standby by copying its primary
version_added: 0.1.0
description:
  - Copies the primary with C(pg_basebackup) into a directory beside the data directory and swaps it in when it is complete.
  - A standby of the same primary is left alone. Foreign data is refused, or set aside with O(replace_data=true); it is never deleted.
  - A copy that was interrupted is made again, a swap that was interrupted is finished. The server is not started.
  - The copy grows in the directory that is named like the data directory with C(.clone) appended.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.peer
  - pg_ops.replication.repository
  - pg_ops.replication.attributes
options:
  replace_data:
    description: Set data aside that is not this cluster's. The server that holds it is stopped.
    type: bool
    default: false
  max_rate:
    description: Limit of the transfer in C(pg_basebackup)'s words, for example V(32M) a second. Empty means none.
    type: str
    default: ""
  timeout_seconds:
    description: How long the copy may take.
    type: float
    default: 86400
"""

EXAMPLES = r"""
- name: Copy the primary
  pg_ops.replication.pg_basebackup_standby:
    peer_name: pgsql1
    peer_address: 192.0.2.11
    host_name: pgsql2
    slot_name: pgsql2
"""

RETURN = r"""
kept_directory:
  description: Where data that was replaced is kept; empty when there was none.
  returned: changed
  type: str
  sample: /var/lib/postgresql/15/main.kept.20260131T235959Z
database_bytes:
  description: Size of the databases that were copied.
  returned: changed
  type: int
copy_seconds:
  description: How long C(pg_basebackup) took, or pgBackRest.
  returned: changed
  type: float
copied_from:
  description: What was copied, V(primary) or V(repository).
  returned: changed
  type: str
copied_because:
  description: Why that was copied.
  returned: changed
  type: str
  sample: the newest backup takes 2.7M and the WAL since then 48k, the databases take 22M
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.cloning import (
    REPOSITORY_OPTIONS,
    CloneTerms,
    clone,
    finish_interrupted,
    require_room,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import PEER_OPTIONS, Peer, connect_replication, identify


def is_standby_of(server: Server, identifier: str) -> bool:
    """Whether the data here is a standby's of that cluster. Raises ServerError for a primary of the same cluster."""
    if not server.exists() or server.control_data().system_identifier != identifier:
        return False
    if not server.standby_signal.exists():
        raise ServerError(
            "the data directory is a primary's of the same cluster", reason="was_primary", observed="no standby.signal", required="a standby",
            hint="Run start_new_standby.yml: it brings an old primary back and reports what would be lost.",
        )
    return True


def refuse_foreign(server: Server) -> None:
    """Raise ServerError that says what was found."""
    raise ServerError(
        "the data directory holds another cluster's data", reason="foreign_data",
        observed="system identifier {0} in {1}".format(server.control_data().system_identifier, server.data_directory),
        required="no data, or a standby of this cluster", hint="Look at it; -e pg_standby_replace_data=true moves it aside.",
    )


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Copy when no other run does: two would write into one copy."""
    if module.check_mode:
        return work_alone(module, server)
    with server.alone():
        return work_alone(module, server)


def work_alone(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Copy unless the standby is there."""
    params = module.params
    peer = Peer.from_params(params)
    finished = finish_interrupted(server) if not module.check_mode else None
    with connect_replication(server, peer) as replication:
        identifier = str(identify(replication)["systemid"])
    if is_standby_of(server, identifier):
        found = {"data": "standby of {0}".format(peer.name)}
        before = found if finished is None else {"data": "an interrupted copy of {0}".format(peer.name)}
        more = {} if finished is None else {"kept_directory": finished}
        return {"changed": finished is not None, "diff": mapping_diff(server.data_directory, before, found), **more}
    present = server.exists()
    if present and not params["replace_data"]:
        refuse_foreign(server)
    diff = mapping_diff(server.data_directory, {"data": "other data" if present else "none"}, {"data": "copy of {0}".format(peer.name)})
    require_room(server, peer)
    if module.check_mode:
        return {"changed": True, "diff": diff}
    if server.postmaster_pid():
        server.stop()
    terms = CloneTerms(
        params["host_name"], params["slot_name"], max_rate=params["max_rate"], timeout_seconds=params["timeout_seconds"],
        repository_command=tuple(params["repository_command"]),
        copy_from=params["copy_from"],
    )
    return {"changed": True, "diff": diff, **clone(server, peer, terms)}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        **PEER_OPTIONS,
        **REPOSITORY_OPTIONS,
        replace_data={"type": "bool", "default": False},
        max_rate={"type": "str", "default": ""},
        timeout_seconds={"type": "float", "default": 86400},
    )


if __name__ == "__main__":
    main()
