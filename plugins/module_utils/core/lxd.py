# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""LXD containers as PostgreSQL hosts: which ones are asked for, which ones the API's answer holds. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import InventoryError

CLUSTER_KEY = "user.pg_cluster"
ROLE_KEY = "user.pg_initial_role"
UPSTREAM_KEY = "user.pg_upstream"
PRIORITY_KEY = "user.pg_priority"

DEFAULT_PRIORITY = 100
INITIAL_ROLES = ("primary", "standby")

# What LXD accepts as an instance name: a host name without dots that does not begin with a digit.
_CONTAINER_NAME = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\Z")
# Cluster names become group names, paths and labels; these characters are safe in all of them.
_CLUSTER_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}\Z")


@dataclass(frozen=True)
class Container:
    """One container of `lxd_containers`, defaults filled in and prefix applied."""

    name: str
    cluster: str
    initial_role: str
    upstream: Optional[str]
    priority: int

    @property
    def config(self) -> dict[str, str]:
        """The LXD config keys that tell the inventory plugin what this container is."""
        config = {
            CLUSTER_KEY: self.cluster,
            ROLE_KEY: self.initial_role,
            PRIORITY_KEY: str(self.priority),
        }
        if self.upstream is not None:
            config[UPSTREAM_KEY] = self.upstream
        return config


@dataclass(frozen=True)
class LxdHost:
    """One container of ours as the LXD API shows it; `address` is None when nothing is known."""

    name: str
    cluster: str
    status: str
    address: Optional[str]
    initial_role: Optional[str]
    upstream: Optional[str]
    priority: int

    @property
    def running(self) -> bool:
        """Whether commands can be run in it: a stopped or frozen container is listed, and marked by this."""
        return self.status == "Running"


def containers_from(entries: Sequence[Mapping[str, Any]], *, prefix: str = "") -> tuple[Container, ...]:
    """Return `lxd_containers` as containers. The prefix goes before every container's and cluster's name.

    Raises InventoryError for an entry that is no mapping, has no name, or a priority that is not a whole number.
    """
    return tuple(_container_from(entry, prefix) for entry in entries)


def container_problems(containers: Sequence[Container], *, existing: Iterable[Mapping[str, Any]] = ()) -> tuple[str, ...]:
    """Return why these containers cannot be launched, one sentence a problem; empty when they can.

    `existing` is the API's list of instances: names that are taken by somebody else's container, and primaries of the
    same cluster that the list does not name, are problems as well.
    """
    if not containers:
        return ("lxd_containers is empty. Name at least one container with initial_role primary.",)
    problems = [problem for container in containers for problem in _own_problems(container)]
    problems += _repeated_names(containers)
    problems += _primary_problems(containers)
    problems += _upstream_problems(containers)
    problems += _existing_problems(containers, existing)
    return tuple(problems)


def patch_for(container: Container, instance: Mapping[str, Any], *, interface: str = "eth0") -> dict[str, Any]:
    """Return what PATCH /1.0/instances/<name> must set so that an instance is this container; empty when nothing.

    A key that is no longer wanted goes (LXD: an empty value unsets it), and the address that DHCP gave is pinned, so
    that it stays through restarts and is known while the container is stopped.
    """
    patch: dict[str, Any] = {}
    if container.upstream is None and (instance.get("config") or {}).get(UPSTREAM_KEY):
        patch["config"] = {UPSTREAM_KEY: ""}
    address = _state_address(instance, interface)
    device_name, device = _nic(instance, interface)
    if address and device.get("network") and not device.get("ipv4.address"):
        patch["devices"] = {device_name: {**device, "ipv4.address": address}}
    return patch


def hosts_from(instances: Iterable[Mapping[str, Any]], *, interface: str = "eth0") -> tuple[LxdHost, ...]:
    """Return the containers that carry `user.pg_cluster`, by name, from GET /1.0/instances?recursion=2.

    Raises InventoryError for a container whose keys hold what no PostgreSQL host can be.
    """
    ours = [instance for instance in instances if (instance.get("config") or {}).get(CLUSTER_KEY)]
    return tuple(_host_from(instance, interface) for instance in sorted(ours, key=lambda one: str(one["name"])))


