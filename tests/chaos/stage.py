# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One scenario on the cluster: played, repaired by the collection's playbooks, then judged by the ledger."""

from __future__ import annotations

import random
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.cluster import BenchError
from benchmarks.floor import FloorError
from benchmarks.persistent import SessionError
from tests.chaos import checker
from tests.chaos.cluster import SETTLE_SECONDS, ChaosCluster, ChaosError, wait_until

NOTHING = "nothing"  # may be missing at the end
REPORTED = "reported"  # what a report of lost transactions names, and nothing else
EXPECTED_ERRORS = (ChaosError, BenchError, FloorError, SessionError, checker.CheckerError, subprocess.SubprocessError, OSError)


@dataclass(frozen=True)
class Scenario:
    """A fault, what the operator does about it, and what it may cost."""

    name: str
    group: str
    what: str
    play: Callable[[ChaosCluster, random.Random], None]
    may_lose: str = NOTHING
    may_split: bool = False
    subset: bool = False


@dataclass(frozen=True)
class Result:
    """How a scenario ended: `problems` is empty when it passed. `announced_bytes` is what failover.yml said may be lost, None where it did not."""

    scenario: str
    group: str
    seed: str
    seconds: float
    acknowledged: int = 0
    missing: int = 0
    reported: int = 0
    twice: int = 0
    longest_gap_seconds: float = 0.0
    announced_bytes: int | None = None
    problems: list[str] = field(default_factory=list)
    skipped: str = ""


def perform(cluster: ChaosCluster, scenario: Scenario, seed: str) -> Result:
    """Play one scenario on a healthy cluster; every random choice in it follows from `seed`."""
    began = time.monotonic()
    problems: list[str] = []
    earlier = cluster.failovers().keys()
    try:
        scenario.play(cluster, random.Random(f"{seed}/{scenario.name}"))
        cluster.wait_for_writes()
    except EXPECTED_ERRORS as error:
        problems.append(f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-3)}")
    announced = checker.announced_bytes([output for name, output in cluster.failovers().items() if name not in earlier])
    return _judge(cluster, scenario, seed, began, announced, problems)


def _judge(cluster: ChaosCluster, scenario: Scenario, seed: str, began: float, announced: int | None, problems: list[str]) -> Result:
    """Compare the end with what it must be; read from the primary, and from the standbys, which must show the same."""
    counts: dict[str, int] = {}
    gap = 0.0
    try:
        status = cluster.is_healthy()
        if status.status != 0:
            problems.append(f"The cluster is not healthy at the end:\n{status.output[-3000:]}")
        events = cluster.events()
        ended = time.monotonic()
        present = _rows_everywhere(cluster, problems)
        rows = checker.check_rows(
            events, present, forgiven=cluster.forgiven, reported=checker.reported_transactions(cluster.reports())
        )
        here = events.since(began)
        gap = checker.longest_gap(here, began, ended)
        counts = {"acknowledged": len(here.commits), "missing": len(rows.missing), "twice": len(rows.twice)}
        counts["reported"] = len(rows.missing) - len(rows.unreported)
        problems += _row_problems(scenario, rows)
        if not scenario.may_split and checker.more_than_announced(len(rows.missing), announced):
            problems.append(f"{len(rows.missing)} acknowledged row(s) are missing; failover.yml had announced {announced} bytes of WAL at most")
        if not scenario.may_split:
            problems += [f"{' and '.join(s.addresses)} accepted writes at the same time for {s.seconds} s at least" for s in checker.splits(here)]
        cluster.forgiven.update(rows.missing)
    except EXPECTED_ERRORS as error:
        problems.append(f"{type(error).__name__}: {error}")
    cluster.broken = bool(problems)
    return Result(
        scenario.name, scenario.group, seed, round(time.monotonic() - began, 1), longest_gap_seconds=round(gap, 2), announced_bytes=announced,
        problems=problems, **counts,
    )


def _row_problems(scenario: Scenario, rows: checker.Rows) -> list[str]:
    found: list[str] = []
    if scenario.may_lose == NOTHING and rows.missing:
        found.append(f"{len(rows.missing)} acknowledged row(s) are missing, none may be: {rows.missing[:10]}")
    elif rows.unreported:
        found.append(f"{len(rows.unreported)} acknowledged row(s) are missing and in no report: {rows.unreported[:10]}")
    if rows.reported_but_present:
        found.append(f"{len(rows.reported_but_present)} row(s) are reported as lost and are there: {rows.reported_but_present[:10]}")
    if rows.twice:
        found.append(f"{len(rows.twice)} row(s) are there twice: {rows.twice[:10]}")
    return found


def _rows_everywhere(cluster: ChaosCluster, problems: list[str]) -> list[int]:
    """Return the primary's rows, once every standby shows them too."""
    primary = cluster.primary()
    rows = cluster.present(primary)
    mark = cluster.sql(primary, "SELECT pg_current_wal_lsn()")
    for name in cluster.standbys():
        replayed = f"SELECT pg_last_wal_replay_lsn() >= '{mark}'"
        wait_until(lambda name=name, replayed=replayed: cluster.sql(name, replayed) == "t", f"{name} to replay {mark}", timeout_seconds=SETTLE_SECONDS)
        shown = cluster.present(name)
        if shown[: len(rows)] != rows:
            problems.append(f"{name} shows other rows than {primary}: {sorted(set(rows) ^ set(shown[: len(rows)]))[:10]}")
    return rows
