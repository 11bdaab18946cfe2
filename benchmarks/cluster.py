# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster on LXD that is measured: playbooks as commands, SQL through `lxc exec`, and what the runs need prepared."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from psycopg2 import extensions

from benchmarks.floor import Server, literal, query_once, wait_until

CHECKOUT = Path(__file__).resolve().parent.parent
INVENTORY = "inventories/lxd"
LIMIT = "pg_cluster_main"
GROUP = "pg_nodes"
VAULT_SCRIPT = "scripts/vault_password_env-client.sh"
EXAMPLE_VAULT_PASSWORD = "replicate-safely"  # the README's, for the example inventories
ROLE = "bench_client"  # names that begin with pg_ are reserved
# 300 MB are changed on top of the probe's own rows. No checkpoint may begin by itself while that happens, and the
# background writer must not take the dirty buffers away before they are measured.
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    "bgwriter_lru_maxpages": "0",
}
# A sequential scan of more than a quarter of shared_buffers goes round in a small ring of buffers, which it writes out: so
# four tables of 75 MB. One row a page (fillfactor 10), hence many dirty pages for little WAL.
DIRTY_TABLES = 4
DIRTY_PAGES = 9600
BIN_DIRECTORY_SCRIPT = 'read -r pid < {data}/postmaster.pid && dirname "$(readlink "/proc/$pid/exe")"'
UNIT_SCRIPT = 'read -r pid < {data}/postmaster.pid && ps -o unit= -p "$pid"'


class BenchError(Exception):
    """The measurement cannot go on; the text says why and where to look."""