def address_of(instance: Mapping[str, Any], *, interface: str = "eth0") -> Optional[str]:
    """Return the interface's IPv4 address: from the running state, otherwise the pinned one, which outlives a stop."""
    return _state_address(instance, interface) or _nic(instance, interface)[1].get("ipv4.address") or None


def group_of(cluster: str) -> str:
    """Return the inventory group of a cluster: pg_cluster_<name>, characters that no group may have as `_`."""
    return "pg_cluster_" + re.sub(r"[^A-Za-z0-9_]", "_", cluster)


def free_subnet(routes: str, candidates: Sequence[str]) -> Optional[str]:
    """Return the first candidate ("10.1.2.1/24") whose network overlaps no destination of `ip -4 route`; None if none is."""
    taken = [network for network in map(_destination, routes.splitlines()) if network is not None]
    for candidate in candidates:
        network = ipaddress.IPv4Interface(candidate).network
        if not any(network.overlaps(other) for other in taken):
            return candidate
    return None


def _destination(line: str) -> Optional[ipaddress.IPv4Network]:
    """The network that a line of `ip -4 route` is about; None for the default route and other types."""
    words = [word for word in line.split() if word not in ("unicast", "local", "broadcast", "blackhole", "unreachable")]
    try:
        return ipaddress.IPv4Network(words[0], strict=False) if words else None
    except ValueError:
        return None


def _container_from(entry: Mapping[str, Any], prefix: str) -> Container:
    if not isinstance(entry, Mapping) or not entry.get("name"):
        raise InventoryError(
            f"lxd_containers holds an entry without a name: {entry!r}. Write each as {{name: pgsql1, cluster: main, initial_role: primary}}.",
            observed=repr(entry),
            required="a mapping with a name",
        )
    name = str(entry["name"])
    upstream = entry.get("upstream")
    return Container(
        name=prefix + name,
        cluster=prefix + str(entry.get("cluster") or "main"),
        initial_role=str(entry.get("initial_role") or "standby"),
        upstream=prefix + str(upstream) if upstream else None,
        priority=_priority(name, entry.get("priority", DEFAULT_PRIORITY)),
    )


def _priority(name: str, value: Any) -> int:
    text = str(DEFAULT_PRIORITY if value is None else value)
    if not re.match(r"[0-9]{1,9}\Z", text):
        raise InventoryError(
            f"Container {name} has priority {text!r}, a whole number from 0 (never promote) is required.",
            observed=text,
            required="a whole number, 0 or more",
            hint=f"Correct it in lxd_containers, or type: lxc config set {name} {PRIORITY_KEY} {DEFAULT_PRIORITY}",
        )
    return int(text)


def _own_problems(container: Container) -> list[str]:
    problems = []
    if not _CONTAINER_NAME.match(container.name):
        problems.append(
            f"Container name {container.name!r} is none that LXD takes: 1 to 63 ASCII letters, digits and hyphens, "
            "a letter first, no hyphen last. Rename it in lxd_containers."
        )
    if not _CLUSTER_NAME.match(container.cluster):
        problems.append(
            f"Container {container.name} has cluster name {container.cluster!r}: 1 to 40 lower-case ASCII letters, "
            "digits, hyphens and underscores are required, a letter first. Rename it in lxd_containers."
        )
    if container.initial_role not in INITIAL_ROLES:
        problems.append(
            f"Container {container.name} has initial_role {container.initial_role!r}, primary or standby is required. Correct it in lxd_containers."
        )
    return problems


def _repeated_names(containers: Sequence[Container]) -> list[str]:
    names = [container.name for container in containers]
    return [
        f"Container {name} is named {names.count(name)} times in lxd_containers. Give each its own name."
        for name in sorted(set(names))
        if names.count(name) > 1
    ]


def _primary_problems(containers: Sequence[Container]) -> list[str]:
    problems = []
    for cluster in sorted({container.cluster for container in containers}):
        primaries = [one.name for one in containers if one.cluster == cluster and one.initial_role == "primary"]
        if not primaries:
            problems.append(f"Cluster {cluster} has no container with initial_role primary in lxd_containers, exactly one is required. Name one.")
        if len(primaries) > 1:
            problems.append(
                f"Cluster {cluster} has {len(primaries)} containers with initial_role primary in lxd_containers "
                f"({', '.join(primaries)}), exactly one is required. Make the others standby."
            )
    return problems


