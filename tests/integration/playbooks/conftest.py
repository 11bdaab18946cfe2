# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters that tests share, and the clean-up of what preparing them made."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import local_clusters
import pytest

from tests.integration.playbooks.cluster import Cluster, make_cluster


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: the kill matrices; leave them out with -m 'not slow'")
    config.addinivalue_line("markers", "long: what make test has no time for; make test-long runs it")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the account that preparing made as root, unless the user's own local clusters need it; once, after all workers."""
    if not hasattr(session.config, "workerinput") and os.geteuid() == 0:
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
