# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Random schedules of all scenarios on one cluster: `make chaos SEED=7 ROUNDS=3`, or `python -m tests.chaos.run [SCENARIO ...]`.

SEED (a random one, printed) decides the order of the scenarios and every choice in them; round n uses SEED+n-1. ROUNDS (1) says how
many rounds are played, COUNT (all) how many scenarios are drawn for each, BUDGET_SECONDS (7200) when no further one is begun. SCENARIO
names some of them. The results are kept in .cache/chaos/results.json, with KEEP=1 beside those of earlier calls; with REPORT=1
docs/faults.md is written from them.
Exit status: 0 all passed, 1 not all, 2 wrong call.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence

from benchmarks.run import versions
from tests.chaos import report
from tests.chaos.cluster import ChaosCluster, chaos_cluster
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stage import EXPECTED_ERRORS, Result, perform


def number(name: str, default: int, largest: int) -> int:
    """Return an environment variable as a number from 1; raises ValueError for another."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= largest:
        raise ValueError(f"{name}={text} is not a number from 1 to {largest}.")
    return int(text)


def line(result: Result) -> str:
    """Return a result as a line, and its problems below it."""
    if result.skipped:
        return f"  not played       {result.scenario}: {result.skipped}"
    verdict = "FAILED" if result.problems else "ok    "
    figures = (
        f"acknowledged {result.acknowledged}, missing {result.missing}, reported {result.reported}, longest gap {result.longest_gap_seconds} s"
    )
    return "\n".join([f"  {verdict} {result.seconds:6.1f} s  {result.scenario}: {figures}", *result.problems])


def schedule(names: Sequence[str], seed: int, count: int) -> list[str]:
    """Return `count` of the names, all where there are fewer, in the order that the seed gives them."""
    return random.Random(seed).sample(list(names), min(count, len(names)))


def play_round(cluster: ChaosCluster, names: Sequence[str], seed: int, deadline: float) -> list[Result]:
    """Play scenarios once, in the given order; a broken cluster is made anew before the next."""
    print(f"round with SEED={seed}: {', '.join(names)}", flush=True)
    results: list[Result] = []
    for name in names:
        if time.monotonic() > deadline:
            results.append(Result(name, SCENARIOS[name].group, str(seed), 0.0, skipped="the time was over"))
        else:
            if cluster.broken:
                cluster.set_up()
            results.append(perform(cluster, SCENARIOS[name], str(seed)))
        print(line(results[-1]), flush=True)
    return results


def main(arguments: Sequence[str]) -> int:
    """Play the rounds; return the exit status."""
    try:
        seed = number("SEED", random.SystemRandom().randint(1, 999_999), 10**9)
        rounds, seconds = number("ROUNDS", 1, 100), number("BUDGET_SECONDS", 7200, 86400)
        count = number("COUNT", len(SCENARIOS), len(SCENARIOS))
    except ValueError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 2
    unknown = sorted(set(arguments) - SCENARIOS.keys())
    if unknown:
        print(f"chaos: no such scenario: {', '.join(unknown)}. There are: {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    print(f"chaos: SEED={seed} ROUNDS={rounds}", flush=True)
    deadline = time.monotonic() + seconds
    earlier = report.kept() if os.environ.get("KEEP") == "1" else []
    results: list[Result] = []
    try:
        with chaos_cluster() as cluster:
            print(f"chaos: the playbooks' output and the ledger are in {cluster.logs}", flush=True)
            for offset in range(rounds):
                results += play_round(cluster, schedule(arguments or list(SCENARIOS), seed + offset, count), seed + offset, deadline)
                report.save(results, report.surroundings(versions(cluster.servers[cluster.primary()])), earlier)
    except EXPECTED_ERRORS as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    if os.environ.get("REPORT") == "1":
        report.main()
    failed = [result for result in results if result.problems]
    skipped = [result for result in results if result.skipped]
    print(f"chaos: {len(results) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} not played, SEED={seed}")
    return 1 if failed or skipped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
