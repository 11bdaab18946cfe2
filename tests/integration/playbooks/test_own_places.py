# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Configuration away from the data, as Debian has it: a standby gets what the primary has, and keeps its own places and what it had."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.playbooks.cluster import Cluster

PLACES = ("data_directory", "hba_file", "ident_file", "external_pid_file")


def configuration(cluster: Cluster, name: str) -> Path:
    return cluster.place(name) / "etc"


def own_places(cluster: Cluster, name: str) -> list[str]:
    etc = configuration(cluster, name)
    return [str(cluster.data(name)), str(etc / "pg_hba.conf"), str(etc / "pg_ident.conf"), str(cluster.place(name) / "main.pid")]


def make_server(cluster: Cluster, name: str) -> None:
    """Make a server with its configuration in a directory of its own."""
    argv = [cluster.program("initdb"), "-D", str(cluster.data(name)), "--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256"]
    assert cluster.run_as_owner(*argv).returncode == 0
    etc, node = configuration(cluster, name), cluster.local.nodes[name]
    (etc / "conf.d").mkdir(parents=True)
    for each in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        shutil.move(cluster.data(name) / each, etc / each)
    with (etc / "postgresql.conf").open("a", encoding="utf-8") as stream:
        stream.write(f"# made for {name}\nDATA_DIRECTORY '/nonexistent'\ninclude_dir = 'conf.d'\n")
        stream.write("".join(f"{key} = '{value}'\t# where it is\n" for key, value in zip(PLACES, own_places(cluster, name))))
        stream.write(f"unix_socket_directories = '{node.socket_directory}'\nport = {node.port}\n")
    with (etc / "pg_ident.conf").open("a", encoding="utf-8") as stream:
        stream.write(f"site {name} shopkeeper\n")
    (etc / "conf.d" / "10-site.conf").write_text(f"work_mem = '7MB'\nhba_file = '{etc}/pg_hba.conf'\n", encoding="utf-8")
    for path in (etc, *etc.rglob("*")):
        shutil.chown(path, cluster.account.pw_uid, cluster.account.pw_gid)


@pytest.mark.long
def test_standby_gets_the_primary_s_configuration_and_keeps_its_own_places(make: Callable[..., Cluster]) -> None:
    cluster = make(2)
    for name in cluster.names:
        make_server(cluster, name)
    (configuration(cluster, "pgsql2") / "conf.d" / "10-site.conf").unlink()
    cluster.pg_ctl("pgsql1", "start", "-o", f"-c config_file={configuration(cluster, 'pgsql1')}/postgresql.conf")
    inventory = {name: {"pg_config_directory": str(configuration(cluster, name))} for name in cluster.names}
    cluster.play("initial_setup", "-e", "pg_standby_replace_data=true", "-e", "pg_primary_restart=true", inventory=inventory)
    cluster.assert_replicating("pgsql1")
    for name in cluster.names:
        assert [cluster.sql(name, f"SHOW {place}") for place in PLACES] == own_places(cluster, name)
        assert cluster.sql(name, "SHOW work_mem") == "7MB"
        assert cluster.sql(name, "SELECT error FROM pg_hba_file_rules WHERE error IS NOT NULL") == ""
        assert "site pgsql1 shopkeeper\n" in (configuration(cluster, name) / "pg_ident.conf").read_text(encoding="utf-8")
    etc = configuration(cluster, "pgsql2")
    assert (etc / "conf.d" / "10-site.conf").read_text(encoding="utf-8") == "work_mem = '7MB'\n"
    [kept] = etc.glob("postgresql.conf.*~")
    assert "# made for pgsql2\n" in kept.read_text(encoding="utf-8")
    [kept] = etc.glob("pg_ident.conf.*~")
    assert "site pgsql2 shopkeeper\n" in kept.read_text(encoding="utf-8")
    again = cluster.play("initial_setup", inventory=inventory)
    assert not any(again.changed.values()), again.output
