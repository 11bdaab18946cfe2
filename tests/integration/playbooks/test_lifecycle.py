# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One three-node cluster from nothing through its role changes: nothing changes twice, check mode changes nothing, no password shows.

The tests build on each other, in this order. Every playbook runs with -vvv, with Ansible's log, on servers that log every statement,
while the command lines of all processes are collected; the last tests look for passwords in all of that.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.playbooks.cluster import CHECKOUT, VAULT_SCRIPT, Cluster, Done, install_collection, unchanged
from tests.integration.playbooks.watching import leaks, sampled_command_lines, vault_passwords

pytestmark = pytest.mark.chained

TALKATIVE = {
    "log_statement": "all",
    "log_min_duration_statement": 0,
    "log_min_duration_sample": 0,
    "log_transaction_sample_rate": 1,
    "log_connections": "on",
    "log_replication_commands": "on",
}
STATISTICS = {"shared_preload_libraries": "pg_stat_statements"}


class Watched:
    """A cluster whose playbooks all run with -vvv and leave what they said behind."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.output = ""
        self.log = cluster.state / "ansible.log"
        known = list(Path(cluster.local.bin_directory).parent.glob("lib/**/pg_stat_statements.so"))
        self.settings = {**TALKATIVE, **(STATISTICS if known else {})}

    def run(self, name: str, *arguments: str, **more: object) -> Done:
        done = self.cluster.run(name, "-vvv", "-e", json.dumps({"pg_settings": self.settings}), *arguments, ANSIBLE_LOG_PATH=str(self.log), **more)
        self.output += done.output
        return done

    def play(self, name: str, *arguments: str) -> Done:
        done = self.run(name, *arguments)
        assert done.returncode == 0, f"{name}.yml ended with {done.returncode}:\n{done.output[-6000:]}"
        return done


@pytest.fixture(scope="module")
def command_lines() -> Iterator[set[str]]:
    seen: set[str] = set()
    with sampled_command_lines(seen):
        yield seen


@pytest.fixture(scope="module")
def watched(make: Callable[..., Cluster], command_lines: set[str]) -> Watched:
    return Watched(make(3))


@pytest.fixture(scope="module")
def cluster(watched: Watched) -> Cluster:
    return watched.cluster


def nothing_changed(done: Done, cluster: Cluster) -> bool:
    assert set(cluster.names) <= set(done.changed)
    return not any(done.changed.values())


def test_initial_setup_in_check_mode_on_nothing_changes_nothing(watched: Watched, cluster: Cluster) -> None:
    with unchanged(cluster):
        watched.play("initial_setup", "--check", "--diff")


def test_initial_setup_makes_a_cluster_that_streams(watched: Watched, cluster: Cluster) -> None:
    watched.play("initial_setup")
    cluster.assert_replicating("pgsql1")
    watched.play("verify")
    watched.play("status")


@pytest.mark.long
def test_initial_setup_again_changes_nothing(watched: Watched, cluster: Cluster) -> None:
    with unchanged(cluster):
        assert nothing_changed(watched.play("initial_setup"), cluster)


@pytest.mark.parametrize("name", ["status", "verify", "switchover", "start_new_standby"])
def test_check_mode_changes_nothing(watched: Watched, cluster: Cluster, name: str) -> None:
    with unchanged(cluster):
        watched.play(name, "--check", "--diff")


def test_check_mode_of_failover_refuses_as_the_primary_is_healthy(watched: Watched, cluster: Cluster) -> None:
    with unchanged(cluster):
        done = watched.run("failover", "--check", "--diff")
    assert done.returncode != 0
    assert "pgsql1: is primary and answers" in done.output
    assert "run switchover.yml" in done.output


@pytest.mark.long
def test_check_mode_of_initial_setup_with_another_setting_shows_it_and_changes_nothing(watched: Watched, cluster: Cluster) -> None:
    settings = {**watched.settings, "work_mem": "5MB"}
    with unchanged(cluster):
        done = watched.play("initial_setup", "--check", "--diff", "-e", json.dumps({"pg_settings": settings}))
    assert "+work_mem = '5MB'" in done.output


def test_check_mode_of_generate_secrets_writes_no_file(watched: Watched, tmp_path: Path) -> None:
    watched.play("generate_secrets", "--check", "--diff", "-e", f"vault_file={tmp_path / 'vault.yml'}")
    assert list(tmp_path.iterdir()) == []


def test_switchover_to_a_node_that_is_named_hands_over_to_it(watched: Watched, cluster: Cluster) -> None:
    watched.play("switchover", "-e", "pg_switchover_to=pgsql2")
    cluster.assert_replicating("pgsql2")


@pytest.mark.long
def test_initial_setup_after_a_switchover_changes_nothing(watched: Watched, cluster: Cluster) -> None:
    with unchanged(cluster):
        assert nothing_changed(watched.play("initial_setup"), cluster)


def test_switchover_while_a_sibling_is_down_leaves_that_one_to_start_new_standby(watched: Watched, cluster: Cluster) -> None:
    cluster.pg_ctl("pgsql3", "stop", "-m", "fast")
    watched.play("switchover", "-e", "pg_switchover_to=pgsql1")
    assert cluster.primary() == "pgsql1"
    watched.play("start_new_standby")
    cluster.assert_replicating("pgsql1")


def test_failover_in_check_mode_changes_nothing_and_then_promotes(watched: Watched, cluster: Cluster) -> None:
    cluster.crash("pgsql1")
    with unchanged(cluster):
        watched.play("failover", "--check", "--diff")
    watched.play("failover")
    assert cluster.primary() != "pgsql1"


def test_start_new_standby_in_check_mode_changes_nothing_and_then_brings_it_back(watched: Watched, cluster: Cluster) -> None:
    with unchanged(cluster):
        watched.play("start_new_standby", "--check", "--diff")
    watched.play("start_new_standby")
    cluster.assert_replicating()


def test_initial_setup_after_a_failover_changes_nothing(watched: Watched, cluster: Cluster) -> None:
    primary = cluster.primary()
    with unchanged(cluster):
        assert nothing_changed(watched.play("initial_setup"), cluster)
    assert cluster.primary() == primary


@pytest.mark.long
@pytest.mark.parametrize("name", ["start_new_standby", "switchover"])
def test_check_mode_with_the_roles_the_other_way_round_changes_nothing(watched: Watched, cluster: Cluster, name: str) -> None:
    with unchanged(cluster):
        watched.play(name, "--check", "--diff")


# -- secrets: the last, because they look at what all of the above left behind -----------------------------------------------------


def test_a_password_that_is_only_compared_stands_nowhere_on_the_server(watched: Watched, cluster: Cluster) -> None:
    secret = "another one than the server has"
    arguments = cluster.state / "other.json"
    arguments.touch(mode=0o600)
    arguments.write_text(json.dumps({"pg_replication_password": secret}), encoding="utf-8")
    done = watched.run("initial_setup", "-e", f"@{arguments}")
    assert done.returncode != 0 and "exists with another password" in done.text
    arguments.unlink()
    for name in cluster.names:
        for path in (path for path in cluster.place(name).rglob("*") if path.is_file() and not path.is_symlink()):
            assert secret.encode() not in path.read_bytes(), f"{path} holds the password"


def test_no_password_stands_in_output_or_log_at_vvv(watched: Watched, cluster: Cluster) -> None:
    passwords = vault_passwords(cluster)
    assert len(watched.output) > 100_000
    assert leaks(watched.output, passwords) == []
    assert leaks(watched.log.read_text(encoding="utf-8"), passwords) == []


def test_no_password_stands_in_a_server_log_that_has_every_statement(cluster: Cluster) -> None:
    passwords = vault_passwords(cluster)
    for name in cluster.names:
        text = (cluster.place(name) / "postgresql.log").read_text(encoding="utf-8", errors="replace")
        assert "statement: CHECKPOINT" in text or "statement: SELECT" in text, f"{name} logged no statement"
        assert leaks(text, passwords) == []


def test_no_password_stands_on_a_command_line(cluster: Cluster, command_lines: set[str]) -> None:
    assert any("ansible-playbook" in line for line in command_lines)
    assert any("pg_basebackup" in line for line in command_lines)
    assert leaks("\n".join(command_lines), vault_passwords(cluster)) == []


def test_passwords_stand_in_no_file_of_a_node_but_its_passfile(cluster: Cluster) -> None:
    passwords = vault_passwords(cluster)
    for name in cluster.names:
        assert "password" not in cluster.sql(name, "SELECT current_setting('primary_conninfo', true)")
        for path in (path for path in cluster.place(name).rglob("*") if path.is_file() and not path.is_symlink()):
            if path.name == "passfile":
                assert path.stat().st_mode & 0o777 == 0o600
                assert path.stat().st_uid == cluster.account.pw_uid
            else:
                assert leaks(path.read_bytes().decode("utf-8", errors="replace"), passwords) == [], f"{path} holds a password"


def test_state_directories_are_private(cluster: Cluster) -> None:
    for name in cluster.names:
        top = cluster.own_state(name)
        # Below configuration/ the files keep the modes that they go back with.
        for path in [top, *(path for path in top.rglob("*") if "configuration" not in path.parent.parts)]:
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
            assert path.stat().st_uid == cluster.account.pw_uid, path


def test_facts_hold_no_password(watched: Watched, cluster: Cluster) -> None:
    """What a run registers about the nodes, shown in full."""
    play = cluster.state / "facts.yml"
    play.write_text(FACTS_PLAY, encoding="utf-8")
    argv = ["ansible-playbook", "-i", str(CHECKOUT / "inventories" / "local"), "--vault-id", VAULT_SCRIPT, str(play)]
    done = subprocess.run(argv, cwd=CHECKOUT, env=cluster.environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "system_identifier" in done.stdout
    assert leaks(done.stdout, vault_passwords(cluster)) == []


FACTS_PLAY = """
- hosts: pg_nodes
  gather_facts: true
  become: true
  roles:
    - role: pg_ops.replication.common
  tasks:
    - ansible.builtin.debug:
        var: __pg_observed
    - ansible.builtin.debug:
        var: ansible_facts
"""


# -- the artifact --------------------------------------------------------------------------------------------------------------------


def test_installed_collection_runs_by_its_full_name(cluster: Cluster, tmp_path: Path) -> None:
    """Built and installed as a user would, away from the checkout and its ansible.cfg."""
    environment = install_collection(cluster, tmp_path)
    inventory = ["-i", str(CHECKOUT / "inventories" / "local"), "--vault-id", VAULT_SCRIPT]

    def play(name: str) -> None:
        argv = ["ansible-playbook", f"pg_ops.replication.{name}", *inventory]
        done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "WARNING" not in done.stdout + done.stderr

    play("verify")
    old = cluster.primary()
    cluster.crash(old)
    play("failover")
    assert cluster.primary() != old
    play("start_new_standby")
    play("status")
