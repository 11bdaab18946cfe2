# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exporter's queries on real servers, asked as the exporter does: by a member of pg_monitor that is nothing else."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from real_servers import Node, Pair, hand_on, make_standby, wait_for

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
