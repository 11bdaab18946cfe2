# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections on which every wait has a deadline of its own.

libpq's connect_timeout counts whole seconds, is at least 2, and the hosts of a multi-host string are tried one after the
other: a frozen host, which still accepts TCP, would hold up the others. Here each host of the string gets an
attempt of its own, side by side, and the first that passes target_session_attrs wins.
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
    """How long one attempt may take, and how long to leave a host alone after it said no, in seconds.

    The longer nobody accepts writes the longer the pause, up to a share of that time: each attempt costs its host a process and a password's
    hashing, fifty a second and host are more load on two cores than the role change that is measured. What is seen is later by that share at most.
    """

    attempt_seconds: float = 0.5
    retry_seconds: float = 0.02
    retry_share: float = 0.05

    def pause_seconds(self, without_seconds: float) -> float:
        """Return how long to leave a host alone when nobody has accepted writes for that long."""
        return max(self.retry_seconds, self.retry_share * without_seconds)


def split_hosts(dsn: str) -> tuple[Endpoint, ...]:
    """Return one endpoint per host of a libpq string or URI, each with target_session_attrs=read-write.

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
    options["target_session_attrs"] = "read-write"
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
    """The connection attempt to one endpoint, begun again after each refusal."""

    def __init__(self, endpoint: Endpoint, pace: Pace, began: float) -> None:
        self.endpoint = endpoint
        self._pace = pace
        self._began = began
        self._connection: Connection = None
        self._event = 0
        self.due_seconds = 0.0
        self.problem = "not tried"

    def advance(self, now: float, ready: Collection[int]) -> Connection | None:
        """Do what can be done without waiting; return the connection once it is writable.

        PQconnectPoll must not be called before its socket is ready: it takes a socket that is still connecting for a
        connected one.
        """
        try:
            if self._connection is None:
                if now < self.due_seconds:
                    return None
                self._connection = psycopg2.connect(self.endpoint.dsn, async_=1)
                self.due_seconds = now + self._pace.attempt_seconds
            elif now >= self.due_seconds:
                raise DeadlineError("no answer within the deadline")
            elif self._connection.fileno() not in ready:
                return None
            state = self._connection.poll()
        except (psycopg2.Error, DeadlineError) as error:
            self.problem = " ".join(str(error).split())
            self.abandon()
            self.due_seconds = now + self._pace.pause_seconds(now - self._began)
            return None
        if state == extensions.POLL_OK:
            connection, self._connection = self._connection, None
            return connection
        self._event = select.POLLOUT if state == extensions.POLL_WRITE else select.POLLIN
        return None

    def register(self, poller: select.poll) -> None:
        """Add the socket, if there is one, to those that end the wait."""
        if self._connection is not None:
            poller.register(self._connection.fileno(), self._event)

    def abandon(self) -> None:
        """Close an unfinished attempt."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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
    began = time.monotonic()
    deadline = began + timeout_seconds
    attempts = [_Attempt(endpoint, pace, began) for endpoint in endpoints]
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
