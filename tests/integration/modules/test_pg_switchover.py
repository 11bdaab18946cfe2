# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_switchover on real servers: nothing that was acknowledged is lost, and there are never two primaries."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils import handover
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError
from real_servers import (
    TESTER_PASSWORD,
    Answer,
    Node,
    Pair,
    adapt,
    as_account,
    command_line,
    make_standby,
    start_module,
    wait_for,
    wait_replayed,
)

SHORT = {"stop_timeout_seconds": 3, "catch_up_timeout_seconds": 1.5, "promote_timeout_seconds": 3, "start_timeout_seconds": 10}
PENDING = {"operation": "switchover", "source": "alpha", "target": "beta", "phase": "armed"}


def switch(source: Node, target: Node, *, check_mode: bool = False, **more: Any) -> Answer:
    return source.call_towards("pg_switchover", target, check_mode=check_mode, **{"candidate_slots": [source.slot], **more})


def primaries(*nodes: Node) -> list[str]:
    """Return which of the running servers accept writes."""
    return [node.name for node in nodes if node.pid() and node.is_primary()]


def arm(source: Node, target: Node) -> None:
    """Leave source as a hand-over does that dies behind its first step."""
    source.write_note("pending", {**PENDING, "source": source.name, "target": target.name})
    conninfo = (target.data / "postgresql.auto.conf").read_text(encoding="utf-8").replace(str(source.port), str(target.port))
    (source.data / "postgresql.auto.conf").write_text(
        conninfo.replace(str(target.home), str(source.home)).replace(target.slot, source.slot).replace(target.name, source.name), encoding="utf-8"
    )
    (source.data / "standby.signal").touch()
    for name in ("standby.signal", "postgresql.auto.conf"):
        if os.geteuid() == 0:
            status = source.data.stat()
            os.chown(source.data / name, status.st_uid, status.st_gid)


@contextlib.contextmanager
def writing(*nodes: Node) -> Iterator[list[int]]:
    """Have a client write at whoever is primary; the list holds the acknowledged numbers at the end."""
    acknowledged: list[int] = []
    argv = [sys.executable, str(Path(__file__).with_name("writing_client.py")), ",".join(str(node.port) for node in nodes), TESTER_PASSWORD]
    client = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    try:
        acknowledged.append(int(client.stdout.readline()))
        yield acknowledged
    finally:
        client.terminate()
        acknowledged.extend(int(line) for line in client.communicate(timeout=10)[0].split())


def test_switchover_running_pair_swaps_the_roles(each_pair: Pair) -> None:
    pair = each_pair
    pair.primary.write_row(1)
    answer = switch(pair.primary, pair.standby)
    assert answer.changed
    assert answer["timeline"] == 2
    assert 0 < answer["window_seconds"] < 5
    assert primaries(pair.primary, pair.standby) == ["beta"]
    pair.standby.write_row(2)
    wait_replayed(pair.standby, pair.primary)
    assert pair.primary.numbers() == {1, 2}
    assert pair.standby.slots()[pair.primary.slot] == "reserved"


def test_switchover_under_writing_client_loses_no_acknowledged_commit(pair: Pair) -> None:
    with writing(pair.primary, pair.standby) as acknowledged:
        assert switch(pair.primary, pair.standby).changed
        assert switch(pair.standby, pair.primary).changed
        before = pair.primary.sql("SELECT count(*) FROM written")
        wait_for(lambda: pair.primary.sql("SELECT count(*) FROM written") > before + 20, "the client's reconnection")
    assert set(acknowledged) <= pair.primary.numbers()
    wait_replayed(pair.primary, pair.standby)
    assert set(acknowledged) <= pair.standby.numbers()
    assert pair.primary.call("pg_node_info")["node"]["timeline"] == 3


def test_switchover_check_mode_changes_nothing(pair: Pair) -> None:
    before = (pair.primary.pid(), pair.standby.slots(), sorted(os.listdir(pair.primary.state)))
    answer = switch(pair.primary, pair.standby, check_mode=True)
    assert answer.changed
    assert "beta" in answer["diff"]["after"] and "alpha" in answer["diff"]["before"]
    assert (pair.primary.pid(), pair.standby.slots(), sorted(os.listdir(pair.primary.state))) == before
    assert primaries(pair.primary, pair.standby) == ["alpha"]


