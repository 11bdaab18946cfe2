# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Local clusters of the playbook tests: real servers on the loopback, driven by ansible-playbook as a user drives it."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import local_clusters

CHECKOUT = local_clusters.CHECKOUT
HERE = Path(__file__).resolve().parent
VENV_BIN = Path(sys.executable).parent
VAULT_SCRIPT = str(CHECKOUT / "scripts" / "vault_password_env-client.sh")
# The published password of inventories/local's vault.
VAULT_PASSWORD = "replicate-safely"
PLAYBOOK_TIMEOUT_SECONDS = 180
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Done:
    """How a run of ansible-playbook ended; `output` is what a user sees, `changed` and `failed` are counts by host."""

    returncode: int
    output: str
    seconds: float

    def _recap(self, column: int) -> dict[str, int]:
        return {found[0]: int(found[column]) for found in RECAP.findall(self.output)}

    @property
    def changed(self) -> dict[str, int]:
        return self._recap(2)

    @property
    def failed(self) -> dict[str, int]:
        return {host: self._recap(4)[host] + self._recap(3)[host] for host in self._recap(4)}

    @property
    def text(self) -> str:
        """The output as one line, so that a sentence can be found wherever it was wrapped."""
        return " ".join(self.output.split())


@dataclass
class Cluster:
    """The local clusters below one state directory of their own."""

    state: Path
    local: local_clusters.Local
    only: tuple[str, ...] = ()
    inventory_directory: Path = CHECKOUT / "inventories" / "local"

    # -- playbooks ---------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(self.only or list(self.local.nodes)[: self.local.node_count])

    def part(self, *names: str) -> Cluster:
        """Return some of the nodes: one of several clusters below one state directory."""
        return replace(self, only=names)

    def with_own_inventory(self) -> Cluster:
        """Return the same with a copy of its inventory, below the state directory, for playbooks that leave something beside it."""
        copy = self.state / "inventories" / "local"
        shutil.copytree(self.inventory_directory, copy, ignore=shutil.ignore_patterns(".tls", "tls"))  # an authority of the user's own
        (self.state / "scripts").symlink_to(CHECKOUT / "scripts")  # which the inventory's script calls
        return replace(self, inventory_directory=copy)

    def environ(self, **more: str) -> dict[str, str]:
        # PYTHONUNBUFFERED: with it a local host's Python reads the program that Ansible pipes to it byte by byte.
        present = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PG", "PYTHONUNBUFFERED"))}
        present.update(
            PATH=f"{VENV_BIN}{os.pathsep}{present['PATH']}",
            LC_ALL="C.UTF-8",
            PG_OPS_LOCAL_STATE=str(self.state),
            PG_OPS_VAULT_PASSWORD=VAULT_PASSWORD,
            ANSIBLE_NOCOLOR="1",
            ANSIBLE_CALLBACK_PLUGINS=str(HERE / "callback_plugins"),
            ANSIBLE_CALLBACKS_ENABLED="kill_after,shared_payloads",
            PG_OPS_TEST_PAYLOADS=os.environ.get("PG_OPS_TEST_PAYLOADS", ""),
        )
        return {**present, **more}

    def start(
        self, name: str, *arguments: str, inventory: Mapping[str, Any] | None = None, output: Any = subprocess.PIPE, **environment: str
    ) -> subprocess.Popen[str]:
        """Start one playbook; `inventory` overrides variables by host, as a second inventory source."""
        sources = ["-i", str(self.inventory_directory)]
        if inventory is not None:
            overlay = self.state / "overlay.json"
            overlay.write_text(json.dumps({"pg_nodes": {"hosts": inventory}}), encoding="utf-8")
            sources += ["-i", str(overlay)]
        path = CHECKOUT / "playbooks" / f"{name}.yml"
        argv = ["ansible-playbook", *sources, "--vault-id", VAULT_SCRIPT, str(path), *arguments]
        return subprocess.Popen(
            argv, cwd=CHECKOUT, env=self.environ(**environment), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def run(
        self, name: str, *arguments: str, inventory: Mapping[str, Any] | None = None, kill_after: int = 0, kill_in: str = "", **environment: str
    ) -> Done:
        """Run one playbook to its end, or until it was killed: after so many tasks, or when the task `kill_in` had ended on one host only."""
        started = time.monotonic()
        if kill_after or kill_in:
            environment = {
                "PG_OPS_TEST_KILL_AFTER": str(kill_after),
                **({"PG_OPS_TEST_KILL_IN": kill_in, "ANSIBLE_FORKS": "1"} if kill_in else {}),
                **environment,
            }
        process = self.start(name, *arguments, inventory=inventory, **environment)
        try:
            output, _errors = process.communicate(timeout=PLAYBOOK_TIMEOUT_SECONDS + 30 * len(self.names))
        except BaseException:
            kill_tree(process.pid)
            raise
        return Done(process.returncode, COLOURS.sub("", output), time.monotonic() - started)

    def kill_points(self, name: str) -> list[int]:
        """Run a playbook to its end and return after how many tasks it can be killed: after each of them."""
        journal = self.state / "tasks"
        journal.unlink(missing_ok=True)
        done = self.run(name, kill_after=1000, PG_OPS_TEST_TASKS=str(journal))
        assert done.returncode == 0, done.output
        names = journal.read_text(encoding="utf-8").splitlines()[:-1]  # the last line is the end
        return list(range(1, len(names) + 1))

    def play(self, name: str, *arguments: str, **more: Any) -> Done:
        """Run one playbook that has to succeed."""
        done = self.run(name, *arguments, **more)
        assert done.returncode == 0, f"{name}.yml {' '.join(arguments)} ended with {done.returncode}:\n{done.output}"
        return done

    # -- servers -----------------------------------------------------------------------------------------------------------

    def place(self, name: str) -> Path:
        return self.state / name

    def data(self, name: str) -> Path:
        return self.state / name / "data"

    def own_state(self, name: str) -> Path:
        """The collection's state directory of one node."""
        return self.state / name / "data.pg_ops"

    @property
    def account(self) -> pwd.struct_passwd:
        return pwd.getpwnam(self.local.owner)

    @property
    def switch(self) -> dict[str, Any]:
        """What makes subprocess run a program under the servers' account."""
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}

    def run_as_owner(self, *argv: str, stdin: str | None = None, timeout_seconds: float = 60) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": self.account.pw_dir}
        return subprocess.run(
            argv, cwd="/", env=environment, input=stdin, capture_output=True, text=True, check=False, timeout=timeout_seconds, **self.switch
        )

    def program(self, name: str) -> str:
        return os.path.join(self.local.bin_directory, name)

    def psql(self, name: str, database: str = "postgres") -> list[str]:
        """Return psql with what leads to one node's server, for the servers' account."""
        node = self.local.nodes[name]
        return [self.program("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", node.socket_directory, "-p", str(node.port), "-d", database]

    def sql(self, name: str, statement: str, *, database: str = "postgres") -> str:
        """Return what psql prints for a statement on one node: fields separated by |, one row a line."""
        done = self.run_as_owner(*self.psql(name, database), stdin=statement)
        assert done.returncode == 0, f"{name}: {statement}: {done.stderr}"
        return done.stdout.strip()

    def pid(self, name: str) -> int:
        """The postmaster's process id, 0 when it does not run."""
        try:
            pid = int((self.data(name) / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
            return pid if os.path.realpath(f"/proc/{pid}/cwd") == str(self.data(name)) else 0
        except (OSError, ValueError):
            return 0

    def running_pid(self, name: str) -> int:
        """The postmaster's process id, to send it a signal: 0 would be the tests' own process group."""
        pid = self.pid(name)
        assert pid, f"{name} does not run"
        return pid

    def crash(self, name: str) -> None:
        """Kill the postmaster and wait until its children are gone too."""
        pid = self.running_pid(name)
        children = local_children(pid)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the children of a killed postmaster to end")

    def pg_ctl(self, name: str, action: str, *arguments: str) -> None:
        argv = [self.program("pg_ctl"), action, "-w", "-s", "-D", str(self.data(name)), "-l", str(self.place(name) / "postgresql.log"), *arguments]
        # Not run_as_owner: the server would keep the pipes of the output open.
        subprocess.run(argv, cwd="/", env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, stdout=subprocess.DEVNULL, check=True, timeout=60, **self.switch)

    def primary(self) -> str:
        """The one running node that accepts writes."""
        found = [name for name in self.names if self.pid(name) and self.sql(name, "SELECT pg_is_in_recovery()") == "f"]
        assert len(found) == 1, f"one primary expected, found {found}"
        return found[0]

    def standby(self) -> str:
        """The first node that is not primary."""
        return next(name for name in self.names if name != self.primary())

    def assert_replicating(self, primary: str | None = None) -> None:
        """One primary, every other node streams from it on its timeline through its own slot, a mark arrives, no note is left."""
        first = self.primary()
        assert primary in (None, first)
        mark = self.sql(first, "SELECT pg_switch_wal(); SELECT pg_current_wal_lsn()").splitlines()[-1]
        others = [name for name in self.names if name != first]
        streaming = "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming' ORDER BY 1"
        wait_for(lambda: self.sql(first, streaming).split() == others, f"{others} to stream from {first}")
        assert self.sql(first, "SELECT slot_name FROM pg_replication_slots WHERE active ORDER BY 1").split() == others
        assert self.sql(first, "SELECT slot_name FROM pg_replication_slots ORDER BY 1").split() == others
        for name in others:
            wait_for(lambda name=name: self.sql(name, f"SELECT pg_last_wal_replay_lsn() >= '{mark}'") == "t", f"{name} to replay {mark}")
            assert self.sql(name, "SELECT received_tli FROM pg_stat_wal_receiver") == str(self.timeline(first))
            assert self.sql(name, "SELECT count(*) FROM pg_replication_slots") == "0"
        for name in self.names:
            notes = sorted(path.name for path in self.own_state(name).glob("*.json") if path.name != "synchronous.json")  # no unfinished work
            assert notes == [], f"{name} kept {notes}"

    def timeline(self, name: str) -> int:
        return int(self.sql(name, "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"), 16)

    # -- rows that a client was told are safe --------------------------------------------------------------------------------

    @property
    def conninfo(self) -> str:
        nodes = [self.local.nodes[name] for name in self.names]
        return f"host={','.join(n.socket_directory for n in nodes)} port={','.join(str(n.port) for n in nodes)} dbname=postgres"

    def acknowledged_rows(self) -> set[str]:
        return set((self.state / "acknowledged").read_text(encoding="ascii").split("\n")[:-1])

    def stored_rows(self, name: str) -> set[str]:
        return set(self.sql(name, "SELECT * FROM acknowledged").split())

    # -- snapshots -----------------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Return everything that a run in check mode and a refusal must leave alone, by node."""
        return {name: self._node_snapshot(name) for name in self.names}

    def _node_snapshot(self, name: str) -> dict[str, Any]:
        place = self.place(name)
        found: dict[str, Any] = {"files": {}, "pid": self.pid(name)}
        for path in sorted(place.rglob("*")):
            relative = str(path.relative_to(place))
            if VOLATILE.match(relative):
                continue
            status = path.lstat()
            kept = "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest() if CONFIGURATION.search(relative) and path.is_file() else ""
            found["files"][relative] = (oct(status.st_mode), status.st_uid, kept)
        if found["pid"]:
            found["sql"] = {title: self.sql(name, statement) for title, statement in SNAPSHOT_SQL.items()}
        return found

    # -- the same again ------------------------------------------------------------------------------------------------------

    def keep(self) -> Path:
        """Stop the servers, the primary first, and return a copy of the state directory."""
        primary = self.primary()
        for name in (primary, *(name for name in self.names if name != primary)):
            self.pg_ctl(name, "stop", "-m", "fast")
        copy = Path(tempfile.mkdtemp(prefix="pgk_", dir="/tmp"))
        subprocess.run(["cp", "-a", *self._kept(), str(copy)], check=True)
        return copy

    def _kept(self) -> list[Path]:
        """What is in the state directory but for the Python, which other clusters use too."""
        return [path for path in self.state.iterdir() if path.name != "python"]

    def put_back(self, copy: Path) -> None:
        """Make the state directory what it was when it was kept, and start the servers."""
        self.stop_at_once()
        subprocess.run(["rm", "-r", *self._kept()], check=True)
        subprocess.run(["cp", "-a", *copy.iterdir(), str(self.state)], check=True)  # not the directory itself, with its mode
        for name in self.names:
            self.pg_ctl(name, "start")

    def stop_at_once(self) -> None:
        for name in self.local.nodes:
            if self.pid(name):
                self.pg_ctl(name, "stop", "-m", "immediate")

    def destroy(self) -> None:
        """Stop the servers and remove the state directory."""
        self.stop_at_once()
        for node in self.local.nodes.values():
            if not node.socket_directory.startswith(str(self.state)):
                shutil.rmtree(Path(node.socket_directory).parent, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)


# What a server that is left alone writes by itself.
VOLATILE = re.compile(
    r"(data/(base|global|pg_wal|pg_xact|pg_multixact|pg_subtrans|pg_stat|pg_stat_tmp|pg_logical|pg_notify|pg_commit_ts"
    r"|pg_dynshmem|pg_replslot|pg_serial|pg_snapshots"
    r"|pg_twophase)/|data/(postmaster\.(pid|opts)|backup_label\.old|backup_manifest)$|postgresql\.log|run/)"
)
CONFIGURATION = re.compile(r"\.conf$|passfile$|\.json$|\.signal$|PG_VERSION$")
SNAPSHOT_SQL = {
    "settings": "SELECT name, setting, source, sourcefile, sourceline, pending_restart FROM pg_settings ORDER BY 1",
    "slots": "SELECT slot_name, slot_type, active, wal_status FROM pg_replication_slots ORDER BY 1",
    "roles": "SELECT rolname, rolsuper, rolcanlogin, rolreplication, rolpassword FROM pg_authid ORDER BY 1",
    "privileges": "SELECT oid, proacl FROM pg_proc WHERE proacl IS NOT NULL ORDER BY 1",
    "started": "SELECT pg_postmaster_start_time()",
    "timeline": "SELECT CASE WHEN pg_is_in_recovery() THEN (SELECT received_tli::text FROM pg_stat_wal_receiver)"
    " ELSE 'primary ' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END",
    "relations": "SELECT count(*) FROM pg_class",
    "databases": "SELECT datname FROM pg_database ORDER BY 1",
}


def difference(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> list[str]:
    """Return what two snapshots differ in, one line each."""
    found: list[str] = []
    for key in sorted({*before, *after}, key=str):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += difference(old, new, f"{path}/{key}")
        elif old != new:
            old_lines, new_lines = str(old).splitlines(), str(new).splitlines()
            found.append(f"{path}/{key}: -{[x for x in old_lines if x not in new_lines]} +{[x for x in new_lines if x not in old_lines]}")
    return found


@contextmanager
def unchanged(cluster: Cluster) -> Iterator[None]:
    """Assert that the block leaves every server and file as it was."""
    before = cluster.snapshot()
    yield
    found = difference(before, cluster.snapshot())
    assert not found, "changed:\n" + "\n".join(found)


@contextmanager
def writing(cluster: Cluster) -> Iterator[None]:
    """Have a client write to the primary, whichever it is, while the block runs."""
    cluster.sql(cluster.primary(), "CREATE TABLE acknowledged (number bigint PRIMARY KEY)")
    program = (HERE / "writer.py").read_text(encoding="utf-8")  # the account need not be able to read the checkout
    with (cluster.state / "acknowledged").open("w", encoding="ascii") as output:
        argv = [cluster.local.interpreter, "-c", program, cluster.conninfo]
        client = subprocess.Popen(argv, cwd="/", env={"PATH": "/usr/bin:/bin"}, stdout=output, **cluster.switch)
        try:
            yield
        finally:
            client.kill()
            client.wait()


def install_collection(cluster: Cluster, directory: Path) -> dict[str, str]:
    """Build and install the collection as a user would, away from the checkout and its ansible.cfg; return the environment that finds it."""
    galaxy = str(VENV_BIN / "ansible-galaxy")
    environment = cluster.environ(ANSIBLE_COLLECTIONS_PATH=str(directory / "installed"), HOME=str(directory))
    # No callbacks of the tests: modules that were packed from the checkout would hide what the artifact lacks.
    del environment["ANSIBLE_CALLBACK_PLUGINS"], environment["ANSIBLE_CALLBACKS_ENABLED"]
    build = [galaxy, "collection", "build", "--output-path", str(directory), str(CHECKOUT)]
    built = subprocess.run(build, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    [artifact] = directory.glob("pg_ops-replication-*.tar.gz")
    install = [galaxy, "collection", "install", str(artifact), "-p", str(directory / "installed"), "--offline", "--no-deps"]
    installed = subprocess.run(install, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return environment


def local_children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def kill_tree(pid: int) -> None:
    """Kill a process and everything below it, except the servers that were started meanwhile (those have left the tree)."""
    doomed = [pid]
    for parent in doomed:
        doomed += local_children(parent)
    for each in doomed:
        try:
            os.kill(each, signal.SIGKILL)
        except ProcessLookupError:
            continue


def wait_for(condition: Any, what: str, *, timeout_seconds: float = 20) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_seconds} s for {what}"
        time.sleep(0.05)


def make_cluster(nodes: int, *, python_from: Path | None = None, programs: str = "") -> Cluster:
    """Prepare local clusters in a directory of their own; `python_from` is a state directory whose Python is used again."""
    # Short, because a socket's path holds 107 bytes, and open, because as root the servers have an account of their own.
    state = Path(tempfile.mkdtemp(prefix="pgp_", dir="/tmp"))
    state.chmod(0o755)
    if python_from is not None and (python_from / "python").exists():
        (state / "python").symlink_to((python_from / "python").resolve())
    before = {name: os.environ.get(name) for name in ("PG_OPS_LOCAL_STATE", "PG_OPS_LOCAL_NODES", "PG_OPS_LOCAL_BIN")}
    os.environ.update(PG_OPS_LOCAL_NODES=str(nodes))
    os.environ.pop("PG_OPS_LOCAL_BIN", None)
    if programs:
        os.environ["PG_OPS_LOCAL_BIN"] = programs
    try:
        return Cluster(state, local_clusters.prepare(state))
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
