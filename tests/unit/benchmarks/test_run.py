# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark's own reading of its measurements."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("psycopg2")

from benchmarks import acks, cluster, run

LOG = acks.AckLog(0.0, 9.0, (acks.Ack(1, 1.0, "a"), acks.Ack(2, 1.5, "a"), acks.Ack(3, 4.0, "b"), acks.Ack(4, 8.9, "b")))
ROWS = acks.RowCheck(acknowledged=4, lost=(2,), twice=(), unacknowledged=())


def test_describe_failover_counts_from_the_commands_start() -> None:
    row = run.describe(LOG, ROWS, run.Done({"command_seconds": 3.0}, command_began=2.0))
    assert row["command_to_write_seconds"] == 2.0
    assert (row["window_seconds"], row["handover_seconds"], row["lost_rows"]) == (pytest.approx(4.9), 2.5, 1)
    assert (row["from"], row["to"], row["command_seconds"]) == ("a", "b", 3.0)


def test_describe_switchover_has_no_command_to_write() -> None:
    assert "command_to_write_seconds" not in run.describe(LOG, ROWS, run.Done({}))


def test_describe_writes_that_did_not_move_are_refused() -> None:
    log = acks.AckLog(0.0, 9.0, LOG.acks[:2])
    with pytest.raises(cluster.BenchError):
        run.describe(log, ROWS, run.Done({}))


def test_result_holds_summary_targets_and_raw_rows() -> None:
    raw: list[dict[str, Any]] = [{"run": 1, "operation": "floor", "window_seconds": 0.1, "lost_rows": 0}]
    content = run.result(raw, {"cores": 2})
    assert content["floor"]["window_seconds"] == {"min": 0.1, "median": 0.1, "max": 0.1}
    assert content["cores"] == 2 and content["raw"] == raw
    assert {target["met"] for target in content["targets"]} == {False}


@pytest.mark.parametrize("requested", ["0", "many", "-1", "101"])
def test_main_bad_runs_is_a_wrong_call(requested: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RUNS", requested)
    assert run.main() == 2
    assert f"RUNS={requested}" in capsys.readouterr().err


def test_members_follows_child_groups_once() -> None:
    listing = {"pg_nodes": {"children": ["a", "b"]}, "a": {"hosts": ["x", "y"]}, "b": {"hosts": ["y", "z"]}}
    assert cluster.members(listing, "pg_nodes") == ["x", "y", "z"]


def test_hba_rules_admit_one_role_from_one_address() -> None:
    (rule,) = cluster.hba_rules("10.0.0.1")
    assert (rule["source"], rule["users"], rule["method"]) == ("10.0.0.1/32", cluster.ROLE, "scram-sha-256")