def test_switchover_run_twice_changes_nothing_the_second_time(pair: Pair) -> None:
    assert switch(pair.primary, pair.standby).changed
    pair.standby.write_row(1)
    assert not switch(pair.primary, pair.standby, check_mode=True).changed
    assert not switch(pair.primary, pair.standby).changed
    assert primaries(pair.primary, pair.standby) == ["beta"]


def test_switchover_run_again_with_old_primary_down_starts_it_as_standby(pair: Pair) -> None:
    assert switch(pair.primary, pair.standby).changed
    pair.primary.stop()
    assert switch(pair.primary, pair.standby).changed
    assert primaries(pair.primary, pair.standby) == ["beta"]
    assert not pair.primary.is_primary()


def test_switchover_from_a_standby_is_refused(pair: Pair) -> None:
    switch(pair.standby, pair.spare).refusal("not_primary")
    assert primaries(pair.primary, pair.standby) == ["alpha"]


def assert_untouched(pair: Pair, pid: int) -> None:
    """The old primary was not even restarted, and nothing is left of the attempt."""
    assert pair.primary.pid() == pid
    assert pair.primary.is_primary()
    assert not (pair.primary.data / "standby.signal").exists()
    assert pair.primary.note("pending") == {}


def test_switchover_candidate_down_is_refused_before_anything(pair: Pair) -> None:
    pid = pair.primary.pid()
    pair.standby.stop()
    message = switch(pair.primary, pair.standby).refusal("peer_unreachable")
    assert "beta" in message and str(pair.standby.port) in message
    assert_untouched(pair, pid)


def test_switchover_candidate_frozen_is_refused_within_the_deadline(pair: Pair) -> None:
    pid = pair.primary.pid()
    pair.standby.freeze()
    switch(pair.primary, pair.standby).refusal("peer_unreachable")
    assert_untouched(pair, pid)


@pytest.mark.parametrize("role", ["replicator", "rewinder"])
def test_switchover_wrong_password_is_refused_before_anything(pair: Pair, role: str) -> None:
    pid = pair.primary.pid()
    pair.primary.sql(f"ALTER ROLE {role} PASSWORD 'changed meanwhile'")
    pair.level()
    answer = switch(pair.primary, pair.standby)
    assert role in answer.refusal("authentication")
    assert answer["hint"]
    assert "c ä" not in answer.text
    assert_untouched(pair, pid)


def test_switchover_candidate_with_paused_replay_is_refused(pair: Pair) -> None:
    pid = pair.primary.pid()
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    switch(pair.primary, pair.standby).refusal("replay_paused")
    assert_untouched(pair, pid)


def test_switchover_candidate_behind_is_refused_when_it_does_not_catch_up(pair: Pair) -> None:
    pid = pair.primary.pid()
    adapt(pair.standby.data / "postgresql.auto.conf", {str(pair.primary.port): "1"})
    pair.standby.stop()
    pair.standby.start()
    pair.primary.write_row(1)
    assert "catch up" in switch(pair.primary, pair.standby, max_lag_bytes=0, **SHORT).refusal("lag")
    assert_untouched(pair, pid)
    assert pair.primary.slot not in pair.standby.slots()


def test_switchover_candidate_may_not_promote_is_refused(pair: Pair) -> None:
    pid = pair.primary.pid()
    pair.primary.sql("REVOKE EXECUTE ON FUNCTION pg_promote FROM rewinder")
    pair.level()
    switch(pair.primary, pair.standby).refusal("privilege")
    assert_untouched(pair, pid)


def test_switchover_foreign_candidate_is_refused(pair: Pair, newer_pair: Pair) -> None:
    pid = pair.primary.pid()
    adapt(pair.primary.state / "passfile", {str(pair.standby.port): str(newer_pair.standby.port)})
    switch(pair.primary, newer_pair.standby).refusal("foreign_system")
    assert_untouched(pair, pid)


def wait_until_armed(node: Node) -> None:
    wait_for((node.data / "standby.signal").exists, "the fence")


def test_switchover_by_sql_of_one_server_and_files_of_another_is_refused(pair: Pair) -> None:
    """A host with two clusters, of which the options name one each: the stranger would be stopped, and the primary go on beside the promoted standby."""
    stranger = pair.spare
    assert stranger.call("pg_cluster_init").changed
    stranger.append_conf(f"port = {stranger.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{stranger.home}/run'")
    stranger.start()
    mixed = {"login_port": pair.primary.port, "login_unix_socket": str(pair.primary.home / "run")}
    for stopped in (False, True):
        assert stopped or stranger.pid()
        for module in ("pg_node_info", "pg_promote") if not stopped else ("pg_promote",):
            assert str(stranger.data) in stranger.call(module, **mixed).refusal("another_server")
        assert stranger.call_towards("pg_switchover", pair.standby, candidate_slots=[], **mixed).failed
        assert pair.primary.is_primary() and not pair.standby.is_primary()
        assert bool(stranger.pid()) is not stopped, "it was not touched"
        if not stopped:
            stranger.stop()


