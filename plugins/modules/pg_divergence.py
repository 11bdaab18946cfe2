#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_divergence."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_divergence
short_description: What a server committed since it parted from another one
version_added: 0.2.0
description:
  - Reads the WAL of a server, running or not, from the LSN on at which it parted from another server, and counts the transactions that
    committed. Changes nothing.
  - A count is complete only when all of that WAL could be read. Recycled WAL, or more than can be read in time, makes the answer unknown,
    which must be taken for commits.
  - Transactions that write nothing but the planner's statistics (C(ANALYZE), which autovacuum runs by itself) are counted apart. One that may have
    written before the two parted is not among them. The WAL before that LSN tells which these are; where it is gone, all count as commits.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
attributes:
  check_mode:
    description: Does the same, for it changes nothing.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
options:
  since:
    description: From whom this server parted, and where.
    type: list
    elements: dict
    required: true
    suboptions:
      other:
        description: Inventory name of the other server.
        type: str
        required: true
      lsn:
        description: The LSN at which they parted. Empty means that it is not known; then the answer is unknown too.
        type: str
        default: ""
  timeout_seconds:
    description: How long reading the WAL may take. What is not read by then is unknown.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Find out what only the old primary has
  pg_ops.replication.pg_divergence:
    since:
      - other: pgsql2
        lsn: 0/5000148
  register: divergence
"""

RETURN = r"""
sides:
  description:
    - An answer to each question. RV(sides[].complete) says whether everything could be read.
    - Of RV(sides[].xids) and RV(sides[].relations) the first ones are there. Relations have names only where the server runs.
  returned: success
  type: list
  elements: dict
  contains:
    other:
      description: The server that the question names.
      type: str
    from_lsn:
      description: The LSN that the question names.
      type: str
    complete:
      description: Whether everything since then could be read.
      type: bool
    transactions:
      description: How many transactions committed, as far as could be read.
      type: int
    statistics_transactions:
      description: How many more certainly wrote nothing but the planner's statistics.
      type: int
    xids:
      description: Ids of the first ten.
      type: list
      elements: int
    first_at:
      description: When the first one committed.
      type: str
    last_at:
      description: When the last one committed.
      type: str
    relations:
      description: Names of the tables that they touched, with their databases.
      type: list
      elements: str
    problem:
      description: Why it is not complete.
      type: str
  sample:
    - other: pgsql2
      from_lsn: 0/5000148
      complete: true
      transactions: 1
      statistics_transactions: 0
      xids: [742]
      first_at: 2026-01-31 03:12:45.678901 UTC
      last_at: 2026-01-31 03:12:45.678901 UTC
      relations: ["shop: public.orders"]
      problem: ""
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.divergence import Since, divergence
from ansible_collections.pg_ops.replication.plugins.module_utils.running import run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Read the WAL and answer."""
    since = [Since(question["other"], question["lsn"]) for question in module.params["since"]]
    return {"changed": False, "sides": divergence(server, since, timeout_seconds=module.params["timeout_seconds"])}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        since={
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {"other": {"type": "str", "required": True}, "lsn": {"type": "str", "default": ""}},
        },
        timeout_seconds={"type": "float", "default": 60},
    )


if __name__ == "__main__":
    main()
