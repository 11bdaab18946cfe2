# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scenarios by name. Each begins with a healthy cluster and ends with what an operator types to get one again."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster import Run, run_command
from tests.chaos.cluster import ChaosCluster, ChaosError, Ended, unreachable, wait_until
from tests.chaos.stage import NOTHING, REPORTED, Scenario

Play = Callable[[ChaosCluster, random.Random], None]
SCENARIOS: dict[str, Scenario] = {}


def scenario(group: str, *, may_lose: str = NOTHING, may_split: bool = False, subset: bool = False) -> Callable[[Play], Play]:
    """Register a scenario under its function's name; the docstring's first line says what it is."""

    def register(play: Play) -> Play:
        name = play.__name__
        what = (play.__doc__ or "").splitlines()[0]
        SCENARIOS[name] = Scenario(name, group, what, play, may_lose, may_split, subset)
        return play

    return register


ACCEPT_UNFENCED = ("-e", "pg_failover_unfenced=accept")
# So long a standby that cannot catch up is waited for; the default is two minutes.
HURRY = ("-e", "pg_start_timeout_seconds=15")
ROLE_CHANGES = 20
# About so many tasks begin in a run, those that are skipped and those of included files too.
TASKS = {"switchover": 11, "failover": 16, "start_new_standby": 22, "heal": 36, "rotate_secrets": 26, "initial_setup": 90}


def take_over(cluster: ChaosCluster, *arguments: str) -> None:
    """Do what an operator types after the primary died."""
    cluster.play("failover", *arguments)
    cluster.play("start_new_standby")


# failover.yml switches a container off, as roles/failover/README.md has it; the boot guard keeps it from coming back as primary.
FENCE = ("-e", json.dumps({"pg_fence_command": ["lxc", "stop", "--force", "local:{{ inventory_hostname }}"]}))


def require(holds: bool, what: str) -> None:
    """Raise ChaosError unless the scenario is where it should be."""
    if not holds:
        raise ChaosError(what)


