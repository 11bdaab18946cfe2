# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A copy of the primary, made beside the data directory and swapped in: existing data is set aside, never overwritten.

Two notes tell a later run where an earlier one ended: phase 'copying' (the copy is worthless and is made again) and phase
'complete' (the swap is finished).
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.conninfo import format_conninfo
from ansible_collections.pg_ops.replication.plugins.module_utils.core.copy_source import AUTO, PRIMARY, REPOSITORY, Source, choose_source
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.restore import parse_backups
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import directory_bytes, free_bytes
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError, clone_directory, sync_directory
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import (
    SIGNS_OF_LIFE,
    Peer,
    connect_peer,
    connect_replication,
    identify,
    upstream_settings,
)

# What belongs to the node and not to its data, where the configuration lies in the data directory.
NODE_FILES = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d")
CLONE_HEADROOM_BYTES = 64 * 1024 * 1024
SLOT_TIMEOUT_SECONDS = 15

# What modules take of a repository; documented in doc_fragments/repository.py.
REPOSITORY_OPTIONS: dict[str, dict[str, Any]] = {
    "repository_command": {"type": "list", "elements": "str", "default": []},
    "copy_from": {"type": "str", "choices": [AUTO, PRIMARY, REPOSITORY], "default": AUTO},
}


@dataclass(frozen=True)
class CloneTerms:
    """How a copy is made; `max_rate` in pg_basebackup's words (32M), empty for as fast as it goes.

    `repository_command` is pgBackRest with its configuration and stanza, where there is a repository; `copy_from` is AUTO, PRIMARY or REPOSITORY.
    """

    host_name: str
    slot_name: str
    max_rate: str = ""
    timeout_seconds: float = 86400.0
    repository_command: tuple[str, ...] = ()
    copy_from: str = AUTO


def kept_directory(server: Server, stamp: str) -> Path:
    """Return where a replaced data directory is kept."""
    return Path("{0}.kept.{1}".format(server.data_directory.rstrip("/"), stamp))


def utc_stamp() -> str:
    """Return the present time as it stands in names: 20260131T235959Z."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


def save_node_files(server: Server) -> bool:
    """Put the node's configuration files aside in the state directory; returns whether there were any."""
    if not server.config_is_in_data or not server.config_file.is_file():
        return False
    target = server.state("configuration")
    fresh = server.state("configuration.new")
    shutil.rmtree(str(fresh), ignore_errors=True)
    fresh.mkdir(mode=0o700)
    for name in NODE_FILES:
        _copy(server.data(name), fresh / name)
    shutil.rmtree(str(target), ignore_errors=True)
    os.rename(str(fresh), str(target))
    _own_tree(server, target)
    return True


def restore_node_files(server: Server, directory: Path) -> bool:
    """Put the saved configuration files into a data directory that was copied from another node."""
    saved = server.state("configuration")
    if not server.config_is_in_data or not saved.is_dir():
        return False
    for name in NODE_FILES:
        if (saved / name).exists():
            target = directory / name
            if target.is_dir():
                shutil.rmtree(str(target))
            _copy(saved / name, target)
            _own_tree(server, target)
    return True


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(str(source), str(target))
    elif source.is_file():
        shutil.copy2(str(source), str(target))


def _own_tree(server: Server, top: Path) -> None:
    server.own(top)
    for root, directories, names in os.walk(str(top)):
        for name in directories + names:
            server.own(Path(root, name))


def require_movable(server: Server) -> None:
    """Raise ServerError where the data directory cannot be renamed because it is a mount point."""
    if os.path.ismount(server.data_directory):
        raise ServerError(
            "the data directory is a mount point and cannot be set aside", reason="mount_point", observed=server.data_directory,
            required="a directory inside a file system", hint="Use a subdirectory of the mount as pg_data_directory.",
        )


def _require_place(server: Server) -> None:
    """Raise ServerError where the directory in which a copy grows holds something that no run of ours has put there: it would be removed."""
    place = clone_directory(server)
    if not server.read_note("clone") and os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
        raise ServerError(
            "{0} is in the way of a copy, and not one of ours".format(place), reason="clone_directory_taken", observed="files that nobody knows",
            required="no such directory", hint="Look at it, and move it away or remove it.",
        )


