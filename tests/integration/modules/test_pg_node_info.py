# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_node_info in every state that a server can be in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import SIGN_OF_LIFE_SECONDS
from real_servers import Node, Pair, as_account, digest, end_processes, hand_on, make_standby, running, start_module, wait_for


def info(node: Node, *, check_mode: bool = False, **more: Any) -> dict[str, Any]:
    answer = node.call("pg_node_info", check_mode=check_mode, **more)
    assert not answer.changed
    return dict(answer["node"])


def lsn(text: str) -> int:
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def test_info_absent_server(absent: Node) -> None:
    node = info(absent)
    assert node["state"] == "absent" and node["port_taken_by"] == ""
    assert node["installed_major"] == absent.programs.version and node["disk_free_bytes"] > 0
    assert not absent.state.exists()


def test_info_absent_server_port_taken_by_another_program(absent: Node) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", absent.port))
        taken.listen()
        assert info(absent)["port_taken_by"]


def test_info_running_pair(each_pair: Pair) -> None:
    pair = each_pair
    pair.level()
    standby, primary = info(pair.standby), info(pair.primary, roles=["replicator", "nobody_else"], sizes=True)
    assert (primary["state"], primary["role"], standby["state"], standby["role"]) == ("running", "primary", "running", "standby")
    assert primary["system_identifier"] == standby["system_identifier"] == pair.primary.control("Database system identifier")
    assert primary["timeline"] == standby["timeline"] == 1
    assert primary["roles"] == ["replicator"] and primary["data_bytes"] > 10_000_000
    assert [sender["application_name"] for sender in primary["senders"]] == ["beta"]
    assert {slot["name"]: slot["active"] for slot in primary["slots"]} == {pair.standby.slot: True, pair.spare.slot: False}
    assert primary["data_checksums"] and primary["wal_log_hints"] and primary["settings"]["password_encryption"] == "scram-sha-256"
    assert standby["receiver"]["status"] == "streaming" and standby["upstream"]["port"] == pair.primary.port
    assert standby["upstream"]["slot_name"] == pair.standby.slot and not standby["replay_paused"]
    assert lsn(standby["replay_lsn"]) <= lsn(primary["current_lsn"])
    text = json.dumps([primary, standby])
    assert "passfile" not in text and "SCRAM" not in text


def test_info_names_what_a_switchover_waits_for(pair: Pair) -> None:
    primary = pair.primary
    seen = info(primary)
    quiet = (0, 0, False, 0)
    assert (seen["prepared_transactions"], seen["longest_transaction_seconds"], seen["backup_in_progress"], seen["archive_ready_files"]) == quiet
    with contextlib.closing(primary.connect()) as prepared, contextlib.closing(primary.connect()) as session, prepared.cursor() as cursor:
        cursor.execute("CREATE TABLE undecided (); PREPARE TRANSACTION 'undecided'")
        session.cursor().execute("SELECT 1")
        time.sleep(0.2)
        (primary.data / "pg_wal" / "archive_status" / "000000010000000000000001.ready").touch()
        seen = info(primary)
        assert seen["prepared_transactions"] == 1 and 0.2 <= seen["longest_transaction_seconds"] < 60
        assert not seen["backup_in_progress"] and seen["archive_ready_files"] == 1
        session.rollback()
        session.cursor().execute("SET application_name = 'pgBackRest [backup]'")  # so it names its session; no progress is shown of it
        assert info(primary)["backup_in_progress"]
    primary.sql("ROLLBACK PREPARED 'undecided'")
    wait_for(lambda: not info(primary)["backup_in_progress"], "the session's end")  # or it is taken for the copy, which then begins after it was killed
    copying = start_module("pg_basebackup_standby", pair.spare.towards(primary, max_rate="2M"))
    wait_for(lambda: info(primary)["backup_in_progress"], "the copy's beginning")
    copying.kill()

    def is_over() -> bool:
        end_processes(running("pg_basebackup", f"{pair.spare.data}.clone"))  # again: it may just have forked, and the child holds its connections
        return not info(primary)["backup_in_progress"]

    wait_for(is_over, "the copy's end")


def test_info_server_that_was_started_since_has_forgotten_that_it_was_told_to_promote(pair: Pair) -> None:
    standby = pair.standby
    standby.write_note("pending", {"operation": "failover", "source": "alpha", "target": "beta", "phase": "promoting"})
    assert info(standby)["pending"]["phase"] == "promoting"
    time.sleep(1.1)  # the start is known to the second
    standby.stop()
    standby.start()
    assert info(standby)["pending"] == {"operation": "failover", "source": "alpha", "target": "beta"}


