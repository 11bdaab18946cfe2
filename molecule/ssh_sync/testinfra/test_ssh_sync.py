# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scenario's machines look like from inside after set-up, role changes and new secrets."""

from __future__ import annotations

from typing import Any

import pytest

NAMES = ["pgsql1", "pgsql2", "pgsql3"]
testinfra_hosts = [f"lxc://ssh-sync-{name}" for name in NAMES]
TLS = "/var/lib/postgresql/17/main.pg_ops/tls"


def sql(host: Any, statement: str) -> str:
    answer: str = host.check_output(f'su postgres -c "psql -XAtq -d postgres -c \\"{statement}\\""')
    return answer.strip()


@pytest.fixture(name="primary")
def is_primary(host: Any) -> bool:
    return sql(host, "SELECT pg_is_in_recovery()") == "f"


def name_of(host: Any) -> str:
    found: str = host.check_output("hostname").removeprefix("ssh-sync-")
    return found


def test_every_node_names_all_others_as_synchronous(host: Any) -> None:
    others = ", ".join(f'"{name}"' for name in NAMES if name != name_of(host))
    assert sql(host, "SHOW synchronous_standby_names") == f"FIRST 1 ({others})"
    assert sql(host, "SHOW synchronous_commit") == "remote_apply"


def test_standbys_confirm_over_tls(host: Any, primary: bool) -> None:
    if primary:
        rows = sql(host, "SELECT application_name, sync_state, ssl FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) ORDER BY 1").splitlines()
        others = [name for name in NAMES if name != name_of(host)]
        assert rows == [f"{others[0]}|sync|t", f"{others[1]}|potential|t"]
    else:
        assert "sslmode=verify-full" in sql(host, "SHOW primary_conninfo")


def test_peers_are_admitted_encrypted_only(host: Any) -> None:
    lines = [line.split() for line in host.file("/etc/postgresql/17/main/pg_hba.conf").content_string.splitlines() if line and line[0] != "#"]
    ours = [line for line in lines if line[2] in ("replicator", "rewinder")]
    assert len(ours) == 4
    assert {line[0] for line in ours} == {"hostssl"}
    assert {line[-1] for line in ours} == {"scram-sha-256"}


def test_key_is_the_server_s_alone(host: Any) -> None:
    for name in ("server.pem", "pair/10_key.pem"):
        file = host.file(f"{TLS}/{name}")
        assert (file.user, file.mode) == ("postgres", 0o600)
    assert host.file(TLS).mode == 0o700
    assert not host.file(f"{TLS}/ca.key").exists


def test_certificate_has_the_host_s_name_and_address(host: Any) -> None:
    address = host.check_output("hostname -I").split()[0]
    for name in (f"-verify_ip {address}", f"-verify_hostname {name_of(host)}"):
        checked = host.run(f"openssl verify -CAfile {TLS}/ca.crt {name} {TLS}/pair/20_certificate.pem")
        assert checked.rc == 0, checked.stderr


def test_locale_and_encoding_are_those_of_the_inventory(host: Any) -> None:
    assert sql(host, "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = 'postgres'") == "UTF8|C"


def test_packages_have_the_repository_of_the_inventory(host: Any) -> None:
    text = host.file("/etc/apt/sources.list.d/vendor.sources").content_string
    assert "Suites: trixie" in text and "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in text
    assert host.package("postgresql-17").is_installed


def test_segments_are_in_the_archive_that_is_the_server_s_alone(host: Any, primary: bool) -> None:
    program = host.file("/usr/local/lib/pg_ops/archive_wal.py")
    assert (program.user, program.mode) == ("root", 0o644)
    directory = host.file("/var/lib/postgresql/archive")
    assert (directory.user, directory.mode) == ("postgres", 0o700)
    if primary:
        assert sql(host, "SELECT archived_count > 0, failed_count FROM pg_stat_archiver") == "t|0"
        last = sql(host, "SELECT last_archived_wal FROM pg_stat_archiver")
        assert host.file(f"/var/lib/postgresql/archive/{last}").mode == 0o600


def test_the_archive_takes_no_other_segment_of_the_same_name(host: Any, primary: bool) -> None:
    if not primary:
        pytest.skip("a standby archives nothing")
    command = sql(host, "SHOW archive_command")
    last = sql(host, "SELECT last_archived_wal FROM pg_stat_archiver")
    script = f"cd /tmp && head -c 16777216 /dev/urandom > {last} && " + command.replace("%p", f"/tmp/{last}").replace("%f", last)
    refused = host.run("su postgres -c %s", script)
    assert refused.rc == 1 and "is not overwritten" in refused.stderr, refused
