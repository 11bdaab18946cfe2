# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin with a program in the place of lxc that shows what it was asked to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.lxd_connection import connection_to


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command through the connection and returns the last word that lxc got: the command."""
    lxc = tmp_path / "lxc"
    lxc.write_text('#!/bin/sh\nfor last; do :; done\nprintf %s "$last"\n', encoding="utf-8")
    lxc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def ask(command: str, in_data: bytes | None = None, **variables: Any) -> str:
        status, out, _err = connection_to("pgsql1", **variables).exec_command(command, in_data=in_data)
        assert status == 0
        return out

    return ask


def test_command_without_input_waits_for_lxd_to_listen(asked: Any) -> None:
    assert asked("mkdir a && echo a") == "sleep 0.1; mkdir a && echo a"


def test_pause_can_be_set(asked: Any) -> None:
    assert asked("echo a", ansible_lxd_pause=0.25) == "sleep 0.25; echo a"


@pytest.mark.parametrize(
    ("in_data", "variables"), [pytest.param(b"", {}, id="module-on-standard-input"), pytest.param(None, {"ansible_lxd_pause": 0}, id="no-pause-wanted")]
)
def test_others_run_at_once(asked: Any, in_data: bytes | None, variables: dict[str, Any]) -> None:
    assert asked("echo a", in_data, **variables) == "echo a"
