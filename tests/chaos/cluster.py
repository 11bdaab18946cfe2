# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Three containers of the suite's own: playbooks run on them as a user runs them, and the faults, each of which ends with its block."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pylxd.client
import pylxd.exceptions

from benchmarks.cluster import CHECKOUT, Cluster, Playbooks, Run, hba_rules, own_address, run_command, server_of
from benchmarks.floor import KILL_SCRIPT, Server, fill
from benchmarks.persistent import PersistentSql, SessionError
from scripts.run_checks import lost_output
from tests.chaos import checker, ledger

HERE = Path(__file__).resolve().parent
INVENTORY = "tests/chaos/inventory"
CALLBACKS = CHECKOUT / "tests" / "integration" / "playbooks" / "callback_plugins"
SOCKETS = ("/var/snap/lxd/common/lxd/unix.socket", "/var/lib/lxd/unix.socket")
PLAYBOOK_SECONDS = 120.0
LAUNCH_SECONDS = 1500.0
SETTLE_SECONDS = 45.0


class ChaosError(Exception):
    """The suite cannot go on as the scenario describes; the text says why and where to look."""


@dataclass(frozen=True)
class Ended:
    """How a run of a playbook ended."""

    name: str
    status: int
    output: str
    seconds: float

    @property
    def text(self) -> str:
        """The output as one line, so that a sentence can be found wherever it was wrapped."""
        return " ".join(self.output.split())


def unreachable(*names: str) -> dict[str, dict[str, str]]:
    """Return variables with which the controller does not reach these hosts.

    Its connection goes through LXD's socket, whatever is cut: a container that does not exist is as far away as one can be.
    """
    return {name: {"ansible_lxd_host": f"{name}-gone"} for name in names}


def wait_until(holds: Callable[[], bool], what: str, *, timeout_seconds: float = SETTLE_SECONDS, pause_seconds: float = 0.1) -> None:
    """Ask until the answer is yes; raises ChaosError, naming `what`."""
    deadline = time.monotonic() + timeout_seconds
    while not holds():
        if time.monotonic() > deadline:
            raise ChaosError(f"Not within {timeout_seconds:g} s: {what}.")
        time.sleep(pause_seconds)


