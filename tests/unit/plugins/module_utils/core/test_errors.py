# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the core's errors."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core import errors


def test_as_result_full_error_returns_the_four_facts() -> None:
    error = errors.PgOpsError("It failed.", reason="some_reason", observed="1", required="2", hint="Do it.")

    assert str(error) == "It failed."
    assert error.as_result() == {"reason": "some_reason", "observed": "1", "required": "2", "hint": "Do it."}


def test_pg_ops_error_without_reason_is_refused() -> None:
    with pytest.raises(TypeError):
        vars(errors)["PgOpsError"]("It failed.")


@pytest.mark.parametrize(
    ("error_class", "reason"),
    [
        pytest.param(errors.LsnError, "bad_lsn", id="lsn"),
        pytest.param(errors.TimelineError, "bad_timeline_history", id="timeline"),
        pytest.param(errors.ControlDataError, "bad_control_data", id="control-data"),
        pytest.param(errors.ConninfoError, "bad_conninfo", id="conninfo"),
        pytest.param(errors.ConfFileError, "bad_conf_file", id="conf-file"),
        pytest.param(errors.SlotNameError, "bad_slot_name", id="slot-name"),
        pytest.param(errors.InventoryError, "bad_inventory", id="inventory"),
    ],
)
def test_subclass_without_reason_takes_its_own(error_class: type[errors.PgOpsError], reason: str) -> None:
    assert error_class("It failed.").reason == reason  # type: ignore[call-arg]
    assert error_class("It failed.", reason="other").reason == "other"
    assert issubclass(error_class, errors.PgOpsError)
