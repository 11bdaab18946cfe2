# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The targets that one inventory writes, as a run with another inventory finds them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[4] / "roles" / "monitoring_server"
VARIABLES = {name: value for name, value in yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8")).items() if isinstance(value, str)}

ONE = {"a": {}, "b": {}}  # cluster main
EAST_AND_WEST = {"a": {"pg_cluster_name": "east"}, "b": {"pg_cluster_name": "west"}}


def rendered(template: str, nodes: dict[str, dict[str, Any]], **more: Any) -> Any:
    """Return what a template of the role gives on a host that watches these nodes."""
    hostvars = {name: {"pg_monitoring": True, **variables} for name, variables in nodes.items()}
    private = {name: trust_as_template(value) for name, value in VARIABLES.items()}
    templar = Templar(loader=DataLoader(), variables={**private, "groups": {"pg_nodes": list(nodes)}, "hostvars": hostvars, **more})
    return templar.template(trust_as_template(template))


def forgotten(nodes: dict[str, dict[str, Any]], there: str | None) -> list[str]:
    """Return the clusters that a run for these nodes would forget, where a file of targets is there, or none."""
    found = {"skipped": True} if there is None else {"content": base64.b64encode(there.encode()).decode()}
    result: list[str] = rendered("{{ __pg_monitoring_forgotten }}", nodes, __pg_targets=found)
    return result


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (ONE, ONE, []),
        (ONE, {"a": {}}, []),
        (ONE, {"a": {}, "b": {}, "c": {}}, []),
        (ONE, {"a": {"pg_monitoring": False}, "b": {"pg_monitoring": False}, "c": {"pg_cluster_name": "east"}}, []),
        (ONE, {"c": {}}, ["main"]),
        (ONE, {"a": {"pg_cluster_name": "east"}, "b": {"pg_cluster_name": "east"}}, ["main"]),
        (EAST_AND_WEST, EAST_AND_WEST, []),
        (EAST_AND_WEST, {"a": {"pg_cluster_name": "east"}}, ["west"]),
        (EAST_AND_WEST, {"c": {"pg_cluster_name": "north"}}, ["east", "west"]),
    ],
    ids=["same", "node-fewer", "node-more", "no-longer-monitored", "same-name-other-nodes", "renamed", "two", "one-of-two", "others"],
)
def test_targets_of_another_inventory_are_found(before: dict[str, Any], now: dict[str, Any], expected: list[str]) -> None:
    template = (ROLE / "templates" / "targets.yml.j2").read_text(encoding="utf-8")
    assert forgotten(now, rendered(template, before)) == expected


@pytest.mark.parametrize("there", [None, "", "# nothing\n", "[]\n", "- targets: [x:9187]\n", "- {targets: [x:9187], labels: {team: y}}\n"])
def test_file_without_clusters_forgets_none(there: str | None) -> None:
    assert forgotten(ONE, there) == []


@pytest.mark.parametrize(("before", "replace", "refused"), [(EAST_AND_WEST, False, True), (EAST_AND_WEST, "true", False), (ONE, False, False)])
def test_preflight_refuses_to_forget_a_cluster_unless_told_to(before: dict[str, Any], replace: Any, refused: bool) -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / "preflight.yml").read_text(encoding="utf-8"))
    (check,) = [task["ansible.builtin.assert"] for task in tasks if "ansible.builtin.assert" in task]
    there = rendered((ROLE / "templates" / "targets.yml.j2").read_text(encoding="utf-8"), before)
    found = {"content": base64.b64encode(there.encode()).decode()}
    given = {"__pg_targets": found, "pg_monitoring_replace_targets": replace, "inventory_hostname": "watcher"}
    assert rendered("{{ " + check["that"] + " }}", ONE, **given) is not refused
    if refused:
        assert rendered(check["fail_msg"], ONE, **given).startswith("watcher: it watches east, west, of which this inventory has no node (observed: /etc/")
