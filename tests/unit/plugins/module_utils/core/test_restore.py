# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backup a point in time is restored from, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conf_file import parse_conf
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.restore import (
    LIVE,
    UNKNOWN,
    Backup,
    Lineage,
    Place,
    Target,
    choose_backup,
    copy_settings,
    format_time,
    newest_archived,
    parse_backups,
    parse_target,
    recovery_settings,
    restore_blockers,
    timeline_to_follow,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import parse_history

NOON = 1769860800  # 2026-01-31 12:00:00 UTC
FULL = Backup("20260131-110000F", "full", NOON - 3600, NOON - 3500, "0/2000028", "0/2000100", 22_000_000)
INCR = Backup("20260131-110000F_20260131-114000I", "incr", NOON - 1200, NOON - 1190, "0/4000028", "0/4000100", 23_000_000)
BOTH = (FULL, INCR)
REQUEST = {"target": "recovery_target_name", "value": "x", "backup": "", "timeline": "latest", "stanza": "main"}
PLACE = Place("/var/lib/postgresql/15/main.restored", disk_free_bytes=10**9)


def at(seconds: float) -> Target:
    return parse_target(time=format_time(NOON + seconds))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31 12:00:00.000000+00"),
        ("2026-01-31 12:00:00+00", "2026-01-31 12:00:00.000000+00"),
        ("2026-01-31 13:00:00 +01:00", "2026-01-31 12:00:00.000000+00"),
        ("2026-01-31T06:30-0530", "2026-01-31 12:00:00.000000+00"),
        ("2026-01-31 12:00:00.5 UTC", "2026-01-31 12:00:00.500000+00"),
        (" 2026-01-31T12:00:00.000001Z ", "2026-01-31 12:00:00.000001+00"),
    ],
)
def test_parse_target_time_is_told_to_postgresql_in_utc(text: str, value: str) -> None:
    target = parse_target(time=text)
    assert (target.kind, target.value, target.setting) == ("time", value, "recovery_target_time")
    assert abs(target.epoch - NOON) < 1


@pytest.mark.parametrize(
    "text",
    ["2026-01-31T12:00:00", "yesterday", "2026-02-30T12:00:00Z", "2026-01-31", "12:00Z", "2026-01-31T25:00:00Z", "2026-01-31T12:00:00Z'"],
)
def test_parse_target_time_without_offset_or_sense_is_refused(text: str) -> None:
    with pytest.raises(PgOpsError) as caught:
        parse_target(time=text)
    assert caught.value.reason == "bad_target_time"


@pytest.mark.parametrize(
    ("given", "reason"),
    [({}, "no_target"), ({"time": "2026-01-31T12:00:00Z", "name": "x"}, "several_targets"), ({"lsn": "x"}, "bad_lsn")],
)
def test_parse_target_needs_exactly_one(given: dict[str, str], reason: str) -> None:
    with pytest.raises(PgOpsError) as caught:
        parse_target(**given)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("target", "label", "expected"),
    [
        pytest.param(at(0), "", INCR, id="newest-before"),
        pytest.param(at(-1190), "", INCR, id="at-its-very-end"),
        pytest.param(at(-1191), "", FULL, id="one-second-before-its-end"),
        pytest.param(at(-3501), "", None, id="before-the-first"),
        pytest.param(parse_target(lsn="0/4000100"), "", INCR, id="lsn-at-its-end"),
        pytest.param(parse_target(lsn="0/40000FF"), "", FULL, id="lsn-within-it"),
        pytest.param(parse_target(lsn="0/1"), "", None, id="lsn-before-the-first"),
        pytest.param(parse_target(name="before the accident"), "", FULL, id="name-from-the-oldest"),
        pytest.param(parse_target(name="x"), INCR.label, INCR, id="name-from-a-label"),
        pytest.param(at(0), FULL.label, FULL, id="an-older-one-by-label"),
        pytest.param(at(-2000), INCR.label, None, id="a-label-behind-the-target"),
        pytest.param(at(0), "20250101-000000F", None, id="a-label-that-is-gone"),
    ],
)
def test_choose_backup(target: Target, label: str, expected: Optional[Backup]) -> None:
    assert choose_backup(target, BOTH, label) == expected


