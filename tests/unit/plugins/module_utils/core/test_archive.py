# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with a cluster's WAL archive, and that no role change fails because of it."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.archive import MAX_WAITING_FILES, archive_problems
from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import DEGRADED, HEALTHY, render_document, status_document
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import problems
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import PAIR, change, cluster, down, reasons

ON = {"settings": {"archive_mode": "on"}}
FAILS = {"archive_failing": True, "archive_failed_wal": "000000010000000000000009", "archive_ready_files": 3}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({**ON}, [], id="archives"),
        pytest.param({**ON, **FAILS}, [("archive_failing", "pg1")], id="fails"),
        pytest.param({"settings": {"archive_mode": "always"}, **FAILS}, [("archive_failing", "pg1")], id="always-fails"),
        pytest.param({"settings": {"archive_mode": "off"}, **FAILS}, [], id="failed-before-it-was-switched-off"),
        pytest.param({"settings": {}, **FAILS}, [], id="settings-unknown"),
        pytest.param({**ON, "archive_ready_files": MAX_WAITING_FILES}, [], id="at-the-limit"),
        pytest.param({**ON, "archive_ready_files": MAX_WAITING_FILES + 1}, [("archive_behind", "pg1")], id="hangs"),
        pytest.param({**ON, **FAILS, "archive_ready_files": 500}, [("archive_failing", "pg1")], id="fails-and-is-behind"),
    ],
)
def test_archive_problems_of_a_primary(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert reasons(archive_problems(change(cluster(PAIR), "pg1", **changes))) == expected


@pytest.mark.parametrize("host", ["pg1", "pg2"])
def test_archive_problems_of_a_server_that_accepts_no_writes_are_none(host: str) -> None:
    """A standby remembers what failed in its time as primary; one that is down says nothing."""
    topology = change(cluster(PAIR), host, **ON, **FAILS)
    assert archive_problems(down(topology, "pg1")) == ()


def test_status_with_an_archive_that_fails_is_degraded_and_says_what_to_type() -> None:
    document = status_document(change(cluster(PAIR), "pg1", **ON, **FAILS), observed_at="")
    assert (document["severity"], document["exit_status"]) == (DEGRADED, 2)
    text = render_document(document)
    assert "! pg1: does not archive its WAL (observed: archive_command fails for 000000010000000000000009, 3 file(s) of WAL wait" in text
    assert text.splitlines()[1].endswith("Type: ansible-playbook initial_setup.yml")


def test_status_of_an_archive_that_works_is_healthy() -> None:
    assert status_document(change(cluster(PAIR), "pg1", **ON), observed_at="")["severity"] == HEALTHY


def test_role_changes_do_not_fail_for_the_archive() -> None:
    assert problems(change(cluster(PAIR), "pg1", **ON, **FAILS)) == ()
