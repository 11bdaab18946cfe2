# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_cluster_init and pg_service on real servers: making, starting and stopping them."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from real_servers import ACCOUNT, Node, Pair, as_account, digest, end_processes, local_superuser, own, process_ids, start_module, wait_for, working_directory


def test_init_makes_a_server_with_checksums_and_scram(absent: Node) -> None:
    checked = absent.call("pg_cluster_init", check_mode=True)
    assert checked.changed and not absent.data.exists()
    answer = absent.call("pg_cluster_init")
    assert answer.changed and answer["diff"] == checked["diff"] and answer["data_directory"] == str(absent.data)
    assert absent.control("Data page checksum version") == "1"
    assert stat.S_IMODE(absent.data.stat().st_mode) == 0o700 and absent.data.stat().st_uid == ACCOUNT.pw_uid
    lines = [line.split() for line in (absent.data / "pg_hba.conf").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert {line[-1] for line in lines} == {"peer", "scram-sha-256"}
    assert not [line for line in lines if line[1] == "replication" and line[0] != "local"]
    before = digest(absent.home)
    assert not absent.call("pg_cluster_init").changed
    assert not absent.call("pg_cluster_init", check_mode=True).changed
    assert digest(absent.home) == before


def test_init_encoding_and_locale_are_taken(absent: Node) -> None:
    assert absent.call("pg_cluster_init", encoding="LATIN1", locale="C").changed
    assert absent.call("pg_service").changed
    with local_superuser(absent) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database WHERE datname = 'postgres'")
        assert cursor.fetchone() == ("LATIN1", "C")


def test_init_directory_with_something_else_in_it_is_left_alone(absent: Node) -> None:
    absent.data.mkdir()
    (absent.data / "mine").touch()
    answer = absent.call("pg_cluster_init")
    assert "not empty" in answer.refusal("not_empty")
    assert os.listdir(absent.data) == ["mine"]


def test_init_bad_locale_is_one_clear_error_and_leaves_nothing(absent: Node) -> None:
    answer = absent.call("pg_cluster_init", locale="xx_XX.UTF-8")
    assert "locale" in answer["msg"]
    assert not absent.data.exists()
    assert absent.call("pg_cluster_init").changed


def test_init_programs_missing_is_named(absent: Node) -> None:
    assert "initdb" in absent.call("pg_cluster_init", bin_directory="/nonexistent").refusal("program_missing")


def test_init_unknown_account_is_named(absent: Node) -> None:
    assert "nobody_at_all" in absent.call("pg_cluster_init", owner="nobody_at_all").refusal("no_account")


def test_init_killed_in_the_middle_is_made_again(absent: Node) -> None:
    run = start_module("pg_cluster_init", absent.options())
    wait_for((absent.data / "PG_VERSION").exists, "the beginning of the data directory")
    run.kill()
    end_processes([pid for pid in process_ids() if working_directory(pid) == str(absent.data) or _is_initdb(pid, absent)])
    assert absent.call("pg_cluster_init").changed
    assert absent.call("pg_service").changed
    assert not absent.call("pg_cluster_init").changed


def _is_initdb(pid: int, node: Node) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(node.data).encode() in words and words[0].endswith(b"initdb")


# --- pg_service ---


def service(node: Node, state: str, *, check_mode: bool = False, **more: object):
    return node.call("pg_service", check_mode=check_mode, state=state, timeout_seconds=20, **more)


def test_service_life_in_check_mode_for_real_and_again(stopped_pair: Pair) -> None:
    node = stopped_pair.primary
    for state, running in (("started", True), ("stopped", False)):
        checked = service(node, state, check_mode=True)
        assert checked.changed and checked["running"] is running and bool(node.pid()) is not running
        answer = service(node, state)
        assert answer.changed and answer["running"] is running and answer["diff"] == checked["diff"]
        assert bool(node.pid()) is running
        assert not service(node, state).changed
    assert not service(node, "reloaded").changed and not node.pid()
    assert service(node, "restarted").changed
    first = node.pid()
    assert service(node, "restarted").changed
    assert node.pid() not in (0, first)


def test_service_reloaded_reads_the_configuration(pair: Pair) -> None:
    pair.primary.append_conf("work_mem = 77MB")
    assert service(pair.primary, "reloaded", check_mode=True).changed
    assert service(pair.primary, "reloaded").changed
    wait_for(lambda: pair.primary.sql("SHOW work_mem") == "77MB", "the reload")


def test_service_port_taken_fails_with_the_log(stopped_pair: Pair) -> None:
    node = stopped_pair.primary
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", node.port))
        taken.listen()
        answer = service(node, "started")
    assert str(node.port) in answer.refusal("start_failed")
    assert "in use" in answer["msg"]


def test_service_broken_configuration_fails_with_the_log(stopped_pair: Pair) -> None:
    stopped_pair.primary.append_conf("no_such_setting = on")
    assert "no_such_setting" in service(stopped_pair.primary, "started").refusal("start_failed")


def test_service_no_data_directory_is_named(absent: Node) -> None:
    absent.log.write_text("an old line\n", encoding="utf-8")
    answer = service(absent, "started")
    assert str(absent.data) in answer.refusal("no_data")
    assert not service(absent, "stopped").changed


def test_service_stale_pid_file_of_a_stranger_is_not_believed(stopped_pair: Pair) -> None:
    node = stopped_pair.primary
    (node.data / "postmaster.pid").write_text(f"{os.getpid()}\n{node.data}\n", encoding="utf-8")
    own(node.data)
    assert not service(node, "stopped").changed
    assert service(node, "started").changed


def test_service_client_connected_is_stopped_all_the_same(pair: Pair) -> None:
    connection = pair.primary.connect()
    assert service(pair.primary, "stopped").changed
    connection.close()


def test_service_frozen_server_does_not_stop_in_time(pair: Pair) -> None:
    pair.primary.freeze()
    answer = pair.primary.call("pg_service", state="stopped", timeout_seconds=0.5)
    answer.refusal("stop_timeout")
    assert answer["hint"]


@pytest.mark.parametrize("name", ["a b", "q'uote", "semi;colon&"], ids=["space", "quote", "shell"])
def test_service_odd_directory_names_start(stopped_pair: Pair, name: str) -> None:
    node = stopped_pair.primary
    home = node.home.rename(node.home.parent / name)
    moved = replace(node, home=home)
    run = node.home.parent / "run"
    run.mkdir()
    own(run)
    moved = replace(moved, extra={"login_unix_socket": str(run)})
    answer = service(moved, "started")
    assert answer.changed
    assert moved.is_primary()


def test_start_beside_an_empty_postmaster_pid_of_a_killed_start_succeeds(stopped_pair: Pair) -> None:
    """SIGKILL between making the file and writing into it: pg_ctl and postgres refuse such a file, and nobody else removes it."""
    server = stopped_pair.primary
    (server.data / "postmaster.pid").touch(mode=0o600)
    own(server.data)
    refused = what_pg_ctl_says(server)
    assert "empty" in refused
    assert service(server, "started").changed
    assert server.is_primary()


def what_pg_ctl_says(server: Node) -> str:
    """Return what pg_ctl says by itself."""
    done = as_account([f"{server.programs.directory}/pg_ctl", "start", "-w", "-s", "-t", "5", "-D", str(server.data), "-l", str(server.log)])
    return done.stdout + done.stderr


def test_start_leaves_an_empty_postmaster_pid_to_a_process_that_works_there(stopped_pair: Pair) -> None:
    server = stopped_pair.primary
    (server.data / "postmaster.pid").touch(mode=0o600)
    own(server.data)
    with subprocess.Popen(["sleep", "30"], cwd=server.data) as there:
        try:
            assert "empty" in str(service(server, "started").refusal("start_failed"))
            assert (server.data / "postmaster.pid").exists()
        finally:
            there.kill()
