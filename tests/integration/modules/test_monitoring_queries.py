# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exporter's queries on real servers, asked as the exporter does: by a member of pg_monitor that is nothing else."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_servers import Node, Pair, hand_on, make_standby, wait_for

pytestmark = pytest.mark.thorough

QUERIES = yaml.safe_load((Path(__file__).resolve().parents[3] / "roles" / "monitoring" / "files" / "queries.yml").read_text(encoding="utf-8"))


def ask(node: Node, namespace: str) -> list[dict[str, Any]]:
    """Return the rows of a query on a server that has the role watcher."""
    with contextlib.closing(node.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET ROLE watcher")
        cursor.execute(QUERIES[namespace]["query"])
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row)) for row in cursor.fetchall()]


def timeline(node: Node) -> int:
    (row,) = ask(node, "pg_ops")
    return int(row["timeline"])


@pytest.fixture
def watched_pair(each_pair: Pair) -> Pair:
    """A running pair with the exporter's role on both, of each PostgreSQL that there is."""
    each_pair.primary.sql("CREATE ROLE watcher IN ROLE pg_monitor")
    each_pair.level()
    return each_pair


def test_queries_answer_on_primary_and_standby_with_the_columns_that_are_described(watched_pair: Pair) -> None:
    for node in (watched_pair.primary, watched_pair.standby):
        for namespace, entry in QUERIES.items():
            described = {name for metric in entry["metrics"] for name in metric}
            for row in ask(node, namespace):
                assert set(row) == described, namespace


def test_timeline_of_a_standby_whose_upstream_is_gone_is_the_one_that_it_followed(watched_pair: Pair) -> None:
    pair = watched_pair
    make_standby(pair.spare, pair.primary)
    pair.level()
    assert timeline(pair.primary) == timeline(pair.standby) == 1
    hand_on(pair)
    assert timeline(pair.standby) == timeline(pair.spare) == 2
    pair.standby.stop("immediate")
    wait_for(lambda: pair.spare.sql("SELECT max(received_tli) FROM pg_stat_wal_receiver") is None, "the receiver's end")
    assert pair.spare.sql("SELECT timeline_id FROM pg_control_checkpoint()") == 1, "the control file knows; then this test shows nothing"
    assert timeline(pair.spare) == 2


def test_delay_of_a_standby_is_known(watched_pair: Pair) -> None:
    standby = watched_pair.standby
    standby.sql("ALTER SYSTEM SET recovery_min_apply_delay = '90s'")
    standby.sql("SELECT pg_reload_conf()")
    for node, wanted in ((standby, 90), (watched_pair.primary, 0)):
        wait_for(lambda node=node, wanted=wanted: ask(node, "pg_ops")[0]["replay_delay_seconds"] == wanted, f"{wanted} s on {node.name}")


def test_lag_of_a_standby_that_waits_for_its_delay_is_the_delay(watched_pair: Pair) -> None:
    standby = watched_pair.standby
    standby.sql("ALTER SYSTEM SET recovery_min_apply_delay = '2s'")
    standby.sql("SELECT pg_reload_conf()")
    watched_pair.primary.write_row(1)
    wait_for(lambda: standby.numbers() == {1}, "the first row")
    time.sleep(1.5)  # nobody commits
    watched_pair.primary.write_row(2)
    lag = wait_for(lambda: ask(standby, "pg_replication")[0]["lag"], "WAL that is not replayed")
    assert 0 < lag <= 2 and standby.numbers() == {1}


def test_synchronous_set_in_every_form_is_counted_as_the_server_takes_it(watched_pair: Pair) -> None:
    primary = watched_pair.primary
    name = str(primary.sql("SELECT application_name FROM pg_stat_replication"))

    def counted() -> tuple[int, int]:
        (row,) = ask(primary, "pg_ops_synchronous")
        return int(row["expected"]), int(row["present"])

    for setting, wanted in (
        (f'FIRST 1 ("{name}")', (1, 1)),
        (f'any 2 ("{name}", away)', (2, 1)),
        (f'2(away,"{name}")', (2, 1)),
        (f'"{name}", away', (1, 1)),
        ("away", (1, 0)),
        ("", (0, 0)),
    ):
        primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{setting}'")
        primary.sql("SELECT pg_reload_conf()")
        wait_for(lambda wanted=wanted: counted() == wanted, f"{wanted} for {setting!r}, last {counted()}")
    assert ask(watched_pair.standby, "pg_ops_synchronous") == []


def test_slot_that_lost_its_wal_is_lost_and_what_another_keeps_is_counted(watched_pair: Pair) -> None:
    primary = watched_pair.primary
    for statement in ("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'", "ALTER SYSTEM SET max_wal_size = '32MB'", "SELECT pg_reload_conf()"):
        primary.sql(statement)
    primary.sql("SELECT pg_create_physical_replication_slot('away', true)")

    def slot(name: str) -> dict[str, Any]:
        (row,) = [row for row in ask(primary, "pg_ops_slot") if row["slot_name"] == name]
        return row

    primary.sql("SELECT pg_logical_emit_message(true, 'x', repeat('y', 100000))")
    assert 100_000 < slot("away")["retained_bytes"] < 50_000_000 and slot("away")["lost"] == 0
    for _each in range(4):
        primary.sql("SELECT pg_logical_emit_message(false, 'x', 'y'); SELECT pg_switch_wal()")
    primary.sql("CHECKPOINT")
    wait_for(lambda: slot("away")["lost"] == 1, "the slot's loss")
    assert slot("away")["wal_status"] == "lost" and slot("away")["active"] == 0