@pytest.mark.parametrize(
    ("target", "backups", "place", "reasons"),
    [
        pytest.param(at(-60), BOTH, {}, [], id="fine"),
        pytest.param(at(1), BOTH, {}, ["target_in_future"], id="future"),
        pytest.param(at(-7200), BOTH, {}, ["no_backup_covers"], id="not-covered"),
        pytest.param(at(-60), (), {}, ["no_backup_covers"], id="no-backup"),
        pytest.param(at(-60), BOTH, {"exists": True}, ["directory_exists"], id="directory"),
        pytest.param(at(-60), BOTH, {"port": 5432}, ["port_taken"], id="live-port"),
        pytest.param(at(-60), BOTH, {"port_taken_by": "a listener"}, ["port_taken"], id="somebodys-port"),
        pytest.param(at(-60), BOTH, {"disk_free_bytes": 27_000_000}, ["disk_too_small"], id="disk"),
        pytest.param(at(-60), BOTH, {"disk_free_bytes": 27_600_000}, [], id="just-enough-disk"),
        pytest.param(at(-60), BOTH, {"exists": True, "begun_for": REQUEST}, [], id="begun-by-the-same"),
        pytest.param(at(-60), BOTH, {"exists": True, "begun_for": {**REQUEST, "value": "y"}}, ["unfinished_restore"], id="begun-by-another"),
        pytest.param(at(-60), BOTH, {"exists": True, "begun_for": {**REQUEST, "backup": FULL.label}}, ["unfinished_restore"], id="of-another-backup"),
        pytest.param(at(-60), BOTH, {"exists": True, "begun_for": REQUEST, "port": 5432}, ["port_taken"], id="begun-and-another-reason"),
        pytest.param(at(-7200), BOTH, {"exists": True, "port": 5432}, ["no_backup_covers", "directory_exists", "port_taken"], id="all-at-once"),
    ],
)
def test_restore_blockers(target: Target, backups: tuple[Backup, ...], place: dict[str, Any], reasons: list[str]) -> None:
    where = Place(**{**PLACE.__dict__, **place})
    found = restore_blockers("pg2", target, backups, where, now=NOON, live_port=5432, request=REQUEST)
    assert [blocker.reason for blocker in found] == reasons
    assert all(blocker.host == "pg2" and blocker.observed and blocker.required and blocker.hint for blocker in found)


def test_refusal_for_want_of_a_backup_names_the_oldest() -> None:
    [blocker] = restore_blockers("pg2", at(-7200), BOTH, PLACE, now=NOON, live_port=5432, request=REQUEST)
    assert "the oldest, 20260131-110000F, ended at 2026-01-31 11:01:40+00" in blocker.message
    assert "a backup that ended before 2026-01-31 10:00:00.000000+00" in blocker.message


def test_refusal_for_an_unfinished_restore_names_what_it_is_of() -> None:
    place = Place(**{**PLACE.__dict__, "exists": True, "begun_for": {**REQUEST, "backup": FULL.label}})
    [blocker] = restore_blockers("pg2", at(-60), BOTH, place, now=NOON, live_port=5432, request=REQUEST)
    assert blocker.observed == f"{PLACE.directory}: recovery_target_name 'x', timeline latest, backup {FULL.label}"
    assert "remove" in blocker.hint


# --- the live server's history, and branches that were given up ---

FIRST = replace(FULL, timeline=1)
LATER = replace(INCR, timeline=1)
OTHER = replace(INCR, label="20260131-114500F", stop=NOON - 800, stop_lsn="0/5000100", timeline=2)
STAYED = Lineage(1)  # timeline 2 was given up
SWITCHED = Lineage(3, parse_history("1\t0/4000100\tno recovery target specified\n"))  # at the very end of LATER
SWITCHED_BEFORE = Lineage(3, parse_history("1\t0/40000FF\tno recovery target specified\n"))


@pytest.mark.parametrize(
    ("live", "label", "expected"),
    [
        pytest.param(UNKNOWN, "", OTHER, id="not-known"),
        pytest.param(STAYED, "", LATER, id="stayed"),
        pytest.param(STAYED, OTHER.label, None, id="a-label-of-another-branch"),
        pytest.param(STAYED, FIRST.label, FIRST, id="a-label-of-its-past"),
        pytest.param(Lineage(2, parse_history("1\t0/4800000\tx\n")), "", OTHER, id="followed"),
        pytest.param(SWITCHED, "", LATER, id="ancestor-up-to-the-switch"),
        pytest.param(SWITCHED_BEFORE, "", FIRST, id="ancestor-behind-the-switch"),
        pytest.param(Lineage(3), "", None, id="no-history"),
    ],
)
def test_choose_backup_leaves_out_branches_that_the_live_server_has_not_come_by(live: Lineage, label: str, expected: Optional[Backup]) -> None:
    backups = (FIRST, LATER, OTHER)
    assert choose_backup(at(0), backups, label, live) == expected
    found = restore_blockers("pg2", at(0), backups, PLACE, now=NOON, live_port=5432, request=REQUEST, label=label, live=live)
    assert [blocker.reason for blocker in found] == ([] if expected else ["no_backup_covers"])


@pytest.mark.parametrize(("timeline", "stop_lsn"), [(0, "0/5000100"), (1, "")])
def test_choose_backup_takes_one_whose_end_is_not_told(timeline: int, stop_lsn: str) -> None:
    untold = replace(OTHER, timeline=timeline, stop_lsn=stop_lsn)
    assert choose_backup(at(0), (FIRST, untold), "", SWITCHED_BEFORE) == untold


def test_refusal_names_the_backups_of_other_branches() -> None:
    [blocker] = restore_blockers("pg2", at(0), (OTHER,), PLACE, now=NOON, live_port=5432, request=REQUEST, live=STAYED)
    assert f"none, and {OTHER.label} of a branch that the live server, on timeline 1, has not come by" in blocker.message
    assert "pg_restore_target_timeline" in blocker.hint


