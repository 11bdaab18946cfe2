# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clusters that tests share, and the clean-up of what preparing them made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.integration.playbooks.cluster import Cluster, make_cluster


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: the kill matrices; leave them out with -m 'not slow'")


@pytest.fixture(scope="session")
def make() -> Iterator[Callable[..., Cluster]]:
    """Return a function that prepares clusters; all are gone when the session ends."""
    made: list[Cluster] = []

    def prepared(nodes: int, **options: str) -> Cluster:
        made.append(make_cluster(nodes, python_from=made[0].state if made else None, **options))
        return made[-1]

    yield prepared
    for cluster in reversed(made):
        cluster.destroy()
