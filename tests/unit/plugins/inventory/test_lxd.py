# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory plugin against a server that speaks LXD's HTTP on a socket."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible import constants
from ansible.errors import AnsibleParserError
from ansible.inventory.data import InventoryData
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.doc_fragments.constructed import ModuleDocFragment
from ansible_collections.pg_ops.replication.plugins.inventory.lxd import DOCUMENTATION, InventoryModule

pytest.importorskip("pylxd")

INSTANCES = [
    {
        "name": "pgsql1",
        "status": "Running",
        "config": {"user.pg_cluster": "main", "user.pg_initial_role": "primary"},
        "expanded_devices": {"eth0": {"type": "nic", "network": "pgops0"}},
        "state": {"network": {"eth0": {"addresses": [{"family": "inet", "address": "10.0.0.1", "scope": "global"}]}}},
    },
    {
        "name": "pgsql2",
        "status": "Stopped",
        "config": {"user.pg_cluster": "main", "user.pg_initial_role": "standby", "user.pg_priority": "0"},
        "expanded_devices": {"eth0": {"type": "nic", "network": "pgops0", "ipv4.address": "10.0.0.2"}},
        "state": {"network": None},
    },
    {"name": "eu1", "status": "Frozen", "config": {"user.pg_cluster": "prod-eu", "user.pg_upstream": "eu0"}, "expanded_devices": {}, "state": None},
    {"name": "web", "status": "Running", "config": {}, "expanded_devices": {}, "state": None},
]


