# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The control file of a server, as pg_controldata prints it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import ControlDataError, LsnError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn

_STATES = frozenset(
    {
        "starting up",
        "shut down",
        "shut down in recovery",
        "shutting down",
        "in crash recovery",
        "in archive recovery",
        "in production",
    }
)
_ON_OFF = {"on": True, "off": False}
_YES_NO = {"yes": True, "no": False}
_WAL_LEVELS = frozenset({"minimal", "replica", "logical"})
# Printed to stdout by PostgreSQL 13 to 16 and to stderr, in lower case, by later ones.
_WARNINGS = ("crc checksum does not match", "possible byte ordering mismatch", "invalid wal segment size")


# A standby must not have less of these than the primary had when it wrote its WAL: replay stops there.
NEEDED_BY_WAL = ("max_connections", "max_locks_per_transaction", "max_prepared_transactions", "max_wal_senders", "max_worker_processes")


@dataclass(frozen=True)
class ControlData:
    """What a stopped or running server says of itself on disk.

    LSNs are text, `0/0` where PostgreSQL has none; `min_recovery_timeline` is 0 then. `system_identifier` is text,
    because it does not fit into every reader's integers. `data_checksums` is on for any checksum version but 0. The
    settings are those that the server last wrote, not those of its configuration files.
    """

    pg_control_version: int
    catalog_version: int
    system_identifier: str
    cluster_state: str
    checkpoint_lsn: str
    redo_lsn: str
    checkpoint_timeline: int
    previous_timeline: int
    min_recovery_lsn: str
    min_recovery_timeline: int
    backup_start_lsn: str
    backup_end_lsn: str
    backup_end_required: bool
    wal_level: str
    wal_log_hints: bool
    max_connections: int
    max_worker_processes: int
    max_wal_senders: int
    max_prepared_transactions: int
    max_locks_per_transaction: int
    track_commit_timestamp: bool
    wal_segment_bytes: int
    data_checksums: bool


def parse_control_data(text: str) -> ControlData:
    """Return the control data from the output of `LC_ALL=C pg_controldata`, PostgreSQL 13 to 18.

    Raises ControlDataError: `control_file_untrustworthy` if pg_controldata warns of a corrupt file (17 and later do so
    on stderr: pass both), `control_data_incomplete` if a line is missing, `bad_control_data` if a value is not one
    that PostgreSQL writes.
    """
    _require_trustworthy(text)
    published = _Published(_lines_by_label(text))
    return ControlData(
        pg_control_version=published.number("pg_control version number"),
        catalog_version=published.number("Catalog version number"),
        system_identifier=str(published.number("Database system identifier")),
        cluster_state=published.word("Database cluster state", _STATES),
        checkpoint_lsn=published.lsn("Latest checkpoint location"),
        redo_lsn=published.lsn("Latest checkpoint's REDO location"),
        checkpoint_timeline=published.number("Latest checkpoint's TimeLineID"),
        previous_timeline=published.number("Latest checkpoint's PrevTimeLineID"),
        min_recovery_lsn=published.lsn("Minimum recovery ending location"),
        min_recovery_timeline=published.number("Min recovery ending loc's timeline"),
        backup_start_lsn=published.lsn("Backup start location"),
        backup_end_lsn=published.lsn("Backup end location"),
        backup_end_required=_YES_NO[published.word("End-of-backup record required", _YES_NO)],
        wal_level=published.word("wal_level setting", _WAL_LEVELS),
        wal_log_hints=_ON_OFF[published.word("wal_log_hints setting", _ON_OFF)],
        max_connections=published.number("max_connections setting"),
        max_worker_processes=published.number("max_worker_processes setting"),
        max_wal_senders=published.number("max_wal_senders setting"),
        max_prepared_transactions=published.number("max_prepared_xacts setting"),
        max_locks_per_transaction=published.number("max_locks_per_xact setting"),
        track_commit_timestamp=_ON_OFF[published.word("track_commit_timestamp setting", _ON_OFF)],
        wal_segment_bytes=published.number("Bytes per WAL segment"),
        data_checksums=published.number("Data page checksum version") != 0,
    )


@dataclass(frozen=True)
class _Published:
    """The printed values by label, read as the type that each must have."""

    values: Mapping[str, str]

    def number(self, label: str) -> int:
        value = self._value(label)
        if not (value.isascii() and value.isdigit()):
            raise _bad_value(label, value, required="a number")
        return int(value)

    def lsn(self, label: str) -> str:
        value = self._value(label)
        try:
            return format_lsn(parse_lsn(value))
        except LsnError as error:
            raise _bad_value(label, value, required=error.required) from error

    def word(self, label: str, allowed: Collection[str]) -> str:
        value = self._value(label)
        if value not in allowed:
            raise _bad_value(label, value, required="one of: " + ", ".join(sorted(allowed)))
        return value

    def _value(self, label: str) -> str:
        if label not in self.values:
            raise ControlDataError(
                f"Cannot read the control file: pg_controldata printed no line {label!r}.",
                reason="control_data_incomplete",
                observed=f"{len(self.values)} lines",
                required=f"a line {label!r}",
                hint="Run pg_controldata of the server's own version, 13 to 18, with LC_ALL=C.",
            )
        return self.values[label]


def _lines_by_label(text: str) -> dict[str, str]:
    values = {}
    for line in text.split("\n"):
        label, colon, value = line.partition(":")
        if colon:
            values[label.strip()] = value.strip()
    return values


def _require_trustworthy(text: str) -> None:
    """Raise ControlDataError if pg_controldata says that its output is not to be trusted."""
    for line in text.split("\n"):
        if any(warning in line.lower() for warning in _WARNINGS):
            raise ControlDataError(
                "Cannot trust the control file: pg_controldata warns that it is corrupt or of another version.",
                reason="control_file_untrustworthy",
                observed=line.strip(),
                required="a control file with a matching checksum",
                hint="Run pg_controldata of the server's own version; if it still warns, clone this server again.",
            )


def _bad_value(label: str, value: str, *, required: str) -> ControlDataError:
    return ControlDataError(
        f"Cannot read the control file: {label!r} is {value!r}, not {required}.",
        observed=value,
        required=required,
        hint="Run pg_controldata of the server's own version, 13 to 18, with LC_ALL=C.",
    )


def too_low(control: ControlData, settings: Mapping[str, str]) -> dict[str, int]:
    """Return what replayed WAL asks for where a standby runs with less; `settings` as pg_settings has them, those that are missing pass.

    The control file of a standby has its primary's settings, as the WAL brought them.
    """
    wanted = {name: int(getattr(control, name)) for name in NEEDED_BY_WAL}
    return {name: value for name, value in wanted.items() if name in settings and int(settings[name]) < value}
