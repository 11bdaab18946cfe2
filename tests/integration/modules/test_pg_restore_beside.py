# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_restore_beside on real servers: two copies of one past are told apart, and nothing of the live server is touched.

The servers and their WAL are real. The repository is a directory and a script that copies from it, for pgBackRest's commands and options
that the module uses; pgBackRest itself is in molecule/archive.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils import restoring
from real_servers import (
    Answer,
    Node,
    Pair,
    Ports,
    Run,
    command_line,
    digest,
    local_superuser,
    own,
    process_ids,
    start_module,
    state_of,
    wait_for,
)

pytestmark = pytest.mark.thorough

# Under its own name, as pgBackRest is: a run looks for what an earlier one has left by name and directory.
PGBACKREST = """\
#!/bin/bash
[ "$PGBACKREST_NAMED" ] || PGBACKREST_NAMED=1 exec -a "$0" /bin/bash "$0" "$@"
unset PGBACKREST_NAMED
here=${0%/*}
for word; do case $word in --pg1-path=*) path=${word#*=} ;; esac; done
case " $* " in
*" info ") exec cat "$here/info.json" ;;
*" restore ")
  echo >>"$here/restores"
  while [ -e "$here/slow" ]; do mkdir -p "$path/base"; : >"$path/base/filling.$((++number))"; sleep 0.02; done
  cp -a "$here/backup/." "$path" ;;
*" archive-get "*)
  name=${*: -2:1}
  while [ -e "$here/held" ] && [[ $name != *.history && $name > $(<"$here/held") ]]; do sleep 0.05; done
  exec cp "$here/archive/$name" "${*: -1}" ;;
*) exit 1 ;;
esac
"""
# Each in a segment of its own.
BEHIND_THE_BACKUP = (
    "SELECT pg_create_restore_point('earlier')", "SELECT pg_switch_wal()",
    "CREATE DATABASE written_later", "SELECT pg_create_restore_point('later')", "SELECT pg_switch_wal()",
    "CREATE DATABASE behind_all", "SELECT pg_switch_wal()",
)  # fmt: skip


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

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """Have pgBackRest's stand-in fill the directory until the block ends."""
        (self.repository / "slow").touch()
        yield
        (self.repository / "slow").unlink()

    @contextlib.contextmanager
    def held(self, *, midway: bool) -> Iterator[None]:
        """Have recovery wait for its first segment of WAL, or for its second, until the block ends."""
        first = (self.repository / "first").read_text(encoding="utf-8") if midway else ""
        (self.repository / "held").write_text(first, encoding="utf-8")
        yield
        (self.repository / "held").unlink()

    def restores(self) -> int:
        """Return how often the repository was asked for a backup."""
        return len((self.repository / "restores").read_text(encoding="utf-8").splitlines())

    def leftovers(self) -> list[int]:
        """Return the processes that fill the directory."""
        words = {f"--pg1-path={self.directory}", "restore"}
        found = [pid for pid in process_ids() if words <= set(command_line(pid)) and command_line(pid)[:1] == [str(self.repository / "pgbackrest")]]
        forked = {child for pid in found for child in children_of(pid)}  # a moment later it is called mkdir
        return [pid for pid in found if pid not in forked]

    def recovering(self) -> bool:
        """Whether the copy's server asks for WAL that is held."""
        asked = [command_line(pid) for pid in process_ids() if f"--pg1-path={self.directory}" in command_line(pid)]
        behind = (self.repository / "held").read_text(encoding="utf-8")
        return any("archive-get" in words and words[-3] > behind and "history" not in words[-3] for words in asked)

    def data_directory_on(self, port: int) -> str:
        """Return the data directory of the server that answers on a port of the live server's socket directory."""
        with local_superuser(replace(self.live, port=port)) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW data_directory")
            return str(cursor.fetchone()[0])


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, none of one that is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except OSError:
        return []


