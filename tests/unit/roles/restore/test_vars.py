# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose history a restore follows, and which hosts it concerns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

VARIABLES = Path(__file__).resolve().parents[4] / "roles" / "restore" / "vars" / "main.yml"
HISTORY = "1\t0/4000100\tno recovery target specified\n"


def node(role: str, cluster: str = "main", timeline: int = 2) -> dict[str, Any]:
    return {
        "pg_cluster_name": cluster,
        "__pg_observed": {"node": {"state": "running", "role": role, "timeline": timeline, "timeline_history": HISTORY}},
    }


def value(expression: str, cluster: str, hostvars: dict[str, Any], restore_host: str = "") -> Any:
    loader = DataLoader()
    variables = {**loader.load_from_file(str(VARIABLES), trusted_as_template=True), "hostvars": hostvars, "ansible_play_hosts": list(hostvars)}
    return Templar(loader=loader, variables={**variables, "pg_cluster_name": cluster, "pg_restore_host": restore_host}).template(
        trust_as_template("{{ " + expression + " }}")
    )


@pytest.mark.parametrize(
    ("hostvars", "timeline", "history"),
    [
        pytest.param({"pg1": node("standby", timeline=1), "pg2": node("primary"), "other": node("primary", "other", 9)}, 2, HISTORY, id="primary"),
        pytest.param({"pg1": node("standby"), "pg2": {"__pg_observed": {}}}, 0, "", id="no-primary"),
        pytest.param({"pg1": node("primary", timeline=1), "pg2": node("primary")}, 0, "", id="two-primaries"),
    ],
)
def test_history_is_that_of_the_clusters_one_running_primary(hostvars: dict[str, Any], timeline: int, history: str) -> None:
    assert value("__pg_restore_live_node.timeline | default(0)", "main", hostvars) == timeline
    assert value("__pg_restore_live_node.timeline_history | default('')", "main", hostvars) == history


@pytest.mark.parametrize(
    ("restore_host", "concerned"), [("", ["main", "other"]), ("pg1", ["main"]), ("pg2", ["other"]), ("unknown", ["main", "other"])]
)
def test_host_that_is_named_leaves_other_clusters_out(restore_host: str, concerned: list[str]) -> None:
    hostvars = {"pg1": node("primary"), "pg2": node("primary", "other")}
    assert [cluster for cluster in ("main", "other") if value("__pg_restore_concerned", cluster, hostvars, restore_host)] == concerned
