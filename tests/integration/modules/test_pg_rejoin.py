# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_rejoin on real servers: the cheapest safe way, and a report of what is lost before it is."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils import cloning, divergence, rejoining
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conf_file import quote_conf_value
from real_servers import (
    Answer,
    Node,
    Pair,
    digest,
    end_processes,
    kill_postmaster_below_a_long_statement,
    longest_silence,
    make_standby,
    own,
    passfile_options,
    running,
    start_module,
    start_pair,
    wait_for,
    wait_replayed,
)

QUICK = {"start_timeout_seconds": 15}


def rejoin(node: Node, primary: Node, *, check_mode: bool = False, **more: Any) -> Answer:
    return node.call_towards("pg_rejoin", primary, check_mode=check_mode, **{**QUICK, **more})


def promote(node: Node, *others: Node) -> None:
    assert node.call("pg_promote", slots=[other.slot for other in others]).changed


def part_ways(pair: Pair) -> int:
    """Have the primary commit what its standby never gets, crash it, and promote the standby; returns the lost transaction's id."""
    pair.primary.write_row(1)
    pair.level()
    pair.standby.stop()
    lost = pair.primary.write_row(100)
    pair.primary.crash()
    pair.standby.start()
    promote(pair.standby, pair.primary)
    pair.standby.write_row(2)
    return lost


def assert_follows(node: Node, primary: Node) -> None:
    """Replication works from here on, and both have the same rows."""
    assert not node.is_primary()
    number = 1000 + len(primary.numbers())
    primary.write_row(number)
    wait_replayed(primary, node)
    assert node.numbers() == primary.numbers()
    assert node.note("fenced") == {} and node.note("rewind") == {} and node.note("clone") == {}
    wait_for(lambda: primary.sql("SELECT active FROM pg_replication_slots WHERE slot_name = %s", node.slot), "the slot's use")


