# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What scripts/local_clusters.py remembers, lists and refuses; real directories, no servers."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

import local_clusters
import pytest

MYSELF = pwd.getpwuid(os.geteuid())
LOCAL = local_clusters.Local(
    owner="somebody",
    bin_directory="/usr/lib/postgresql/15/bin",
    version=15,
    interpreter="/venv/bin/python",
    node_count=2,
    nodes={f"pgsql{number}": local_clusters.Node(15000 + number, f"/run/{number}") for number in (1, 2, 3)},
)


def test_load_after_save_returns_the_same(tmp_path: Path) -> None:
    local_clusters.save(tmp_path, LOCAL)
    assert local_clusters.load(tmp_path) == LOCAL


def test_load_before_prepare_returns_none(tmp_path: Path) -> None:
    assert local_clusters.load(tmp_path) is None


def test_load_of_a_damaged_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "local.json").write_text("{", encoding="utf-8")
    with pytest.raises(local_clusters.LocalError, match=r"local\.json"):
        local_clusters.load(tmp_path)


def test_inventory_lists_the_chosen_number_of_nodes_and_one_primary(tmp_path: Path) -> None:
    local_clusters.save(tmp_path, LOCAL)
    listed = local_clusters.inventory(tmp_path)
    hosts = listed["_meta"]["hostvars"]
    assert listed["pg_nodes"]["hosts"] == ["pgsql1", "pgsql2"]
    assert [hosts[name]["pg_initial_role"] for name in hosts] == ["primary", "standby"]
    assert hosts["pgsql2"]["pg_port"] == 15002
    assert hosts["pgsql2"]["pg_data_directory"] == f"{tmp_path}/pgsql2/data"


def test_inventory_leaves_become_user_to_the_tasks(tmp_path: Path) -> None:
    local_clusters.save(tmp_path, LOCAL)
    assert "ansible_become_user" not in local_clusters.inventory(tmp_path)["_meta"]["hostvars"]["pgsql1"]


def test_inventory_before_prepare_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(local_clusters.LocalError, match="make local"):
        local_clusters.inventory(tmp_path)


def test_choose_port_skips_a_port_in_use(tmp_path: Path) -> None:
    first = local_clusters.choose_port(tmp_path, set())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        second = local_clusters.choose_port(tmp_path, set())
    assert first != second
    assert local_clusters.choose_port(tmp_path, {first}) not in (first, None)


def test_prepare_node_with_data_keeps_its_port_though_it_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "pgsql1" / "data").mkdir(parents=True)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        node = local_clusters.prepare_node(tmp_path, "pgsql1", MYSELF, {"pgsql1": local_clusters.Node(port, "/run/1")})
    assert node.port == port


def test_prepare_node_without_data_gives_up_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        node = local_clusters.prepare_node(tmp_path, "pgsql1", MYSELF, {"pgsql1": local_clusters.Node(port, "/run/1")})
    assert node.port != port


def test_socket_directory_in_a_long_path_is_short_and_private(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 20)
    (state / "pgsql1").mkdir(parents=True)
    directory = Path(local_clusters.socket_directory(state, "pgsql1", MYSELF))
    try:
        assert len(os.fsencode(directory)) <= local_clusters.LONGEST_SOCKET_DIRECTORY
        assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        directory.rmdir()
        directory.parent.rmdir()


def test_owned_directory_refuses_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(local_clusters.LocalError, match="belongs to somebody else"):
        local_clusters.owned_directory(tmp_path / "link", MYSELF)


@pytest.mark.parametrize("text", ["0", "-1", "three", "", "100"])
def test_node_count_of_an_odd_value_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG_OPS_LOCAL_NODES", text)
    with pytest.raises(local_clusters.LocalError, match="PG_OPS_LOCAL_NODES"):
        local_clusters.node_count()


def test_choose_programs_in_a_directory_without_them_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PG_OPS_LOCAL_BIN", str(tmp_path))
    with pytest.raises(local_clusters.LocalError, match="pg_rewind"):
        local_clusters.choose_programs(tmp_path, MYSELF)


def test_state_directory_of_an_ordinary_user_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PG_OPS_LOCAL_STATE", raising=False)
    monkeypatch.setattr(local_clusters, "is_root", lambda: False)
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert local_clusters.state_directory() == Path("/somewhere/pg_ops/local")


def test_clean_keeps_what_it_did_not_make(tmp_path: Path) -> None:
    local_clusters.save(tmp_path, local_clusters.Local(**{**LOCAL.__dict__, "owner": MYSELF.pw_name, "nodes": {}}))
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    local_clusters.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
