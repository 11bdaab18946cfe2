#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_restore_beside."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_restore_beside
short_description: Restore a point in time beside the live server
version_added: 0.2.0
description:
  - Restores a backup of a pgBackRest repository into a directory of its own, replays WAL up to the target, and starts the result on another
    port. The live server is neither stopped nor touched.
  - The copy archives nothing, replicates nothing and waits for no standby. It is not under a service manager, and is gone after a reboot of the host
    until it is started again.
  - The same request once more changes nothing, and starts the copy where it does not run. A copy that runs keeps its port, whichever is asked for.
    A directory that holds anything else is refused.
  - A run that was killed, or has lost its controller, is made up for by the same request. One that still works is waited for, also while the copy
    recovers. What a killed one has left of the directory is removed and made again.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  target_time:
    description:
      - The moment to restore, with its offset from UTC, V(2026-01-31T23:59:59Z) for one. Transactions that committed after it are not in the copy.
      - Exactly one of O(target_time), O(target_lsn) and O(target_name) is needed.
    type: str
    default: ""
  target_lsn:
    description: The WAL position to restore.
    type: str
    default: ""
  target_name:
    description: The point to restore that C(pg_create_restore_point) has named.
    type: str
    default: ""
  target_timeline:
    description:
      - The timeline to follow, V(live), V(latest), V(current) (that of the backup) or a number.
      - V(live) is the one of O(live_timeline). Backups of a branch that the live server has not come by do not count then. Where O(live_timeline)
        is not known, or that of the backup, it is V(latest).
      - V(latest) is the newest timeline in the archive, which may be one that was given up.
    type: str
    default: live
  live_timeline:
    description: The timeline that the live primary is on. V(0) means that it is not known.
    type: int
    default: 0
  live_history:
    description: The content of the history file of O(live_timeline). Timeline 1 has none.
    type: str
    default: ""
  backup:
    description: Label of the backup to begin with. Empty means the newest that ended before the target, with O(target_name) the oldest.
    type: str
    default: ""
  directory:
    description: Where the copy is made. It must not exist. Empty means the data directory with C(.restored) appended.
    type: str
    default: ""
  port:
    description: The copy's port.
    type: int
    default: 5433
  listen_addresses:
    description:
      - Where the copy listens, beside the socket directory of the live server.
      - Where that is more than this host, hosts in the networks that this host is in are let in, with a password.
    type: str
    default: localhost
  settings:
    description: More PostgreSQL settings for the copy, C(shared_preload_libraries) for one. The live server's are not taken over.
    type: dict
    default: {}
  stanza:
    description: pgBackRest's name for the cluster.
    type: str
    required: true
  config:
    description: pgBackRest's configuration file on this host.
    type: path
    required: true
  awaited_segment:
    description: A segment of WAL that was closed just now and is waited for before the restore. Empty means none.
    type: str
    default: ""
  host_name:
    description: What messages call this host.
    type: str
    default: this host
  timeout_seconds:
    description: How long another run of the same request, the copy, and then recovery may take, in seconds each.
    type: float
    default: 86400
"""

EXAMPLES = r"""
- name: Show the data as they were before the accident
  pg_ops.replication.pg_restore_beside:
    target_time: "2026-01-31T23:59:59Z"
    port: 5433
    stanza: main
    config: /etc/pgbackrest/pg_ops_main.conf
  register: past
"""

RETURN = r"""
directory:
  description: Where the copy is.
  returned: success
  type: str
state_directory:
  description: Where notes of the copy are, beside it.
  returned: success
  type: str
tablespaces_directory:
  description: Where the copies of tablespaces are; empty when there are none.
  returned: success and not check mode
  type: str
port:
  description: Its port. Of a copy that runs already the one that it runs on, which need not be O(port).
  returned: success
  type: int
target:
  description: The target as PostgreSQL was told.
  returned: success
  type: str
backup:
  description: Label of the backup that it was restored from; empty when nothing was restored in this run.
  returned: success
  type: str
timeline:
  description: The timeline that recovery was told to follow; empty when nothing was restored in this run.
  returned: success
  type: str
last_transaction:
  description: When the last transaction committed that is in it; empty when recovery replayed none in this run of the copy.
  returned: success and not check mode
  type: str
databases:
  description: Its databases.
  returned: success and not check mode
  type: list
  elements: str