def report_of(answer: Answer) -> dict[str, Any]:
    path = Path(answer["report"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    return dict(json.loads(path.read_text(encoding="utf-8")))


# --- start ---


def test_rejoin_old_primary_that_handed_everything_over_is_started(pair: Pair) -> None:
    pair.primary.write_row(1)
    pair.primary.stop()
    end = pair.primary.control("Latest checkpoint location")
    wait_for(lambda: pair.standby.sql("SELECT pg_last_wal_replay_lsn() > %s::pg_lsn", end), "the shutdown checkpoint")
    promote(pair.standby, pair.primary)
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "start"
    assert answer.get("report") is None
    assert_follows(pair.primary, pair.standby)
    again = rejoin(pair.primary, pair.standby)
    assert not again.changed and again["action"] == "nothing"


@pytest.mark.parametrize("operation", ["switchover", "failover"])
def test_rejoin_old_primary_whose_role_change_was_cut_off_takes_it_up_no_more(pair: Pair, operation: str) -> None:
    pair.primary.stop()
    promote(pair.standby, pair.primary)
    pair.primary.write_note("pending", {"operation": operation, "source": "alpha", "target": "gamma", "phase": "armed"})
    assert rejoin(pair.primary, pair.standby).changed
    assert_follows(pair.primary, pair.standby)
    assert not pair.primary.note("pending")


def test_rejoin_old_primary_stopped_exactly_at_the_fork_is_rewound_and_loses_nothing(pair: Pair) -> None:
    """The new primary lacks nothing but the shutdown checkpoint record, which begins where it forked off."""
    pair.standby.stop()
    pair.primary.stop()
    pair.standby.start()
    promote(pair.standby, pair.primary)
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "rewind"
    assert answer["fork_lsn"] == report_of(answer)["fork_lsn"]
    assert answer["lost_transactions"] == 0
    assert_follows(pair.primary, pair.standby)


def test_rejoin_crashed_standby_is_started(pair: Pair) -> None:
    pair.standby.crash()
    pair.primary.write_row(1)
    answer = rejoin(pair.standby, pair.primary)
    assert answer.changed and answer["action"] == "start"
    assert_follows(pair.standby, pair.primary)


def test_rejoin_delayed_standby_that_reads_its_own_wal_first_is_started_and_not_waited_for(pair: Pair) -> None:
    """It asks the primary for nothing before its replay gets to the end of what it has, which is an hour away."""
    pair.standby.append_conf("recovery_min_apply_delay = '1h'")
    pair.standby.stop()
    pair.standby.start()
    pair.primary.write_row(1)
    end = pair.primary.sql("SELECT pg_current_wal_lsn()::text")
    wait_for(lambda: pair.standby.sql("SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn", end), "the standby's WAL")
    pair.standby.stop()
    pair.primary.write_row(2)
    answer = rejoin(pair.standby, pair.primary)
    assert answer.changed and answer["action"] == "start", answer.text
    assert answer["seconds"] < QUICK["start_timeout_seconds"]
    assert not pair.standby.is_primary() and pair.standby.note("fenced") == {}
    assert pair.standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == 0
    pair.standby.sql("ALTER SYSTEM SET recovery_min_apply_delay = 0")
    pair.standby.sql("SELECT pg_reload_conf()")
    assert_follows(pair.standby, pair.primary)


def test_rejoin_delayed_standby_whose_replay_is_not_held_up_has_to_stream(pair: Pair) -> None:
    """No commit lies behind the checkpoint from which its replay begins."""
    pair.primary.sql("CHECKPOINT")
    pair.level()
    pair.standby.append_conf("recovery_min_apply_delay = '1h'\nlog_connections = on\nwal_retrieve_retry_interval = 5s")
    pair.standby.stop()
    begun = pair.standby.log.stat().st_size
    pair.primary.sql("SELECT pg_drop_replication_slot(%s), pg_switch_wal()", pair.standby.slot)
    rejoin(pair.standby, pair.primary, start_timeout_seconds=4).refusal("not_streaming")
    assert pair.standby.note("fenced") != {}
    assert longest_silence(pair.standby, begun) < 3, "new connections wake a postmaster that sleeps over the wish for a receiver"


def test_rejoin_standby_whose_wal_is_gone_is_copied_anew(pair: Pair) -> None:
    pair.standby.stop()
    answer = rejoin(pair.standby, pair.primary, oldest_wal_lsn="9/0")
    assert answer.changed and answer["action"] == "reclone"
    assert answer.get("report") is None and answer.get("report_problem") is None, "it never was primary"
    assert os.path.isdir(answer["kept_directory"])
    assert_follows(pair.standby, pair.primary)


def test_rejoin_standby_that_a_copy_has_no_room_beside_goes_on_serving(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    standby = pair.standby
    pair.primary.stop()
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''")
    pair.primary.start()
    standby.sql("SELECT pg_reload_conf()")
    wait_for(lambda: standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == 0, "the receiver's end")
    monkeypatch.setattr(cloning, "CLONE_HEADROOM_BYTES", 1 << 60)
    for check_mode in (True, False):
        assert rejoin(standby, pair.primary, oldest_wal_lsn="9/0", check_mode=check_mode).refusal("disk_too_small")
        assert standby.sql("SELECT pg_is_in_recovery()") and not standby.note("fenced")
    monkeypatch.undo()
    assert rejoin(standby, pair.primary, oldest_wal_lsn="9/0")["action"] == "reclone"
    assert_follows(standby, pair.primary)


def test_rejoin_dead_server_that_a_copy_has_no_room_beside_is_left_as_it_is(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    part_ways(pair)
    monkeypatch.setattr(cloning, "CLONE_HEADROOM_BYTES", 1 << 60)
    for check_mode in (True, False, False):
        rejoin(pair.primary, pair.standby, oldest_wal_lsn="9/0", check_mode=check_mode).refusal("disk_too_small")
        assert bool(pair.primary.note("fenced")) is not check_mode, "it is superseded and must not come up"
        assert not list(pair.primary.state.glob("reports/*")), "each repeat would take more of the disk"
    monkeypatch.undo()
    answer = rejoin(pair.primary, pair.standby, oldest_wal_lsn="9/0")
    assert answer["action"] == "reclone" and report_of(answer)["transaction_count"] == 1
    assert os.path.isdir(answer["kept_directory"])
    assert_follows(pair.primary, pair.standby)


def test_rejoin_standby_of_another_server_follows(pair: Pair) -> None:
    make_standby(pair.spare, pair.primary)
    pair.primary.stop()
    promote(pair.standby, pair.primary, pair.spare)
    answer = rejoin(pair.spare, pair.standby)
    assert answer.changed and answer["action"] == "follow"
    assert_follows(pair.spare, pair.standby)


# --- WAL that only an archive has ---


def archive_of(pair: Pair) -> Path:
    """Have both archive their WAL and fetch it, with what a shell and PostgreSQL make something else of."""
    place = pair.primary.home / "an 'archive' 100%f"
    place.mkdir()
    own(place)
    quoted = shlex.quote(str(place)).replace("%", "%%")
    for node in (pair.primary, pair.standby):
        node.append_conf(f"""archive_mode = on
archive_command = {quote_conf_value(f"cp %p {quoted}/%f")}
restore_command = {quote_conf_value(f"echo %f %r >> fetched; cp {quoted}/%f %p")}""")
    return place


def recycle(pair: Pair, archive: Path) -> tuple[str, list[str]]:
    """Have the primary archive and recycle what its stopped standby needs; returns where its WAL begins then, and the names of what is gone."""
    needed = pair.primary.sql("SELECT pg_walfile_name(pg_current_wal_lsn())")
    for node in (pair.standby, pair.spare):
        pair.primary.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", node.slot)
    first = 700 + len(pair.primary.numbers())
    segments_pass(pair.primary, range(first, first + 4))

    def oldest() -> str:
        pair.primary.sql("CHECKPOINT")
        return str(pair.primary.sql("SELECT min(name) FROM pg_ls_waldir() WHERE length(name) = 24"))

    segment = wait_for(lambda: max(oldest(), needed) > needed and oldest(), "the archiver, and a checkpoint behind it")
    gone = sorted(path.name for path in archive.iterdir() if needed[8:] <= path.name[8:] < segment[8:] and len(path.name) == 24)
    assert len(gone) >= 3 and gone[0][8:] == needed[8:]
    return keep_wal(pair.primary, pair.standby.slot), gone


Archived = tuple[Pair, Path, str, list[str]]


@pytest.fixture
def archived(stopped_pair: Pair) -> Archived:
    """A stopped standby whose WAL only the archive has: the pair, the archive, where the primary's WAL begins, the names of what is gone there."""
    archive = archive_of(stopped_pair)
    start_pair(stopped_pair)
    stopped_pair.standby.stop()
    return stopped_pair, archive, *recycle(stopped_pair, archive)


def fetched(node: Node) -> list[str]:
    """Return which segments were asked for, each with its restart point."""
    return [line for line in (node.data / "fetched").read_text(encoding="utf-8").splitlines() if ".history" not in line]


def test_rejoin_standby_whose_wal_the_archive_has_is_started(archived: Archived) -> None:
    pair, _archive, oldest, gone = archived
    asked = len(fetched(pair.standby))
    inode, before = pair.standby.data.stat().st_ino, digest(pair.standby.data / "base")
    checked = rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest, check_mode=True)
    assert checked.changed and checked["action"] == "start", checked.text
    assert checked["why"] == "the WAL that it needs is no longer on alpha, but its archive has it"
    assert fetched(pair.standby)[asked:] == [f"{name} {'0' * 24}" for name in gone], "nothing may be removed from the archive"
    assert digest(pair.standby.data / "base") == before and not pair.standby.pid()
    assert not (pair.standby.state / "fetched-wal").exists()
    answer = rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest)
    assert answer.changed and answer["action"] == "start", answer.text
    assert pair.standby.data.stat().st_ino == inode and not list(pair.standby.home.glob("data.*"))
    assert_follows(pair.standby, pair.primary)
    assert not rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest).changed


def test_rejoin_old_primary_gets_the_new_timeline_from_the_archive(stopped_pair: Pair) -> None:
    """The segment in which its own WAL ends is that of the fork: what the archive has of it is on timeline 2."""
    pair, archive = stopped_pair, archive_of(stopped_pair)
    start_pair(pair)
    pair.primary.stop()
    end = pair.primary.control("Latest checkpoint location")
    wait_for(lambda: pair.standby.sql("SELECT pg_last_wal_replay_lsn() > %s::pg_lsn", end), "the shutdown checkpoint")
    promote(pair.standby)
    turned = Pair(pair.standby, pair.primary, pair.spare)
    oldest, gone = recycle(turned, archive)
    assert {name[:8] for name in gone} == {"00000002"}
    answer = rejoin(turned.standby, turned.primary, oldest_wal_lsn=oldest)
    assert answer.changed and answer["action"] == "start", answer.text
    assert "its archive has it" in answer["why"]
    assert_follows(turned.standby, turned.primary)


@pytest.mark.thorough
@pytest.mark.parametrize("lost", ["first", "last", "between", "another cluster's", "half"])
def test_rejoin_standby_whose_archive_lacks_a_segment_is_copied_anew(archived: Archived, lost: str) -> None:
    pair, archive, oldest, gone = archived
    name = {"first": gone[0], "last": gone[-1]}.get(lost, gone[1])
    path, seen = archive / name, "exit status 1"
    if lost == "another cluster's":
        with path.open("r+b") as stream:
            stream.seek(24)
            stream.write(b"\0" * 8)
    elif lost == "half":
        os.truncate(path, 8 << 20)
    else:
        path.unlink()
    if lost in ("another cluster's", "half"):
        seen = "what came is no whole segment of this cluster"
    answer = rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest)
    assert answer.changed and answer["action"] == "reclone", answer.text
    assert answer["why"] == f"the WAL that it needs is no longer on alpha, nor does its restore_command fetch it ({name}: {seen})"
    assert os.path.isdir(answer["kept_directory"])
    assert not (pair.standby.state / "fetched-wal").exists()
    assert_follows(pair.standby, pair.primary)


