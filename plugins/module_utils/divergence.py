# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a server, running or not, committed since it parted from another one: read from its WAL, nothing is changed.

A count is complete only when every segment from the fork to the present end of WAL could be read in time. Whatever could not be read
counts as unknown, never as nothing.
"""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import RUNNING, STANDBY
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import parse_history
from ansible_collections.pg_ops.replication.plugins.module_utils.core.wal_records import Commit, commits, next_xid, precedes
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import observe
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server
from ansible_collections.pg_ops.replication.plugins.module_utils.wal_pages import behind_record, dump_arguments, is_end_of_wal, segment_positions

SHOWN_XIDS = 10
# Names are looked up for these many files at most, the first that were touched.
NAMED_FILES = 2000
# A report lists these many at most, and says how many there are.
LISTED_TRANSACTIONS = 100_000
FLUSH_SECONDS = 1.0
# So far before the fork WAL is read for which transactions began behind it: 64 segments of 16 MiB are 1 GiB.
SEGMENTS_BEFORE_FORK = 64
_LENGTH = re.compile(r"^rmgr: .* len \(rec/tot\):\s*\d+/\s*(\d+), tx:\s*\d+, lsn: ([0-9A-F]+/[0-9A-F]+),")
TOO_LATE = "its WAL could not be read in time"


@dataclass(frozen=True)
class Since:
    """The question: what was committed here since this server parted from `other`; an empty LSN means that nobody knows where."""

    other: str
    lsn: str


@dataclass
class Findings:
    """What has been found so far in the WAL of one server."""

    transactions: int = 0
    statistics: int = 0
    xids: list[int] = field(default_factory=list)
    first_at: str = ""
    last_at: str = ""
    files: dict[str, None] = field(default_factory=dict)
    problem: str = ""

    def add(self, commit: Commit) -> None:
        """Count a transaction; what ANALYZE alone wrote, autovacuum's above all, is nobody's data."""
        if commit.only_statistics:
            self.statistics += 1
            return
        self.transactions += 1
        self.first_at = self.first_at or commit.committed_at
        self.last_at = commit.committed_at
        if len(self.xids) < SHOWN_XIDS:
            self.xids.append(commit.xid)
        for relation in commit.relations:
            if len(self.files) < NAMED_FILES:
                self.files[relation] = None


@dataclass(frozen=True)
class _Here:
    """What of this server matters: `end` is the end of its WAL, 0 when only the WAL itself tells (a server that is down)."""

    timeline: int
    history: str
    segment_bytes: int
    end: int


def _flushed(session: sql.Session, role: str) -> int:
    """Return where the WAL on disk ends. On a primary, commits that did not wait for their flush are waited for, a moment long."""
    if role == STANDBY:
        return parse_lsn(str(session.value("SELECT greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())::text")))
    wanted = parse_lsn(str(session.value("SELECT pg_current_wal_insert_lsn()::text")))
    deadline = time.monotonic() + FLUSH_SECONDS
    while True:
        flushed = parse_lsn(str(session.value("SELECT pg_current_wal_flush_lsn()::text")))
        if flushed >= wanted or time.monotonic() > deadline:
            return flushed
        time.sleep(0.05)


def _observe_here(server: Server) -> _Here:
    seen = observe(server)
    end = 0
    if seen["state"] == RUNNING and not seen.get("problem"):
        with server.connect() as session:
            end = _flushed(session, seen["role"])
    return _Here(int(seen["timeline"]), str(seen["timeline_history"]), server.control_data().wal_segment_bytes, end)


def _spans(here: _Here, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield (timeline, from, to) of this server's past behind an LSN, one timeline after the other; 0 for a `to` that is not known."""
    for switch in parse_history(here.history):
        if switch.switch_lsn > start:
            yield switch.timeline, start, switch.switch_lsn
            start = switch.switch_lsn
    if not here.end or here.end > start:
        yield here.timeline, start, here.end


def _segments(server: Server, here: _Here, timeline: int) -> set[int]:
    """Return where the segments of a timeline that are still there begin."""
    name = "{0:08X}".format(timeline)
    found = segment_positions(server.data("pg_wal"), here.segment_bytes)
    return {position for position, paths in found.items() if any(path.name.startswith(name) for path in paths)}


def _ends_at(segments: set[int], lsn: int, segment_bytes: int) -> bool:
    """Whether WAL ends right there, with a segment that is full: the next one is only made when something is written to it."""
    return lsn % segment_bytes == 0 and max(segments, default=0) == lsn - segment_bytes


