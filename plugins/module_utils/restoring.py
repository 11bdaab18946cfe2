# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A point in time, restored from a pgBackRest repository into a directory of its own and started there."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core import restore as decisions
from ansible_collections.pg_ops.replication.plugins.module_utils.core.restore import LIVE, UNKNOWN, Backup, Lineage, Place, Target
from ansible_collections.pg_ops.replication.plugins.module_utils.core.timeline import format_history
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import directory_bytes, free_bytes, port_taken
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError, read_verbatim, sync_directory

NOTE = "pg_ops_restore.json"
# Beside the directory, until it is complete: the request, and the mark that tells this directory from a later one of that name.
BEGUN = "restore"
MARK = "user.pg_ops_restore"
LOG = "pg_ops_restore.log"
STATE_SUFFIX = ".pg_ops"


@dataclass(frozen=True)
class RestoreTerms:
    """What is restored and how; times in seconds."""

    target: Target
    directory: str
    port: int
    stanza: str
    config: str
    program: str = "/usr/bin/pgbackrest"
    backup: str = ""
    timeline: str = LIVE
    live: Lineage = UNKNOWN
    listen_addresses: str = "localhost"
    settings: Mapping[str, Any] = field(default_factory=dict)
    awaited_segment: str = ""
    archive_timeout_seconds: float = 30
    timeout_seconds: float = 86400

    def command(self, *words: str) -> list[str]:
        """Return a command of pgBackRest for this stanza."""
        return [self.program, "--config=" + self.config, "--stanza=" + self.stanza, *words]

    @property
    def request(self) -> dict[str, Any]:
        """What tells one copy from another; the port is no part of it, nor what the live server's timeline was at that time."""
        return {"target": self.target.setting, "value": self.target.value, "backup": self.backup, "timeline": self.timeline, "stanza": self.stanza}


def copy_of(server: Server, terms: RestoreTerms) -> Server:
    """Return the copy as a server of its own: no service manager, its configuration and log in its directory, its notes beside it."""
    return replace(
        server, data_directory=terms.directory, config_directory=terms.directory, state_directory=terms.directory + STATE_SUFFIX,
        log_file=os.path.join(terms.directory, LOG), service_manager="pg_ctl", service_name="", port=terms.port,
    )


