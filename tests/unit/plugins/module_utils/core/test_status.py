# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the state of a cluster as rows and as text."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import node as states
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, Receiver
from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import (
    DEGRADED,
    EXIT_STATUSES,
    HEALTHY,
    NO_SINGLE_PRIMARY,
    format_bytes,
    format_seconds,
    headline,
    render_json,
    render_status,
    render_table,
    repair_command,
    severity,
    status_document,
    status_rows,
    worst,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import (
    PAIR,
    change,
    cluster,
    down,
    hears,
    sender_of,
    slot_of,
    the,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (None, "-"),
        (0, "0"),
        (812, "812"),
        (1023, "1023"),
        (1024, "1.0k"),
        (10 * 1024, "10k"),
        (64 * 1024, "64k"),
        (1024**2 - 1, "1024k"),
        (16 * 1024**2, "16M"),
        (int(3.1 * 1024**3), "3.1G"),
        (1024**4, "1.0T"),
        (5000 * 1024**4, "5000T"),
    ],
)
def test_format_bytes_takes_at_most_six_characters(count: Optional[int], text: str) -> None:
    assert format_bytes(count) == text
    assert len(text) <= 6


def test_status_rows_of_a_healthy_cluster_have_the_primary_first() -> None:
    rows = status_rows(cluster(primary="pg2", timeline=2))
    assert [row["node"] for row in rows] == ["pg2", "pg1", "pg3"]
    assert rows[0] == {
        "node": "pg2",
        "role": "primary",
        "state": "running",
        "timeline": 2,
        "lsn": "0/9000000",
        "lag_bytes": None,
        "lag_seconds": None,
        "upstream": "",
        "slot": "",
        "slot_active": None,
        "slot_retained_bytes": None,
        "sync_state": "",
    }
    assert rows[1] == {
        "node": "pg1",
        "role": "standby",
        "state": "streaming",
        "timeline": 2,
        "lsn": "0/9000000",
        "lag_bytes": 0,
        "lag_seconds": 0.0,
        "upstream": "pg2",
        "slot": "pg1",
        "slot_active": True,
        "slot_retained_bytes": 0,
        "sync_state": "async",
    }


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        pytest.param(down(cluster(PAIR), "pg2", states.STOPPED), {"state": "stopped", "slot_active": False, "upstream": "pg1"}, id="stopped"),
        pytest.param(down(cluster(PAIR), "pg2", states.CRASHED), {"state": "crashed", "lsn": "0/8000100"}, id="crashed"),
        pytest.param(down(cluster(PAIR), "pg2", states.STARTING), {"state": "starting"}, id="starting"),
        pytest.param(down(cluster(PAIR), "pg2", states.UNRESPONSIVE), {"state": "unresponsive"}, id="unresponsive"),
        pytest.param(down(cluster(PAIR), "pg2", states.ABSENT), {"state": "absent", "role": "-", "timeline": 0, "lsn": ""}, id="absent"),
        pytest.param(
            down(cluster(PAIR), "pg2", states.UNREACHABLE),
            {"state": "unreachable", "role": "-", "lsn": "", "lag_bytes": None, "upstream": ""},
            id="unreachable",
        ),
        pytest.param(change(down(cluster(PAIR), "pg2"), "pg2", fenced=True), {"state": "fenced"}, id="fenced"),
        pytest.param(change(cluster(PAIR), "pg2", receiver=Receiver()), {"state": "running", "upstream": "pg1"}, id="runs, does not stream"),
        pytest.param(change(cluster(PAIR), "pg1", current_lsn="0/9000010"), {"lag_bytes": 16, "lag_seconds": 0.0}, id="behind"),
        pytest.param(change(cluster(PAIR), "pg1", current_lsn="0/8000000"), {"lag_bytes": 0}, id="seen later than the primary"),
        pytest.param(change(cluster(PAIR), "pg2", replay_lsn=""), {"lag_bytes": None}, id="nothing replayed"),
        pytest.param(
            change(cluster(PAIR), "pg1", current_lsn="0/9000010", senders=(sender_of("pg2", replay_lag_seconds=None),)),
            {"lag_bytes": 16, "lag_seconds": None},
            id="time unknown",
        ),
        pytest.param(change(cluster(PAIR), "pg1", senders=()), {"sync_state": "", "lag_seconds": 0.0}, id="no sender"),
        pytest.param(change(cluster(PAIR), "pg1", slots=()), {"slot": "", "slot_active": None}, id="no slot"),
        pytest.param(down(cluster(PAIR), "pg1"), {"lag_bytes": None, "upstream": "pg1"}, id="no primary"),
    ],
)
def test_status_row_of_a_standby(topology: Topology, expected: dict[str, Any]) -> None:
    row = next(row for row in status_rows(topology) if row["node"] == "pg2")
    assert {key: row[key] for key in expected} == expected


