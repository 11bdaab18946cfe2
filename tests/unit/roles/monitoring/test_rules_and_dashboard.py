# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be said of queries, alert rules and dashboard without a Prometheus: molecule's scenario monitoring has one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

CHECKOUT = Path(__file__).resolve().parents[4]
SERVER_ROLE = CHECKOUT / "roles" / "monitoring_server"
DASHBOARD = json.loads((SERVER_ROLE / "files" / "dashboard.json").read_text(encoding="utf-8"))
RULES_TEST = yaml.safe_load((CHECKOUT / "molecule" / "monitoring" / "files" / "rules_test.yml").read_text(encoding="utf-8"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(**more: Any) -> list[dict[str, Any]]:
    """Return the rules with the role's defaults."""
    variables = {**load(SERVER_ROLE / "defaults" / "main.yml"), "__pg_monitoring_synchronous": {}, **more}
    template = (SERVER_ROLE / "templates" / "rules.yml.j2").read_text(encoding="utf-8")
    groups = yaml.safe_load(jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(template).render(**variables))
    return [rule for group in groups["groups"] for rule in group["rules"]]


def metrics() -> set[str]:
    """Return the names of the metrics that the queries make."""
    found = set()
    for namespace, entry in load(CHECKOUT / "roles" / "monitoring" / "files" / "queries.yml").items():
        for metric in entry["metrics"]:
            for name, what in metric.items():
                if what["usage"] != "LABEL":
                    found.add(f"{namespace}_{name}")
    return found


ALERTS = [rule for rule in rules() if "alert" in rule]
# Those of Prometheus and of the exporter itself, and the one that a rule makes.
OTHERS = {"up", "pg_up", "pg_exporter_last_scrape_error", "ALERTS", "pg_ops_synchronous_wanted"}


def names_in(expression: str) -> set[str]:
    """Return the metrics of an expression: names before a brace, a bracket, an operator or the end, functions and label lists left out."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\b(by|on|without|group_left)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    return {name for name in re.findall(r"\b([a-zA-Z_]\w*)\b(?!\s*\()", bare) if name.startswith(("pg_", "up", "ALERTS"))}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels']['severity']}")
def test_alert_has_severity_text_and_what_to_type(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "command"}
    assert "{{ $labels.cluster }}" in rule["annotations"]["summary"] or rule["alert"] == "PgNothingWatched"
    playbooks = re.findall(r"ansible-playbook (\w+\.yml)", rule["annotations"]["command"])
    assert playbooks and all((CHECKOUT / "playbooks" / name).is_file() for name in playbooks)


def test_two_primaries_follow_document_d_and_one_alert_is_faster() -> None:
    found = {rule["labels"]["severity"]: rule for rule in ALERTS if rule["alert"] == "PgTwoPrimaries"}
    assert found["warning"]["for"] == "5m" and found["critical"]["for"] == "15s"
    assert found["warning"]["expr"] == found["critical"]["expr"] == 'count by (cluster) (pg_replication_is_replica{job="pg_ops"} == 0) >= 2'


@pytest.mark.parametrize("name", sorted({rule["alert"] for rule in ALERTS}))
def test_alert_is_tested_for_firing_and_for_silence(name: str) -> None:
    """An entry lists all that fires at its time; so an alert is silent in every entry that does not name it: before its cause, and after."""
    begins_and_ends = False
    for test in RULES_TEST["tests"]:
        said = [any(f'alertname="{name}"' in sample["labels"] for sample in entry["exp_samples"]) for entry in test["promql_expr_test"]]
        begins_and_ends |= any(said) and not said[0] and not said[-1]
    assert begins_and_ends, name


def test_inventory_that_wants_synchronous_standbys_makes_a_rule_of_it() -> None:
    made = [rule for rule in rules(__pg_monitoring_synchronous={"main": 2, "west": 1}) if "record" in rule]
    assert [(rule["record"], rule["labels"]["cluster"], rule["expr"]) for rule in made] == [
        ("pg_ops_synchronous_wanted", "main", "vector(2)"),
        ("pg_ops_synchronous_wanted", "west", "vector(1)"),
    ]
    assert {rule["labels"]["job"] for rule in made} == {"pg_ops"}


def selectors_in(expression: str) -> list[str]:
    """Return the selectors of an expression: each of its metrics, with the labels that are asked of it."""
    bare = re.sub(r"\b(by|on|without|group_left)\s*\([^)]*\)", "", expression)
    return re.findall(r'(?<!["\w])(?:pg_\w+|up|ALERTS)\b(?:\{[^}]*\})?(?![\w"])', bare)


def test_selectors_in_expression_have_their_labels() -> None:
    found = selectors_in('max by (pg_x) (pg_a{pg_y="pg_z"}) > on (up) group_left () pg_b or rate(up{a=~"$b"}[5m]) or ALERTS')
    assert found == ['pg_a{pg_y="pg_z"}', "pg_b", 'up{a=~"$b"}', "ALERTS"]


def test_no_selector_takes_another_jobs_metrics() -> None:
    """A Prometheus that watches other things, too, may have exporters of PostgreSQL under other jobs."""
    texts = [text for rule in rules(__pg_monitoring_synchronous={"main": 1}) for text in (rule["expr"], *inner_queries(rule))]
    page = (SERVER_ROLE / "files" / "pg_ops.html").read_text(encoding="utf-8")
    asked = [text.replace('\\"', '"') for text in re.findall(r'query (?:\(printf )?"((?:[^"\\]|\\.)*)"', page)]
    assert len(asked) == page.count(" query ")
    variables = [entry["query"] for entry in DASHBOARD["templating"]["list"] if entry["type"] == "query"]
    found = [selector for text in [*texts, *dashboard_expressions(), *variables, *asked] for selector in selectors_in(text)]
    assert len(found) > 50
    assert [selector for selector in found if 'job="pg_ops"' not in selector] == []


def inner_queries(rule: dict[str, Any]) -> list[str]:
    """Return the queries that the texts of an alert make."""
    return re.findall(r"`([^`]*)`", " ".join(rule.get("annotations", {}).values()))


def test_inner_queries_are_those_of_the_description() -> None:
    (fork,) = [rule for rule in ALERTS if rule["alert"] == "PgTimelineFork"]
    assert inner_queries(fork) == ['pg_ops_timeline{job="pg_ops", cluster=%q}']


def test_job_of_selectors_is_the_one_that_is_configured_and_every_alert_has_it() -> None:
    assert load(SERVER_ROLE / "vars" / "main.yml")["__pg_monitoring_job_of_nodes"]["job_name"] == "pg_ops"
    assert {rule["labels"]["job"] for rule in ALERTS} == {"pg_ops"}


def test_alert_is_told_apart_from_the_others_of_its_cluster() -> None:
    """Alertmanager holds what is new in a group that it has told of back for group_interval."""
    grouped = load(SERVER_ROLE / "vars" / "main.yml")["__pg_alertmanager_route"]["group_by"]
    assert "cluster" in grouped
    groups = [tuple({**rule["labels"], "alertname": rule["alert"], "cluster": "main"}[label] for label in grouped) for rule in ALERTS]
    assert len(set(groups)) == len(groups)


def test_names_in_expression_finds_metrics_alone() -> None:
    assert names_in('max by (cluster, pg_x) (pg_a{pg_y="pg_z"}) > on (up) pg_b or rate(up[5m])') == {"pg_a", "pg_b", "up"}


def dashboard_expressions() -> list[str]:
    """Return every expression of the dashboard, those of its annotations too."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*panels, *(entry["expr"] for entry in DASHBOARD["annotations"]["list"])]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_rule_uses_only_metrics_that_there_are(rule: dict[str, Any]) -> None:
    assert names_in(rule["expr"]) and names_in(rule["expr"]) <= metrics() | OTHERS


def test_dashboard_uses_only_metrics_that_there_are() -> None:
    used = {name for expression in dashboard_expressions() for name in names_in(expression)}
    assert used and used <= metrics() | OTHERS


def test_console_uses_only_metrics_that_there_are() -> None:
    page = (SERVER_ROLE / "files" / "pg_ops.html").read_text(encoding="utf-8")
    assert set(re.findall(r"\bpg_\w+(?=[{)])", page)) <= metrics()


def test_dashboard_comes_back_whole_from_grafanas_model_of_it() -> None:
    """What Grafana's schema does not know would be lost on the way."""
    register_default_plugins()
    model = Dashboard.from_json(DASHBOARD)
    assert lost(DASHBOARD, json.loads(JSONEncoder().encode(model))) == []


def lost(given: Any, back: Any, where: str = "") -> list[str]:
    """Return the places where `back` lacks something of `given`, or has something else there."""
    if isinstance(given, dict) and isinstance(back, dict):
        return [place for key in given for place in (lost(given[key], back[key], f"{where}/{key}") if key in back else [f"{where}/{key}"])]
    if isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        return [place for index, pair in enumerate(zip(given, back)) for place in lost(*pair, f"{where}/{index}")]
    return [] if given == back else [where]


def test_lost_names_what_grafana_would_drop() -> None:
    register_default_plugins()
    given = {**DASHBOARD, "panels": [{**DASHBOARD["panels"][0], "colour": "red"}], "autoRepair": True}
    back = json.loads(JSONEncoder().encode(Dashboard.from_json(given)))
    assert lost(given, back) == ["/panels/0/colour", "/autoRepair"]


def test_dashboard_panels_have_their_own_numbers_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
