# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write-availability probe: one client that commits a numbered row about every 5 ms and survives role changes.

As a command (the password comes from PGPASSWORD or PGPASSFILE, not from the string):

    python benchmarks/probe.py run --dsn "host=10.0.0.2,10.0.0.3 user=u dbname=d" --table probe --acks FILE --seconds 60
    python benchmarks/probe.py check --dsn ... --table probe --acks FILE

`run` ends after --seconds, on SIGINT or on SIGTERM. `check` reads the table from the present primary, prints the gaps and the
rows as JSON, and exits with 1 if an acknowledged row is missing or any row is there twice.

As a library: `ProbeProcess.start(ProbeSpec(...))`, `wait_for_ack`, `stop`, then `check_table`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import psycopg2
from psycopg2 import sql

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import acks, connect

# A CREATE waits for more than an INSERT does.
SETUP_SECONDS = 10.0


class ProbeError(Exception):
    """The probe's process did not do what it was asked to."""


@dataclass(frozen=True)
class ProbeSpec:
    """What to write where, and how long each wait may take, in seconds.

    `table` may be qualified by a schema; it is created if it is absent. Rows are numbered from `first_number`; no
    number is tried twice, so a row that is present twice was not written twice by the probe.
    """

    dsn: str
    table: str
    acks_path: str
    first_number: int = 1
    interval_seconds: float = 0.005
    commit_seconds: float = 1.0
    attempt_seconds: float = 0.5
    retry_seconds: float = 0.02
    limit_seconds: float = 3600.0

    @property
    def pace(self) -> connect.Pace:
        """Return the deadlines of connection attempts."""
        return connect.Pace(self.attempt_seconds, self.retry_seconds)


def table_identifier(table: str) -> sql.Identifier:
    """Return `table` or `schema.table`, quoted."""
    return sql.Identifier(*table.split(".", 1))


class Control:
    """The requests of whoever started the probe: lines on a pipe; its end means stop."""

    def __init__(self, requests: RawIOBase, answers: BinaryIO) -> None:
        self.descriptor = requests.fileno()
        self._answers = answers
        self._pending = b""
        self.last: acks.Ack | None = None
        self.acknowledged = 0
        self.stop_requested = False

    def record(self, ack: acks.Ack) -> None:
        """Remember the newest acknowledged commit."""
        self.last = ack
        self.acknowledged += 1

    def wait(self, timeout_seconds: float) -> None:
        """Wait for a request, `timeout_seconds` at most, and serve it."""
        poller = select.poll()
        poller.register(self.descriptor, select.POLLIN)
        if poller.poll(max(0.0, timeout_seconds) * 1000):
            self.serve()

    def serve(self) -> bool:
        """Serve the requests that have arrived; return whether the probe has to stop. May wait if none has."""
        received = os.read(self.descriptor, 4096)
        *requests, self._pending = (self._pending + received).split(b"\n")
        if not received or b"stop" in requests:
            self.stop_requested = True
        for _status in range(requests.count(b"status")):
            last = dataclasses.asdict(self.last) if self.last else None
            answer = {"acknowledged": self.acknowledged, "last": last}
            self._answers.write(json.dumps(answer).encode() + b"\n")
            self._answers.flush()
        return self.stop_requested