def test_info_says_that_a_running_server_has_not_read_its_files(pair: Pair) -> None:
    """What a run leaves that was killed between writing a file and the reload."""
    assert info(pair.primary)["configuration_unread"] is False
    with (pair.primary.data / "pg_hba.conf").open("a", encoding="utf-8") as stream:
        stream.write("# a line\n")
    assert info(pair.primary)["configuration_unread"] is True
    read = pair.primary.sql("SELECT pg_conf_load_time()")
    assert pair.primary.call("pg_service", state="reloaded").changed
    wait_for(lambda: pair.primary.sql("SELECT pg_conf_load_time()") > read, "the reload")
    assert info(pair.primary)["configuration_unread"] is False


def test_info_standby_whose_replay_is_paused(pair: Pair) -> None:
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    answer = info(pair.standby)
    assert answer["replay_paused"] and answer["settings_too_low"] == {}


def test_info_standby_whose_replay_stopped_at_a_setting_that_its_primary_has_more_of(pair: Pair) -> None:
    """To resume would stop the server; what helps is the setting and a restart."""
    pair.primary.append_conf("max_connections = 40")
    pair.primary.stop()
    pair.primary.start()
    wait_for(lambda: pair.standby.sql("SELECT pg_is_wal_replay_paused()"), "the pause")
    assert info(pair.standby)["settings_too_low"] == {"max_connections": 40}
    pair.standby.sql("ALTER SYSTEM SET max_connections = 40")
    pair.standby.stop()
    pair.standby.start()
    number = pair.primary.write_row(77)
    pair.level()
    answer = info(pair.standby)
    assert number and not answer["replay_paused"] and "settings_too_low" not in answer


def test_info_check_mode_touches_nothing(stopped_pair: Pair) -> None:
    before = digest(stopped_pair.primary.home)
    checked, done = info(stopped_pair.primary, check_mode=True), info(stopped_pair.primary)
    assert {**checked, "disk_free_bytes": 0} == {**done, "disk_free_bytes": 0}
    assert digest(stopped_pair.primary.home) == before


def test_info_stopped_servers(stopped_pair: Pair) -> None:
    primary, standby = info(stopped_pair.primary), info(stopped_pair.standby)
    assert (primary["state"], primary["role"], primary["control_state"]) == ("stopped", "primary", "shut down")
    assert (standby["state"], standby["role"], standby["control_state"]) == ("stopped", "standby", "shut down in recovery")
    assert primary["checkpoint_lsn"] == stopped_pair.primary.control("Latest checkpoint location")
    assert standby["upstream"]["port"] == stopped_pair.primary.port
    # What set-up must not lower. The standby's control file says it of its primary.
    kept = {"wal_level": stopped_pair.primary.control("wal_level setting"), "max_wal_senders": stopped_pair.primary.control("max_wal_senders setting")}
    kept["max_replication_slots"] = "10"
    assert {name: primary["settings"].get(name) for name in kept} == kept and not set(kept) & set(standby["settings"])


def test_info_stopped_standby_knows_its_delay(stopped_pair: Pair) -> None:
    node = stopped_pair.standby
    assert info(node)["replay_delay_ms"] == 0
    node.append_conf("recovery_min_apply_delay = '5min'")
    assert info(node)["replay_delay_ms"] == 300000
    node.start()
    assert info(node)["replay_delay_ms"] == 300000


def end_by_waldump(node: Node, start: str) -> int:
    """Return where pg_waldump's last record begins."""
    text = node.program("pg_waldump", "-p", str(node.data / "pg_wal"), "-s", start, check=False)
    return lsn(text.splitlines()[-1].split("lsn: ")[1].split(",")[0])


def test_info_crashed_primary_knows_the_end_of_its_wal(pair: Pair) -> None:
    for number in range(1, 40):
        pair.primary.write_row(number)
    pair.primary.sql("SELECT pg_switch_wal()")
    pair.primary.sql("CREATE TABLE bulk AS SELECT repeat('x', 500) FROM generate_series(1, 2000)")
    pair.primary.crash()
    node = info(pair.primary)
    assert (node["state"], node["role"]) == ("crashed", "primary")
    last = end_by_waldump(pair.primary, node["redo_lsn"])
    # An upper bound, and no further than the pages that were begun.
    assert last < lsn(node["wal_end_lsn"]) <= last + 3 * 8192