def freeze_replay(node: Node) -> list[int]:
    """Stop the process that replays: WAL still arrives, so the primary can stop."""
    [replaying] = [pid for pid in node.processes() if "startup" in " ".join(command_line(pid))]
    os.kill(replaying, signal.SIGSTOP)
    return [replaying]


def thaw(frozen: list[int]) -> None:
    for pid in frozen:
        with contextlib.suppress(ProcessLookupError):  # one that was about to end when it was frozen
            os.kill(pid, signal.SIGCONT)


def test_switchover_candidate_frozen_during_the_stop_is_taken_back(pair: Pair) -> None:
    pair.primary.write_row(1)
    pair.level()
    frozen = freeze_replay(pair.standby)  # or it is promoted before all of it is frozen
    run = start_module("pg_switchover", pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot], **SHORT))
    wait_until_armed(pair.primary)
    frozen += pair.standby.freeze()
    answer = run.wait()
    assert answer.failed and "primary again" in answer["msg"], answer.text
    thaw(frozen)
    assert primaries(pair.primary, pair.standby) == ["alpha"]
    assert pair.primary.numbers() == {1}
    assert pair.primary.note("pending") == {}
    pair.primary.write_row(2)
    pair.level()


def test_switchover_that_is_fenced_on_the_way_promotes_nobody_and_starts_nothing(pair: Pair) -> None:
    """failover.yml meets a hand-over that lost its controller and goes on by itself."""
    more = {**SHORT, "catch_up_timeout_seconds": 20}
    frozen = freeze_replay(pair.standby)
    run = start_module("pg_switchover", pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot], **more))
    wait_until_armed(pair.primary)
    wait_for(lambda: pair.primary.note("pending").get("phase") == "promoting", "the stop")
    pair.primary.call("pg_fence")
    thaw(frozen)
    answer = run.wait()
    assert answer.failed and answer["reason"] == "superseded", answer.text
    assert not pair.primary.processes() and pair.primary.note("fenced")
    assert not pair.standby.is_primary()


def test_switchover_beside_one_that_is_under_way_waits_for_it_and_changes_nothing(pair: Pair) -> None:
    more = {**SHORT, "catch_up_timeout_seconds": 20}
    options = pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot], **more)
    frozen = freeze_replay(pair.standby)
    first = start_module("pg_switchover", options)
    wait_until_armed(pair.primary)
    second = start_module("pg_switchover", options)
    with pytest.raises(AssertionError):
        wait_for(lambda: second.ended, "the second run's end", 2)
    thaw(frozen)
    assert first.wait().changed
    answer = second.wait()
    assert not answer.changed and answer["timeline"] == 2 and answer["mark_lsn"], "what the siblings are re-pointed with"
    assert primaries(pair.primary, pair.standby) == ["beta"]


def test_switchover_candidate_killed_during_the_stop_is_taken_back(pair: Pair) -> None:
    pair.primary.write_row(1)
    pair.level()
    freeze_replay(pair.standby)  # or it is promoted before it is killed
    run = start_module("pg_switchover", pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot], **SHORT))
    wait_until_armed(pair.primary)
    pair.standby.crash()
    answer = run.wait()
    assert answer.failed and "primary again" in answer["msg"], answer.text
    assert pair.primary.is_primary()
    assert pair.primary.numbers() == {1}
    pair.standby.start()
    pair.primary.write_row(2)
    pair.level()
    # A switchover that works afterwards shows that nothing of the failed one is in the way.
    assert switch(pair.primary, pair.standby).changed


def test_switchover_replay_paused_during_the_window_is_taken_back_and_its_slots_dropped(pair: Pair) -> None:
    frozen = freeze_replay(pair.standby)  # or all is replayed before the pause is asked for
    run = start_module("pg_switchover", pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot], **SHORT))
    wait_until_armed(pair.primary)
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    thaw(frozen)
    answer = run.wait()
    assert "primary again" in answer.refusal("candidate_incomplete")
    assert pair.primary.is_primary() and not pair.standby.is_primary()
    assert pair.standby.slots() == {}
    assert (pair.primary.data / "standby.signal").exists() is False


