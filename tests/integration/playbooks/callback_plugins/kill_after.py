# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Callback of the tests: ends ansible-playbook with SIGKILL between two tasks, as a power cut of the controller would."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: kill_after
type: aggregate
short_description: Kill the playbook once a number of tasks has ended
description:
  - PG_OPS_TEST_KILL_AFTER says how many tasks may end; 0 kills nothing.
  - PG_OPS_TEST_TASKS names a file that gets the name of each task that began, one a line.
  - PG_OPS_TEST_KILL_IN names a task; the playbook is killed when that is about to begin a second time. With one fork it has ended on one host then,
    and not begun on any other.
author: pg_ops.replication contributors
"""


def kill() -> None:
    """End this process as a power cut would."""
    sys.stdout.flush()  # what a person would have seen by then
    os.kill(os.getpid(), signal.SIGKILL)


class CallbackModule(CallbackBase):
    """Counts the tasks that began; when one more than allowed begins, all before it have ended on every host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "kill_after"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._allowed = int(os.environ.get("PG_OPS_TEST_KILL_AFTER", "0"))
        self._journal = os.environ.get("PG_OPS_TEST_TASKS", "")
        self._kill_in = os.environ.get("PG_OPS_TEST_KILL_IN", "")
        self._begun = 0
        self._begun_on_hosts = 0

    def _count(self, name: str) -> None:
        self._begun += 1
        if self._allowed and self._begun > self._allowed:
            kill()
        if self._journal:
            with open(self._journal, "a", encoding="utf-8") as stream:
                stream.write(name + "\n")

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """Count a task."""
        self._count(task.get_name())

    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """Count a handler."""
        self._count(task.get_name())

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Count the hosts on which the task to be killed in began."""
        if self._kill_in and task.get_name().endswith(self._kill_in):
            self._begun_on_hosts += 1
            if self._begun_on_hosts == 2:
                kill()

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Count the end, so that a kill after the last task is one too."""
        self._count("end")
