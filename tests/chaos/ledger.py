# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger: a client that writes numbered rows all the time, and one witness for each node. Every wait has a deadline.

The client uses a multi-host connection, as an application would, and records each acknowledgement and each value that it reads back,
with the server that gave it. A witness asks its own node ten times a second to insert a row, and rolls back where the node agrees:
so a second node that accepts writes is noticed although the client never meets it.

The log has one JSON object a line; `tests.chaos.checker` reads it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg2

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import connect

TABLE = "ledger"
CREATE = (
    f"CREATE TABLE {TABLE} (number bigint NOT NULL, written_at timestamptz NOT NULL DEFAULT clock_timestamp())",
    f"CREATE INDEX ON {TABLE} (number)",  # not unique: a row that is there twice must be seen, not prevented
)
# Which run of which server this is: a server that stops being primary has to be restarted first.
SERVER = "host(inet_server_addr()), substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8), extract(epoch FROM pg_postmaster_start_time())::text"
INSERT = f"INSERT INTO {TABLE} (number) VALUES (%s) RETURNING {SERVER}, xmin::text"
READ = f"SELECT {SERVER}, xmin::text, number FROM {TABLE} ORDER BY number DESC LIMIT 1"
WITNESS_NUMBER = -1


@dataclass(frozen=True)
class LedgerSpec:
    """What to write where; times in seconds. `numbers_from` is the first row's number, and no number is tried twice."""

    dsn: str
    log_path: str
    numbers_from: int = 1
    interval_seconds: float = 0.02
    witness_seconds: float = 0.1
    answer_seconds: float = 1.0
    read_every: int = 5


class Journal:
    """The log, shared by the threads; a line is written by one call."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event."""
        os.write(self._descriptor, (json.dumps({"kind": kind, **fields}) + "\n").encode())


def server_fields(row: tuple[Any, ...]) -> dict[str, Any]:
    """Return the columns of SERVER by name."""
    address, timeline, started = row[:3]
    return {"address": address, "timeline": int(timeline, 16), "started": started}


class Client:
    """The one writer with the multi-host connection."""

    def __init__(self, spec: LedgerSpec, journal: Journal, over: threading.Event) -> None:
        self._spec, self._journal, self._over = spec, journal, over
        self._endpoints = connect.split_hosts(spec.dsn)
        self._connection: connect.Connection = None

    def _ask(self, statement: str, *parameters: Any) -> tuple[Any, ...]:
        with connect.execute(self._connection, statement, parameters, self._spec.answer_seconds) as cursor:
            row: tuple[Any, ...] = cursor.fetchone()
        return row

    def _commit(self, number: int) -> None:
        sent = time.monotonic()
        row = self._ask(INSERT, number)
        self._journal.write("ack", number=number, sent=sent, at=time.monotonic(), xid=int(row[3]), **server_fields(row))

    def _read(self) -> None:
        sent = time.monotonic()
        row = self._ask(READ)
        self._journal.write("read", number=row[4], sent=sent, at=time.monotonic(), xid=int(row[3]), **server_fields(row))

    def run(self) -> None:
        """Write until told to stop."""
        number = self._spec.numbers_from
        while not self._over.wait(self._spec.interval_seconds):
            try:
                if self._connection is None:
                    _endpoint, self._connection = connect.connect_writable(self._endpoints, timeout_seconds=1.0)
                number += 1
                self._commit(number - 1)
                if number % self._spec.read_every == 0:
                    self._read()
            except (psycopg2.Error, connect.DeadlineError) as error:
                self._journal.write("down", at=time.monotonic(), reason=" ".join(str(error).split())[:300])
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None


class Witness:
    """Asks one node again and again whether it accepts a write."""

    def __init__(self, spec: LedgerSpec, endpoint: connect.Endpoint, journal: Journal, over: threading.Event) -> None:
        self._spec, self._journal, self._over = spec, journal, over
        options = connect.extensions.parse_dsn(endpoint.dsn)
        self._dsn = connect.extensions.make_dsn(**{**options, "target_session_attrs": "any"})
        self._connection: connect.Connection = None

    def _ask(self) -> None:
        timeout = self._spec.answer_seconds
        if self._connection is None:
            self._connection = psycopg2.connect(self._dsn, async_=1)
            connect.wait_for(self._connection, time.monotonic() + timeout)
        sent = time.monotonic()
        connect.execute(self._connection, "BEGIN", (), timeout).close()
        try:
            with connect.execute(self._connection, INSERT, (WITNESS_NUMBER,), timeout) as cursor:
                row = cursor.fetchone()
            self._journal.write("accept", sent=sent, at=time.monotonic(), **server_fields(row))
        except psycopg2.errors.ReadOnlySqlTransaction:
            pass  # a standby
        connect.execute(self._connection, "ROLLBACK", (), timeout).close()

    def run(self) -> None:
        """Ask until told to stop."""
        while not self._over.wait(self._spec.witness_seconds):
            try:
                self._ask()
            except (psycopg2.Error, connect.DeadlineError):
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None


def serve() -> int:
    """Run the client and the witnesses until standard input closes."""
    spec = LedgerSpec(**json.loads(sys.stdin.readline()))
    journal, over = Journal(spec.log_path), threading.Event()
    workers: list[Client | Witness] = [Client(spec, journal, over)]
    workers += [Witness(spec, endpoint, journal, over) for endpoint in connect.split_hosts(spec.dsn)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    return 0


class LedgerProcess:
    """The ledger in a process of its own; it ends when stopped, or when the pipe to it closes."""

    def __init__(self, spec: LedgerSpec) -> None:
        self.spec = spec
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with
            [sys.executable, __file__], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(spec)).encode() + b"\n")
        self._process.stdin.flush()

    def is_running(self) -> bool:
        """Whether it still writes; it never ends by itself."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End it; one that does not end in time is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)


if __name__ == "__main__":
    sys.exit(serve())
