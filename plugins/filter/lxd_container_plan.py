# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The filter pg_ops.replication.lxd_container_plan."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lxd_container_plan
short_description: Turn lxd_containers into containers to launch, or into the reasons why not
version_added: 0.1.0
author:
  - pg_ops.replication contributors (@pg_ops)
description:
  - Fills in defaults, puts the prefix before names, and finds every problem before anything is changed.
positional: _input
options:
  _input:
    description: The list C(lxd_containers), each entry with C(name), C(cluster), C(initial_role), C(upstream), C(priority).
    type: list
    elements: dict
    required: true
  prefix:
    description: Text that goes before each container's and each cluster's name.
    type: str
    default: ""
  existing:
    description: The instances that LXD has, as C(GET /1.0/instances?recursion=2) lists them.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Refuse a list that cannot work
  ansible.builtin.assert:
    that: plan.problems | length == 0
    fail_msg: "{{ plan.problems | join(' ') }}"
  vars:
    plan: "{{ lxd_containers | pg_ops.replication.lxd_container_plan }}"
"""

RETURN = r"""
_value:
  description: The plan.
  type: dict
  contains:
    containers:
      description:
        - One entry a container, with C(name), C(cluster) and C(config), the LXD config keys.
        - C(status) (V(Absent) when LXD has none), C(ours) (whether it is this project's), C(address), and C(patch), what is still to
          be set in the instance.
      type: list
      elements: dict
    problems:
      description: One sentence a problem; empty when the containers can be launched.
      type: list
      elements: str
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import InventoryError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lxd import (
    CLUSTER_KEY,
    Container,
    address_of,
    container_problems,
    containers_from,
    patch_for,
)


def lxd_container_plan(entries: Sequence[Mapping[str, Any]], *, prefix: str = "", existing: Sequence[Mapping[str, Any]] = ()) -> dict[str, list[Any]]:
    """Return the containers to launch and the problems that forbid it."""
    try:
        containers = containers_from(entries, prefix=prefix)
    except InventoryError as error:
        return {"containers": [], "problems": [error.message]}
    instances = {str(instance["name"]): instance for instance in existing}
    return {
        "containers": [_as_result(container, instances.get(container.name, {})) for container in containers],
        "problems": list(container_problems(containers, existing=existing)),
    }


def _as_result(container: Container, instance: Mapping[str, Any]) -> dict[str, Any]:
    """One container, and the instance that LXD has by its name, as plain data; one of another cluster is not ours, and never deleted."""
    present = (instance.get("config") or {}).get(CLUSTER_KEY) or ""
    return {
        "name": container.name,
        "cluster": container.cluster,
        "config": container.config,
        "status": str(instance.get("status") or "Absent"),
        "ours": present == container.cluster,
        "of_cluster": present,
        "address": address_of(instance) or "",
        "patch": patch_for(container, instance),
    }


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, Any]:
        """Return the filters of this file by name."""
        return {"lxd_container_plan": lxd_container_plan}
