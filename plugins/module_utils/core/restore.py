# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which backup a point in time is restored from, what speaks against it, and the settings of the server that shows the result."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conf_file import set_conf
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import Switch, contains

TIME, LSN, NAME = "time", "lsn", "name"
# The timeline of the live server; other words, and numbers, are PostgreSQL's own.
LIVE = "live"

# What pg_controldata tells of the server that was backed up, and recovery wants at least as much of.
_AT_LEAST = ("max_connections", "max_worker_processes", "max_wal_senders", "max_prepared_xacts", "max_locks_per_xact")
_SETTING_NAMES = {"max_prepared_xacts": "max_prepared_transactions", "max_locks_per_xact": "max_locks_per_transaction"}
_TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)? ?(Z|UTC|([+-])(\d\d)(?::?(\d\d))?)")
_THIS_HOST = ("localhost", "127.0.0.1", "::1", "")
# A copy needs its own size, and the WAL that is replayed into it.
HEADROOM = 1.2


@dataclass(frozen=True)
class Target:
    """The point to restore: `kind` time, lsn or name; `value` as PostgreSQL reads it; `epoch` in seconds for a time."""

    kind: str
    value: str
    epoch: float = 0.0

    @property
    def setting(self) -> str:
        """The setting that tells recovery where to stop."""
        return "recovery_target_" + self.kind


@dataclass(frozen=True)
class Backup:
    """One backup of the repository: times in seconds of the epoch, LSNs as texts (empty when unknown), the size of what it restores in bytes.

    `repository_bytes` is what it takes in the repository, with what it refers to; like `timeline` it is 0 when unknown.
    """

    label: str
    type: str
    start: int
    stop: int
    start_lsn: str = ""
    stop_lsn: str = ""
    size_bytes: int = 0
    repository_bytes: int = 0
    timeline: int = 0


@dataclass(frozen=True)
class Lineage:
    """The timeline that the live primary is on, and the switches that led to it; timeline 0 where nobody knows it, or wants to follow it."""

    timeline: int = 0
    history: tuple[Switch, ...] = ()


UNKNOWN = Lineage()


@dataclass(frozen=True)
class Place:
    """Where the copy is to be, as it was found; `begun_for` is the request of a restore that began there and has not ended, empty when there is none."""

    directory: str
    exists: bool = False
    port: int = 5433
    port_taken_by: str = ""
    disk_free_bytes: int = 0
    begun_for: Mapping[str, Any] = field(default_factory=dict)


def parse_target(*, time: str = "", lsn: str = "", name: str = "") -> Target:
    """Return the one target that is named; raises PgOpsError when there is none or more, or one that cannot be read.

    A time must have its offset: without one it would mean another moment on a host of another time zone.
    """
    given = [(kind, value) for kind, value in ((TIME, time.strip()), (LSN, lsn.strip()), (NAME, name)) if value]
    if len(given) != 1:
        raise PgOpsError(
            "Cannot restore: exactly one target is needed.", reason="no_target" if not given else "several_targets",
            observed=", ".join(kind for kind, _value in given) or "none", required="one of time, LSN and name",
            hint="Set pg_restore_target_time, pg_restore_target_lsn or pg_restore_target_name.",
        )
    kind, value = given[0]
    if kind == TIME:
        return _time_target(value)
    return Target(kind, format_lsn(parse_lsn(value)) if kind == LSN else value)