class _Lines:
    """The lines of a dump as they pass; knows behind them where the last record began and how long it was."""

    def __init__(self, lines: Iterable[str], start: int) -> None:
        self._lines = lines
        self._start = start
        self._last = ""

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            if line.startswith("rmgr: "):
                self._last = line
            yield line

    def behind(self, segment_bytes: int) -> int:
        """Return where the next record would begin; where the dump was to start when it had none."""
        found = _LENGTH.match(self._last)
        return behind_record(parse_lsn(found.group(2)), int(found.group(1)), segment_bytes) if found else self._start


@contextlib.contextmanager
def _dumping(server: Server, here: _Here, span: tuple[int, int, int], deadline: float) -> Iterator[subprocess.Popen[str]]:
    """Run pg_waldump over a span; it is killed when the time is up."""
    timeline, start, end = span
    argv = [server.program("pg_waldump"), *dump_arguments(server.data("pg_wal"), timeline, start, end, here.segment_bytes)]
    with server.reading(argv) as process:
        alarm = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()


def _unbroken_before(segments: set[int], lsn: int, segment_bytes: int) -> list[int]:
    """Return where the segments begin that lie unbroken before an LSN, the nearest first, not too many."""
    found: list[int] = []
    position = (lsn - 1) // segment_bytes * segment_bytes
    while position in segments and len(found) < SEGMENTS_BEFORE_FORK:
        found.append(position)
        position -= segment_bytes
    return found


def _next_xid_at(server: Server, here: _Here, timeline: int, lsn: int, deadline: float) -> Optional[int]:
    """Return the id from which on no transaction has a record before an LSN of a timeline; None where that cannot be read, or not in time."""
    starts = _unbroken_before(_segments(server, here, timeline), lsn, here.segment_bytes)
    for start in dict.fromkeys((*starts[:1], *starts[7:8], *starts[-1:])):  # most often the nearest one is enough
        with _dumping(server, here, (timeline, start, lsn), deadline) as process:
            found = next_xid(process.stdout or ())
            if process.wait():
                return None
        if found is not None:
            return found
    return None


def _begins_behind(server: Server, here: _Here, timeline: int, lsn: int, deadline: float) -> Callable[[int], bool]:
    """Return what says of a transaction id whether it certainly has no record before an LSN; that is found out when it is first asked for.

    It takes half of the time that is left at most: what it is asked for in vain counts as a commit, and the rest must still be read.
    """

    @functools.lru_cache(maxsize=1)
    def bound() -> Optional[int]:
        now = time.monotonic()
        return _next_xid_at(server, here, timeline, lsn, now + (deadline - now) / 2)

    def begins_behind(xid: int) -> bool:
        first = bound()
        return first is not None and not precedes(xid, first)

    return begins_behind


def _always(_xid: int) -> bool:
    return True


def _dump(
    server: Server, here: _Here, span: tuple[int, int, int], findings: Findings, *, begins_behind: Callable[[int], bool], deadline: float
) -> None:
    """Add the commits of one span; a dump that fails or does not end in time leaves a problem.

    Without an end pg_waldump fails where the WAL ends, and elsewhere too: it counts only where no page of WAL follows.
    """
    timeline, start, end = span
    if time.monotonic() >= deadline:
        findings.problem = TOO_LATE
        return
    with _dumping(server, here, span, deadline) as process:
        lines = _Lines(process.stdout or (), start)
        for commit in commits(lines, begins_behind):
            findings.add(commit)
        complaint = (process.stderr.read() if process.stderr else "").strip()
        returncode = process.wait()
    if returncode < 0:
        findings.problem = TOO_LATE
        return
    behind = lines.behind(here.segment_bytes)
    if returncode and (end or not is_end_of_wal(server.data("pg_wal"), timeline, behind, here.segment_bytes)):
        findings.problem = "its WAL from {0} on cannot be read: {1}".format(format_lsn(behind), " ".join(complaint.split()) or "no reason given")


@dataclass
class OwnTransactions(Findings):
    """The same, with the transactions themselves, as many as a report holds."""

    listed: list[Commit] = field(default_factory=list)

    def add(self, commit: Commit) -> None:
        """Count a transaction, and keep it."""
        super().add(commit)
        if not commit.only_statistics and len(self.listed) < LISTED_TRANSACTIONS:
            self.listed.append(commit)


