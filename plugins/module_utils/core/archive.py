# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is wrong with a cluster's WAL archive.

Kept apart from the problems that a role change must not leave behind: a failover while the archive's host is down too is a good one.
"""

from __future__ import annotations

from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology

# An archive that takes everything is this far behind only under a load that it is too slow for; one whose command hangs does not fail either.
MAX_WAITING_FILES = 100


def _archive_problem(node: Node) -> Optional[Blocker]:
    hint = "The end of that server's log says why archive_command fails; its WAL stays until it succeeds. What pg_archive has set up, initial_setup.yml mends."
    waiting = "{0} file(s) of WAL wait".format(node.archive_ready_files)
    if node.archive_failing:
        failed = "archive_command fails" + (" for " + node.archive_failed_wal if node.archive_failed_wal else "")
        return Blocker("archive_failing", node.host, "does not archive its WAL", "{0}, {1}".format(failed, waiting), "none fails", hint)
    if node.archive_ready_files > MAX_WAITING_FILES:
        hint = "Look whether archive_command hangs, or is too slow for what is written. What pg_archive has set up, initial_setup.yml proves."
        return Blocker("archive_behind", node.host, "archives its WAL too slowly", waiting, "at most {0}".format(MAX_WAITING_FILES), hint)
    return None


def archive_problems(topology: Topology) -> tuple[Blocker, ...]:
    """Return what is wrong with the archiving of each server that accepts writes; standbys do not archive, and remember old failures.

    The same holds for one whose archive_mode was switched off since.
    """
    archiving = [node for node in topology.primaries if node.settings.get("archive_mode", "off") != "off"]
    return tuple(problem for problem in map(_archive_problem, archiving) if problem is not None)
