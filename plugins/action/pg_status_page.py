# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Action plugin pg_status_page: all clusters of a run as one HTML page on the controller."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.plugins.plugin_utils.hostvars_topology import GROUP, observed_topology
from ansible_collections.pg_ops.replication.plugins.plugin_utils.status_page import render_page, write_page


def clusters_of_run(task_vars: Mapping[str, Any], observed: str) -> list[Topology]:
    """Return every cluster that a host of this run belongs to, also one whose hosts have all failed since."""
    hostvars, in_run = task_vars["hostvars"], set(task_vars["ansible_play_hosts_all"])
    first: dict[str, str] = {}
    for host in task_vars["groups"].get(GROUP, []):
        if host in in_run:
            first.setdefault(str(hostvars[host].get("pg_cluster_name", "main")), host)
    return [observed_topology(host, task_vars, observed) for host in first.values()]


class ActionModule(ActionBase):
    """Runs on the controller; once for all hosts."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _requires_connection = False

    def run(self, tmp: Any = None, task_vars: Any = None) -> dict[str, Any]:
        """Write the page; fails where it cannot be written."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _unused, options = self.validate_argument_spec(
            argument_spec={
                "path": {"type": "str", "required": True},
                "observed": {"type": "str", "default": "__pg_observed"},
                "template": {"type": "str", "default": "status.html.j2"},
            }
        )
        path = os.path.abspath(os.path.expanduser(options["path"]))
        template = Path(self._find_needle("templates", options["template"])).read_text(encoding="utf-8")
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        page = render_page(template, clusters_of_run(task_vars, options["observed"]), observed_at=now)
        if not self._task.check_mode:
            try:
                write_page(path, page)
            except OSError as error:
                message = "Cannot write {0}: {1}. Name another file in pg_status_html.".format(path, error.strerror)
                raise AnsibleActionFail(message) from None  # Ansible would append the cause, which says the same
        return {**result, "changed": True, "path": path}