class Writer:
    """The one client: keeps a connection to whoever accepts writes and commits rows on it."""

    def __init__(self, spec: ProbeSpec, control: Control, log_descriptor: int) -> None:
        self._spec = spec
        self._control = control
        self._log = log_descriptor
        self._endpoints = connect.split_hosts(spec.dsn)
        self._insert = sql.SQL("INSERT INTO {} (number) VALUES (%s)").format(table_identifier(spec.table))
        self._host = ""
        self._connection: connect.Connection = None
        self._table_exists = False

    def write(self, line: str) -> None:
        """Append one line to the log."""
        os.write(self._log, line.encode())

    def reconnect(self, deadline: float) -> None:
        """Get a connection that accepts writes; the first one creates the table."""
        endpoint, self._connection = connect.connect_writable(
            self._endpoints,
            timeout_seconds=deadline - time.monotonic(),
            pace=self._spec.pace,
            wake=self._control.descriptor,
            stopped=self._control.serve,
        )
        self._host = endpoint.name
        if not self._table_exists:
            self._create_table()
            self._table_exists = True

    def _create_table(self) -> None:
        """Create the table; raises ProbeError if rows of an earlier probe would hide lost ones of this."""
        table = table_identifier(self._spec.table)
        create = sql.SQL("CREATE TABLE IF NOT EXISTS {} (number bigint NOT NULL)").format(table)
        connect.execute(self._connection, create, (), SETUP_SECONDS).close()
        taken = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE number >= %s)").format(table)
        with connect.execute(self._connection, taken, (self._spec.first_number,), SETUP_SECONDS) as cursor:
            if cursor.fetchone()[0]:
                raise ProbeError(
                    f"The table {self._spec.table} has rows numbered {self._spec.first_number} or higher already. Drop it or name another."
                )

    def commit(self, number: int) -> None:
        """Insert and commit one row; an INSERT outside of a transaction block is acknowledged after its COMMIT."""
        connect.execute(self._connection, self._insert, (number,), self._spec.commit_seconds).close()
        ack = acks.Ack(number, time.monotonic(), self._host)
        self.write(acks.format_ack(ack))
        self._control.record(ack)

    def drop(self, reason: str) -> None:
        """Give the connection up and note why."""
        self.write(acks.format_down(time.monotonic(), f"{self._host or '-'} {reason}"))
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def run(self) -> None:
        """Write until asked to stop or until the limit; every wait in here ends by itself."""
        deadline = time.monotonic() + self._spec.limit_seconds
        number = self._spec.first_number
        while not self._control.stop_requested and time.monotonic() < deadline:
            due = time.monotonic() + self._spec.interval_seconds
            try:
                if self._connection is None:
                    self.reconnect(deadline)
                number += 1
                self.commit(number - 1)
            except connect.StoppedError:
                return
            except (psycopg2.Error, connect.DeadlineError) as error:
                self.drop(str(error))
                due = time.monotonic()
            self._control.wait(due - time.monotonic())


