# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a set-up node looks like from outside: service, files, sockets and processes of a scenario's containers."""

from __future__ import annotations

import os
import re
import time
from typing import Any

import pytest
import yaml

HERE = os.path.dirname(os.path.abspath(__file__))


def platforms() -> list[str]:
    """The containers that the scenario's molecule.yml names."""
    with open(os.environ["MOLECULE_FILE"], encoding="utf-8") as stream:
        return [platform["name"] for platform in yaml.safe_load(stream)["platforms"]]


testinfra_hosts = [f"lxc://{os.environ['MOLECULE_SCENARIO_NAME']}-{name}" for name in platforms()]


def secrets() -> list[str]:
    """The passwords of the scenario's inventory."""
    with open(os.path.join(HERE, "..", "inventory", "group_vars", "pg_nodes.yml"), encoding="utf-8") as stream:
        variables = yaml.safe_load(stream)
    return [variables["pg_replication_password"], variables["pg_rewind_password"]]


def spellings(secret: str) -> list[str]:
    """A password as it is, escaped, and the parts of it that stand the same however it is escaped and in nothing else that a host shows."""
    parts = re.split(r"[^ -~]|[\"'\\]", secret)
    return [secret, secret.encode("unicode_escape").decode(), *(part for part in parts if "%" in part or "{" in part)]


@pytest.fixture(name="directory")
def data_directory(host: Any) -> str:
    """The node's data directory."""
    found: str = host.check_output("ls -d /var/lib/postgresql/*/main | head -n 1")
    return found


def test_service_after_role_changes_runs_under_systemd(host: Any, directory: str) -> None:
    major = directory.split("/")[4]
    service = host.service(f"postgresql@{major}-main")
    assert service.is_running
    pid = host.check_output(f"head -n 1 {directory}/postmaster.pid")
    assert service.systemd_properties["MainPID"] == pid, "the server runs outside of its unit"


def test_boot_guard_is_asked_before_each_start(host: Any, directory: str) -> None:
    program = host.file("/usr/local/lib/pg_ops/boot_guard.py")
    assert (program.user, program.mode) == ("root", 0o644), "root runs it, so root alone may write it"
    major = directory.split("/")[4]
    assert "boot_guard.py" in host.check_output(f"systemctl show --property=ExecStartPre postgresql@{major}-main")
    done = host.run(f"python3 -I -S /usr/local/lib/pg_ops/boot_guard.py {directory}.pg_ops/boot_guard/config.json")
    assert done.rc == 0 and "may start" in done.stderr


def test_settings_that_rewind_and_slots_need_hold(host: Any) -> None:
    def shown(statement: str) -> str:
        found: str = host.check_output("su postgres -c %s", f'psql -XAtc "{statement}"')
        return found

    assert shown("SHOW data_checksums") == shown("SHOW wal_log_hints") == "on"
    assert shown("SHOW max_slot_wal_keep_size") == "10GB"
    assert shown("SELECT bool_and(rolpassword LIKE 'SCRAM-SHA-256$%') FROM pg_authid WHERE rolname IN ('replicator', 'rewinder')") == "t"


def test_port_on_every_address_listens(host: Any) -> None:
    assert host.socket("tcp://0.0.0.0:5432").is_listening


def test_passfile_belongs_to_the_server_alone(host: Any, directory: str) -> None:
    passfile = host.file(f"{directory}.pg_ops/passfile")
    assert (passfile.user, passfile.mode) == ("postgres", 0o600)
    assert host.file(f"{directory}.pg_ops").mode == 0o700


def test_processes_and_settings_hold_no_password(host: Any, directory: str) -> None:
    seen = host.check_output("ps -eo args")
    seen += host.check_output(f"cat {directory}/postgresql.auto.conf /etc/postgresql/*/main/*.conf /var/log/postgresql/*.log")
    journal = host.check_output("journalctl --all --no-pager")
    assert "NOT_LOGGING_PARAMETER" in journal  # what Ansible says of the options of its modules is there
    found = [part for secret in secrets() for part in spellings(secret) if part in seen + journal]
    assert not found


