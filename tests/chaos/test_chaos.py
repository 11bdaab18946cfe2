# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each scenario of the fault suite as a test of its own; `-m subset` is what make test runs, `make chaos` plays random schedules."""

from __future__ import annotations

import os

import pytest

from tests.chaos.cluster import ChaosCluster
from tests.chaos.run import line
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stage import Scenario, perform

PARAMETERS = [pytest.param(each, id=name, marks=[pytest.mark.subset] if each.subset else []) for name, each in SCENARIOS.items()]


@pytest.mark.parametrize("scenario", PARAMETERS)
def test_scenario_ends_in_a_healthy_cluster_and_loses_no_more_than_it_may(cluster: ChaosCluster, scenario: Scenario) -> None:
    result = perform(cluster, scenario, os.environ.get("SEED", "1"))
    print(line(result))
    assert not result.problems, "\n".join(result.problems)
