# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real PostgreSQL servers for the module tests, and modules called as Ansible calls them: one process each, JSON in, JSON out.

A module runs in a child process that is forked from here, so that it starts as fresh as under Ansible and costs no import. As root
the servers run under the account nobody, otherwise under one's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import itertools
import json
import math
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg2
from ansible.module_utils.testing import patch_module_args

MODULES = "ansible_collections.pg_ops.replication.plugins.modules."
ACCOUNT = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
# Everything that a passfile, a conninfo or a command line could trip over.
REPLICATION_PASSWORD = "r'e\"p\\l :%c ä=#@/1"
REWIND_PASSWORD = "r\\\\e:w'in\"d {{ x }} %s ß"
TESTER_PASSWORD = "tester"
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{sockets}'
fsync = off
dynamic_shared_memory_type = mmap
shared_buffers = 8MB
max_connections = 30
max_prepared_transactions = 2
max_slot_wal_keep_size = 128MB
wal_log_hints = on
wal_retrieve_retry_interval = 100ms
checkpoint_timeout = 1h
autovacuum = off
password_encryption = scram-sha-256
"""
HBA = """
host all tester,rewinder 127.0.0.1/32 scram-sha-256
host replication replicator 127.0.0.1/32 scram-sha-256
"""
ROLES = """
CREATE ROLE tester SUPERUSER LOGIN PASSWORD %(tester)s;
CREATE ROLE replicator REPLICATION LOGIN PASSWORD %(replicator)s;
CREATE ROLE rewinder LOGIN PASSWORD %(rewinder)s;
GRANT EXECUTE ON FUNCTION pg_ls_dir(text, boolean, boolean), pg_stat_file(text, boolean), pg_read_binary_file(text),
  pg_read_binary_file(text, bigint, bigint, boolean), pg_promote(boolean, integer) TO rewinder;
CREATE TABLE written (number bigint PRIMARY KEY, by text);
"""


@dataclass(frozen=True)
class Programs:
    """One directory of PostgreSQL programs and their major version."""

    directory: str
    version: int


@dataclass(frozen=True)
class Answer:
    """What a module printed."""

    result: dict[str, Any]
    text: str

    def __getitem__(self, name: str) -> Any:
        return self.result[name]

    def get(self, name: str) -> Any:
        return self.result.get(name)

    @property
    def failed(self) -> bool:
        return bool(self.result.get("failed"))

    @property
    def changed(self) -> bool:
        """Whether it changed something; a failure is one of the test's too."""
        assert not self.failed, self.text
        return bool(self.result["changed"])

    def refusal(self, reason: str) -> str:
        """Return the message of a refusal, after looking at its form: one reason, what was observed, what to do."""
        assert self.failed, self.text
        assert self.result.get("reason") == reason, self.text
        assert "Traceback" not in self.text
        assert "\n" not in self.result["msg"].strip()
        return str(self.result["msg"])


