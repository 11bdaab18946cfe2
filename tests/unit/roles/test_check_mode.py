# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tasks of roles and playbooks do in check mode, as far as their YAML tells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

CHECKOUT = Path(__file__).resolve().parents[3]
FILES = sorted([*CHECKOUT.glob("roles/*/tasks/**/*.yml"), *CHECKOUT.glob("roles/*/handlers/*.yml"), *CHECKOUT.glob("playbooks/*.yml")])
SKIPPED = {"skipped": True, "changed": False, "failed": False}
# What these return in check mode, where they do nothing.
RETURNED = {
    "ansible.builtin.command": {**SKIPPED, "rc": 0, "stdout": "", "stderr": ""},
    "ansible.builtin.shell": {**SKIPPED, "rc": 0, "stdout": "", "stderr": ""},
    "ansible.builtin.script": SKIPPED,
    "ansible.builtin.raw": SKIPPED,
    "ansible.builtin.uri": SKIPPED,
    "ansible.builtin.wait_for": SKIPPED,
}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def tasks_in(entries: list[dict[str, Any]] | None, conditions: tuple[str, ...] = (), check_mode: Any = None) -> Iterator[dict[str, Any]]:
    """Yield the tasks of plays, blocks and files, each with the conditions and the check_mode that it has from those around it."""
    for entry in entries or []:
        here = (*conditions, *(str(condition) for condition in as_list(entry.get("when"))))
        mode = entry.get("check_mode", check_mode)
        inner = [name for name in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers") if name in entry]
        for name in inner:
            yield from tasks_in(entry[name], here, mode)
        if not inner:
            yield {**entry, "when": here, "check_mode": mode}


def is_met_when_skipped(task: dict[str, Any], returned: dict[str, Any]) -> bool:
    """Return whether the task's `until` takes what its module returns in check mode for the end."""
    templar = Templar(loader=DataLoader(), variables={task.get("register", "__pg_none"): returned})
    try:
        return all(templar.template(trust_as_template("{{ (" + condition + ") | bool }}")) for condition in as_list(task["until"]))
    except AnsibleError:
        return False


def waits_in_vain(task: dict[str, Any]) -> bool:
    """Return whether the task fails in check mode, having waited for a result of what is skipped there."""
    module = next((name for name in RETURNED if name in task), None)
    if module is None or "until" not in task or task["check_mode"] is False:
        return False
    return not any("ansible_check_mode" in condition for condition in task["when"]) and not is_met_when_skipped(task, RETURNED[module])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_no_task_waits_in_check_mode_for_what_is_skipped_there(path: Path) -> None:
    assert [task["name"] for task in tasks_in(yaml.safe_load(path.read_text(encoding="utf-8"))) if waits_in_vain(task)] == []


def fails_for_autocommit(task: dict[str, Any]) -> bool:
    """Return whether the task fails in check mode because community.postgresql takes no autocommit there."""
    options = task.get("community.postgresql.postgresql_query") or {}
    skipped = any("not ansible_check_mode" in condition for condition in task["when"])
    return "autocommit" in options and task["check_mode"] is not False and not skipped


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_no_task_asks_for_autocommit_in_check_mode(path: Path) -> None:
    assert [task["name"] for task in tasks_in(yaml.safe_load(path.read_text(encoding="utf-8"))) if fails_for_autocommit(task)] == []


@pytest.mark.parametrize(
    ("options", "fails"),
    [("", True), (", when: pg_x", True), (", when: not ansible_check_mode", False), (", check_mode: false", False)],
    ids=["bare", "other-when", "not-then", "runs"],
)
def test_fails_for_autocommit_knows_what_keeps_the_task_from_it(options: str, fails: bool) -> None:
    text = "- {community.postgresql.postgresql_query: {query: CHECKPOINT, autocommit: true}" + options + "}"
    assert [fails_for_autocommit(task) for task in tasks_in(yaml.safe_load(text))] == [fails]


LOGIN = "- {ansible.builtin.command: {argv: [psql]}, register: __pg_x, until: __pg_x.stdout == 't'"


@pytest.mark.parametrize(
    ("text", "vain"),
    [
        (LOGIN + "}", True),
        (LOGIN + ", check_mode: false}", False),
        (LOGIN + ", when: not ansible_check_mode}", False),
        (LOGIN + ", when: pg_x}", True),
        ("- when: [pg_x, not ansible_check_mode]\n  block:\n  " + LOGIN + "}", False),
        ("- check_mode: false\n  block:\n  " + LOGIN + "}", False),
        ("- hosts: all\n  tasks:\n  " + LOGIN + "}", True),
        ("- {ansible.builtin.command: {argv: [x]}, register: __pg_x, until: __pg_x.rc | default(0) != 50}", False),
        ("- {ansible.builtin.uri: {url: x}, register: __pg_x, until: __pg_x is success}", False),
        ("- {ansible.builtin.uri: {url: x}, register: __pg_x, until: __pg_x.json.ready}", True),
        ("- {ansible.builtin.command: {argv: [x]}, register: __pg_x}", False),
    ],
    ids=["bare", "runs", "not-then", "other-when", "block-when", "block-runs", "in-a-play", "met", "met-uri", "undefined", "no-until"],
)
def test_waits_in_vain_knows_what_ends_the_wait(text: str, vain: bool) -> None:
    assert [waits_in_vain(task) for task in tasks_in(yaml.safe_load(text))] == [vain]