def test_switchover_that_cannot_write_its_note_is_taken_back(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up while nobody is primary."""
    write_phase = handover._write_phase

    def too_full_to_start(_server: Any, **_more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "postmaster.pid")

    def full(server: Any, peer: Any, terms: Any, phase: str) -> None:
        if phase == handover.PROMOTING:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "pending.json")
        write_phase(server, peer, terms, phase)

    def too_full(_server: Any, values: Any) -> bool:
        if "primary_conninfo" in values and values["primary_conninfo"] is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "postgresql.auto.conf")
        return set_auto_conf(_server, values)

    set_auto_conf, start = Server.set_auto_conf, Server.start
    monkeypatch.setattr(handover, "_write_phase", full)
    monkeypatch.setattr(Server, "set_auto_conf", too_full)
    message = switch(pair.primary, pair.standby).refusal("system")
    assert "is primary again: No space left on device: pending.json" in message
    assert primaries(pair.primary, pair.standby) == ["alpha"] and pair.primary.note("pending") == {}
    assert set(pair.standby.slots()) == set()
    monkeypatch.setattr(Server, "start", too_full_to_start)
    message = switch(pair.primary, pair.standby).refusal("not_taken_back")
    assert "NOBODY IS PRIMARY. beta was not told to promote: No space left on device: pending.json. And this server could not be" in message
    assert not pair.primary.pid() and not pair.standby.is_primary()
    monkeypatch.undo()

    def away(*_unused: Any) -> None:
        raise ServerError("beta did not get all WAL of this server", reason="candidate_incomplete")

    monkeypatch.setattr(handover, "_await_everything", away)
    monkeypatch.setattr(Server, "start", too_full_to_start)
    assert "NOBODY IS PRIMARY" in switch(pair.primary, pair.standby).refusal("not_taken_back")
    assert pair.primary.note("pending")["phase"] == handover.ARMED, "as the message says, the next run may take it back"
    monkeypatch.setattr(Server, "start", start)
    assert "is primary again" in switch(pair.primary, pair.standby).refusal("candidate_incomplete")
    assert primaries(pair.primary, pair.standby) == ["alpha"]
    monkeypatch.undo()
    assert switch(pair.primary, pair.standby).changed
    assert primaries(pair.primary, pair.standby) == ["beta"]


@pytest.mark.parametrize("signal_file", [True, False], ids=["armed", "disarmed"])
def test_switchover_interrupted_with_server_stopped_is_taken_up(pair: Pair, signal_file: bool) -> None:
    pair.primary.write_row(1)
    if signal_file:
        arm(pair.primary, pair.standby)
    else:  # killed while it was taking the hand-over back
        pair.primary.write_note("pending", PENDING)
    pair.primary.stop()
    assert switch(pair.primary, pair.standby).changed
    assert primaries(pair.primary, pair.standby) == ["beta"]
    assert not pair.primary.is_primary()
    assert pair.standby.numbers() == {1}


def test_switchover_interrupted_behind_the_promotion_never_makes_two_primaries(pair: Pair) -> None:
    arm(pair.primary, pair.standby)
    pair.primary.stop()
    pair.standby.sql("SELECT pg_promote()")
    pair.standby.write_row(1)
    assert switch(pair.primary, pair.standby).changed
    assert primaries(pair.primary, pair.standby) == ["beta"]
    wait_replayed(pair.standby, pair.primary)


def test_switchover_interrupted_behind_the_promotion_and_candidate_away_stays_fenced(pair: Pair) -> None:
    arm(pair.primary, pair.standby)
    pair.primary.write_note("pending", {**PENDING, "phase": "promoting"})
    pair.primary.stop()
    pair.standby.sql("SELECT pg_promote()")
    pair.standby.stop()
    answer = switch(pair.primary, pair.standby, **SHORT)
    assert answer.failed and answer["hint"], answer.text
    assert not pair.primary.pid()
    assert (pair.primary.data / "standby.signal").exists()


def test_switchover_interrupted_before_the_promotion_and_candidate_away_is_primary_again(pair: Pair) -> None:
    arm(pair.primary, pair.standby)
    pair.primary.stop()
    pair.standby.stop()
    assert "primary again" in switch(pair.primary, pair.standby, **SHORT).refusal("peer_unreachable")
    assert pair.primary.is_primary()


def test_switchover_interrupted_and_failed_over_since_stays_fenced(pair: Pair) -> None:
    arm(pair.primary, pair.standby)
    assert pair.primary.call("pg_fence").changed
    pair.standby.sql("SELECT pg_promote()")
    pair.standby.stop()
    assert switch(pair.primary, pair.standby, **SHORT).failed
    assert not pair.primary.pid()


def test_switchover_interrupted_and_restarted_as_standby_loses_nothing(pair: Pair) -> None:
    """The armed primary was reset with WAL that nobody else has, and came up as a standby."""
    pair.standby.stop()
    pair.primary.write_row(1)
    arm(pair.primary, pair.standby)
    pair.primary.crash()
    pair.primary.start()
    adapt(pair.standby.data / "postgresql.auto.conf", {str(pair.primary.port): "1"})
    pair.standby.start()
    answer = switch(pair.primary, pair.standby, **SHORT)
    assert answer.failed, answer.text
    assert primaries(pair.primary, pair.standby) == ["alpha"]
    assert pair.primary.numbers() == {1}


@pytest.mark.parametrize("behind", ["fence", "stop", "promotion"])
def test_switchover_killed_and_run_again_reaches_the_same_end(pair: Pair, behind: str) -> None:
    pair.primary.write_row(1)
    reached = {
        "fence": (pair.primary.data / "standby.signal").exists,
        "stop": lambda: not pair.primary.pid(),
        "promotion": lambda: list(pair.standby.data.glob("pg_wal/00000002.history")),
    }[behind]
    run = start_module("pg_switchover", pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot]))
    wait_for(reached, behind)
    run.kill()
    again = switch(pair.primary, pair.standby)
    assert not again.failed, again.text
    assert primaries(pair.primary, pair.standby) == ["beta"]
    pair.standby.write_row(2)
    wait_replayed(pair.standby, pair.primary)
    assert pair.primary.numbers() == {1, 2}


def test_switchover_run_again_is_cut_off_by_the_stop_and_waits_for_it(pair: Pair) -> None:
    """The run before was killed right after it told the server to stop: who connects at that moment is cut off without a word."""
    pair.primary.write_row(1)
    arm(pair.primary, pair.standby)
    postmaster = pair.primary.pid()
    pair.primary.sql("ALTER SYSTEM SET pre_auth_delay = 1")
    pair.primary.sql("SELECT pg_reload_conf()")
    before = set(pair.primary.processes())
    again = start_module("pg_switchover", pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot]))
    wait_for(lambda: set(pair.primary.processes()) - before, "the connection")
    os.kill(postmaster, signal.SIGINT)
    assert again.wait().changed
    assert primaries(pair.primary, pair.standby) == ["beta"]


def test_switchover_hangup_in_the_middle_goes_on(pair: Pair) -> None:
    run = start_module("pg_switchover", pair.primary.towards(pair.standby, candidate_slots=[pair.primary.slot]))
    wait_until_armed(pair.primary)
    for number in (signal.SIGHUP, signal.SIGTERM):
        os.kill(run.pid, number)
    assert run.wait().changed
    assert primaries(pair.primary, pair.standby) == ["beta"]


def test_switchover_with_third_node_its_slot_is_ready_at_the_candidate(pair: Pair) -> None:
    make_standby(pair.spare, pair.primary)
    assert switch(pair.primary, pair.standby, candidate_slots=[pair.primary.slot, pair.spare.slot]).changed
    assert set(pair.standby.slots()) == {pair.primary.slot, pair.spare.slot}
    answer = pair.spare.call(
        "pg_settle", host_name=pair.spare.name, slot_name=pair.spare.slot, upstream={"name": "beta", "address": "127.0.0.1", "port": pair.standby.port}
    )
    assert answer.changed
    pair.standby.write_row(1)
    wait_replayed(pair.standby, pair.spare)


def test_switchover_passwords_show_nowhere(pair: Pair) -> None:
    answer = switch(pair.primary, pair.standby)
    seen = answer.text + pair.primary.log.read_text(encoding="utf-8") + (pair.primary.data / "postgresql.auto.conf").read_text(encoding="utf-8")
    assert "SCRAM" not in seen and "c ä" not in seen and "in\\\"d" not in seen
    assert "password" not in (pair.primary.data / "postgresql.auto.conf").read_text(encoding="utf-8").replace("passfile", "")
    assert as_account(["true"]).returncode == 0