def test_pg_hba_admits_replication_from_the_peers_alone(host: Any) -> None:
    lines = [line.split() for line in host.check_output("cat /etc/postgresql/*/main/pg_hba.conf").splitlines()]
    remote = [words for words in lines if words[:2] == ["host", "replication"]]
    assert len(remote) >= 2
    assert all(words[2] == "replicator" and words[3].endswith("/32") and words[4] == "scram-sha-256" for words in remote)
    assert not [words for words in remote if words[3].startswith(("127.", "0."))]
    own = {f"{address}/32" for address in host.check_output("hostname -I").split()}
    assert not own & {words[3] for words in lines if len(words) > 4}, "a copy of the primary's file admits the standby itself"


def test_no_note_of_a_role_change_is_left(host: Any, directory: str) -> None:
    left = host.check_output(f"ls {directory}.pg_ops").split()
    assert not {"pending.json", "rewind.json", "clone.json", "fenced.json"} & set(left)


def sql(host: Any, statement: str) -> str:
    """What psql prints for a statement on the node."""
    found: str = host.check_output(f'su postgres -c "psql -XAtc \\"{statement}\\""')
    return found


def test_failover_slots_are_copied_where_wal_level_is_logical(host: Any, directory: str) -> None:
    wanted = os.environ["PG_OPS_SCENARIO_WAL_LEVEL"] == "logical" and int(directory.split("/")[4]) >= 17
    assert sql(host, "SELECT coalesce(current_setting('sync_replication_slots', true), 'off')") == ("on" if wanted else "off")
    if not wanted:
        return
    if sql(host, "SELECT pg_is_in_recovery()") == "t":
        # It has the password, the database and a line of the primary's pg_hba.conf; otherwise it would have ended.
        deadline = time.monotonic() + 15  # one that ended is started again after 10 s
        while sql(host, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'slotsync worker'") != "1":
            assert time.monotonic() < deadline, "nothing copies slots"
            time.sleep(0.5)
    else:
        standbys = sql(host, "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots WHERE slot_type = 'physical'")
        assert sql(host, "SHOW synchronized_standby_slots") == standbys


def test_server_is_the_releases_own(host: Any, directory: str) -> None:
    majors = {"bookworm": "15", "trixie": "17", "forky": "18"}
    assert directory.split("/")[4] == majors[os.environ["PG_OPS_SCENARIO_RELEASE"]]
    assert sql(host, "SHOW server_version_num")[:2] == directory.split("/")[4]


def test_exporter_has_the_metrics_of_the_alerts_where_it_is_wanted(host: Any) -> None:
    if os.environ["PG_OPS_SCENARIO_MONITORING"] != "true":
        assert not host.package("prometheus-postgres-exporter").is_installed
        return
    program = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9187/metrics').read().decode())"
    in_recovery = sql(host, "SELECT pg_is_in_recovery()") == "t"
    if in_recovery:  # a cascade's parent has one
        sql(host, "SELECT pg_create_physical_replication_slot('watched', true)")
    host.check_output("python3 -c %s", program)  # the first fetch after a restart of the server is spent on the connection that broke
    page = host.check_output("python3 -c %s", program)
    if in_recovery:
        sql(host, "SELECT pg_drop_replication_slot('watched')")
    samples = [re.fullmatch(r"(\w+)(?:\{.*\})? (\S+)", line) for line in page.splitlines() if not line.startswith("#")]
    metrics = {sample[1]: float(sample[2]) for sample in samples if sample}
    assert metrics["pg_up"] == 1
    assert metrics["pg_replication_is_replica"] == in_recovery
    assert metrics["pg_replication_lag"] >= 0
    # The control file has a new timeline only after the next checkpoint.
    timeline = sql(host, f"SELECT {'received_tli FROM pg_stat_wal_receiver' if in_recovery else 'substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)'}")
    assert metrics["pg_ops_timeline"] == int(timeline, 10 if in_recovery else 16)
    if in_recovery:
        assert metrics["pg_ops_wal_receiver_streaming"] == 1
        assert "pg_ops_synchronous_expected" not in metrics
    else:
        assert metrics["pg_ops_slot_active"] == metrics["pg_ops_downstream_streaming"] == 1
        assert metrics["pg_ops_synchronous_expected"] == 0
    assert metrics["pg_exporter_user_queries_load_error"] == metrics["pg_exporter_last_scrape_error"] == 0
