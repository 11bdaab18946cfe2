# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that a decision needs from one server, running or not, as plain data (see core/node.py for the fields)."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible_collections.pg_ops.replication.plugins.module_utils import sql, wal_pages
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conninfo import parse_conninfo
from ansible_collections.pg_ops.replication.plugins.module_utils.core.control_data import too_low
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, most_advanced, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import SIGN_OF_LIFE_SECONDS
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slot_file import SlotOnDisk, read_slot
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, clone_directory
from ansible_collections.pg_ops.replication.plugins.module_utils.slot_sql import read_slots

SETTINGS = (
    "archive_mode", "data_checksums", "hot_standby", "hot_standby_feedback", "listen_addresses", "max_connections",
    "max_locks_per_transaction", "max_prepared_transactions", "max_replication_slots", "max_slot_wal_keep_size", "max_wal_senders",
    "max_worker_processes", "password_encryption", "port", "primary_slot_name", "recovery_min_apply_delay", "shared_buffers",
    "sync_replication_slots", "synchronized_standby_slots", "synchronous_commit", "synchronous_standby_names", "wal_keep_size", "wal_level", "wal_log_hints",
)
# Kept in postgresql.auto.conf by pg_settle, so that it can be told of a server that is down.
SYNCHRONOUS = "synchronous_standby_names"

# How long the server that a standby streams from is waited for: one that hangs takes a connection and says nothing.
ANSWER_SECONDS = 2.0
# How libpq shows that a server answered: the server's own words, behind a severity in whatever language and two spaces (too many clients), and what
# it says itself of the server's encryption (a certificate that has run out), of a password that was asked for and is in no passfile, and of a server
# that can make no process for it. Anything else may be the network: no ground to forbid a failover.
ANSWERED = re.compile(r":  |SSL error|certificate|support SSL|SSL was required|error response during|no password supplied|could not fork")

# What SQLSTATE 57P03 says in words; psycopg2 does not hand on the state of a connection that was refused.
CANNOT_CONNECT_NOW = ("starting up", "not yet accepting connections", "not accepting connections", "shutting down", "in recovery mode")

COMMON = """
SELECT pg_is_in_recovery() AS in_recovery, current_setting('server_version_num')::int AS server_version_num,
       (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier,
       (SELECT timeline_id FROM pg_control_checkpoint()) AS control_timeline,
       (SELECT redo_lsn::text FROM pg_control_checkpoint()) AS redo_lsn,
       (SELECT checkpoint_lsn::text FROM pg_control_checkpoint()) AS checkpoint_lsn,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS client_connections,
       extract(epoch FROM pg_conf_load_time())::float AS configuration_read_at,
       current_setting('restore_command') <> '' AS has_restore_command,
       (SELECT bytes_per_wal_segment FROM pg_control_init()) AS segment_bytes,
       (SELECT max(substr(name, 1, 8)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$') AS newest_wal_timeline
"""
PRIMARY_ONLY = """
SELECT pg_current_wal_lsn()::text AS current_lsn, ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int AS timeline,
       (SELECT count(*) FROM pg_prepared_xacts) AS prepared_transactions,
       (SELECT coalesce(max(extract(epoch FROM now() - xact_start)), 0)::float FROM pg_stat_activity
         WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()) AS longest_transaction_seconds,
       (SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep') AS sessions_waiting_for_standby,
       EXISTS (SELECT FROM pg_stat_progress_basebackup) OR EXISTS (
         SELECT FROM pg_stat_activity WHERE application_name = 'pgBackRest [backup]') AS backup_in_progress
"""
STANDBY_ONLY = """
SELECT pg_last_wal_receive_lsn()::text AS receive_lsn, pg_last_wal_replay_lsn()::text AS replay_lsn,
       pg_is_wal_replay_paused() AS replay_paused,
       (SELECT min_recovery_end_timeline FROM pg_control_recovery()) AS min_recovery_timeline,
       extract(epoch FROM now() - pg_last_xact_replay_timestamp())::float AS replay_age_seconds,
       (SELECT setting::int FROM pg_settings WHERE name = 'recovery_min_apply_delay') AS replay_delay_ms
"""
RECEIVER = """
SELECT status, coalesce(sender_host, '') AS sender_host, coalesce(sender_port, 0) AS sender_port,
       coalesce(slot_name, '') AS slot_name, coalesce(received_tli, 0) AS received_timeline,
       extract(epoch FROM clock_timestamp() - last_msg_receipt_time)::float AS silent_seconds FROM pg_stat_wal_receiver
"""
SENDERS = """
SELECT application_name, coalesce(client_addr::text, '') AS client_address, state, coalesce(sync_state, '') AS sync_state,
       coalesce(sent_lsn::text, '') AS sent_lsn, coalesce(flush_lsn::text, '') AS flush_lsn, coalesce(replay_lsn::text, '') AS replay_lsn,
       extract(epoch FROM replay_lag)::float AS replay_lag_seconds
FROM pg_stat_replication ORDER BY application_name
"""
ARCHIVER = """
SELECT failed_count > 0 AND last_failed_time > coalesce(last_archived_time, '-infinity') AS archive_failing,
       coalesce(last_failed_wal, '') AS archive_failed_wal FROM pg_stat_archiver
"""


