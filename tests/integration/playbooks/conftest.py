# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters that tests share, and the clean-up of what preparing them made."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import local_clusters
import pytest

from tests.integration.playbooks.cluster import Cluster, make_cluster

# The files that take longest, longest first: begun early, none of them runs alone at the end (with --no-loadscope-reorder).
LONGEST_FILES = (
    "test_heal", "test_rotate_secrets", "test_demo", "test_lifecycle", "test_synchronous", "test_refusals", "test_kill_switchover", "test_three_clusters",
    "test_kill_start_new_standby", "test_archive", "test_failover_slots", "test_status", "test_late_standby",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; within a file the order stays."""
    items.sort(key=lambda item: LONGEST_FILES.index(item.path.stem) if item.path.stem in LONGEST_FILES else len(LONGEST_FILES))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        os.environ["PG_OPS_TEST_PAYLOADS"] = tempfile.mkdtemp(prefix="pg_ops_payloads.")  # its workers inherit it
    config.addinivalue_line("markers", "slow: the kill matrices; leave them out with -m 'not slow'")
    config.addinivalue_line("markers", "long: what make test has no time for; make test-long runs it")
    config.addinivalue_line("markers", "chained: its tests build on each other, so make test-long runs the others too")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the account that preparing made as root, unless the user's own local clusters need it; once, after all workers."""
    if hasattr(session.config, "workerinput"):
        return
    shutil.rmtree(os.environ.pop("PG_OPS_TEST_PAYLOADS", ""), ignore_errors=True)
    if os.geteuid() == 0:
        local_clusters.clean(Path("/nonexistent"))


@pytest.fixture(scope="session")
def make() -> Iterator[Callable[..., Cluster]]:
    """Return a function that prepares clusters; all are gone when the session ends."""
    made: list[tuple[Cluster, dict[str, str]]] = []

    def prepared(nodes: int, **options: str) -> Cluster:
        # What PostgreSQL it is says what its Python must have.
        alike = next((cluster.state for cluster, others in made if others == options), None)
        made.append((make_cluster(nodes, python_from=alike, **options), options))
        return made[-1][0]

    yield prepared
    for cluster, _options in reversed(made):
        cluster.destroy()


@pytest.fixture(scope="session")
def set_up(make: Callable[..., Cluster]) -> Iterator[Callable[[int], Cluster]]:
    """Return a function that gives a cluster as initial_setup.yml leaves it: by the playbook the first time, from then on by putting its files back.

    It is one cluster for each number of nodes: a file of tests has it until the next file asks.
    """
    kept: dict[int, tuple[Cluster, Path]] = {}

    def given(nodes: int) -> Cluster:
        if nodes not in kept:
            cluster = make(nodes)
            cluster.play("initial_setup")
            kept[nodes] = cluster, cluster.keep()
        cluster, copy = kept[nodes]
        cluster.put_back(copy)
        cluster.assert_replicating("pgsql1")
        return cluster

    yield given
    for _cluster, copy in kept.values():
        shutil.rmtree(copy)
