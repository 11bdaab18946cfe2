# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of where nodes and arrows stand in the picture of a cluster."""

from __future__ import annotations

import re

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core import topology_picture
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver, Upstream
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology_picture import (
    BOX_HEIGHT,
    BOX_WIDTH,
    DOWN,
    FOLLOWS,
    LEADS,
    NAME_COLUMNS,
    RIVAL,
    TROUBLED,
    Box,
    Picture,
    labels_of,
    picture,
    shortened,
)
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import PAIR, TRIO, change, cluster, down, sender_of, the

NINE = tuple("pg{0}".format(number) for number in range(1, 10))
CASCADE = {"pg3": "pg2", "pg4": "pg2"}
CHAIN = {"pg3": "pg2", "pg4": "pg3", "pg5": "pg4"}
BUSHES = {"pg4": "pg2", "pg5": "pg2", "pg6": "pg3", "pg7": "pg3", "pg8": "pg6", "pg9": "pg6"}


def two_primaries(topology: Topology, host: str = "pg2") -> Topology:
    return change(topology, host, role=PRIMARY, current_lsn="0/9000000", receiver=Receiver(), upstream=Upstream())


def circle() -> Topology:
    """A cluster without a primary in which two standbys follow each other and a third one follows them."""
    topology = down(cluster(("pg1", "pg2", "pg3", "pg4"), upstreams={"pg3": "pg2", "pg4": "pg3"}), "pg1", states.UNREACHABLE)
    address = the(topology, "pg3").member.address
    return change(topology, "pg2", receiver=Receiver(), upstream=Upstream(address, 5432))


SHAPES = [
    *(pytest.param(cluster(NINE[:count]), id="{0} nodes".format(count)) for count in range(1, 10)),
    pytest.param(cluster(NINE[:5], upstreams=CASCADE), id="cascade"),
    pytest.param(cluster(NINE[:5], upstreams=CHAIN), id="chain"),
    pytest.param(cluster(NINE, upstreams=BUSHES), id="bushes"),
    pytest.param(cluster(NINE[:5], primary="pg5", timeline=2), id="primary is the last"),
    pytest.param(two_primaries(cluster(TRIO)), id="two primaries"),
    pytest.param(two_primaries(cluster(NINE[:5], upstreams=CASCADE)), id="two primaries with standbys"),
    pytest.param(down(cluster(NINE[:5], upstreams=CASCADE), "pg1"), id="no primary"),
    pytest.param(down(cluster(NINE[:5], upstreams=CASCADE), "pg2"), id="middle of a cascade down"),
    pytest.param(down(down(cluster(PAIR), "pg1", states.ABSENT), "pg2", states.ABSENT), id="nothing there"),
    pytest.param(down(down(cluster(PAIR), "pg1", states.UNREACHABLE), "pg2", states.UNREACHABLE), id="nothing seen"),
    pytest.param(circle(), id="circle"),
    pytest.param(Topology("main", ()), id="no node"),
]


def box_of(made: Picture, host: str) -> Box:
    return next(box for box in made.boxes if box.host == host)


@pytest.mark.parametrize("topology", SHAPES)
def test_picture_shows_every_node_once_inside_and_apart_from_the_others(topology: Topology) -> None:
    made = picture(topology)
    assert sorted(box.host for box in made.boxes) == sorted(node.host for node in topology.nodes)
    for box in made.boxes:
        assert box.x >= 0 and box.x + BOX_WIDTH <= made.width
        assert box.y >= 0 and box.y + BOX_HEIGHT <= made.height
    for one in made.boxes:
        for other in made.boxes:
            assert one is other or one.y != other.y or abs(one.x - other.x) >= BOX_WIDTH + 20


