# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""LXD containers as PostgreSQL hosts."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import InventoryError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lxd import (
    container_problems,
    containers_from,
    free_subnet,
    group_of,
    hosts_from,
    patch_for,
)

PAIR = [{"name": "pgsql1", "cluster": "main", "initial_role": "primary"}, {"name": "pgsql2", "cluster": "main", "initial_role": "standby"}]
ROUTES = """default via 192.0.2.1 dev eth0
192.0.2.0/24 dev eth0 proto kernel scope link src 192.0.2.2
local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1
10.117.0.0/16 dev tun0
"""


def instance(name: str, *, status: str = "Running", address: str | None = "10.0.0.7", pinned: str | None = None, **config: str) -> dict[str, Any]:
    """An instance as GET /1.0/instances?recursion=2 shows it; config keys without their `user.`."""
    nic = {"type": "nic", "name": "eth0", "network": "pgops0"}
    if pinned:
        nic["ipv4.address"] = pinned
    addresses = [{"family": "inet6", "address": "fe80::1", "scope": "link"}]
    if address:
        addresses.append({"family": "inet", "address": address, "scope": "global"})
    return {
        "name": name,
        "status": status,
        "config": {"image.os": "debian", **{"user." + key: value for key, value in config.items()}},
        "expanded_devices": {"net": nic, "root": {"type": "disk", "path": "/"}},
        "state": {"network": {"eth0": {"addresses": addresses}, "lo": {"addresses": []}} if status == "Running" else None},
    }


def problems(entries: list[dict[str, Any]], existing: tuple[dict[str, Any], ...] = ()) -> tuple[str, ...]:
    return container_problems(containers_from(entries), existing=existing)


def test_containers_from_fills_in_what_is_not_said() -> None:
    (container,) = containers_from([{"name": "pg9"}])
    assert container.config == {"user.pg_cluster": "main", "user.pg_initial_role": "standby", "user.pg_priority": "100"}


def test_containers_from_puts_the_prefix_before_every_name() -> None:
    (container,) = containers_from([{"name": "b", "upstream": "a", "priority": 0}], prefix="t1-")
    assert (container.name, container.cluster, container.upstream, container.priority) == ("t1-b", "t1-main", "t1-a", 0)
    assert container.config["user.pg_upstream"] == "t1-a"


@pytest.mark.parametrize("entry", [{}, {"name": ""}, "pgsql1", {"name": "a", "priority": "high"}, {"name": "a", "priority": -1}])
def test_containers_from_what_is_no_container_is_refused(entry: Any) -> None:
    with pytest.raises(InventoryError):
        containers_from([entry])


def test_container_problems_of_a_pair_are_none() -> None:
    assert problems(PAIR) == ()


def test_container_problems_of_a_cascade_and_two_clusters_are_none() -> None:
    more = [{"name": "pgsql3", "upstream": "pgsql2"}, {"name": "other1", "cluster": "prod-eu_2", "initial_role": "primary"}]
    assert problems(PAIR + more) == ()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        pytest.param([], "lxd_containers is empty", id="no container"),
        pytest.param([{"name": "a"}], "Cluster main has no container with initial_role primary", id="no primary"),
        pytest.param([*PAIR, {"name": "x", "initial_role": "primary"}], "2 containers with initial_role primary in lxd_containers (pgsql1, x)", id="two"),
        pytest.param([*PAIR, {"name": "pgsql2"}], "Container pgsql2 is named 2 times", id="a name twice"),
        pytest.param([*PAIR, {"name": "1st"}], "Container name '1st'", id="a digit first"),
        pytest.param([*PAIR, {"name": "pg_3"}], "Container name 'pg_3'", id="an underscore"),
        pytest.param([*PAIR, {"name": "pg-"}], "Container name 'pg-'", id="a hyphen last"),
        pytest.param([*PAIR, {"name": "p" * 64}], "Container name 'ppp", id="64 letters"),
        pytest.param([*PAIR, {"name": "pg3\n"}], "Container name 'pg3\\n'", id="a newline"),
        pytest.param([{"name": "a", "cluster": "Größe 1", "initial_role": "primary"}], "cluster name 'Größe 1'", id="odd cluster name"),
        pytest.param([{"name": "a", "cluster": "m;rm", "initial_role": "primary"}], "cluster name 'm;rm'", id="shell in a cluster name"),
        pytest.param([*PAIR, {"name": "c", "initial_role": "master"}], "initial_role 'master'", id="a role of old"),
        pytest.param([*PAIR, {"name": "c", "upstream": "c"}], "Container c is its own upstream", id="own upstream"),
        pytest.param([*PAIR, {"name": "c", "upstream": "nobody"}], "upstream nobody", id="unknown upstream"),
        pytest.param([*PAIR, {"name": "c", "upstream": "d"}, {"name": "d", "upstream": "c"}], "Containers c, d stream in a circle", id="a circle"),
        pytest.param([{"name": "a", "initial_role": "primary", "upstream": "b"}, {"name": "b"}], "starts as primary and has upstream", id="primary's"),
    ],
)
def test_container_problems_of_a_list_that_cannot_work_names_it(entries: list[dict[str, Any]], said: str) -> None:
    assert any(said in problem for problem in problems(entries)), problems(entries)


