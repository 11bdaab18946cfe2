# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""verify.yml beside logical subscribers: its row reaches every standby, and no subscriber, who would not have its table."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster

LOGICAL = ("-e", json.dumps({"pg_settings": {"wal_level": "logical"}}), "-e", "pg_primary_restart=true")
REFUSED = "found the row of pgsql1 and refused to write: cannot execute INSERT in a read-only transaction"
# R describes a table, I is a row of it; begin and end of a transaction may be there.
SENT = """
SELECT string_agg(chr(get_byte(data, 0)), '') FROM pg_logical_slot_peek_binary_changes('subscriber', NULL, NULL, 'proto_version', '1',
  'publication_names', 'everything') WHERE chr(get_byte(data, 0)) NOT IN ('B', 'C')
"""


@pytest.fixture(scope="module")
def published(set_up: Callable[[int], Cluster]) -> Cluster:
    """A cluster whose primary sends every table to a subscriber."""
    cluster = set_up(2)
    cluster.play("initial_setup", *LOGICAL)
    cluster.sql("pgsql1", "CREATE PUBLICATION everything FOR ALL TABLES; SELECT pg_create_logical_replication_slot('subscriber', 'pgoutput')")
    return cluster


def test_verify_sends_subscribers_of_all_tables_nothing(published: Cluster) -> None:
    published.sql("pgsql1", "CREATE TABLE pg_ops_verify (mark uuid PRIMARY KEY)")  # as a run that was cut off leaves it
    assert REFUSED in published.play("verify").text
    assert published.sql("pgsql1", SENT) == ""
    assert published.sql("pgsql1", "SELECT to_regclass('pg_ops_verify') IS NULL") == "t"


def test_a_row_of_the_users_is_sent(published: Cluster) -> None:
    """So the silence above is verify.yml's doing."""
    published.sql("pgsql1", "CREATE TABLE goods (number int); INSERT INTO goods VALUES (1)")
    assert published.sql("pgsql1", SENT) == "RI"
