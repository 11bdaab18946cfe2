# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write docs/faults.md from the results of rounds: `make chaos REPORT=1` does it, and `python -m tests.chaos.report` from what the last run kept."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from benchmarks.cluster import CHECKOUT
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stage import NOTHING, Result

DOCUMENT = CHECKOUT / "docs" / "faults.md"
RESULTS = CHECKOUT / ".cache" / "chaos" / "results.json"
HEAD = """\
<!-- SPDX-FileCopyrightText: pg_ops.replication contributors -->
<!-- SPDX-License-Identifier: GPL-3.0-or-later -->
<!-- Written by tests/chaos/report.py; do not edit. -->
# Faults

What happens to acknowledged rows when things break, as measured. Three LXD containers; a client with a multi-host connection commits a numbered row
every 20 ms and records every acknowledgement and every value that it reads back; a witness on each node notices a second one that accepts writes. Each
scenario begins with a healthy cluster, breaks it, and ends with what an operator types to have a healthy one again, which `status.yml` has to confirm.

What can be lost:

- **Planned switchovers: nothing**, also when they are killed in the middle, cut off, or the candidate dies.
- **Failovers with `pg_synchronous_mode`: nothing that was acknowledged**, also where the primary is cut off and goes on alone. That is without
  `pg_synchronous_degrade=async`, and for sessions that leave `synchronous_commit` alone: docs/synchronous.md.
- **Asynchronous failovers: commits that no standby had yet.** `failover.yml` says how many bytes of WAL at most; `start_new_standby.yml` lists the
  transactions. The checker compares: a missing row that is in no such list fails the scenario, and so does a listed one that is there.
  So do more missing rows than the announced WAL can hold; "-" stands where no failover ran, or where it said that it cannot know,
  and nothing in rounds that did not record it yet.
  A kill or a cut that came too late to hit its playbook fails the scenario, too.
- **Failovers that somebody lets happen unfenced (`pg_failover_unfenced=accept`) while the old primary still runs: all that it accepts until it is
  stopped.** A frozen machine accepts writes again the moment it thaws; nothing on it can know better. `pg_fence_command` switches such a
  machine off, or shuts its port of the network, before anybody is promoted. What was lost is listed all the same.

A round is repeated with `make chaos SEED=… ROUNDS=1`, as root. The same seed plays the same scenarios in the same order with the same choices; where in a
commit the fault strikes is chance.
"""


MODULES, PLAYBOOKS = "tests/integration/modules", "tests/integration/playbooks"
# What faults of these kinds have shown to be wrong, and the test that keeps each from coming back.
FINDINGS = (
    (
        "A change of passwords that was killed before the primary died could not be ended: rotate_secrets.yml wanted the old primary back first, and"
        " that one could not log in without it.",
        f"{PLAYBOOKS}/test_rotate_secrets.py::test_a_rotation_that_was_killed_before_the_primary_died_is_ended_behind_the_failover",
    ),
    (
        "A rewound server waited for WAL that pg_rewind had removed from it.",
        f"{MODULES}/test_pg_rejoin.py::test_rejoin_rewinds_from_a_checkpoint_whose_wal_the_new_primary_has_recycled",
    ),
    (
        "120 acknowledged rows were missing, announced by the failover and in no report: whatever pg_waldump failed of counted as the end of WAL.",
        f"{MODULES}/test_pg_rejoin.py::test_rejoin_wal_that_cannot_be_read_is_not_taken_for_its_end",
    ),
    (
        "What it had failed of, most likely, was seen in a later round, where it cost a new copy instead of rows: pg_waldump learns the size of segments from"
        " whichever file it meets first, and the kill had left one that was made and not written to.",
        f"{MODULES}/test_pg_rejoin.py::test_rejoin_reports_all_beside_segments_that_were_made_and_not_written_to",
    ),
    (
        "A server whose start was killed before it had written postmaster.pid could not be started again.",
        f"{MODULES}/test_pg_cluster_init.py::test_start_beside_an_empty_postmaster_pid_of_a_killed_start_succeeds",
    ),
    (
        "A role change waited for a standby whose replay is paused or delayed, until the time was over.",
        f"{PLAYBOOKS}/test_late_standby.py::test_failover_past_a_late_standby_ends_at_once_and_says_so",
    ),
    (
        "A cascade's dead parent and its child waited for each other in start_new_standby.yml.",
        f"{PLAYBOOKS}/test_three_clusters.py::test_start_new_standby_makes_all_of_them_whole",
    ),
    (
        "A fenced server that was all that was left could not be made primary again.",
        f"{PLAYBOOKS}/test_last_survivor.py::test_fenced_primary_takes_over_when_its_successor_is_lost",
    ),
    (
        "A repeated switchover that met the server in the middle of its stop failed.",
        f"{MODULES}/test_pg_switchover.py::test_switchover_run_again_is_cut_off_by_the_stop_and_waits_for_it",
    ),
    (
        "With pg_fence_command a machine that the inventory says does not run was not switched off: it was frozen, and thawed beside the new primary.",
        "tests/unit/plugins/module_utils/core/test_failover.py::test_plan_with_a_fence_command_switches_off_a_machine_that_does_not_run",
    ),
)