def _upstream_problems(containers: Sequence[Container]) -> list[str]:
    clusters = {container.name: container.cluster for container in containers}
    problems = []
    for container in containers:
        if container.upstream is None:
            continue
        if container.initial_role == "primary":
            problems.append(f"Container {container.name} starts as primary and has upstream {container.upstream}. Remove one.")
        elif container.upstream == container.name:
            problems.append(f"Container {container.name} is its own upstream. Name another of cluster {container.cluster}.")
        elif clusters.get(container.upstream) != container.cluster:
            problems.append(
                f"Container {container.name} has upstream {container.upstream}, which lxd_containers does not name "
                f"in cluster {container.cluster}. Name one that it does."
            )
    return problems or _circles({container.name: container.upstream for container in containers})


def _circles(upstreams: Mapping[str, Optional[str]]) -> list[str]:
    """One sentence a circle of upstreams, which no primary feeds."""
    circles = set()
    for start in upstreams:
        path: list[str] = []
        current: Optional[str] = start
        while current is not None and current not in path:
            path.append(current)
            current = upstreams.get(current)
        if current is not None:
            circles.add(tuple(sorted(path[path.index(current) :])))
    return [f"Containers {', '.join(circle)} stream in a circle, without a primary. Change the upstream of one." for circle in sorted(circles)]


def _existing_problems(containers: Sequence[Container], existing: Iterable[Mapping[str, Any]]) -> list[str]:
    wanted = {container.name: container.cluster for container in containers}
    clusters = set(wanted.values())
    problems = []
    for instance in existing:
        name, config = str(instance["name"]), instance.get("config") or {}
        cluster = config.get(CLUSTER_KEY)
        if name in wanted and not cluster:
            problems.append(
                f"LXD has a container {name} without config key {CLUSTER_KEY}, so it is not this project's. "
                "Give yours another name, or set lxd_container_prefix."
            )
        elif name in wanted and cluster != wanted[name]:
            problems.append(
                f"LXD has a container {name} of cluster {cluster}, and lxd_containers has it in cluster {wanted[name]}. "
                "Give yours another name, or set lxd_container_prefix; or name its own cluster."
            )
        if name not in wanted and cluster in clusters and config.get(ROLE_KEY) == "primary":
            problems.append(
                f"LXD has a container {name} that starts as primary of cluster {cluster}, and lxd_containers does not "
                f"name it. Add it, delete it, or use another cluster name."
            )
    return problems


def _host_from(instance: Mapping[str, Any], interface: str) -> LxdHost:
    name, config = str(instance["name"]), instance["config"]
    role = config.get(ROLE_KEY) or None
    if role is not None and role not in INITIAL_ROLES:
        raise InventoryError(
            f"Container {name} has {ROLE_KEY}={role!r}, primary or standby is required. Type: lxc config set {name} {ROLE_KEY} standby",
            observed=str(role),
            required="primary or standby",
        )
    return LxdHost(
        name=name,
        cluster=str(config[CLUSTER_KEY]),
        status=str(instance.get("status") or "Unknown"),
        address=address_of(instance, interface=interface),
        initial_role=role,
        upstream=config.get(UPSTREAM_KEY) or None,
        priority=_priority(name, config.get(PRIORITY_KEY) or DEFAULT_PRIORITY),
    )


def _state_address(instance: Mapping[str, Any], interface: str) -> Optional[str]:
    """The interface's first global IPv4 address in the running state."""
    network = (instance.get("state") or {}).get("network") or {}
    for address in (network.get(interface) or {}).get("addresses") or []:
        if address.get("family") == "inet" and address.get("scope", "global") == "global":
            return str(address["address"])
    return None


def _nic(instance: Mapping[str, Any], interface: str) -> tuple[str, Mapping[str, Any]]:
    """The name and settings of the device behind an interface; empty when there is none."""
    for device_name, device in (instance.get("expanded_devices") or {}).items():
        if device.get("type") == "nic" and device.get("name", device_name) == interface:
            return str(device_name), device
    return "", {}
