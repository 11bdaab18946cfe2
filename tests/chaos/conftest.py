# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The containers of the fault suite: made once, deleted at the end, made anew after a scenario that broke them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.chaos.cluster import ChaosCluster, chaos_cluster


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "subset: the scenarios that make test runs")


@pytest.fixture(scope="session")
def containers() -> Iterator[ChaosCluster]:
    if os.geteuid() != 0:
        pytest.fail("The fault suite needs root: it uses LXD.")
    with chaos_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(containers: ChaosCluster) -> ChaosCluster:
    """A healthy cluster, whatever the test before has done to it."""
    if containers.broken:
        containers.set_up()
    return containers