def surroundings(versions: Mapping[str, str]) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "commit": commit(),
        "cores": os.cpu_count(),
        "versions": {**versions, "ansible_core": metadata.version("ansible-core"), "kernel": platform.release(), "python": platform.python_version()},
    }


def commit() -> str:
    """Return the commit that is played, with a word when files differ from it; empty where there is no git."""
    argv = ("git", "-c", "safe.directory=*", "describe", "--always", "--dirty= with changes", "--abbrev=12")
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def kept() -> list[dict[str, Any]]:
    """Return the results that the last call kept, none where there was none."""
    return list(json.loads(RESULTS.read_text(encoding="utf-8"))["results"]) if RESULTS.exists() else []


def save(results: Sequence[Result], around: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> None:
    """Keep the results of one call of `make chaos`, each with its commit, for the document.

    `earlier` ones stand before them, unless their seed was played again.
    """
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    seeds = {result.seed for result in results}
    before = [each for each in earlier if each["seed"] not in seeds]
    played = [{**asdict(result), "commit": around["commit"]} for result in results]
    content = {**around, "kept": bool(before), "results": [*before, *played]}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def scenario_table() -> list[str]:
    """Return what each scenario is and what it may lose."""
    lines = ["## Scenarios", "", "| scenario | what happens | may lose |", "|---|---|---|"]
    for each in SCENARIOS.values():
        price = "nothing" if each.may_lose == NOTHING else "what is reported"
        price += "; two primaries for a time" if each.may_split else ""
        lines.append(f"| {each.group}: `{each.name}` | {each.what} | {price} |")
    return lines


def findings_table() -> list[str]:
    """Return what was found and mended, each with its test."""
    said = "Each is mended; the test, in `make test` or `make test-long`, would fail if it came back."
    head = ["## Findings", "", said, "", "| what went wrong | test |", "|---|---|"]
    return head + [f"| {what} | `{test}` |" for what, test in FINDINGS]


def round_table(seed: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one round's figures, in the order in which it was played."""
    commits = {each.get("commit", "") for each in results} - {""}
    lines = [
        f"## SEED={seed}" + "".join(f", commit {commit}" for commit in sorted(commits)),
        "",
        "| scenario | verdict | seconds | acknowledged | announced, bytes | missing | of these reported | twice | longest gap, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        if each["skipped"]:
            lines.append(f"| {each['scenario']} | not played: {each['skipped']} | | | | | | | |")
            continue
        verdict = "**FAILED**" if each["problems"] else "passed"
        announced = each.get("announced_bytes", "")
        announced = "-" if announced is None else announced
        lines.append(
            f"| {each['scenario']} | {verdict} | {each['seconds']:.0f} | {each['acknowledged']} | {announced} | {each['missing']} | {each['reported']} |"
            f" {each['twice']} | {each['longest_gap_seconds']:.2f} |"
        )
    return lines


def document(content: Mapping[str, Any]) -> str:
    """Return the whole text."""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    at = f", commit {content['commit']}" if content.get("commit") else ""
    played = f"Measured {content['date']} on {content['cores']} cores{at}: {versions}." if content["results"] else "No round has been played yet."
    if content.get("kept"):
        played += " That is the last round; those before it were kept from earlier runs."
    lines = [HEAD, played, "", *scenario_table(), "", *findings_table()]
    for seed in dict.fromkeys(each["seed"] for each in content["results"]):
        lines += ["", *round_table(seed, [each for each in content["results"] if each["seed"] == seed])]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the document from the last results."""
    try:
        content = json.loads(RESULTS.read_text(encoding="utf-8"))
    except FileNotFoundError:
        print(f"There is no {RESULTS}: run make chaos first.", file=sys.stderr)
        return 2
    DOCUMENT.write_text(document(content), encoding="utf-8")
    print(f"{DOCUMENT.relative_to(CHECKOUT)} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
