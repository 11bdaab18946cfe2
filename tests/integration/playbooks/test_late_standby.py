# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A standby whose replay stands still or is delayed never wins, and holds no role change up; nor does a failover decide by what was seen too early."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from tests.integration.playbooks.cluster import Cluster, unchanged, wait_for


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Cluster:
    """Three nodes."""
    return set_up(3)


@pytest.mark.parametrize(
    ("late", "on", "off"),
    [
        ("paused", "SELECT pg_wal_replay_pause()", "SELECT pg_wal_replay_resume()"),
        pytest.param(
            "delayed",
            "ALTER SYSTEM SET recovery_min_apply_delay = '10min'; SELECT pg_reload_conf()",
            "ALTER SYSTEM RESET recovery_min_apply_delay; SELECT pg_reload_conf()",
            marks=pytest.mark.long,
        ),
    ],
)
def test_failover_past_a_late_standby_ends_at_once_and_says_so(cluster: Cluster, late: str, on: str, off: str) -> None:
    old = cluster.primary()
    slow, able = (name for name in cluster.names if name != old)
    for statement in on.split("; "):
        cluster.sql(slow, statement)
    cluster.sql(old, f"CREATE TABLE of_{late} (number int)")
    cluster.crash(old)
    done = cluster.play("failover")
    assert cluster.primary() == able
    assert f"{slow}: its replay is {late}" in done.text and "proven" in done.text
    assert done.seconds < 60  # pg_start_timeout_seconds, 120 s, is what waiting for it would take
    for statement in off.split("; "):
        cluster.sql(slow, statement)
    wait_for(lambda: cluster.sql(slow, "SELECT status FROM pg_stat_wal_receiver") == "streaming", f"{slow} to follow {able}")
    cluster.play("start_new_standby")
    cluster.assert_replicating(able)


def test_start_new_standby_brings_a_delayed_standby_back_without_waiting_for_it(cluster: Cluster) -> None:
    """It has WAL that it replays an hour later, and asks nobody for more before that."""
    primary, late = cluster.primary(), cluster.standby()
    cluster.sql(late, "ALTER SYSTEM SET recovery_min_apply_delay = '1h'; SELECT pg_reload_conf()")
    cluster.sql(primary, "CREATE TABLE before_the_stop (number int)")
    end = cluster.sql(primary, "SELECT pg_current_wal_lsn()")
    wait_for(lambda: cluster.sql(late, f"SELECT pg_last_wal_receive_lsn() >= '{end}'") == "t", f"{late} to have the table's WAL")
    cluster.pg_ctl(late, "stop", "-m", "fast")
    cluster.sql(primary, "CREATE TABLE behind_it (number int)")
    done = cluster.play("start_new_standby")
    assert f"{late}: start" in done.text and f"{late}: its replay is delayed" in done.text
    assert done.seconds < 60
    assert not (cluster.own_state(late) / "fenced.json").exists()
    assert cluster.sql(late, "SELECT count(*) FROM pg_stat_wal_receiver") == "0"
    cluster.sql(late, "ALTER SYSTEM RESET recovery_min_apply_delay; SELECT pg_reload_conf()")
    cluster.assert_replicating(primary)