class ChaosCluster:
    """The containers, the ledger that writes to them, and everything that is done to them."""

    def __init__(self, log_directory: Path) -> None:
        self.logs = log_directory
        self.playbooks = Playbooks(log_directory, {}, INVENTORY, "pg_cluster_chaos_main")
        self.servers: dict[str, Server] = {}
        self.forgiven: set[int] = set()
        self.broken = False
        self._sql: Cluster | None = None
        self._ledger: ledger.LedgerProcess | None = None
        self._log = log_directory / "ledger.jsonl"

    # -- life ----------------------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return list(self.servers)

    def set_up(self) -> None:
        """Bring containers, servers and the ledger up from nothing; what an earlier run left behind goes first."""
        self.tear_down()
        self.playbooks.run("launch_containers", timeout_seconds=LAUNCH_SECONDS)
        hosts = self.playbooks.hosts()
        rules = hba_rules(own_address(str(next(iter(hosts.values()))["pg_address"])))
        self.playbooks = Playbooks(self.logs, {"pg_hba_extra_rules": rules}, INVENTORY, "pg_cluster_chaos_main")
        self.play("initial_setup", timeout_seconds=LAUNCH_SECONDS)
        self.servers = {name: server_of(name, variables) for name, variables in hosts.items()}
        password = secrets.token_urlsafe(24)
        self._sql = Cluster(self.servers, password)
        self._sql.create_role(password)
        for statement in ledger.CREATE:
            self.sql(self.primary(), f"SET ROLE bench_client; {statement}", database="bench_client")
        self.forgiven.clear()
        self.broken = False
        self._log.unlink(missing_ok=True)
        self._ledger = ledger.LedgerProcess(ledger.LedgerSpec(self._sql.dsn, str(self._log)))
        wait_until(lambda: bool(self.events().commits), "the ledger's first acknowledgement")

    def tear_down(self) -> None:
        """End the ledger and delete the containers; safe to repeat."""
        if self._ledger is not None:
            self._ledger.stop()
            self._ledger = None
        for name in self.names:
            self.thaw(name)
        # One that was killed while it was frozen cannot be stopped by LXD.
        self.playbooks.run("delete_containers", timeout_seconds=180)

    # -- playbooks -----------------------------------------------------------------------------------------------------------

    def begin(self, name: str, *arguments: str, kill_after: int = 0, variables: Mapping[str, Mapping[str, Any]] | None = None) -> Run:
        """Start a playbook; `variables` overrides the inventory's by host, and after `kill_after` tasks it is killed."""
        environment: dict[str, str] = {"LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1"}
        if kill_after:
            environment.update(
                ANSIBLE_CALLBACK_PLUGINS=str(CALLBACKS), ANSIBLE_CALLBACKS_ENABLED="kill_after", PG_OPS_TEST_KILL_AFTER=str(kill_after)
            )
        sources: tuple[str, ...] = ()
        if variables:
            overlay = self.logs / f"overlay-{secrets.token_hex(4)}.json"
            overlay.write_text(json.dumps({"pg_nodes": {"hosts": variables}}), encoding="utf-8")
            sources = ("-i", str(overlay))
        return self.playbooks.begin(name, *sources, *arguments, **environment)

    def run(self, name: str, *arguments: str, timeout_seconds: float = PLAYBOOK_SECONDS, **more: Any) -> Ended:
        """Run a playbook to its end, whatever that is."""
        run = self.begin(name, *arguments, **more)
        status = run.end(timeout_seconds)
        return Ended(name, status, run.output, time.monotonic() - run.began_seconds)

    def failovers(self) -> dict[str, str]:
        """Return what every run of failover.yml so far has printed, by the name of its log."""
        return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in self.logs.glob("*_failover.log")}

    def play(self, name: str, *arguments: str, **more: Any) -> Ended:
        """Run a playbook that has to succeed."""
        done = self.run(name, *arguments, **more)
        if done.status != 0 and lost_output(done.text):  # a user types the playbook again
            done = self.run(name, *arguments, **more)
        if done.status != 0:
            raise ChaosError(f"{name}.yml {' '.join(arguments)} ended with {done.status}:\n{done.output[-6000:]}")
        return done

    def refused(self, name: str, *arguments: str, said: str, **more: Any) -> Ended:
        """Run a playbook that has to refuse, with these words."""
        done = self.run(name, *arguments, **more)
        if done.status == 0 or said not in done.text:
            raise ChaosError(f"{name}.yml {' '.join(arguments)} should have refused with {said!r}, it ended with {done.status}:\n{done.output[-6000:]}")
        return done

    # -- servers -------------------------------------------------------------------------------------------------------------

    def sql(self, name: str, statement: str, *, database: str = "postgres", timeout_seconds: float = 20.0) -> str:
        """Return what psql prints on one node for a statement of the superuser."""
        server = self.servers[name]
        argv = (*server.psql_argv[:-1], database)
        with PersistentSql(argv) as session:
            return session.query(statement, timeout_seconds=timeout_seconds)

    def shell(self, name: str, script: str, *, timeout_seconds: float = 30.0) -> str:
        """Run a script as root in a container."""
        return run_command(self.servers[name].shell_argv, stdin=script, timeout_seconds=timeout_seconds)

    def as_owner(self, name: str, *argv: str, timeout_seconds: float = 30.0) -> str:
        """Run a program as the server's account."""
        enter = ("lxc", "exec", name, "--cwd", "/", "--", "runuser", "-u", "postgres", "--")
        return run_command((*enter, *argv), timeout_seconds=timeout_seconds)

    def program(self, name: str, program: str) -> str:
        return f"{self.servers[name].bin_directory}/{program}"

    def primaries(self) -> list[str]:
        """Return the nodes that answer and are not in recovery."""
        return [name for name in self.names if self.in_recovery(name) is False]

    def in_recovery(self, name: str) -> bool | None:
        """Return whether a server is in recovery; None when it does not answer."""
        try:
            return self.sql(name, "SELECT pg_is_in_recovery()", timeout_seconds=3) == "t"
        except SessionError:
            return None

    def primary(self) -> str:
        """Return the one primary; raises ChaosError when there is not exactly one."""
        found = self.primaries()
        if len(found) != 1:
            raise ChaosError(f"There must be one primary, there are {found or 'none'}.")
        return found[0]

    def standbys(self) -> list[str]:
        """Return all the others, in the inventory's order."""
        primary = self.primary()
        return [name for name in self.names if name != primary]

    def start_server(self, name: str) -> None:
        """Start the server as somebody would by hand."""
        self.shell(name, self.servers[name].start_command, timeout_seconds=90)

    def try_start_server(self, name: str) -> bool:
        """Start the server as somebody would by hand; returns whether the service manager says that it did."""
        done = subprocess.run(self.servers[name].shell_argv, input=self.servers[name].start_command, capture_output=True, text=True, check=False, timeout=90)
        return done.returncode == 0

    def stop_server(self, name: str, *, mode: str = "fast") -> None:
        """End the server with pg_ctl, as somebody would by hand."""
        self.as_owner(name, self.program(name, "pg_ctl"), "stop", "-w", "-s", "-m", mode, "-D", self.servers[name].data_directory)

    def kill_server(self, name: str) -> None:
        """SIGKILL to the postmaster and its children, at once."""
        self.shell(name, fill(KILL_SCRIPT, self.servers[name]))

    # -- files and processes, seen from the LXD host ----------------------------------------------------------------------------

    def root(self, name: str) -> Path:
        """Return the root directory of a running container."""
        return Path(f"/proc/{self.instance(name).state().pid}/root")

    def data(self, name: str) -> Path:
        return self.root(name) / self.servers[name].data_directory.lstrip("/")

    def notes(self, name: str) -> Path:
        """Return the collection's state directory of a running container."""
        return Path(f"{self.data(name)}.pg_ops")

    def reports(self) -> list[dict[str, Any]]:
        """Return all reports of lost transactions, of all nodes."""
        script = "cat {}.pg_ops/reports/*.json 2>/dev/null || true"
        found: list[dict[str, Any]] = []
        for name, server in self.servers.items():
            text, decoder = self.shell(name, script.format(server.data_directory)), json.JSONDecoder()
            while text.strip():
                report, end = decoder.raw_decode(text.lstrip())
                found.append(report)
                text = text.lstrip()[end:]
        return found

    def process(self, name: str, title: str) -> int:
        """Return the id, on this machine, of the process in a container whose command line matches; 0 without one."""
        namespace = os.readlink(f"/proc/{self.instance(name).state().pid}/ns/pid")
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(directory / "ns" / "pid") != namespace:
                    continue
                if re.search(title, (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")):
                    return int(directory.name)
            except OSError:
                continue
        return 0

    def cut_connections(self, name: str) -> None:
        """End every connection of the controller to a container, as a cable that is pulled does."""
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                words = (directory / "cmdline").read_bytes().split(b"\0")
                is_client = words[0] == b"lxc" or words[0].endswith(b"/lxc")
                if is_client and any(word.endswith(name.encode()) for word in words):
                    os.kill(int(directory.name), signal.SIGKILL)
            except (OSError, IndexError):
                continue

    # -- containers ----------------------------------------------------------------------------------------------------------

    def instance(self, name: str) -> Any:
        """Return LXD's view of a container."""
        endpoint = next((path for path in SOCKETS if os.path.exists(path)), SOCKETS[-1])
        return pylxd.client.Client(endpoint=endpoint, timeout=30).instances.get(name)

    def stop_container(self, name: str) -> None:
        """Switch a container off, without a word to what runs in it."""
        self.instance(name).stop(force=True, wait=True, timeout=30)

    def start_container(self, name: str) -> None:
        """Switch it on and wait until systemd has started what it starts."""
        instance = self.instance(name)
        if instance.status != "Running":
            instance.start(wait=True, timeout=30)
        script = "until test -S /run/dbus/system_bus_socket; do sleep 0.1; done; timeout 60 systemctl is-system-running --wait || true"
        run_command(("lxc", "exec", name, "--", "sh", "-c", script), timeout_seconds=70)

    def thaw(self, name: str) -> None:
        """Let a frozen container go on; no matter if it is none."""
        subprocess.run(["lxc", "start", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=30)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Freeze a container: it accepts TCP connections and answers nothing."""
        run_command(("lxc", "pause", name), timeout_seconds=20)
        try:
            yield
        finally:
            self.thaw(name)

    @contextmanager
    def cut(self, name: str, *, peers: Sequence[str] = (), directions: Sequence[str] = ("INPUT", "OUTPUT")) -> Iterator[None]:
        """Drop packets between a container and `peers`, or everybody; the rules live in the container's own network namespace."""
        addresses = [self.servers[peer].address for peer in peers] or ["0.0.0.0/0"]
        pid = str(self.instance(name).state().pid)
        enter = ("nsenter", "--target", pid, "--net", "iptables", "--wait", "5")
        rules = [
            (chain, "!", side, "lo", "-s" if chain == "INPUT" else "-d", address, "-j", "DROP")
            for address in addresses
            for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o"))
            if chain in directions
        ]
        try:
            for rule in rules:
                run_command((*enter, "-I", *rule), timeout_seconds=15)
            yield
        finally:
            # A container that was stopped took its rules with it.
            if os.path.exists(f"/proc/{pid}"):
                for rule in rules:
                    subprocess.run((*enter, "-D", *rule), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, timeout=15)

    # -- the ledger ----------------------------------------------------------------------------------------------------------

    def events(self) -> checker.Events:
        """Return what the ledger has recorded so far."""
        if self._ledger is None or not self._ledger.is_running():
            raise ChaosError("The ledger has ended.")
        return checker.parse_events(self._log.read_text(encoding="ascii") if self._log.exists() else "")

    def wait_for_writes(self, *, seconds: float = 0.5, timeout_seconds: float = SETTLE_SECONDS) -> None:
        """Wait until the ledger has been writing again for some time."""
        since = time.monotonic()
        wait_until(lambda: any(w.sent > since for w in self.events().commits[-5:]), "an acknowledged row", timeout_seconds=timeout_seconds)
        time.sleep(seconds)

    def present(self, name: str) -> list[int]:
        """Return the numbers of the rows on one node, repeated if they are there twice."""
        return [int(line) for line in self.sql(name, f"SELECT number FROM {ledger.TABLE} ORDER BY 1", database="bench_client").split()]

    def is_healthy(self, *, timeout_seconds: float = SETTLE_SECONDS) -> Ended:
        """Return the last run of status.yml: one that succeeds, unless none does in time."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            done = self.run("status")
            if done.status == 0 or time.monotonic() > deadline:
                return done
            time.sleep(1)


@contextmanager
def chaos_cluster() -> Iterator[ChaosCluster]:
    """Bring the cluster up, and delete it whatever happens, an interrupt too."""
    cluster = ChaosCluster(Path(tempfile.mkdtemp(prefix="pg_ops_chaos.")))

    def interrupted(*_received: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        cluster.set_up()
        yield cluster
    finally:
        cluster.tear_down()
        signal.signal(signal.SIGTERM, before)