@pytest.mark.parametrize("topology", SHAPES)
def test_picture_has_upstreams_above_what_follows_them(topology: Topology) -> None:
    made = picture(topology)
    for arrow in made.arrows:
        source, target = box_of(made, arrow.source), box_of(made, arrow.target)
        assert source.y + BOX_HEIGHT < target.y
        numbers = [int(number) for number in re.findall(r"-?\d+", arrow.path)]
        assert numbers[:2] == [source.middle, source.y + BOX_HEIGHT]
        assert numbers[3] == target.middle
        assert arrow.head.startswith("M{0} {1}l".format(target.middle, target.y - 2))
        assert source.y + BOX_HEIGHT < arrow.label_y and arrow.label_y + 15 * (len(arrow.lines) - 1) < target.y - 8
        for box in made.boxes:  # the arrow runs through no other box
            assert box in (source, target) or not source.y < box.y < target.y or abs(box.middle - target.middle) > BOX_WIDTH // 2
    assert len({arrow.target for arrow in made.arrows}) == len(made.arrows)


@pytest.mark.parametrize("topology", SHAPES)
def test_picture_has_running_primaries_on_top(topology: Topology) -> None:
    made = picture(topology)
    tops = {box.host for box in made.boxes if box.y == min(each.y for each in made.boxes)}
    assert {node.host for node in topology.primaries} <= tops


def test_picture_of_a_cascade_has_three_levels() -> None:
    made = picture(cluster(NINE[:5], upstreams=CASCADE))
    levels = sorted({box.y for box in made.boxes})
    assert [[box.host for box in made.boxes if box.y == level] for level in levels] == [["pg1"], ["pg2", "pg5"], ["pg3", "pg4"]]
    assert {(arrow.source, arrow.target) for arrow in made.arrows} == {("pg1", "pg2"), ("pg1", "pg5"), ("pg2", "pg3"), ("pg2", "pg4")}
    assert all(arrow.flows for arrow in made.arrows)
    assert 2 * box_of(made, "pg2").x == box_of(made, "pg3").x + box_of(made, "pg4").x


@pytest.mark.parametrize(("count", "width"), [(3, 3), (6, 5), (7, 4), (9, 5)])
def test_many_standbys_of_one_node_stand_in_two_rows(count: int, width: int) -> None:
    made = picture(cluster(NINE[:count]))
    assert len({box.y for box in made.boxes}) == (3 if count > 6 else 2)
    assert made.width <= width * (BOX_WIDTH + 28)


@pytest.mark.parametrize(
    ("topology", "kinds"),
    [
        pytest.param(cluster(), {"pg1": LEADS, "pg2": FOLLOWS, "pg3": FOLLOWS}, id="healthy"),
        pytest.param(down(cluster(), "pg3"), {"pg1": LEADS, "pg2": FOLLOWS, "pg3": DOWN}, id="standby down"),
        pytest.param(down(cluster(), "pg1"), {"pg1": DOWN, "pg2": TROUBLED, "pg3": TROUBLED}, id="primary down"),
        pytest.param(down(cluster(), "pg3", states.UNREACHABLE), {"pg1": LEADS, "pg2": FOLLOWS, "pg3": DOWN}, id="unreachable"),
        pytest.param(two_primaries(cluster()), {"pg1": RIVAL, "pg2": RIVAL, "pg3": FOLLOWS}, id="two primaries"),
        pytest.param(change(cluster(), "pg2", replay_paused=True), {"pg1": LEADS, "pg2": TROUBLED, "pg3": FOLLOWS}, id="paused"),
        pytest.param(change(cluster(), "pg1", slots=()), {"pg1": TROUBLED, "pg2": FOLLOWS, "pg3": FOLLOWS}, id="slots missing"),
    ],
)
def test_picture_marks_nodes_by_more_than_colour(topology: Topology, kinds: dict[str, str]) -> None:
    made = picture(topology)
    assert {box.host: box.kind for box in made.boxes} == kinds
    for box in made.boxes:
        assert box.lines[0].startswith({DOWN: "\u2715 ", RIVAL: "! ", TROUBLED: "! "}.get(box.kind, "")), box
        assert box.lines[0].lstrip("\u2715! ") != ""


