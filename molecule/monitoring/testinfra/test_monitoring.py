# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Prometheus and Alertmanager of a set-up site have, after a second primary came up and heal.yml took it back."""

from __future__ import annotations

import json
import shlex
import time
import urllib.parse
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import pytest
import testinfra
import yaml

CHECKOUT = Path(__file__).resolve().parents[3]
SERVER_ROLE = CHECKOUT / "roles" / "monitoring_server"
RULES_TEST = CHECKOUT / "molecule" / "monitoring" / "files" / "rules_test.yml"
WATCHER = "monitoring-pgsql1"
NODES = [WATCHER, "monitoring-pgsql2"]
SECRET = "hook-7f3a"

testinfra_hosts = [f"lxc://{WATCHER}"]


def node(name: str) -> Any:
    return testinfra.get_host(f"lxc://{name}")


def sql(name: str, statement: str) -> str:
    """What psql prints for a statement on a node."""
    found: str = node(name).check_output("su postgres -c %s", f"psql -XAtc {shlex.quote(statement)}")
    return found


def fetch(url: str) -> str:
    """What a page of the monitoring host says to the host itself."""
    program = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=10).read().decode())"
    found: str = node(WATCHER).check_output("python3 -c %s", program)
    return found


def query(expression: str) -> list[dict[str, Any]]:
    """The result of an instant query, a list of series with `metric` and `value`."""
    answer = json.loads(fetch("http://127.0.0.1:9090/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def by_node(expression: str) -> dict[str, float]:
    return {series["metric"]["node"]: float(series["value"][1]) for series in query(expression)}


@cache
def primary() -> str:
    """The node that the servers themselves say is primary."""
    (found,) = [name for name in NODES if sql(name, "SELECT pg_is_in_recovery()") == "f"]
    return found


@cache
def standby() -> str:
    (found,) = set(NODES) - {primary()}
    return found


@cache
def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((SERVER_ROLE / "files" / "dashboard.json").read_text(encoding="utf-8"))
    return loaded


def dashboard_expressions() -> list[str]:
    """Every expression of the dashboard's panels."""
    return sorted({target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]})


def annotation_expressions() -> list[str]:
    """Every expression that marks times on the dashboard."""
    return sorted({entry["expr"] for entry in dashboard()["annotations"]["list"]})


def plain(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it for this cluster."""
    sent = expression.replace("$cluster", "monitoring-main").replace("$__rate_interval", "1m")
    assert "$" not in sent
    return sent


def test_every_node_is_scraped_under_its_name() -> None:
    assert by_node('up{job="pg_ops", cluster="monitoring-main"}') == dict.fromkeys(NODES, 1.0)


def test_metrics_of_the_roles_are_what_the_servers_say() -> None:
    assert by_node("pg_replication_is_replica") == {primary(): 0, standby(): 1}
    assert by_node("pg_ops_wal_receiver_streaming") == {standby(): 1}
    timeline = float(sql(primary(), "SELECT timeline_id FROM pg_control_checkpoint()"))
    assert timeline > 1, "no promotion was seen"
    assert by_node("pg_ops_timeline") == dict.fromkeys(NODES, timeline)


def test_metrics_of_slot_and_downstream_name_the_standby() -> None:
    slot = sql(standby(), "SHOW primary_slot_name")
    (series,) = query("pg_ops_slot_active == 1")
    assert (series["metric"]["node"], series["metric"]["slot_name"]) == (primary(), slot)
    assert series["metric"]["wal_status"] == "reserved"
    (series,) = query("pg_ops_downstream_streaming == 1")
    assert (series["metric"]["node"], series["metric"]["application_name"]) == (primary(), standby())


def test_lag_of_a_paused_replay_grows_in_bytes_and_seconds_and_goes() -> None:
    # Without a transaction there is no time of the last one.
    sql(primary(), "CREATE TABLE paused AS SELECT 1")
    sql(standby(), "SELECT pg_wal_replay_pause()")
    try:
        sql(primary(), "INSERT INTO paused SELECT generate_series(1, 200000)")
        await_lag(lambda lag_bytes, lag_seconds: lag_bytes > 1e6 and lag_seconds > 2)
    finally:
        sql(standby(), "SELECT pg_wal_replay_resume()")
    sql(primary(), "DROP TABLE paused")
    await_lag(lambda lag_bytes, lag_seconds: lag_bytes == 0 and lag_seconds == 0)


def test_archiver_that_fails_is_seen_and_its_recovery_too() -> None:
    sql(primary(), "ALTER SYSTEM SET archive_command = '/bin/false'")
    try:
        sql(primary(), "SELECT pg_reload_conf()")
        await_archiver(1)
    finally:
        sql(primary(), "ALTER SYSTEM RESET archive_command")
        sql(primary(), "SELECT pg_reload_conf()")
    await_archiver(0)


def await_archiver(failing: float) -> None:
    """Have the primary close segments, which wakes its archiver, until Prometheus has of it what is wanted."""
    deadline = time.monotonic() + 60
    while by_node("pg_ops_archiver_failing").get(primary()) != failing:
        assert time.monotonic() < deadline, query("pg_ops_archiver_failing")
        sql(primary(), "SELECT pg_logical_emit_message(false, 'archive', 'test')")
        sql(primary(), "SELECT pg_switch_wal()")
        time.sleep(2)


def await_lag(wanted: Any) -> None:
    """Wait until what Prometheus has of the standby's lag is as wanted."""
    deadline = time.monotonic() + 30
    while True:
        found = by_node("pg_ops_downstream_lag_bytes")[primary()], by_node("pg_replication_lag")[standby()]
        if wanted(*found):
            return
        assert time.monotonic() < deadline, found
        time.sleep(1)


@pytest.mark.parametrize("name", NODES)
def test_exporter_logs_in_without_password_and_may_do_no_more_than_look(name: str) -> None:
    flags = "rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolpassword IS NOT NULL"
    assert sql(name, f"SELECT {flags} FROM pg_authid WHERE rolname = 'prometheus'") == "f|f|f|f|f|f"
    groups = "SELECT string_agg(r.rolname, ',') FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid WHERE m.member = 'prometheus'::regrole"
    assert sql(name, groups) == "pg_monitor"
    assert sql(name, "SELECT DISTINCT usename FROM pg_stat_activity WHERE client_addr IS NULL AND usename = 'prometheus'") == "prometheus"
    assert "password" not in node(name).check_output("cat /etc/default/prometheus-postgres-exporter")


def test_receivers_are_for_alertmanager_alone(host: Any) -> None:
    found = host.file("/etc/prometheus/alertmanager.yml")
    assert (found.user, found.group, found.mode) == ("root", "prometheus", 0o640)
    assert SECRET in found.content_string
    assert SECRET not in host.check_output("ps -eo args | grep -v webhook_receiver")
    assert host.run("su -s /bin/sh nobody -c 'cat /etc/prometheus/alertmanager.yml'").rc != 0


def test_pages_are_open_to_the_host_alone(host: Any) -> None:
    listening = host.check_output("ss -Hltn").split()
    for port in (9090, 9093):
        assert f"127.0.0.1:{port}" in listening
        assert not [word for word in listening if word.endswith(f":{port}") and not word.startswith("127.0.0.1")]
    assert not [word for word in listening if word.endswith(":9094")]


def test_webhook_got_the_alert_and_then_its_end(host: Any) -> None:
    lines = [line.split(" | ")[:3] for line in host.check_output("cat /run/webhook.log").splitlines()]
    for severity in ("critical", "warning"):
        first = lines.index(["firing", severity, "PgTwoPrimaries"])
        assert ["resolved", severity, "PgTwoPrimaries"] in lines[first:]
    messages = [json.loads(line) for line in host.check_output("cat /run/webhook.log.json").splitlines()]
    groups = [message["groupLabels"] for message in messages]
    assert all(set(group) == {"cluster", "alertname", "severity"} for group in groups), "an alert could wait because another one was told"
    told = groups.index({"cluster": "monitoring-main", "alertname": "PgTwoPrimaries", "severity": "critical"})
    annotations = messages[told]["alerts"][0]["annotations"]
    assert "heal.yml" in annotations["command"]
    assert all(name in annotations["description"] for name in NODES)


def test_no_alert_is_left() -> None:
    assert query('ALERTS{alertstate="firing"}') == []


def rendered_rules() -> str:
    """The rules with the role's defaults, and one cluster that wants synchronous standbys."""
    defaults = yaml.safe_load((SERVER_ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    template = (SERVER_ROLE / "templates" / "rules.yml.j2").read_text(encoding="utf-8")
    return jinja2.Environment(trim_blocks=True).from_string(template).render(**defaults, __pg_monitoring_synchronous={"sync": 1})


def test_rules_fire_and_are_silent_as_promtool_has_it(host: Any) -> None:
    host.check_output("mkdir -p /run/rules")
    for name, text in (("rules.yml", rendered_rules()), ("rules_test.yml", RULES_TEST.read_text(encoding="utf-8"))):
        host.check_output("printf %%s %s > %s", text, f"/run/rules/{name}")
    said = host.check_output("cd /run/rules && promtool check rules rules.yml && promtool test rules rules_test.yml")
    assert said.count("SUCCESS") == 2, said


@pytest.mark.parametrize("expression", dashboard_expressions())
def test_expression_of_the_dashboard_returns_data(expression: str) -> None:
    assert query(plain(expression)), plain(expression)


@pytest.mark.parametrize("expression", annotation_expressions())
def test_annotation_of_the_dashboard_marks_the_time_with_two_primaries(expression: str) -> None:
    """Nothing fires any more; so it is asked for the time in which it did, too."""
    query(plain(expression))
    marked = {series["metric"].get("alertname") for series in query(f"count_over_time(({plain(expression)})[1h:2s])")}
    assert "PgTwoPrimaries" in marked


def test_variable_of_the_dashboard_offers_the_cluster() -> None:
    (variable,) = [entry for entry in dashboard()["templating"]["list"] if entry["name"] == "cluster"]
    selector = 'pg_replication_is_replica{job="pg_ops"}'
    assert variable["query"] == f"label_values({selector}, cluster)"
    values = json.loads(fetch("http://127.0.0.1:9090/api/v1/label/cluster/values?" + urllib.parse.urlencode({"match[]": selector})))
    assert values["data"] == ["monitoring-main"]


def test_console_page_shows_every_node_and_its_role() -> None:
    page = fetch("http://127.0.0.1:9090/consoles/pg_ops.html")
    assert "error executing template" not in page.lower()
    nodes = page.split("</table>")[0]
    rows = {row.split("</td>")[0]: row for row in nodes.split("<tr><td>")[1:]}
    assert "<td>primary</td>" in rows[primary()]
    assert "<td>standby</td>" in rows[standby()] and "<td>yes</td>" in rows[standby()]
    assert '<span class="good">1</span>' in page


def test_provisioning_for_grafana_names_prometheus_and_the_dashboard(host: Any) -> None:
    directory = "/etc/grafana/provisioning"
    (source,) = yaml.safe_load(host.file(f"{directory}/datasources/pg_ops.yml").content_string)["datasources"]
    assert source["url"] == "http://127.0.0.1:9090"
    (provider,) = yaml.safe_load(host.file(f"{directory}/dashboards/pg_ops.yml").content_string)["providers"]
    written = host.file(f"{provider['options']['path']}/replication.json").content_string
    assert json.loads(written) == dashboard()


def test_the_server_that_was_there_before_is_the_cluster_s_with_all_it_had() -> None:
    for name in NODES:
        assert sql(name, "SELECT count(*), pg_get_userbyid(relowner) FROM from_before, pg_class WHERE relname = 'from_before' GROUP BY 2") == "1000|shop owner"
        assert sql(name, "SHOW work_mem") == "7MB"
        assert sql(name, "SHOW log_min_duration_statement") == "4321ms"
        assert 'shop keeper "shop owner"' in node(name).file("/etc/postgresql/15/main/pg_ident.conf").content_string
    assert 'host all "shop owner" 192.0.2.77/32 scram-sha-256' in node(WATCHER).file("/etc/postgresql/15/main/pg_hba.conf").content_string
    assert sql(WATCHER, "SHOW data_checksums") == "off" and sql(WATCHER, "SHOW wal_log_hints") == "on"


@pytest.mark.parametrize("name", NODES)
def test_each_server_has_its_own_places(name: str) -> None:
    assert sql(name, "SHOW data_directory") == f"/var/lib/postgresql/15/{'shop' if name == WATCHER else 'main'}"
    for setting, file in (("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")):
        assert sql(name, f"SHOW {setting}") == f"/etc/postgresql/15/main/{file}"
