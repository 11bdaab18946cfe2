# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot guard on real servers, called as pg_service calls it before a start."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from real_servers import (
    ACCOUNT,
    REPLICATION_PASSWORD,
    Node,
    Pair,
    command_line,
    make_standby,
    own,
    process_ids,
    start_module,
    wait_for,
)

PROGRAM = Path(__file__).resolve().parents[3] / "roles" / "boot_guard" / "files" / "boot_guard.py"


def install(node: Node, peers: list[Node], *, alone: str = "start", timeout_seconds: int = 1) -> Path:
    """Put the guard beside a server as the role does."""
    directory = node.state / "boot_guard"
    directory.mkdir(exist_ok=True)
    shutil.copy(PROGRAM, directory)
    config = {
        "host_name": node.name, "major": node.programs.version, "data_directory": str(node.data), "state_directory": str(node.state),
        "bin_directory": node.programs.directory, "user": "replicator", "alone": alone, "timeout_seconds": timeout_seconds,
        "peers": [{"name": peer.name, "address": "127.0.0.1", "port": peer.port} for peer in peers],
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    own(directory)
    return directory


def verdict(node: Node) -> dict[str, object]:
    return json.loads((node.state / "boot_guard" / "verdict.json").read_text(encoding="utf-8"))


def promote(node: Node) -> None:
    """Promote as somebody does who knows nothing of this collection."""
    node.program("pg_ctl", "promote", "-w", "-D", str(node.data))


def take_in(primary: Node, standby: Node) -> None:
    """Make the standby's slot on a new primary, and the checkpoint that pg_rejoin waits for."""
    assert primary.call("pg_replication_slot", name=[standby.slot]).changed
    primary.sql("CHECKPOINT")


def test_boot_guard_primary_with_its_standby_starts(each_pair: Pair) -> None:
    install(each_pair.primary, [each_pair.standby])
    each_pair.primary.stop()
    assert each_pair.primary.call("pg_service").changed
    assert each_pair.primary.is_primary()
    assert verdict(each_pair.primary)["reason"] == "peers_agree" and each_pair.standby.name in verdict(each_pair.primary)["message"]


def test_boot_guard_asks_with_the_passwords_that_are_coming_where_those_that_are_here_do_not_serve(each_pair: Pair) -> None:
    """A change of passwords was cut off behind the primary's, and before this host's passfile."""
    old, new = each_pair.primary, each_pair.standby
    install(old, [new], timeout_seconds=5)
    old.stop()
    promote(new)
    passfile = old.state / "passfile"
    right = passfile.read_text(encoding="utf-8")
    old.state.joinpath("passfile.next").write_text(right, encoding="utf-8")
    old.state.joinpath("passfile.next").chmod(0o600)
    passfile.write_text("*:*:*:*:of yesterday\n", encoding="utf-8")
    own(old.state)
    assert f"{new.name} is on timeline 2, this one on 1" in old.call("pg_service").refusal("boot_guard")
    assert verdict(old)["reason"] == "newer_timeline" and old.note("fenced")["by"] == "boot_guard"


def test_boot_guard_peer_that_says_nothing_leaves_time_for_every_passfile(each_pair: Pair) -> None:
    """Two changes of passwords were cut off, and a peer whose host hangs takes as long as a connection may."""
    old, new = each_pair.primary, each_pair.standby
    old.stop()
    promote(new)
    right = (old.state / "passfile").read_text(encoding="utf-8")
    for name, text in (("passfile", "*:*:*:*:of yesterday\n"), ("passfile.next", "*:*:*:*:of tomorrow\n"), ("passfile.next.1", right)):
        path = old.state / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        install(old, [replace(new, name="silent", port=hangs.getsockname()[1]), new], timeout_seconds=3)
        own(old.state)
        assert f"{new.name} is on timeline 2, this one on 1" in old.call("pg_service").refusal("boot_guard")
    assert verdict(old)["reason"] == "newer_timeline"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_boot_guard_old_primary_is_kept_down_and_fenced(each_pair: Pair, mode: str) -> None:
    old, new = each_pair.primary, each_pair.standby
    # What it followed when it was a standby itself: a fenced server must not follow anybody.
    with (old.data / "postgresql.auto.conf").open("a", encoding="utf-8") as stream:
        stream.write("primary_conninfo = 'host=127.0.0.1 port=1'\nprimary_slot_name = 'x'\n")
    install(old, [new])
    old.stop(mode)
    promote(new)
    message = old.call("pg_service").refusal("boot_guard")
    assert f"{new.name} is on timeline 2, this one on 1" in message
    assert not old.pid() and (old.data / "standby.signal").exists() and old.note("fenced")["by"] == "boot_guard"
    assert "primary_" not in (old.data / "postgresql.auto.conf").read_text(encoding="utf-8")
    # And it stays so, without asking anybody.
    new.stop()
    assert "it is fenced" in old.call("pg_service").refusal("boot_guard")
    # Unless somebody says, once, that nothing else is left: then it opens read-only.
    (old.state / "boot_guard" / "allow").touch()
    assert old.call("pg_service").changed and not old.is_primary() and verdict(old)["reason"] == "allowed"
    old.stop()
    assert "it is fenced" in old.call("pg_service").refusal("boot_guard")
    new.start()
    take_in(new, old)
    rejoined = old.call_towards("pg_rejoin", new)
    assert rejoined.changed and old.pid() and not old.is_primary() and old.note("fenced") == {}


def test_boot_guard_standby_of_a_newer_primary_is_evidence_enough(pair: Pair) -> None:
    """The new primary is away; its standby tells of it."""
    old, new, follower = pair.primary, pair.standby, pair.spare
    install(old, [new, follower])
    old.stop()
    promote(new)
    take_in(new, follower)
    make_standby(follower, new)
    new.stop()
    assert f"{follower.name} is on timeline 2" in old.call("pg_service").refusal("boot_guard")
    assert not old.pid()


def test_boot_guard_alone_starts_or_waits_for_permission(pair: Pair) -> None:
    node = pair.primary
    pair.standby.stop()
    node.stop()
    directory = install(node, [pair.standby], alone="refuse")
    assert "no peer answers" in node.call("pg_service").refusal("boot_guard")
    assert not (node.data / "standby.signal").exists() and node.note("fenced") == {}
    (directory / "allow").touch()
    own(directory)
    assert node.call("pg_service").changed and node.is_primary()
    assert not (directory / "allow").exists()
    node.stop()
    assert "no peer answers" in node.call("pg_service").refusal("boot_guard")
    (directory / "allow").touch()
    os.utime(directory / "allow", (time.time() - 3600, time.time() - 3600))
    own(directory)
    assert "no peer answers" in node.call("pg_service").refusal("boot_guard")
    install(node, [pair.standby], alone="start")
    assert node.call("pg_service").changed and verdict(node)["reason"] == "alone"


def test_boot_guard_hanging_peer_costs_its_bound_and_no_more(pair: Pair) -> None:
    install(pair.primary, [pair.standby], timeout_seconds=1)
    pair.primary.stop()
    pair.standby.freeze()
    assert pair.primary.call("pg_service").changed
    assert verdict(pair.primary)["reason"] == "alone"
    assert 0.9 < verdict(pair.primary)["seconds"] < 10


def test_boot_guard_peer_that_is_starting_is_asked_again(pair: Pair) -> None:
    """All nodes are started together after a power cut, and the one that was promoted last comes up a little later."""
    promote(pair.standby)
    pair.standby.stop()
    pair.primary.stop()
    install(pair.primary, [pair.standby], timeout_seconds=20)
    run = start_module("pg_service", pair.primary.options())
    time.sleep(0.5)
    pair.standby.start()
    assert "timeline 2" in run.wait().refusal("boot_guard")
    assert not pair.primary.pid()


def test_boot_guard_unfinished_rewind_never_starts(pair: Pair) -> None:
    install(pair.standby, [pair.primary])
    pair.standby.stop()
    pair.standby.write_note("rewind", {"source": pair.primary.name})
    assert "did not finish" in pair.standby.call("pg_service").refusal("boot_guard")
    assert not pair.standby.pid()


def test_boot_guard_broken_configuration_keeps_the_server_down_and_says_so(pair: Pair) -> None:
    directory = install(pair.primary, [pair.standby])
    pair.primary.stop()
    (directory / "config.json").write_text("{", encoding="utf-8")
    (directory / "verdict.json").write_text('{"action": "refuse", "reason": "old", "message": "of another day"}', encoding="utf-8")
    os.utime(directory / "verdict.json", (0, 0))
    assert "boot guard failed" in pair.primary.call("pg_service").refusal("boot_guard")


def test_boot_guard_switchover_taken_back_is_not_in_its_way(pair: Pair) -> None:
    """The candidate cannot take over, so the old primary is started as primary again."""
    install(pair.primary, [pair.standby])
    pair.standby.sql("SELECT pg_wal_replay_pause()")
    pair.primary.write_row(1)
    answer = pair.primary.call_towards("pg_switchover", pair.standby, catch_up_timeout_seconds=1)
    assert answer.failed and pair.primary.is_primary()


def test_boot_guard_that_refuses_alone_does_not_keep_a_switchover_from_being_taken_back(pair: Pair) -> None:
    """The candidate dies on the way, and there is nobody else."""
    primary, candidate = pair.primary, pair.standby
    directory = install(primary, [candidate], alone="refuse")
    primary.write_row(1)
    pair.level()
    [replaying] = [pid for pid in candidate.processes() if "startup" in " ".join(command_line(pid))]
    os.kill(replaying, signal.SIGSTOP)  # or it is promoted before it dies
    run = start_module("pg_switchover", primary.towards(candidate, candidate_slots=[primary.slot], catch_up_timeout_seconds=2))
    wait_for(lambda: primary.note("pending").get("phase") == "promoting", "the stop")
    candidate.crash()
    answer = run.wait()
    assert answer.failed and "primary again" in answer["msg"], answer.text
    assert primary.is_primary() and verdict(primary)["reason"] == "allowed" and primary.numbers() == {1}
    assert primary.note("pending") == {} and not (directory / "allow").exists()


def test_boot_guard_that_refuses_alone_lets_a_primary_be_restarted_and_no_more(pair: Pair) -> None:
    primary, directory = pair.primary, install(pair.primary, [pair.standby], alone="refuse")
    pair.standby.stop()
    assert primary.call("pg_service", state="restarted").changed and primary.is_primary()
    assert verdict(primary)["reason"] == "allowed" and not (directory / "allow").exists()
    primary.stop()
    assert "no peer answers" in primary.call("pg_service", state="restarted").refusal("boot_guard")
    assert not (directory / "allow").exists()


def test_boot_guard_permission_of_a_restart_is_nothing_against_a_newer_timeline_and_does_not_stay(pair: Pair) -> None:
    primary, directory = pair.primary, install(pair.primary, [pair.standby], alone="refuse")
    promote(pair.standby)
    assert "timeline 2" in primary.call("pg_service", state="restarted").refusal("boot_guard")
    assert not primary.pid() and not (directory / "allow").exists() and primary.note("fenced")


def test_boot_guard_permission_that_nobody_took_is_taken_away(pair: Pair) -> None:
    directory = install(pair.primary, [pair.standby], alone="refuse")
    (directory / "config.json").write_text("{", encoding="utf-8")
    assert "boot guard failed" in pair.primary.call("pg_service", state="restarted").refusal("boot_guard")
    assert not (directory / "allow").exists()


def test_boot_guard_password_is_in_no_process_and_no_file_of_its_own(pair: Pair) -> None:
    directory = install(pair.primary, [pair.standby], timeout_seconds=3)
    pair.primary.stop()
    pair.standby.freeze()
    run = start_module("pg_service", pair.primary.options())
    asking = wait_for(lambda: [pid for pid in process_ids() if "boot_guard" in " ".join(command_line(pid))], "the guard's processes")
    for pid in asking:
        with contextlib.suppress(OSError):  # it has ended
            shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert REPLICATION_PASSWORD.encode() not in shown
    assert run.wait().changed
    for path in directory.iterdir():
        assert REPLICATION_PASSWORD not in path.read_text(encoding="utf-8")
    assert ACCOUNT.pw_uid == (directory / "verdict.json").stat().st_uid