@pytest.mark.thorough
def test_rejoin_running_standby_whose_wal_the_archive_has_is_waited_for(archived: Archived) -> None:
    pair, archive, oldest, gone = archived
    aside = archive.parent / "aside"
    (archive / gone[1]).rename(aside)
    pair.standby.start()
    wait_for(lambda: any(line.startswith(gone[1]) for line in fetched(pair.standby)), "the standby to ask for what is not there")
    # It asks the primary too, by turns.
    wait_for(lambda: rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest, check_mode=True)["action"] == "reclone", "nobody to have that segment")
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    aside.rename(archive / gone[1])
    run = start_module("pg_rejoin", pair.standby.towards(pair.primary, oldest_wal_lsn=oldest, **QUICK))
    wait_for(lambda: f"{gone[-1]} {'0' * 24}" in fetched(pair.standby), "the question for the last segment")
    pair.standby.sql("SELECT pg_wal_replay_resume()")
    answer = run.wait()
    assert answer.changed and answer["action"] == "follow", answer.text
    assert_follows(pair.standby, pair.primary)


@pytest.mark.thorough
@pytest.mark.parametrize("ahead", [True, False], ids=["before_the_first_connection", "behind_it"])
def test_rejoin_archive_that_is_slow_is_waited_for_while_replay_advances(archived: Archived, ahead: bool) -> None:
    """A segment takes less than the time to start, and all of them together take longer.

    Reading ahead, PostgreSQL 15 and newer fetch all of these almost empty segments before they accept connections.
    """
    pair, archive, oldest, gone = archived
    if pair.standby.programs.version >= 15:
        pair.standby.append_conf(f"recovery_prefetch = {'try' if ahead else 'off'}")
    segments_pass(pair.primary, range(900, 905))
    quoted = shlex.quote(str(archive)).replace("%", "%%")
    slowly = f"case %f in *.history|{gone[0]}) ;; *) sleep 2 ;; esac; cp {quoted}/%f %p"
    pair.standby.append_conf(f"restore_command = {quote_conf_value(slowly)}")
    answer = rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest, start_timeout_seconds=4)
    assert answer.changed and answer["action"] == "start", answer.text
    assert answer["seconds"] > 4
    assert_follows(pair.standby, pair.primary)


@pytest.mark.thorough
def test_rejoin_archive_that_breaks_on_the_way_fails_with_what_to_do_and_loses_nothing(archived: Archived) -> None:
    """Only the replay finds damage behind a segment's first page header."""
    pair, archive, oldest, gone = archived
    path = archive / gone[1]
    whole = path.read_bytes()
    path.write_bytes(whole[:64] + b"\0" * (len(whole) - 64))
    answer = rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest, start_timeout_seconds=3)
    assert f"move {pair.standby.data} aside and repeat" in answer.refusal("not_streaming")
    assert (pair.standby.data / "PG_VERSION").exists() and pair.standby.note("fenced")
    path.write_bytes(whole)
    assert rejoin(pair.standby, pair.primary, oldest_wal_lsn=oldest).changed, "the note at least"
    assert_follows(pair.standby, pair.primary)


# --- rewind ---


def test_rejoin_crashed_primary_with_commits_of_its_own_is_rewound(each_pair: Pair) -> None:
    pair = each_pair
    lost = part_ways(pair)
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "rewind"
    assert answer.get("rewind_failed") is None
    assert answer["lost_transactions"] == 1
    report = report_of(answer)
    assert [entry["xid"] for entry in report["transactions"]] == [lost]
    assert report["kept_wal_segments"] >= 1
    assert list(Path(answer["report"].replace(".json", ".wal")).iterdir())
    assert_follows(pair.primary, pair.standby)
    assert 100 not in pair.primary.numbers()
    assert f"port = {pair.primary.port}" in (pair.primary.data / "postgresql.conf").read_text(encoding="utf-8")
    assert not rejoin(pair.primary, pair.standby).changed


