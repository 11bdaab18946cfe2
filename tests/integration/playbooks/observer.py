# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Observe standbys and logins without a pause, until stdin is closed; then print what was seen, as JSON.

    python observer.py '{"standbys": {NAME: CONNINFO}, "logins": {NAME: CONNINFO}, "acknowledged": PATH}'

Runs under the servers' account, with the Python that Ansible's modules use. Times are of the monotonic clock, in seconds.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from typing import Any

import psycopg2
import psycopg2.extras

ROUND_SECONDS = 0.02
BETWEEN_LOGINS_SECONDS = 0.1
QUESTION = "SELECT pid, status = 'streaming', pg_last_wal_replay_lsn() FROM (SELECT) AS always LEFT JOIN pg_stat_wal_receiver ON true"


class Longest:
    """The longest time that something stayed as it was."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._value: Any = None
        self._since = time.monotonic()

    def see(self, value: Any) -> None:
        now = time.monotonic()
        self.seconds = max(self.seconds, now - self._since)
        if value != self._value:
            self._value, self._since = value, now


class Standby:
    """One standby: which WAL receivers streamed there, and when none did."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._connection: Any = None
        self._streamed_at = 0.0
        self.receivers: list[int] = []
        self.gaps: list[tuple[float, float]] = []
        self.away = False
        self.standstill = Longest()

    def _ask(self) -> tuple[int, bool, str]:
        try:
            if self._connection is None:
                self._connection = psycopg2.connect(self._conninfo, connect_timeout=2)
                self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute(QUESTION)
                pid, streaming, replayed = cursor.fetchone()
            return pid or 0, bool(streaming), replayed
        except psycopg2.Error:
            self._connection = None
            return 0, False, ""

    def see(self) -> None:
        pid, streaming, replayed = self._ask()
        now = time.monotonic()
        self.standstill.see(replayed)
        if not streaming:
            self.away = True
            return
        if self.receivers and (self.away or pid != self.receivers[-1]):
            self.gaps.append((self._streamed_at, now))  # at most so long: it was well in the rounds before and after
        if pid not in self.receivers[-1:]:
            self.receivers.append(pid)
        self.away, self._streamed_at = False, now

    def found(self) -> dict[str, Any]:
        return {"receivers": self.receivers, "gaps": self.gaps, "away": self.away, "standstill_seconds": self.standstill.seconds}


class Logins(threading.Thread):
    """Logs in as a WAL receiver does, again and again, and keeps what failed."""

    def __init__(self, conninfos: dict[str, str]) -> None:
        super().__init__()
        self._conninfos = conninfos
        self.over = threading.Event()
        self.count = 0
        self.failures: list[tuple[float, str, str]] = []

    def run(self) -> None:
        while not self.over.is_set():
            for name, conninfo in self._conninfos.items():
                begun = time.monotonic()
                try:
                    psycopg2.connect(conninfo, connect_timeout=5, connection_factory=psycopg2.extras.PhysicalReplicationConnection).close()
                    self.count += 1
                except psycopg2.Error as error:
                    self.failures.append((begun, name, str(error)))
                self.over.wait(BETWEEN_LOGINS_SECONDS)


def main(wanted: dict[str, Any]) -> None:
    standbys = {name: Standby(conninfo) for name, conninfo in wanted["standbys"].items()}
    logins, commits, rounds, over = Logins(wanted["logins"]), Longest(), 0, False
    logins.start()
    while not over:
        over = bool(select.select([sys.stdin], [], [], ROUND_SECONDS)[0])
        for standby in standbys.values():  # once more at the end
            standby.see()
        commits.see(os.stat(wanted["acknowledged"]).st_size)
        rounds += 1
        if rounds == 1:
            print("observing", flush=True)
    logins.over.set()
    logins.join()
    found = {"standbys": {name: standby.found() for name, standby in standbys.items()}, "rounds": rounds, "commit_seconds": commits.seconds}
    print(json.dumps({**found, "logins": logins.count, "failed_logins": logins.failures}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
