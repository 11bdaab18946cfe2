# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ledger's log proves: rows that are missing, rows that are there twice, two nodes that accepted writes at once (pure)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from benchmarks import acks

# What failover.yml says of it.
ANNOUNCED_LOSS = re.compile(r"At most (\d+) bytes of WAL that only \S+ holds are lost")
UNKNOWN_LOSS = re.compile(r"How much \S+(?: \S+)* had that \S+ lacks cannot be known")
# The insert of a ledger's row, its index entry and its commit take 72, 64 and 40 bytes (pg_waldump, PostgreSQL 15).
LEAST_WAL_BYTES_OF_A_ROW = 150


class CheckerError(ValueError):
    """A line of the log is not one that the ledger writes."""


class Term(NamedTuple):
    """One run of one server on one timeline: a server that accepted writes twice in a term accepted them all the time between."""

    address: str
    started: str
    timeline: int


@dataclass(frozen=True)
class Write:
    """A row that a server accepted or showed; `number` and `xid` are 0 for a witness's, which was rolled back. Times are monotonic seconds."""

    term: Term
    sent: float
    at: float
    number: int = 0
    xid: int = 0


@dataclass(frozen=True)
class Events:
    """What the ledger recorded: acknowledged commits, what witnesses were allowed, rows that were read back."""

    commits: tuple[Write, ...]
    accepted: tuple[Write, ...]
    read: tuple[Write, ...]

    def since(self, seconds: float) -> Events:
        """Return what was sent at or after a point in time."""
        kept = (tuple(write for write in writes if write.sent >= seconds) for writes in (self.commits, self.accepted, self.read))
        return Events(*kept)


@dataclass(frozen=True)
class Split:
    """Two servers that accepted writes at the same time, and for how long at least."""

    addresses: tuple[str, str]
    seconds: float


@dataclass(frozen=True)
class Rows:
    """Acknowledged or read rows against those that are there. `unreported`: missing, and in no report of lost transactions."""

    missing: tuple[int, ...]
    unreported: tuple[int, ...]
    reported_but_present: tuple[int, ...]
    twice: tuple[int, ...]


def parse_events(text: str) -> Events:
    """Return the events of a log; an unfinished last line (the ledger still writes) is ignored. Raises CheckerError."""
    found: dict[str, list[Write]] = {"ack": [], "accept": [], "read": []}
    complete, _separator, _torn = text.rpartition("\n")
    for line in complete.splitlines():
        try:
            event = json.loads(line)
            if event["kind"] == "down":
                continue
            term = Term(event["address"], event["started"], int(event["timeline"]))
            write = Write(term, float(event["sent"]), float(event["at"]), int(event.get("number", 0)), int(event.get("xid", 0)))
            found[event["kind"]].append(write)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckerError(f"Not a line of a ledger's log: {line!r}") from error
    return Events(tuple(found["ack"]), tuple(found["accept"]), tuple(found["read"]))


def splits(events: Events) -> tuple[Split, ...]:
    """Return every pair of servers that certainly accepted writes at the same time.

    A write was accepted some time between `sent` and `at`, so a server certainly accepted writes from the earliest `at` to the
    latest `sent` of its term. A single write has the two the other way round, and is still right in the comparison.
    """
    spans: dict[Term, tuple[float, float]] = {}
    for write in (*events.commits, *events.accepted):
        first, last = spans.get(write.term, (write.at, write.sent))
        spans[write.term] = (min(first, write.at), max(last, write.sent))
    found: list[Split] = []
    for (one, (one_first, one_last)), (other, (other_first, other_last)) in combinations(sorted(spans.items()), 2):
        if one.address != other.address and one_first < other_last and other_first < one_last:
            found.append(Split((one.address, other.address), round(min(one_last, other_last) - max(one_first, other_first), 3)))
    return tuple(found)


def check_rows(events: Events, present: Sequence[int], *, forgiven: Collection[int], reported: Collection[tuple[int, int]]) -> Rows:
    """Compare what was acknowledged or read with the rows that are `present`.

    `forgiven` are rows that an earlier scenario was allowed to lose; `reported` are the transactions of the reports, as timeline and xid.
    """
    counts = Counter(present)
    # A row that was read back counts too, though its writer was never told. What the acknowledgement says of it goes first.
    by_number = {write.number: (write.term.timeline, write.xid) for write in (*events.read, *events.commits)}
    missing = sorted(by_number.keys() - counts.keys() - set(forgiven))
    named = set(reported)
    return Rows(
        missing=tuple(missing),
        unreported=tuple(number for number in missing if by_number[number] not in named),
        reported_but_present=tuple(sorted(number for number, key in by_number.items() if key in named and number in counts)),
        twice=tuple(sorted(number for number, count in counts.items() if count > 1)),
    )


def announced_bytes(outputs: Sequence[str]) -> int | None:
    """Return how many bytes of WAL the runs of failover.yml said may be lost, all together; None where one could not know, or none ran."""
    found: list[int] = []
    for output in outputs:
        text = " ".join(output.split())
        if UNKNOWN_LOSS.search(text):
            return None
        found += (int(count) for count in set(ANNOUNCED_LOSS.findall(text)))
    return sum(found) if found else None


def more_than_announced(missing: int, announced: int | None) -> bool:
    """Whether so many rows cannot have been in the WAL that was announced."""
    return announced is not None and missing * LEAST_WAL_BYTES_OF_A_ROW > announced


def longest_gap(events: Events, start: float, end: float) -> float:
    """Return the longest time without an acknowledged commit between two points in time, in seconds, the edges included."""
    inside = [acks.Ack(w.number, w.at, w.term.address) for w in events.commits if start <= w.at <= end]
    log = acks.AckLog(start, end, (acks.Ack(0, start, ""), *inside))
    gap = acks.longest_gap(log)
    return gap.seconds if gap else end - start


def reported_transactions(reports: Sequence[Mapping[str, object]]) -> frozenset[tuple[int, int]]:
    """Return timeline and xid of every transaction that reports of lost transactions name."""
    found: set[tuple[int, int]] = set()
    for report in reports:
        timeline, transactions = report.get("timeline"), report.get("transactions")
        if not isinstance(timeline, int) or not isinstance(transactions, list):
            raise CheckerError("A report of lost transactions has no timeline or no list of transactions.")
        found.update((timeline, int(each["xid"])) for each in transactions)
    return frozenset(found)
