# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What make test shows of a failure, and what it repeats."""

from __future__ import annotations

import pytest
from run_checks import TELLING_LINES, lost_output, telling_part

LONG = 10 * TELLING_LINES


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("Task failed: failed to resolve remote\n    temporary directory from x", True),
        ("Module result deserialization failed: No start of json\nchar found", True),
        ("fatal: [pgsql1]: FAILED! => no space left on device", False),
        ("", False),
    ],
)
def test_lost_output_is_known_however_it_was_wrapped(text: str, lost: bool) -> None:
    assert lost_output(text) is lost


def test_telling_part_of_a_short_output_is_all_of_it() -> None:
    output = "\n".join(["ok"] * (2 * TELLING_LINES))
    assert telling_part(output) == output


def test_telling_part_has_the_first_task_that_failed_and_the_end() -> None:
    lines = [f"line {number}" for number in range(LONG)]
    lines[100], lines[500] = "fatal: [first]", "fatal: [second]"
    shown = telling_part("\n".join(lines)).splitlines()
    assert {"line 99", "fatal: [first]", "line 101", f"line {LONG - 1}"} <= set(shown)
    assert "fatal: [second]" not in shown and len(shown) <= 2 * TELLING_LINES


def test_telling_part_without_a_failed_task_is_the_end() -> None:
    shown = telling_part("\n".join(f"line {number}" for number in range(LONG))).splitlines()
    assert shown == ["[...]", *(f"line {number}" for number in range(LONG - TELLING_LINES, LONG))]
