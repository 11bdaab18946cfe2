# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter set_conf."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

from ansible.errors import AnsibleFilterError
from ansible_collections.pg_ops.replication.plugins.module_utils.core import conf_file
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError

DOCUMENTATION = r"""
name: set_conf
short_description: A configuration file of PostgreSQL with other values
version_added: 0.2.0
description:
  - Returns the text of a C(postgresql.conf) in which each name has its value, or is not set where the value is null.
  - The last setting of a name is the one that counts and keeps its place. Comments stay; what is not there is appended.
author: pg_ops.replication contributors (@pg-ops)
positional: values
options:
  _input:
    description: The file's text.
    type: str
    required: true
  values:
    description: The value, or null, for each name.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show a copied configuration with this host's data directory
  ansible.builtin.debug:
    msg: "{{ copied | pg_ops.replication.set_conf({'data_directory': '/srv/pgsql/main', 'external_pid_file': none}) }}"
"""

RETURN = r"""
_value:
  description: The text.
  type: str
"""


def set_conf(text: str, values: Mapping[str, Optional[str]]) -> str:
    """Return the text with the values; raises AnsibleFilterError for one that PostgreSQL cannot read, without a word of it."""
    try:
        return conf_file.set_conf(str(text), {str(name): None if value is None else str(value) for name, value in values.items()})
    except PgOpsError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {"set_conf": set_conf}
