# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_promote on real servers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from real_servers import Pair, hand_on, make_standby, own, start_module, start_pair, wait_for, wait_replayed


def test_promote_standby_is_primary_with_a_checkpoint_on_its_timeline(each_pair: Pair) -> None:
    pair = each_pair
    pair.primary.write_row(1)
    pair.level()
    checked = pair.standby.call("pg_promote", check_mode=True, slots=["one_more"])
    assert checked.changed and not pair.standby.is_primary() and pair.standby.slots() == {}
    answer = pair.standby.call("pg_promote", slots=["one_more"], host_name="beta", old_primary="alpha")
    assert answer.changed and answer["timeline"] == 2
    assert answer["diff"]["before"] == "role: standby\n" and answer["diff"]["after"] == "role: primary\n"
    assert pair.standby.is_primary()
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"
    assert pair.standby.slots() == {"one_more": "reserved"}
    assert pair.standby.note("pending") == {"operation": "failover", "source": "alpha", "target": "beta", "phase": "promoting"}
    again = pair.standby.call("pg_promote", slots=["one_more"])
    assert not again.changed and again["timeline"] == 2


def test_promote_paused_replay_is_refused(pair: Pair) -> None:
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    for check_mode in (True, False):
        answer = pair.standby.call("pg_promote", check_mode=check_mode, slots=["one_more"], old_primary="alpha")
        answer.refusal("replay_paused")
    assert not pair.standby.is_primary()
    assert pair.standby.slots() == {} and pair.standby.note("pending") == {}


def test_promote_behind_min_lsn_is_refused_and_at_it_is_not(pair: Pair) -> None:
    pair.level()
    end = pair.primary.sql("SELECT pg_current_wal_lsn()::text")
    beyond = pair.primary.sql("SELECT (pg_current_wal_lsn() + 100000)::text")
    answer = pair.standby.call("pg_promote", min_lsn=beyond)
    answer.refusal("lag")
    assert answer["required"] == beyond
    assert not pair.standby.is_primary()
    assert pair.standby.call("pg_promote", min_lsn=end).changed


def test_promote_min_lsn_that_is_none_is_one_clear_error(pair: Pair) -> None:
    pair.standby.call("pg_promote", min_lsn="soon").refusal("bad_lsn")


def test_promote_server_down_is_one_clear_error(stopped_pair: Pair) -> None:
    answer = stopped_pair.standby.call("pg_promote")
    assert answer.failed and "Traceback" not in answer.text


# What the role archive has: the same file again succeeds. And the plain one of a user's own, which fails at it for ever.
TOLERANT = "test -e {0}/up && cp %p {0}/%f # archive_wal.py"
PLAIN = "test -e {0}/up && test ! -e {0}/%f && cp %p {0}/%f"


@pytest.mark.parametrize(("command", "again"), [(TOLERANT, True), (PLAIN, False)], ids=["the collection's", "another"])
def test_promote_archives_what_the_dead_primary_may_not_have_archived(stopped_pair: Pair, spot: Path, command: str, again: bool) -> None:
    archive = spot / "archive"
    archive.mkdir()
    own(archive)
    for node in (stopped_pair.primary, stopped_pair.standby):
        node.append_conf(f"archive_mode = on\narchive_command = '{command.format(archive)}'")
    start_pair(stopped_pair)
    waiting = {stopped_pair.primary.sql("SELECT pg_walfile_name(pg_switch_wal())")}
    stopped_pair.primary.write_row(1)
    waiting.add(stopped_pair.primary.sql("SELECT pg_walfile_name(pg_switch_wal())"))
    stopped_pair.level()
    states = stopped_pair.standby.data / "pg_wal" / "archive_status"
    wait_for(lambda: all((states / f"{segment}.done").exists() for segment in waiting), "the segments to be whole on the standby")
    stopped_pair.primary.crash()
    assert stopped_pair.standby.call("pg_promote").changed
    (archive / "up").touch()  # the archive's disk was full, and somebody has made room
    stopped_pair.standby.sql("SELECT pg_switch_wal()")
    wait_for(lambda: any(path.name.startswith("00000002") and path.suffix == "" for path in archive.iterdir()), "WAL of the new timeline")
    assert (waiting <= {path.name for path in archive.iterdir()}) is again


def test_promote_does_not_archive_the_remains_of_a_timeline_that_ended(pair: Pair, spot: Path) -> None:
    """Each server has other remains in that segment behind the end, and an archive takes one of them."""
    archive = spot / "archive"
    archive.mkdir()
    own(archive)
    make_standby(pair.spare, pair.primary)
    pair.spare.append_conf(f"archive_mode = on\narchive_command = '{TOLERANT.format(archive)}'")
    pair.spare.stop()
    pair.spare.start()
    hand_on(pair)
    whole = pair.standby.sql("SELECT pg_walfile_name(pg_switch_wal())")
    pair.standby.write_row(2)
    wait_replayed(pair.standby, pair.spare)
    ended = f"00000001{whole[8:]}"
    wait_for((pair.spare.data / "pg_wal" / "archive_status" / f"{ended}.done").exists, "the end of timeline 1 on the third server")
    pair.standby.crash()
    (archive / "up").touch()
    assert pair.spare.call("pg_promote").changed
    wait_for((archive / whole).exists, "the segment of timeline 2")
    pair.spare.sql("SELECT pg_switch_wal()")
    wait_for(lambda: any(path.name.startswith("00000003") and path.suffix == "" for path in archive.iterdir()), "WAL of timeline 3")
    assert not (archive / ended).exists()


def test_promote_killed_before_its_checkpoint_and_run_again_writes_it(pair: Pair) -> None:
    checkpointer = pair.standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    os.kill(checkpointer, signal.SIGSTOP)
    run = start_module("pg_promote", pair.standby.options())
    wait_for(pair.standby.is_primary, "the promotion")
    run.kill()
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "1"
    again = start_module("pg_promote", pair.standby.options())
    wait_for(lambda: pair.standby.sql("SELECT count(*) FROM pg_stat_activity WHERE query = 'CHECKPOINT'"), "the checkpoint")
    os.kill(checkpointer, signal.SIGCONT)
    assert not again.wait().failed
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"
    assert not pair.standby.call("pg_promote").changed


def test_promote_hangup_in_the_middle_goes_on_to_the_checkpoint(pair: Pair) -> None:
    checkpointer = pair.standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    os.kill(checkpointer, signal.SIGSTOP)
    run = start_module("pg_promote", pair.standby.options())
    wait_for(pair.standby.is_primary, "the promotion")
    for number in (signal.SIGHUP, signal.SIGTERM):
        os.kill(run.pid, number)
    os.kill(checkpointer, signal.SIGCONT)
    assert run.wait().changed
    assert pair.standby.control("Latest checkpoint's TimeLineID") == "2"


def test_promote_fenced_standby_lifts_the_fence(pair: Pair) -> None:
    assert pair.standby.call("pg_fence").changed
    pair.standby.start()
    assert pair.standby.call("pg_promote").changed
    assert pair.standby.note("fenced") == {}