@pytest.mark.parametrize("all_wal", [True, False], ids=["all_wal_kept", "not_all_wal_kept"])
def test_rejoin_more_than_a_report_lists_is_not_thrown_away(pair: Pair, monkeypatch: pytest.MonkeyPatch, all_wal: bool) -> None:
    """Where all WAL lies beside the report nothing is lost, and a rewind is so much faster than a copy."""
    pair.level()
    pair.standby.stop()
    for number in range(100, 103):
        pair.primary.write_row(number)
    pair.primary.crash()
    pair.standby.start()
    promote(pair.standby, pair.primary)
    monkeypatch.setattr(divergence, "LISTED_TRANSACTIONS", 2)
    # One is enough, whatever recycled segments lie behind the end of WAL, under names that are yet to come.
    last = pair.primary.data / "pg_wal" / pair.primary.control("Latest checkpoint's REDO WAL file")
    shutil.copy2(last, last.with_name(f"{last.name[:16]}{int(last.name[16:], 16) + 1:08X}"))
    own(last.parent)
    monkeypatch.setattr(rejoining, "MAX_KEPT_SEGMENTS", int(all_wal))
    if not all_wal:
        monkeypatch.setattr(cloning, "CLONE_HEADROOM_BYTES", 1 << 60)
        for _repeat in range(2):
            rejoin(pair.primary, pair.standby).refusal("disk_too_small")
            assert not list(pair.primary.state.glob("reports/*"))
        monkeypatch.setattr(cloning, "CLONE_HEADROOM_BYTES", 0)
    answer = rejoin(pair.primary, pair.standby)
    assert (answer["lost_transactions"], answer["listed_transactions"], len(report_of(answer)["transactions"])) == (3, 2, 2)
    if all_wal:
        assert answer["action"] == "rewind" and answer["report_problem"] == "" and report_of(answer)["kept_wal_segments"] == 1
    else:
        assert answer["action"] == "reclone" and os.path.isdir(answer["kept_directory"])
        assert "only the first 2 of 3 transactions are listed, and not all WAL is kept" in answer["report_problem"]
    assert_follows(pair.primary, pair.standby)


def test_rejoin_ends_a_backend_that_outlived_its_postmaster_before_it_reports(pair: Pair) -> None:
    pair.level()
    client = kill_postmaster_below_a_long_statement(pair.primary)
    promote(pair.standby, pair.primary)
    answer = rejoin(pair.primary, pair.standby)
    assert answer["action"] == "rewind" and answer.get("rewind_failed") is None, answer.text
    client.join(timeout=10)
    assert not client.is_alive() and 999 not in pair.standby.numbers()
    assert_follows(pair.primary, pair.standby)