def test_info_wal_end_is_no_recycled_segments_end(pair: Pair) -> None:
    for _each in range(5):
        pair.primary.sql("SELECT pg_logical_emit_message(false, 'x', repeat('y', 9000)); SELECT pg_switch_wal()")
        pair.primary.sql("CHECKPOINT")
    pair.primary.crash()
    node = info(pair.primary)
    last = end_by_waldump(pair.primary, node["redo_lsn"])
    assert last < lsn(node["wal_end_lsn"]) <= last + 2 * 8192


def test_info_crashed_standby(pair: Pair) -> None:
    pair.standby.crash()
    node = info(pair.standby)
    assert (node["state"], node["role"], node["control_state"]) == ("crashed", "standby", "in archive recovery")


def wait_for_silence(pair: Pair) -> None:
    """Wait until the standby's last message from its idle primary is no sign of life any more, and no other is under way."""
    age = "SELECT extract(epoch FROM clock_timestamp() - last_msg_receipt_time) FROM pg_stat_wal_receiver"
    wait_for(lambda: pair.standby.sql(age) > SIGN_OF_LIFE_SECONDS + 1, "the primary to say nothing")


def test_info_standby_of_an_idle_primary_asks_it_for_a_sign_of_life(pair: Pair) -> None:
    wait_for_silence(pair)
    assert 0 <= info(pair.standby)["receiver"]["silent_seconds"] < SIGN_OF_LIFE_SECONDS
    # One that refuses the connection is alive too, or one whose certificate has a fault.
    (pair.standby.state / "tls").mkdir()
    (pair.standby.state / "tls" / "ca.crt").write_text("none\n")
    assert 0 <= info(pair.standby, peer_ssl_mode="require")["receiver"]["silent_seconds"] < SIGN_OF_LIFE_SECONDS
    # One that asks for a password which we do not have.
    passfile = pair.standby.state / "passfile"
    passfile.rename(passfile.with_suffix(".aside"))
    assert 0 <= info(pair.standby)["receiver"]["silent_seconds"] < SIGN_OF_LIFE_SECONDS
    passfile.with_suffix(".aside").rename(passfile)
    # One that has no process left for us.
    as_account(["prlimit", "--pid", str(pair.primary.pid()), "--nproc=1:"])
    assert 0 <= info(pair.standby)["receiver"]["silent_seconds"] < SIGN_OF_LIFE_SECONDS
    assert 0 <= info(pair.standby, peer_ssl_mode="require")["receiver"]["silent_seconds"] < SIGN_OF_LIFE_SECONDS
    assert "could not fork" in pair.primary.log.read_text(encoding="utf-8")
    pair.primary.append_conf("max_wal_senders = 1")
    pair.primary.stop()
    pair.primary.start()
    wait_for(lambda: pair.standby.sql("SELECT status FROM pg_stat_wal_receiver") == "streaming", "the standby to stream again")
    wait_for_silence(pair)
    assert 0 <= info(pair.standby)["receiver"]["silent_seconds"] < SIGN_OF_LIFE_SECONDS


def test_info_standby_of_a_frozen_primary_hears_nothing_within_the_deadline(pair: Pair) -> None:
    wait_for_silence(pair)
    pair.primary.freeze()
    started = time.monotonic()
    assert info(pair.standby)["receiver"]["silent_seconds"] > SIGN_OF_LIFE_SECONDS
    assert time.monotonic() - started < 5


def test_info_standby_of_a_primary_that_froze_half_a_second_ago_does_not_take_it_for_alive(pair: Pair) -> None:
    # No playbook is faster than half a second from its start to this question.
    pair.primary.sql("CREATE TABLE heard (); DROP TABLE heard")
    pair.primary.freeze()
    time.sleep(0.5)
    assert info(pair.standby)["receiver"]["silent_seconds"] > SIGN_OF_LIFE_SECONDS


def test_info_standby_of_a_primary_that_takes_nobody_new_hears_what_it_sends(pair: Pair) -> None:
    over = threading.Event()

    def commit_now_and_then(session: Any) -> None:
        while not over.wait(0.6):
            session.cursor().execute("CREATE TABLE heard (); DROP TABLE heard")

    with contextlib.closing(pair.primary.connect()) as session:
        session.autocommit = True
        os.kill(pair.primary.pid(), signal.SIGSTOP)
        writer = threading.Thread(target=commit_now_and_then, args=(session,))
        writer.start()
        try:
            ages: list[float] = []
            while 0 not in ages and len(ages) < 50:  # 0 is what it says when the question was needed
                ages.append(info(pair.standby)["receiver"]["silent_seconds"])
                time.sleep(0.05)
        finally:
            over.set()
            writer.join()
            os.kill(pair.primary.pid(), signal.SIGCONT)
    assert 0 in ages
    assert [age for age in ages if not 0 <= age < SIGN_OF_LIFE_SECONDS] == []