def default_address() -> str:
    """Return this host's address on its default route; no packet is sent. Empty when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def port_taken(port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except PermissionError:
            return ""
        except OSError as error:
            return "a listener that is not this server ({0})".format(error.strerror)
    return ""


def free_bytes(path: str) -> int:
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def directory_bytes(path: Path, *, within_seconds: float = 5) -> int:
    """Return what the files below a directory have, or at least have where that takes longer: an observation must not fail of it."""
    total, deadline = 0, time.monotonic() + within_seconds
    for root, _directories, names in os.walk(str(path)):
        if time.monotonic() > deadline:
            break
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue  # a server deletes files while we look
    return total


def _upstream(settings: dict[str, str]) -> dict[str, Any]:
    conninfo = settings.get("primary_conninfo", "")
    found: dict[str, Any] = {"slot_name": settings.get("primary_slot_name", "")}
    if conninfo:
        parsed = parse_conninfo(conninfo)
        found.update(host=parsed.get("host", ""), user=parsed.get("user", ""), application_name=parsed.get("application_name", ""))
        # Another tool may have left several hosts here; the first one stands for them.
        port = parsed.get("port", "").split(",")[0]
        found["port"] = int(port) if port.isdigit() else 5432
    return found


def observe_files(server: Server) -> dict[str, Any]:
    """Return what the files say of a server; it need not run."""
    control = server.control_data()
    wal = server.data("pg_wal")
    timeline = max(control.checkpoint_timeline, control.min_recovery_timeline, wal_pages.newest_timeline(wal))
    history = server.data("pg_wal", "{0:08X}.history".format(timeline))
    settings = server.read_auto_conf()
    down_cleanly = control.cluster_state in ("shut down", "shut down in recovery")
    signal_file = server.standby_signal.exists() or server.data("recovery.signal").exists()
    # A standby's control file has these of its primary. The number of slots is in none.
    slots = "" if signal_file else server.configured("max_replication_slots")
    last_run_with = {} if signal_file else {"wal_level": control.wal_level, "max_wal_senders": str(control.max_wal_senders)}
    if slots:
        last_run_with["max_replication_slots"] = slots
    slots_on_disk = _slots_on_disk(server)
    end_of_wal = wal_pages.wal_end(wal, parse_lsn(control.redo_lsn), control.wal_segment_bytes) or ""
    wal_end = parse_lsn(end_of_wal or control.redo_lsn)
    return {
        "state": states.STOPPED if down_cleanly else states.CRASHED,
        "role": states.STANDBY if signal_file else states.PRIMARY,
        "major": int(server.data("PG_VERSION").read_text(encoding="utf-8").strip()),
        "system_identifier": control.system_identifier,
        "timeline": timeline,
        "control_timeline": control.checkpoint_timeline,
        "control_state": control.cluster_state,
        "checkpoint_lsn": control.checkpoint_lsn,
        "redo_lsn": control.redo_lsn,
        "min_recovery_lsn": control.min_recovery_lsn,
        "wal_end_lsn": end_of_wal,
        "oldest_wal_lsn": format_lsn(wal_pages.oldest_position(wal, control.wal_segment_bytes)),
        "timeline_history": history.read_text(encoding="utf-8") if history.is_file() else "",
        "standby_signal": signal_file,
        "has_restore_command": bool(server.configured("restore_command")),
        "replay_delay_ms": int(server.configured("recovery_min_apply_delay") or 0),
        "data_checksums": control.data_checksums,
        "wal_log_hints": control.wal_log_hints,
        "upstream": _upstream(settings),
        "settings": {**last_run_with, **{name: settings[name] for name in (SYNCHRONOUS,) if name in settings}},
        "slots": [{"name": slot.name, "type": "logical"} for slot in slots_on_disk if slot.is_logical],
        "kept_by_slots": [
            {"name": slot.name, "retained_bytes": wal_end - slot.restart_lsn} for slot in slots_on_disk if 0 < slot.restart_lsn <= wal_end
        ],
        "configured_slot_limit": "" if signal_file else server.configured("max_slot_wal_keep_size"),
    }


def _slots_on_disk(server: Server) -> list[SlotOnDisk]:
    found = [read_slot(path.read_bytes()) for path in sorted(server.data("pg_replslot").glob("*/state"))]
    return [slot for slot in found if slot is not None]


def _setting_values(session: sql.Session) -> dict[str, Any]:
    settings = session.dicts("SELECT name, setting, pending_restart FROM pg_settings WHERE name = ANY(%s)", [list(SETTINGS)])
    return {
        "settings": {row["name"]: row["setting"] for row in settings},
        "pending_restart": [row[0] for row in session.rows("SELECT name FROM pg_settings WHERE pending_restart ORDER BY 1")],
        "data_checksums": any(row["name"] == "data_checksums" and row["setting"] == "on" for row in settings),
        "wal_log_hints": any(row["name"] == "wal_log_hints" and row["setting"] == "on" for row in settings),
    }


def observe_running(server: Server, session: sql.Session, roles: Sequence[str]) -> dict[str, Any]:
    """Return what a running server says of itself."""
    found: dict[str, Any] = {"state": states.RUNNING, **session.row(COMMON), **_setting_values(session)}
    in_recovery = bool(found.pop("in_recovery"))
    found["role"] = states.STANDBY if in_recovery else states.PRIMARY
    found["major"] = found["server_version_num"] // 10000
    found["roles"] = [row[0] for row in session.rows("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) ORDER BY 1", [list(roles)])]
    found["senders"] = session.dicts(SENDERS)
    found["slots"] = read_slots(session)
    found.update(session.row(ARCHIVER))
    found.update(session.row(STANDBY_ONLY if in_recovery else PRIMARY_ONLY))
    if in_recovery:
        found["receiver"] = session.row(RECEIVER)
        # The control file of a standby lags by a restartpoint, and the receiver is gone when the upstream is: the WAL's names know.
        named = int(found["newest_wal_timeline"] or "0", 16)
        known = (found["control_timeline"], found.pop("min_recovery_timeline") or 0, found["receiver"].get("received_timeline", 0), named)
        found["timeline"] = max(known)
    found.pop("newest_wal_timeline")
    return found


def _add_files_of_running(server: Server, found: dict[str, Any]) -> None:
    """Add what only the files of a running server tell."""
    if found.get("replay_paused"):
        found["settings_too_low"] = too_low(server.control_data(), found["settings"])
    here = most_advanced(found.get("current_lsn"), found.get("receive_lsn"), found.get("replay_lsn"))
    start = wal_pages.unbroken_from(server.data("pg_wal"), parse_lsn(here), found["segment_bytes"]) if here else 0
    found["oldest_wal_lsn"] = format_lsn(start) if start else ""
    del found["segment_bytes"]
    history = server.data("pg_wal", "{0:08X}.history".format(found["timeline"]))
    found["timeline_history"] = history.read_text(encoding="utf-8") if history.is_file() else ""
    found["standby_signal"] = server.standby_signal.exists()
    found["upstream"] = _upstream(server.read_auto_conf())
    found["configuration_unread"] = _is_newer_than(found.pop("configuration_read_at"), our_files(server))


def _ask_silent_sender(server: Server, found: dict[str, Any]) -> None:
    """Ask the server that a standby streams from for a sign of life when its last message is not one: an idle primary says nothing for half a minute."""
    receiver = found.get("receiver") or {}
    silent = receiver.get("silent_seconds")
    if receiver.get("status") != "streaming" or silent is None or 0 <= silent < SIGN_OF_LIFE_SECONDS:
        return
    asked = time.monotonic()
    if _sender_answers(server, found) or _heard_since(server, asked):
        receiver["silent_seconds"] = 0.0


def _sender_answers(server: Server, found: dict[str, Any]) -> bool:
    """Whether the server that a standby streams from answers a new connection.

    Whoever answers with an error is alive too, but not another system's server that has the address now.
    """
    account, receiver = server.account(), found["receiver"]
    parameters = server.peer(receiver["sender_host"], receiver["sender_port"], found["upstream"].get("user", ""))
    try:
        with sql.connect(parameters, timeout_seconds=ANSWER_SECONDS, replication=True, as_uid=account.pw_uid if account else None) as session:
            return bool(session.row("IDENTIFY_SYSTEM")["systemid"] == found["system_identifier"])
    except sql.SqlError as error:
        return bool(ANSWERED.search(str(error.__cause__)))  # libpq's own words, with all spaces


def _heard_since(server: Server, asked: float) -> bool:
    """Whether a message came to the receiver since `asked` (time.monotonic): a server that takes nobody new may go on sending to those it has."""
    try:
        with server.connect() as session:
            receiver = session.row(RECEIVER)
    except sql.SqlError:
        return False
    silent = receiver.get("silent_seconds")
    return receiver.get("status") == "streaming" and silent is not None and 0 <= silent < time.monotonic() - asked


def our_files(server: Server) -> list[Path]:
    """Return the files that roles write and a running server has to read."""
    return [Path(server.config_directory, "conf.d", "50-pg_ops.conf"), server.hba_file, server.state("tls", "server.pem")]


def _is_newer_than(epoch_seconds: float, paths: Sequence[Path]) -> bool:
    """Whether one of the files was written since: by a run that was killed before it could have the server read it."""
    return any(path.stat().st_mtime > epoch_seconds for path in paths if path.exists())


def _observe_server(server: Server, roles: Sequence[str]) -> dict[str, Any]:
    """Return the state of a server that has a data directory."""
    if not server.postmaster_pid():
        return observe_files(server)
    try:
        with server.connect() as session:
            found = observe_running(server, session, roles)
    except sql.SqlError as error:
        starting = any(words in error.message for words in CANNOT_CONNECT_NOW)
        # Only silence is a server that hangs. One that answers with an error (too many clients) is alive, and may be a healthy primary.
        alive = states.STARTING if starting else states.RUNNING
        state = states.UNRESPONSIVE if error.reason == "timeout" else alive
        return {**observe_files(server), "state": state, "problem": error.message}
    _add_files_of_running(server, found)
    _ask_silent_sender(server, found)
    return found


def _pending(server: Server) -> dict[str, Any]:
    """Return the note of a role change that has begun; a server that was started since forgot that it was told to promote."""
    note, started = server.read_note("pending"), server.running_since()
    if note.get("operation") == "failover" and started and not _is_newer_than(started, [server.state("pending.json")]):
        note.pop("phase", None)
    return note


def observe(server: Server, *, roles: Sequence[str] = (), sizes: bool = False) -> dict[str, Any]:
    """Return everything that is known of the server on this host; raises PgOpsError only when its files cannot be read.

    `roles` are the database roles whose existence is asked for; with `sizes` the data directory is measured.
    """
    found: dict[str, Any] = {
        "address": default_address(),
        "installed_major": int(server.version) if server.version.isdigit() else 0,
        "disk_free_bytes": free_bytes(server.data_directory) + directory_bytes(clone_directory(server)),  # a copy that was cut off goes before the next
        "pending": _pending(server),
        "fenced": bool(server.read_note("fenced")),
        "fenced_standby": bool(server.read_note("fenced").get("standby")),
        "rewind_unfinished": bool(server.read_note("rewind")),
    }
    if not server.exists():
        return {**found, "state": states.ABSENT, "port_taken_by": port_taken(server.port)}
    found.update(_observe_server(server, roles))
    found["archive_set_up"] = server.state("archive").exists()
    found["archive_ready_files"] = len(list(server.data("pg_wal", "archive_status").glob("*.ready")))
    if sizes:
        found["data_bytes"] = directory_bytes(server.data())
    if not server.postmaster_pid():
        found["port_taken_by"] = port_taken(server.port)
    return found


def paths_of(server: Server) -> dict[str, str]:
    """Return where the server's files are, for tasks that edit them."""
    return {
        "version": server.version,
        "bin_directory": server.bin_directory,
        "data_directory": server.data_directory,
        "config_directory": server.config_directory,
        "config_file": str(server.config_file),
        "hba_file": str(server.hba_file),
        "include_directory": str(Path(server.config_directory, "conf.d")),
        "state_directory": server.state_directory,
        "passfile": str(server.passfile),
        "socket_directory": server.socket_directory,
        "service_name": server.service_name,
        "log_file": server.log_file,
    }
