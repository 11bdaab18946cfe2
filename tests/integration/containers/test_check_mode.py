# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""launch_containers.yml and delete_containers.yml on real LXD: check mode changes nothing, a second run changes nothing.

And initial_setup.yml in check mode on a host that has nothing yet, not even what Ansible's modules want of a Debian; and the connection to
containers on a machine that is busy.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lxd_connection import connection_to

CHECKOUT = Path(__file__).resolve().parents[3]
# One container, with a bridge and a profile of its own; pool and image are those of the scenarios.
WANTED: dict[str, Any] = {
    "lxd_containers": [{"name": "checked1", "cluster": "checked", "initial_role": "primary"}],
    "lxd_bridge": "pgopscheck0",
    "lxd_profile": "pgopscheck",
}
# A repository that is nowhere: in check mode nobody asks it.
VENDOR = {"name": "vendor", "uris": "http://packages.invalid/", "suites": "stable", "components": "main"}
TIMEOUT_SECONDS = 400
CALLBACKS = CHECKOUT / "tests" / "integration" / "playbooks" / "callback_plugins"
KILLABLE = {"ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS), "ANSIBLE_CALLBACKS_ENABLED": "kill_after"}


def run(name: str, *arguments: str, variables: dict[str, Any] | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook to its end, whatever that is; `more` is for its environment."""
    environment = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1", "LC_ALL": "C.UTF-8",
        "PG_OPS_VAULT_PASSWORD": "replicate-safely", "PG_OPS_LXD_CLUSTERS": "checked", **more,
    }  # fmt: skip
    argv = [
        "ansible-playbook", "-i", str(CHECKOUT / "inventories" / "lxd"), "--vault-id", str(CHECKOUT / "scripts" / "vault_password_env-client.sh"),
        "-e", json.dumps({**WANTED, **(variables or {})}), str(CHECKOUT / "playbooks" / f"{name}.yml"), *arguments,
    ]  # fmt: skip
    return subprocess.run(argv, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)


def play(name: str, *arguments: str, host: str = "localhost", **variables: Any) -> dict[str, int]:
    """Run a playbook that has to succeed; returns a host's counts of its recap."""
    done = run(name, *arguments, variables=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(rf"^{host}\s+: (.*)$", done.stdout, re.MULTILINE)
    return {key: int(value) for key, value in (word.split("=") for word in found.group(1).split())}


def tasks_of(name: str, journal: Path) -> int:
    """Run a playbook that has to succeed; returns how many tasks began."""
    done = run(name, **KILLABLE, PG_OPS_TEST_KILL_AFTER="0", PG_OPS_TEST_TASKS=str(journal))
    assert done.returncode == 0, done.stdout + done.stderr
    return len(journal.read_text(encoding="utf-8").splitlines()) - 1  # the last line is the end


def cut_off(name: str, *, after: int) -> None:
    """Run a playbook that is killed when so many tasks have ended."""
    done = run(name, **KILLABLE, PG_OPS_TEST_KILL_AFTER=str(after))
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def lxd_has() -> dict[str, Any]:
    """Return what LXD has of each kind that the playbooks make: names, for containers with their state."""
    kinds = {"containers": ["list"], "networks": ["network", "list"], "profiles": ["profile", "list"]}
    found = {}
    for kind, words in kinds.items():
        argv = ["timeout", "30", "lxc", *words, "--format", "json"]
        listed = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
        found[kind] = sorted((item["name"], item.get("status", "")) for item in listed)
    # Other people's containers come and go on a machine that is shared.
    found["containers"] = [each for each in found["containers"] if each[0] == "checked1"]
    return found


def files_and_packages() -> str:
    """Return every file of the container's own below /etc, /opt, /usr/local and /var/lib, and its packages with their states."""
    files = "find /etc /opt /usr/local /var/lib -xdev -type f ! -path '/var/lib/systemd/*' -printf '%p %s %T@\\n' | sort"
    packages = "dpkg-query --show --showformat '${Package} ${db:Status-Status}\\n'"
    script = f"{files}; {packages}"
    return subprocess.run(["timeout", "30", "lxc", "exec", "checked1", "--", "sh", "-c", script], capture_output=True, text=True, check=True).stdout


def make_bare() -> None:
    """Take away what the image has of PostgreSQL and of what Ansible's modules want."""
    argv = ["timeout", "60", "lxc", "exec", "checked1", "--", "dpkg", "--purge", "--force-depends", "python3-apt", "python3-psycopg2", "postgresql-15"]
    subprocess.run(argv, capture_output=True, check=True)


def lost_under_load(commands: int = 300, at_once: int = 8) -> int:
    """Return of how many short commands the connection loses the output while every core is busy; community.general.lxd lost 5 to 9 in 100 here."""
    connection = connection_to("checked1")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _each in range(2 * (os.cpu_count() or 1))]
    try:
        with ThreadPoolExecutor(at_once) as pool:
            ended = list(pool.map(lambda _each: connection.exec_command("echo said"), range(commands)))
    finally:
        for each in busy:
            each.kill()
            each.wait()
    assert {status for status, _out, _err in ended} == {0}
    return sum(out != "said\n" for _status, out, _err in ended)


@pytest.fixture(scope="module", autouse=True)
def clean() -> Iterator[None]:
    """What an earlier, killed run left goes first; what this one makes goes last. The first run also starts LXD and builds the image."""
    play("launch_containers")
    play("delete_containers")
    remove_own()
    yield
    play("delete_containers")
    remove_own()


def remove_own() -> None:
    """Remove the bridge and the profile of these tests; the playbook would take the shared storage pool too."""
    for words in (["profile", "delete", "pgopscheck"], ["network", "delete", "pgopscheck0"]):
        subprocess.run(["timeout", "30", "lxc", *words], capture_output=True, check=False)


def test_check_mode_and_second_run_change_nothing() -> None:
    nothing = lxd_has()
    assert nothing["containers"] == [] and "pgopscheck0" not in dict(nothing["networks"])
    assert play("launch_containers", "--check", "--diff")["changed"] > 0
    assert lxd_has() == nothing
    assert play("delete_containers", "--check", "--diff")["changed"] == 0

    assert play("launch_containers")["changed"] > 0
    launched = lxd_has()
    assert launched["containers"] == [("checked1", "Running")]
    assert {"pgopscheck0"} <= set(dict(launched["networks"])) and {"pgopscheck"} <= set(dict(launched["profiles"]))
    assert play("launch_containers", "--check", "--diff")["changed"] == 0
    assert play("launch_containers")["changed"] == 0
    assert lxd_has() == launched
    assert lost_under_load() == 0

    make_bare()
    bare = files_and_packages()
    assert "python3-apt installed" not in bare and "postgresql-15 installed" not in bare
    wishes = {"pg_archive": "directory", "pg_archive_directory": "/srv/archive", "pg_monitoring": True, "pg_tls": "verify-full", "pg_node_repository": VENDOR}
    would = play("initial_setup", "--check", "--diff", host="checked1", **wishes)
    assert would["changed"] > 0
    assert files_and_packages() == bare

    assert play("delete_containers", "--check", "--diff")["changed"] > 0
    assert lxd_has() == launched
    assert play("delete_containers")["changed"] > 0
    assert lxd_has()["containers"] == []
    assert play("delete_containers")["changed"] == 0


def test_runs_that_are_killed_can_be_repeated(tmp_path: Path) -> None:
    """launch_containers.yml is killed in the middle and before its last tasks, delete_containers.yml before its last."""
    tasks = tasks_of("launch_containers", tmp_path / "launch")
    launched = lxd_has()
    tasks_to_delete = tasks_of("delete_containers", tmp_path / "delete")
    for after in (tasks // 2, tasks - 2):
        cut_off("launch_containers", after=after)
    play("launch_containers")
    assert lxd_has() == launched and launched["containers"] == [("checked1", "Running")]
    cut_off("delete_containers", after=tasks_to_delete - 2)
    play("delete_containers")
    assert lxd_has()["containers"] == []
