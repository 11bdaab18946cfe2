# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter pg_ops.replication.lxd_free_subnet."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lxd_free_subnet
short_description: Choose a bridge address whose network overlaps no route of the host
version_added: 0.1.0
author:
  - pg_ops.replication contributors (@pg_ops)
description:
  - Returns the first candidate whose network overlaps no destination in the host's IPv4 routing table.
  - LXD's own V(auto) probes random addresses and finds none where a network answers for all of them.
positional: _input
options:
  _input:
    description: Output of C(ip -4 route show table all).
    type: str
    required: true
  candidates:
    description: Bridge addresses with prefix length, as C(192.0.2.1/24).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show a free bridge address
  ansible.builtin.debug:
    msg: "{{ routes.stdout | pg_ops.replication.lxd_free_subnet(['10.117.84.1/24', '192.168.217.1/24']) }}"
"""

RETURN = r"""
_value:
  description: The candidate; empty when each overlaps a route.
  type: str
"""

from collections.abc import Sequence
from typing import Any

from ansible_collections.pg_ops.replication.plugins.module_utils.core.lxd import free_subnet


def lxd_free_subnet(routes: str, candidates: Sequence[str]) -> str:
    """Return the first candidate that is free, or an empty string."""
    return free_subnet(routes, candidates) or ""


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"lxd_free_subnet": lxd_free_subnet}
