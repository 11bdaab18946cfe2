# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking a server's own restore_command for WAL, whether the server runs or not. Nothing of the server is changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.pg_ops.replication.plugins.module_utils.core.archived_wal import HISTORY, shell_command
from ansible_collections.pg_ops.replication.plugins.module_utils.core.control_data import ControlData
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError
from ansible_collections.pg_ops.replication.plugins.module_utils.wal_pages import is_segment_of

FETCH_SECONDS = 60
# What systemd gives to a server: an administrator's restore_command may name a program without its directory.
SERVICE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def undelivered(server: Server, segments: Sequence[str]) -> str:
    """Return which of the segments and history files restore_command does not deliver, and why; empty when it delivers them all."""
    command, control = server.configured("restore_command"), server.control_data()
    server.ensure_state_directory()
    place = server.state("fetched-wal")
    shutil.rmtree(str(place), ignore_errors=True)  # of a run that was killed
    place.mkdir(mode=0o700)
    try:
        server.own(place)
        for segment in segments:
            problem = _fetch(server, command, segment, place / "RECOVERYXLOG", control)
            if problem:
                return "{0}: {1}".format(segment, problem)
    finally:
        shutil.rmtree(str(place), ignore_errors=True)
    return ""


def _fetch(server: Server, command: str, segment: str, target: Path, control: ControlData) -> str:
    """Fetch one segment as the server would, and remove it; returns why it did not come, empty when it did.

    Its standard error is not shown: nobody knows whether an administrator's command prints a secret.
    """
    # Relative to the data directory, where PostgreSQL runs the command: some prepend that directory themselves.
    path = os.path.relpath(os.path.realpath(str(target)), os.path.realpath(server.data_directory))
    # With its children, which subprocess alone would leave at work.
    within = ["timeout", "--kill-after=5", str(FETCH_SECONDS)]
    try:
        done = server.run(
            [*within, "/bin/sh", "-c", shell_command(command, segment=segment, path=path)], timeout_seconds=FETCH_SECONDS + 10, check=False,
            environment={"PATH": SERVICE_PATH}, directory=server.data_directory,
        )
    except ServerError as error:
        return error.message
    if done.returncode in (124, 137):  # 137: it survived the first signal
        return "it did not come within {0} s".format(FETCH_SECONDS)
    if done.returncode != 0:
        return "exit status {0}".format(done.returncode)
    if segment.endswith(HISTORY) and target.is_file() and target.stat().st_size:
        target.unlink()
        return ""
    if not is_segment_of(target, control.system_identifier, control.wal_segment_bytes):
        return "what came is no whole segment of this cluster"
    target.unlink()
    return ""
