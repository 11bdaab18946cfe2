# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filter slot_name."""

from __future__ import annotations

from typing import Any, Callable

from ansible.errors import AnsibleFilterError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import slot_name_for

DOCUMENTATION = r"""
name: slot_name
short_description: The physical slot that a host uses at its upstream
version_added: 0.1.0
description:
  - Returns the host's name where PostgreSQL accepts it as a slot name.
  - Otherwise returns a name that holds only legal characters and a short hash, so that no two hosts share one.
author: pg_ops.replication contributors (@pg-ops)
options:
  _input:
    description: Inventory name of the host.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show the slot of this host
  ansible.builtin.debug:
    msg: "{{ inventory_hostname | pg_ops.replication.slot_name }}"
"""

RETURN = r"""
_value:
  description: Name of the slot.
  type: str
"""


def slot_name(host: str) -> str:
    """Return the slot of a host; raises AnsibleFilterError for an impossible name."""
    try:
        return slot_name_for(host)
    except PgOpsError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return them by name."""
        return {"slot_name": slot_name}
