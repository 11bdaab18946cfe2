# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of refusals as data and as text."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.blockers import Blocker, refusal


@pytest.mark.parametrize(
    ("blocker", "message"),
    [
        pytest.param(Blocker("lag", "pg2", "its WAL is behind"), "pg2: its WAL is behind.", id="problem alone"),
        pytest.param(
            Blocker("lag", "pg2", "its WAL is behind", "20 bytes", "at most 10", "Wait."),
            "pg2: its WAL is behind (observed: 20 bytes; required: at most 10). Wait.",
            id="everything",
        ),
        pytest.param(Blocker("lag", "pg2", "is behind", "20"), "pg2: is behind (observed: 20; required: -).", id="observed alone"),
        pytest.param(Blocker("lag", "pg2", "is behind", "", "10"), "pg2: is behind (observed: -; required: 10).", id="required alone"),
        pytest.param(Blocker("lag", "pg2", "is behind", hint="Wait."), "pg2: is behind. Wait.", id="hint alone"),
        pytest.param(Blocker("lag", "db {0} 'é'", "{1}"), "db {0} 'é': {1}.", id="braces and quotes"),
    ],
)
def test_message_of_blocker_names_problem_facts_and_next_step(blocker: Blocker, message: str) -> None:
    assert blocker.message == message


def test_as_result_holds_the_same_as_data() -> None:
    blocker = Blocker("lag", "pg2", "is behind", "20", "10", "Wait.")
    assert blocker.as_result() == {
        "reason": "lag",
        "host": "pg2",
        "message": blocker.message,
        "observed": "20",
        "required": "10",
        "hint": "Wait.",
    }


def test_refusal_lists_every_blocker_on_a_line_of_its_own() -> None:
    found = (Blocker("a", "pg1", "is one"), Blocker("b", "pg2", "is two"))
    assert refusal("the switchover", found) == "Refused: the switchover. Nothing was changed.\n  - pg1: is one.\n  - pg2: is two."


def test_refusal_behind_a_change_says_what_that_was() -> None:
    said = refusal("the failover", [Blocker("a", "pg1", "is one")], "pg1 was fenced; nobody was promoted.")
    assert said == "Refused: the failover. pg1 was fenced; nobody was promoted.\n  - pg1: is one."


def test_refusal_without_blockers_is_its_first_line() -> None:
    assert refusal("it", ()) == "Refused: it. Nothing was changed."