@contextmanager
def setting(cluster: ChaosCluster, names: list[str], name: str, value: str) -> Iterator[None]:
    """Have servers run with a setting; it is reset afterwards, also on those that were down meanwhile."""
    for server in names:
        cluster.sql(server, f"ALTER SYSTEM SET {name} = '{value}'")
        cluster.sql(server, "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        for server in names:
            if cluster.in_recovery(server) is None:
                path = f"{cluster.servers[server].data_directory}/postgresql.auto.conf"
                cluster.shell(server, f"sed -i '/^{name} /d' {path}")
            else:
                cluster.sql(server, f"ALTER SYSTEM RESET {name}")
                cluster.sql(server, "SELECT pg_reload_conf()")


def fill_wal(cluster: ChaosCluster, name: str, megabytes: int) -> None:
    """Write some WAL that is no row of the ledger."""
    cluster.sql(name, "CREATE TABLE IF NOT EXISTS ballast (filler text)")
    cluster.sql(name, f"INSERT INTO ballast SELECT repeat(md5(n::text), 31) FROM generate_series(1, {megabytes * 1024}) n", timeout_seconds=60)
    cluster.sql(name, "TRUNCATE ballast")


# -- the primary -------------------------------------------------------------------------------------------------------------


@scenario("primary", may_lose=REPORTED)
def postmaster_killed(cluster: ChaosCluster, _rng: random.Random) -> None:
    """SIGKILL to the postmaster and its children; failover, rejoin."""
    cluster.kill_server(cluster.primary())
    take_over(cluster)


@scenario("primary", may_lose=REPORTED)
def immediate_stop(cluster: ChaosCluster, _rng: random.Random) -> None:
    """`pg_ctl stop -m immediate`; failover, rejoin."""
    cluster.stop_server(cluster.primary(), mode="immediate")
    take_over(cluster)


@scenario("primary", subset=True)
def backend_killed(cluster: ChaosCluster, _rng: random.Random) -> None:
    """SIGKILL to the client's backend, as the OOM killer does it: the server recovers by itself and stays primary."""
    primary = cluster.primary()
    backend = cluster.sql(primary, "SELECT pid FROM pg_stat_activity WHERE usename = 'bench_client' LIMIT 1")
    cluster.shell(primary, f"kill -KILL {int(backend)}")
    cluster.wait_for_writes()
    require(cluster.primary() == primary, "The primary changed although nobody asked for it.")


@scenario("primary")
def container_restarted(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary's machine is switched off and on again before anybody acts: it comes back as primary, with everything."""
    primary = cluster.primary()
    cluster.stop_container(primary)
    cluster.start_container(primary)
    cluster.wait_for_writes()
    require(cluster.primary() == primary, "Another node is primary although nobody asked for it.")


@scenario("primary", may_lose=REPORTED)
def container_stopped(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary's machine is off, a standby takes over, then it is switched on: the boot guard keeps its server from opening."""
    primary = cluster.primary()
    cluster.stop_container(primary)
    cluster.refused("failover", said="so it cannot be fenced")
    cluster.play("failover", *ACCEPT_UNFENCED)
    cluster.wait_for_writes()
    cluster.start_container(primary)
    require(cluster.in_recovery(primary) is not False, f"{primary} accepts writes beside the new primary.")
    cluster.play("start_new_standby")


@scenario("primary", may_lose=REPORTED)
def frozen_and_switched_off(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary hangs; `pg_fence_command` switches it off, a standby takes over, and the old one must not accept a write again."""
    primary = cluster.primary()
    with cluster.frozen(primary):
        cluster.refused("failover", said="so it cannot be fenced")
        cluster.play("failover", *FENCE)
        require(cluster.instance(primary).status == "Stopped", f"{primary} was not switched off.")
        cluster.wait_for_writes()
    cluster.start_container(primary)
    require(cluster.in_recovery(primary) is not False, f"{primary} accepts writes again.")
    cluster.play("start_new_standby")


@scenario("network", may_lose=REPORTED)
def cut_off_and_fenced(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary is cut from everybody; `pg_fence_command` switches it off, and the boot guard keeps it from coming back as primary."""
    primary = cluster.primary()
    with cluster.cut(primary):
        cluster.play("failover", *FENCE, variables=unreachable(primary))
        cluster.wait_for_writes()
    cluster.start_container(primary)
    require(cluster.in_recovery(primary) is not False, f"{primary} accepts writes again.")
    cluster.play("start_new_standby")


@scenario("primary", may_lose=REPORTED)
def frozen_fenced_and_thawed(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary hangs; `pg_fence_command` shuts its port of the switch, a standby takes over, and the old one thaws: nobody's writes reach it."""
    primary = cluster.primary()
    port = cluster.instance(primary).state().network["eth0"]["host_name"]
    bridge = os.path.basename(os.readlink(f"/sys/class/net/{port}/master"))
    with cluster.frozen(primary):
        cluster.play("failover", "-e", json.dumps({"pg_fence_command": ["ip", "link", "set", port, "nomaster"]}))
        cluster.wait_for_writes()
    wait_until(lambda: cluster.in_recovery(primary) is False, f"{primary} to wake up")
    cluster.wait_for_writes(seconds=3)
    cluster.stop_server(primary)  # at its console
    run_command(("ip", "link", "set", port, "master", bridge), timeout_seconds=15)
    cluster.play("start_new_standby")


@scenario("primary", may_lose=REPORTED, may_split=True)
def frozen_and_thawed_unfenced(cluster: ChaosCluster, _rng: random.Random) -> None:
    """Somebody accepts a failover without a fence while the primary only hangs, and it thaws: two primaries, repaired, losses reported."""
    primary = cluster.primary()
    with cluster.frozen(primary):
        cluster.play("failover", *ACCEPT_UNFENCED)
        cluster.wait_for_writes()
    wait_until(lambda: cluster.in_recovery(primary) is False, f"{primary} to answer again")
    end_the_older(cluster, primary)


@scenario("primary", may_lose=REPORTED)
def wal_disk_full(cluster: ChaosCluster, _rng: random.Random) -> None:
    """`pg_wal` is on a small disk that fills: the primary panics and cannot start; failover, room again, rejoin."""
    primary = cluster.primary()
    wal, aside = f"{cluster.servers[primary].data_directory}/pg_wal", "/var/tmp/pg_wal.aside"
    cluster.stop_server(primary)
    # Every timeline that the cluster has had leaves a segment.
    cluster.shell(
        primary,
        f"size=$(( $(du -sm {wal} | cut -f1) + 96 )) && mv {wal} {aside} && mkdir {wal}"
        f" && mount -t tmpfs -o size=${{size}}m,mode=0700 tmpfs {wal} && cp -a {aside}/. {wal}/"
        f" && chown postgres: {wal} && rm -rf {aside}",
        timeout_seconds=60,
    )
    cluster.start_server(primary)
    # A checkpoint would make segments free again, and where there are many, none would ever be missing.
    for statement in ("ALTER SYSTEM SET max_wal_size = '100GB'", "SELECT pg_reload_conf()"):
        cluster.sql(primary, statement)
    cluster.wait_for_writes()
    cluster.shell(primary, f"cat /dev/zero > {wal}/ballast 2>/dev/null; true")
    cluster.sql(primary, "SELECT 1")
    deadline = time.monotonic() + 60
    while cluster.in_recovery(primary) is False and time.monotonic() < deadline:
        # Recycled segments are used up, then there is no room for a new one.
        subprocess.run((*cluster.servers[primary].psql_argv, "-c", "SELECT pg_switch_wal()"), capture_output=True, check=False, timeout=20)
    wait_until(lambda: cluster.in_recovery(primary) is None, f"{primary} to give up")
    cluster.play("failover")
    cluster.shell(
        primary,
        f"rm -f {wal}/ballast; mkdir {aside} && cp -a {wal}/. {aside}/ && umount {wal} && rmdir {wal} && mv {aside} {wal}"
        f" && chown postgres: {wal} && chmod 700 {wal}",
        timeout_seconds=60,
    )
    cluster.play("start_new_standby")
    for statement in ("ALTER SYSTEM RESET max_wal_size", "SELECT pg_reload_conf()"):
        cluster.sql(primary, statement)


@scenario("primary")
def all_restarted(cluster: ChaosCluster, rng: random.Random) -> None:
    """All machines lose their power together and come back in any order."""
    primary = cluster.primary()
    order = rng.sample(cluster.names, len(cluster.names))
    for name in order:
        cluster.stop_container(name)
    for name in order:
        cluster.start_container(name)
    cluster.wait_for_writes()
    require(cluster.primary() == primary, "Another node is primary although nobody asked for it.")
    cluster.play("start_new_standby")


@scenario("primary", may_lose=REPORTED, subset=True)
def started_by_hand(cluster: ChaosCluster, _rng: random.Random) -> None:
    """After a failover somebody starts the old primary: the boot guard refuses, and past the guard it is read-only."""
    primary = cluster.primary()
    cluster.kill_server(primary)
    cluster.play("failover")
    require(not cluster.try_start_server(primary) and cluster.in_recovery(primary) is None, f"{primary} was started although it is fenced.")
    cluster.shell(primary, "pg_ctlcluster --skip-systemctl-redirect $(pg_lsclusters -h | awk '{print $1, $2}') start", timeout_seconds=90)
    wait_until(lambda: cluster.in_recovery(primary) is not None, f"{primary} to answer")
    require(cluster.in_recovery(primary) is True, f"{primary} accepts writes beside the new primary.")
    cluster.play("start_new_standby")


@scenario("primary", may_lose=REPORTED, subset=True)
def promoted_while_down(cluster: ChaosCluster, rng: random.Random) -> None:
    """The primary is down, somebody promotes a standby by hand, then the old one is started: the boot guard asks, refuses and fences."""
    primary, standby = cluster.primary(), rng.choice(cluster.standbys())
    cluster.kill_server(primary)
    cluster.as_owner(standby, cluster.program(standby, "pg_ctl"), "promote", "-w", "-s", "-D", cluster.servers[standby].data_directory)
    require(not cluster.try_start_server(primary) and cluster.in_recovery(primary) is None, f"{primary} opened beside {standby}.")
    require("another server was promoted" in cluster.shell(primary, "journalctl --no-pager -n 50"), "The journal does not say why.")
    cluster.play("start_new_standby")


# -- the network -------------------------------------------------------------------------------------------------------------


@scenario("network", may_lose=REPORTED)
def cut_from_everybody(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary is cut from clients, peers and controller; a standby takes over, the old server is stopped before the network heals."""
    primary = cluster.primary()
    with cluster.cut(primary):
        cluster.refused("failover", said="so it cannot be fenced", variables=unreachable(primary))
        cluster.play("failover", *ACCEPT_UNFENCED, variables=unreachable(primary))
        cluster.wait_for_writes()
        cluster.stop_server(primary)
    cluster.play("start_new_standby")


@scenario("network", may_lose=REPORTED, may_split=True)
def cut_from_everybody_then_healed(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The same, but the network heals while both run: two primaries, repaired, losses reported."""
    primary = cluster.primary()
    with cluster.cut(primary):
        cluster.play("failover", *ACCEPT_UNFENCED, variables=unreachable(primary))
        cluster.wait_for_writes()
    end_the_older(cluster, primary)


@scenario("network", subset=True)
def cut_from_controller(cluster: ChaosCluster, _rng: random.Random) -> None:
    """Only the controller does not reach the primary: no failover is allowed while a standby hears from it, whatever somebody accepts."""
    primary = cluster.primary()
    cluster.refused("failover", *ACCEPT_UNFENCED, said="hears from it: it is alive", variables=unreachable(primary))
    require(cluster.primary() == primary, "The primary changed.")


@scenario("network")
def cut_from_standbys(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary is cut from its standbys only, clients go on: no role change is allowed, nothing is lost."""
    primary, standbys = cluster.primary(), cluster.standbys()
    with cluster.cut(primary, peers=standbys):
        # It either refuses or, on a timeline above 1, tries to re-point the standbys, in vain.
        require(cluster.run("failover", *HURRY).status != 0, "A failover succeeded past a primary that answers.")
        wait_until(lambda: cluster.sql(primary, "SELECT count(*) FROM pg_stat_replication") == "0", "the standbys to be gone")
        cluster.refused("switchover", said="Nothing was changed")
        cluster.wait_for_writes()
    require(cluster.primary() == primary, "The primary changed.")


@scenario("network")
def one_way_cut(cluster: ChaosCluster, rng: random.Random) -> None:
    """Packets pass one way only between a standby and the primary; the role does not move there, and nothing is lost."""
    primary, standby = cluster.primary(), rng.choice(cluster.standbys())
    with cluster.cut(standby, peers=[primary], directions=[rng.choice(["INPUT", "OUTPUT"])]):
        done = cluster.run("switchover", "-e", f"pg_switchover_to={standby}")
        require(done.status != 0 and standby in done.text, f"A switchover succeeded to a standby that is not heard:\n{done.output[-3000:]}")
        cluster.wait_for_writes()
    require(cluster.primary() == primary, "The role moved to a standby that the primary could not hear.")


@scenario("network")
def flapping(cluster: ChaosCluster, rng: random.Random) -> None:
    """The network between primary and standbys comes and goes from the moment a hand-over begins; a second run ends it."""
    primary, standbys = cluster.primary(), cluster.standbys()
    target = rng.choice(standbys)
    run = begin_hand_over(cluster, primary, target)
    deadline = time.monotonic() + 60
    while run.process.poll() is None and time.monotonic() < deadline:
        with cluster.cut(primary, peers=standbys):
            time.sleep(rng.uniform(0.1, 1.0))
        time.sleep(rng.uniform(0.1, 2.0))
    run.end(60)
    wait_for_streams(cluster)
    cluster.play("switchover", "-e", f"pg_switchover_to={target}")
    require(cluster.primary() == target, f"{target} is not primary.")


def begin_hand_over(cluster: ChaosCluster, primary: str, target: str) -> Run:
    """Begin a switchover; return it when its checks are over and the old primary has its note of the hand-over."""
    note = cluster.notes(primary) / "pending.json"
    run = cluster.begin("switchover", "-e", f"pg_switchover_to={target}")
    wait_until(lambda: note.exists() or run.process.poll() is not None, "the hand-over to begin", pause_seconds=0.002)
    require(run.process.poll() is None, f"The switchover ended before its hand-over began:\n{run.output[-3000:]}")
    return run


def wait_for_streams(cluster: ChaosCluster) -> None:
    """Wait until a primary is there and two standbys stream from it, or one whose old primary is down."""
    count = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    wait_until(lambda: any(int(cluster.sql(name, count)) >= 1 for name in cluster.primaries()) or not cluster.primaries(), "a standby that streams")


def end_the_older(cluster: ChaosCluster, older: str, *arguments: str) -> None:
    """Repair two primaries: keep the one that was promoted last, whatever the other has accepted meanwhile."""
    require(cluster.run("status").status == 3, "Two primaries are not noticed.")
    cluster.refused("switchover", said="accepts writes")
    keep = next(name for name in cluster.primaries() if name != older)
    cluster.play("heal", "-e", f"pg_heal_keep={keep}", *arguments)


def promote_by_hand(cluster: ChaosCluster, standby: str) -> None:
    """Promote a standby past the collection, as somebody would beside a primary that runs."""
    cluster.as_owner(standby, cluster.program(standby, "pg_ctl"), "promote", "-w", "-s", "-D", cluster.servers[standby].data_directory)
    cluster.wait_for_writes()


# -- during an action --------------------------------------------------------------------------------------------------------


def kill_points(rng: random.Random, tasks: int) -> list[int]:
    """Return after how many tasks to kill three runs: once early, once in the middle, once late."""
    third = (tasks - 1) / 3
    return [rng.randint(2 + round(third * part), 1 + round(third * (part + 1))) for part in range(3)]


def killed_then_repeated(cluster: ChaosCluster, rng: random.Random, name: str, *arguments: str) -> None:
    """Run a playbook three times, each killed a bit later than the one before, then to its end; a late one may have ended before."""
    ends = [cluster.run(name, *arguments, kill_after=point).status for point in kill_points(rng, TASKS[name])]
    require(-signal.SIGKILL in ends, f"No run of {name}.yml was killed, they ended with {ends}.")
    cluster.play(name, *arguments)


@scenario("during")
def switchover_controller_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """SIGKILL to ansible-playbook between any two tasks of switchover.yml; it is run again."""
    target = rng.choice(cluster.standbys())
    killed_then_repeated(cluster, rng, "switchover", "-e", f"pg_switchover_to={target}")
    require(cluster.primary() == target, f"{target} is not primary.")


@scenario("during", may_lose=REPORTED)
def failover_controller_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """SIGKILL to ansible-playbook between any two tasks of failover.yml; it is run again."""
    fail_over_killed(cluster, rng)


def fail_over_killed(cluster: ChaosCluster, rng: random.Random, *arguments: str) -> None:
    """Kill the primary, and failover.yml up to three times; then bring everything back."""
    cluster.kill_server(cluster.primary())
    ends: list[int] = []
    for point in kill_points(rng, TASKS["failover"]):
        ends.append(cluster.run("failover", *arguments, kill_after=point).status)
        if ends[-1] == 0:
            break
    require(-signal.SIGKILL in ends, f"No run of failover.yml was killed, they ended with {ends}.")
    if not cluster.primaries() or cluster.run("status", *arguments).status != 0:
        done = cluster.run("failover", *arguments)
        require(done.status == 0 or "is primary and answers" in done.text, f"failover.yml cannot be repeated:\n{done.output[-3000:]}")
    cluster.play("start_new_standby", *arguments)


@scenario("during", may_lose=REPORTED)
def rejoin_controller_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """SIGKILL to ansible-playbook between any two tasks of start_new_standby.yml; it is run again."""
    cluster.kill_server(cluster.primary())
    cluster.play("failover")
    killed_then_repeated(cluster, rng, "start_new_standby")


@scenario("during", may_lose=REPORTED, may_split=True)
def heal_controller_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """SIGKILL to ansible-playbook between any two tasks of heal.yml on two primaries; it is run again."""
    primary = cluster.primary()
    promote_by_hand(cluster, rng.choice(cluster.standbys()))
    keep = next(name for name in cluster.primaries() if name != primary)
    killed_then_repeated(cluster, rng, "heal", "-e", f"pg_heal_keep={keep}")
    require(cluster.primary() == keep, f"{keep} is not primary.")


def new_passwords(cluster: ChaosCluster, label: str) -> tuple[str, str]:
    """Return the arguments that give a playbook other passwords than the inventory's."""
    path = cluster.logs / f"{label}.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"pg_replication_password": f"chaos-{label}", "pg_rewind_password": f"chaos-{label}-of-rewind"}), encoding="utf-8")
    return "-e", f"@{path}"


@scenario("during")
def rotation_controller_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """SIGKILL to ansible-playbook between any two tasks of rotate_secrets.yml; it is run again, and once more with the old passwords."""
    killed_then_repeated(cluster, rng, "rotate_secrets", *new_passwords(cluster, "rotated"))
    cluster.play("rotate_secrets")


@scenario("during", may_lose=REPORTED)
def rotation_killed_then_primary(cluster: ChaosCluster, rng: random.Random) -> None:
    """rotate_secrets.yml is killed half-way and the primary dies; failover, the rotation again, start_new_standby.yml."""
    passwords = new_passwords(cluster, "half-way")
    end = cluster.run("rotate_secrets", *passwords, kill_after=rng.randint(4, 18)).status
    require(end == -signal.SIGKILL, f"rotate_secrets.yml ended with {end} before it could be killed.")
    cluster.kill_server(cluster.primary())
    # Standbys that got other passwords than their new primary has do not come along.
    cluster.run("failover", *HURRY)
    cluster.play("rotate_secrets", *passwords)
    cluster.play("start_new_standby")
    cluster.play("rotate_secrets")


@scenario("during")
def setup_controller_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """SIGKILL to ansible-playbook between any two tasks of initial_setup.yml on a cluster that runs; it is run again."""
    end = cluster.run("initial_setup", kill_after=rng.randint(4, TASKS["initial_setup"])).status
    require(end == -signal.SIGKILL, f"initial_setup.yml ended with {end} before it could be killed.")
    cluster.play("initial_setup")


@scenario("during")
def switchover_connection_cut(cluster: ChaosCluster, rng: random.Random) -> None:
    """The controller's connection to the old primary ends in the middle of the hand-over; switchover.yml is run again."""
    primary, target = cluster.primary(), rng.choice(cluster.standbys())
    run = begin_hand_over(cluster, primary, target)
    time.sleep(rng.uniform(0, 0.3))
    cluster.cut_connections(primary)
    require(run.end(120) != 0, "The switchover ended before its connection could be cut.")
    # What the connection's end left running on the host ends by itself.
    wait_until(lambda: bool(cluster.primaries()), "a primary")
    cluster.play("switchover", "-e", f"pg_switchover_to={target}")
    require(cluster.primary() == target, f"{target} is not primary.")


@scenario("during", may_lose=REPORTED, subset=True)
def rewind_killed(cluster: ChaosCluster, _rng: random.Random) -> None:
    """A rewind dies in the middle: its target is never started, the next run copies it anew."""
    primary = cluster.primary()
    cluster.kill_server(primary)
    cluster.play("failover")
    note = cluster.notes(primary) / "rewind.json"
    run = cluster.begin("start_new_standby")
    wait_until(lambda: note.exists() or run.process.poll() is not None, "the rewind to begin", pause_seconds=0.001)
    cluster.shell(primary, "pkill -KILL -x python3; pkill -KILL -x pg_rewind; true")
    status = run.end(120)
    require(status != 0 and note.exists(), f"The rewind ended before it could be killed ({status}).")
    require(cluster.in_recovery(primary) is None, f"{primary} runs although its rewind did not end.")
    require(not cluster.try_start_server(primary) and cluster.in_recovery(primary) is None, f"{primary} was started although its rewind did not end.")
    done = cluster.play("start_new_standby")
    require("an earlier rewind did not finish" in done.text, f"The unfinished rewind was not noticed:\n{done.output[-3000:]}")


def data_gone(cluster: ChaosCluster, standby: str) -> Path:
    """Remove a standby's data directory; return what there is once a new copy has begun."""
    data = cluster.servers[standby].data_directory
    cluster.stop_server(standby)
    cluster.shell(standby, f"rm -rf {data}")
    return cluster.root(standby) / f"{data}.clone/base".lstrip("/")


@scenario("during")
def clone_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """A copy dies in the middle; the next run begins again or goes on."""
    standby = rng.choice(cluster.standbys())
    copied = data_gone(cluster, standby)
    run = cluster.begin("start_new_standby")
    wait_until(lambda: copied.exists() or run.process.poll() is not None, "the copy to begin", pause_seconds=0.001)
    cluster.shell(standby, "pkill -KILL -x python3; pkill -KILL -x pg_basebackup; true")
    require(run.end(120) != 0, "The copy ended before it could be killed.")
    cluster.play("start_new_standby")


def cut_off_and_repeated(cluster: ChaosCluster, host: str, begun: Callable[[], bool]) -> None:
    """Cut the controller's connection to a host once start_new_standby.yml has begun there; run it again when what is left on the host has ended."""
    run = cluster.begin("start_new_standby")
    wait_until(lambda: begun() or run.process.poll() is not None, "the work to begin", pause_seconds=0.001)
    require(run.process.poll() is None, f"start_new_standby.yml ended before there was anything to cut:\n{run.output[-3000:]}")
    cluster.cut_connections(host)
    require(run.end(120) != 0, "start_new_standby.yml ended before its connection could be cut.")
    ends: list[Ended] = []

    def repeated() -> bool:
        ends.append(cluster.run("start_new_standby"))
        return ends[-1].status == 0 or "is still at work on this server" not in ends[-1].text

    wait_until(repeated, f"what was left running on {host} to end", timeout_seconds=120)
    require(ends[-1].status == 0, f"start_new_standby.yml cannot be repeated:\n{ends[-1].output[-3000:]}")


@scenario("during", may_lose=REPORTED)
def rewind_connection_cut(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The controller's connection to the old primary ends in the middle of its rewind; start_new_standby.yml is run again."""
    primary = cluster.primary()
    cluster.kill_server(primary)
    cluster.play("failover")
    cut_off_and_repeated(cluster, primary, (cluster.notes(primary) / "rewind.json").exists)


@scenario("during")
def clone_connection_cut(cluster: ChaosCluster, rng: random.Random) -> None:
    """The controller's connection to a standby ends in the middle of a copy; start_new_standby.yml is run again."""
    standby = rng.choice(cluster.standbys())
    cut_off_and_repeated(cluster, standby, data_gone(cluster, standby).exists)


@scenario("during", subset=True)
def candidate_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """The candidate dies between the stop and the promotion: the old primary comes back as primary, with everything."""
    primary, target = cluster.primary(), rng.choice(cluster.standbys())
    # Its replay stands still, so that the window stays open until it dies.
    cluster.shell(target, "pkill -STOP -f '^postgres: .*startup'")
    pid_file = cluster.data(primary) / "postmaster.pid"
    run = cluster.begin("switchover", "-e", f"pg_switchover_to={target}")
    wait_until(lambda: not pid_file.exists() or run.process.poll() is not None, "the old primary to stop", pause_seconds=0.002)
    stopped = not pid_file.exists()
    cluster.kill_server(target)
    status = run.end(120)
    require(stopped and status != 0, f"The switchover ended before the candidate died ({status}):\n{run.output[-2000:]}")
    cluster.wait_for_writes()
    require(cluster.primary() == primary, f"{primary} did not come back as primary.")
    cluster.play("start_new_standby")


# -- data --------------------------------------------------------------------------------------------------------------------


@scenario("data", subset=True)
def planned_switchover(cluster: ChaosCluster, rng: random.Random) -> None:
    """A switchover while everything is well."""
    cluster.play("switchover", "-e", f"pg_switchover_to={rng.choice(cluster.standbys())}")


@scenario("data", may_lose=REPORTED, subset=True)
def unreplicated_commits(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The primary dies with commits that no standby has: announced by the failover, listed by the rejoin, and only those are lost."""
    primary = cluster.primary()
    with cluster.cut(primary, peers=cluster.standbys()):
        cluster.wait_for_writes(seconds=2)
        cluster.kill_server(primary)
        # Still cut off: the kernel goes on sending what a killed server had written to its connections.
        announced = re.search(r"At most (\d+) bytes of WAL", cluster.play("failover").text)
    require(bool(announced and int(announced[1]) > 0), "The failover announced no loss.")
    done = cluster.play("start_new_standby")
    require("committed transaction(s) existed only here" in done.text, f"The rejoin reported no loss:\n{done.output[-3000:]}")


@contextmanager
def synchronous(cluster: ChaosCluster) -> Iterator[tuple[str, str]]:
    """Have any standby confirm each commit while the block runs; gives the option that every playbook of the block needs."""
    option = ("-e", "pg_synchronous_mode=any")
    cluster.play("start_new_standby", *option)
    wait_until(lambda: cluster.sql(cluster.primary(), "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'") == "2", "a quorum")
    cluster.wait_for_writes()
    yield option
    cluster.play("start_new_standby")


@scenario("data", subset=True)
def synchronous_failover(cluster: ChaosCluster, rng: random.Random) -> None:
    """With `pg_synchronous_mode: any` one standby is cut off, then the primary dies: the other, which has every confirmed commit, takes over."""
    with synchronous(cluster) as option:
        primary, behind = cluster.primary(), rng.choice(cluster.standbys())
        with cluster.cut(behind, peers=[primary]):
            cluster.wait_for_writes(seconds=1)
            cluster.kill_server(primary)
            cluster.play("failover", *option)
        require(cluster.primary() not in (primary, behind), f"{behind} is primary, although it lacked rows.")
        cluster.play("start_new_standby", *option)


@scenario("network", may_split=True)
def synchronous_cut(cluster: ChaosCluster, _rng: random.Random) -> None:
    """With `pg_synchronous_mode: any` the primary is cut from everybody, goes on alone, and confirms nothing more; failover, network heals, heal.yml."""
    with synchronous(cluster) as option:
        primary = cluster.primary()
        with cluster.cut(primary):
            cluster.play("failover", *ACCEPT_UNFENCED, *option, variables=unreachable(primary))
            cluster.wait_for_writes()
        end_the_older(cluster, primary, *option)


@scenario("during")
def synchronous_controller_killed(cluster: ChaosCluster, rng: random.Random) -> None:
    """With `pg_synchronous_mode: any` a switchover and a failover are killed at a random task and repeated."""
    with synchronous(cluster) as option:
        target = rng.choice(cluster.standbys())
        killed_then_repeated(cluster, rng, "switchover", "-e", f"pg_switchover_to={target}", *option)
        fail_over_killed(cluster, rng, *option)


@scenario("data", may_lose=REPORTED, may_split=True)
def promoted_by_somebody(cluster: ChaosCluster, rng: random.Random) -> None:
    """`pg_ctl promote` on a standby, past the collection: noticed, no role change is allowed, repaired, losses reported."""
    primary = cluster.primary()
    promote_by_hand(cluster, rng.choice(cluster.standbys()))
    end_the_older(cluster, primary)


@scenario("data")
def foreign_system(cluster: ChaosCluster, rng: random.Random) -> None:
    """A standby's data directory is another cluster's: refused, and left as it is."""
    standby = rng.choice(cluster.standbys())
    data = cluster.servers[standby].data_directory
    cluster.stop_server(standby)
    cluster.shell(standby, f"mv {data} {data}.own && install -d -o postgres -g postgres -m 0700 {data}")
    cluster.as_owner(standby, cluster.program(standby, "initdb"), "-D", data, timeout_seconds=60)
    try:
        cluster.refused("start_new_standby", said="its data belongs to another cluster")
        require(cluster.shell(standby, f"test -e {data}.own/PG_VERSION -a -e {data}/PG_VERSION && echo there") == "there", "The data was touched.")
    finally:
        cluster.shell(standby, f"rm -rf {data} && mv {data}.own {data}")
    cluster.play("start_new_standby")


@scenario("data")
def wal_recycled(cluster: ChaosCluster, rng: random.Random) -> None:
    """The WAL that a standby needs is gone from the primary: it is copied anew."""
    primary, standby = cluster.primary(), rng.choice(cluster.standbys())
    slot = cluster.sql(standby, "SHOW primary_slot_name")
    cluster.stop_server(standby)
    wait_until(lambda: cluster.sql(primary, f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'") == "f", "the slot to be free")
    cluster.sql(primary, f"SELECT pg_drop_replication_slot('{slot}')")
    for _turn in range(4):
        fill_wal(cluster, primary, 2)
        cluster.sql(primary, "SELECT pg_switch_wal()")
        cluster.sql(primary, "CHECKPOINT", timeout_seconds=60)
    done = cluster.play("start_new_standby")
    require(f"{standby}: reclone" in done.text, f"It was not copied anew:\n{done.output[-3000:]}")


@scenario("data", may_lose=REPORTED)
def replay_paused(cluster: ChaosCluster, rng: random.Random) -> None:
    """A standby's replay is paused when the primary dies: the other takes over."""
    primary, standby = cluster.primary(), rng.choice(cluster.standbys())
    cluster.sql(standby, "SELECT pg_wal_replay_pause()")
    cluster.kill_server(primary)
    cluster.play("failover", *HURRY)
    require(cluster.primary() not in (standby, primary), "The paused standby was promoted.")
    cluster.sql(standby, "SELECT pg_wal_replay_resume()")
    cluster.play("start_new_standby")


@scenario("data", may_lose=REPORTED)
def standby_far_behind(cluster: ChaosCluster, rng: random.Random) -> None:
    """One standby lacks much when the primary dies: the other takes over."""
    primary, standby = cluster.primary(), rng.choice(cluster.standbys())
    with cluster.cut(standby, peers=[primary]):
        fill_wal(cluster, primary, 24)
        cluster.wait_for_writes()
        cluster.kill_server(primary)
    cluster.play("failover")
    require(cluster.primary() not in (standby, primary), "The standby that was behind was promoted.")
    cluster.play("start_new_standby")


@scenario("data", may_lose=REPORTED)
def delayed_standby(cluster: ChaosCluster, rng: random.Random) -> None:
    """A standby with `recovery_min_apply_delay` must not win."""
    primary, standby = cluster.primary(), rng.choice(cluster.standbys())
    with setting(cluster, [standby], "recovery_min_apply_delay", "5min"):
        cluster.wait_for_writes()
        cluster.kill_server(primary)
        cluster.play("failover", *HURRY)
        require(cluster.primary() not in (standby, primary), "The delayed standby was promoted.")
    cluster.play("start_new_standby")


@scenario("data")
def cascade_parent_killed(cluster: ChaosCluster, _rng: random.Random) -> None:
    """A standby follows another one, which dies and comes back."""
    parent, child = cluster.standbys()
    cascade = {child: {"pg_upstream": parent}}
    cluster.play("start_new_standby", variables=cascade)
    wait_until(lambda: cluster.sql(parent, "SELECT count(*) FROM pg_stat_replication") == "1", f"{child} to follow {parent}")
    cluster.kill_server(parent)
    cluster.wait_for_writes()
    cluster.play("start_new_standby", variables=cascade)
    require(cluster.run("status", variables=cascade).status == 0, "The cascade is not healthy.")
    cluster.play("start_new_standby")


@scenario("data", may_lose=REPORTED)
def tablespaces(cluster: ChaosCluster, _rng: random.Random) -> None:
    """The ledger's own table is in a tablespace when the primary dies and is brought back."""
    for name in cluster.names:
        cluster.shell(name, "install -d -o postgres -g postgres -m 0700 /var/lib/postgresql/space")
    cluster.sql(cluster.primary(), "CREATE TABLESPACE space LOCATION '/var/lib/postgresql/space'")
    cluster.sql(cluster.primary(), "ALTER TABLE ledger SET TABLESPACE space", database="bench_client", timeout_seconds=60)
    cluster.kill_server(cluster.primary())
    take_over(cluster)
    cluster.sql(cluster.primary(), "ALTER TABLE ledger SET TABLESPACE pg_default", database="bench_client", timeout_seconds=60)
    cluster.sql(cluster.primary(), "CHECKPOINT", timeout_seconds=60)
    cluster.sql(cluster.primary(), "DROP TABLESPACE space")


@scenario("data")
def twenty_role_changes(cluster: ChaosCluster, rng: random.Random) -> None:
    """Twenty switchovers in a row, without a pause."""
    for _change in range(ROLE_CHANGES):
        cluster.play("switchover", "-e", f"pg_switchover_to={rng.choice(cluster.standbys())}")
