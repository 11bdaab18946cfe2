# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A copy of the primary, made beside the data directory and swapped in: existing data is set aside, never overwritten.

Two notes tell a later run where an earlier one ended: phase 'copying' (the copy is worthless and is made again) and phase
'complete' (the swap is finished).
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.conninfo import format_conninfo
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError, sync_directory
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import Peer, connect_peer, upstream_settings

# What belongs to the node and not to its data, where the configuration lies in the data directory.
NODE_FILES = ("postgresql.conf", "pg_hba.conf", "pg_ident.conf", "conf.d")
CLONE_HEADROOM_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class CloneTerms:
    """How a copy is made; `max_rate` in pg_basebackup's words (32M), empty for as fast as it goes."""

    host_name: str
    slot_name: str
    max_rate: str = ""
    timeout_seconds: float = 86400.0


def clone_directory(server: Server) -> Path:
    """Return where the copy grows: beside the data directory, on the same file system."""
    return Path(server.data_directory.rstrip("/") + ".clone")


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


def require_space(server: Server, peer: Peer) -> int:
    """Return the size of the primary in bytes; raises ServerError when a copy does not fit beside what is here."""
    with connect_peer(server, peer) as session:
        needed = int(session.value("SELECT sum(pg_database_size(oid))::bigint FROM pg_database", timeout_seconds=60) or 0)
    parent = os.path.dirname(server.data_directory.rstrip("/"))
    free = shutil.disk_usage(parent if os.path.isdir(parent) else "/").free
    if free < needed + CLONE_HEADROOM_BYTES:
        raise ServerError(
            "too little disk for a copy of {0}".format(peer.name), reason="disk_too_small", observed="{0} bytes free".format(free),
            required="{0} bytes".format(needed + CLONE_HEADROOM_BYTES), hint="Free space below {0}.".format(parent),
        )
    return needed


def _tablespaces(server: Server, peer: Peer) -> list[tuple[str, str]]:
    """Return (oid, location) of the primary's tablespaces that have a place of their own."""
    with connect_peer(server, peer) as session:
        rows = session.rows("SELECT oid::text, pg_tablespace_location(oid) FROM pg_tablespace WHERE pg_tablespace_location(oid) <> ''")
    return [(str(oid), str(location)) for oid, location in rows]


def _occupied(location: str) -> bool:
    return os.path.isdir(location) and bool(os.listdir(location))


def _prepare_empty(server: Server, path: Path) -> None:
    if path.exists():
        shutil.rmtree(str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700)
    server.own(path)


def copy_primary(server: Server, peer: Peer, terms: CloneTerms) -> list[tuple[str, str]]:
    """Run pg_basebackup into the directory beside the data; returns the tablespaces that were copied aside as (oid, location)."""
    target = clone_directory(server)
    aside = [(oid, location) for oid, location in _tablespaces(server, peer) if _occupied(location)]
    server.write_note("clone", {"phase": "copying", "from": peer.name, "tablespaces": aside})
    _prepare_empty(server, target)
    conninfo = format_conninfo(
        {
            "host": peer.address, "port": str(peer.port), "user": peer.replication_user, "passfile": str(server.passfile),
            "application_name": "{0} clone".format(terms.host_name), "connect_timeout": "5",
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
    kept = swap_in(server, list(note.get("tablespaces", [])), str(note["stamp"]))
    server.remove_note("clone")
    return kept


def clone(server: Server, peer: Peer, terms: CloneTerms) -> dict[str, Any]:
    """Copy the primary and put the copy in place of what is here; the server must be down. Raises ServerError or SqlError."""
    server.ensure_state_directory()
    if server.exists():
        require_movable(server)
    size = require_space(server, peer)
    if not server.read_note("rewind"):  # behind an unfinished rewind these are the source's; the node's own were saved before it
        save_node_files(server)
    started = time.monotonic()
    aside = copy_primary(server, peer, terms)
    seconds = time.monotonic() - started
    _write_settings(server, peer, terms, clone_directory(server))
    stamp = utc_stamp()
    server.write_note("clone", {"phase": "complete", "from": peer.name, "tablespaces": aside, "stamp": stamp})
    kept = swap_in(server, aside, stamp)
    server.remove_note("clone")
    server.remove_note("rewind")
    return {"kept_directory": kept, "database_bytes": size, "copy_seconds": round(seconds, 3)}
