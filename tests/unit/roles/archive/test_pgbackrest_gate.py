# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the other side's SSH key may start, as a truth table. The commands that pass are what pgBackRest 2.45 was seen to send."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import Optional

import pytest

PROGRAM = Path(__file__).resolve().parents[4] / "roles" / "archive" / "files" / "pgbackrest_gate.py"
SPEC = importlib.util.spec_from_file_location("pg_ops_pgbackrest_gate", PROGRAM)
gate = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = gate
SPEC.loader.exec_module(gate)

CONFIG = "/etc/pgbackrest/pg_ops_main.conf"
LOGS = "--log-level-console=off --log-level-file=off --log-level-stderr=error"
SENT_TO_REPO = (
    f"pgbackrest --archive-async --config={CONFIG} --exec-id=3364-fd257a29 {LOGS} --process=2 --remote-type=repo --repo=1 --stanza=main archive-push:remote",
    f"pgbackrest --archive-async --config={CONFIG} --exec-id=3405-6086a2e4 {LOGS} --pg1-path=/var/lib/postgresql/15/main --process=0"
    " --remote-type=repo --repo=1 --stanza=main archive-get:remote",
    f"pgbackrest --config={CONFIG} --exec-id=3377-09c1f63b {LOGS} --process=0 --remote-type=repo --repo=1 --stanza=main info:remote",
    f"pgbackrest --config={CONFIG} --exec-id=3393-fa9fb286 {LOGS} --pg1-path=/srv/restored --process=1 --remote-type=repo --repo=1 --stanza=main"
    " restore:remote",
)
SENT_TO_PG = (
    f"/usr/bin/pgbackrest --config={CONFIG} --exec-id=2529-48fa65c4 {LOGS} --pg1-path=/var/lib/postgresql/15/main --pg1-port=5432"
    " --pg1-socket-path=/var/run/postgresql --pg1-user=postgres --process=1 --remote-type=pg --stanza=main backup:remote",
)
GOOD = SENT_TO_REPO[0]


def refusal(command: str, part: str = "repo") -> Optional[str]:
    why: Optional[str] = gate.refusal(shlex.split(command), part, "main", CONFIG)
    return why


@pytest.mark.parametrize("command", SENT_TO_REPO)
def test_gate_of_the_repository_lets_a_nodes_commands_pass(command: str) -> None:
    assert refusal(command) is None
    assert refusal(command, "pg") is not None


@pytest.mark.parametrize("command", SENT_TO_PG)
def test_gate_of_a_node_lets_the_repositorys_commands_pass(command: str) -> None:
    assert refusal(command, "pg") is None
    assert refusal(command) is not None


@pytest.mark.parametrize(
    "command",
    [
        pytest.param("", id="a-shell"),
        pytest.param("sh -c id", id="another-program"),
        pytest.param(GOOD.replace("archive-push:remote", "expire"), id="no-remote-part"),
        pytest.param(GOOD.replace("archive-push:remote", "repo-rm:remote"), id="another-command"),
        pytest.param(GOOD + " restore:remote", id="two-commands"),
        pytest.param(GOOD.replace("--stanza=main", "--stanza=other"), id="another-stanza"),
        pytest.param(GOOD + " --stanza=other", id="two-stanzas"),
        pytest.param(GOOD.replace("--stanza=main ", ""), id="no-stanza"),
        pytest.param(GOOD.replace("--remote-type=repo", "--remote-type=pg"), id="another-part"),
        pytest.param(GOOD.replace(CONFIG, "/tmp/mine.conf"), id="another-configuration"),
        pytest.param(GOOD + " --config-include-path=/tmp", id="more-configuration"),
        pytest.param(GOOD + " --repo1-path=/etc", id="another-path"),
        pytest.param(GOOD + " --repo2-host=evil", id="another-host"),
        pytest.param(GOOD + " --no-repo1-cipher-type", id="negated-repository-option"),
        pytest.param(GOOD + " --cmd-ssh=/tmp/mine", id="a-program-as-option"),
        pytest.param(GOOD + " --lock-path=/tmp", id="another-lock"),
        pytest.param(GOOD + "; id", id="what-a-shell-would-run"),
    ],
)
def test_gate_refuses(command: str) -> None:
    assert refusal(command) is not None


def test_gate_runs_no_program_for_what_it_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "pgbackrest 'unbalanced")
    assert gate.main(["repo", "main", CONFIG]) == 1
    assert "pgbackrest_gate: the command is not pgbackrest" in capsys.readouterr().err


def test_gate_starts_the_program_with_this_hosts_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", GOOD)
    monkeypatch.setattr(gate.os, "execv", lambda program, argv: started.append([program, *argv]))
    gate.main(["repo", "main", CONFIG])
    [words] = started
    assert words[:3] == ["/usr/bin/pgbackrest", "/usr/bin/pgbackrest", f"--config={CONFIG}"]
    assert words[-1] == "archive-push:remote" and not [word for word in words[3:] if word.startswith("--config")]
