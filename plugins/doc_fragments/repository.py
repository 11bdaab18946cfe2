# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the options that say whether a new copy may be made of a backup."""

from __future__ import annotations


class ModuleDocFragment:
    """REPOSITORY_OPTIONS of module_utils/cloning.py."""

    DOCUMENTATION = r"""
options:
  repository_command:
    description:
      - C(pgbackrest) with its configuration and stanza, V([pgbackrest, --config=FILE, --stanza=NAME]). Where it is given, a new copy may be made of the
        newest backup of that repository; O(copy_from) decides. The server must have a C(restore_command) that fetches the WAL since then.
    type: list
    elements: str
    default: []
    version_added: 0.2.0
  copy_from:
    description:
      - What a new copy is made of where O(repository_command) is given. V(auto) takes the backup where it is of the primary's timeline and fewer
        bytes than the databases have to travel, as the repository holds it and with the WAL since then; should that fail, the primary is copied.
        V(repository) copies the primary only where the repository has no backup.
    type: str
    choices: [auto, primary, repository]
    default: auto
    version_added: 0.2.0
"""