def test_info_frozen_server_is_unresponsive_within_the_deadline(pair: Pair) -> None:
    pair.primary.freeze()
    started = time.monotonic()
    node = info(pair.primary, connect_timeout_seconds=1)
    assert time.monotonic() - started < 4
    assert node["state"] == "unresponsive" and "no answer in time" in node["problem"]
    assert node["role"] == "primary"


def test_info_frozen_postmaster_alone_is_unresponsive(pair: Pair) -> None:
    os.kill(pair.primary.pid(), 19)
    assert info(pair.primary, connect_timeout_seconds=1)["state"] == "unresponsive"


def test_info_promoted_server_names_its_new_timeline_before_the_checkpoint(pair: Pair) -> None:
    checkpointer = pair.standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
    os.kill(checkpointer, 19)
    pair.standby.sql("SELECT pg_promote()")
    node = info(pair.standby)
    assert node["timeline"] == 2 and node["control_timeline"] == 1
    assert "no recovery target specified" in node["timeline_history"]
    os.kill(checkpointer, 18)


def test_info_standby_on_the_new_timeline(pair: Pair) -> None:
    make_standby(pair.spare, pair.primary)
    pair.level()
    hand_on(pair)
    assert info(pair.spare)["timeline"] == 2
    pair.spare.stop()
    assert info(pair.spare)["timeline"] == 2


def test_info_fenced_server(pair: Pair) -> None:
    assert pair.primary.call("pg_fence").changed
    node = info(pair.primary)
    assert node["fenced"] and node["standby_signal"] and node["role"] == "standby" and node["state"] == "crashed"


def test_info_broken_control_file_is_one_clear_error(stopped_pair: Pair) -> None:
    path = stopped_pair.primary.data / "global" / "pg_control"
    path.write_bytes(b"\0" * path.stat().st_size)
    answer = stopped_pair.primary.call("pg_node_info")
    assert answer.failed and answer["reason"] and "Traceback" not in answer.text


def test_info_slow_start_is_starting(stopped_pair: Pair) -> None:
    """A server in crash recovery refuses connections with 57P03."""
    node = stopped_pair.standby
    node.append_conf("hot_standby = off")
    node.start()
    found = wait_for(lambda: info(node)["state"] in ("starting", "running") and info(node), "an answer")
    assert found["state"] == "starting", (found, node.log.read_text(encoding="utf-8")[-1500:])
    assert found["role"] == "standby"


def test_info_through_ansible_itself(pair: Pair) -> None:
    """The same module as Ansible ships it: packed, on an interpreter of its own."""
    arguments = json.dumps(pair.primary.options())
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(Path(__file__).parents[3] / "collections"), "ANSIBLE_LOCALHOST_WARNING": "false"}
    argv = [
        str(Path(sys.executable).with_name("ansible")), "localhost", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}",
        "-m", "pg_ops.replication.pg_node_info", "-a", arguments,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "role: primary" in done.stdout.replace('"', "")


def test_info_server_down_names_its_logical_slots(newer_pair: Pair) -> None:
    node = newer_pair.primary
    node.append_conf("wal_level = logical")
    node.stop()
    node.start()
    node.sql("SELECT pg_create_logical_replication_slot('shop', 'pgoutput', failover => true)")
    node.sql("SELECT pg_create_logical_replication_slot('plain', 'pgoutput')")
    node.crash()
    assert [(slot["name"], slot["type"]) for slot in info(node)["slots"]] == [("plain", "logical"), ("shop", "logical")]


def test_info_server_down_says_how_much_its_slots_keep(each_pair: Pair) -> None:
    node = each_pair.primary
    node.sql("SELECT pg_create_physical_replication_slot('keeps', true), pg_create_physical_replication_slot('keeps_nothing')")
    node.sql("SELECT pg_logical_emit_message(false, 'x', repeat('y', 3000000))")
    node.append_conf("max_slot_wal_keep_size = 77MB")
    node.stop()
    found = info(node)
    kept = {slot["name"]: slot["retained_bytes"] for slot in found["kept_by_slots"]}
    assert 3_000_000 < kept["keeps"] < 64 << 20 and "keeps_nothing" not in kept, kept
    assert found["configured_slot_limit"] in ("77MB", "77")