def test_status_rows_of_two_primaries_show_both() -> None:
    rows = status_rows(change(cluster(PAIR), "pg2", role=PRIMARY))
    assert [row["role"] for row in rows] == ["primary", "primary"]


def test_render_table_pads_to_the_widest_cell() -> None:
    assert render_table(("A", "LONG"), [("wide", "x"), ("y", "z")]) == "A     LONG\nwide  x\ny     z"
    assert render_table(("A",), []) == "A"


def test_render_status_of_a_healthy_cluster_is_its_table() -> None:
    assert render_status(cluster()).splitlines() == [
        "Cluster main: healthy",
        "NODE  ROLE     STATE      TLI  LSN        LAG     FROM  SLOT  SYNC",
        "pg1   primary  running    1    0/9000000  -       -     -     -",
        "pg2   standby  streaming  1    0/9000000  0 0.0s  pg1   on 0  async",
        "pg3   standby  streaming  1    0/9000000  0 0.0s  pg1   on 0  async",
    ]


def test_render_status_marks_a_slot_that_nobody_uses() -> None:
    topology = cluster(PAIR)
    topology = change(topology, "pg1", slots=(slot_of(the(topology, "pg2").member, active=False, retained_bytes=64 * 1024**2),))
    assert "off 64M" in render_status(topology)


def test_render_status_puts_problems_first_each_with_its_remedy() -> None:
    lines = render_status(down(cluster(), "pg3", states.STOPPED)).splitlines()
    assert lines[0] == "Cluster main: degraded, 1 problem"
    assert lines[1] == "  ! pg3: the server does not run (observed: stopped; required: running). Type: ansible-playbook start_new_standby.yml"
    assert lines[2].startswith("NODE")


BUSY = {"current_lsn": "16/B374D848", "timeline": 12, "control_timeline": 12}


@pytest.mark.parametrize("hosts", [("pgsql1", "pgsql2", "pgsql3"), ("node1", "node2", "node3"), ("db-a", "db-b", "db-c")], ids=lambda hosts: hosts[0])
def test_render_status_of_three_nodes_fits_eighty_columns(hosts: tuple[str, ...]) -> None:
    topology = cluster(hosts, primary=hosts[0])
    first, second, third = hosts
    slots = tuple(slot_of(the(topology, host).member, retained_bytes=812 * 1024**2, active=host == second) for host in (second, third))
    senders = (sender_of(second, sync_state="quorum", replay_lag_seconds=120.5), sender_of(third, replay_lag_seconds=9.94))
    topology = change(topology, first, slots=slots, senders=senders, timeline_history="", **BUSY)
    for host in (second, third):
        receiver = replace(the(topology, host).receiver, received_timeline=12)
        topology = change(topology, host, replay_lsn="16/B0000000", timeline=12, timeline_history="", receiver=receiver)
    assert [row["state"] for row in status_rows(topology)] == ["running", "streaming", "streaming"]
    table = [line for line in render_status(topology).splitlines() if not line.startswith("  !")]
    assert max(len(line) for line in table) <= 80, "\n".join(table)


@pytest.mark.parametrize("host", ["db-1.example.com", "Ärger 'x'", "a{0}%s", "x" * 70])
def test_render_status_shows_odd_names_as_they_are(host: str) -> None:
    text = render_status(cluster(("pg1", host)))
    assert host in text
    assert text.startswith("Cluster main: healthy")


@pytest.mark.parametrize("state", [states.RUNNING, states.STARTING, states.UNRESPONSIVE, states.STOPPED, states.CRASHED, states.ABSENT, states.UNREACHABLE])
@pytest.mark.parametrize("host", ["pg1", "pg2"])
def test_render_status_of_any_state_is_text(state: str, host: str) -> None:
    topology = cluster() if state == states.RUNNING else down(cluster(), host, state)
    lines = render_status(topology).splitlines()
    assert lines[0].endswith("healthy") == (state == states.RUNNING)
    assert len([line for line in lines if line.startswith("pg")]) == 3