def require_space(server: Server, peer: Peer) -> int:
    """Return the size of the primary in bytes; raises ServerError when a copy does not fit beside what is here."""
    with connect_peer(server, peer) as session:
        needed = int(session.value("SELECT sum(pg_database_size(oid))::bigint FROM pg_database", timeout_seconds=60) or 0)
    parent = os.path.dirname(server.data_directory.rstrip("/"))
    free = free_bytes(parent) + directory_bytes(clone_directory(server), within_seconds=math.inf)  # a copy that was cut off is removed before the next
    if free < needed + CLONE_HEADROOM_BYTES:
        raise ServerError(
            "too little disk for a copy of {0}".format(peer.name), reason="disk_too_small", observed="{0} bytes free".format(free),
            required="{0} bytes".format(needed + CLONE_HEADROOM_BYTES), hint="Free space below {0}.".format(parent),
        )
    return needed


def require_room(server: Server, peer: Peer) -> int:
    """Return the size of the primary in bytes; raises ServerError where a copy has no room beside what is here. Asked before a server is stopped."""
    if server.exists():
        require_movable(server)
    _require_place(server)
    return require_space(server, peer)


def _tablespaces(server: Server, peer: Peer) -> list[tuple[str, str]]:
    """Return (oid, location) of the primary's tablespaces that have a place of their own."""
    with connect_peer(server, peer) as session:
        rows = session.rows("SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''")
    return [(str(oid), str(location)) for oid, location in rows]


def _occupied(location: str) -> bool:
    return os.path.isdir(location) and bool(os.listdir(location))


def _user_of(server: Server, location: str) -> str:
    """Return the data directory of another server that runs on this host and uses that very directory; empty when none does."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            data = os.readlink(str(process / "cwd"))
            links = list((process / "cwd" / "pg_tblspc").iterdir()) if data != os.path.realpath(server.data_directory) else []
            # In its own mount namespace, a container's for example, the same path may be another directory.
            if any(os.readlink(str(link)) == location for link in links) and os.path.samefile(str(process / "root") + location, location):
                return data
    return ""


def require_tablespaces(server: Server, tablespaces: list[tuple[str, str]]) -> None:
    """Raise ServerError for a tablespace whose place cannot be set aside: it belongs to a running server, or is a mount point."""
    for _oid, location in tablespaces:
        user = _user_of(server, location)
        if user:
            raise ServerError(
                "the tablespace directory {0} belongs to a server that runs here".format(location), reason="tablespace_in_use", observed=user,
                required="a directory of this server's own", hint="Two servers on one host cannot have a tablespace at one path.",
            )
        if os.path.ismount(location):
            raise ServerError(
                "the tablespace directory {0} is a mount point and cannot be set aside".format(location), reason="mount_point",
                observed=location, required="an empty directory, or one inside a file system", hint="Move what is in it aside.",
            )


def _await_slot(server: Server, peer: Peer, name: str) -> None:
    """Wait until nobody uses the slot: the sender of a server or of a copy that just ended lingers. Raises ServerError."""
    deadline = time.monotonic() + SLOT_TIMEOUT_SECONDS
    with connect_peer(server, peer) as session:
        while True:
            found = session.row("SELECT active, coalesce(wal_status, '') AS wal_status FROM pg_replication_slots WHERE slot_name = %s", [name])
            if not found or found["wal_status"] == "lost":
                raise ServerError(
                    "slot {0} cannot be used on {1}".format(name, peer.name), reason="slot_missing", observed="lost" if found else "no slot",
                    required="a slot that keeps WAL", hint="Run initial_setup.yml, or pg_replication_slot there.",
                )
            if not found["active"]:
                return
            if time.monotonic() > deadline:
                raise ServerError(
                    "slot {0} on {1} is in use".format(name, peer.name), reason="slot_active", observed="active", required="inactive",
                    hint="Find out what streams through it: it bears this host's name.",
                )
            time.sleep(0.05)


def _empty(location: str) -> None:
    for path in Path(location).iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path))
        else:
            path.unlink()


def _survey(server: Server, peer: Peer) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the tablespaces that are copied aside as (oid, location) and the places that are filled directly, made where missing.

    What an interrupted copy left in a place that it filled directly is worthless and removed.
    """
    tablespaces = _tablespaces(server, peer)
    # Not one that the data here have come to use since: that copy was given up, and this server has made the tablespace by itself.
    used = [os.readlink(str(link)) for link in server.data("pg_tblspc").glob("*") if link.is_symlink()]
    for location in server.read_note("clone").get("direct", []):
        if location in [each for _oid, each in tablespaces] and location not in used and _occupied(location):
            _empty(location)
    aside = [(oid, location) for oid, location in tablespaces if _occupied(location)]
    require_tablespaces(server, aside)
    direct = [location for oid, location in tablespaces if (oid, location) not in aside]
    for location in direct:
        Path(location).mkdir(mode=0o700, parents=True, exist_ok=True)
        server.own(Path(location))
    return aside, direct


