# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The primary cannot be reached from the controller, or is gone from the inventory: failover.yml asks first, and never beside one that is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.playbooks.cluster import Cluster, wait_for, writing
from tests.integration.playbooks.test_refusals import refused

UNREACHABLE = {"pgsql1": {"ansible_connection": "ssh", "ansible_port": 1, "ansible_host": "127.0.0.1"}}
# A machine that was deleted is in no inventory any more; here it is another cluster's, and the run is limited to what is left.
GONE = {"pgsql1": {"pg_cluster_name": "gone"}}
LEFT = ("--limit", "pgsql2,localhost")
ACCEPT = ("-e", "pg_failover_unfenced=accept")
ALIVE = "cannot be observed from here, and pgsql2 hears from it: it is alive (observed: a message "


@contextmanager
def silence(cluster: Cluster) -> Iterator[None]:
    """Wait until the standby has heard nothing for so long that it must ask."""
    age = "SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time) > 1.2 FROM pg_stat_wal_receiver"
    wait_for(lambda: cluster.sql("pgsql2", age) == "t", "the primary to say nothing")
    yield


@pytest.fixture
def cluster(set_up: Callable[[int], Cluster]) -> Iterator[Cluster]:
    yield set_up(2)


@pytest.mark.parametrize(
    ("inventory", "limit", "busy"),
    [
        pytest.param(UNREACHABLE, (), True, id="out of reach"),
        pytest.param(UNREACHABLE, (), False, id="out of reach and idle"),
        pytest.param(GONE, LEFT, False, id="gone from the inventory"),
    ],
)
def test_primary_that_a_standby_hears_from_is_not_failed_over_whatever_is_accepted(
    cluster: Cluster, inventory: dict[str, Any], limit: tuple[str, ...], busy: bool
) -> None:
    with writing(cluster) if busy else silence(cluster):
        refused(cluster, "failover", *ACCEPT, *limit, said=(ALIVE, "Repair the way to it and run switchover.yml"), inventory=inventory)
        status = cluster.run("status", *limit, inventory=inventory)
    assert status.returncode == 3, status.output
    assert ALIVE in status.text
    assert "Do not fail over: repair the way to it. Type: ansible-playbook status.yml" in status.text
    assert "ansible-playbook failover.yml" not in status.text


def test_primary_that_is_gone_for_good_is_replaced_once_it_is_accepted(cluster: Cluster) -> None:
    cluster.crash("pgsql1")
    said = ("it cannot be told which node was primary", "pg_failover_unfenced=accept")
    refused(cluster, "failover", *LEFT, said=said, inventory=GONE)
    cluster.play("failover", *ACCEPT, *LEFT, inventory=GONE)
    assert cluster.sql("pgsql2", "SELECT pg_is_in_recovery()") == "f"
