# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_basebackup_standby on real servers: existing data is set aside, never overwritten, and an interrupted copy is made good."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils import cloning
from real_servers import (
    Answer,
    Node,
    Pair,
    adapt,
    as_account,
    digest,
    make_standby,
    new_node,
    own,
    passfile_options,
    process_ids,
    running,
    start_module,
    wait_for,
    wait_replayed,
)

NASTY = "Pg SQL'3\"\\ =.example, %s"


def copy(node: Node, primary: Node, *, check_mode: bool = False, **more: Any) -> Answer:
    return node.call_towards("pg_basebackup_standby", primary, check_mode=check_mode, **more)


def start(node: Node, primary: Node) -> None:
    """Start the copy with the port that it is to have, whatever configuration came along."""
    adapt(node.data / "postgresql.conf", {str(primary.home): str(node.home), f"port = {primary.port}": f"port = {node.port}"})
    node.start()
    wait_for(lambda: primary.sql("SELECT active FROM pg_replication_slots WHERE slot_name = %s", node.slot), "the slot's use")


def make_foreign(node: Node) -> None:
    """Put another cluster's data where the standby shall be."""
    assert node.call("pg_cluster_init").changed
    sockets = f"unix_socket_directories = '{node.home}/run'"
    node.append_conf(f"port = {node.port}\nlisten_addresses = '127.0.0.1'\n{sockets}\n# the stranger's own")


def test_basebackup_no_data_makes_a_streaming_standby(each_pair: Pair) -> None:
    primary, node = each_pair.primary, each_pair.spare
    primary.write_row(1)
    checked = copy(node, primary, check_mode=True)
    assert checked.changed and "copy of alpha" in checked["diff"]["after"] and "none" in checked["diff"]["before"]
    assert not node.data.exists()
    answer = copy(node, primary)
    assert answer.changed and answer["kept_directory"] == "" and answer["database_bytes"] > 0
    start(node, primary)
    wait_replayed(primary, node)
    assert node.numbers() == {1}
    assert not copy(node, primary).changed
    assert not copy(node, primary, check_mode=True).changed
    assert "password" not in (node.data / "postgresql.auto.conf").read_text(encoding="utf-8")
    assert node.note("clone") == {}


