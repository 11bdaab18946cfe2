# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault suite's schedules, and the document that it writes."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks.cluster import CHECKOUT
from tests.chaos import report, run
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.stage import Result

NAMES = list(SCENARIOS)


def test_schedule_of_a_seed_is_always_the_same_and_holds_all() -> None:
    assert run.schedule(NAMES, 7, 100) == run.schedule(NAMES, 7, 100)
    assert sorted(run.schedule(NAMES, 7, 100)) == sorted(NAMES)


def test_schedule_of_another_seed_is_another() -> None:
    assert run.schedule(NAMES, 7, 100) != run.schedule(NAMES, 8, 100)


def test_schedule_is_bounded_by_its_count() -> None:
    assert len(set(run.schedule(NAMES, 7, 3))) == 3


@pytest.mark.parametrize("text", ["0", "-1", "x", "101", "1.5"])
def test_number_out_of_its_range_raises(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ROUNDS", text)
    with pytest.raises(ValueError, match=f"ROUNDS={text}"):
        run.number("ROUNDS", 1, 100)


def test_document_names_every_scenario_and_shows_each_round_by_its_seed() -> None:
    results = [
        Result("one", "data", "7", 12.3, acknowledged=500, missing=4, reported=4, longest_gap_seconds=1.5, announced_bytes=900),
        Result("two", "data", "8", 9.0, problems=["broken"]),
        Result("three", "data", "8", 0.0, skipped="the time was over"),
    ]
    text = report.document({"date": "today", "cores": 2, "versions": {"postgresql": "15.20"}, "results": [asdict(each) for each in results]})
    assert all(f"`{name}`" in text for name in NAMES)
    assert "| one | passed | 12 | 500 | 900 | 4 | 4 | 0 | 1.50 |" in text.split("## SEED=7")[1].split("## SEED=8")[0]
    assert "| two | **FAILED** | 9 | 0 | - |" in text.split("## SEED=8")[1]
    assert "| three | not played: the time was over |" in text


def test_subset_exists_and_has_a_scenario_of_each_kind_that_may_lose_nothing() -> None:
    chosen = [each for each in SCENARIOS.values() if each.subset]
    assert {"planned_switchover", "synchronous_failover", "candidate_killed"} <= {each.name for each in chosen}


@pytest.mark.parametrize("test", [test for _what, test in report.FINDINGS])
def test_findings_name_tests_that_are_there(test: str) -> None:
    path, _separator, name = test.partition("::")
    assert f"\ndef {name}(" in (CHECKOUT / path).read_text(encoding="utf-8")


def test_document_in_the_repository_names_every_scenario_and_finding() -> None:
    shown = report.DOCUMENT.read_text(encoding="utf-8")
    assert all(f"`{name}`" in shown for name in SCENARIOS)
    assert all(f"`{test}`" in shown for _what, test in report.FINDINGS)
