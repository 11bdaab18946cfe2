# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""status.yml on real servers: exit status, table, JSON and page, while two clusters go from healthy to two primaries.

The tests build on each other, in this order. Cluster shop is pgsql1 and pgsql2, cluster bank is pgsql3 alone and stays well.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.integration.playbooks.cluster import CHECKOUT, VAULT_SCRIPT, Cluster, Done, install_collection, unchanged, wait_for

INVENTORY: dict[str, dict[str, Any]] = {
    "pgsql1": {"pg_cluster_name": "shop"},
    "pgsql2": {"pg_cluster_name": "shop"},
    "pgsql3": {"pg_cluster_name": "bank", "pg_initial_role": "primary"},
}
IMPORTING = "- import_playbook: pg_ops.replication.status\n"
OF_ONES_OWN = """
- hosts: pg_nodes
  gather_facts: false
  become: true
  roles:
    - role: pg_ops.replication.status
"""


@pytest.fixture(scope="module")
def cluster(make: Callable[..., Cluster]) -> Cluster:
    made = make(3)
    made.play("initial_setup", inventory=INVENTORY)
    return made


def status(cluster: Cluster, *arguments: str, **more: Any) -> Done:
    more.setdefault("inventory", INVENTORY)
    done = cluster.run("status", *arguments, **more)
    assert "Traceback" not in done.output, done.output
    return done


def documents(done: Done) -> dict[str, Any]:
    """Return the JSON documents in the output by cluster."""
    found = [json.loads(line) for line in done.output.splitlines() if line.startswith('{"schema"')]
    return {each["cluster"]: each for each in found}


def page_at(path: Path) -> ElementTree.Element:
    """Return the page, which must be well-formed, fetch nothing and be readable by everybody."""
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o644
    assert re.search(r"\w+://|<script|url\(", text) is None
    HTMLParser().feed(text)
    return ElementTree.fromstring(text)


def badges(page: ElementTree.Element) -> list[tuple[str, str]]:
    return [(section.findtext(".//h2", ""), section.findtext(".//span", "")) for section in page.iter("section")]


def other_ways(cluster: Cluster, name: str, *, cwd: Path, environment: dict[str, str]) -> int:
    """Run a playbook by a name or from a place of its own and return its exit status."""
    overlay = cluster.state / "overlay.json"  # as `status` left it
    argv = ["ansible-playbook", name, "-i", str(CHECKOUT / "inventories" / "local"), "-i", str(overlay), "--vault-id", VAULT_SCRIPT]
    done = subprocess.run(argv, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=180)
    assert "Cluster shop: " in done.stdout, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return done.returncode


# -- healthy -----------------------------------------------------------------------------------------------------------------------------


def test_healthy_clusters_end_with_0_and_show_tables_and_page(cluster: Cluster, tmp_path: Path) -> None:
    with unchanged(cluster):
        done = status(cluster, "-e", f"pg_status_html={tmp_path}/page.html")
    assert done.returncode == 0, done.output
    assert "Cluster shop: healthy" in done.output and "Cluster bank: healthy" in done.output
    assert re.search(r"^pgsql2 +standby +streaming +1 +0/\w+ +\d\S* \d\.\ds +pgsql1 +on \d\S* +async$", done.output, re.MULTILINE), done.output
    assert max(len(line) for line in done.output.splitlines() if re.match(r"NODE|pgsql\d +(primary|standby) ", line)) <= 80
    page = page_at(tmp_path / "page.html")
    assert badges(page) == [("Cluster shop", "\u2713 healthy"), ("Cluster bank", "\u2713 healthy")]
    assert [each.get("class") for each in page.findall(".//svg/g")] == ["flows", "leads", "follows", "leads"]