def read_request(copy: Server) -> dict[str, Any]:
    """Return what the directory was restored for; empty when it was not, or not completely."""
    try:
        found = json.loads(copy.data(NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def require_apart(server: Server, directory: str) -> None:
    """Raise ServerError unless the copy and its notes are beside the live server's: neither the same, nor in its data, nor around them."""
    live, wanted, notes = (os.path.realpath(path) for path in (server.data_directory, directory, directory + STATE_SUFFIX))
    around = any(os.path.commonpath([live, path]) in (live, path) for path in (wanted, notes))
    if not os.path.isabs(directory) or "\n" in directory or around or notes == os.path.realpath(server.state_directory):
        raise ServerError(
            "the copy and its notes must not be in the live server's data directory, nor around it", reason="bad_directory", observed=directory,
            required="an absolute path beside {0}".format(server.data_directory), hint="Correct pg_restore_directory.",
        )


def _info(server: Server, terms: RestoreTerms) -> str:
    return server.run(terms.command("--output=json", "info"), timeout_seconds=60).stdout


def _has_arrived(server: Server, copy: Server, terms: RestoreTerms) -> bool:
    """Return whether the segment that is waited for is in the archive. The newest one there says nothing of it where it is of a later timeline."""
    newest = decisions.newest_archived(_info(server, terms), terms.stanza)
    if newest[:8] <= terms.awaited_segment[:8]:
        return newest >= terms.awaited_segment
    fetched = copy.state("awaited")
    try:
        server.run(terms.command("--no-archive-async", "archive-get", terms.awaited_segment, str(fetched)), timeout_seconds=60)
    except ServerError:
        return False
    finally:
        fetched.unlink(missing_ok=True)
    return True


def await_archived(server: Server, copy: Server, terms: RestoreTerms) -> None:
    """Wait until the segment that the primary has just closed is in the archive, or the time is over.

    Not an error: recovery says whether it reached the target, and an earlier one may not need that segment.
    """
    deadline = time.monotonic() + terms.archive_timeout_seconds
    while terms.awaited_segment and not _has_arrived(server, copy, terms):
        if time.monotonic() > deadline:
            return
        time.sleep(0.5)


def _places(copy: Server) -> tuple[str, str]:
    """Return what a restore fills, the directory last: by its mark the remains are known as ours until all are removed."""
    return copy.data_directory + ".tablespaces", copy.data_directory


def _mark(directory: Path) -> str:
    """Mark a directory as made here and return the mark: a file in it would keep pgBackRest out, and its inode's number is given again.

    Empty where the file system keeps no attributes; then nothing in it is ever taken for ours.
    """
    mark = secrets.token_hex(16)
    try:
        os.setxattr(directory, MARK, mark.encode("ascii"))
    except OSError:
        return ""
    return mark


def _mark_of(directory: str) -> str:
    try:
        return os.getxattr(directory, MARK, follow_symlinks=False).decode("ascii", "replace")
    except OSError:
        return ""


def _begun_for(copy: Server) -> dict[str, Any]:
    """Return the request of a restore that began in the directory and did not end; empty unless it is the very directory that was made for it."""
    note, mark = copy.read_note(BEGUN), _mark_of(copy.data_directory)
    if not mark or note.get("mark") != mark or read_request(copy) or copy.postmaster_pid():
        return {}
    return dict(note.get("request", {}))


def observe_place(copy: Server) -> Place:
    """Return what there is where the copy is to be. What an unfinished restore takes of the disk counts as free: it is removed before the next."""
    there = [path for path in reversed(_places(copy)) if os.path.lexists(path)]
    begun_for, free = _begun_for(copy), free_bytes(os.path.dirname(copy.data_directory))
    if begun_for:
        free += sum(directory_bytes(Path(path), within_seconds=math.inf) for path in there)
    return Place(there[0] if there else copy.data_directory, bool(there), copy.port, port_taken(copy.port), free, begun_for)


def backups_of(server: Server, terms: RestoreTerms) -> tuple[Backup, ...]:
    """Return the backups of this server's system, the oldest first."""
    identifier = server.control_data().system_identifier if server.exists() else ""
    return decisions.parse_backups(_info(server, terms), terms.stanza, identifier)


def _end_leftover(copy: Server) -> None:
    copy.end_leftover("pgbackrest", "--pg1-path=" + copy.data_directory)


def _remove(copy: Server) -> None:
    """Remove what a restore has begun, and then its note. Ours, and nothing in it was ever a server's."""
    _end_leftover(copy)
    for path in _places(copy):
        shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(copy.data_directory):
        copy.remove_note(BEGUN)


def _begin(copy: Server, terms: RestoreTerms) -> None:
    """Make the directory, with a note beside it by which a later run knows it as ours; raises ServerError when something is there.

    It gets its name last: a run that is killed in between leaves nothing there that has no note.
    """
    _end_leftover(copy)  # its run was killed, and its directory may be removed already; it would fill the one that is made now
    if _begun_for(copy) == terms.request:
        _remove(copy)
    fresh = copy.state("new")
    fresh.mkdir(mode=0o700, exist_ok=True)
    copy.own(fresh)
    copy.write_note(BEGUN, {"request": terms.request, "mark": _mark(fresh)})
    if os.path.lexists(copy.data_directory):
        raise ServerError(
            "the directory for the copy is in the way", reason="directory_exists", observed=copy.data_directory, required="no such directory",
            hint="Find out what is in it, then remove it, or name another in pg_restore_directory.",
        )
    fresh.rename(copy.data_directory)
    sync_directory(copy.data().parent)


def _fetch(server: Server, copy: Server, terms: RestoreTerms, label: str) -> None:
    """Have pgBackRest fill the directory. Only an empty one that was made here is ever given to it."""
    argv = terms.command(
        "--pg1-path=" + terms.directory, "--set=" + label, "--type=" + terms.target.kind, "--target=" + terms.target.value,
        "--target-action=promote", "--archive-mode=off", "--log-level-console=error",
        "--tablespace-map-all={0}.tablespaces".format(terms.directory), "restore",
    )
    try:
        server.run(argv, timeout_seconds=terms.timeout_seconds)
    except ServerError:
        _remove(copy)
        raise


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''").replace("%", "%%") + "'"


def _configure(copy: Server, terms: RestoreTerms, timeline: str) -> None:
    control = copy.run([copy.program("pg_controldata"), "-D", copy.data_directory], timeout_seconds=30).stdout
    conf, hba = decisions.copy_settings(
        control, port=terms.port, listen_addresses=terms.listen_addresses, socket_directory=copy.socket_directory, superuser=copy.superuser,
        more=terms.settings,
    )
    # Not ahead, in the background: the spool is the live server's, which may fetch at the same time.
    words = terms.command("--no-archive-async", "--pg1-path=" + terms.directory, "archive-get")
    command = " ".join(_quoted(word) for word in words) + ' "%f" "%p"'
    copy.write(copy.config_file, conf)
    copy.write(copy.hba_file, hba)
    copy.write(copy.data("pg_ident.conf"), "")
    copy.write(copy.auto_conf, decisions.recovery_settings(terms.target, restore_command=command, timeline=timeline))
    if timeline == str(terms.live.timeline):
        # Its primary may not have come to archive it: what the archive lacks is looked for here.
        copy.write(copy.data("pg_wal", "{0:08X}.history".format(terms.live.timeline)), format_history(terms.live.history))
    copy.remove_standby_signal()
    copy.write(copy.data("recovery.signal"), "")
    copy.write(copy.data(NOTE), json.dumps(terms.request, sort_keys=True) + "\n")


def bring_up(copy: Server, terms: RestoreTerms) -> None:
    """Start the copy unless it runs, and wait until recovery has reached the target; raises ServerError with what its log says.

    A copy that runs may still recover: its postmaster outlives the run that started it. And pg_ctl does not wait for recovery's end where
    hot_standby is off.
    """
    copy.remove_note(BEGUN)  # of a run that was killed when the copy was complete
    deadline = time.monotonic() + terms.timeout_seconds
    if not copy.postmaster_pid():
        try:
            copy.start(timeout_seconds=terms.timeout_seconds)
        except ServerError as error:
            if not copy.postmaster_pid():  # one that a killed run has just started may be there by now
                raise _not_up(copy, terms) or error from error
    while copy.running_status() != "ready":
        if not copy.postmaster_pid() or time.monotonic() > deadline:
            raise _not_up(copy, terms) or ServerError(
                "the copy has ended. Its log ends: {0}".format(copy.log_end()), reason="start_failed", observed="not up", required="up",
                hint="Look at {0}.".format(copy.log_file),
            )
        time.sleep(0.05)


def _not_up(copy: Server, terms: RestoreTerms) -> Optional[ServerError]:
    """Return why recovery has not reached the target, as far as the copy shows it; None where it failed otherwise."""
    if copy.postmaster_pid():
        return ServerError(
            "the copy is still in recovery", reason="in_recovery", observed="not up after {0} s".format(terms.timeout_seconds),
            required="recovered to {0}".format(terms.target.value),
            hint="It goes on by itself; repeat to wait for it again. What it does is in {0}.".format(copy.log_file),
        )
    last_start = read_verbatim(Path(copy.log_file)).rpartition("starting PostgreSQL")[2]
    if "recovery ended before configured recovery target was reached" not in last_start:
        return None
    return ServerError(
        "the WAL in the archive ends before the target", reason="target_not_reached", observed=terms.target.value,
        required="a target up to which the archive has WAL",
        hint="Take an earlier target, or mend the archive; then remove {0} and repeat.".format(copy.data_directory),
    )


def restore(server: Server, copy: Server, terms: RestoreTerms, label: str, timeline: str) -> None:
    """Fetch the backup of that label, make it a server of its own and recover it along that timeline to the target.

    What a run that was killed has left of the same request is removed first. Only for a run that has the copy alone.
    """
    _begin(copy, terms)
    _fetch(server, copy, terms, label)
    _configure(copy, terms, timeline)
    bring_up(copy, terms)


def as_it_runs(copy: Server) -> Server:
    """Return the copy on the port that it runs on, which a repeated request need not name; unchanged when it does not run."""
    return replace(copy, port=copy.running_port() or copy.port)


def _session_of(copy: Server) -> sql.Session:
    """Open a session on the running copy; raises ServerError when another server answers in its place."""
    try:
        return copy.wait_for_sql(timeout_seconds=30)
    except ServerError as error:
        raise ServerError(
            error.message, reason=error.reason, observed=error.observed, required=error.required,
            hint="Stop the copy with pg_ctl and repeat, with a free port in pg_restore_port.",
        ) from error


def describe(copy: Server) -> dict[str, Any]:
    """Return what the running copy says of itself; raises ServerError when it is another server, or still in recovery."""
    with _session_of(copy) as session:
        row = session.row(
            "SELECT pg_is_in_recovery() AS in_recovery,"
            " pg_last_xact_replay_timestamp()::text AS last_transaction,"
            " array_to_string(array(SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1), ' ') AS databases"
        )
    if row["in_recovery"]:
        raise ServerError("the copy is still in recovery", reason="in_recovery", observed="in recovery", required="promoted")
    tablespaces = copy.data_directory + ".tablespaces"
    return {
        "last_transaction": row["last_transaction"] or "", "databases": str(row["databases"]).split(),
        "tablespaces_directory": tablespaces if os.path.isdir(tablespaces) else "",
    }