def _prepare_empty(server: Server, path: Path) -> None:
    if path.exists():
        shutil.rmtree(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    server.own(path)


def copy_primary(server: Server, peer: Peer, terms: CloneTerms) -> list[tuple[str, str]]:
    """Run pg_basebackup into the directory beside the data; returns the tablespaces that were copied aside as (oid, location)."""
    target = clone_directory(server)
    _await_slot(server, peer, terms.slot_name)
    aside, direct = _survey(server, peer)
    server.write_note("clone", {"phase": "copying", "from": peer.name, "tablespaces": aside, "direct": direct})
    _prepare_empty(server, target)
    conninfo = format_conninfo(
        {
            "host": peer.address, "port": str(peer.port), "user": peer.replication_user, "passfile": str(server.passfile),
            "application_name": "{0} clone".format(terms.host_name), "connect_timeout": "5",
            **SIGNS_OF_LIFE, **server.peer_encryption(),
        }
    )
    argv = [
        server.program("pg_basebackup"), "-d", conninfo, "-D", str(target), "-Fp", "-Xs", "--checkpoint=fast", "--no-password",
        "-S", terms.slot_name,
    ]
    for _oid, location in aside:
        _prepare_empty(server, Path(location + ".clone"))
        argv.extend(["-T", "{0}={1}.clone".format(location.replace("=", "\\="), location.replace("=", "\\="))])
    if terms.max_rate:
        argv.append("--max-rate={0}".format(terms.max_rate))
    server.run(argv, timeout_seconds=terms.timeout_seconds)
    return aside


def _choose_source(server: Server, peer: Peer, terms: CloneTerms, database_bytes: int) -> Source:
    """Decide what is copied. Where that is to be found out, a repository that does not answer is a reason to copy the primary."""
    if not terms.repository_command or terms.copy_from == PRIMARY:
        return Source(PRIMARY, "that is what was asked for" if terms.repository_command else "there is no repository")
    stanza = next((word.partition("=")[2] for word in terms.repository_command if word.startswith("--stanza=")), "")
    with connect_replication(server, peer) as replication:
        system = identify(replication)
    try:
        said = server.run([*terms.repository_command, "--output=json", "info"], timeout_seconds=60).stdout
        backups = parse_backups(said, stanza, str(system["systemid"]))
    except (PgOpsError, OSError) as error:  # the latter where pgBackRest is not installed
        if terms.copy_from != AUTO:
            raise
        return Source(PRIMARY, "the repository cannot be asked: {0}".format(error))
    return choose_source(
        terms.copy_from, backups, database_bytes=database_bytes, current_lsn=str(system["xlogpos"]), timeline=int(system["timeline"]),
        has_tablespaces=bool(_tablespaces(server, peer)),
    )


def _copy_the_data(server: Server, peer: Peer, terms: CloneTerms, database_bytes: int) -> tuple[list[tuple[str, str]], Source]:
    """Make the copy; returns the tablespaces that were copied aside and what was copied in the end."""
    _end_leftovers(server)
    source = _choose_source(server, peer, terms, database_bytes)
    if source.name == REPOSITORY:
        try:
            return copy_repository(server, peer, terms), source
        except PgOpsError as error:
            if terms.copy_from != AUTO or error.reason == "program_timeout":
                raise
            source = Source(PRIMARY, "the copy from the repository failed: {0}".format(error.message))
    return copy_primary(server, peer, terms), source


def _end_leftovers(server: Server) -> None:
    """End what a killed run left behind: it would write into this copy and clean it away at its end."""
    place = str(clone_directory(server))
    for program, directory in (("pg_basebackup", place), ("pg_rewind", server.data_directory), ("pgbackrest", "--pg1-path={0}".format(place))):
        server.end_leftover(program, directory)


def copy_repository(server: Server, peer: Peer, terms: CloneTerms) -> list[tuple[str, str]]:
    """Have pgBackRest restore its newest backup into the directory beside the data; WAL since then comes by restore_command.

    Raises ServerError where the primary has tablespaces, whose places pgBackRest would fill, and when the backup is another system's.
    """
    target = clone_directory(server)
    place = "--pg1-path={0}".format(target)
    if _tablespaces(server, peer):
        raise ServerError(
            "a primary with tablespaces cannot be copied from the repository", reason="tablespaces", observed="tablespaces on " + peer.name,
            required="none", hint="Set pg_archive_standby_source to primary.",
        )
    server.write_note("clone", {"phase": "copying", "from": "repository", "tablespaces": [], "direct": []})
    _prepare_empty(server, target)
    server.run([*terms.repository_command, place, "--type=none", "--log-level-console=error", "restore"], timeout_seconds=terms.timeout_seconds)
    with connect_replication(server, peer) as replication:
        wanted = str(identify(replication)["systemid"])
    found = Server(**{**server.__dict__, "data_directory": str(target)}).control_data().system_identifier
    if found != wanted:
        raise ServerError(
            "the repository has another system's backup", reason="foreign_backup", observed="system identifier " + found, required=wanted,
            hint="Check pg_archive_stanza, or set pg_archive_standby_source to primary.",
        )
    return []


def _write_settings(server: Server, peer: Peer, terms: CloneTerms, directory: Path) -> None:
    """Make the copy a standby of `peer` before it gets the data directory's name: it must never open read-write."""
    copy = Server(**{**server.__dict__, "data_directory": str(directory)})
    copy.set_auto_conf(upstream_settings(server, peer, host_name=terms.host_name, slot_name=terms.slot_name))
    copy.write_standby_signal()
    restore_node_files(server, directory)


def swap_in(server: Server, aside: list[tuple[str, str]], stamp: str) -> str:
    """Give the copy the data directory's name; returns where the old one is kept, empty when there was none.

    Each rename is skipped when an earlier run has done it already.
    """
    kept = kept_directory(server, stamp)
    copy = clone_directory(server)
    if copy.is_dir() and server.data().is_dir():
        os.rename(server.data_directory, str(kept))
    for oid, location in aside:
        fresh, old = location + ".clone", "{0}.kept.{1}".format(location, stamp)
        if os.path.isdir(fresh):
            if os.path.isdir(location):
                os.rename(location, old)
            os.rename(fresh, location)
        base = copy if copy.is_dir() else server.data()
        _relink(server, base / "pg_tblspc" / oid, location)
    if copy.is_dir():
        os.rename(str(copy), server.data_directory)
    sync_directory(server.data().parent)
    return str(kept) if kept.is_dir() else ""


def _relink(server: Server, link: Path, location: str) -> None:
    if link.is_symlink() and os.readlink(str(link)) != location:
        link.unlink()
        link.symlink_to(location)
        server.own(link)


def finish_interrupted(server: Server) -> Optional[str]:
    """Finish the swap of a copy that was complete when an earlier run ended; None when there is nothing to finish."""
    note = server.read_note("clone")
    if note.get("phase") != "complete":
        return None
    if server.postmaster_pid():  # the service manager knows nothing of the swap
        server.stop()
    kept = swap_in(server, list(note.get("tablespaces", [])), str(note["stamp"]))
    server.remove_note("clone")
    return kept


def _set_configuration_aside(server: Server, peer: Peer) -> None:
    """Save the node's configuration for the copy.

    Not behind an unfinished rewind: these files are the source's, the node's own were saved before it. And not a stranger's: its
    configuration stays with its data, and the copy brings the primary's, which this standby must be able to stand in for.
    """
    if server.read_note("rewind"):
        return
    if server.exists():
        with connect_replication(server, peer) as replication:
            identifier = str(identify(replication)["systemid"])
        if server.control_data().system_identifier != identifier:
            shutil.rmtree(str(server.state("configuration")), ignore_errors=True)
            return
    save_node_files(server)


def clone(server: Server, peer: Peer, terms: CloneTerms) -> dict[str, Any]:
    """Copy the primary and put the copy in place of what is here; the server must be down. Raises ServerError or SqlError."""
    server.ensure_state_directory()
    size = require_room(server, peer)
    _set_configuration_aside(server, peer)
    started = time.monotonic()
    aside, source = _copy_the_data(server, peer, terms, size)
    seconds = time.monotonic() - started
    _write_settings(server, peer, terms, clone_directory(server))
    stamp = utc_stamp()
    server.write_note("clone", {"phase": "complete", "from": peer.name, "tablespaces": aside, "stamp": stamp})
    kept = swap_in(server, aside, stamp)
    server.remove_note("clone")
    server.remove_note("rewind")
    return {
        "kept_directory": kept, "database_bytes": size, "copy_seconds": round(seconds, 3), "copied_from": source.name, "copied_because": source.why,
    }
