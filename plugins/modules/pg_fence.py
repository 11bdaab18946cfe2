#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_fence."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_fence
short_description: Make sure that a server accepts no writes, now and after its next start
version_added: 0.1.0
description:
  - Writes C(standby.signal), so that whatever starts the server starts a read-only one, then ends a server that still runs.
  - A server that does not react, a frozen one for example, is ended with SIGKILL, and so are backends that go on working although their
    postmaster is dead. M(pg_ops.replication.pg_rejoin) lifts the fence.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
"""

EXAMPLES = r"""
- name: Fence the old primary
  pg_ops.replication.pg_fence:
"""

RETURN = r"""
fenced:
  description: Whether the server is fenced at the end.
  returned: success
  type: bool
ended:
  description: Whether a server ran here until it was fenced. It may have accepted writes until then.
  returned: success
  type: bool
  version_added: 0.2.0
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.fencing import fence, is_fenced
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Fence unless it is so already."""
    fenced = is_fenced(server)
    ended = not fenced and not module.check_mode and fence(server)
    diff = mapping_diff("server", {"fenced": fenced}, {"fenced": True})
    return {"changed": not fenced, "fenced": fenced or not module.check_mode, "ended": ended, "diff": diff}


def main() -> None:
    """Run the module."""
    run_module(work)


if __name__ == "__main__":
    main()