@pytest.mark.parametrize(
    ("existing", "said"),
    [
        pytest.param(instance("pgsql1", pg_cluster="main", pg_initial_role="primary"), None, id="ours from an earlier run"),
        pytest.param(instance("web"), None, id="somebody's of another name"),
        pytest.param(instance("pgsql2"), "pgsql2 without config key user.pg_cluster", id="somebody's of our name"),
        pytest.param(instance("pgsql2", pg_cluster="shop"), "pgsql2 of cluster shop, and lxd_containers has it in cluster main", id="another cluster's"),
        pytest.param(instance("old", pg_cluster="main", pg_initial_role="primary"), "old that starts as primary of cluster main", id="another primary"),
        pytest.param(instance("old", pg_cluster="other", pg_initial_role="primary"), None, id="another cluster's primary"),
    ],
)
def test_container_problems_with_what_lxd_has(existing: dict[str, Any], said: str | None) -> None:
    found = problems(PAIR, (existing,))
    assert found == () if said is None else said in found[0]


def test_hosts_from_lists_ours_by_name_and_marks_what_does_not_run() -> None:
    hosts = hosts_from(
        [
            instance("b", status="Stopped", address=None, pinned="10.0.0.9", pg_cluster="main", pg_initial_role="standby", pg_priority="0"),
            instance("foreign"),
            instance("a", pg_cluster="main", pg_initial_role="primary"),
            instance("c", status="Frozen", pinned="10.0.0.8", pg_cluster="main", pg_upstream="b"),
        ]
    )
    assert [(one.name, one.status, one.running, one.address) for one in hosts] == [
        ("a", "Running", True, "10.0.0.7"),
        ("b", "Stopped", False, "10.0.0.9"),
        ("c", "Frozen", False, "10.0.0.8"),
    ]
    assert [(one.initial_role, one.upstream, one.priority) for one in hosts] == [("primary", None, 100), ("standby", None, 0), (None, "b", 100)]


def test_hosts_from_container_without_any_address_has_none() -> None:
    (host,) = hosts_from([instance("a", status="Stopped", address=None, pg_cluster="main")])
    assert host.address is None


def test_hosts_from_other_interface_is_not_the_address() -> None:
    (host,) = hosts_from([instance("a", pg_cluster="main", pinned="10.0.0.9")], interface="eth1")
    assert host.address is None


@pytest.mark.parametrize("config", [{"pg_initial_role": "master"}, {"pg_priority": "high"}])
def test_hosts_from_key_that_fits_no_host_is_refused_by_name(config: dict[str, str]) -> None:
    with pytest.raises(InventoryError, match="Container a has"):
        hosts_from([instance("a", pg_cluster="main", **config)])


@pytest.mark.parametrize(("cluster", "group"), [("main", "pg_cluster_main"), ("prod-eu.1", "pg_cluster_prod_eu_1"), ("größe", "pg_cluster_gr__e")])
def test_group_of_cluster_has_only_what_groups_may_have(cluster: str, group: str) -> None:
    assert group_of(cluster) == group


def test_patch_for_pins_the_address_that_dhcp_gave() -> None:
    (container,) = containers_from([{"name": "a"}])
    assert patch_for(container, instance("a", pg_cluster="main")) == {
        "devices": {"net": {"type": "nic", "name": "eth0", "network": "pgops0", "ipv4.address": "10.0.0.7"}}
    }


def test_patch_for_unsets_an_upstream_that_is_no_longer_wanted() -> None:
    (container,) = containers_from([{"name": "a"}])
    assert patch_for(container, instance("a", pinned="10.0.0.7", pg_cluster="main", pg_upstream="b")) == {"config": {"user.pg_upstream": ""}}


def test_patch_for_container_as_wanted_is_empty() -> None:
    (container,) = containers_from([{"name": "a", "upstream": "b"}])
    assert patch_for(container, instance("a", pinned="10.0.0.7", pg_cluster="main", pg_upstream="b")) == {}


@pytest.mark.parametrize(
    ("candidates", "free"),
    [
        (["10.118.0.1/24"], "10.118.0.1/24"),
        (["10.117.84.1/24", "192.168.5.1/24"], "192.168.5.1/24"),
        (["192.0.2.129/25"], None),
        (["127.5.0.1/24"], None),
        ([], None),
    ],
)
def test_free_subnet_overlaps_no_route(candidates: list[str], free: str | None) -> None:
    assert free_subnet(ROUTES, candidates) == free
