# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the control file's reader, with output of pg_controldata 15, 16 and 18 from servers in each state.

The 18 servers have 64 MiB segments, wal_log_hints and checksums on; the 16 ones checksums and other limits.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.control_data import (
    ControlData,
    parse_control_data,
    too_low,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import ControlDataError

FIXTURES = Path(__file__).parent / "fixtures"
STATES = {
    "shut_down": ("shut down", 1),
    "in_production": ("in production", 1),
    "in_archive_recovery": ("in archive recovery", 1),
    "shut_down_in_recovery": ("shut down in recovery", 1),
    "promoted": ("in production", 2),
}
# pg_controldata's own labels, so that the table checks the parser's.
LABELS = {
    "pg_control_version": "pg_control version number",
    "catalog_version": "Catalog version number",
    "system_identifier": "Database system identifier",
    "cluster_state": "Database cluster state",
    "checkpoint_lsn": "Latest checkpoint location",
    "redo_lsn": "Latest checkpoint's REDO location",
    "checkpoint_timeline": "Latest checkpoint's TimeLineID",
    "previous_timeline": "Latest checkpoint's PrevTimeLineID",
    "min_recovery_lsn": "Minimum recovery ending location",
    "min_recovery_timeline": "Min recovery ending loc's timeline",
    "backup_start_lsn": "Backup start location",
    "backup_end_lsn": "Backup end location",
    "backup_end_required": "End-of-backup record required",
    "wal_level": "wal_level setting",
    "wal_log_hints": "wal_log_hints setting",
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
    "track_commit_timestamp": "track_commit_timestamp setting",
    "wal_segment_bytes": "Bytes per WAL segment",
    "data_checksums": "Data page checksum version",
}


def real_output(name: str) -> str:
    return (FIXTURES / f"{name}.txt").read_text(encoding="utf-8")


def with_value(text: str, label: str, value: str | None) -> str:
    """Return the output with another value for a label, or without its line."""
    lines = text.split("\n")
    (index,) = (index for index, line in enumerate(lines) if line.startswith(f"{label}:"))
    lines[index : index + 1] = [] if value is None else [f"{label}:  {value}"]
    return "\n".join(lines)


def printed(field: str, value: object) -> str:
    """Return a value as pg_controldata prints it."""
    if field == "data_checksums":
        return str(int(bool(value)))
    if isinstance(value, bool):
        words = ("no", "yes") if field == "backup_end_required" else ("off", "on")
        return words[value]
    return str(value)


def test_parse_control_data_pg15_standby_returns_every_field() -> None:
    assert parse_control_data(real_output("pg15_shut_down_in_recovery")) == ControlData(
        pg_control_version=1300,
        catalog_version=202209061,
        system_identifier="7710282218517643802",
        cluster_state="shut down in recovery",
        checkpoint_lsn="0/30B2B60",
        redo_lsn="0/30B2B28",
        checkpoint_timeline=1,
        previous_timeline=1,
        min_recovery_lsn="0/30B2BD8",
        min_recovery_timeline=1,
        backup_start_lsn="0/0",
        backup_end_lsn="0/0",
        backup_end_required=False,
        wal_level="replica",
        wal_log_hints=False,
        max_connections=100,
        max_worker_processes=8,
        max_wal_senders=10,
        max_prepared_transactions=0,
        max_locks_per_transaction=64,
        track_commit_timestamp=False,
        wal_segment_bytes=16777216,
        data_checksums=False,
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("version", ["pg15", "pg16", "pg18"])
def test_parse_control_data_each_state_returns_it(version: str, state: str) -> None:
    control = parse_control_data(real_output(f"{version}_{state}"))

    assert (control.cluster_state, control.checkpoint_timeline) == STATES[state]
    assert (control.min_recovery_lsn != "0/0") is state.endswith("recovery")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"max_connections": "42", "max_prepared_transactions": "7"}, {}, id="as much"),
        pytest.param({"max_connections": "100", "max_prepared_transactions": "9"}, {}, id="more"),
        pytest.param({"max_connections": "41", "max_prepared_transactions": "0"}, {"max_connections": 42, "max_prepared_transactions": 7}, id="less"),
        pytest.param({}, {}, id="not known"),
    ],
)
def test_too_low_names_what_wal_asks_for(settings: dict[str, str], expected: dict[str, int]) -> None:
    assert too_low(parse_control_data(real_output("pg16_in_production")), settings) == expected


