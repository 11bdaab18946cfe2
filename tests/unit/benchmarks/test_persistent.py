# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The shell that stays open: answers, failures, deadlines."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks.persistent import PersistentShell, SessionError


@pytest.fixture
def shell() -> Iterator[PersistentShell]:
    with PersistentShell(["sh"]) as opened:
        yield opened


def test_run_returns_each_scripts_own_output(shell: PersistentShell) -> None:
    assert [shell.run("echo one; echo two"), shell.run("printf three"), shell.run(":")] == ["one\ntwo", "three", ""]


def test_run_failing_script_leaves_the_shell_usable(shell: PersistentShell) -> None:
    with pytest.raises(SessionError, match=r"status 3.*why"):
        shell.run("echo why >&2; exit 3")
    assert shell.run("echo still here") == "still here"


def test_run_script_that_reads_gets_no_input(shell: PersistentShell) -> None:
    assert shell.run("cat; echo end", timeout_seconds=5) == "end"


def test_run_slow_script_ends_at_the_deadline(shell: PersistentShell) -> None:
    began = time.monotonic()
    with pytest.raises(SessionError, match="did not answer"):
        shell.run("sleep 3", timeout_seconds=0.1)
    assert time.monotonic() - began < 2


def test_run_in_an_ended_session_is_an_error() -> None:
    with PersistentShell(["true"]) as ended, pytest.raises(SessionError, match="has ended"):
        ended.run(":", timeout_seconds=5)
        ended.run(":", timeout_seconds=5)
