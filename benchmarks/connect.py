# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections on which every wait has a deadline of its own.

libpq's connect_timeout counts whole seconds, is at least 2, and the hosts of a multi-host string are tried one after the
other: a frozen host, which still accepts TCP, would hold up the others. Here each host of the string gets a
session of its own, side by side, is asked what libpq asks for target_session_attrs=read-write, and the first that says yes wins.
A host that says no is asked again in the same session: fifty logins a second on each would be more load on two cores than
the role change that is measured.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import extensions

Connection = Any  # psycopg2 has no type information


class DeadlineError(Exception):
    """The server did not answer within the deadline."""


class StoppedError(Exception):
    """The caller asked to stop while waiting for a connection."""


@dataclass(frozen=True)
class Endpoint:
    """One host of a multi-host string: its printable name and the libpq string for it alone."""

    name: str
    dsn: str


@dataclass(frozen=True)
class Pace:
    """How long one attempt or answer may take, and how long to leave a host alone after it said no, in seconds."""

    attempt_seconds: float = 0.5
    retry_seconds: float = 0.02


def split_hosts(dsn: str) -> tuple[Endpoint, ...]:
    """Return one endpoint per host of a libpq string or URI, each without target_session_attrs.

    Host names are resolved by libpq, without a deadline: use addresses. Raises ValueError for a string with no host
    or with as many ports as fit neither one nor every host.
    """
    options = extensions.parse_dsn(dsn)
    hosts = options.pop("host", "").split(",")
    ports = options.pop("port", "5432").split(",")
    if hosts == [""] or "hostaddr" in options:
        raise ValueError("The connection string must name its hosts with host=, not hostaddr= or the default socket.")
    if len(ports) == 1:
        ports = ports * len(hosts)
    if len(ports) != len(hosts):
        raise ValueError(f"The connection string has {len(hosts)} hosts and {len(ports)} ports.")
    options.pop("target_session_attrs", None)
    return tuple(Endpoint(f"{host}:{port}", extensions.make_dsn(host=host, port=port, **options)) for host, port in zip(hosts, ports))


def wait_for(connection: Connection, deadline_seconds: float) -> None:
    """Wait until the connection's present operation ends; raise DeadlineError at `deadline_seconds` (monotonic)."""
    while True:
        state = connection.poll()
        if state == extensions.POLL_OK:
            return
        event = select.POLLOUT if state == extensions.POLL_WRITE else select.POLLIN
        poller = select.poll()
        poller.register(connection.fileno(), event)
        remaining = deadline_seconds - time.monotonic()
        if remaining <= 0 or not poller.poll(remaining * 1000):
            raise DeadlineError("no answer within the deadline")


def execute(connection: Connection, statement: Any, parameters: Sequence[Any], timeout_seconds: float) -> Any:
    """Run one statement in its own transaction and return the cursor; raises DeadlineError or psycopg2.Error."""
    cursor = connection.cursor()
    cursor.execute(statement, parameters)
    wait_for(connection, time.monotonic() + timeout_seconds)
    return cursor


class _Attempt:
    """The session with one endpoint, begun again after each error, and asked until it accepts writes."""

    def __init__(self, endpoint: Endpoint, pace: Pace) -> None:
        self.endpoint = endpoint
        self._pace = pace
        self._connection: Connection = None
        self._cursor: Any = None  # of a question that waits for its answer
        self._rests = False
        self._event = 0
        self.due_seconds = 0.0
        self.problem = "not tried"

    def advance(self, now: float, ready: Collection[int]) -> Connection | None:
        """Do what can be done without waiting; return the connection once it is writable.

        PQconnectPoll must not be called before its socket is ready: it takes a socket that is still connecting for a
        connected one.
        """
        try:
            return self._advance(now, ready)
        except (psycopg2.Error, DeadlineError) as error:
            self.problem = " ".join(str(error).split())
            self.abandon()
            self.due_seconds = now + self._pace.retry_seconds
            return None

    def _advance(self, now: float, ready: Collection[int]) -> Connection | None:
        due = now >= self.due_seconds
        if self._connection is None:
            if not due:
                return None
            self._connection = psycopg2.connect(self.endpoint.dsn, async_=1)
            self.due_seconds = now + self._pace.attempt_seconds
        elif self._rests:
            # What arrives unasked is the session's end; poll() raises it.
            if due:
                self._ask(now)
            elif self._connection.fileno() not in ready:
                return None
        elif self._connection.fileno() not in ready:
            if due:
                raise DeadlineError("no answer within the deadline")
            return None
        state = self._connection.poll()
        if state == extensions.POLL_OK and not self._rests:
            return self._answered(now)
        self._event = select.POLLOUT if state == extensions.POLL_WRITE else select.POLLIN
        return None

    def _ask(self, now: float) -> None:
        self._cursor = self._connection.cursor()
        self._cursor.execute("SHOW transaction_read_only")
        self._rests = False
        self.due_seconds = now + self._pace.attempt_seconds

    def _answered(self, now: float) -> Connection | None:
        """Take the login or the answer; return the connection if that is yes."""
        read_only = self._cursor.fetchone()[0] if self._cursor is not None else ""
        self._cursor = None
        if read_only == "off":
            connection, self._connection = self._connection, None
            return connection
        self.problem = "it is read-only"
        self._rests, self._event = True, select.POLLIN
        self.due_seconds = now + self._pace.retry_seconds if read_only else now
        return None

    def register(self, poller: select.poll) -> None:
        """Add the socket, if there is one, to those that end the wait."""
        if self._connection is not None:
            poller.register(self._connection.fileno(), self._event)

    def abandon(self) -> None:
        """Close the session, if there is one."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._cursor, self._rests = None, None, False


def connect_writable(
    endpoints: Sequence[Endpoint],
    *,
    timeout_seconds: float,
    pace: Pace = Pace(),
    wake: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[Endpoint, Connection]:
    """Return the first endpoint that accepts writes and an asynchronous connection to it.

    `wake` is a file descriptor whose input makes `stopped` be asked; StoppedError is raised when it says yes.
    Raises DeadlineError, with the last problem of each endpoint, after `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    attempts = [_Attempt(endpoint, pace) for endpoint in endpoints]
    ready: list[int] = []
    try:
        while True:
            for attempt in attempts:
                connection = attempt.advance(time.monotonic(), ready)
                if connection is not None:
                    return attempt.endpoint, connection
            now = time.monotonic()
            if now >= deadline:
                problems = "; ".join(f"{attempt.endpoint.name}: {attempt.problem}" for attempt in attempts)
                raise DeadlineError(f"No host accepts writes after {timeout_seconds:g} s ({problems}).")
            poller = select.poll()
            for attempt in attempts:
                attempt.register(poller)
            if wake is not None:
                poller.register(wake, select.POLLIN)
            until = min(deadline, *(attempt.due_seconds for attempt in attempts))
            ready = [descriptor for descriptor, _event in poller.poll(max(0.0, until - now) * 1000)]
            if wake in ready and stopped():
                raise StoppedError("asked to stop")
    finally:
        for attempt in attempts:
            attempt.abandon()