def write_until_stopped(spec: ProbeSpec, control: Control) -> None:
    """Run the probe in this process and keep its log in `spec.acks_path`, which must not exist."""
    descriptor = os.open(spec.acks_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        writer = Writer(spec, control, descriptor)
        writer.write(acks.format_start(time.monotonic()))
        writer.run()
        writer.write(acks.format_stop(time.monotonic()))
    finally:
        os.close(descriptor)


class ProbeProcess:
    """A probe in a process of its own; it ends when told to, or when the pipe to it closes."""

    def __init__(self, spec: ProbeSpec, process: subprocess.Popen[bytes]) -> None:
        self.spec = spec
        self._process = process

    @classmethod
    def start(cls, spec: ProbeSpec, *, timeout_seconds: float = 15.0) -> ProbeProcess:
        """Start the probe and wait for its first acknowledged commit; raises ProbeError without one in time."""
        process = subprocess.Popen(  # pylint: disable=consider-using-with
            [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        probe = cls(spec, process)
        try:
            probe._send(json.dumps(dataclasses.asdict(spec)))
            probe.wait_for_ack(since=0.0, timeout_seconds=timeout_seconds)
        except BaseException:
            probe.kill()
            raise
        return probe

    def _send(self, request: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise ProbeError(f"The probe has ended with status {self._process.wait(5)}.") from error

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            poller = select.poll()
            poller.register(self._process.stdout, select.POLLIN)
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise ProbeError("The probe did not answer in time.")
            received = os.read(self._process.stdout.fileno(), 4096)
            if not received:
                raise ProbeError(f"The probe has ended with status {self._process.wait(5)}.")
            line += received
        answer: dict[str, Any] = json.loads(line)
        return answer

    def last_ack(self, *, timeout_seconds: float = 5.0) -> acks.Ack | None:
        """Return the newest acknowledged commit; None before the first."""
        self._send("status")
        last = self._receive(time.monotonic() + timeout_seconds)["last"]
        return acks.Ack(**last) if last else None

    def wait_for_ack(self, *, since: float, timeout_seconds: float) -> acks.Ack:
        """Wait for a commit acknowledged after `since` (monotonic); raises ProbeError if none comes in time."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            # So long the probe may be busy before it looks at its pipe again.
            last = self.last_ack(timeout_seconds=self.spec.commit_seconds + 2 * SETUP_SECONDS + 1)
            if last and last.at_seconds > since:
                return last
            if time.monotonic() >= deadline:
                raise ProbeError(f"No commit was acknowledged within {timeout_seconds:g} s.")
            time.sleep(0.05)

    def stop(self, *, timeout_seconds: float = 15.0) -> acks.AckLog:
        """End the probe and return what it recorded; a probe that does not end is killed and ProbeError raised."""
        try:
            self._send("stop")
            status = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise ProbeError(f"The probe did not end within {timeout_seconds:g} s and was killed.") from error
        finally:
            self.kill()
        if status != 0:
            raise ProbeError(f"The probe has ended with status {status}.")
        return acks.parse_ack_log(Path(self.spec.acks_path).read_text(encoding="utf-8"))

    def kill(self) -> None:
        """End the process if it still runs; safe to call again."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.kill()


def present_numbers(dsn: str, table: str, *, timeout_seconds: float = 30.0) -> list[int]:
    """Return the numbers of the rows that the present primary has, unsorted, repeated if they are there twice.

    Raises connect.DeadlineError if no host accepts writes in time, psycopg2.Error if the table cannot be read.
    """
    deadline = time.monotonic() + timeout_seconds
    _endpoint, connection = connect.connect_writable(connect.split_hosts(dsn), timeout_seconds=timeout_seconds)
    try:
        select_rows = sql.SQL("SELECT number FROM {}").format(table_identifier(table))
        cursor = connect.execute(connection, select_rows, (), deadline - time.monotonic())
        return [row[0] for row in cursor.fetchall()]
    finally:
        connection.close()


def check_table(dsn: str, table: str, log: acks.AckLog, *, timeout_seconds: float = 30.0) -> acks.RowCheck:
    """Compare the acknowledged rows with the present primary's table; errors as present_numbers."""
    return acks.check_rows(log, present_numbers(dsn, table, timeout_seconds=timeout_seconds))


def report(log: acks.AckLog, rows: acks.RowCheck | None) -> dict[str, Any]:
    """Return the figures of one probe as plain data; `rows` is None if the table was not read."""
    figures: dict[str, Any] = {"acknowledged_rows": len(log.acks)}
    for name, gap in (("longest_gap", acks.longest_gap(log)), ("handover_gap", acks.handover_gap(log))):
        figures[name] = {**dataclasses.asdict(gap), "seconds": gap.seconds} if gap else None
    if rows is not None:
        figures["lost_rows"] = list(rows.lost)
        figures["rows_present_twice"] = list(rows.twice)
        figures["unacknowledged_rows_present"] = len(rows.unacknowledged)
    return figures


def _serve() -> int:
    # Unbuffered, so that the requests after the first line stay in the pipe, where poll sees them.
    with os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as requests:
        spec = ProbeSpec(**json.loads(requests.readline()))
        write_until_stopped(spec, Control(requests, sys.stdout.buffer))
    return 0


def _run(arguments: argparse.Namespace) -> int:
    read_end, write_end = os.pipe()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_received: os.write(write_end, b"stop\n"))
    spec = ProbeSpec(arguments.dsn, arguments.table, arguments.acks, limit_seconds=arguments.seconds)
    with os.fdopen(read_end, "rb", buffering=0) as requests:
        write_until_stopped(spec, Control(requests, sys.stdout.buffer))
    log = acks.parse_ack_log(Path(arguments.acks).read_text(encoding="utf-8"))
    print(json.dumps(report(log, None), indent=2))
    return 0 if log.acks else 1


def _check(arguments: argparse.Namespace) -> int:
    log = acks.parse_ack_log(Path(arguments.acks).read_text(encoding="utf-8"))
    try:
        rows = check_table(arguments.dsn, arguments.table, log, timeout_seconds=arguments.seconds)
    except (psycopg2.Error, connect.DeadlineError) as error:
        print(f"Cannot read {arguments.table}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report(log, rows), indent=2))
    return 1 if rows.lost or rows.twice else 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, action, seconds in (("run", _run, 3600.0), ("check", _check, 30.0)):
        command = commands.add_parser(name)
        command.set_defaults(action=action)
        command.add_argument("--dsn", required=True, help="libpq string or URI with every host; no password in it")
        command.add_argument("--table", required=True, help="table or schema.table")
        command.add_argument("--acks", required=True, help="file with the acknowledged commits")
        command.add_argument("--seconds", type=float, default=seconds, help="end after this time")
    commands.add_parser("serve", help="used by ProbeProcess").set_defaults(action=lambda _arguments: _serve())
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command; return the exit status."""
    arguments = parse_arguments()
    try:
        status: int = arguments.action(arguments)
    except (ProbeError, acks.AckLogError, ValueError, OSError) as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
