# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Testinfra's commands wait a little in the container, as those of our connection plugin do: LXD 5.0 loses the output of short ones."""

from __future__ import annotations

from typing import Any

from testinfra.backend.lxc import LxcBackend

PAUSE_SECONDS = 0.05
at_once = LxcBackend.run


def patiently(self: LxcBackend, command: str, *args: str, **kwargs: Any) -> Any:
    """Run a command in a container when LXD listens to it."""
    return at_once(self, f"sleep {PAUSE_SECONDS}; {command}", *args, **kwargs)


LxcBackend.run = patiently
