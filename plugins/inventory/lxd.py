# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The inventory plugin pg_ops.replication.lxd."""

from __future__ import annotations

DOCUMENTATION = r"""
name: lxd
short_description: LXD containers that run PostgreSQL
version_added: 0.1.0
author:
  - pg_ops.replication contributors (@pg_ops)
description:
  - Lists the LXD containers that carry the config key C(user.pg_cluster), with one query to LXD.
  - Puts each into the groups C(pg_nodes) and C(pg_cluster_<name>), where characters that no group name may have become C(_).
  - Sets the host variables C(pg_cluster_name), C(pg_address), C(pg_initial_role) (from C(user.pg_initial_role)), C(pg_upstream) (from
    C(user.pg_upstream)) and C(pg_priority) (from C(user.pg_priority), 100 where there is none).
  - Sets C(ansible_connection=pg_ops.replication.lxd), what that connection needs, and C(ansible_pipelining=true).
  - Who is primary now is no part of an inventory; nothing has to be edited after a failover.
  - A container that does not run is listed as well. C(lxd_status) is what LXD says of it (V(Running), V(Stopped), V(Frozen)),
    C(lxd_running) is V(false), and C(pg_address) is the address that its network device pins, where it pins one.
notes:
  - Containers without C(user.pg_cluster) are never touched or shown.
  - The connection uses the program C(lxc), so the controller is the LXD host or has it as O(remote).
requirements:
  - pylxd on the controller
extends_documentation_fragment:
  - ansible.builtin.constructed
options:
  plugin:
    description: Marks the file as a source for this plugin. The file's name must end in C(lxd.yml) or C(lxd.yaml).
    type: str
    required: true
    choices: [pg_ops.replication.lxd]
  endpoint:
    description:
      - Path of LXD's socket, or C(https://) address of its API.
      - Where it is not set, the snap's socket if there is one, otherwise C(/var/lib/lxd/unix.socket).
    type: str
    env:
      - name: PG_OPS_LXD_ENDPOINT
  timeout_seconds:
    description: How long LXD may take for each of its answers.
    type: float
    default: 10
    env:
      - name: PG_OPS_LXD_TIMEOUT_SECONDS
  missing_daemon:
    description:
      - What to do when LXD does not answer.
      - V(error) makes the source fail. V(warn) prints the same message as a warning and yields no hosts, so that the playbook that
        installs and starts LXD can be run with this inventory.
    type: str
    choices: [error, warn]
    default: error
    env:
      - name: PG_OPS_LXD_MISSING_DAEMON
  project:
    description: LXD project of the containers.
    type: str
    default: default
  remote:
    description: What C(lxc) calls the LXD server of O(endpoint), for the connection.
    type: str
    default: local
  interface:
    description: Network interface whose IPv4 address is C(pg_address).
    type: str
    default: eth0
  clusters:
    description: Show the containers of these clusters only. An empty list means all.
    type: list
    elements: str
    default: []
    env:
      - name: PG_OPS_LXD_CLUSTERS
"""

EXAMPLES = r"""
# containers.lxd.yml
plugin: pg_ops.replication.lxd

# One cluster of several, on another interface, and a group of what does not run
# plugin: pg_ops.replication.lxd
# clusters: [main]
# interface: eth1
# groups:
#   not_running: not lxd_running
"""

import os
from typing import Any

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import InventoryError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lxd import LxdHost, group_of, hosts_from

SOCKETS = ("/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket")
NODES_GROUP = "pg_nodes"


class LxdUnavailable(Exception):
    """LXD gave no answer; the text names the endpoint and the next step."""


def default_endpoint() -> str:
    """Return the socket that is there; the Debian package's where none is."""
    return next((path for path in SOCKETS if os.path.exists(path)), SOCKETS[-1])


def fetch_instances(endpoint: str, *, project: str, timeout_seconds: float) -> list[dict[str, Any]]:
    """Return GET /1.0/instances?recursion=2: every instance with its config and state, in one query.

    Raises LxdUnavailable when LXD does not answer in time, and for what it answers instead.
    """
    try:
        import pylxd.client
        import pylxd.exceptions
        import requests.exceptions
    except ImportError as error:
        raise LxdUnavailable(f"The Python library pylxd is missing on the controller ({error}). Install it: pip install pylxd") from error
    if endpoint.startswith("/") and not os.path.exists(endpoint):
        raise LxdUnavailable(_no_answer(endpoint, "there is no such socket"))
    try:
        client = pylxd.client.Client(endpoint=endpoint, timeout=timeout_seconds, project=project)
        return list(client.api.instances.get(params={"recursion": "2"}).json()["metadata"] or [])
    except (pylxd.exceptions.ClientConnectionFailed, requests.exceptions.ConnectionError) as error:
        raise LxdUnavailable(_no_answer(endpoint, _cause(error))) from error
    except requests.exceptions.Timeout as error:
        raise LxdUnavailable(_no_answer(endpoint, f"nothing came within {timeout_seconds:g} s")) from error
    except (pylxd.exceptions.LXDAPIException, requests.exceptions.RequestException, KeyError, ValueError) as error:
        raise LxdUnavailable(f"LXD at {endpoint} refused the list of containers of project {project}: {error}") from error