@pytest.mark.parametrize(("seconds", "text"), [(0.0, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (120.5, "120s")])
def test_format_seconds_has_a_tenth_below_ten(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


# -- how bad it is ---------------------------------------------------------------------------------------------------------------------


def two_primaries() -> Topology:
    return change(cluster(), "pg2", role=PRIMARY, current_lsn="0/9000000", receiver=Receiver())


SEVERITIES = [
    pytest.param(cluster(), HEALTHY, "healthy", id="healthy"),
    pytest.param(cluster(("pg1",)), HEALTHY, "healthy", id="alone"),
    pytest.param(down(cluster(), "pg3", states.STOPPED), DEGRADED, "degraded, 1 problem", id="standby stopped"),
    pytest.param(down(cluster(), "pg3", states.UNREACHABLE), DEGRADED, "degraded, 1 problem", id="standby unreachable"),
    pytest.param(change(cluster(), "pg2", replay_paused=True), DEGRADED, "degraded, 1 problem", id="paused"),
    pytest.param(down(cluster(), "pg1"), NO_SINGLE_PRIMARY, "no primary, 2 problems", id="primary crashed"),
    pytest.param(down(cluster(), "pg1", states.UNREACHABLE), NO_SINGLE_PRIMARY, "no primary, 2 problems", id="primary unreachable"),
    pytest.param(
        change(down(cluster(), "pg1", states.UNREACHABLE), "pg1", problem=states.OUTSIDE_RUN), DEGRADED, "degraded, 2 problems", id="primary left out"
    ),
    pytest.param(
        change(down(down(cluster(), "pg1"), "pg3", states.UNREACHABLE), "pg3", problem=states.OUTSIDE_RUN),
        NO_SINGLE_PRIMARY,
        "no primary, 3 problems",
        id="standby left out and the primary crashed",
    ),
    pytest.param(two_primaries(), NO_SINGLE_PRIMARY, "2 primaries, 2 problems", id="two primaries"),
    pytest.param(change(two_primaries(), "pg3", role=PRIMARY), NO_SINGLE_PRIMARY, "3 primaries, 3 problems", id="three primaries"),
    pytest.param(down(down(cluster(PAIR), "pg1", states.ABSENT), "pg2", states.ABSENT), NO_SINGLE_PRIMARY, "no primary, 3 problems", id="never set up"),
]


@pytest.mark.parametrize(("topology", "level", "words"), SEVERITIES)
def test_severity_tells_degraded_from_no_single_primary(topology: Topology, level: str, words: str) -> None:
    document = status_document(topology, observed_at="")
    assert severity(topology, problems(topology)) == level == document["severity"]
    assert document["exit_status"] == EXIT_STATUSES[level]
    assert headline(document) == words
    assert render_status(topology).startswith("Cluster main: {0}\n".format(words))


def test_exit_statuses_are_documented_ones() -> None:
    assert EXIT_STATUSES == {HEALTHY: 0, DEGRADED: 2, NO_SINGLE_PRIMARY: 3}


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], HEALTHY), ([HEALTHY, HEALTHY], HEALTHY), ([HEALTHY, DEGRADED], DEGRADED), ([NO_SINGLE_PRIMARY, DEGRADED, HEALTHY], NO_SINGLE_PRIMARY)],
)
def test_worst_of_several_clusters(given: list[str], expected: str) -> None:
    assert worst(given) == expected


# -- what to type ------------------------------------------------------------------------------------------------------------------------

CHECKOUT = Path(__file__).resolve().parents[5]
# Every reason that problems() gives.
SOURCES = [(CHECKOUT / f"plugins/module_utils/core/{name}.py").read_text(encoding="utf-8") for name in ("topology", "archive")]
REASONS = [reason for source in SOURCES for reason in re.findall(r'Blocker\(\s*"(\w+)"', source)]


@pytest.mark.parametrize("reason", sorted(set(REASONS)))
@pytest.mark.parametrize("topology", [cluster(), down(cluster(), "pg1")], ids=["primary", "no primary"])
def test_repair_command_of_every_reason_can_be_typed(reason: str, topology: Topology) -> None:
    words = shlex.split(repair_command(topology, Blocker(reason, "pg2", "is broken")))
    assert words[0] in ("ansible-playbook", "ansible", "ansible-inventory", "psql")
    books = [word for word in words if word.endswith(".yml")]
    assert books or words[0] != "ansible-playbook"
    for book in books:
        assert (CHECKOUT / "playbooks" / book).is_file(), book