def test_basebackup_nasty_host_name_streams_under_it(pair: Pair) -> None:
    node = replace(pair.spare, name=NASTY, extra={"host_name": NASTY, "slot_name": pair.spare.slot})
    options = {**node.towards(pair.primary), "slot_name": pair.spare.slot}
    answer = start_module("pg_basebackup_standby", options).wait()
    assert answer.changed
    start(pair.spare, pair.primary)
    wait_for(lambda: pair.primary.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name = %s", NASTY), "the name")
    assert not start_module("pg_basebackup_standby", options).wait().changed


def test_basebackup_foreign_data_is_refused(pair: Pair) -> None:
    make_foreign(pair.spare)
    before = digest(pair.spare.data)
    for check_mode in (True, False):
        answer = copy(pair.spare, pair.primary, check_mode=check_mode)
        answer.refusal("foreign_data")
        assert str(pair.spare.data) in answer["observed"] and "replace_data" in answer["hint"]
    assert digest(pair.spare.data) == before


def test_basebackup_replace_data_stops_and_keeps_the_old_directory(pair: Pair) -> None:
    node = pair.spare
    make_foreign(node)
    (node.data / "mine").write_text("keep me", encoding="utf-8")
    node.start()
    answer = copy(node, pair.primary, replace_data=True)
    assert answer.changed
    assert (Path(answer["kept_directory"]) / "mine").read_text(encoding="utf-8") == "keep me"
    # A stranger's configuration stays with its data: the standby must be able to stand in for its primary.
    assert "# the stranger's own" in (Path(answer["kept_directory"]) / "postgresql.conf").read_text(encoding="utf-8")
    assert "# the stranger's own" not in (node.data / "postgresql.conf").read_text(encoding="utf-8")
    assert not (node.data / "mine").exists()
    start(node, pair.primary)
    wait_replayed(pair.primary, node)
    assert not copy(node, pair.primary, replace_data=True).changed


def test_basebackup_old_primary_of_the_same_cluster_is_refused(pair: Pair) -> None:
    pair.primary.stop()
    assert pair.standby.call("pg_promote").changed
    before = digest(pair.primary.data)
    answer = copy(pair.primary, pair.standby, replace_data=True)
    answer.refusal("was_primary")
    assert digest(pair.primary.data) == before


def test_basebackup_wrong_password_is_refused_and_named(pair: Pair) -> None:
    options = passfile_options([pair.primary])
    options["passwords"]["replicator"] = "not it"
    assert pair.spare.call("pg_passfile", **options).changed
    answer = copy(pair.spare, pair.primary)
    assert "replicator" in answer.refusal("authentication")
    assert "alpha" in answer["msg"] and "not it" not in answer.text
    assert not pair.spare.data.exists()


def is_turned_away(node: Node) -> bool:
    try:
        node.connect().close()
    except psycopg2.OperationalError:
        return True
    return False


@pytest.mark.parametrize("line", ["host all all 127.0.0.1/32 reject", "host all all 127.0.0.1/32 ident"], ids=["reject", "another method"])
def test_basebackup_earlier_line_of_pg_hba_is_named_as_the_cause(pair: Pair, line: str) -> None:
    hba = pair.primary.data / "pg_hba.conf"
    hba.write_text(f"{line}\n" + hba.read_text(encoding="utf-8"), encoding="utf-8")
    pair.primary.program("pg_ctl", "reload", "-s", "-D", str(pair.primary.data))
    wait_for(lambda: is_turned_away(pair.primary), "the server to read it")
    message = copy(pair.spare, pair.primary).refusal("authentication")
    assert "An earlier line of pg_hba.conf on alpha matches first" in message
    assert not pair.spare.data.exists()


def test_basebackup_primary_down_is_refused(pair: Pair) -> None:
    pair.primary.stop()
    copy(pair.spare, pair.primary).refusal("peer_unreachable")


def test_basebackup_slot_missing_is_refused_with_the_remedy(pair: Pair) -> None:
    pair.primary.sql("SELECT pg_drop_replication_slot(%s)", pair.spare.slot)
    answer = copy(pair.spare, pair.primary)
    assert pair.spare.slot in answer.refusal("slot_missing")
    assert answer["hint"]
    assert not pair.spare.data.exists()


def basebackups_of(node: Node) -> list[int]:
    return running("pg_basebackup", f"{node.data}.clone")


def test_basebackup_killed_in_the_middle_is_made_again(pair: Pair) -> None:
    """The module is killed, pg_basebackup lives on: it would spoil the second copy, and clean it away at its own end."""
    node = pair.spare
    run = start_module("pg_basebackup_standby", node.towards(pair.primary, max_rate="2M"))
    wait_for(lambda: basebackups_of(node) and list(Path(f"{node.data}.clone").glob("base/*/*")), "the copy's beginning")
    run.kill()
    assert node.note("clone")["phase"] == "copying"
    assert not node.data.exists()
    answer = copy(node, pair.primary)
    assert answer.changed, answer.text
    assert basebackups_of(node) == []
    start(node, pair.primary)
    wait_replayed(pair.primary, node)
    node.program("pg_controldata", "-D", str(node.data))
    assert not Path(f"{node.data}.clone").exists()


def test_basebackup_cut_off_does_not_take_the_room_of_the_next(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    node, more = pair.spare, 20 << 30
    monkeypatch.setattr(cloning, "CLONE_HEADROOM_BYTES", shutil.disk_usage(node.home).free + more)
    before = node.call("pg_node_info")["node"]["disk_free_bytes"]
    assert copy(node, pair.primary).refusal("disk_too_small")
    part = Path(f"{node.data}.clone", "base", "1", "1234")
    part.parent.mkdir(parents=True)
    node.write_note("clone", {"phase": "copying", "from": "alpha", "tablespaces": [], "direct": []})
    with part.open("wb") as stream:
        stream.truncate(2 * more)
    assert node.call("pg_node_info")["node"]["disk_free_bytes"] - before > more
    assert copy(node, pair.primary).changed
    assert not Path(f"{node.data}.clone").exists()


def test_basebackup_directory_in_the_way_that_is_none_of_ours_is_not_removed(pair: Pair) -> None:
    """Somebody's own copy, made by hand before something dangerous."""
    theirs = Path(f"{pair.spare.data}.clone", "precious")
    theirs.parent.mkdir(parents=True)
    theirs.write_text("x", encoding="utf-8")
    for check_mode in (True, False):
        assert f"{theirs.parent} is in the way" in copy(pair.spare, pair.primary, check_mode=check_mode).refusal("clone_directory_taken")
        assert theirs.read_text(encoding="utf-8") == "x" and not pair.spare.data.exists() and pair.spare.note("clone") == {}
    theirs.rename(theirs.parent.parent / "precious")  # an empty directory is in nobody's way
    assert copy(pair.spare, pair.primary).changed


def test_basebackup_given_up_at_a_promotion_is_removed_by_the_next_copy(pair: Pair) -> None:
    node = pair.standby
    part = Path(f"{node.data}.clone", "base")
    part.mkdir(parents=True)
    own(part.parent)
    node.write_note("clone", {"phase": "complete", "from": "alpha", "tablespaces": [], "stamp": "20260131T235959Z"})
    pair.primary.crash()
    assert node.call("pg_promote", slots=[pair.primary.slot]).changed
    assert node.note("clone") == {"phase": "given up"}
    node.stop()
    node.data.rename(node.home / "moved")
    pair.primary.start()
    assert copy(node, pair.primary).changed
    assert not part.exists() and node.note("clone") == {}


def test_basebackup_running_server_that_a_copy_has_no_room_beside_is_not_stopped(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    make_foreign(pair.spare)
    pair.spare.start()
    monkeypatch.setattr(cloning, "CLONE_HEADROOM_BYTES", 1 << 60)
    assert copy(pair.spare, pair.primary, replace_data=True).refusal("disk_too_small")
    assert pair.spare.pid()


def unswap(node: Node, pair: Pair, *, old: bool) -> str:
    """Bring about what a run leaves that dies in the swap: before the first rename (old), or between the two."""
    make_standby(node, pair.primary)
    node.stop()
    node.data.rename(f"{node.data}.clone")
    stamp = "20260131T235959Z"
    if old:
        make_foreign(node)
    node.write_note("clone", {"phase": "complete", "from": "alpha", "tablespaces": [], "stamp": stamp})
    return f"{node.data}.kept.{stamp}"


@pytest.mark.parametrize("old", [True, False], ids=["before_first_rename", "between_renames"])
def test_basebackup_killed_in_the_swap_is_finished(pair: Pair, old: bool) -> None:
    kept = unswap(pair.spare, pair, old=old)
    answer = copy(pair.spare, pair.primary)
    assert answer.changed
    assert os.path.isdir(kept) is old
    assert pair.spare.note("clone") == {}
    pair.spare.start()
    wait_replayed(pair.primary, pair.spare)


def test_basebackup_killed_in_the_swap_and_old_server_started_since_is_finished(pair: Pair) -> None:
    kept = unswap(pair.spare, pair, old=True)
    pair.spare.start()  # the service manager knows nothing of the swap
    assert copy(pair.spare, pair.primary).changed
    assert os.path.isdir(kept)
    assert not [pid for pid in process_ids() if os.path.exists(f"/proc/{pid}/cwd") and os.readlink(f"/proc/{pid}/cwd") == kept]
    pair.spare.start()
    wait_replayed(pair.primary, pair.spare)


@pytest.mark.parametrize("delay", [0.1, 0.25, 0.4])
def test_basebackup_killed_at_any_time_and_run_again_ends_as_standby(pair: Pair, delay: float) -> None:
    make_foreign(pair.spare)
    run = start_module("pg_basebackup_standby", pair.spare.towards(pair.primary, replace_data=True))
    with contextlib.suppress(AssertionError):
        wait_for(lambda: False, "its time", delay)
    run.kill()
    assert not copy(pair.spare, pair.primary, replace_data=True).failed
    assert "# the stranger's own" not in (pair.spare.data / "postgresql.conf").read_text(encoding="utf-8")
    assert len(list(pair.spare.home.glob("data.kept.*"))) == 1
    start(pair.spare, pair.primary)
    wait_replayed(pair.primary, pair.spare)


# --- tablespaces ---


def test_basebackup_tablespace_that_a_server_here_uses_is_refused(pair: Pair) -> None:
    """On one host both would have it at one path: to set it aside would take it from the primary."""
    location = pair.primary.home / "space"
    location.mkdir()
    own(location)
    pair.primary.sql(f"CREATE TABLESPACE space LOCATION '{location}'")
    pair.primary.sql("CREATE TABLE spaced TABLESPACE space AS SELECT 1")
    answer = copy(pair.spare, pair.primary)
    assert str(location) in answer.refusal("tablespace_in_use")
    assert not pair.spare.data.exists()
    assert pair.primary.sql("SELECT count(*) FROM spaced") == 1
    assert os.listdir(location)


@pytest.fixture
def private_primary(stopped_pair: Pair) -> Pair:
    """A primary with a tablespace at a path that only it sees: as if it were on another host."""
    pair, location = stopped_pair, stopped_pair.primary.home.parent / "a space=1"
    inside = pair.primary.home / "inside"
    for path in (location, inside):
        path.mkdir()
        own(path)
    if subprocess.run(["unshare", "-m", "mount", "--bind", str(inside), str(location)], capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount")
    command = f"""mount --bind "{inside}" "{location}" && exec setpriv --reuid {location.stat().st_uid} --clear-groups --regid {location.stat().st_gid} \
      {pair.primary.programs.directory}/pg_ctl start -w -s -D {pair.primary.data} -l {pair.primary.log}"""
    subprocess.run(["unshare", "-m", "sh", "-c", command], check=True, cwd="/", stdout=subprocess.DEVNULL)
    pair.primary.sql(f"CREATE TABLESPACE space LOCATION '{location}'")
    pair.primary.sql("CREATE TABLE spaced TABLESPACE space AS SELECT 1 AS one")
    assert os.listdir(inside) and not os.listdir(location)
    return pair


def test_basebackup_tablespace_is_copied_and_replaced(private_primary: Pair) -> None:
    pair = private_primary
    location = pair.primary.home.parent / "a space=1"
    assert copy(pair.spare, pair.primary).changed
    assert len(os.listdir(location)) == 1
    # The data directory is lost, another cluster's is there instead, and the tablespace's place is full.
    shutil.rmtree(pair.spare.data)
    make_foreign(pair.spare)
    assert copy(pair.spare, pair.primary, replace_data=True).changed
    assert len(list(location.parent.glob(f"{location.name}.kept.*"))) == 1
    start(pair.spare, pair.primary)
    wait_replayed(pair.primary, pair.spare)
    assert pair.spare.sql("SELECT one FROM spaced") == 1
    assert [os.readlink(link) for link in (pair.spare.data / "pg_tblspc").iterdir()] == [str(location)]


def test_basebackup_killed_with_tablespace_half_copied_is_made_again(private_primary: Pair) -> None:
    pair = private_primary
    location = pair.primary.home.parent / "a space=1"
    pair.primary.sql("CREATE TABLE bulky TABLESPACE space AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)")
    run = start_module("pg_basebackup_standby", pair.spare.towards(pair.primary, max_rate="2M"))
    wait_for(lambda: os.listdir(location), "the tablespace's copy")
    run.kill()
    assert copy(pair.spare, pair.primary).changed
    assert [path.name for path in location.parent.iterdir() if "kept" in path.name or "clone" in path.name] == []
    start(pair.spare, pair.primary)
    wait_replayed(pair.primary, pair.spare)
    assert pair.spare.sql("SELECT count(*) FROM bulky") == 4000


def test_rejoin_keeps_a_tablespace_that_a_copy_which_was_given_up_had_begun_to_fill(private_primary: Pair) -> None:
    """The note of that copy is still there; since then the server has made the tablespace by itself, and its files may be the only ones."""
    pair = private_primary
    location = pair.primary.home.parent / "a space=1"
    assert copy(pair.spare, pair.primary).changed
    pair.spare.write_note("clone", {"phase": "copying", "from": "alpha", "tablespaces": [], "direct": [str(location)]})
    pair.spare.write_note("rewind", {"from": "alpha"})
    files = {path.name for path in location.iterdir()}
    answer = pair.spare.call_towards("pg_rejoin", pair.primary, start_timeout_seconds=15)
    assert answer.changed and answer["action"] == "reclone", answer.text
    [kept] = location.parent.glob(f"{location.name}.kept.*")
    assert files and {path.name for path in kept.iterdir()} == files
    wait_replayed(pair.primary, pair.spare)
    assert pair.spare.sql("SELECT one FROM spaced") == 1


def test_basebackup_beside_one_that_is_under_way_waits_for_it_and_changes_nothing(pair: Pair) -> None:
    first = start_module("pg_basebackup_standby", pair.spare.towards(pair.primary, max_rate="8M"))
    wait_for(lambda: pair.spare.note("clone").get("phase") == "copying", "the first copy")
    second = start_module("pg_basebackup_standby", pair.spare.towards(pair.primary))
    assert first.wait().changed
    assert not second.wait().changed
    assert not list(pair.spare.home.glob("data.*"))


def test_basebackup_empty_place_needs_no_more_than_its_parent(pair: Pair, absent: Node) -> None:
    node = new_node("delta", pair.primary.home.parent / "delta", absent.port, pair.primary.programs)
    shutil.copytree(pair.spare.state, node.state)
    own(node.home)
    pair.primary.sql("SELECT pg_create_physical_replication_slot(%s)", node.slot)
    assert copy(node, pair.primary).changed
    assert as_account(["test", "-r", str(node.data / "PG_VERSION")]).returncode == 0