def test_parse_control_data_settings_of_each_version_are_read() -> None:
    pg16 = parse_control_data(real_output("pg16_in_production"))
    pg18 = parse_control_data(real_output("pg18_in_production"))

    assert (pg16.max_connections, pg16.max_prepared_transactions, pg16.data_checksums) == (42, 7, True)
    assert (pg16.wal_log_hints, pg16.wal_segment_bytes) == (False, 16 * 1024 * 1024)
    assert (pg18.pg_control_version, pg18.wal_level, pg18.wal_segment_bytes) == (1800, "logical", 64 * 1024 * 1024)
    assert (pg18.wal_log_hints, pg18.track_commit_timestamp, pg18.data_checksums) == (True, True, True)


@pytest.mark.parametrize("version", ["pg15", "pg16", "pg18"])
def test_parse_control_data_round_trip_prints_the_same_values(version: str) -> None:
    text = real_output(f"{version}_in_archive_recovery")
    control = parse_control_data(text)
    lines = {line.partition(":")[0]: line.partition(":")[2].strip() for line in text.split("\n")}

    assert set(LABELS) == {field.name for field in dataclasses.fields(ControlData)}
    for field, label in LABELS.items():
        assert printed(field, getattr(control, field)) == lines[label], label


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        pytest.param("backup_end_required", "yes", True, id="backup-in-progress"),
        pytest.param("backup_start_lsn", "0/2000028", "0/2000028", id="backup-start"),
        pytest.param("backup_end_lsn", "0/2000100", "0/2000100", id="backup-end"),
        pytest.param("min_recovery_timeline", "3", 3, id="min-recovery-timeline"),
        pytest.param("previous_timeline", "7", 7, id="previous-timeline"),
        pytest.param("checkpoint_lsn", "A/0000000B", "A/B", id="padded-lsn"),
        pytest.param("system_identifier", "18446744073709551615", "18446744073709551615", id="largest-identifier"),
        pytest.param("data_checksums", "2", True, id="later-checksum-version"),
        pytest.param("wal_level", "minimal", "minimal", id="wal-level"),
        pytest.param("cluster_state", "in crash recovery", "in crash recovery", id="crash-recovery"),
        pytest.param("cluster_state", "shutting down", "shutting down", id="shutting-down"),
        pytest.param("cluster_state", "starting up", "starting up", id="starting-up"),
    ],
)
def test_parse_control_data_other_value_is_read_into_its_field(field: str, value: str, expected: object) -> None:
    text = with_value(real_output("pg15_in_production"), LABELS[field], value)

    assert getattr(parse_control_data(text), field) == expected


@pytest.mark.parametrize("field", LABELS)
def test_parse_control_data_line_missing_raises(field: str) -> None:
    text = with_value(real_output("pg15_in_production"), LABELS[field], None)

    with pytest.raises(ControlDataError, match="printed no line") as caught:
        parse_control_data(text)
    assert caught.value.reason == "control_data_incomplete"
    assert LABELS[field] in caught.value.required


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("cluster_state", "unrecognized status code", id="state-unknown"),
        pytest.param("cluster_state", "", id="state-empty"),
        pytest.param("wal_level", 'unrecognized "wal_level"', id="wal-level-unknown"),
        pytest.param("wal_log_hints", "an", id="not-a-switch"),
        pytest.param("backup_end_required", "on", id="wrong-switch"),
        pytest.param("checkpoint_lsn", "0", id="not-an-lsn"),
        pytest.param("checkpoint_timeline", "-1", id="negative"),
        pytest.param("system_identifier", "???", id="identifier-not-a-number"),
        pytest.param("max_connections", "\u0661", id="non-ascii-digit"),
    ],
)
def test_parse_control_data_bad_value_raises(field: str, value: str) -> None:
    text = with_value(real_output("pg15_in_production"), LABELS[field], value)

    with pytest.raises(ControlDataError) as caught:
        parse_control_data(text)
    assert caught.value.reason == "bad_control_data"
    assert caught.value.observed == value


@pytest.mark.parametrize("name", ["pg15_corrupt", "pg18_corrupt"], ids=["stdout-of-15", "stderr-of-18"])
def test_parse_control_data_checksum_warning_raises(name: str) -> None:
    with pytest.raises(ControlDataError) as caught:
        parse_control_data(real_output(name))
    assert caught.value.reason == "control_file_untrustworthy"


@pytest.mark.parametrize("text", ["", "pg_controldata: error: could not open file\n"], ids=["empty", "error"])
def test_parse_control_data_no_output_raises(text: str) -> None:
    with pytest.raises(ControlDataError) as caught:
        parse_control_data(text)
    assert caught.value.reason == "control_data_incomplete"
