# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_fence on real servers: what is fenced accepts no writes, whoever starts it."""

from __future__ import annotations

import time

import psycopg2
import pytest
from real_servers import Node, Pair, kill_postmaster_below_a_long_statement, start_module, wait_for


def assert_fenced(node: Node) -> None:
    """It is down, and a start makes it read-only."""
    assert not node.pid()
    assert not node.call("pg_fence").changed
    assert node.call("pg_service").changed
    assert node.sql("SELECT pg_is_in_recovery()")
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        node.write_row(1)
    assert node.sql("SHOW primary_conninfo") == "" and node.sql("SHOW primary_slot_name") == ""


def test_fence_running_primary_ends_it_for_good(each_pair: Pair) -> None:
    node = each_pair.primary
    checked = node.call("pg_fence", check_mode=True)
    assert checked.changed and not checked["fenced"] and not checked["ended"] and node.is_primary()
    assert not (node.data / "standby.signal").exists() and node.note("fenced") == {}
    answer = node.call("pg_fence")
    assert answer.changed and answer["fenced"] and answer["ended"] and answer["diff"] == checked["diff"]
    assert_fenced(node)


def test_fence_frozen_primary_is_ended_with_sigkill(pair: Pair) -> None:
    frozen = pair.primary.freeze()
    started = time.monotonic()
    assert pair.primary.call("pg_fence").changed
    assert time.monotonic() - started < 10
    assert pair.primary.processes() == [], frozen
    wait_for(lambda: not [pid for pid in frozen if pid in pair.primary.processes()], "their end")
    assert_fenced(pair.primary)


def test_fence_crashed_primary_stays_down(pair: Pair) -> None:
    pair.primary.crash()
    assert pair.primary.call("pg_fence").changed
    assert_fenced(pair.primary)


def test_fence_ends_a_backend_that_outlived_its_postmaster(pair: Pair) -> None:
    """It would commit, and its client would be told so, when another server is primary already."""
    client = kill_postmaster_below_a_long_statement(pair.primary)
    answer = pair.primary.call("pg_fence")
    assert answer.changed and answer["ended"], "it may have accepted writes until then"
    assert pair.primary.processes() == []
    client.join(timeout=10)
    assert_fenced(pair.primary)
    assert 999 not in pair.primary.numbers()


def test_fence_behind_the_fence_a_backend_that_outlived_is_ended_too(pair: Pair) -> None:
    """One that a run before has armed and not ended, for it was killed."""
    pair.primary.write_note("fenced", {"by": "pg_fence", "standby": False})
    (pair.primary.data / "standby.signal").touch()
    client = kill_postmaster_below_a_long_statement(pair.primary)
    assert pair.primary.call("pg_fence", check_mode=True).changed and len(pair.primary.processes()) == 1
    assert pair.primary.call("pg_fence")["ended"] and pair.primary.processes() == []
    client.join(timeout=10)


def test_fence_cleanly_stopped_primary_stays_down(stopped_pair: Pair) -> None:
    answer = stopped_pair.primary.call("pg_fence")
    assert answer.changed and not answer["ended"]
    assert_fenced(stopped_pair.primary)


def test_fence_started_again_is_ended_again(pair: Pair) -> None:
    assert pair.primary.call("pg_fence").changed
    pair.primary.start()
    assert pair.primary.call("pg_fence").changed
    assert not pair.primary.pid()


def test_fence_no_server_has_nothing_to_do(pair: Pair) -> None:
    assert not pair.spare.call("pg_fence").changed


def test_fence_killed_at_its_beginning_is_armed_already(pair: Pair) -> None:
    pair.primary.freeze()  # so that the stop takes its time
    run = start_module("pg_fence", pair.primary.options())
    wait_for((pair.primary.data / "standby.signal").exists, "the signal file")
    run.kill()
    assert pair.primary.call("pg_fence").changed
    assert_fenced(pair.primary)


def test_fence_says_whether_a_standby_is_behind_it(pair: Pair) -> None:
    """Behind it every server's files look like a standby's; what a primary's promised, and a standby's did not, counts later."""
    for node, standby in ((pair.standby, True), (pair.primary, False)):
        assert node.call("pg_fence").changed
        assert node.call("pg_service").changed  # somebody starts it
        assert node.call("pg_fence").changed
        seen = node.call("pg_node_info")["node"]
        assert (seen["fenced"], seen["fenced_standby"]) == (True, standby)