@pytest.mark.parametrize(
    ("wish", "backup", "live", "told"),
    [
        pytest.param(LIVE, LATER, STAYED, "current", id="of-the-live-timeline"),
        pytest.param(LIVE, LATER, SWITCHED, "3", id="of-an-ancestor"),
        pytest.param(LIVE, LATER, UNKNOWN, "latest", id="no-primary"),
        pytest.param(LIVE, INCR, SWITCHED, "latest", id="backup-without-timeline"),
        *(pytest.param(wish, LATER, UNKNOWN, wish, id=wish) for wish in ("latest", "current", "2")),
    ],
)
def test_timeline_to_follow(wish: str, backup: Backup, live: Lineage, told: str) -> None:
    assert timeline_to_follow(wish, backup, live) == told


# What `pgbackrest --output=json info` of 2.45 prints, shortened.
INFO = json.dumps(
    [
        {
            "archive": [{"database": {"id": 1, "repo-key": 1}, "id": "15-1", "max": "000000020000000000000007", "min": "000000010000000000000001"}],
            "backup": [
                {
                    "archive": {"start": "000000010000000000000004", "stop": "000000010000000000000005"},
                    "database": {"id": 1, "repo-key": 1},
                    "error": False,
                    "info": {"delta": 23170353, "repository": {"delta": 2826142, "size": 2826142}, "size": 23170353},
                    "label": "20261121-185729F",
                    "lsn": {"start": "0/4000028", "stop": "0/5000050"},
                    "prior": None,
                    "reference": None,
                    "timestamp": {"start": 1795287449, "stop": 1795287453},
                    "type": "full",
                }
            ],
            "cipher": "none",
            "db": [{"id": 1, "repo-key": 1, "system-id": 7575258236544049153, "version": "15"}],
            "name": "main",
            "status": {"code": 0, "lock": {"backup": {"held": False}}, "message": "ok"},
        }
    ]
)


def test_parse_backups_reads_what_pgbackrest_prints() -> None:
    expected = Backup("20261121-185729F", "full", 1795287449, 1795287453, "0/4000028", "0/5000050", 23170353, 2826142, 1)
    assert parse_backups(INFO, "main") == (expected,)
    assert parse_backups(INFO, "main", "7575258236544049153") == (expected,)
    assert newest_archived(INFO, "main") == "000000020000000000000007"


def test_parse_backups_leaves_out_what_is_another_systems_or_stanzas() -> None:
    assert parse_backups(INFO, "main", "1") == ()
    assert parse_backups(INFO, "other") == ()
    assert newest_archived(INFO, "other") == ""


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "main", "backup": [{}]}]'])
def test_parse_backups_of_anything_else_is_refused(text: str) -> None:
    if text == "{}":
        assert parse_backups(text, "main") == ()
        return
    with pytest.raises(PgOpsError) as caught:
        parse_backups(text, "main")
    assert caught.value.reason == "bad_backup_info"


CONTROL = """\
max_connections setting:              300
max_worker_processes setting:         16
max_wal_senders setting:              12
max_prepared_xacts setting:           7
max_locks_per_xact setting:           128
"""


def test_copy_settings_leave_no_tie_to_the_live_cluster() -> None:
    more = {"work_mem": "64MB", "archive_mode": "on", "synchronous_standby_names": "x", "hot_standby": "on", "port": 1}
    conf, hba = copy_settings(CONTROL, port=5433, listen_addresses="localhost", socket_directory="/run/postgresql", superuser="postgres", more=more)
    found = parse_conf(conf)
    assert {name: found[name] for name in ("port", "archive_mode", "synchronous_standby_names", "primary_conninfo", "hot_standby")} == {
        "port": "5433", "archive_mode": "off", "synchronous_standby_names": "", "primary_conninfo": "", "hot_standby": "off",
    }
    assert (found["work_mem"], found["max_connections"], found["max_prepared_transactions"], found["max_locks_per_transaction"]) == ("64MB", "300", "7", "128")
    assert [line for line in hba.splitlines() if line.endswith("trust")] == []
    assert "local all postgres peer" in hba


@pytest.mark.parametrize(
    ("listen_addresses", "admits"),
    [("localhost", False), ("", False), ("127.0.0.1, ::1", False), ("*", True), ("0.0.0.0", True), ("localhost,192.0.2.7", True)],
)
def test_copy_that_listens_for_other_hosts_admits_those_of_its_networks(listen_addresses: str, admits: bool) -> None:
    _conf, hba = copy_settings(CONTROL, port=5433, listen_addresses=listen_addresses, socket_directory="/run/postgresql", superuser="postgres", more={})
    assert ("host all all samenet scram-sha-256" in hba.splitlines()) is admits
    assert hba.endswith("scram-sha-256\n")


def test_recovery_settings_are_all_that_auto_conf_holds() -> None:
    found = parse_conf(recovery_settings(at(0), restore_command="pgbackrest 'a' \"%p\"", timeline="latest"))
    assert found == {
        "restore_command": "pgbackrest 'a' \"%p\"", "recovery_target_time": "2026-01-31 12:00:00.000000+00", "recovery_target_timeline": "latest",
        "recovery_target_action": "promote",
    }