@dataclass(frozen=True)
class Run:
    """A module at work in a process of its own."""

    pid: int
    output: Path

    def wait(self, timeout_seconds: float = 60) -> Answer:
        """Wait for the module's end and return what it printed; a module that hangs is killed and fails the test."""
        deadline = time.monotonic() + timeout_seconds
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            reap_servers()
            if time.monotonic() > deadline:
                text = self.output.read_text(encoding="utf-8")
                self.kill()
                raise AssertionError(f"the module did not end within {timeout_seconds} s: {text}")
            time.sleep(0.01)
        text = self.output.read_text(encoding="utf-8")
        self.output.unlink()
        lines = [line for line in text.splitlines() if line.startswith("{")]
        assert len(lines) == 1, f"no JSON: {text}"
        return Answer(json.loads(lines[0]), text)

    @property
    def ended(self) -> bool:
        """Whether the module has printed its answer."""
        return any(line.startswith("{") for line in self.output.read_text(encoding="utf-8").splitlines())

    def kill(self) -> None:
        """End the module as a machine's trouble would: SIGKILL, its children stay."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self.output.unlink()


def start_module(name: str, options: dict[str, Any], *, check_mode: bool = False) -> Run:
    """Start a module in a child process."""
    handle, output = tempfile.mkstemp(prefix="pg_ops_answer.")
    module = importlib.import_module(MODULES + name)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(handle)
        return Run(pid, Path(output))
    code = 70
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the test's time limit is not the module's
        null = os.open(os.devnull, os.O_RDONLY)
        for number, source in enumerate((null, handle, handle)):
            os.dup2(source, number)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        with patch_module_args({**options, "_ansible_check_mode": check_mode, "_ansible_diff": True}):
            module.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - shown to the parent, which fails the test
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # no clean-up: the parent's connections and fixtures are not ours


def call(name: str, options: dict[str, Any], *, check_mode: bool = False, timeout_seconds: float = 60) -> Answer:
    """Run a module and return its answer."""
    return start_module(name, options, check_mode=check_mode).wait(timeout_seconds)


# --- servers ---


@dataclass(frozen=True)
class Node:
    """One server: its place, its port, its programs."""

    name: str
    home: Path
    port: int
    programs: Programs
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def slot(self) -> str:
        return f"slot_{self.name}"

    def options(self, **more: Any) -> dict[str, Any]:
        """Return the options that every module takes, for this server."""
        return {
            "bin_directory": self.programs.directory, "version": str(self.programs.version), "data_directory": str(self.data),
            "state_directory": str(self.state), "log_file": str(self.log), "owner": ACCOUNT.pw_name, "service_manager": "pg_ctl",
            "login_user": ACCOUNT.pw_name, "login_port": self.port, "login_unix_socket": str(self.home / "run"),
            "connect_timeout_seconds": 2, **self.extra, **more,
        }

    def towards(self, peer: Node, **more: Any) -> dict[str, Any]:
        """Return the options of a module that works with another server."""
        return self.options(
            peer_name=peer.name, peer_address="127.0.0.1", peer_port=peer.port, host_name=self.name, slot_name=self.slot, **more
        )

    def call(self, module: str, *, check_mode: bool = False, **more: Any) -> Answer:
        """Run a module on this server alone."""
        return call(module, self.options(**more), check_mode=check_mode)

    def call_towards(self, module: str, peer: Node, *, check_mode: bool = False, **more: Any) -> Answer:
        """Run a module on this server that works with `peer`."""
        return call(module, self.towards(peer, **more), check_mode=check_mode)

    def note(self, name: str) -> dict[str, Any]:
        path = self.state / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def write_note(self, name: str, note: dict[str, Any]) -> None:
        self.state.mkdir(exist_ok=True, mode=0o700)
        (self.state / f"{name}.json").write_text(json.dumps(note), encoding="utf-8")
        own(self.state)

    def program(self, name: str, *arguments: str, check: bool = True) -> str:
        """Run one of PostgreSQL's programs as the servers' account and return what it printed."""
        done = as_account([f"{self.programs.directory}/{name}", *arguments])
        assert not check or done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        done = as_account([f"{self.programs.directory}/pg_ctl", "start", "-w", "-s", "-D", str(self.data), "-l", str(self.log)])
        assert done.returncode == 0, f"{self.name}: {done.stderr}{self.log.read_text(encoding='utf-8')[-1500:]}"

    def stop(self, mode: str = "fast") -> None:
        self.program("pg_ctl", "stop", "-w", "-s", "-m", mode, "-D", str(self.data))

    def pid(self) -> int:
        """Return the postmaster's process id, 0 when none works in our directory."""
        try:
            pid = int((self.data / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
            return pid if os.readlink(f"/proc/{pid}/cwd") == os.path.realpath(self.data) else 0
        except (OSError, ValueError):
            return 0

    def processes(self) -> list[int]:
        """Return the postmaster and its children, by id."""
        return [pid for pid in process_ids() if working_directory(pid) == os.path.realpath(self.data)]

    def freeze(self) -> list[int]:
        """Stop every process of the server as a frozen machine would; returns their ids."""
        frozen = sorted(self.processes(), key=lambda pid: pid != self.pid())
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        return frozen

    def crash(self) -> None:
        """Kill every process of the server."""
        pid = self.pid()
        end_processes(self.freeze())
        wait_for(lambda: state_of(pid) == "", "the postmaster's disappearance")  # a zombie keeps a new one from starting

    def connect(self, dbname: str = "postgres") -> Any:
        return psycopg2.connect(
            host="127.0.0.1", port=self.port, user="tester", password=TESTER_PASSWORD, dbname=dbname, connect_timeout=5, sslmode="disable",
            gssencmode="disable",
        )

    def sql(self, statement: str, *values: Any) -> Any:
        """Run one statement; returns the first column of its first row, None without rows."""
        with contextlib.closing(self.connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    def is_primary(self) -> bool:
        return not self.sql("SELECT pg_is_in_recovery()")

    def write_row(self, number: int) -> int:
        """Commit one row; returns its transaction's id."""
        return int(self.sql("INSERT INTO written VALUES (%s, %s) RETURNING xmin::text", number, self.name))

    def numbers(self) -> set[int]:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT number FROM written")
            return {row[0] for row in cursor.fetchall()}

    def slots(self) -> dict[str, str]:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT slot_name, wal_status FROM pg_replication_slots")
            return dict(cursor.fetchall())

    def control(self, label: str) -> str:
        """Return what pg_controldata prints behind a label."""
        lines = self.program("pg_controldata", "-D", str(self.data)).splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(label + ":"))

    def append_conf(self, text: str) -> None:
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")


def kill_postmaster_below_a_long_statement(node: Node) -> threading.Thread:
    """Kill the postmaster alone while a backend computes, which then commits a row beside nobody; returns the thread of its client."""

    def late_commit() -> None:
        with contextlib.suppress(psycopg2.OperationalError):
            node.sql("INSERT INTO written SELECT 999, count(*)::text FROM (SELECT generate_series(1, 1000000000)) AS long")

    client = threading.Thread(target=late_commit, daemon=True)
    client.start()
    wait_for(lambda: node.sql("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'INSERT%%long'"), "the statement")
    end_processes([node.pid()])
    wait_for(lambda: len(node.processes()) == 1, "the end of all others")
    return client


def longest_silence(node: Node, begun: int) -> float:
    """Return the longest time without a new connection (seconds) in a log with log_connections, from byte `begun` on until now."""
    lines = node.log.read_bytes()[begun:].decode("utf-8").splitlines()
    times = [datetime.fromisoformat(line[:23]) for line in lines if "connection received" in line]
    times.append(datetime.now(ZoneInfo(str(node.sql("SHOW log_timezone")))).replace(tzinfo=None))
    return max(((later - earlier).total_seconds() for earlier, later in itertools.pairwise(times)), default=math.inf)


def as_account(argv: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run argv as the servers' account with LC_ALL=C."""
    switch: dict[str, Any] = {"user": ACCOUNT.pw_uid, "group": ACCOUNT.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    # Files, not pipes: a server that pg_ctl starts would hold them open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, check=False, cwd="/", env=environment, **switch, **more)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(argv, done.returncode, out.read(), err.read())


def own(top: Path) -> None:
    """Give a directory and what is in it to the servers' account."""
    if os.geteuid() != 0:
        return
    os.chown(top, ACCOUNT.pw_uid, ACCOUNT.pw_gid, follow_symlinks=False)
    for root, directories, names in os.walk(top):
        for name in directories + names:
            os.chown(os.path.join(root, name), ACCOUNT.pw_uid, ACCOUNT.pw_gid, follow_symlinks=False)


def process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def working_directory(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return []


def running(program: str, argument: str) -> list[int]:
    """Return the processes of a program that were started with an argument; each is read once, it may end between two looks."""
    lines = {pid: command_line(pid) for pid in process_ids()}
    return [pid for pid, words in lines.items() if argument in words and program in words[0]]


def state_of(pid: int) -> str:
    """Return the kernel's letter for a process's state, empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def adopt_orphans() -> None:
    """Become the parent of servers whose starter ended: process 1 is slow to bury the dead on some machines, and a zombie blocks a start."""
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def reap_servers() -> None:
    """Bury the servers that ended."""
    with contextlib.suppress(OSError):
        for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split():
            if state_of(int(word)) == "Z" and "(postgres)" in Path(f"/proc/{word}/stat").read_text(encoding="utf-8", errors="replace"):
                os.waitpid(int(word), os.WNOHANG)


def end_processes(pids: list[int]) -> None:
    """Kill processes by id and wait until they run no longer."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all(state_of(pid) in ("", "Z") for pid in pids), "the processes' end")


def end_below(top: Path) -> None:
    """End every process of ours that works below a directory or was started with a path below it: at once, but tidily."""
    mark = f"{top}/"
    ours = [pid for pid in process_ids() if pid != os.getpid() and working_directory(pid).startswith(mark)]
    for number in (signal.SIGCONT, signal.SIGQUIT):  # a postmaster frees its shared memory at SIGQUIT, at SIGKILL it does not
        for pid in ours:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    with contextlib.suppress(AssertionError):
        wait_for(lambda: all(state_of(pid) in ("", "Z") for pid in ours), "the servers' end", 3)
    others = [pid for pid in process_ids() if pid != os.getpid() and any(mark in word for word in command_line(pid))]
    end_processes([*ours, *others])
    for path in [*top.glob("*/data*/postmaster.pid"), *top.glob("*/*/data*/postmaster.pid")]:  # of a server that was killed
        key_and_id = path.read_text(encoding="utf-8").split("\n")[6:7]
        if key_and_id and key_and_id[0].split()[1:]:
            subprocess.run(["ipcrm", "-m", key_and_id[0].split()[1]], capture_output=True, check=False)


def wait_for(condition: Callable[[], Any], what: str, timeout_seconds: float = 15) -> Any:
    """Wait until condition holds; returns what it returned."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        reap_servers()
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_seconds} s in vain for {what}")
        time.sleep(0.01)


class Ports:
    """Free ports of the loopback below what the kernel gives to clients, none twice."""

    def __init__(self) -> None:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # pytest-xdist's processes must not meet
        self._lowest = 20000 + worker % 6 * 2000
        self._next = self._lowest + os.getpid() % 2000

    def __call__(self) -> int:
        while True:
            self._next = self._next + 1 if self._next < self._lowest + 1999 else self._lowest
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", self._next))
                return self._next


# --- clusters ---


@dataclass(frozen=True)
class Pair:
    """A primary and its standby; `spare` is the place of a third."""

    primary: Node
    standby: Node
    spare: Node

    def level(self) -> None:
        """Wait until the standby has replayed everything."""
        wait_replayed(self.primary, self.standby)


def wait_replayed(primary: Node, standby: Node) -> None:
    """Wait until a standby has replayed what the primary has written."""
    end = primary.sql("SELECT pg_current_wal_lsn()::text")
    wait_for(lambda: standby.sql("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", end), f"replay on {standby.name}")


def new_node(name: str, home: Path, port: int, programs: Programs) -> Node:
    """Make the place of a server."""
    (home / "run").mkdir(parents=True)
    own(home)
    return Node(name, home, port, programs)


def make_primary(node: Node, *, peers: list[Node]) -> None:
    """Make and start a primary with the roles that the modules use, through the modules where there is one."""
    assert node.call("pg_cluster_init").changed
    node.append_conf(SETTINGS.format(port=node.port, sockets=node.home / "run"))
    with (node.data / "pg_hba.conf").open("a", encoding="utf-8") as stream:
        stream.write(HBA)
    for each in [node, *peers]:
        assert each.call("pg_passfile", **passfile_options([node, *peers])).changed
    node.start()
    passwords = {"tester": TESTER_PASSWORD, "replicator": REPLICATION_PASSWORD, "rewinder": REWIND_PASSWORD}
    with local_superuser(node) as connection, connection.cursor() as cursor:
        cursor.execute(ROLES, passwords)


def passfile_options(nodes: list[Node]) -> dict[str, Any]:
    """Return the options of pg_passfile for a cluster."""
    return {
        "peers": [{"name": each.name, "address": "127.0.0.1", "port": each.port} for each in nodes],
        "passwords": {"replicator": REPLICATION_PASSWORD, "rewinder": REWIND_PASSWORD},
    }


@contextlib.contextmanager
def local_superuser(node: Node, dbname: str = "postgres") -> Iterator[Any]:
    """Connect over the socket as the servers' account (peer authentication)."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(ACCOUNT.pw_uid)
    try:
        connection = psycopg2.connect(host=str(node.home / "run"), port=node.port, user=ACCOUNT.pw_name, dbname=dbname, client_encoding="UTF8")
    finally:
        os.seteuid(before)
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def make_template(place: Path, programs: Programs, ports: Ports) -> Pair:
    """Make a pair and stop it; it is copied for each test, which is ten times faster than making one."""
    alpha, beta, gamma = (new_node(name, place / name, ports(), programs) for name in ("alpha", "beta", "gamma"))
    pair = Pair(alpha, beta, gamma)
    make_primary(alpha, peers=[beta, gamma])
    assert alpha.call("pg_replication_slot", name=[beta.slot, gamma.slot]).changed
    make_standby(beta, alpha)
    pair.level()
    beta.stop()
    alpha.stop()
    for path in [*alpha.data.glob("pg_wal/0*"), *beta.data.glob("pg_wal/0*")]:
        subprocess.run(["fallocate", "--dig-holes", str(path)], check=False)  # what is not written needs no copying; nothing lost where it fails
    return pair


def make_standby(standby: Node, primary: Node) -> None:
    """Copy the primary and start the copy, with a configuration of its own."""
    answer = standby.call_towards("pg_basebackup_standby", primary)
    assert answer.changed
    adapt(standby.data / "postgresql.conf", {str(primary.home): str(standby.home), str(primary.port): str(standby.port)})
    standby.start()


def adapt(path: Path, replaced: dict[str, str]) -> None:
    """Replace words in a file that belongs to the servers' account."""
    if path.exists():
        text = path.read_text(encoding="utf-8")
        for old, new in replaced.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def copy_pair(template: Pair, place: Path, ports: Ports) -> Pair:
    """Return a copy of a stopped pair with ports and paths of its own."""
    olds = (template.primary, template.standby, template.spare)
    news = [Node(old.name, place / old.name, ports(), old.programs) for old in olds]
    replaced = {str(old.home): str(new.home) for old, new in zip(olds, news)} | {str(old.port): str(new.port) for old, new in zip(olds, news)}
    place.mkdir(exist_ok=True)
    for old, new in zip(olds, news):
        subprocess.run(["cp", "-a", str(old.home), str(new.home)], check=True)
        for name in ("data/postgresql.conf", "data/postgresql.auto.conf", "state/passfile"):
            adapt(new.home / name, replaced)
        shutil.rmtree(new.state / "configuration", ignore_errors=True)
    return Pair(*news)


def start_pair(pair: Pair) -> None:
    """Start both servers and wait until the standby streams."""
    pair.primary.start()
    pair.standby.start()
    wait_for(lambda: pair.primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == 1, "streaming")


def digest(top: Path) -> dict[str, tuple[int, int]]:
    """Return every file below a directory with its size and time of change: equal when nothing was touched."""
    found = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        found[str(path)] = (status.st_size if path.is_file() else 0, status.st_mtime_ns)
    return found


def hand_on(pair: Pair) -> None:
    """Stop the primary, promote its standby, and have the third server follow that one onto timeline 2."""
    pair.primary.stop()
    assert pair.standby.call("pg_promote", slots=[pair.spare.slot]).changed
    follow = {"upstream": {"name": "beta", "address": "127.0.0.1", "port": pair.standby.port}}
    assert pair.spare.call("pg_settle", host_name="gamma", slot_name=pair.spare.slot, timeline=2, timeout_seconds=10, **follow).changed
    pair.standby.write_row(1)
    wait_replayed(pair.standby, pair.spare)
