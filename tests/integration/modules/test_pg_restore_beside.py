# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_restore_beside on real servers: two copies of one past are told apart, and nothing of the live server is touched.

The servers and their WAL are real. The repository is a directory and a script that copies from it, for pgBackRest's commands and options
that the module uses; pgBackRest itself is in molecule/archive.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils import restoring
from real_servers import Answer, Node, Pair, Ports, Run, digest, local_superuser, own, start_module

# Under its own name, as pgBackRest is: a run looks for what an earlier one has left by name and directory.
PGBACKREST = """\
#!/bin/bash
[ "$PGBACKREST_NAMED" ] || PGBACKREST_NAMED=1 exec -a "$0" /bin/bash "$0" "$@"
unset PGBACKREST_NAMED
here=${0%/*}
for word; do case $word in --pg1-path=*) path=${word#*=} ;; esac; done
case " $* " in
*" info ") exec cat "$here/info.json" ;;
*" restore ") cp -a "$here/backup/." "$path" ;;
*" archive-get "*) exec cp "$here/archive/${*: -2:1}" "${*: -1}" ;;
*) exit 1 ;;
esac
"""


@dataclass(frozen=True)
class Restorable:
    """A running primary, and a repository with a backup and the WAL up to two named points: at `later` it has one database more."""

    live: Node
    repository: Path

    @property
    def directory(self) -> Path:
        """Where the copy is made unless a test says otherwise."""
        return Path(f"{self.live.data}.restored")

    def start(self, name: str, port: int, *, check_mode: bool = False, **more: Any) -> Run:
        """Begin to restore the point of that name."""
        terms = {"target_name": name, "port": port, "stanza": "main", "config": str(self.repository / "none.conf"), "timeout_seconds": 60, **more}
        return start_module("pg_restore_beside", self.live.options(**terms), check_mode=check_mode)

    def restore(self, name: str, port: int, *, check_mode: bool = False, **more: Any) -> Answer:
        return self.start(name, port, check_mode=check_mode, **more).wait()

    def stop(self, directory: Path) -> None:
        self.live.program("pg_ctl", "stop", "-w", "-s", "-m", "fast", "-D", str(directory))

    def data_directory_on(self, port: int) -> str:
        """Return the data directory of the server that answers on a port of the live server's socket directory."""
        with local_superuser(replace(self.live, port=port)) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW data_directory")
            return str(cursor.fetchone()[0])


def fill(repository: Path, live: Node) -> None:
    """Put a backup into the repository, and behind it the WAL up to both points."""
    begun = int(time.time())
    live.program("pg_basebackup", "-h", str(live.home / "run"), "-p", str(live.port), "-D", str(repository / "backup"), "-X", "none", "-c", "fast")
    with local_superuser(live) as connection, connection.cursor() as cursor:
        for statement in ("SELECT pg_create_restore_point('earlier')", "CREATE DATABASE written_later", "SELECT pg_create_restore_point('later')",
                          "CREATE DATABASE behind_all", "SELECT pg_switch_wal()"):
            cursor.execute(statement)
    (repository / "archive").mkdir()
    for segment in live.data.glob("pg_wal/0*"):
        shutil.copy2(segment, repository / "archive")
    backup = {
        "label": "20260131-110000F", "type": "full", "database": {"id": 1}, "timestamp": {"start": begun, "stop": int(time.time())},
        "info": {"size": 30_000_000},
    }
    system = int(live.control("Database system identifier"))
    info = [{"name": "main", "db": [{"id": 1, "system-id": system}], "backup": [backup], "archive": []}]
    (repository / "info.json").write_text(json.dumps(info), encoding="utf-8")


@pytest.fixture
def past(stopped_pair: Pair, spot: Path, monkeypatch: pytest.MonkeyPatch) -> Restorable:
    """A primary that runs and can be restored."""
    live, repository = stopped_pair.primary, spot / "repository"
    live.start()
    repository.mkdir()
    own(repository)
    fill(repository, live)
    program = repository / "pgbackrest"
    program.write_text(PGBACKREST, encoding="utf-8")
    program.chmod(0o755)
    own(repository)
    monkeypatch.setattr(restoring, "RestoreTerms", functools.partial(restoring.RestoreTerms, program=str(program)))
    return Restorable(live, repository)


def test_restore_beside_a_live_server_shows_the_past_and_the_same_again_changes_nothing(past: Restorable, ports: Ports) -> None:
    port = ports()
    would = past.restore("earlier", port, check_mode=True)
    assert would.changed and not past.directory.exists()
    answer = past.restore("earlier", port)
    assert answer.changed, answer.text
    assert (answer["port"], answer["directory"], answer["databases"]) == (port, str(past.directory), ["postgres"])
    before = digest(past.directory / "base")
    for check_mode in (True, False):
        again = past.restore("earlier", port, check_mode=check_mode)
        assert not again.changed and again["port"] == port, again.text
    assert digest(past.directory / "base") == before
    past.stop(past.directory)
    for check_mode in (True, False):
        assert past.restore("earlier", port, check_mode=check_mode).changed
    assert past.data_directory_on(port) == str(past.directory)
    assert past.live.is_primary()


def test_restore_repeated_without_its_port_is_answered_by_that_copy_not_by_another(past: Restorable, ports: Ports) -> None:
    """Another copy, or the live server, has the port that the repeated request names: its rows would go where those of this copy should."""
    first, second, elsewhere = ports(), ports(), {"directory": f"{past.live.data}.second"}
    assert past.restore("earlier", first)["databases"] == ["postgres"]
    assert past.restore("later", second, **elsewhere)["databases"] == ["postgres", "written_later"]
    for port in (first, past.live.port, ports()):
        would = past.restore("later", port, check_mode=True, **elsewhere)
        assert (would.changed, would["port"]) == (False, second)
        again = past.restore("later", port, **elsewhere)
        assert (again.changed, again["port"], again["databases"]) == (False, second, ["postgres", "written_later"])


def test_restore_repeated_while_its_copy_is_down_and_another_has_the_port_fails(past: Restorable, ports: Ports) -> None:
    first, second, elsewhere = ports(), ports(), {"directory": f"{past.live.data}.second"}
    assert past.restore("earlier", first).changed
    assert past.restore("later", second, **elsewhere).changed
    past.stop(Path(elsewhere["directory"]))
    assert str(first) in past.restore("later", first, **elsewhere).refusal("start_failed")
    assert past.restore("later", second, **elsewhere)["databases"] == ["postgres", "written_later"]


def test_restore_where_another_server_answers_in_the_copys_place_fails(past: Restorable, ports: Ports) -> None:
    """The copy was started by hand with sockets elsewhere, so that the port leads to the live server here."""
    port = ports()
    assert past.restore("earlier", port).changed
    past.stop(past.directory)
    options = f"-p {past.live.port} -k {past.repository} -c listen_addresses="
    past.live.program("pg_ctl", "start", "-w", "-s", "-D", str(past.directory), "-l", str(past.repository / "log"), "-o", options)
    message = past.restore("earlier", port).refusal("another_server")
    assert str(past.live.port) in message
