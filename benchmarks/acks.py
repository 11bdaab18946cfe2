# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe's log of acknowledged commits, and what can be read from it (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


class AckLogError(ValueError):
    """A line in the middle of the log is not one that the probe writes."""


@dataclass(frozen=True)
class Ack:
    """One acknowledged commit: the row's number, when it was acknowledged (monotonic) and by whom."""

    number: int
    at_seconds: float
    host: str


@dataclass(frozen=True)
class AckLog:
    """What one probe recorded; `stop_seconds` is None if the probe was killed."""

    start_seconds: float
    stop_seconds: float | None
    acks: tuple[Ack, ...]


@dataclass(frozen=True)
class Gap:
    """A time without an acknowledged commit; `host_after` is None if writes never came back."""

    start_seconds: float
    end_seconds: float
    host_before: str
    host_after: str | None

    @property
    def seconds(self) -> float:
        """Return the gap's length in seconds."""
        return self.end_seconds - self.start_seconds


@dataclass(frozen=True)
class RowCheck:
    """Acknowledged rows against the rows that the present primary has.

    `lost` are acknowledged and missing, `twice` are present more than once, `unacknowledged` are present
    although their commit was never acknowledged (allowed: the answer was lost, not the row).
    """

    acknowledged: int
    lost: tuple[int, ...]
    twice: tuple[int, ...]
    unacknowledged: tuple[int, ...]


def format_start(at_seconds: float) -> str:
    """Return the log's first line."""
    return f"start {at_seconds:.6f}\n"


def format_stop(at_seconds: float) -> str:
    """Return the line that an orderly stop writes."""
    return f"stop {at_seconds:.6f}\n"


def format_ack(ack: Ack) -> str:
    """Return the line of one acknowledged commit."""
    return f"ack {ack.number} {ack.at_seconds:.6f} {ack.host}\n"


def format_down(at_seconds: float, reason: str) -> str:
    """Return the line that says why a connection was given up; parse_ack_log skips it."""
    return f"down {at_seconds:.6f} {' '.join(reason.split())}\n"


def parse_ack_log(text: str) -> AckLog:
    """Return what the probe recorded; an unfinished last line (a killed probe) is ignored.

    Raises AckLogError for any other line that the probe would not write.
    """
    start: float | None = None
    stop: float | None = None
    acks: list[Ack] = []
    complete, _separator, _torn = text.rpartition("\n")
    for line in complete.splitlines():
        kind, *fields = line.split(" ")
        try:
            if kind == "ack":
                number, at_seconds, host = fields
                acks.append(Ack(int(number), float(at_seconds), host))
            elif kind == "start":
                start = float(fields[0])
            elif kind == "stop":
                stop = float(fields[0])
            elif kind != "down":
                raise ValueError(kind)
        except (ValueError, IndexError) as error:
            raise AckLogError(f"Not a line of a probe's log: {line!r}") from error
    if start is None:
        raise AckLogError("The probe's log has no start line.")
    return AckLog(start, stop, tuple(acks))


def gaps(log: AckLog) -> tuple[Gap, ...]:
    """Return every time between two acknowledged commits, in order, and the one from the last to the stop."""
    closed = [Gap(before.at_seconds, after.at_seconds, before.host, after.host) for before, after in zip(log.acks, log.acks[1:])]
    if log.acks and log.stop_seconds is not None:
        last = log.acks[-1]
        closed.append(Gap(last.at_seconds, log.stop_seconds, last.host, None))
    return tuple(closed)


def longest_gap(log: AckLog) -> Gap | None:
    """Return the longest time without an acknowledged commit; None with fewer than two points in time."""
    return max(gaps(log), key=lambda gap: gap.seconds, default=None)


def handover_gap(log: AckLog) -> Gap | None:
    """Return the longest gap across which the writes moved to another host; None if they never moved."""
    moved = [gap for gap in gaps(log) if gap.host_after not in (None, gap.host_before)]
    return max(moved, key=lambda gap: gap.seconds, default=None)


def first_ack_since(log: AckLog, at_seconds: float) -> Ack | None:
    """Return the first commit acknowledged at or after `at_seconds` (monotonic); None if there is none."""
    return next((ack for ack in log.acks if ack.at_seconds >= at_seconds), None)


def check_rows(log: AckLog, present: Iterable[int]) -> RowCheck:
    """Return which acknowledged rows are missing from `present`, and which of `present` are there twice."""
    acknowledged = {ack.number for ack in log.acks}
    counts = Counter(present)
    return RowCheck(
        acknowledged=len(acknowledged),
        lost=tuple(sorted(acknowledged - counts.keys())),
        twice=tuple(sorted(number for number, count in counts.items() if count > 1)),
        unacknowledged=tuple(sorted(counts.keys() - acknowledged)),
    )
