# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lets status.yml end with 3 where a cluster has two primaries or none; Ansible itself knows only 2 and 4.

It lies beside the playbooks because Ansible loads callbacks from there without being told to, in a checkout as in the installed collection.
"""

from __future__ import annotations

from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: pg_status_exit
type: aggregate
short_description: End status.yml with 3 where a cluster has two primaries or none
description:
  - Turns a failure into another one; a run that Ansible counts as a success stays one, and so does every run of another playbook.
  - It wins over Ansible's own 2 and 4, for nothing that they stand for is worse.
author: pg_ops.replication contributors
"""

# What the action plugin pg_plan returns for operation=status.
KEY = "cluster_exit_status"
NO_SINGLE_PRIMARY = 3


class CallbackModule(CallbackBase):
    """Remembers the hosts whose cluster has no single primary, and ends the run with 3 when it failed on one of them."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "pg_status_exit"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._without_primary: set[str] = set()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        """Forget what the playbook before this one, on the same command line, has shown."""
        self._without_primary.clear()

    def v2_runner_on_ok(self, result: Any) -> None:
        """Take what the status of one host's cluster was."""
        if result._result.get(KEY) == NO_SINGLE_PRIMARY:
            self._without_primary.add(result._host.get_name())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """End with 3, after the recap. Ansible catches every Exception of a callback; SystemExit is none."""
        if self._without_primary.intersection(stats.failures):
            raise SystemExit(NO_SINGLE_PRIMARY)