def host_variables(host: LxdHost, *, project: str, remote: str) -> dict[str, Any]:
    """Return the host variables of one container; what is not known is absent."""
    variables: dict[str, Any] = {
        "ansible_connection": "pg_ops.replication.lxd",
        "ansible_lxd_host": host.name,
        "ansible_lxd_remote": remote,
        "ansible_user": "root",
        # Users of the collection's name have no ansible.cfg of ours; a task costs twice as much without it.
        "ansible_pipelining": True,
        "ansible_python_interpreter": "/usr/bin/python3",
        "lxd_status": host.status,
        "lxd_running": host.running,
        "pg_cluster_name": host.cluster,
        "pg_address": host.address,
        "pg_initial_role": host.initial_role,
        "pg_upstream": host.upstream,
        "pg_priority": host.priority,
    }
    if project != "default":
        variables["ansible_lxd_project"] = project
    return {name: value for name, value in variables.items() if value is not None}


def shared_groups(hosts: tuple[LxdHost, ...]) -> dict[str, list[str]]:
    """Return the groups that clusters of different names fall into, with those names."""
    names: dict[str, set] = {}
    for host in hosts:
        names.setdefault(group_of(host.cluster), set()).add(host.cluster)
    return {group: sorted(clusters) for group, clusters in names.items() if len(clusters) > 1}


def _no_answer(endpoint: str, cause: str) -> str:
    return f"LXD does not answer at {endpoint}: {cause}. Start it, or run the playbook launch_containers, which does."


def _cause(error: BaseException) -> str:
    text = str(error)
    for known in ("Connection refused", "Permission denied", "No such file or directory"):
        if known in text:
            return known.lower()
    return text


class InventoryModule(BaseInventoryPlugin, Constructable):
    """Lists LXD containers by config key."""

    NAME = "pg_ops.replication.lxd"

    def verify_file(self, path: str) -> bool:
        """Whether this file is a source for this plugin."""
        return super().verify_file(path) and path.endswith(("lxd.yml", "lxd.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Fill the inventory. Nothing is cached: the state of the containers is what matters."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        project = self.get_option("project")
        try:
            instances = fetch_instances(
                self.get_option("endpoint") or default_endpoint(),
                project=project,
                timeout_seconds=self.get_option("timeout_seconds"),
            )
            hosts = hosts_from(instances, interface=self.get_option("interface"))
        except LxdUnavailable as error:
            if self.get_option("missing_daemon") == "error":
                raise AnsibleParserError(str(error)) from None
            self.display.warning(str(error))
            hosts = ()
        except InventoryError as error:
            raise AnsibleParserError(error.message) from None
        self._add_hosts(hosts)

    def _add_hosts(self, hosts: tuple[LxdHost, ...]) -> None:
        """Add groups, hosts and variables, and what the constructed options make of them."""
        self.inventory.add_group(NODES_GROUP)
        clusters = self.get_option("clusters")
        shown = tuple(host for host in hosts if not clusters or host.cluster in clusters)
        for group, names in shared_groups(shown).items():
            self.display.warning(f"Clusters {', '.join(names)} share the group {group}; tell them apart by pg_cluster_name.")
        for host in shown:
            group = self.inventory.add_group(group_of(host.cluster))
            for member_of in (NODES_GROUP, group):
                self.inventory.add_host(host.name, group=member_of)
            variables = host_variables(host, project=self.get_option("project"), remote=self.get_option("remote"))
            for name, value in variables.items():
                self.inventory.set_variable(host.name, name, value)
            self._construct(host.name)

    def _construct(self, name: str) -> None:
        """Apply compose, groups and keyed_groups."""
        strict = self.get_option("strict")
        variables = self.inventory.get_host(name).get_vars()
        self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), {}, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), {}, name, strict=strict)
