# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scenarios by name. Each begins with a healthy cluster and ends with what an operator types to get one again."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.chaos.cluster import ChaosCluster
from tests.chaos.stage import NOTHING, REPORTED, Scenario

Play = Callable[[ChaosCluster, random.Random], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(group: str, *, may_lose: str = NOTHING, may_split: bool = False, needs: tuple[str, ...] = (), subset: bool = False) -> Callable[[Play], Play]:
    """Register a scenario under its function's name; the docstring's first line says what it is."""

    def register(play: Play) -> Play:
        name = play.__name__
        what = (play.__doc__ or "").splitlines()[0]
        SCENARIOS[name] = Scenario(name, group, what, play, may_lose, may_split, frozenset(needs), subset)
        return play

    return register


def take_over(cluster: ChaosCluster, *arguments: str) -> None:
    """What an operator types after the primary died."""
    cluster.play("failover", *arguments)
    cluster.play("start_new_standby")


# -- the primary -------------------------------------------------------------------------------------------------------------


@scenario("primary", may_lose=REPORTED, subset=True)
def postmaster_killed(cluster: ChaosCluster, _random: random.Random) -> None:
    """SIGKILL to the postmaster and its children; failover, rejoin."""
    cluster.kill_server(cluster.primary())
    take_over(cluster)


@scenario("primary", may_lose=REPORTED)
def immediate_stop(cluster: ChaosCluster, _random: random.Random) -> None:
    """`pg_ctl stop -m immediate`; failover, rejoin."""
    cluster.stop_server(cluster.primary(), mode="immediate")
    take_over(cluster)


@scenario("primary", subset=True)
def planned_switchover(cluster: ChaosCluster, rng: random.Random) -> None:
    """A switchover to a standby; nothing may be lost, ever."""
    cluster.play("switchover", "-e", f"pg_switchover_to={rng.choice(cluster.standbys())}")