@pytest.mark.parametrize(
    ("topology", "commands"),
    [
        pytest.param(down(cluster(), "pg3"), ["ansible-playbook start_new_standby.yml"], id="standby down"),
        pytest.param(
            down(cluster(PAIR), "pg1"),
            ["ansible-playbook failover.yml", "ansible-playbook failover.yml && ansible-playbook start_new_standby.yml"],
            id="primary down",
        ),
        pytest.param(down(down(cluster(PAIR), "pg1", states.ABSENT), "pg2", states.ABSENT), ["ansible-playbook initial_setup.yml"] * 3, id="never set up"),
        pytest.param(change(cluster(), "pg2", replay_paused=True), ["psql -p 5432 -c 'SELECT pg_wal_replay_resume()'"], id="paused"),
        pytest.param(
            change(cluster(), "pg2", replay_paused=True, settings_too_low={"max_connections": 200}),
            ["psql -p 5432 -c 'ALTER SYSTEM SET max_connections = 200'"],
            id="paused for a setting",
        ),
        pytest.param(down(cluster(), "pg3", states.UNREACHABLE), ["ansible pg3 -m ansible.builtin.ping"], id="unreachable"),
        pytest.param(
            hears(down(down(cluster(), "pg1", states.UNREACHABLE), "pg3"), "pg2"),
            ["ansible-playbook status.yml", "ansible pg1 -m ansible.builtin.ping", "ansible-playbook status.yml"],
            id="primary out of sight, another standby down",
        ),
    ],
)
def test_repair_command_fits_the_situation(topology: Topology, commands: list[str]) -> None:
    document = status_document(topology, observed_at="")
    assert [problem["command"] for problem in document["problems"]] == commands
    lines = [line for line in render_status(topology).splitlines() if line.startswith("  ! ")]
    assert [line.partition(" Type: ")[2] for line in lines] == commands


def test_repair_command_quotes_an_odd_host() -> None:
    topology = down(cluster(("pg1", "a b; rm")), "a b; rm", states.UNREACHABLE)
    [problem] = status_document(topology, observed_at="")["problems"]
    assert shlex.split(problem["command"]) == ["ansible", "a b; rm", "-m", "ansible.builtin.ping"]


def test_problem_whose_command_is_not_all_keeps_its_hint() -> None:
    [problem] = status_document(change(cluster(), "pg2", replay_paused=True), observed_at="")["problems"]
    assert problem["advice"] == "Run SELECT pg_wal_replay_resume() on that host, as the database superuser."
    first = status_document(two_primaries(), observed_at="")["problems"][0]
    assert first["advice"] == first["hint"]


# -- the document ------------------------------------------------------------------------------------------------------------------------

ROW_KEYS = {
    "node", "role", "state", "timeline", "lsn", "lag_bytes", "lag_seconds", "upstream", "slot", "slot_active", "slot_retained_bytes", "sync_state",
}  # fmt: skip


@pytest.mark.parametrize(("topology", "level", "words"), SEVERITIES)
def test_document_has_the_documented_keys_whatever_the_state(topology: Topology, level: str, words: str) -> None:
    document = status_document(topology, observed_at="2026-01-01T00:00:00Z")
    assert set(document) == {"schema", "cluster", "observed_at", "severity", "exit_status", "primaries", "problems", "notes", "rows"}
    assert document["schema"] == 1
    assert document["primaries"] == [node.host for node in topology.primaries]
    assert [set(row) for row in document["rows"]] == [ROW_KEYS] * len(topology.nodes)
    for entry, blocker in zip(document["problems"], problems(topology)):
        assert {**blocker.as_result(), **entry} == entry
        assert set(entry) == {"reason", "host", "message", "observed", "required", "hint", "problem", "advice", "command"}


@pytest.mark.parametrize("host", ["pg2", "\u00c4rger \u2028'x'", '"\n{', "<b>&"])
def test_render_json_is_one_line_that_reads_back(host: str) -> None:
    document = status_document(down(cluster(("pg1", host)), host, states.STOPPED), observed_at="2026-01-01T00:00:00Z")
    text = render_json(document)
    assert text.startswith('{"schema": 1, "cluster": "main"')
    assert len(text.splitlines()) == 1
    assert json.loads(text) == document


def test_role_readme_documents_every_key() -> None:
    readme = (CHECKOUT / "roles/status/README.md").read_text(encoding="utf-8")
    document = status_document(down(cluster(), "pg3"), observed_at="")
    for key in [*document, *document["rows"][0], *document["problems"][0]]:
        assert "`{0}`".format(key) in readme, key
