# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The units of the backups: what several clusters have in common, and what is each cluster's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[4] / "roles" / "backup"


def render(name: str, **variables: Any) -> str:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # as Ansible renders it
    return environment.from_string((ROLE / "templates" / name).read_text(encoding="utf-8")).render(**variables)


def test_unit_that_clusters_share_holds_nothing_of_one_of_them() -> None:
    item = {"type": "full", "words": "Full"}
    one, other = (render("backup.service.j2", item=item, pg_backup_owner=owner, pg_backup_on_failure=unit) for owner, unit in (("a", "x.service"), ("b", "")))
    assert one == other
    assert "User=pgbackrest\n" in one  # never root, where a cluster's own part is missing


@pytest.mark.parametrize(("unit", "lines"), [("", []), ("tell-us@%n.service", ["[Unit]", "OnFailure=tell-us@%n.service", ""])])
def test_clusters_own_part_names_its_account_and_who_is_told_of_a_failure(unit: str, lines: list[str]) -> None:
    assert render("backup.conf.j2", pg_backup_owner="keeper", pg_backup_on_failure=unit).splitlines()[1:] == [*lines, "[Service]", "User=keeper"]


@pytest.mark.parametrize(
    ("unit", "good"),
    [("", True), ("tell-us@%n.service", True), ("tell.target", True), ("tell-us", False), ("two of.service", False), ("x.service\n[Service]", False)],
)
def test_name_of_the_unit_is_checked(unit: str, good: bool) -> None:
    tasks = yaml.safe_load((ROLE / "tasks" / "repository.yml").read_text(encoding="utf-8"))
    [checked] = [task["ansible.builtin.assert"]["that"] for task in tasks if "pg_backup_on_failure" in str(task.get("ansible.builtin.assert", {}).get("that"))]
    templar = Templar(loader=DataLoader(), variables={"pg_backup_on_failure": unit})
    assert templar.evaluate_conditional(trust_as_template(checked)) is good
