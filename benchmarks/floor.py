# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The floor: the shortest hand-over that loses nothing, over sessions that are open already, without Ansible.

CHECKPOINT, SIGINT to the postmaster (PostgreSQL's fast shutdown), the shutdown checkpoint's position from pg_controldata, replay of
it on the candidate, pg_promote() over SQL. Nothing is checked beforehand, nothing is armed, nothing can be rolled back.

The signal is sent directly: `systemctl stop` starts pg_ctlcluster, a Perl program, which sends the same signal later. systemd sees
the main process leave and runs the unit's ExecStop, which finds nothing to stop: Debian's unit is then `failed`, not active, and
the repair's `systemctl start` begins from there.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from psycopg2 import extensions

from benchmarks.persistent import PersistentShell, PersistentSql


class FloorError(Exception):
    """The hand-over or the repair after it did not reach its end."""


@dataclass(frozen=True)
class Server:
    """How to reach one server by hand: argv of a root shell and of psql as superuser, and where its files are."""

    name: str
    address: str
    port: int
    shell_argv: tuple[str, ...]
    psql_argv: tuple[str, ...]
    data_directory: str
    bin_directory: str
    start_command: str


@dataclass(frozen=True)
class HandOver:
    """When the floor's steps ended (monotonic), and the position that the candidate had to reach."""

    began_seconds: float
    checkpointed_seconds: float
    stopped_seconds: float
    replayed_seconds: float
    promoted_seconds: float
    shutdown_lsn: str

    def figures(self) -> dict[str, float]:
        """Return how long each step took; the whole is `command_seconds`."""
        return {
            "command_seconds": self.promoted_seconds - self.began_seconds,
            "checkpoint_seconds": self.checkpointed_seconds - self.began_seconds,
            "stop_seconds": self.stopped_seconds - self.checkpointed_seconds,
            "replay_seconds": self.replayed_seconds - self.stopped_seconds,
            "promote_seconds": self.promoted_seconds - self.replayed_seconds,
        }


# The postmaster removes its file when all else is done; pg_ctl waits for the same. (The process itself can linger as a zombie.)
# `read`, `kill` and `[` are the shell's own; a sleep of 2 ms is the only program that runs until pg_controldata does.
STOP_SCRIPT = """\
read -r pid < {data}/postmaster.pid && kill -INT "$pid" || exit 1
left=5000
while [ -e {data}/postmaster.pid ]; do
    left=$((left - 1)); [ "$left" -gt 0 ] || exit 2
    sleep 0.002
done
LC_ALL=C {bin}/pg_controldata {data}
"""
# One kill for all, the postmaster first: it must not see a child die and start another. A child may just have ended by itself.
KILL_SCRIPT = """\
read -r pid < {data}/postmaster.pid || exit 1
kill -0 "$pid" || exit 1
kill -KILL "$pid" $(pgrep -P "$pid") 2>/dev/null || :
"""
# standby.signal belongs to whom the data directory belongs to.
START_AS_STANDBY_SCRIPT = """\
touch {data}/standby.signal && chown --reference={data} {data}/standby.signal && {start}
"""


def fill(script: str, server: Server) -> str:
    """Return a script with one server's paths in it, quoted."""
    return script.format(data=shlex.quote(server.data_directory), bin=shlex.quote(server.bin_directory), start=server.start_command)


def shutdown_lsn(control_data: str) -> str:
    """Return the shutdown checkpoint's position; raises FloorError if the server was not shut down in order."""
    state = re.search(r"^Database cluster state: +(.+)$", control_data, re.MULTILINE)
    location = re.search(r"^Latest checkpoint location: +([0-9A-F]+/[0-9A-F]+)$", control_data, re.MULTILINE)
    if state is None or location is None or state[1] != "shut down":
        raise FloorError(f"The old primary is not shut down, pg_controldata says: {state[1] if state else control_data!r}.")
    return location[1]


def slot_of(server: Server) -> str:
    """Return the slot that a server uses on its primary: its own name. Raises FloorError where that cannot name a slot."""
    if not re.fullmatch(r"[a-z0-9_]{1,63}", server.name):
        raise FloorError(f"{server.name} cannot name a replication slot: a-z, 0-9 and _ can, 63 at most.")
    return server.name


def conninfo_to(conninfo: str, target: Server, application_name: str) -> str:
    """Return a standby's primary_conninfo with another primary and the standby's own name in it."""
    options = extensions.parse_dsn(conninfo)
    options.pop("hostaddr", None)
    options.update(host=target.address, port=str(target.port), application_name=application_name)
    return str(extensions.make_dsn(**options))


def literal(value: str) -> str:
    """Return an SQL string constant, right with either setting of standard_conforming_strings."""
    quoted = value.replace("'", "''")
    return "E'" + quoted.replace("\\", "\\\\") + "'" if "\\" in value else f"'{quoted}'"


def wait_until(holds: Callable[[], bool], *, timeout_seconds: float, pause_seconds: float, what: str) -> None:
    """Ask until the answer is yes; raises FloorError, naming `what`, when it is not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        if time.monotonic() >= deadline:
            raise FloorError(f"Not reached within {timeout_seconds:g} s: {what}.")
        time.sleep(pause_seconds)


def query_once(server: Server, statement: str, *, timeout_seconds: float = 30.0) -> str:
    """Run one statement in a session of its own; raises SessionError."""
    with PersistentSql(server.psql_argv) as session:
        return session.query(statement, timeout_seconds=timeout_seconds)


class Floor:
    """One hand-over from `primary` to `candidate`; the sessions are open when the constructor returns."""

    def __init__(self, primary: Server, candidate: Server, others: Sequence[Server] = ()) -> None:
        self._primary, self._candidate, self._others = primary, candidate, tuple(others)
        self._stack = ExitStack()
        try:
            self._shell = self._stack.enter_context(PersistentShell(primary.shell_argv))
            self._primary_sql = self._stack.enter_context(PersistentSql(primary.psql_argv))
            self._candidate_sql = self._stack.enter_context(PersistentSql(candidate.psql_argv))
            self._prepare()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def _prepare(self) -> None:
        """Use every session once, and remember the candidate's connection string for the repair."""
        self._shell.run(":")
        if self._primary_sql.query("SELECT pg_is_in_recovery()") != "f":
            raise FloorError(f"{self._primary.name} is not a primary.")
        if self._candidate_sql.query("SELECT pg_is_in_recovery()") != "t":
            raise FloorError(f"{self._candidate.name} is not a standby.")
        self._conninfo = self._candidate_sql.query("SHOW primary_conninfo")
        # Not what primary_slot_name says: a copy of another server's postgresql.auto.conf names that server's slot.
        self._slot = slot_of(self._primary)

    def hand_over(self) -> HandOver:
        """Move the primary role; the old primary is down afterwards."""
        began = time.monotonic()
        self._primary_sql.query("CHECKPOINT", timeout_seconds=60)
        checkpointed = time.monotonic()
        lsn = shutdown_lsn(self._shell.run(fill(STOP_SCRIPT, self._primary), timeout_seconds=30))
        stopped = time.monotonic()
        # The checkpoint's position is where its record begins; what was replayed ends behind it.
        replayed = f"SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '{lsn}') > 0"
        wait_until(
            lambda: self._candidate_sql.query(replayed) == "t",
            timeout_seconds=10,
            pause_seconds=0.001,
            what=f"replay of {lsn} on {self._candidate.name}",
        )
        replayed_at = time.monotonic()
        self._candidate_sql.query("SELECT pg_promote(false)")
        wait_until(
            lambda: self._candidate_sql.query("SELECT pg_is_in_recovery()") == "f",
            timeout_seconds=30,
            pause_seconds=0.005,
            what=f"{self._candidate.name} out of recovery",
        )
        return HandOver(began, checkpointed, stopped, replayed_at, time.monotonic(), lsn)

    def repair(self) -> None:
        """Make the old primary a standby of the new one, and the other standbys follow it; not part of the window."""
        for slot in (self._slot, *(self._slot_of(server) for server in self._others)):
            self._candidate_sql.query(
                f"SELECT pg_create_physical_replication_slot({literal(slot)}) WHERE NOT EXISTS"
                f" (SELECT FROM pg_replication_slots WHERE slot_name = {literal(slot)})"
            )
        for server in self._others:
            self._follow(server)
        self._shell.run(self._configure_script())
        self._shell.run(fill(START_AS_STANDBY_SCRIPT, self._primary), timeout_seconds=60)
        wait_until(
            lambda: self._streaming() == 1 + len(self._others),
            timeout_seconds=60,
            pause_seconds=0.1,
            what=f"{1 + len(self._others)} standbys streaming from {self._candidate.name}",
        )
        # Slots that the old primary held for its standbys would keep WAL on it, and nobody uses them any more.
        query_once(
            self._primary,
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_type = 'physical' AND NOT active",
        )

    def _streaming(self) -> int:
        return int(self._candidate_sql.query("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"))

    def _slot_of(self, server: Server) -> str:
        return query_once(server, "SHOW primary_slot_name") or slot_of(server)

    def _follow(self, server: Server) -> None:
        """Point a running standby at the new primary; from PostgreSQL 13 on a reload is enough."""
        conninfo = conninfo_to(query_once(server, "SHOW primary_conninfo"), self._candidate, server.name)
        with PersistentSql(server.psql_argv) as session:
            session.query(f"ALTER SYSTEM SET primary_conninfo = {literal(conninfo)}")
            session.query("SELECT pg_reload_conf()")

    def _configure_script(self) -> str:
        """Return a script that sets the stopped server's upstream in postgresql.auto.conf."""
        conninfo = conninfo_to(self._conninfo, self._candidate, self._primary.name)
        lines = f"primary_conninfo = {conf_value(conninfo)}\nprimary_slot_name = {conf_value(self._slot)}"
        path = shlex.quote(f"{self._primary.data_directory}/postgresql.auto.conf")
        # Written over in place, so that owner and mode stay.
        return f"kept=$(grep -Ev '^(primary_conninfo|primary_slot_name) *=' {path})\nprintf '%s\\n' \"$kept\" {shlex.quote(lines)} > {path}"


def conf_value(value: str) -> str:
    """Return a quoted value as postgresql.conf reads it: backslashes escape there."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