def test_rejoin_report_lists_exactly_what_was_committed(pair: Pair) -> None:
    primary = pair.primary
    pair.level()
    pair.standby.stop()
    wanted = [primary.write_row(10)]
    primary.sql("SELECT pg_switch_wal()")
    with contextlib.closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO written VALUES (11)")
        connection.rollback()
        cursor.execute("SAVEPOINT inner_one; INSERT INTO written VALUES (12); RELEASE inner_one; SELECT txid_current()")
        wanted.append(cursor.fetchone()[0])
        connection.commit()
        cursor.execute("INSERT INTO written VALUES (13); SELECT txid_current()")
        wanted.append(cursor.fetchone()[0])
        cursor.execute("PREPARE TRANSACTION 'two'")
        connection.commit()
    primary.sql("COMMIT PREPARED 'two'")
    with contextlib.closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO written VALUES (15); SELECT txid_current()")
        promised = cursor.fetchone()[0]
        cursor.execute("PREPARE TRANSACTION 'never ended'")
        connection.commit()
    with contextlib.closing(primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO written VALUES (14); SELECT txid_current()")  # never committed
        primary.crash()
    pair.standby.start()
    promote(pair.standby, primary)
    answer = rejoin(primary, pair.standby)
    transactions = report_of(answer)["transactions"]
    assert [entry["xid"] for entry in transactions] == [*wanted, promised]
    assert [entry["xid"] for entry in transactions if entry.get("prepared")] == [promised]
    assert all(entry["relations"] and entry["committed_at"] and entry["lsn"] for entry in transactions)
    assert_follows(primary, pair.standby)


def test_rejoin_whose_own_wal_is_gone_says_so_and_keeps_the_old_data(pair: Pair) -> None:
    part_ways(pair)
    answer = pair.primary.call_towards("pg_rejoin", pair.standby, check_mode=True, **QUICK)
    first = answer["fork_lsn"]
    name = pair.standby.sql("SELECT '00000001' || substr(pg_walfile_name(%s::pg_lsn), 9)", first)
    (pair.primary.data / "pg_wal" / name).unlink()
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "reclone", answer.text
    assert f"from {first} on is gone" in answer["report_problem"]
    assert report_of(answer)["problem"] == answer["report_problem"]
    assert (Path(answer["kept_directory"]) / "PG_VERSION").exists()
    assert_follows(pair.primary, pair.standby)


@pytest.mark.thorough
@pytest.mark.parametrize("where", ["the fork", "behind a record"])
def test_rejoin_wal_that_cannot_be_read_is_not_taken_for_its_end(pair: Pair, where: str) -> None:
    """Page addresses say that WAL goes on behind a record that is damaged."""
    pair.level()
    pair.standby.stop()
    place = "SELECT file_name || ' ' || file_offset FROM pg_walfile_name_offset(pg_current_wal_insert_lsn())"
    places = {"the fork": pair.primary.sql(place)}
    pair.primary.write_row(300)
    places["behind a record"] = pair.primary.sql(place)
    for number in range(301, 500):
        pair.primary.write_row(number)
    pair.primary.crash()
    pair.standby.start()
    promote(pair.standby, pair.primary)
    name, offset = places[where].split()
    with (pair.primary.data / "pg_wal" / name).open("r+b") as stream:
        stream.seek(int(offset))
        stream.write(b"\0" * 24)
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "reclone"
    assert "cannot be read" in answer["report_problem"]
    assert answer["lost_transactions"] == (0 if where == "the fork" else 1)
    assert (Path(answer["kept_directory"]) / "PG_VERSION").exists()
    assert_follows(pair.primary, pair.standby)


@pytest.mark.thorough
def test_rejoin_reports_all_beside_segments_that_were_made_and_not_written_to(pair: Pair) -> None:
    """A kill leaves the next segment so. pg_waldump takes the size of segments from the first file that it meets, unless it is told which."""
    pair.level()
    pair.standby.stop()
    xids = [pair.primary.write_row(number) for number in range(300, 320)]
    pair.primary.crash()
    pair.standby.start()
    promote(pair.standby, pair.primary)
    wal = pair.primary.data / "pg_wal"
    for number in range(0xA0, 0xC0):  # whatever the order in which the directory gives them, one of them is the first
        with (wal / f"0000000100000000000000{number:02X}").open("wb") as stream:
            stream.truncate(16 * 1024 * 1024)
    own(wal)
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "rewind", answer.text
    assert answer["report_problem"] == ""
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == xids
    assert_follows(pair.primary, pair.standby)


def test_rejoin_wal_that_ends_in_an_unfinished_record_is_all_that_there_is(pair: Pair) -> None:
    """A record of many pages was under way when the power went."""
    pair.level()
    pair.primary.sql("SELECT pg_switch_wal()")
    pair.level()
    pair.standby.stop()
    lost = pair.primary.write_row(300)
    name, offset = pair.primary.sql("SELECT file_name || ' ' || file_offset FROM pg_walfile_name_offset(pg_current_wal_insert_lsn())").split()
    pair.primary.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000))")
    pair.primary.write_row(301)  # has it flushed
    pair.primary.crash()
    pair.standby.start()
    promote(pair.standby, pair.primary)
    path = pair.primary.data / "pg_wal" / name
    kept = (int(offset) // 8192 + 4) * 8192
    with path.open("r+b") as stream:
        stream.seek(kept)
        stream.write(b"\0" * (path.stat().st_size - kept))
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "rewind", answer.text
    assert answer["report_problem"] == ""
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == [lost]
    assert_follows(pair.primary, pair.standby)


@pytest.mark.thorough
def test_rejoin_standby_whose_wal_behind_the_fork_cannot_be_read_is_not_just_started(pair: Pair) -> None:
    """What it received and did not replay is damaged where the new primary parted from it: nobody knows what it held."""
    make_standby(pair.spare, pair.primary)
    pair.level()
    pair.spare.sql("SELECT pg_wal_replay_pause()")
    pair.standby.stop()
    name, offset = pair.primary.sql("SELECT file_name || ' ' || file_offset FROM pg_walfile_name_offset(pg_current_wal_insert_lsn())").split()
    for number in range(400, 600):
        pair.primary.write_row(number)
    end = pair.primary.sql("SELECT pg_current_wal_lsn()::text")
    wait_for(lambda: pair.spare.sql("SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn", end), "the third server's WAL")
    pair.primary.crash()
    pair.spare.stop()
    pair.standby.start()
    promote(pair.standby, pair.primary, pair.spare)
    with (pair.spare.data / "pg_wal" / name).open("r+b") as stream:
        stream.seek(int(offset))
        stream.write(b"\0" * 24)
    answer = rejoin(pair.spare, pair.standby)
    assert answer.changed and answer["action"] == "reclone", answer.text
    assert "cannot be read" in answer["report_problem"]
    assert (Path(answer["kept_directory"]) / "PG_VERSION").exists()
    assert_follows(pair.spare, pair.standby)


def test_rejoin_report_lists_a_load_whose_rows_the_new_primary_has_without_its_commit(pair: Pair) -> None:
    with contextlib.closing(pair.primary.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO written SELECT generate_series(100, 1099); SELECT txid_current()")
        xid = cursor.fetchone()[0]
        pair.primary.write_row(1)
        pair.level()
        promote(pair.standby, pair.primary)
        cursor.execute("ANALYZE written")
        connection.commit()
    pair.primary.crash()
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "rewind"
    assert answer["lost_transactions"] == 1 and [entry["xid"] for entry in report_of(answer)["transactions"]] == [xid]
    assert_follows(pair.primary, pair.standby)


def test_rejoin_report_counts_what_analyze_wrote_apart(pair: Pair) -> None:
    pair.level()
    pair.standby.stop()
    lost = pair.primary.write_row(100)
    pair.primary.sql("ANALYZE written")
    pair.primary.crash()
    pair.standby.start()
    promote(pair.standby, pair.primary)
    answer = rejoin(pair.primary, pair.standby)
    report = report_of(answer)
    assert answer["lost_transactions"] == 1
    assert [entry["xid"] for entry in report["transactions"]] == [lost]
    assert report["statistics_transactions"] == 1


def test_rejoin_fenced_primary_that_ran_as_standby_meanwhile_is_rewound(pair: Pair) -> None:
    lost = part_ways(pair)
    assert pair.primary.call("pg_fence").changed
    pair.primary.start()  # what a service manager may do
    assert not pair.primary.is_primary()
    pair.primary.stop()
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "rewind"
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == [lost]
    assert_follows(pair.primary, pair.standby)


def test_rejoin_running_standby_that_forked_off_is_rewound(pair: Pair) -> None:
    part_ways(pair)
    assert pair.primary.call("pg_fence").changed
    pair.primary.start()
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "rewind"
    assert_follows(pair.primary, pair.standby)


@pytest.mark.parametrize("state", ["crashed", "stopped", "running"])
def test_rejoin_standby_that_received_more_than_the_new_primary_is_rewound(pair: Pair, state: str) -> None:
    """It had not replayed what the new primary never got, so its control file does not tell that it would fork off."""
    make_standby(pair.spare, pair.primary)
    pair.level()
    pair.spare.sql("SELECT pg_wal_replay_pause()")
    pair.standby.stop()
    lost = pair.primary.write_row(100)
    end = pair.primary.sql("SELECT pg_current_wal_lsn()::text")
    wait_for(lambda: pair.spare.sql("SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn", end), "the third server's WAL")
    if state == "crashed":
        pair.spare.crash()
    pair.primary.crash()
    if state == "stopped":
        pair.spare.stop()
    pair.standby.start()
    promote(pair.standby, pair.primary, pair.spare)
    answer = rejoin(pair.spare, pair.standby)
    assert answer.changed and answer["action"] == "rewind", answer.text
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == [lost]
    assert_follows(pair.spare, pair.standby)


def test_rejoin_check_mode_says_rewind_and_changes_nothing(pair: Pair) -> None:
    part_ways(pair)
    before = digest(pair.primary.home)
    answer = rejoin(pair.primary, pair.standby, check_mode=True)
    assert answer.changed and answer["action"] == "rewind"
    assert "by: rewind" in answer["diff"]["after"]
    assert digest(pair.primary.home) == before


def segments_pass(node: Node, numbers: range) -> None:
    for number in numbers:
        node.write_row(number)
        node.sql("SELECT pg_switch_wal()")


def checkpoint_slowly(node: Node) -> None:
    """Write a checkpoint whose record lies segments behind its redo point, as those do that checkpoint_timeout starts under load."""
    start = "pg_backup_start" if node.programs.version >= 15 else "pg_start_backup"
    node.sql("CREATE TABLE dirty AS SELECT number, repeat('x', 1000) FROM generate_series(1, 100) AS number")
    with contextlib.closing(node.connect()) as connection, ThreadPoolExecutor(1) as other, connection.cursor() as cursor:
        waiting = other.submit(cursor.execute, f"SELECT {start}('slow', false)")
        wait_for(lambda: node.sql("SELECT true FROM pg_stat_activity WHERE wait_event = 'CheckpointWriteDelay'"), "the checkpoint's pause")
        segments_pass(node, range(11, 15))
        waiting.result()
    redo, record = (int(node.control(f"Latest checkpoint{label} location").partition("/")[2], 16) for label in ("'s REDO", ""))
    assert record - redo > 2 * 16 * 1024 * 1024


def part_ways_far_from_a_checkpoint(pair: Pair) -> int:
    """Part ways segments behind the redo point of the last common checkpoint; the new primary, promoted by hand, has recycled them."""
    checkpoint_slowly(pair.primary)
    common = pair.primary.control("Latest checkpoint's REDO WAL file")
    segments_pass(pair.primary, range(21, 23))
    lost = part_ways(pair)
    pair.standby.sql("SELECT pg_drop_replication_slot(%s)", pair.primary.slot)
    pair.standby.sql("CHECKPOINT")
    assert not (pair.standby.data / "pg_wal" / common).exists() and (pair.primary.data / "pg_wal" / common).exists()
    return lost


def keep_wal(node: Node, slot: str) -> str:
    """Make a slot that keeps WAL from here on; returns where the WAL that the server still has begins."""
    node.sql("SELECT pg_create_physical_replication_slot(%s, true)", slot)
    return str(node.call("pg_node_info")["node"]["oldest_wal_lsn"])


@pytest.mark.thorough
def test_rejoin_rewinds_from_a_checkpoint_whose_wal_the_new_primary_has_recycled(pair: Pair) -> None:
    """The rewound server starts to recover at the last common checkpoint; pg_rewind itself removes WAL before that checkpoint's record."""
    lost = part_ways_far_from_a_checkpoint(pair)
    oldest = keep_wal(pair.standby, pair.primary.slot)
    answer = rejoin(pair.primary, pair.standby, oldest_wal_lsn=oldest)
    assert answer.changed and answer["action"] == "rewind", answer.text
    assert answer.get("rewind_failed") is None
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == [lost]
    assert_follows(pair.primary, pair.standby)
    assert not (pair.primary.state / "rewind-wal").exists()


@pytest.mark.thorough
def test_rejoin_copies_anew_where_the_new_primary_has_recycled_the_wal_from_the_fork_on(pair: Pair) -> None:
    lost = part_ways_far_from_a_checkpoint(pair)
    segments_pass(pair.standby, range(31, 33))
    pair.standby.sql("CHECKPOINT")
    oldest = keep_wal(pair.standby, pair.primary.slot)
    answer = rejoin(pair.primary, pair.standby, oldest_wal_lsn=oldest)
    assert answer.changed and answer["action"] == "reclone", answer.text
    assert "is no longer on beta" in answer["why"]
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == [lost]
    assert_follows(pair.primary, pair.standby)


def test_rejoin_beside_one_that_is_under_way_waits_for_it_and_changes_nothing(pair: Pair) -> None:
    """The first has lost its controller and goes on; without a lock the second would take its half-rewound files for a crash."""
    part_ways(pair)
    first = start_module("pg_rejoin", pair.primary.towards(pair.standby, **QUICK))
    wait_for(lambda: pair.primary.note("fenced"), "the first run to begin")
    second = start_module("pg_rejoin", pair.primary.towards(pair.standby, **QUICK))
    answer = first.wait()
    assert answer.changed and answer["action"] == "rewind", answer.text
    later = second.wait()
    assert not later.changed and later["action"] == "nothing", later.text
    assert not list(pair.primary.home.glob("data.kept.*"))
    assert_follows(pair.primary, pair.standby)


def test_rejoin_standby_that_still_reads_its_own_wal_is_not_copied(pair: Pair) -> None:
    """It has received more than it has replayed, and asks nobody before it has read that; its replay lies where the primary has no WAL any more."""
    pair.standby.append_conf("recovery_min_apply_delay = '1h'")
    pair.standby.stop()
    pair.standby.start()
    pair.primary.write_row(1)
    segments_pass(pair.primary, range(2, 5))
    end = pair.primary.sql("SELECT pg_current_wal_lsn()::text")
    wait_for(lambda: pair.standby.sql("SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn", end), "the standby's WAL")
    pair.standby.stop()
    pair.standby.start()
    wait_for(lambda: pair.standby.sql("SELECT pg_last_wal_replay_lsn() IS NOT NULL"), "the standby's replay")
    assert pair.standby.sql("SELECT pg_last_wal_receive_lsn() IS NULL")
    checked = rejoin(pair.standby, pair.primary, check_mode=True, oldest_wal_lsn=end)
    assert checked["action"] == "follow" and "still reads the WAL on its disk" in checked["why"], checked.text


# --- re-clone ---


@pytest.fixture
def bare_pair(stopped_pair: Pair) -> Pair:
    """A pair that pg_rewind cannot work with."""
    for node in (stopped_pair.primary, stopped_pair.standby):
        node.program("pg_checksums", "--disable", "--no-sync", "-D", str(node.data))
        node.append_conf("wal_log_hints = off")
    stopped_pair.primary.start()
    stopped_pair.standby.start()
    return stopped_pair


def test_rejoin_without_checksums_and_hints_is_copied_anew_with_a_report(bare_pair: Pair) -> None:
    pair = bare_pair
    lost = part_ways(pair)
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "reclone"
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == [lost]
    assert (Path(answer["kept_directory"]) / "PG_VERSION").exists()
    assert_follows(pair.primary, pair.standby)


def test_rejoin_no_data_directory_is_copied(pair: Pair) -> None:
    make_standby(pair.spare, pair.primary)
    pair.spare.stop()
    pair.spare.data.rename(pair.spare.home / "lost")
    answer = rejoin(pair.spare, pair.primary)
    assert answer.changed and answer["action"] == "reclone"
    assert answer["kept_directory"] == ""
    assert_follows(pair.spare, pair.primary)


def rewinds_of(node: Node) -> list[int]:
    return running("pg_rewind", str(node.data))


@pytest.mark.parametrize("orphan", [False, True], ids=["both_killed", "pg_rewind_goes_on"])
def test_rejoin_killed_during_the_rewind_is_copied_anew(pair: Pair, orphan: bool) -> None:
    part_ways(pair)
    run = start_module("pg_rejoin", pair.primary.towards(pair.standby, **QUICK))
    rewinding = wait_for(lambda: rewinds_of(pair.primary), "pg_rewind")
    for pid in rewinding:
        os.kill(pid, signal.SIGSTOP)
    run.kill()
    if orphan:
        for pid in rewinding:
            os.kill(pid, signal.SIGCONT)
    else:
        end_processes(rewinding)
    assert pair.primary.note("rewind")
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "reclone"
    assert_follows(pair.primary, pair.standby)


@pytest.mark.thorough
@pytest.mark.parametrize("delay", [0.05, 0.15, 0.3, 0.5])
def test_rejoin_killed_at_any_time_and_run_again_follows(pair: Pair, delay: float) -> None:
    part_ways(pair)
    run = start_module("pg_rejoin", pair.primary.towards(pair.standby, **QUICK))
    with contextlib.suppress(AssertionError):
        wait_for(lambda: False, "its time", delay)
    run.kill()
    answer = rejoin(pair.primary, pair.standby)
    assert not answer.failed, answer.text
    assert_follows(pair.primary, pair.standby)


def test_rejoin_rewind_that_cannot_be_done_becomes_a_copy(pair: Pair) -> None:
    part_ways(pair)
    # pg_rewind refuses a source and a target whose control files it cannot read; here it may not read the source's files.
    pair.standby.sql("REVOKE EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean) FROM rewinder")
    pair.standby.sql("REVOKE EXECUTE ON FUNCTION pg_read_binary_file(text) FROM rewinder")
    answer = rejoin(pair.primary, pair.standby)
    assert answer.changed and answer["action"] == "reclone"
    assert "pg_rewind" in answer["rewind_failed"]
    assert_follows(pair.primary, pair.standby)


# --- refusals ---


def test_rejoin_foreign_data_is_refused(pair: Pair) -> None:
    foreign = pair.spare
    assert foreign.call("pg_cluster_init").changed
    before = digest(foreign.data)
    answer = rejoin(foreign, pair.primary)
    answer.refusal("foreign_system")
    assert answer["observed"] != answer["required"] and answer["hint"]
    assert digest(foreign.data) == before


def test_rejoin_newer_timeline_is_refused(pair: Pair) -> None:
    pair.standby.stop()
    pair.primary.stop()
    pair.standby.start()
    promote(pair.standby)
    pair.standby.stop()
    pair.primary.start()
    before = digest(pair.standby.home)
    rejoin(pair.standby, pair.primary).refusal("newer_timeline")
    assert digest(pair.standby.home) == before


def test_rejoin_newer_timeline_that_was_given_up_is_copied_anew_with_a_report_and_its_data_kept(pair: Pair) -> None:
    pair.level()
    pair.standby.sql("SELECT pg_promote()")
    fork = (pair.standby.data / "pg_wal" / "00000002.history").read_text(encoding="utf-8").split("\t")[1]
    lost = pair.standby.write_row(200)
    given_up = {"give_up": True, "give_up_from_lsn": fork}
    rejoin(pair.standby, pair.primary, **given_up).refusal("runs_as_primary")
    assert pair.standby.call("pg_fence").changed
    before = digest(pair.standby.home)
    checked = rejoin(pair.standby, pair.primary, check_mode=True, **given_up)
    assert checked.changed and checked["action"] == "reclone"
    assert digest(pair.standby.home) == before
    answer = rejoin(pair.standby, pair.primary, **given_up)
    assert answer.changed and answer["action"] == "reclone"
    assert [entry["xid"] for entry in report_of(answer)["transactions"]] == [lost]
    assert (Path(answer["kept_directory"]) / "PG_VERSION").exists()
    assert_follows(pair.standby, pair.primary)
    again = rejoin(pair.standby, pair.primary, **given_up)
    assert not again.changed and again["action"] == "nothing"


def part_unseen(pair: Pair) -> None:
    """Have both be primary on one timeline, as after the start of a machine's copy, with commits of their own; the first one is fenced then."""
    pair.primary.write_row(1)
    pair.level()
    pair.standby.stop()
    (pair.standby.data / "standby.signal").unlink()
    pair.standby.start()
    assert pair.standby.is_primary() and pair.standby.call("pg_replication_slot", name=[pair.primary.slot]).changed
    for number in range(100, 110):
        pair.primary.write_row(number)
    pair.standby.write_row(200)
    assert pair.primary.call("pg_fence").changed


@pytest.mark.thorough
@pytest.mark.parametrize("given_up", [{"give_up": True, "give_up_from_lsn": ""}, {}], ids=["given up", "as any fenced server"])
def test_rejoin_where_nobody_can_tell_where_the_two_parted_says_so_and_keeps_the_old_data(pair: Pair, given_up: dict[str, Any]) -> None:
    part_unseen(pair)
    before = digest(pair.primary.home)
    checked = rejoin(pair.primary, pair.standby, check_mode=True, **given_up)
    assert checked.changed and checked["action"] == "reclone"
    assert digest(pair.primary.home) == before
    answer = rejoin(pair.primary, pair.standby, **given_up)
    assert answer.changed and answer["action"] == "reclone"
    assert (answer["report_problem"], answer["lost_transactions"]) == ("where they parted cannot be told", 0)
    report = report_of(answer)
    assert (report["problem"], report["fork_lsn"], report["transactions"], report["kept_wal_segments"]) == (answer["report_problem"], "", [], 0)
    assert list((Path(answer["kept_directory"]) / "pg_wal").glob("00000001*")), "all that is left of its commits"
    assert_follows(pair.primary, pair.standby)
    again = rejoin(pair.primary, pair.standby, **given_up)
    assert not again.changed and again["action"] == "nothing"


def test_rejoin_given_up_standby_of_another_server_at_the_primarys_address_is_copied_anew(pair: Pair) -> None:
    """It has what its upstream alone committed. Only the port tells the two servers apart."""
    make_standby(pair.spare, pair.primary)
    part_unseen(pair)
    assert pair.standby.call("pg_replication_slot", name=[pair.spare.slot]).changed
    answer = rejoin(pair.spare, pair.standby, give_up=True, give_up_from_lsn="")
    assert answer.changed and answer["action"] == "reclone"
    assert (Path(answer["kept_directory"]) / "PG_VERSION").exists()
    assert_follows(pair.spare, pair.standby)


def test_rejoin_given_up_data_directory_that_is_gone_is_copied(pair: Pair) -> None:
    make_standby(pair.spare, pair.primary)
    pair.spare.stop()
    pair.spare.data.rename(pair.spare.home / "lost")
    answer = rejoin(pair.spare, pair.primary, give_up=True, give_up_from_lsn="")
    assert answer.changed and answer["action"] == "reclone"
    assert answer.get("report") is None
    assert_follows(pair.spare, pair.primary)


def test_rejoin_given_up_data_of_another_cluster_is_refused(pair: Pair) -> None:
    foreign = pair.spare
    assert foreign.call("pg_cluster_init").changed
    rejoin(foreign, pair.primary, give_up=True, give_up_from_lsn="0/1000000").refusal("foreign_system")


def test_rejoin_primary_without_the_checkpoint_of_its_promotion_is_refused(pair: Pair) -> None:
    pair.level()
    pair.primary.crash()
    checkpointer = pair.standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    os.kill(checkpointer, signal.SIGSTOP)
    pair.standby.sql("SELECT pg_promote()")
    before = digest(pair.primary.home)
    answer = rejoin(pair.primary, pair.standby)
    answer.refusal("no_checkpoint")
    assert "CHECKPOINT" in answer["hint"]
    assert digest(pair.primary.home) == before
    checked = rejoin(pair.primary, pair.standby, check_mode=True)
    assert checked.changed and checked["action"] == "rewind" and checked["checkpoint_first"], checked.text
    assert digest(pair.primary.home) == before
    os.kill(checkpointer, signal.SIGCONT)
    pair.standby.sql("CHECKPOINT")
    again = rejoin(pair.primary, pair.standby, check_mode=True)
    assert again["action"] == "rewind" and not again["checkpoint_first"]


def test_rejoin_running_primary_is_refused(pair: Pair) -> None:
    pair.standby.sql("SELECT pg_promote()")
    pair.standby.sql("CHECKPOINT")
    rejoin(pair.primary, pair.standby).refusal("two_primaries")
    assert pair.primary.is_primary()


def test_rejoin_to_a_standby_is_refused(pair: Pair) -> None:
    pair.primary.stop()
    rejoin(pair.primary, pair.standby).refusal("no_primary")


def test_rejoin_frozen_server_is_refused_within_the_deadline(pair: Pair) -> None:
    pair.standby.freeze()
    rejoin(pair.standby, pair.primary).refusal("unresponsive")


def test_rejoin_wrong_password_is_refused_and_nothing_touched(pair: Pair) -> None:
    part_ways(pair)
    options = passfile_options([pair.primary, pair.standby])
    options["passwords"]["rewinder"] = "not it"
    assert pair.primary.call("pg_passfile", **options).changed
    before = digest(pair.primary.home)
    answer = rejoin(pair.primary, pair.standby)
    assert "rewinder" in answer.refusal("authentication")
    assert "not it" not in answer.text
    assert digest(pair.primary.home) == before