def test_check_mode_writes_no_page(cluster: Cluster, tmp_path: Path) -> None:
    assert status(cluster, "--check", "-e", f"pg_status_html={tmp_path}/page.html").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_json_is_all_there_is_on_standard_output_with_the_null_callback(cluster: Cluster) -> None:
    argv = ["ansible-playbook", "-i", str(CHECKOUT / "inventories" / "local"), "-i", str(cluster.state / "overlay.json"), "--vault-id", VAULT_SCRIPT]
    done = subprocess.run(
        [*argv, str(CHECKOUT / "playbooks" / "status.yml"), "-e", "pg_status_format=json"],
        cwd=CHECKOUT, env=cluster.environ(ANSIBLE_STDOUT_CALLBACK="community.general.null"), capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted((each["cluster"], each["severity"], each["exit_status"]) for each in found) == [("bank", "healthy", 0), ("shop", "healthy", 0)]


def test_modules_are_packed_once_and_again_when_what_was_kept_is_broken(cluster: Cluster, tmp_path: Path) -> None:
    def packs() -> int:
        done = status(cluster, ANSIBLE_HOME=str(tmp_path), ANSIBLE_DEBUG="1", PG_OPS_TEST_PAYLOADS="")
        assert done.returncode == 0, done.output
        return done.output.count("ANSIBALLZ: Creating module")

    assert packs() > 0
    [kept] = (tmp_path / "pg_ops.replication").glob("*/compiled/*")
    assert ".pg_node_info-" in kept.name
    assert packs() == 0
    kept.write_bytes(kept.read_bytes()[:-1])
    assert packs() > 0
    assert packs() == 0


# -- degraded ----------------------------------------------------------------------------------------------------------------------------


def test_stopped_standby_ends_with_2_in_every_form(cluster: Cluster, tmp_path: Path) -> None:
    cluster.pg_ctl("pgsql2", "stop", "-m", "fast")
    done = status(cluster, "-e", f"pg_status_html={tmp_path}/page.html")
    assert done.returncode == 2
    [line] = [line for line in done.output.splitlines() if line.startswith("  ! ")]
    assert line.startswith("  ! pgsql2: the server does not run") and line.endswith("Type: ansible-playbook start_new_standby.yml")
    assert re.search(r"^pgsql2 +standby +stopped .* pgsql1 +off \d\S*", done.output, re.MULTILINE), done.output
    assert "Cluster bank: healthy" in done.output
    assert done.output.count("\nchanged: ") == 1  # one host writes for all
    page = page_at(tmp_path / "page.html")
    assert badges(page) == [("Cluster shop", "! degraded, 1 problem"), ("Cluster bank", "\u2713 healthy")]
    assert [each.get("class") for each in page.findall(".//svg/g")] == ["broken", "leads", "down", "leads"]


def test_status_that_must_not_fail_ends_with_0(cluster: Cluster) -> None:
    done = status(cluster, "-e", "pg_status_format=json", "-e", "pg_status_fail=false")
    assert done.returncode == 0
    found = documents(done)
    assert {name: each["severity"] for name, each in found.items()} == {"shop": "degraded", "bank": "healthy"}
    [problem] = found["shop"]["problems"]
    assert (problem["reason"], problem["host"], problem["command"]) == ("not_running", "pgsql2", "ansible-playbook start_new_standby.yml")
    assert "NODE" not in done.output


def test_host_that_cannot_be_reached_is_a_problem_and_not_a_4(cluster: Cluster) -> None:
    away = {"ansible_connection": "ssh", "ansible_port": 1, "ansible_host": "127.0.0.1"}
    done = status(cluster, inventory={**INVENTORY, "pgsql2": {**INVENTORY["pgsql2"], **away}})
    assert done.returncode == 2
    assert "Type: ansible pgsql2 -m ansible.builtin.ping" in done.output


def test_page_that_cannot_be_written_fails_after_the_table(cluster: Cluster, tmp_path: Path) -> None:
    done = status(cluster, "-e", f"pg_status_html={tmp_path}/missing/page.html", "-e", "pg_status_fail=false")
    assert done.returncode == 2
    assert "Cluster shop: degraded" in done.output and "Cluster bank: healthy" in done.output
    assert "No such file or directory. Name another file in pg_status_html" in done.text


def test_cluster_whose_variables_are_wrong_is_on_the_page_and_does_not_hide_the_other(cluster: Cluster, tmp_path: Path) -> None:
    wrong = {**INVENTORY, "pgsql3": {**INVENTORY["pgsql3"], "pg_version": {"no": "text"}, "pg_port": "many"}}
    done = status(cluster, "-e", f"pg_status_html={tmp_path}/page.html", inventory=wrong)
    assert done.returncode == 2
    assert "Cluster shop: degraded" in done.output
    assert badges(page_at(tmp_path / "page.html")) == [("Cluster bank", "\u2715 no primary, 2 problems"), ("Cluster shop", "! degraded, 1 problem")]


# -- no single primary -------------------------------------------------------------------------------------------------------------------


def test_stopped_primary_ends_with_3_unless_status_must_not_fail(cluster: Cluster, tmp_path: Path) -> None:
    cluster.pg_ctl("pgsql2", "start")
    cluster.pg_ctl("pgsql1", "stop", "-m", "fast")
    done = status(cluster, "-e", f"pg_status_html={tmp_path}/missing/page.html")
    assert done.returncode == 3
    assert "PLAY RECAP" in done.output and "Name another file in pg_status_html" in done.text
    assert re.search(r"^  ! shop: no node accepts writes .* Type: ansible-playbook failover.yml$", done.output, re.MULTILINE), done.output
    assert status(cluster, "-e", "pg_status_fail=false", "-e", f"pg_status_html={tmp_path}/page.html").returncode == 0
    assert badges(page_at(tmp_path / "page.html"))[0] == ("Cluster shop", "\u2715 no primary, 2 problems")


def test_another_playbook_beside_it_keeps_ansibles_exit_status(cluster: Cluster) -> None:
    assert cluster.run("verify", inventory=INVENTORY).returncode == 2


def test_status_by_its_full_name_and_imported_ends_with_3_and_the_role_alone_with_2(cluster: Cluster, tmp_path: Path) -> None:
    environment = install_collection(cluster, tmp_path)
    assert other_ways(cluster, "pg_ops.replication.status", cwd=tmp_path, environment=environment) == 3
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "importing.yml").write_text(IMPORTING, encoding="utf-8")
    (mine / "role.yml").write_text(OF_ONES_OWN, encoding="utf-8")
    assert other_ways(cluster, "importing.yml", cwd=mine, environment=environment) == 3
    assert other_ways(cluster, "role.yml", cwd=mine, environment=environment) == 2
    callbacks = tmp_path / "installed/ansible_collections/pg_ops/replication/playbooks/callback_plugins"
    assert other_ways(cluster, "role.yml", cwd=mine, environment={**environment, "ANSIBLE_CALLBACK_PLUGINS": str(callbacks)}) == 3


def test_two_primaries_end_with_3_and_are_both_on_top(cluster: Cluster, tmp_path: Path) -> None:
    cluster.pg_ctl("pgsql1", "start")
    cluster.pg_ctl("pgsql2", "promote")
    wait_for(lambda: cluster.sql("pgsql2", "SELECT pg_is_in_recovery()") == "f", "pgsql2 to be promoted")
    done = status(cluster, "-e", "pg_status_format=json", "-e", f"pg_status_html={tmp_path}/page.html")
    assert done.returncode == 3
    shop = documents(done)["shop"]
    assert (shop["severity"], shop["exit_status"], shop["primaries"]) == ("no_single_primary", 3, ["pgsql1", "pgsql2"])
    assert [problem["reason"] for problem in shop["problems"]] == ["two_primaries", "two_primaries"]
    page = page_at(tmp_path / "page.html")
    rivals = page.findall(".//svg/g[@class='rival']/rect")
    assert len(rivals) == 2
    assert len({each.get("y") for each in rivals}) == 1