def plugin() -> InventoryModule:
    """A new instance of the plugin, with the options that its documentation names; Ansible's loader would want a collection finder."""
    options = {**yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"], **yaml.safe_load(DOCUMENTATION)["options"]}
    constants.config.initialize_plugin_configuration_definitions("inventory", InventoryModule.NAME, options)
    instance = InventoryModule()
    instance._load_name = InventoryModule.NAME
    return instance


class FakeLxd(socketserver.ThreadingUnixStreamServer):
    """Answers /1.0 and /1.0/instances; counts the requests; may be slow."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        self.instances: Any = INSTANCES
        self.delay_seconds = 0.0
        super().__init__(str(path), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: FakeLxd

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        time.sleep(self.server.delay_seconds)
        metadata = self.server.instances if "/instances" in self.path else {"auth": "trusted", "api_extensions": ["projects"], "environment": {}}
        body = json.dumps({"type": "sync", "status_code": 200, "metadata": metadata}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture(name="lxd")
def fixture_lxd(tmp_path: Path) -> Iterator[FakeLxd]:
    with FakeLxd(tmp_path / "unix.socket") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(name="read")
def fixture_read(tmp_path: Path) -> Any:
    """A function that reads a source file with these options and returns the inventory."""

    def read(**options: Any) -> InventoryData:
        source = tmp_path / "containers.lxd.yml"
        source.write_text(json.dumps({"plugin": "pg_ops.replication.lxd", "endpoint": str(tmp_path / "unix.socket"), **options}))
        inventory = InventoryData()
        plugin().parse(inventory, DataLoader(), str(source))
        inventory.reconcile_inventory()
        return inventory

    return read


def members(inventory: InventoryData, group: str) -> set[str]:
    return {host.name for host in inventory.groups[group].get_hosts()}


def test_parse_lists_the_containers_with_the_key_in_their_groups(lxd: FakeLxd, read: Any) -> None:
    inventory = read()
    assert members(inventory, "pg_nodes") == {"pgsql1", "pgsql2", "eu1"}
    assert members(inventory, "pg_cluster_main") == {"pgsql1", "pgsql2"}
    assert members(inventory, "pg_cluster_prod_eu") == {"eu1"}


def test_parse_asks_lxd_one_question_after_the_greeting(lxd: FakeLxd, read: Any) -> None:
    read()
    assert [path.split("?")[0] for path in lxd.asked] == ["/1.0", "/1.0/instances"]
    assert "recursion=2" in lxd.asked[1]


def test_parse_sets_what_playbooks_and_the_connection_need(lxd: FakeLxd, read: Any) -> None:
    variables = read().hosts["pgsql1"].vars
    assert (
        variables.items()
        >= {
            "ansible_connection": "pg_ops.replication.lxd",
            "ansible_lxd_host": "pgsql1",
            "ansible_lxd_remote": "local",
            "ansible_user": "root",
            "ansible_pipelining": True,
            "lxd_status": "Running",
            "lxd_running": True,
            "pg_cluster_name": "main",
            "pg_address": "10.0.0.1",
            "pg_initial_role": "primary",
            "pg_priority": 100,
        }.items()
    )
    assert "pg_upstream" not in variables


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pgsql2", {"lxd_status": "Stopped", "lxd_running": False, "pg_address": "10.0.0.2", "pg_priority": 0}),
        ("eu1", {"lxd_status": "Frozen", "lxd_running": False, "pg_upstream": "eu0"}),
    ],
)
def test_parse_lists_and_marks_a_container_that_does_not_run(lxd: FakeLxd, read: Any, name: str, expected: dict[str, Any]) -> None:
    assert read().hosts[name].vars.items() >= expected.items()


def test_parse_with_clusters_shows_only_those(lxd: FakeLxd, read: Any) -> None:
    assert members(read(clusters=["prod-eu"]), "pg_nodes") == {"eu1"}


def test_parse_with_constructed_options_makes_groups_and_variables(lxd: FakeLxd, read: Any) -> None:
    inventory = read(groups={"down": "not lxd_running"}, compose={"place": "'rack ' ~ pg_priority"}, keyed_groups=[{"key": "lxd_status", "prefix": "lxd"}])
    assert members(inventory, "down") == {"pgsql2", "eu1"}
    assert members(inventory, "lxd_Frozen") == {"eu1"}
    assert inventory.hosts["pgsql2"].vars["place"] == "rack 0"


def test_parse_with_project_and_remote_hands_them_to_the_connection(lxd: FakeLxd, read: Any) -> None:
    variables = read(project="db", remote="far").hosts["pgsql1"].vars
    assert (variables["ansible_lxd_project"], variables["ansible_lxd_remote"]) == ("db", "far")
    assert "project=db" in lxd.asked[-1]


def test_parse_without_containers_has_the_group_and_no_hosts(lxd: FakeLxd, read: Any) -> None:
    lxd.instances = None
    assert members(read(), "pg_nodes") == set()


def test_parse_without_a_socket_is_one_error_that_names_it(read: Any, tmp_path: Path) -> None:
    with pytest.raises(AnsibleParserError, match=r"LXD does not answer at .*unix\.socket: there is no such socket.*launch_containers"):
        read()


def test_parse_with_a_dead_daemons_socket_says_refused(read: Any, tmp_path: Path) -> None:
    FakeLxd(tmp_path / "unix.socket").server_close()
    with pytest.raises(AnsibleParserError, match="connection refused"):
        read()


def test_parse_with_a_daemon_that_hangs_ends_at_its_deadline(lxd: FakeLxd, read: Any) -> None:
    lxd.delay_seconds = 5
    started = time.monotonic()
    with pytest.raises(AnsibleParserError, match=r"nothing came within 0\.2 s"):
        read(timeout_seconds=0.2)
    assert time.monotonic() - started < 2


def test_parse_without_a_daemon_and_warn_has_no_hosts(read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inventory = read(missing_daemon="warn")
    assert members(inventory, "pg_nodes") == set()
    assert "LXD does not answer" in capsys.readouterr().err


def test_parse_with_a_key_that_fits_no_host_is_one_error(lxd: FakeLxd, read: Any) -> None:
    lxd.instances = [{**INSTANCES[0], "config": {"user.pg_cluster": "main", "user.pg_initial_role": "master"}}]
    with pytest.raises(AnsibleParserError, match=r"Container pgsql1 has user\.pg_initial_role='master'"):
        read()


def test_parse_of_two_clusters_in_one_group_warns(lxd: FakeLxd, read: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lxd.instances = [INSTANCES[2], {**INSTANCES[2], "name": "eu2", "config": {"user.pg_cluster": "prod_eu"}}]
    assert members(read(), "pg_cluster_prod_eu") == {"eu1", "eu2"}
    assert "share the group pg_cluster_prod_eu" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "ours"), [("lxd.yml", True), ("a.lxd.yaml", True), ("hosts.yml", False), ("lxd.ini", False)])
def test_verify_file_takes_files_by_name(tmp_path: Path, name: str, ours: bool) -> None:
    (tmp_path / name).write_text("plugin: pg_ops.replication.lxd\n")
    assert plugin().verify_file(str(tmp_path / name)) is ours
