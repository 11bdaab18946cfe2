# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the HTML page: it is well-formed, fetches nothing, and escapes whatever a host is called."""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.plugins.plugin_utils.status_page import render_page, write_page
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import change, cluster, down

CHECKOUT = Path(__file__).resolve().parents[4]
TEMPLATE = (CHECKOUT / "roles/status/templates/status.html.j2").read_text(encoding="utf-8")
NOON = "2026-01-31T12:00:00Z"
NINE = tuple("pg{0}".format(number) for number in range(1, 10))


def page_of(*topologies: Topology) -> str:
    return render_page(TEMPLATE, topologies, observed_at=NOON)


def parsed(page: str) -> ElementTree.Element:
    """Return the page as XML, which is stricter than HTML."""
    return ElementTree.fromstring(page)


def named(topology: Topology, name: str) -> Topology:
    return Topology(name, topology.nodes)


def two_primaries() -> Topology:
    return change(cluster(), "pg2", role=PRIMARY, receiver=Receiver())


STATES = [
    pytest.param([cluster()], id="healthy"),
    pytest.param([cluster(NINE, upstreams={"pg4": "pg2", "pg5": "pg4"})], id="nine with a cascade"),
    pytest.param([two_primaries()], id="two primaries"),
    pytest.param([down(cluster(), "pg1")], id="no primary"),
    pytest.param([down(cluster(), "pg1", states.UNREACHABLE, problem="ssh: 'no' <route> & \"host\"")], id="unreachable"),
    pytest.param([cluster(), named(down(cluster(), "pg3"), "shop")], id="two clusters"),
    pytest.param([Topology("main", ())], id="no node"),
    pytest.param([], id="no cluster"),
]


@pytest.mark.parametrize("topologies", STATES)
def test_page_is_well_formed_and_shows_every_cluster_and_node(topologies: list[Topology]) -> None:
    root = parsed(page_of(*topologies))
    sections = root.findall(".//section")
    assert len(sections) == len(root.findall(".//svg")) == len(topologies)
    assert len(root.findall(".//svg//rect")) == len(root.findall(".//tbody/tr")) == sum(len(each.nodes) for each in topologies)
    assert NOON in [each.get("datetime") for each in root.iter("time")]


@pytest.mark.parametrize("topologies", STATES)
def test_page_fetches_nothing_and_runs_nothing(topologies: list[Topology]) -> None:
    page = page_of(*topologies)
    root = parsed(page)
    assert {each.tag for each in root.iter()} & {"script", "img", "iframe", "object", "embed", "base", "form"} == set()
    references = [value for each in root.iter() for name, value in each.attrib.items() if name in ("href", "src", "srcset", "action", "data")]
    assert references == ["data:,"]  # no icon is to be fetched either
    assert re.search(r"\w+://|url\(|@import", page) is None


@pytest.mark.parametrize("topologies", STATES)
def test_page_names_what_a_screen_reader_reads_and_has_each_id_once(topologies: list[Topology]) -> None:
    root = parsed(page_of(*topologies))
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(ids) == len(set(ids))
    for drawing in root.iter("svg"):
        assert drawing.get("role") == "img"
        assert set(str(drawing.get("aria-labelledby")).split()) <= set(ids)
        assert drawing.findtext("title") and drawing.findtext("desc")


ODD = ['<b>&"x', "'><script>alert(1)</script>", "{{ 7 * 7 }}", "\u00c4\u6771\u4eac \u2028", "x" * 200]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_are_shown_as_they_are_and_are_never_markup(name: str) -> None:
    topology = named(down(cluster(("pg1", name, "pg3")), name, states.STOPPED), name)
    page = page_of(topology)
    root = parsed(page)
    assert [each.text for each in root.findall(".//tbody/tr/th")] == ["pg1", name, "pg3"]
    assert root.findtext(".//section//h2") == "Cluster " + name
    assert root.findtext(".//section//li//strong") == name
    assert "<script" not in page and "<b>" not in page.replace("<li><b>", "")


def test_worst_cluster_comes_first_and_names_the_page() -> None:
    root = parsed(page_of(named(cluster(), "a"), named(down(cluster(), "pg3"), "b"), named(two_primaries(), "c"), named(cluster(), "d")))
    assert [each.text for each in root.iter("h2")] == ["Cluster c", "Cluster b", "Cluster a", "Cluster d"]
    assert root.findtext(".//head/title", "").startswith("NO SINGLE PRIMARY: ")
    assert [" ".join((each.text or "").split()) for each in root.findall(".//span[@class]")] == [
        "\u2715 2 primaries, 2 problems", "! degraded, 1 problem", "\u2713 healthy", "\u2713 healthy",
    ]  # fmt: skip


def test_each_problem_has_its_command() -> None:
    root = parsed(page_of(down(cluster(), "pg3"), change(cluster(), "pg2", replay_paused=True)))
    assert [each.text for each in root.findall(".//li//code")] == [
        "ansible-playbook start_new_standby.yml", "psql -p 5432 -c 'SELECT pg_wal_replay_resume()'",
    ]  # fmt: skip


def test_arrows_and_nodes_have_the_classes_of_their_state() -> None:
    root = parsed(page_of(down(two_primaries(), "pg3")))
    assert sorted(str(each.get("class")) for each in root.findall(".//svg/g")) == ["broken", "down", "rival", "rival"]


def test_write_page_replaces_a_file_and_lets_everybody_read_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o600)
    before = os.umask(0o077)
    try:
        with path.open(encoding="utf-8") as reader:
            write_page(str(path), "new \u00c4")
            assert reader.read() == "old"
    finally:
        os.umask(before)
    assert path.read_text(encoding="utf-8") == "new \u00c4"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_write_page_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("page.html")
    write_page(str(tmp_path / "link"), "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "new"


def test_write_page_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError):
        write_page(str(tmp_path / "taken"), "new")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(OSError):
        write_page(str(tmp_path / "missing" / "page.html"), "new")
