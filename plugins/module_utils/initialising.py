# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Making a new, empty server, or just the configuration of one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.cloning import kept_directory, utc_stamp
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conf_file import parse_conf
from ansible_collections.pg_ops.replication.plugins.module_utils.server import DEBIAN_ETC, Server, ServerError, read_verbatim

NOTE = "init"
CREATECLUSTER = "/usr/bin/pg_createcluster"


def is_debian_layout(server: Server) -> bool:
    """Whether the configuration lies where Debian's tools put it."""
    return Path(server.config_directory).parent.parent == Path(DEBIAN_ETC) and os.access(CREATECLUSTER, os.X_OK)


def has_configuration(server: Server) -> bool:
    """Whether the server's configuration is there, or comes with its data."""
    return server.config_file.is_file() or not is_debian_layout(server)


def own_places(server: Server) -> dict[str, Optional[str]]:
    """Return the settings that name this server's own files; None where it has none."""
    return {
        "data_directory": server.data_directory,
        "hba_file": str(server.hba_file),
        "ident_file": str(Path(server.config_directory, "pg_ident.conf")),
        "external_pid_file": parse_conf(read_verbatim(server.config_file)).get("external_pid_file"),
    }


def _initdb_options(server: Server, encoding: str, locale: str) -> list[str]:
    return [
        "--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256", "--encoding={0}".format(encoding), "--locale={0}".format(locale),
        "--username={0}".format(server.superuser),
    ]


def make_server(server: Server, *, encoding: str, locale: str) -> None:
    """Make an empty server; raises ServerError. Peer authentication locally, SCRAM over TCP, data checksums on."""
    server.program("initdb")
    server.end_leftover("initdb", server.data_directory)
    if is_interrupted(server):
        _set_unfinished_aside(server)
    _require_empty(server)
    parent = Path(server.state_directory).parent
    if not parent.is_dir():
        parent.mkdir(parents=True, mode=0o755)
        server.own(parent)
    server.write_note(NOTE, {"configuration": is_debian_layout(server) and not Path(server.config_directory).exists()})
    try:
        _make(server, encoding, locale)
    except ServerError:
        if not server.exists():  # initdb and pg_createcluster clean up when they fail, not when they are killed
            server.remove_note(NOTE)
        raise
    server.remove_note(NOTE)


def is_interrupted(server: Server) -> bool:
    """Whether a run died while it made the server here: what is there was never started."""
    return bool(server.read_note(NOTE)) and not server.postmaster_pid()


def _set_unfinished_aside(server: Server) -> None:
    stamp = utc_stamp()
    if server.data().is_dir():
        os.rename(server.data_directory, str(kept_directory(server, stamp)))
    if server.read_note(NOTE).get("configuration") and Path(server.config_directory).is_dir():
        shutil.rmtree(server.config_directory)  # pg_createcluster's own, and pg_lsclusters would list a copy


def _require_empty(server: Server) -> None:
    if server.data().is_dir() and any(server.data().iterdir()):
        raise ServerError(
            "the data directory {0} is not empty and holds no server".format(server.data_directory), reason="not_empty",
            observed=", ".join(sorted(os.listdir(server.data_directory))[:5]), required="no directory, or an empty one",
            hint="Look at it and move it aside.",
        )


def _make(server: Server, encoding: str, locale: str) -> None:
    if is_debian_layout(server):
        _createcluster(server, encoding, locale)
        _close_replication(server)
        return
    parent = Path(server.data_directory).parent
    if not parent.is_dir():
        parent.mkdir(parents=True, mode=0o755)
        server.own(parent)
    server.run([server.program("initdb"), "-D", server.data_directory, *_initdb_options(server, encoding, locale)], timeout_seconds=300)
    _close_replication(server)


def _close_replication(server: Server) -> None:
    """Take initdb's lines out that admit every role for replication from the loopback: only the peers stream."""
    lines = server.hba_file.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.split()[:3] != ["host", "replication", "all"]]
    server.write(server.hba_file, "".join(kept), mode=0o640)


def _createcluster(server: Server, encoding: str, locale: str) -> None:
    cluster = Path(server.config_directory).name
    argv = [
        CREATECLUSTER, "--port={0}".format(server.port), "--datadir={0}".format(server.data_directory), server.version, cluster, "--",
        *_initdb_options(server, encoding, locale),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    if done.returncode != 0:
        raise ServerError("pg_createcluster failed: {0}".format(done.stderr.strip()[-2000:]), reason="program_failed")


def make_configuration(server: Server, *, encoding: str, locale: str) -> None:
    """Make Debian's configuration directory for a server whose data will be a copy of its primary.

    pg_createcluster cannot make one without data; the empty data that it makes is removed at once, it never ran.
    """
    existed = server.exists()
    target = server
    if existed:
        target = Server(**{**server.__dict__, "data_directory": server.data_directory + ".empty"})
    _createcluster(target, encoding, locale)
    shutil.rmtree(target.data_directory)
    if existed:
        text = server.config_file.read_text(encoding="utf-8").replace(target.data_directory, server.data_directory)
        server.write(server.config_file, text, mode=0o644)
