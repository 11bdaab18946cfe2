# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Committed transactions in what pg_waldump prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Optional

_RECORD = re.compile(r"^rmgr: (\w+)\s.* tx:\s*(\d+), lsn: ([0-9A-F]+/[0-9A-F]+), .*?desc: (.*)$")
_RELATION = re.compile(r"\brel (\d+/\d+/\d+)")
# The record of COMMIT PREPARED belongs to no transaction itself: it names the prepared one.
_END = re.compile(r"^(COMMIT|ABORT)(?:_PREPARED (\d+):)? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \S+?)(?:;|$)(?:.*?subxacts: ([\d ]+))?")
# A promise to whoever coordinates: it counts like a commit as long as nothing ends it.
_PREPARE = re.compile(r"^PREPARE gid .*?: (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \S+?)(?:;|$)(?:.*?subxacts: ([\d ]+))?")
_SNAPSHOT = re.compile(r"^RUNNING_XACTS nextXid (\d+)")
# What ANALYZE writes to: pg_statistic and pg_statistic_ext_data with their indexes and TOAST tables. Files below 16384 are those that
# initdb made; one that VACUUM FULL rewrote has another number and counts like any other.
_STATISTICS_FILES = frozenset({"2619", "2696", "2840", "2841", "3429", "3430", "3431", "3433"})
# Records that change no row: page images, hints, pruning, and pg_class's sizes, which ANALYZE and VACUUM write in place.
_HOUSEKEEPING = ("INPLACE", "PRUNE", "VISIBLE", "FREEZE", "CLEAN")


@dataclass(frozen=True)
class Commit:
    """One committed transaction; `relations` are the files that its records name, as tablespace/database/file."""

    xid: int
    lsn: str
    committed_at: str
    relations: tuple[str, ...]
    only_statistics: bool = False
    prepared: bool = False

    def as_result(self) -> dict[str, Any]:
        """Return the transaction as plain data."""
        found = {"xid": self.xid, "lsn": self.lsn, "committed_at": self.committed_at, "relations": list(self.relations)}
        return {**found, "prepared": True} if self.prepared else found


class _Touched:
    """The relations of the transactions that are under way, and whether one of their records changes a row outside of the statistics."""

    def __init__(self) -> None:
        self._relations: dict[str, dict[str, None]] = {}
        self._written: dict[str, set[bool]] = {}

    def add(self, xid: str, manager: str, description: str) -> None:
        """Take note of one record."""
        if xid == "0":  # no transaction's: a checkpoint's, a vacuum's
            return
        for relation in _RELATION.findall(description):
            self._relations.setdefault(xid, {})[relation] = None
            if manager != "XLOG" and not description.startswith(_HOUSEKEEPING):
                self._written.setdefault(xid, set()).add(relation.rpartition("/")[2] in _STATISTICS_FILES)

    def take(self, family: list[str]) -> tuple[tuple[str, ...], bool]:
        """Forget a transaction and its subtransactions; returns what they touched, and whether that was statistics alone."""
        relations = [relation for xid in family for relation in self._relations.pop(xid, {})]
        written: set[bool] = set()
        for xid in family:
            written |= self._written.pop(xid, set())
        return tuple(dict.fromkeys(relations)), written == {True}


def precedes(xid: int, other: int) -> bool:
    """Whether a transaction id is older than another one; they wrap around at 32 bits (TransactionIdPrecedes)."""
    return (xid - other) % 2**32 >= 2**31


def next_xid(lines: Iterable[str]) -> Optional[int]:
    """Return the id from which on no transaction has a record in these lines or before them; None where they do not tell that.

    They tell it behind a snapshot of the running transactions, which a primary writes with every checkpoint and, while it is written to, every 15
    seconds. It has the id that is assigned next, and none is assigned before it is in the WAL (LogStandbySnapshot).
    """
    found: Optional[int] = None
    for line in lines:
        match = _RECORD.match(line)
        if not match:
            continue
        manager, xid, _lsn, description = match.groups()
        snapshot = _SNAPSHOT.match(description) if manager == "Standby" else None
        if snapshot:
            found = int(snapshot.group(1))
        elif found is not None and xid != "0" and not precedes(int(xid), found):
            found = (int(xid) + 1) % 2**32
    return found


def commits(lines: Iterable[str], begins_here: Callable[[int], bool]) -> Iterator[Commit]:
    """Yield the transactions that commit in pg_waldump's lines, in the order of their commits, then those that stay prepared.

    A transaction that began before the first line is known by its later records only: a load may end with the statistics of what it loaded. So one is
    only called statistics alone when `begins_here` is certain that its id has no record before the first line. It is asked for no other one.
    """
    touched = _Touched()
    prepared: dict[str, Commit] = {}
    for line in lines:
        match = _RECORD.match(line)
        if not match:
            continue
        manager, xid, lsn, description = match.groups()
        touched.add(xid, manager, description)
        if manager != "Transaction":
            continue
        promise = _PREPARE.match(description)
        if promise:
            relations, _only = touched.take([xid, *(promise.group(2) or "").split()])
            prepared[xid] = Commit(int(xid), lsn, promise.group(1), relations, prepared=True)
        end = _END.match(description)
        if end:
            top = end.group(2) or xid
            relations, only_statistics = touched.take([top, *(end.group(4) or "").split()])
            promised = prepared.pop(top, None)
            if end.group(1) == "COMMIT":
                # Subtransactions began later: PostgreSQL assigns the id of their parent first.
                only_statistics = only_statistics and begins_here(int(top))
                yield Commit(int(top), lsn, end.group(3), promised.relations if promised else relations, only_statistics)
    yield from prepared.values()
