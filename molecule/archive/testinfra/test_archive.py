# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What archive and repository look like from outside: files, accounts, timers, and what the keys may do."""

from __future__ import annotations

from typing import Any

import testinfra

NODES = [testinfra.get_host(f"lxc://archive-{name}") for name in ("pgsql1", "pgsql2")]
REPOSITORY = testinfra.get_host("lxc://archive-repo")
CONFIG = "/etc/pgbackrest/pg_ops_archive-main.conf"
SSH = "/usr/local/lib/pg_ops/pgbackrest_ssh_archive-main"


def test_keys_are_their_owners_alone() -> None:
    for host, path, owner in (*((node, "/var/lib/postgresql", "postgres") for node in NODES), (REPOSITORY, "/var/lib/pg_ops/pgbackrest", "pgbackrest")):
        key = host.file(f"{path}/.ssh/pg_ops_pgbackrest")
        assert (key.user, key.mode) == (owner, 0o600)
        assert host.file(f"{path}/.ssh/authorized_keys").mode == 0o600


def test_repository_is_its_owners_alone() -> None:
    for path in ("/var/lib/pg_ops/backup", "/var/lib/pg_ops/pgbackrest"):
        found = REPOSITORY.file(path)
        assert (found.user, found.mode) == ("pgbackrest", 0o700)
    assert REPOSITORY.check_output("find /var/lib/pg_ops/backup -perm /027 -type f | head") == ""


def test_account_of_the_repository_has_no_password() -> None:
    assert REPOSITORY.check_output("getent shadow pgbackrest").split(":")[1] in ("!", "*", "!*")


def node_key(node: Any, command: str) -> Any:
    """Run a command with the server account's key on the repository's host."""
    address = REPOSITORY.check_output("hostname -I").split()[0]
    return node.run(f"cd / && sudo -u postgres {SSH} pgbackrest@{address} {command}")


def test_nodes_key_starts_nothing_but_its_part_of_pgbackrest() -> None:
    for command in ("id", "", "cat /etc/passwd", "'pgbackrest --stanza=archive-main expire'", "'pgbackrest --remote-type=repo --stanza=other info:remote'"):
        done = node_key(NODES[0], command)
        assert done.rc != 0 and "pgbackrest_gate: the command" in done.stderr, command
        assert "uid=" not in done.stdout and "root:" not in done.stdout


def test_repositorys_key_starts_nothing_but_its_part_of_pgbackrest() -> None:
    address = NODES[0].check_output("hostname -I").split()[0]
    done = REPOSITORY.run(f"cd / && sudo -u pgbackrest {SSH} postgres@{address} psql -Atc 'SELECT 1'")
    assert done.rc != 0 and "pgbackrest_gate: the command" in done.stderr


def test_timers_are_there_for_full_and_incremental_backups() -> None:
    for kind in ("full", "incr"):
        timer = REPOSITORY.service(f"pg_ops_backup_{kind}@archive-main.timer")
        assert timer.is_running and timer.is_enabled
        assert REPOSITORY.service(f"pg_ops_backup_{kind}@archive-main.service").systemd_properties["User"] == "pgbackrest"


def test_every_node_archives_and_fetches_whatever_its_role() -> None:
    for node in NODES:
        settings = node.check_output(
            "su - postgres -c \"psql -XAtc \\\"SELECT name || '=' || setting FROM pg_settings WHERE name IN ('archive_mode', 'archive_command',"
            " 'restore_command') ORDER BY 1\\\"\""
        ).splitlines()
        assert settings[1] == "archive_mode=on"
        assert "archive-push" in settings[0] and "archive-get" in settings[2]


def test_segments_are_pushed_by_a_process_of_its_own() -> None:
    for node in NODES:
        assert "archive-async=y" in node.file(CONFIG).content_string.splitlines()
    logs = [node.file("/var/log/pgbackrest/archive-main-archive-push-async.log") for node in NODES]
    assert all("archive-push:async command end: completed successfully" in log.content_string for log in logs), "each was primary once"


def test_configuration_can_be_written_by_root_alone() -> None:
    for host in (*NODES, REPOSITORY):
        assert (host.file(CONFIG).user, host.file(CONFIG).mode) == ("root", 0o640)
        assert (host.file(SSH).user, host.file(SSH).mode) == ("root", 0o755)
        assert (host.file("/usr/local/lib/pg_ops/pgbackrest_gate.py").user, host.file("/usr/local/lib/pg_ops/pgbackrest_gate.py").mode) == ("root", 0o644)


def test_no_copy_is_left() -> None:
    for node in NODES:
        assert not node.file("/var/lib/postgresql/15/main.restored").exists