def fill(repository: Path, live: Node) -> None:
    """Put a backup into the repository, and behind it the WAL up to both points."""
    begun = int(time.time())
    live.program("pg_basebackup", "-h", str(live.home / "run"), "-p", str(live.port), "-D", str(repository / "backup"), "-X", "none", "-c", "fast")
    with local_superuser(live) as connection, connection.cursor() as cursor:
        for statement in BEHIND_THE_BACKUP:
            cursor.execute(statement)
    label = (repository / "backup" / "backup_label").read_text(encoding="utf-8")
    first = re.search(r"START WAL LOCATION.*file (\w+)", label).group(1)
    (repository / "first").write_text(first, encoding="utf-8")
    (repository / "archive").mkdir()
    for segment in live.data.glob("pg_wal/0*"):
        shutil.copy2(segment, repository / "archive")
    backup = {
        "label": "20260131-110000F", "type": "full", "database": {"id": 1}, "timestamp": {"start": begun, "stop": int(time.time())},
        "archive": {"start": first, "stop": first}, "info": {"size": 30_000_000},
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


def test_restore_follows_the_live_timeline_and_not_one_that_was_given_up(past: Restorable, ports: Ports) -> None:
    """A copy was promoted at the first point: so is a standby by mistake. What it wrote is in the archive, the second point is not on it."""
    assert past.restore("earlier", ports())["timeline"] == "latest"  # nobody said what lives
    past.stop(past.directory)
    for file in past.directory.glob("pg_wal/00000002*"):
        shutil.copy2(file, past.repository / "archive")
    own(past.repository)
    past.restore("later", ports(), live_timeline=1, target_timeline="latest", directory=f"{past.live.data}.newest").refusal("target_not_reached")
    port, live = ports(), {"live_timeline": 1, "directory": f"{past.live.data}.second"}
    answer = past.restore("later", port, **live)
    assert (answer["timeline"], answer["databases"]) == ("current", ["postgres", "written_later"])
    switched = {**live, "live_timeline": 3, "live_history": "1\t0/F0000000\tno recovery target specified\n"}
    assert not past.restore("later", port, **switched).changed


def test_restore_along_a_timeline_whose_history_was_never_archived(past: Restorable, ports: Ports) -> None:
    """The standby that was promoted fails to archive; the backup and the target are from before."""
    live = {"live_timeline": 3, "live_history": "1\t0/F0000000\tno recovery target specified\n"}
    answer = past.restore("later", ports(), **live)
    assert (answer["timeline"], answer["databases"]) == ("3", ["postgres", "written_later"])


def test_restore_waits_for_the_segment_also_where_a_later_timeline_is_in_the_archive(past: Restorable, ports: Ports) -> None:
    """Its segments have greater names than any of the live one."""
    info = json.loads((past.repository / "info.json").read_text(encoding="utf-8"))
    info[0]["archive"] = [{"id": "15-1", "min": "000000010000000000000001", "max": "000000020000000000000001"}]
    (past.repository / "info.json").write_text(json.dumps(info), encoding="utf-8")
    awaited = max((past.repository / "archive").glob("00000001*"))
    awaited.rename(past.repository / "not yet")
    run = past.start("later", ports(), awaited_segment=awaited.name, live_timeline=1)
    assert still_runs(run, 3) and not (past.repository / "restores").exists()
    (past.repository / "not yet").rename(awaited)
    assert run.wait()["databases"] == ["postgres", "written_later"]
    assert not Path(f"{past.directory}.pg_ops", "awaited").exists()


# --- recovery that outlives its run ---


# hot_standby is off: at its first segment the postmaster says that it starts, midway what it says when a standby is up.
stages = pytest.mark.parametrize("midway", [False, True], ids=["starting", "midway"])


def kill_in_recovery(past: Restorable, name: str, port: int) -> None:
    """Have a restore lose its module while recovery waits for WAL that is held."""
    run = past.start(name, port)
    wait_for(past.recovering, "recovery")
    run.kill()


def still_runs(run: Run, seconds: float) -> bool:
    """Whether a module works on for so long."""
    with contextlib.suppress(AssertionError):
        wait_for(lambda: run.ended, "its end", seconds)
    return not run.ended


@stages
def test_restore_repeated_during_recovery_waits_for_its_end(past: Restorable, ports: Ports, *, midway: bool) -> None:
    port = ports()
    with past.held(midway=midway):
        kill_in_recovery(past, "later", port)
        again = past.start("later", port)
        assert still_runs(again, 2)
    answer = again.wait()
    assert (answer.changed, answer["databases"]) == (False, ["postgres", "written_later"])
    assert past.restores() == 1


@stages
def test_restore_whose_recovery_takes_too_long_says_so_and_is_waited_for_by_the_next(past: Restorable, ports: Ports, *, midway: bool) -> None:
    port = ports()
    with past.held(midway=midway):
        for _run in range(2):
            message = past.restore("later", port, timeout_seconds=3).refusal("in_recovery")
            assert "repeat" in message and str(past.directory) in message
    assert past.restore("later", port)["databases"] == ["postgres", "written_later"]
    assert past.restores() == 1


@stages
def test_restore_repeated_during_recovery_that_misses_its_target_says_why(past: Restorable, ports: Ports, *, midway: bool) -> None:
    port = ports()
    with past.held(midway=midway):
        kill_in_recovery(past, "never named", port)
        again = past.start("never named", port)
        assert still_runs(again, 1)
    again.wait().refusal("target_not_reached")
    past.restore("never named", port).refusal("target_not_reached")
    past.restore("never named", past.live.port).refusal("start_failed")  # what the log tells of an earlier start is not this one's


# --- a run that was killed while the directory was filled ---


def kill_while_filling(past: Restorable, name: str, port: int) -> None:
    """Have a restore lose its module, while pgBackRest's slow stand-in lives on and fills the directory."""
    run = past.start(name, port)
    wait_for((past.directory / "base" / "filling.5").exists, "the directory's filling")
    run.kill()
    assert len(past.leftovers()) == 1


def test_restore_killed_while_pgbackrest_fills_the_directory_is_made_again(past: Restorable, ports: Ports) -> None:
    port = ports()
    with past.slow():
        kill_while_filling(past, "later", port)
        [leftover] = past.leftovers()
        would = past.restore("later", port, check_mode=True)
        assert would.changed and "unfinished" in would["diff"]["before"]
        assert past.leftovers() == [leftover]
        again = past.start("later", port)
        wait_for(lambda: past.restores() == 2, "the second restore")
        assert len(past.leftovers()) == 1 and leftover not in past.leftovers()
    answer = again.wait()
    assert answer.changed and answer["databases"] == ["postgres", "written_later"], answer.text
    assert past.leftovers() == []
    assert not Path(answer["state_directory"], "restore.json").exists()
    assert not past.restore("later", port).changed


def freeze(pid: int) -> None:
    """Stop a process. It has stopped a moment after the signal, and the mkdir that it had begun goes on beside it."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: state_of(pid) == "T", "the process to stop")
    wait_for(lambda: {state_of(child) for child in children_of(pid)} <= {"", "Z"}, "what it had begun to end")


def test_restore_killed_and_its_directory_moved_away_is_not_filled_by_two(past: Restorable, ports: Ports) -> None:
    """Nothing is there that speaks against another request, but the leftover would fill what that one makes."""
    with past.slow():
        kill_while_filling(past, "later", ports())
        [leftover] = past.leftovers()
        freeze(leftover)
        past.directory.rename(past.repository / "moved")
    answer = past.restore("earlier", ports())
    assert answer.changed and answer["databases"] == ["postgres"], answer.text
    assert past.leftovers() == [] and list(past.directory.glob("base/filling.*")) == []


def test_restore_of_another_point_into_an_unfinished_directory_is_refused(past: Restorable, ports: Ports) -> None:
    port = ports()
    with past.slow():
        kill_while_filling(past, "later", port)
        for check_mode in (True, False):
            answer = past.restore("earlier", port, check_mode=check_mode)
            assert answer.failed and answer["reason"] == "unfinished_restore" and len(answer["blockers"]) == 1, answer.text
            assert "recovery_target_name 'later'" in answer["msg"] and str(past.directory) in answer["msg"]
        assert len(past.leftovers()) == 1 and past.restores() == 1


def test_restore_into_a_directory_that_is_not_the_one_its_note_tells_of_is_refused(past: Restorable, ports: Ports) -> None:
    """The unfinished one was taken away, and somebody's own has its name."""
    port = ports()
    with past.slow():
        kill_while_filling(past, "later", port)
    wait_for(lambda: past.leftovers() == [], "the leftover's end")
    shutil.rmtree(past.directory)  # its inode may be given again at once
    past.directory.mkdir()
    (past.directory / "precious").touch()
    before = digest(past.directory)
    answer = past.restore("later", port)
    assert answer.failed and answer["reason"] == "directory_exists", answer.text
    assert digest(past.directory) == before


def test_restore_into_a_strangers_directory_is_refused_and_leaves_nothing_beside_it(past: Restorable, ports: Ports) -> None:
    past.directory.mkdir()
    answer = past.restore("later", ports())
    assert answer.failed and answer["reason"] == "directory_exists", answer.text
    assert os.listdir(past.directory) == [] and not Path(f"{past.directory}.pg_ops").exists()


def test_restore_that_fails_in_pgbackrest_leaves_no_directory_and_no_note(past: Restorable, ports: Ports) -> None:
    port = ports()
    backup = (past.repository / "backup").rename(past.repository / "away")
    past.restore("later", port).refusal("program_failed")
    with past.slow():
        past.restore("later", port, timeout_seconds=1).refusal("program_timeout")
    assert past.leftovers() == [] and not past.directory.exists()
    assert not Path(f"{past.directory}.pg_ops", "restore.json").exists()
    backup.rename(past.repository / "backup")
    assert past.restore("earlier", port).changed


def test_restore_beside_a_run_of_the_same_request_waits_for_it(past: Restorable, ports: Ports) -> None:
    port = ports()
    with past.slow():
        first = past.start("later", port)
        wait_for(past.leftovers, "the first run")
        second = past.start("later", port)
        past.restore("later", port, timeout_seconds=1).refusal("busy")
        assert not second.ended and len(past.leftovers()) == 1
    assert first.wait().changed
    answer = second.wait()
    assert (answer.changed, answer["databases"]) == (False, ["postgres", "written_later"])
    assert past.restores() == 1


@pytest.mark.parametrize("delay", [0.2, 0.5, 0.9, 1.4])
def test_restore_killed_at_any_time_and_run_again_shows_the_past(past: Restorable, ports: Ports, delay: float) -> None:
    port = ports()
    run = past.start("later", port)
    still_runs(run, delay)
    run.kill()
    time.sleep(0.1)  # nobody repeats sooner; what it had just started has its program's name by then, and is found
    assert past.restore("later", port)["databases"] == ["postgres", "written_later"]
    assert past.data_directory_on(port) == str(past.directory)


@pytest.mark.parametrize("path", ["data", "data/inside", "", "state/inside/../../data", "run/../data/"])
def test_restore_into_the_live_servers_place_is_refused(past: Restorable, ports: Ports, path: str) -> None:
    past.restore("later", ports(), directory=str(past.live.home / path)).refusal("bad_directory")
