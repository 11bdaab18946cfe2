# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the callback that ends status.yml with 3: it changes nothing but a failure of a host without a single primary."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import EXIT_STATUSES, NO_SINGLE_PRIMARY

PATH = Path(__file__).resolve().parents[3] / "playbooks" / "callback_plugins" / "pg_status_exit.py"


@pytest.fixture(scope="module")
def loaded() -> ModuleType:
    specification = importlib.util.spec_from_file_location("pg_status_exit", PATH)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def ended(loaded: ModuleType, results: dict[str, dict[str, Any]], failures: tuple[str, ...], *, again: bool = False) -> Optional[int]:
    """Return the exit status that the callback asks for, None when it leaves Ansible's alone."""
    callback = loaded.CallbackModule()
    callback.v2_playbook_on_start(None)
    for host, result in results.items():
        callback.v2_runner_on_ok(SimpleNamespace(_host=SimpleNamespace(get_name=lambda host=host: host), _result=result))
    if again:
        callback.v2_playbook_on_start(None)
    try:
        callback.v2_playbook_on_stats(SimpleNamespace(failures=dict.fromkeys(failures, 1)))
    except SystemExit as error:
        return int(str(error.code))
    return None


@pytest.mark.parametrize(
    ("results", "failures", "expected"),
    [
        pytest.param({"pg1": {"cluster_exit_status": 3}}, ("pg1",), 3, id="no single primary"),
        pytest.param({"pg1": {"cluster_exit_status": 2}, "pg2": {"cluster_exit_status": 3}}, ("pg1", "pg2"), 3, id="the worst decides"),
        pytest.param({"pg1": {"cluster_exit_status": 3}}, (), None, id="must not fail"),
        pytest.param({"pg1": {"cluster_exit_status": 2}}, ("pg1",), None, id="degraded"),
        pytest.param({"pg1": {"cluster_exit_status": 0}}, ("pg1",), None, id="healthy, something else failed"),
        pytest.param({"pg1": {"cluster_exit_status": 3}, "pg2": {"cluster_exit_status": 0}}, ("pg2",), None, id="another host failed"),
        pytest.param({"pg1": {"msg": "of another playbook"}}, ("pg1",), None, id="another playbook"),
        pytest.param({}, ("pg1",), None, id="nothing seen"),
    ],
)
def test_callback_turns_a_failure_without_single_primary_into_3(
    loaded: ModuleType, results: dict[str, dict[str, Any]], failures: tuple[str, ...], expected: Optional[int]
) -> None:
    assert ended(loaded, results, failures) == expected


def test_callback_forgets_an_earlier_playbook_of_the_same_command(loaded: ModuleType) -> None:
    assert ended(loaded, {"pg1": {"cluster_exit_status": 3}}, ("pg1",), again=True) is None


def test_callback_and_core_agree_on_the_number(loaded: ModuleType) -> None:
    assert EXIT_STATUSES[NO_SINGLE_PRIMARY] == loaded.NO_SINGLE_PRIMARY
