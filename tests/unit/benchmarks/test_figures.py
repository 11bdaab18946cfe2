# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From raw rows to summary, targets and table."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import figures

RAW: list[dict[str, Any]] = [
    {"operation": "floor", "window_seconds": 0.1, "lost_rows": 0},
    {"operation": "switchover", "window_seconds": 0.15, "command_seconds": 5.0, "lost_rows": 0},
    {"operation": "failover", "window_seconds": 2.0, "command_to_write_seconds": 1.5, "command_seconds": 4, "lost_rows": 2},
    {"operation": "floor", "window_seconds": 0.3, "lost_rows": 0},
    {"operation": "switchover", "window_seconds": 0.25, "command_seconds": 7.0, "lost_rows": 1},
    {"operation": "failover", "window_seconds": 2.5, "command_to_write_seconds": None, "command_seconds": 4, "lost_rows": 0},
    {"operation": "floor", "window_seconds": 0.2, "lost_rows": 0},
    {"operation": "boot_guard", "command_seconds": 0.1},
]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0], (2.0, 2.0, 2.0)),
        ([3.0, 1.0, 2.0], (1.0, 2.0, 3.0)),
        ([4.0, 1.0, 2.0, 3.0], (1.0, 2.5, 4.0)),
        ([0.123456], (0.1235, 0.1235, 0.1235)),
    ],
    ids=["one", "odd", "even", "rounded"],
)
def test_spread(values: list[float], expected: tuple[float, float, float]) -> None:
    assert figures.spread(values) == figures.Spread(*expected)


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError):
        figures.spread([])


def test_summarise_groups_by_operation() -> None:
    summary = figures.summarise(RAW)
    assert list(summary) == ["floor", "switchover", "failover", "boot_guard"]
    assert summary["floor"] == {"runs": 3, "window_seconds": {"min": 0.1, "median": 0.2, "max": 0.3}, "lost_rows": 0}
    assert summary["switchover"]["lost_rows"] == 1
    assert summary["failover"]["command_to_write_seconds"] == {"min": 1.5, "median": 1.5, "max": 1.5}


@pytest.mark.parametrize(("over", "under", "expected"), [(3.0, 2.0, 1.5), (None, 2.0, None), (3.0, None, None), (3.0, 0.0, None)])
def test_ratio(over: float | None, under: float | None, expected: float | None) -> None:
    assert figures.ratio(over, under) == expected


def test_targets_judge_median_window_and_slowest_command() -> None:
    met = {target.name: target.met for target in figures.targets(figures.summarise(RAW))}
    assert met == {
        "switchover: window / floor's (medians)": True,
        "switchover, dirty: window / floor's": False,
        "switchover: rows lost": False,
        "switchover, dirty: rows lost": False,
        "switchover.yml, slowest run": False,
        "failover.yml to first write, slowest": True,
        "boot guard, slowest run": True,
    }


@pytest.mark.parametrize(("observed", "met"), [(None, False), (1.5, True), (1.51, False), (0.0, True)])
def test_target_met(observed: float | None, met: bool) -> None:
    assert figures.Target("t", 1.5, observed, "x").met is met


def test_table_fits_the_line_and_names_what_was_missed() -> None:
    slow = [{**row, "operation": operation, "window_seconds": 1234.5} for operation in ("floor_dirty", "switchover_dirty") for row in RAW]
    summary = figures.summarise([*RAW, *slow, {"operation": "start_new_standby", "command_seconds": 12.0}])
    text = figures.table(summary, figures.targets(summary))
    assert max(len(line) for line in text.splitlines()) <= figures.LINE_WIDTH
    assert "0.100    0.200    0.300     3     0" in text
    assert any(line.endswith("NO") and "7 s" in line for line in text.splitlines())


def test_table_without_measurements_has_only_heads_and_targets() -> None:
    text = figures.table({}, figures.targets({}))
    assert text.count("NO") == len(figures.targets({}))