@pytest.mark.long
def test_check_mode_goes_on_where_the_primary_lacks_the_checkpoint_of_its_promotion(cluster: Cluster) -> None:
    old = cluster.primary()
    new = cluster.standby()
    cluster.crash(old)
    checkpointer = int(cluster.sql(new, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"))
    os.kill(checkpointer, signal.SIGSTOP)
    try:
        cluster.sql(new, "SELECT pg_promote()")
        with unchanged(cluster.part(old)):
            checked = [cluster.play(name, "--check", "--diff").text for name in ("start_new_standby", "heal")]
    finally:
        os.kill(checkpointer, signal.SIGCONT)
    assert all(f"{new}: would first write the checkpoint of its promotion" in text and f"{old}: rewind" in text for text in checked)
    cluster.play("start_new_standby")
    cluster.assert_replicating(new)


def test_failover_leaves_a_standby_with_more_wal_to_the_rejoin(cluster: Cluster) -> None:
    """It may not be promoted, and has rows that the new primary lacks: it cannot follow before it was rewound."""
    old = cluster.primary()
    behind, ahead = (name for name in cluster.names if name != old)
    never = {ahead: {"pg_priority": 0}}
    cluster.pg_ctl(behind, "stop", "-m", "fast")
    cluster.sql(old, "CREATE TABLE ahead AS SELECT generate_series(1, 1000) AS number")
    wait_for(lambda: cluster.sql(ahead, "SELECT to_regclass('ahead') IS NOT NULL") == "t", f"{ahead} to have the table")
    cluster.crash(old)
    cluster.pg_ctl(behind, "start")
    done = cluster.play("failover", inventory=never)
    assert cluster.primary() == behind
    assert f"bytes that {behind} lacks: start_new_standby.yml brings it back" in done.text
    assert done.seconds < 60  # as above
    back = cluster.play("start_new_standby", inventory=never)
    assert f"{ahead}: rewind" in back.text
    cluster.assert_replicating(behind)
    assert cluster.sql(ahead, "SELECT to_regclass('ahead') IS NULL") == "t"


def test_failover_takes_who_got_most_until_the_fence_took_hold(cluster: Cluster) -> None:
    """The old primary is out of the controller's reach and goes on: what it writes before it is switched off only one standby gets."""
    old = cluster.primary()
    first, second = (name for name in cluster.names if name != old)
    pid, receiver = cluster.running_pid(old), cluster.sql(first, "SELECT pid FROM pg_stat_wal_receiver")
    become = f"setpriv --reuid {cluster.account.pw_uid} --clear-groups " if os.geteuid() == 0 else ""
    psql = become + " ".join(cluster.psql(old))
    script = f"""
        kill -STOP {receiver} && {psql} -c 'CREATE TABLE late (number int)' && sleep 1
        children=$(cat /proc/{pid}/task/{pid}/children)
        kill -KILL {pid} $children
        kill -TERM {receiver}; kill -CONT {receiver}; sleep 1
    """
    out_of_reach = {old: {"ansible_connection": "ssh", "ansible_port": 1, "ansible_host": "127.0.0.1"}}
    done = cluster.play("failover", "-e", json.dumps({"pg_fence_command": ["sh", "-c", script]}), inventory=out_of_reach)
    assert [f"{name} takes over from {old}" in done.text for name in (first, second)] == [True, True], done.output
    assert cluster.primary() == second
    assert cluster.sql(second, "SELECT to_regclass('late') IS NOT NULL") == "t"
    cluster.play("start_new_standby")
    cluster.assert_replicating(second)


def cut_off(cluster: Cluster, target: str) -> str:
    """Leave the primary as a switchover that was cut off in its window does; returns it."""
    old = cluster.primary()
    cluster.pg_ctl(old, "stop", "-m", "fast")
    note = {"operation": "switchover", "source": old, "target": target, "phase": "armed"}
    for path, text in ((cluster.data(old) / "standby.signal", ""), (cluster.own_state(old) / "pending.json", json.dumps(note))):
        assert cluster.run_as_owner("tee", str(path), stdin=text).returncode == 0
    return old


def failover_with(cluster: Cluster, old: str, statement: str, host: str, *arguments: str) -> tuple[int, str]:
    """Run failover.yml and, when the old primary's fence is there, a statement on another host; returns exit status and output in one line."""
    run = cluster.start("failover", *arguments)
    wait_for((cluster.own_state(old) / "fenced.json").exists, "the fence", timeout_seconds=60)
    os.kill(run.pid, signal.SIGSTOP)  # the look behind the fence would come too early now and then
    cluster.sql(host, statement)
    os.kill(run.pid, signal.SIGCONT)
    output, _errors = run.communicate(timeout=120)
    return run.returncode, " ".join(output.split())


def test_failover_beside_a_hand_over_that_goes_on_ends_with_the_one_primary_that_it_made(cluster: Cluster) -> None:
    """The switchover's controller is lost, its module is not: behind the failover's first look, and before its fence, it promotes."""
    first, second = (name for name in cluster.names if name != cluster.primary())
    old = cut_off(cluster, second)
    status, text = failover_with(cluster, old, "SELECT pg_promote()", second)
    assert status == 0, text
    assert f"{first} takes over from {old}" in text and f"finishing a failover to {second}" in text, text
    assert cluster.primary() == second
    cluster.play("start_new_standby")
    cluster.assert_replicating(second)


def test_failover_that_is_refused_behind_the_fence_says_who_was_fenced(cluster: Cluster) -> None:
    first, second = (name for name in cluster.names if name != cluster.primary())
    old, wanted = cut_off(cluster, second), ("-e", f"pg_failover_to={first}")
    status, text = failover_with(cluster, old, "SELECT pg_wal_replay_pause()", first, *wanted)
    assert status != 0 and "its replay is paused" in text, text
    assert f"Refused: failover of cluster main. {old} was fenced; nobody was promoted by this run." in text and "Nothing was changed" not in text, text
    cluster.sql(first, "SELECT pg_wal_replay_resume()")
    cluster.play("failover", *wanted)
    cluster.play("start_new_standby")
    cluster.assert_replicating(first)


@pytest.mark.long
def test_rotation_leaves_a_paused_standby_the_connection_that_it_has(cluster: Cluster) -> None:
    """It asks for the next one when it has replayed all that it has received."""
    primary = cluster.primary()
    late = cluster.standby()
    sender = "SELECT application_name, pid FROM pg_stat_replication ORDER BY 1"
    cluster.sql(late, "SELECT pg_wal_replay_pause()")
    before = dict(line.split("|") for line in cluster.sql(primary, sender).splitlines())
    assert late in before
    secrets = cluster.state / "new_secrets.json"
    secrets.touch(mode=0o600)
    secrets.write_text(json.dumps({"pg_replication_password": "while paused", "pg_rewind_password": "while paused, too"}), encoding="utf-8")
    done = cluster.play("rotate_secrets", "-e", f"@{secrets}")
    assert f"{late}: keeps its connection" in done.text and "proven" in done.text
    after = dict(line.split("|") for line in cluster.sql(primary, sender).splitlines())
    assert {standby for standby in before if after[standby] == before[standby]} == {late}
    cluster.sql(late, "SELECT pg_wal_replay_resume()")
    cluster.play("rotate_secrets")
    cluster.assert_replicating(primary)
