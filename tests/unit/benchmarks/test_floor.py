# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The floor's pure parts, and its scripts in a real shell without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

psycopg2 = pytest.importorskip("psycopg2")

from psycopg2 import extensions

from benchmarks import floor, persistent

CONTROL_DATA = """\
pg_control version number:            1300
Database cluster state:               {state}
pg_control last modified:             Fri Nov 20 16:00:05 2026
Latest checkpoint location:           16/B374D848
Latest checkpoint's REDO location:    16/B374D800
"""


def server(directory: Path) -> floor.Server:
    return floor.Server("pgsql1", "10.0.0.9", 5433, ("sh",), (), str(directory), "/usr/lib/postgresql/15/bin", "true")


def test_shutdown_lsn_of_a_stopped_primary() -> None:
    assert floor.shutdown_lsn(CONTROL_DATA.format(state="shut down")) == "16/B374D848"


@pytest.mark.parametrize("state", ["in production", "shut down in recovery", "shutting down"])
def test_shutdown_lsn_of_another_state_is_refused(state: str) -> None:
    with pytest.raises(floor.FloorError, match=state):
        floor.shutdown_lsn(CONTROL_DATA.format(state=state))


def test_shutdown_lsn_of_foreign_text_is_refused() -> None:
    with pytest.raises(floor.FloorError):
        floor.shutdown_lsn("sh: pg_controldata: not found")


def test_conninfo_to_keeps_credentials_and_drops_hostaddr(tmp_path: Path) -> None:
    before = r"user=replicator passfile='/a b/it\'s' host=old hostaddr=10.0.0.1 port=5432 application_name=pgsql2"
    after = extensions.parse_dsn(floor.conninfo_to(before, server(tmp_path), "pgsql1"))
    assert after == {
        "user": "replicator",
        "passfile": "/a b/it's",
        "host": "10.0.0.9",
        "port": "5433",
        "application_name": "pgsql1",
    }


@pytest.mark.parametrize(
    ("value", "expected"), [("a", "'a'"), ("it's", "'it''s'"), ("a\\'b", "E'a\\\\''b'")], ids=["plain", "quote", "backslash"]
)
def test_literal(value: str, expected: str) -> None:
    assert floor.literal(value) == expected


def test_conf_value_doubles_quotes_and_backslashes() -> None:
    assert floor.conf_value("a'b\\c") == "'a''b\\\\c'"


def test_wait_until_never_true_ends_and_names_what() -> None:
    with pytest.raises(floor.FloorError, match="the moon"):
        floor.wait_until(lambda: False, timeout_seconds=0.02, pause_seconds=0.005, what="the moon")


def test_stop_script_without_a_server_fails(tmp_path: Path) -> None:
    with persistent.PersistentShell(["sh"]) as shell, pytest.raises(persistent.SessionError, match="status 1"):
        shell.run(floor.fill(floor.STOP_SCRIPT, server(tmp_path)), timeout_seconds=5)