def _time_target(text: str) -> Target:
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        year, month, day, hour, minute, second, fraction, _zone, sign, hours, minutes = found.groups()
        offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
        moment = datetime(
            int(year), int(month), int(day), int(hour), int(minute), int(second or 0), int((fraction or "0").ljust(6, "0")), timezone(offset)
        )
    except ValueError as error:
        raise PgOpsError(
            "Cannot restore: the target time cannot be read, or lacks its offset.", reason="bad_target_time", observed=text,
            required="a time with its offset from UTC, such as 2026-01-31T23:59:59Z or 2026-01-31 23:59:59+01",
            hint="Correct pg_restore_target_time.",
        ) from error
    return Target(TIME, moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f+00"), moment.timestamp())


def parse_backups(text: str, stanza: str, system_identifier: str = "") -> tuple[Backup, ...]:
    """Return the stanza's backups, the oldest first, from the JSON of `pgbackrest info`; those of another system are left out.

    Raises PgOpsError when it is not such JSON.
    """
    try:
        found: dict[str, Any] = next((entry for entry in json.loads(text) if entry["name"] == stanza), {})
        systems = {entry["id"]: str(entry["system-id"]) for entry in found.get("db", [])}
        ours = [
            entry for entry in found.get("backup", []) if not system_identifier or systems.get(entry["database"]["id"]) == system_identifier
        ]
        backups = [_backup_from(entry) for entry in ours]
    except (ValueError, KeyError, TypeError) as error:
        raise PgOpsError("Cannot read what pgbackrest info says of the backups.", reason="bad_backup_info", observed=type(error).__name__) from error
    return tuple(sorted(backups, key=lambda backup: backup.stop))


def newest_archived(text: str, stanza: str) -> str:
    """Return the name of the newest segment in the stanza's archive, from the same JSON; empty when there is none."""
    try:
        entries = [entry for entry in json.loads(text) if entry["name"] == stanza]
    except (ValueError, KeyError, TypeError):
        return ""
    return max((str(one.get("max") or "") for entry in entries for one in entry.get("archive", [])), default="")


def _backup_from(entry: Mapping[str, Any]) -> Backup:
    lsn = entry.get("lsn") or {}
    return Backup(
        str(entry["label"]), str(entry["type"]), int(entry["timestamp"]["start"]), int(entry["timestamp"]["stop"]), str(lsn.get("start") or ""),
        str(lsn.get("stop") or ""), int(entry["info"]["size"]), int((entry["info"].get("repository") or {}).get("size") or 0),
        int(str((entry.get("archive") or {}).get("stop") or "0")[:8], 16),
    )


def format_time(epoch: float) -> str:
    """Return seconds of the epoch as a time in UTC."""
    return datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%d %H:%M:%S+00")


def _is_past_of(live: Lineage, backup: Backup) -> bool:
    """Return whether the live server has come by where the backup ends; true where that is not known, then PostgreSQL finds out."""
    if not live.timeline or not backup.timeline:
        return True
    return contains(live.history, live.timeline, backup.timeline, parse_lsn(backup.stop_lsn) if backup.stop_lsn else 0)


def timeline_to_follow(wish: str, backup: Backup, live: Lineage) -> str:
    """Return what PostgreSQL is told for `wish`: LIVE is the live server's timeline, and the newest of the archive where that is not known.

    It has to get the history file of a number, and not that of the timeline which the backup has brought.
    """
    if wish != LIVE:
        return wish
    if not live.timeline or not backup.timeline:
        return "latest"
    return "current" if backup.timeline == live.timeline else str(live.timeline)


def choose_backup(target: Target, backups: Sequence[Backup], label: str = "", live: Lineage = UNKNOWN) -> Optional[Backup]:
    """Return the newest backup that ended before the target; None when none did, or when there is none of that `label`.

    Nobody knows where a name lies, so the oldest backup is taken for one: from a newer one recovery may begin behind it.
    One of a branch that the live server has not come by does not count.
    """
    able = [backup for backup in backups if _covers(backup, target) and _is_past_of(live, backup)]
    if label:
        return next((backup for backup in able if backup.label == label), None)
    if not able:
        return None
    return able[0] if target.kind == NAME else able[-1]


def _covers(backup: Backup, target: Target) -> bool:
    if target.kind == TIME:
        return backup.stop <= target.epoch
    if target.kind == LSN:
        return bool(backup.stop_lsn) and parse_lsn(backup.stop_lsn) <= parse_lsn(target.value)
    return True


def format_request(request: Mapping[str, Any]) -> str:
    """Return what a restore was asked for, for people."""
    return "{0} '{1}', timeline {2}, backup {3}".format(
        request.get("target"), request.get("value"), request.get("timeline"), request.get("backup") or "chosen by the target"
    )


def _directory_blockers(host: str, place: Place, request: Mapping[str, Any]) -> list[Blocker]:
    if place.begun_for and place.begun_for != request:
        return [
            Blocker("unfinished_restore", host, "another restore into this directory has begun and not ended",
                    "{0}: {1}".format(place.directory, format_request(place.begun_for)), "none, or the same request",
                    "Let it end, or repeat it. To give it up, end its pgbackrest and remove the directory and {0}.pg_ops; or name another in "
                    "pg_restore_directory.".format(place.directory))
        ]
    if place.exists and not place.begun_for:
        return [
            Blocker("directory_exists", host, "the directory for the copy exists already", place.directory, "no such directory",
                    "Remove it when it is not needed any more, or name another in pg_restore_directory.")
        ]
    return []


def _backup_blocker(host: str, target: Target, backups: Sequence[Backup], label: str, live: Lineage) -> Blocker:
    """Return why none of the backups will do."""
    past = [backup for backup in backups if _is_past_of(live, backup)]
    first = past[0] if past else None
    required = "a backup that ended before {0}".format(target.value if target.kind != NAME else "the named point")
    seen = "none" if first is None else "the oldest, {0}, ended at {1}".format(first.label, format_time(first.stop))
    if first is not None and target.kind == LSN:
        seen = "the oldest, {0}, ended at {1}".format(first.label, first.stop_lsn)
    if label:
        required += " and is " + label
    hint = "Take a later target." if past else "Nothing can be restored before the first backup; begin one on the host of the repository."
    others = [backup.label for backup in backups if backup not in past]
    if others:
        seen += ", and {0} of a branch that the live server, on timeline {1}, has not come by".format(", ".join(others), live.timeline)
        hint += " To restore that branch, name its timeline in pg_restore_target_timeline."
    return Blocker("no_backup_covers", host, "no backup covers the target", seen, required, hint)


def restore_blockers(
    host: str, target: Target, backups: Sequence[Backup], place: Place, *, now: float, live_port: int, request: Mapping[str, Any], label: str = "",
    live: Lineage = UNKNOWN,
) -> tuple[Blocker, ...]:
    """Return what speaks against a restore into that place. What the same `request` has begun there is begun anew, and is no blocker."""
    found: list[Blocker] = []
    if target.kind == TIME and target.epoch > now:
        found.append(
            Blocker("target_in_future", host, "the target time is yet to come", target.value, "at most " + format_time(now), "Correct pg_restore_target_time.")
        )
    chosen = choose_backup(target, backups, label, live)
    if chosen is None:
        found.append(_backup_blocker(host, target, backups, label, live))
    found.extend(_directory_blockers(host, place, request))
    if place.port == live_port or place.port_taken_by:
        seen = "port {0}: {1}".format(place.port, "the live server's" if place.port == live_port else place.port_taken_by)
        found.append(Blocker("port_taken", host, "the port for the copy is taken", seen, "a free port", "Name another in pg_restore_port."))
    needed = int(chosen.size_bytes * HEADROOM) if chosen else 0
    if place.disk_free_bytes < needed:
        found.append(
            Blocker("disk_too_small", host, "has too little disk for the copy", "{0} bytes free".format(place.disk_free_bytes),
                    "{0} bytes".format(needed), "Free space, or name a place on another disk in pg_restore_directory.")
        )
    return tuple(found)


def recovery_settings(target: Target, *, restore_command: str, timeline: str) -> str:
    """Return the copy's postgresql.auto.conf: where recovery stops. Nothing else, for that of the backup has the live server's ties."""
    return set_conf(
        "# Written by pg_ops.replication: a copy of the past, restored beside the live server.\n",
        {
            "restore_command": restore_command,
            target.setting: target.value,
            "recovery_target_timeline": timeline,
            "recovery_target_action": "promote",
        },
    )


def copy_settings(
    control_data: str, *, port: int, listen_addresses: str, socket_directory: str, superuser: str, more: Mapping[str, Any]
) -> tuple[str, str]:
    """Return postgresql.conf and pg_hba.conf of the copy: it archives nothing, replicates nothing, waits for nobody.

    `control_data` is what pg_controldata prints of it. `more` are settings of the caller's; those that make it a copy win.
    """
    needed = {}
    for name in _AT_LEAST:
        seen = re.search(r"^{0} setting: +(\d+)$".format(name), control_data, re.MULTILINE)
        if seen:
            needed[_SETTING_NAMES.get(name, name)] = seen.group(1)
    text = set_conf(
        "# Written by pg_ops.replication: a copy of the past, restored beside the live server.\n",
        {
            **needed,
            "shared_buffers": "128MB",
            **{name: str(value) for name, value in more.items()},
            "port": str(port),
            "listen_addresses": listen_addresses,
            "unix_socket_directories": socket_directory,
            "cluster_name": "restored",
            "hot_standby": "off",
            "wal_level": "replica",
            "archive_mode": "off",
            "archive_command": "",
            "primary_conninfo": "",
            "primary_slot_name": "",
            "synchronous_standby_names": "",
            "max_logical_replication_workers": "0",
        },
    )
    hba = ["# Written by pg_ops.replication: the account of the server, and whoever has a password.", "local all {0} peer".format(superuser)]
    hba += ["local all all scram-sha-256", "host all all 127.0.0.1/32 scram-sha-256", "host all all ::1/128 scram-sha-256"]
    if any(address.strip() not in _THIS_HOST for address in listen_addresses.split(",")):
        hba.append("host all all samenet scram-sha-256")  # who asks for an address wants to come from elsewhere: from next door, not from anywhere
    return text, "\n".join([*hba, ""])