def own_transactions(server: Server, timeline: int, history: str, lsn: str, *, timeout_seconds: float) -> OwnTransactions:
    """Return what a server that is down committed behind an LSN of its past; `problem` says why that may not be all."""
    here = _Here(timeline, history, server.control_data().wal_segment_bytes, 0)
    found = OwnTransactions()
    _look(server, here, lsn, time.monotonic() + timeout_seconds, found)
    return found


def _look(server: Server, here: _Here, lsn: str, deadline: float, findings: Findings) -> Findings:
    if not lsn:
        findings.problem = "where they parted cannot be told"
        return findings
    fork = parse_lsn(lsn)
    spans = list(_spans(here, fork))
    # None goes on over a switch of timelines but prepared ones, which are never called statistics alone: what is before the fork tells it for all, and
    # where the server's own timeline begins at the fork, so did all that commits on it.
    switches = parse_history(here.history)
    if switches and switches[-1].switch_lsn == fork:
        begins_behind: Callable[[int], bool] = _always
    else:
        begins_behind = _begins_behind(server, here, spans[0][0] if spans else here.timeline, fork, deadline)
    for span in spans:
        segments = _segments(server, here, span[0])
        if not span[2] and _ends_at(segments, span[1], here.segment_bytes):
            continue
        if span[1] - span[1] % here.segment_bytes not in segments:
            findings.problem = "its WAL from {0} on is gone".format(format_lsn(span[1]))
            break
        _dump(server, here, span, findings, begins_behind=begins_behind, deadline=deadline)
        if findings.problem:
            break
    return findings


# -- names -----------------------------------------------------------------------------------------------------------------------------


def _names_in(session: sql.Session, files: Iterable[tuple[str, str]]) -> list[str]:
    """Return the names of the tables, sequences and materialized views among a database's files; its catalogs in one word."""
    spaces, numbers = zip(*files)
    rows = session.rows(
        "SELECT DISTINCT CASE WHEN n.nspname IN ('pg_catalog', 'pg_toast', 'information_schema') THEN 'system catalogs' ELSE current_database() || ': '"
        " || c.oid::regclass END FROM unnest(%s::oid[], %s::oid[]) AS f (space, number)"
        " JOIN pg_class c ON c.oid = pg_filenode_relation(f.space, f.number) JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'm', 'S') ORDER BY 1",
        [[int(space) for space in spaces], [int(number) for number in numbers]],
    )
    return [str(row[0]) for row in rows]


def relation_names(server: Server, files: Iterable[str]) -> list[str]:
    """Return what files of the form tablespace/database/file are called, as `database: table`; empty when the server cannot be asked.

    Files that are gone, of a dropped or rewritten table, have no name any more.
    """
    by_database: dict[str, list[tuple[str, str]]] = {}
    for name in files:
        space, database, number = name.split("/")
        by_database.setdefault(database, []).append((space, number))
    shared = by_database.pop("0", None)
    found = ["shared catalogs"] if shared else []
    with contextlib.suppress(sql.SqlError):
        with server.connect() as session:
            known = {str(oid): str(name) for oid, name in session.rows("SELECT oid::text, datname::text FROM pg_database WHERE datallowconn")}
        for oid in sorted(by_database, key=int):
            if oid in known:
                with replace(server, database=known[oid]).connect() as session:
                    found.extend(_names_in(session, by_database[oid]))
    # The users' tables first: of the rest only some may be shown.
    return sorted(dict.fromkeys(found), key=lambda name: (": " not in name, name))


# -- the answer ------------------------------------------------------------------------------------------------------------------------


def divergence(server: Server, since: Iterable[Since], *, timeout_seconds: float) -> list[dict[str, Any]]:
    """Return for each question what was committed here since; reading takes `timeout_seconds` at most, all questions together."""
    here = _observe_here(server)
    deadline = time.monotonic() + timeout_seconds
    looked: dict[str, dict[str, Any]] = {}
    sides = []
    for question in since:
        if question.lsn not in looked:
            looked[question.lsn] = _answer(server, _look(server, here, question.lsn, deadline, Findings()))
        sides.append({"other": question.other, "from_lsn": question.lsn, **looked[question.lsn]})
    return sides


def _answer(server: Server, findings: Findings) -> dict[str, Any]:
    return {
        "complete": not findings.problem,
        "transactions": findings.transactions,
        "statistics_transactions": findings.statistics,
        "xids": findings.xids,
        "first_at": findings.first_at,
        "last_at": findings.last_at,
        "relations": relation_names(server, findings.files) if findings.files else [],
        "problem": findings.problem,
    }
