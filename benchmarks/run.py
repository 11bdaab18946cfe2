# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure switchover, failover and the floor on LXD: `make bench`, or `python -m benchmarks.run`.

RUNS (5) says how often. Each run is, in this order: floor, switchover, both again with dirty buffers, the boot guard's question, failover, rejoin.
The figures go to benchmarks/results/latest.json; after an error, to benchmarks/results/incomplete.json. Exit status: 0 measured
(a missed target is printed, not an error), 1 not measured to the end, 2 wrong call.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg2

from benchmarks import acks, figures
from benchmarks.cluster import CHECKOUT, BenchError, Cluster, Playbooks, run_command, set_up
from benchmarks.connect import DeadlineError
from benchmarks.floor import KILL_SCRIPT, Floor, FloorError, Server, fill, query_once
from benchmarks.persistent import PersistentShell, SessionError
from benchmarks.probe import ProbeError, ProbeProcess, ProbeSpec, check_table

RESULTS = CHECKOUT / "benchmarks" / "results"
# The probe writes undisturbed this long before and after what is measured.
QUIET_SECONDS = 0.5
EXPECTED_ERRORS = (BenchError, DeadlineError, FloorError, ProbeError, SessionError, acks.AckLogError, psycopg2.Error, OSError)


@dataclass(frozen=True)
class Done:
    """What an action measured itself; `command_began` (monotonic) if the first write after that is wanted."""

    figures: dict[str, float]
    command_began: float | None = None


def describe(log: acks.AckLog, rows: acks.RowCheck, done: Done) -> dict[str, Any]:
    """Return the raw figures of one action; raises BenchError if the writes did not move to another host."""
    longest, moved = acks.longest_gap(log), acks.handover_gap(log)
    if longest is None or moved is None:
        raise BenchError("The writes did not move to another host.")
    row = {
        "window_seconds": longest.seconds,
        "handover_seconds": moved.seconds,
        **done.figures,
        "acknowledged_rows": rows.acknowledged,
        "lost_rows": len(rows.lost),
        "rows_present_twice": len(rows.twice),
        "from": moved.host_before,
        "to": moved.host_after,
    }
    if done.command_began is not None:
        first = acks.first_ack_since(log, done.command_began)
        row["command_to_write_seconds"] = first.at_seconds - done.command_began if first else None
    return row


class Bench:
    """One measured cluster and the raw rows so far."""

    def __init__(self, cluster: Cluster, playbooks: Playbooks, log_directory: Path) -> None:
        self._cluster, self._playbooks, self._logs = cluster, playbooks, log_directory
        self.raw: list[dict[str, Any]] = []

    def _probed(self, run: int, operation: str, action: Callable[[], Done]) -> None:
        """Do the action under the probe, wait until writes are back, and record what happened."""
        table = f"probe_{run}_{operation}"
        spec = ProbeSpec(self._cluster.dsn, table, str(self._logs / f"{table}.acks"))
        with ProbeProcess.start(spec) as probe:
            time.sleep(QUIET_SECONDS)
            done = action()
            probe.wait_for_ack(since=time.monotonic(), timeout_seconds=60)
            time.sleep(QUIET_SECONDS)
            log = probe.stop()
        self._record(run, operation, describe(log, check_table(self._cluster.dsn, table, log), done))

    def _record(self, run: int, operation: str, row: dict[str, Any]) -> None:
        rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
        self.raw.append({"run": run, "operation": operation, **rounded})
        times = "  ".join(f"{name[: -len('_seconds')]} {value:.3f}" for name, value in rounded.items() if name.endswith("_seconds"))
        lost = f"  lost {row['lost_rows']}" if "lost_rows" in row else ""
        say(f"run {run} {operation}: {times}{lost}")

    def floor(self, run: int, suffix: str, dirty: dict[str, float]) -> None:
        """Measure the floor; the repair after it is not measured."""
        primary, standbys = self._primary_and_standbys()
        with Floor(primary, standbys[0], standbys[1:]) as floor:

            def action() -> Done:
                return Done({**floor.hand_over().figures(), **dirty})

            self._probed(run, f"floor{suffix}", action)
            floor.repair()

    def switchover(self, run: int, suffix: str, dirty: dict[str, float]) -> None:
        """Measure switchover.yml to the first standby."""
        _primary, standbys = self._primary_and_standbys()

        def action() -> Done:
            began, ended = self._playbooks.run("switchover", "-e", f"pg_switchover_to={standbys[0].name}", timeout_seconds=180)
            return Done({"command_seconds": ended - began, **dirty})

        self._probed(run, f"switchover{suffix}", action)

    def boot_guard(self, run: int) -> None:
        """Measure what systemd runs before a primary starts, with all peers up; the server itself goes on running."""
        primary, _standbys = self._primary_and_standbys()
        with PersistentShell(primary.shell_argv) as shell:
            shell.run(":")
            began = time.monotonic()
            shell.run(f"python3 -I -S /usr/local/lib/pg_ops/boot_guard.py {primary.data_directory}.pg_ops/boot_guard/config.json")
            self._record(run, "boot_guard", {"command_seconds": time.monotonic() - began})

    def failover(self, run: int) -> None:
        """Kill the primary's processes, measure failover.yml, then start_new_standby.yml."""
        primary, _standbys = self._primary_and_standbys()
        with PersistentShell(primary.shell_argv) as shell:
            shell.run(":")

            def action() -> Done:
                shell.run(fill(KILL_SCRIPT, primary))
                began, ended = self._playbooks.run("failover", timeout_seconds=180)
                return Done({"command_seconds": ended - began}, command_began=began)

            self._probed(run, "failover", action)
        began, ended = self._playbooks.run("start_new_standby", timeout_seconds=300)
        self._record(run, "start_new_standby", {"command_seconds": ended - began})

    def _primary_and_standbys(self) -> tuple[Server, list[Server]]:
        primary = self._cluster.primary()
        return primary, self._cluster.standbys(primary)

    def measure(self, run: int) -> None:
        """Do one run of everything; before each measurement all standbys stream and all buffers are clean."""
        for suffix in ("", "_dirty"):
            for operation in (self.floor, self.switchover):
                self._cluster.settle()
                operation(run, suffix, {"dirty_megabytes": self._cluster.make_dirty()} if suffix else {})
        self._cluster.settle()
        self.boot_guard(run)
        self.failover(run)
        self._cluster.settle()