@pytest.mark.parametrize(
    ("topology", "flows", "lines"),
    [
        pytest.param(cluster(PAIR), True, ("lag 0 B \u00b7 0.0s", "async"), id="level"),
        pytest.param(
            change(cluster(PAIR), "pg1", current_lsn="0/A000000", senders=(sender_of("pg2", sync_state="sync", replay_lag_seconds=12.0),)),
            True,
            ("lag 16MB \u00b7 12s", "sync"),
            id="behind",
        ),
        pytest.param(change(cluster(PAIR), "pg2", replay_lsn=""), True, ("lag unknown", "async"), id="lag unknown"),
        pytest.param(
            change(cluster(PAIR), "pg2", receiver=Receiver(), replay_lsn="0/8FFFFFF"), False, ("\u2715 broken", "1 B \u00b7 0.0s"), id="not streaming"
        ),
        pytest.param(down(cluster(PAIR), "pg2"), False, ("\u2715 broken",), id="standby down"),
        pytest.param(down(cluster(PAIR), "pg1"), False, ("\u2715 broken",), id="primary down"),
    ],
)
def test_arrow_says_lag_or_that_it_is_broken(topology: Topology, flows: bool, lines: tuple[str, ...]) -> None:
    [arrow] = picture(topology).arrows
    assert (arrow.flows, arrow.lines) == (flows, lines)
    assert arrow.meaning.startswith("pg2 {0} pg1: ".format("streams from" if flows else "does not stream from"))


def test_node_that_follows_nobody_has_no_arrow() -> None:
    made = picture(down(cluster(), "pg3", states.UNREACHABLE))
    assert [arrow.target for arrow in made.arrows] == ["pg2"]
    assert box_of(made, "pg3").lines == ("\u2715 unreachable", "nothing known")


def test_arrows_that_flow_are_drawn_last() -> None:
    assert [arrow.flows for arrow in picture(down(cluster(NINE[:4]), "pg4")).arrows] == [False, True, True]


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        pytest.param(cluster(PAIR), "Primary: pg1. pg2 streams from pg1: lag 0 B \u00b7 0.0s, async.", id="healthy"),
        pytest.param(two_primaries(cluster(PAIR)), "2 primaries: pg1, pg2.", id="two primaries"),
        pytest.param(down(cluster(("pg1",)), "pg1"), "Primary: none. pg1: \u2715 primary \u00b7 crashed.", id="none"),
        pytest.param(down(cluster(), "pg3", states.UNREACHABLE), "pg3: \u2715 unreachable.", id="alone"),
    ],
)
def test_description_says_what_the_picture_shows(topology: Topology, words: str) -> None:
    assert words in picture(topology).description


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pgsql1", "pgsql1"),
        ("x" * NAME_COLUMNS, "x" * NAME_COLUMNS),
        ("db-production-eu-west-1-replica-01.example.com", "db-producti\u2026xample.com"),
        ("", ""),
        ("\u6771" * 30, "\u6771" * 5 + "\u2026" + "\u6771" * 5),
    ],
)
def test_shortened_keeps_both_ends_and_fits(name: str, expected: str) -> None:
    assert shortened(name) == expected
    assert topology_picture._columns(shortened(name)) <= NAME_COLUMNS


@pytest.mark.parametrize(
    ("hosts", "labels"),
    [
        pytest.param(["db1.example.com", "db2.example.com"], ["db1", "db2"], id="same domain"),
        pytest.param(["db.a.example", "db.b.example"], ["db.a.example", "db.b.example"], id="other domains"),
        pytest.param(["db1", "db2"], ["db1", "db2"], id="no domain"),
        pytest.param(["192.0.2.1", "193.0.2.1"], ["192.0.2.1", "193.0.2.1"], id="addresses"),
        pytest.param(["db1.example.com"], ["db1.example.com"], id="alone"),
        pytest.param([], [], id="none"),
    ],
)
def test_labels_leave_out_a_domain_that_all_share(hosts: list[str], labels: list[str]) -> None:
    assert list(labels_of(hosts).values()) == labels


def test_long_host_name_is_whole_in_the_box_and_short_on_it() -> None:
    host = "db-production-eu-west-1-replica-01.example.com"
    box = box_of(picture(cluster(("pg1", host))), host)
    assert len(box.label) == NAME_COLUMNS
    assert box.host == host
