# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""SQL over psycopg2 in which every wait has a deadline of ours.

A frozen host still accepts TCP and a stopped postmaster keeps its socket, so libpq's own connect_timeout (whole seconds, not
applied to queries) is not enough. psycopg2's wait callback lets one select() with our deadline stand in every wait.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Iterator, Sequence
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import NO_PSYCOPG2

try:
    import psycopg2
    import psycopg2.extensions
    import psycopg2.extras

    HAS_PSYCOPG2 = True
except ImportError:
    HAS_PSYCOPG2 = False


class SqlError(PgOpsError):
    """A server refused a connection or a statement, or did not answer in time. Holds no secret."""

    def __init__(self, message: str, *, reason: str = "sql", hint: str = "", sqlstate: str = "") -> None:
        super().__init__(message, reason=reason, hint=hint)
        self.sqlstate = sqlstate


class _Clock:
    """The deadline of the wait that is under way (monotonic seconds)."""

    deadline: float = 0.0


def _wait(connection: Any) -> None:
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        remaining = _Clock.deadline - time.monotonic()
        if remaining <= 0:
            raise SqlError("no answer in time", reason="timeout")
        reading = [connection.fileno()] if state == psycopg2.extensions.POLL_READ else []
        writing = [connection.fileno()] if state == psycopg2.extensions.POLL_WRITE else []
        select.select(reading, writing, [], min(remaining, 1.0))


@contextlib.contextmanager
def _as_user(uid: Optional[int]) -> Iterator[None]:
    """Connect with another effective user id: peer authentication looks at the one that holds during connect()."""
    if uid is None or os.geteuid() == uid:
        yield
        return
    previous = os.geteuid()
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(previous)


class Session:
    """One connection in autocommit mode; a context manager."""

    def __init__(self, connection: Any, timeout_seconds: float) -> None:
        self._connection = connection
        self._timeout_seconds = timeout_seconds

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; never waits."""
        with contextlib.suppress(psycopg2.Error):
            self._connection.close()

    def rows(self, statement: Any, values: Sequence[Any] = (), *, timeout_seconds: Optional[float] = None) -> list[tuple[Any, ...]]:
        """Run one statement with bound values and return its rows; raises SqlError."""
        _Clock.deadline = time.monotonic() + (timeout_seconds or self._timeout_seconds)
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, tuple(values) or None)
                return list(cursor.fetchall()) if cursor.description else []
        except psycopg2.Error as error:
            raise SqlError(_text(error), sqlstate=str(getattr(error, "pgcode", "") or "")) from error

    def row(self, statement: Any, values: Sequence[Any] = (), *, timeout_seconds: Optional[float] = None) -> dict[str, Any]:
        """Run one statement and return its first row by column name; empty when there is none."""
        _Clock.deadline = time.monotonic() + (timeout_seconds or self._timeout_seconds)
        found = self.dicts(statement, values, timeout_seconds=timeout_seconds)
        return found[0] if found else {}

    def dicts(self, statement: Any, values: Sequence[Any] = (), *, timeout_seconds: Optional[float] = None) -> list[dict[str, Any]]:
        """Run one statement and return its rows by column name; raises SqlError."""
        _Clock.deadline = time.monotonic() + (timeout_seconds or self._timeout_seconds)
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(statement, tuple(values) or None)
                names = [column[0] for column in cursor.description or ()]
                return [dict(zip(names, row)) for row in cursor.fetchall()] if names else []
        except psycopg2.Error as error:
            raise SqlError(_text(error), sqlstate=str(getattr(error, "pgcode", "") or "")) from error

    def value(self, statement: Any, values: Sequence[Any] = (), *, timeout_seconds: Optional[float] = None) -> Any:
        """Run one statement and return the first column of its first row, None without a row."""
        found = self.rows(statement, values, timeout_seconds=timeout_seconds)
        return found[0][0] if found else None


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def require_psycopg2() -> None:
    """Raise one clear error where psycopg2 is missing."""
    if not HAS_PSYCOPG2:
        raise SqlError(NO_PSYCOPG2, reason="no_psycopg2", hint="Install python3-psycopg2 (initial_setup.yml does it).")


def connect(parameters: dict[str, Any], *, timeout_seconds: float, as_uid: Optional[int] = None, replication: bool = False) -> Session:
    """Open a session; `parameters` are libpq's (no password: a passfile). Raises SqlError within `timeout_seconds`.

    With `replication` it is a physical replication connection, which takes replication commands only.
    """
    require_psycopg2()
    psycopg2.extensions.set_wait_callback(_wait)
    _Clock.deadline = time.monotonic() + timeout_seconds
    wanted = dict(parameters, application_name=parameters.get("application_name", "pg_ops"), client_encoding="UTF8")
    if replication:
        wanted["connection_factory"] = psycopg2.extras.PhysicalReplicationConnection
    try:
        with _as_user(as_uid):
            connection = psycopg2.connect(**wanted)
        if not replication:  # where autocommit is on by itself and cannot be set
            connection.autocommit = True
    except psycopg2.Error as error:
        raise SqlError(_text(error), reason="connect", sqlstate=str(getattr(error, "pgcode", "") or "")) from error
    return Session(connection, timeout_seconds)