def versions(server: Server) -> dict[str, str]:
    """Return the versions of everything that the figures depend on."""
    lxd = run_command(["lxc", "version"], timeout_seconds=10)
    server_line = next((line for line in lxd.splitlines() if line.startswith("Server version")), lxd)
    return {
        "postgresql": query_once(server, "SHOW server_version"),
        "ansible_core": metadata.version("ansible-core"),
        "python": platform.python_version(),
        "psycopg2": psycopg2.__version__.split(" ")[0],
        "kernel": platform.release(),
        "lxd": server_line.rpartition(": ")[2],
    }


def result(raw: list[dict[str, Any]], surroundings: dict[str, Any]) -> dict[str, Any]:
    """Return what is written to latest.json."""
    summary = figures.summarise(raw)
    judged = [{**asdict(target), "met": target.met} for target in figures.targets(summary)]
    return {**surroundings, **summary, "ratios": figures.ratios(summary), "targets": judged, "raw": raw}


def write_result(name: str, content: dict[str, Any]) -> Path:
    """Replace a result file in one step; return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(path)
    return path


def say(text: str) -> None:
    """Print one line at once."""
    print(text, flush=True)


def measure_all(runs: int, log_directory: Path) -> int:
    """Set the cluster up, do the runs, write and print the result; return the exit status."""
    began = time.monotonic()
    surroundings: dict[str, Any] = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "cores": os.cpu_count()}
    bench: Bench | None = None
    try:
        say(f"bench: setting the cluster up with the playbooks; their output is in {log_directory}")
        cluster, playbooks = set_up(log_directory)
        surroundings.update(nodes=len(cluster.servers), versions=versions(cluster.primary()))
        say(f"bench: set up after {time.monotonic() - began:.0f} s")
        bench = Bench(cluster, playbooks, log_directory)
        for run in range(1, runs + 1):
            bench.measure(run)
        cluster.remove_tables()
    except EXPECTED_ERRORS as error:
        print(f"bench: {error}", file=sys.stderr)
        if bench and bench.raw:
            print(f"bench: what was measured is in {write_result('incomplete.json', result(bench.raw, surroundings))}", file=sys.stderr)
        return 1
    content = result(bench.raw, surroundings)
    say("\n" + figures.table(content, figures.targets(content)))
    path = write_result("latest.json", content)
    say(f"\n{path.relative_to(CHECKOUT)} written after {time.monotonic() - began:.0f} s; the containers stay up.")
    return 0


def main() -> int:
    """Read RUNS and measure; return the exit status."""
    requested = os.environ.get("RUNS") or "5"
    if not requested.isdecimal() or not 1 <= int(requested) <= 100:
        print(f"bench: RUNS={requested} is not a number from 1 to 100.", file=sys.stderr)
        return 2
    return measure_all(int(requested), Path(tempfile.mkdtemp(prefix="pg_ops_bench.")))


if __name__ == "__main__":
    sys.exit(main())
