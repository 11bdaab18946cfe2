# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From raw runs to the summary, the targets and the table (pure)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LINE_WIDTH = 80
SPREAD_FIELDS = ("window_seconds", "handover_seconds", "command_seconds", "command_to_write_seconds", "dirty_megabytes")
COUNT_FIELDS = ("lost_rows", "rows_present_twice", "acknowledged_rows")


@dataclass(frozen=True)
class Spread:
    """The smallest, the middle and the largest of some measurements."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Target:
    """What was asked for, what was seen, in `unit`, and whether that is enough; `observed` None means not measured."""

    name: str
    required_at_most: float
    observed: float | None
    unit: str

    @property
    def met(self) -> bool:
        """Return whether the figure exists and is within the target."""
        return self.observed is not None and self.observed <= self.required_at_most


def spread(values: Iterable[float]) -> Spread:
    """Return min, median and max, to a tenth of a millisecond. Raises ValueError if there is no value."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("There is nothing to summarise.")
    return Spread(round(ordered[0], 4), round(statistics.median(ordered), 4), round(ordered[-1], 4))


def summarise(raw: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return per operation the spread of each time and the sum of each count; `raw` rows name their `operation`."""
    summary: dict[str, dict[str, Any]] = {}
    for operation in dict.fromkeys(row["operation"] for row in raw):
        rows = [row for row in raw if row["operation"] == operation]
        figures: dict[str, Any] = {"runs": len(rows)}
        for field in SPREAD_FIELDS:
            values = [row[field] for row in rows if row.get(field) is not None]
            if values:
                figures[field] = asdict(spread(values))
        for field in COUNT_FIELDS:
            counts = [row[field] for row in rows if row.get(field) is not None]
            if counts:
                figures[field] = sum(counts)
        summary[operation] = figures
    return summary


def figure(summary: Mapping[str, Any], *path: str) -> float | None:
    """Return the number at `path`, None if it was not measured."""
    value: Any = summary
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, (int, float)) else None


def ratio(over: float | None, under: float | None) -> float | None:
    """Return over / under to two decimals; None where one is missing or `under` is 0."""
    return round(over / under, 2) if over is not None and under else None


def ratios(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the median windows of switchover in terms of the floor's."""
    return {
        f"switchover{suffix}_window_to_floor": ratio(
            figure(summary, f"switchover{suffix}", "window_seconds", "median"),
            figure(summary, f"floor{suffix}", "window_seconds", "median"),
        )
        for suffix in ("", "_dirty")
    }


def targets(summary: Mapping[str, Any]) -> tuple[Target, ...]:
    """Return every target with what was observed; whole commands are judged by their slowest run."""
    found = ratios(summary)
    return (
        Target("switchover: window / floor's (medians)", 1.5, found["switchover_window_to_floor"], "x"),
        Target("switchover, dirty: window / floor's", 1.5, found["switchover_dirty_window_to_floor"], "x"),
        Target("switchover: rows lost", 0, figure(summary, "switchover", "lost_rows"), "rows"),
        Target("switchover, dirty: rows lost", 0, figure(summary, "switchover_dirty", "lost_rows"), "rows"),
        Target("switchover.yml, slowest run", 6, figure(summary, "switchover", "command_seconds", "max"), "s"),
        Target("failover.yml to first write, slowest", 3, figure(summary, "failover", "command_to_write_seconds", "max"), "s"),
        Target("boot guard, slowest run", 0.3, figure(summary, "boot_guard", "command_seconds", "max"), "s"),
    )


_ROWS = (
    ("floor", "window_seconds", "floor: window"),
    ("switchover", "window_seconds", "switchover: window"),
    ("switchover", "command_seconds", "switchover.yml"),
    ("floor_dirty", "window_seconds", "floor, dirty buffers: window"),
    ("switchover_dirty", "window_seconds", "switchover, dirty buffers: window"),
    ("switchover_dirty", "command_seconds", "switchover.yml, dirty buffers"),
    ("failover", "window_seconds", "failover: window, from the kill"),
    ("failover", "command_to_write_seconds", "failover.yml: start to first write"),
    ("failover", "command_seconds", "failover.yml"),
    ("start_new_standby", "command_seconds", "start_new_standby.yml"),
    ("boot_guard", "command_seconds", "boot guard, before a primary's start"),
)


def _figures_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = [f"{'seconds':<38}{'min':>9}{'median':>9}{'max':>9}{'runs':>6}{'lost':>6}"]
    for operation, field, label in _ROWS:
        found = summary.get(operation, {}).get(field)
        if found is None:
            continue
        # Lost rows belong to the window, not to the command that caused it.
        lost = summary[operation].get("lost_rows", "") if field == "window_seconds" else ""
        numbers = "".join(f"{found[name]:>9.3f}" for name in ("min", "median", "max"))
        lines.append(f"{label:<38}{numbers}{summary[operation]['runs']:>6}{lost:>6}".rstrip())
    return lines


def _target_lines(judged: Sequence[Target]) -> list[str]:
    lines = [f"{'target':<44}{'at most':>12}{'seen':>12}{'':>3}met"]
    for target in judged:
        seen = "-" if target.observed is None else f"{target.observed:g} {target.unit}"
        required = f"{target.required_at_most:g} {target.unit}"
        lines.append(f"{target.name:<44}{required:>12}{seen:>12}{'':>3}{'yes' if target.met else 'NO'}")
    return lines


def table(summary: Mapping[str, Any], judged: Sequence[Target]) -> str:
    """Return the figures and the targets as text of at most 80 columns."""
    return "\n".join([*_figures_lines(summary), "", *_target_lines(judged)])