"""

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils import restoring
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import refusal
from ansible_collections.pg_ops.replication.plugins.module_utils.core.restore import (
    LIVE,
    UNKNOWN,
    Lineage,
    choose_backup,
    parse_target,
    restore_blockers,
    timeline_to_follow,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import parse_history
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server


def terms_of(params: dict[str, Any], server: Server) -> restoring.RestoreTerms:
    """Return the terms that the module's options name."""
    target = parse_target(time=params["target_time"], lsn=params["target_lsn"], name=params["target_name"])
    directory = params["directory"] or server.data_directory.rstrip("/") + ".restored"
    follows = params["target_timeline"] == LIVE and params["live_timeline"]
    live = Lineage(params["live_timeline"], parse_history(params["live_history"])) if follows else UNKNOWN
    return restoring.RestoreTerms(
        target, directory.rstrip("/"), params["port"], params["stanza"], params["config"], backup=params["backup"],
        timeline=params["target_timeline"], live=live, listen_addresses=params["listen_addresses"], settings=params["settings"],
        awaited_segment=params["awaited_segment"], timeout_seconds=params["timeout_seconds"],
    )


def plan(module: AnsibleModule, server: Server, copy: Server, terms: restoring.RestoreTerms) -> dict[str, Any]:
    """Return what the module returns in check mode: a refusal, or what is to be done; `backup` is empty where the copy is complete."""
    result: dict[str, Any] = {"directory": terms.directory, "state_directory": copy.state_directory, "target": terms.target.value}
    if restoring.read_request(copy) == terms.request:
        running = bool(copy.postmaster_pid())
        diff = mapping_diff("copy", {"running": running}, {"running": True})
        return {**result, "port": restoring.as_it_runs(copy).port, "backup": "", "timeline": "", "changed": not running, "diff": diff}
    place, backups = restoring.observe_place(copy), restoring.backups_of(server, terms)
    backup = choose_backup(terms.target, backups, terms.backup, terms.live)
    blockers = restore_blockers(
        module.params["host_name"], terms.target, backups, place, now=time.time(), live_port=server.port, request=terms.request, label=terms.backup,
        live=terms.live,
    )
    if blockers or backup is None:
        return {
            "failed": True, "msg": refusal("restore of {0} to {1}".format(terms.stanza, terms.target.value), blockers),
            "reason": blockers[0].reason, "blockers": [blocker.as_result() for blocker in blockers],
        }
    diff = mapping_diff("copy", {"data": "unfinished" if place.begun_for else "none"}, {"data": terms.target.value, "from": backup.label})
    timeline = timeline_to_follow(terms.timeline, backup, terms.live)
    return {**result, "port": copy.port, "backup": backup.label, "timeline": timeline, "changed": True, "diff": diff}


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Restore unless it was done already."""
    terms = terms_of(module.params, server)
    restoring.require_apart(server, terms.directory)
    copy = restoring.copy_of(server, terms)
    result = plan(module, server, copy, terms)
    if module.check_mode or result.get("failed"):
        return result
    with copy.alone(timeout_seconds=terms.timeout_seconds):
        result = plan(module, server, copy, terms)  # another run may have been at it until now
        if result.get("failed"):
            return result
        if result["backup"]:
            restoring.await_archived(server, copy, terms)
            restoring.restore(server, copy, terms, result["backup"], result["timeline"])
        else:
            restoring.bring_up(copy, terms)
        copy = restoring.as_it_runs(copy)
        return {**result, **restoring.describe(copy), "port": copy.port}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        target_time={"type": "str", "default": ""},
        target_lsn={"type": "str", "default": ""},
        target_name={"type": "str", "default": ""},
        target_timeline={"type": "str", "default": "live"},
        live_timeline={"type": "int", "default": 0},
        live_history={"type": "str", "default": ""},
        backup={"type": "str", "default": ""},
        directory={"type": "str", "default": ""},
        port={"type": "int", "default": 5433},
        listen_addresses={"type": "str", "default": "localhost"},
        settings={"type": "dict", "default": {}},
        stanza={"type": "str", "required": True},
        config={"type": "path", "required": True},
        awaited_segment={"type": "str", "default": ""},
        host_name={"type": "str", "default": "this host"},
        timeout_seconds={"type": "float", "default": 86400},
    )


if __name__ == "__main__":
    main()
