# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take local clusters through set-up, switchover, crash, failover and rejoin by the real playbooks, and leave them running.

DEMO_VERBOSE=1 shows what each playbook prints; otherwise that is shown for status, and for a step that fails.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import local_clusters

CHECKOUT = local_clusters.CHECKOUT
VAULT_SCRIPT = "scripts/vault_password_env-client.sh"
# The published password of inventories/local's vault; a production inventory has its own.
VAULT_PASSWORD = "replicate-safely"
HOME = "pgsql1"
VERBOSE = bool(os.environ.get("DEMO_VERBOSE"))


class DemoError(Exception):
    """A step failed; the text is what to show."""


@contextmanager
def step(title: str, seconds: dict[str, float]) -> Iterator[None]:
    """Print a heading, run the block, print and record how long it took."""
    print(f"\n=== {len(seconds) + 1}. {title}", flush=True)
    started = time.monotonic()
    yield
    seconds[title] = time.monotonic() - started
    print(f"    {seconds[title]:.1f} s", flush=True)


def environment() -> dict[str, str]:
    """Return the environment of the playbooks: .venv first, the vault password, a UTF-8 locale (Ansible refuses others)."""
    # With PYTHONUNBUFFERED Python reads the program that Ansible pipes to it byte by byte: a fifth of a playbook's time.
    present = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    locale = present.get("LC_ALL") or present.get("LC_CTYPE") or present.get("LANG", "")
    if "utf" not in locale.lower():
        present["LC_ALL"] = "C.UTF-8"
    present["PATH"] = f"{CHECKOUT / '.venv' / 'bin'}{os.pathsep}{present['PATH']}"
    present["PG_OPS_VAULT_PASSWORD"] = VAULT_PASSWORD
    return present


def playbook(name: str, *arguments: str, show: bool = False) -> None:
    """Run one playbook on inventories/local. Raises DemoError with its output when it fails."""
    path = CHECKOUT / "playbooks" / f"{name}.yml"
    argv = ["ansible-playbook", "-i", "inventories/local", "--vault-id", VAULT_SCRIPT, str(path.relative_to(CHECKOUT)), *arguments]
    print(f"    {shlex.join(argv)}", flush=True)
    streams = None if VERBOSE or show else subprocess.PIPE
    errors = streams and subprocess.STDOUT
    done = subprocess.run(argv, cwd=CHECKOUT, env=environment(), stdout=streams, stderr=errors, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"{done.stdout or ''}\n{name}.yml failed with {done.returncode}.")


def postmaster(state: Path, name: str) -> int | None:
    """Return the process id of the server on one node, None if it does not run."""
    try:
        pid = int((state / name / "data" / "postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return None
    return pid


def primary(state: Path, local: local_clusters.Local) -> str:
    """Return the node whose server runs and is in production, by its control file. Raises DemoError unless that is one."""
    program = os.path.join(local.bin_directory, "pg_controldata")
    found = []
    for name in list(local.nodes)[: local.node_count]:
        if postmaster(state, name) is None:
            continue
        argv = [program, str(state / name / "data")]
        text = subprocess.run(argv, env={"LC_ALL": "C"}, capture_output=True, text=True, check=False).stdout
        if any(line.split() == ["Database", "cluster", "state:", "in", "production"] for line in text.splitlines()):
            found.append(name)
    if len(found) != 1:
        raise DemoError(f"One running primary expected, found: {', '.join(found) or 'none'}.")
    return found[0]


def other_node(local: local_clusters.Local, name: str) -> str:
    """Return the node that follows name in the inventory."""
    names = list(local.nodes)[: local.node_count]
    return names[(names.index(name) + 1) % len(names)]


def kill_primary(state: Path, name: str) -> None:
    """Kill the postmaster of one node with SIGKILL: the crash."""
    pid = postmaster(state, name)
    if pid is None:
        raise DemoError(f"The server on {name} does not run.")
    print(f"    kill -KILL {pid}", flush=True)
    os.kill(pid, signal.SIGKILL)


def run_steps(state: Path, local: local_clusters.Local, seconds: dict[str, float]) -> None:
    """Run the whole flow; who is primary is observed before every change of roles."""
    with step("Set up replication: initial_setup", seconds):
        playbook("initial_setup")
    with step("Prove it: verify", seconds):
        playbook("verify")
    with step("Look: status", seconds):
        playbook("status", show=True)
    first = primary(state, local)
    second = other_node(local, first)
    with step(f"Planned hand-over from {first} to {second}: switchover", seconds):
        playbook("switchover", "-e", f"pg_switchover_to={second}")
    with step(f"Crash: the primary {second} is killed with SIGKILL", seconds):
        kill_primary(state, second)
    with step("Unplanned take-over: failover", seconds):
        playbook("failover")
    third = primary(state, local)
    print(f"    the primary is {third} now", flush=True)
    with step(f"Bring {second} back as a standby: start_new_standby", seconds):
        playbook("start_new_standby")
    target = HOME if third != HOME else second
    with step(f"Fail back from {third} to {target}: switchover", seconds):
        playbook("switchover", "-e", f"pg_switchover_to={target}")
    with step("Prove it again: verify", seconds):
        playbook("verify")
    with step("Look again: status", seconds):
        playbook("status", show=True)


def closing_lines(state: Path, local: local_clusters.Local) -> str:
    """Return how to connect, how to look and how to remove all of it."""
    nodes = [local.nodes[name] for name in list(local.nodes)[: local.node_count]]
    hosts = ",".join(node.socket_directory for node in nodes)
    ports = ",".join(str(node.port) for node in nodes)
    conninfo = f"host={hosts} port={ports} dbname=postgres target_session_attrs=read-write"
    psql = shlex.join([os.path.join(local.bin_directory, "psql"), conninfo])
    if local_clusters.is_root():
        psql = f"(cd / && runuser -u {local.owner} -- {psql})"
    options = f"-i inventories/local --vault-id {VAULT_SCRIPT}"
    look = f"PG_OPS_VAULT_PASSWORD={VAULT_PASSWORD} .venv/bin/ansible-playbook {options} playbooks/status.yml"
    return (
        f"The clusters keep running under {state}.\n"
        f"Connect to the primary, whichever it is:\n  {psql}\n"
        f"Look at the topology:\n  {look}\n"
        "Stop and remove all of it:\n  make demo-clean"
    )


def main() -> int:
    started, state, seconds = time.monotonic(), local_clusters.state_directory(), dict[str, float]()
    try:
        with step("Prepare directories, ports and programs", seconds):
            local = local_clusters.prepare(state)
            if local.node_count < 2:
                raise DemoError("PG_OPS_LOCAL_NODES is 1; the demo needs two nodes or more.")
            print(f"    {local.node_count} nodes, PostgreSQL {local.version} from {local.bin_directory}", flush=True)
        run_steps(state, local, seconds)
    except (DemoError, local_clusters.LocalError) as error:
        print(f"{error}\nThe demo stopped here. To begin from nothing: make demo-clean && make demo", file=sys.stderr)
        return 1
    print("\n=== Seconds")
    for title, taken in seconds.items():
        print(f"{taken:7.1f}  {title}")
    print(f"{time.monotonic() - started:7.1f}  in all\n\n{closing_lines(state, local)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