@dataclass(frozen=True)
class Run:
    """One run of ansible-playbook that has begun; `began_seconds` is monotonic."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    began_seconds: float

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def end(self, timeout_seconds: float) -> int:
        """Wait for its end and return its status; whatever is left of it is killed. Raises BenchError if it is late."""
        try:
            return self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{self.name}.yml did not end within {timeout_seconds:g} s and was killed; see {self.log}.") from error
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(5)


@dataclass(frozen=True)
class Playbooks:
    """How playbooks are run: the variables that each gets, and where their output goes."""

    log_directory: Path
    extra_vars: Mapping[str, Any] = field(default_factory=dict)
    inventory: str = INVENTORY
    limit: str = LIMIT

    def argv(self, program: str, *arguments: str) -> list[str]:
        """Return the command of one of Ansible's programs, from the same environment as this Python."""
        return [str(Path(sys.executable).parent / program), "-i", self.inventory, "--vault-id", VAULT_SCRIPT, *arguments]

    def begin(self, name: str, *arguments: str, **more_environment: str) -> Run:
        """Start playbooks/<name>.yml; the caller has to end the run."""
        variables = json.dumps(dict(self.extra_vars))
        limit = () if name in ("launch_containers", "delete_containers") else ("--limit", self.limit)
        argv = self.argv("ansible-playbook", f"playbooks/{name}.yml", "-e", variables, *limit, *arguments)
        log = self.log_directory / f"{time.strftime('%H%M%S')}_{time.monotonic_ns() % 10**6:06d}_{name}.log"
        with log.open("wb") as output:
            began = time.monotonic()
            process = subprocess.Popen(  # pylint: disable=consider-using-with
                argv,
                cwd=CHECKOUT,
                env={**environment(), **more_environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Run(name, process, log, began)

    def run(self, name: str, *arguments: str, timeout_seconds: float) -> tuple[float, float]:
        """Run playbooks/<name>.yml; return when it began and ended (monotonic). Raises BenchError if it fails or is late."""
        run = self.begin(name, *arguments)
        status = run.end(timeout_seconds)
        ended = time.monotonic()
        if status != 0:
            last = "\n".join(run.output.splitlines()[-25:])
            raise BenchError(f"{name}.yml failed with status {status}; see {run.log}, which ends:\n{last}")
        return run.began_seconds, ended

    def hosts(self) -> dict[str, dict[str, Any]]:
        """Return the variables of each PostgreSQL host, in the inventory's order."""
        # Other clusters on the same LXD are not ours to measure.
        listing = json.loads(run_command(self.argv("ansible-inventory", "--list"), timeout_seconds=60))
        variables = listing.get("_meta", {}).get("hostvars", {})
        return {name: {key: plain(value) for key, value in variables.get(name, {}).items()} for name in members(listing, self.limit)}


def plain(value: Any) -> Any:
    """Return a variable without the mark that ansible-inventory prints around a text from an inventory plugin."""
    return value["__ansible_unsafe"] if isinstance(value, dict) and set(value) == {"__ansible_unsafe"} else value


def members(listing: Mapping[str, Any], group: str) -> list[str]:
    """Return the hosts of a group and of its children, as `ansible-inventory --list` nests them, each once."""
    found = list(listing.get(group, {}).get("hosts", []))
    for child in listing.get(group, {}).get("children", []):
        found += members(listing, child)
    return list(dict.fromkeys(found))


def environment() -> dict[str, str]:
    """Return the environment of the playbooks: this Python's directory first, and the example inventory's password."""
    changed = dict(os.environ, PATH=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}", NO_COLOR="1")
    changed.setdefault("PG_OPS_VAULT_PASSWORD", EXAMPLE_VAULT_PASSWORD)
    return changed


def run_command(argv: Sequence[str], *, timeout_seconds: float, stdin: str = "") -> str:
    """Return what a command printed; raises BenchError if it fails or is late."""
    try:
        done = subprocess.run(
            argv,
            cwd=CHECKOUT,
            env=environment(),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_seconds,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"Cannot run {argv[0]}: {error}") from error
    if done.returncode != 0:
        raise BenchError(f"{' '.join(argv)} failed with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def own_address(peer: str) -> str:
    """Return the address that this machine has towards `peer`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 5432))
        address: str = probe.getsockname()[0]
    return address


def hba_rules(source: str) -> list[dict[str, str]]:
    """Return the pg_hba.conf rule that admits the benchmark's role, in community.postgresql.postgresql_pg_hba's words."""
    rule = {"contype": "host", "databases": ROLE, "users": ROLE, "source": f"{source}/32", "method": "scram-sha-256"}
    return [rule]


def server_of(name: str, variables: Mapping[str, Any]) -> Server:
    """Return how to reach one container's server by hand; asks the running server where its files are."""
    # From /, because psql as postgres complains where it cannot enter root's home.
    enter = ("lxc", "exec", name, "--cwd", "/", "--")
    shell = (*enter, "sh")
    port, owner = int(variables.get("pg_port", 5432)), str(variables.get("pg_owner", "postgres"))
    superuser = str(variables.get("pg_superuser", "postgres"))
    # One stream: lxc carries two side by side, and a notice that comes behind the answer's end would be taken for a failure.
    one_stream = (*shell, "-c", 'exec "$0" "$@" 2>&1')
    psql = (*one_stream, "runuser", "-u", owner, "--", "psql", "-XAtq", "-p", str(port), "-U", superuser, "postgres")
    found = Server(name, str(variables["pg_address"]), port, shell, psql, "", "", "")
    data = query_once(found, "SHOW data_directory")
    programs = run_command(shell, stdin=BIN_DIRECTORY_SCRIPT.format(data=data), timeout_seconds=10)
    unit = run_command(shell, stdin=UNIT_SCRIPT.format(data=data), timeout_seconds=10)
    if not unit.endswith(".service"):
        raise BenchError(f"The server on {name} does not run under systemd, it belongs to {unit!r}.")
    return Server(name, found.address, port, shell, psql, data, programs, f"systemctl start {unit}")


class Cluster:
    """The servers by name, and the client's connection string."""

    def __init__(self, servers: Mapping[str, Server], password: str) -> None:
        self.servers = dict(servers)
        # Certificates are not what is measured: no TLS, so that a reconnect costs one SCRAM exchange.
        self.dsn: str = extensions.make_dsn(
            host=",".join(server.address for server in servers.values()),
            port=",".join(str(server.port) for server in servers.values()),
            user=ROLE,
            password=password,
            dbname=ROLE,
            sslmode="disable",
            gssencmode="disable",
        )

    def primary(self) -> Server:
        """Return the one server that is not in recovery; raises BenchError if there is not exactly one."""
        found = [each for each in self.servers.values() if query_once(each, "SELECT pg_is_in_recovery()") == "f"]
        if len(found) != 1:
            raise BenchError(f"There must be one primary, there are {len(found)}: {[each.name for each in found]}.")
        return found[0]

    def standbys(self, primary: Server) -> list[Server]:
        """Return the other servers, in the inventory's order."""
        return [each for each in self.servers.values() if each != primary]

    def settle(self, *, timeout_seconds: float = 60.0) -> tuple[Server, list[Server]]:
        """Wait until every standby has what the primary has now, write all buffers out; return primary and standbys."""
        primary = self.primary()
        standbys = self.standbys(primary)
        mark = query_once(primary, "SELECT pg_current_wal_lsn()")
        streams = (
            f"SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '{mark}') >= 0"
            " AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')"
        )
        wait_until(
            lambda: all(query_once(standby, streams) == "t" for standby in standbys),
            timeout_seconds=timeout_seconds,
            pause_seconds=0.2,
            what=f"{', '.join(standby.name for standby in standbys)} streaming from {primary.name} beyond {mark}",
        )
        for server in (primary, *standbys):
            query_once(server, "CHECKPOINT", timeout_seconds=60)
        return primary, standbys

    def create_role(self, password: str) -> None:
        """Create the probe's role and an empty database of its own; those of an earlier benchmark are dropped."""
        primary = self.primary()
        self._drop_role(primary)
        query_once(primary, f"CREATE ROLE {ROLE} LOGIN PASSWORD {literal(password)}")
        query_once(primary, f"CREATE DATABASE {ROLE} OWNER {ROLE}", timeout_seconds=60)

    def _drop_role(self, primary: Server) -> None:
        query_once(primary, f"DROP DATABASE IF EXISTS {ROLE} WITH (FORCE)", timeout_seconds=60)
        query_once(primary, f"DROP ROLE IF EXISTS {ROLE}")

    def configure(self) -> None:
        """Apply SETTINGS with ALTER SYSTEM and restart the servers where that changed anything, standbys first."""
        primary = self.primary()
        for server in (*self.standbys(primary), primary):
            before = [query_once(server, f"SHOW {name}") for name in SETTINGS]
            for name, value in SETTINGS.items():
                query_once(server, f"ALTER SYSTEM SET {name} = {literal(value)}")
            if before != list(SETTINGS.values()):
                restart = server.start_command.replace("systemctl start", "systemctl restart", 1)
                run_command(server.shell_argv, stdin=restart, timeout_seconds=90)
        self.settle()

    def create_dirty_tables(self) -> None:
        """Create the tables that make_dirty updates."""
        primary = self.primary()
        query_once(primary, "CREATE EXTENSION IF NOT EXISTS pg_buffercache")
        for number in range(1, DIRTY_TABLES + 1):
            query_once(primary, f"DROP TABLE IF EXISTS pg_ops_dirty_{number}")
            query_once(
                primary,
                f"CREATE TABLE pg_ops_dirty_{number} WITH (fillfactor = 10, autovacuum_enabled = off) AS"
                f" SELECT n, 0 AS counter, repeat('x', 700) AS filler FROM generate_series(1, {DIRTY_PAGES}) AS n",
                timeout_seconds=120,
            )

    def make_dirty(self) -> float:
        """Update every row of the tables; return how many MB of shared buffers are dirty then."""
        primary = self.primary()
        for number in range(1, DIRTY_TABLES + 1):
            query_once(primary, f"UPDATE pg_ops_dirty_{number} SET counter = counter + 1", timeout_seconds=120)
        pages = query_once(primary, "SELECT count(*) FROM pg_buffercache WHERE isdirty")
        return round(int(pages) * 8192 / 1e6, 1)

    def remove_tables(self) -> None:
        """Drop what the benchmark made: database, role and tables. The settings stay until they are reset."""
        primary = self.primary()
        for number in range(1, DIRTY_TABLES + 1):
            query_once(primary, f"DROP TABLE IF EXISTS pg_ops_dirty_{number}")
        query_once(primary, "DROP EXTENSION IF EXISTS pg_buffercache")
        self._drop_role(primary)


def set_up(log_directory: Path) -> tuple[Cluster, Playbooks]:
    """Bring the containers and the cluster up with the project's playbooks, and admit the probe."""
    plain = Playbooks(log_directory)
    plain.run("launch_containers", timeout_seconds=1200)
    hosts = plain.hosts()
    if len(hosts) < 2:
        raise BenchError(f"The group {GROUP} of {INVENTORY} has {len(hosts)} hosts, a hand-over needs two.")
    source = own_address(str(next(iter(hosts.values()))["pg_address"]))
    playbooks = Playbooks(log_directory, {"pg_hba_extra_rules": hba_rules(source)})
    playbooks.run("initial_setup", timeout_seconds=1200)
    password = secrets.token_urlsafe(24)
    cluster = Cluster({name: server_of(name, variables) for name, variables in hosts.items()}, password)
    cluster.configure()
    cluster.create_role(password)
    cluster.create_dirty_tables()
    return cluster, playbooks
