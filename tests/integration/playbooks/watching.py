# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking for passwords: how they may be spelled, and every command line that is seen while playbooks run."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.integration.playbooks.cluster import CHECKOUT, VAULT_SCRIPT, VENV_BIN, Cluster

SAMPLE_SECONDS = 0.02


def vault_passwords(cluster: Cluster) -> list[str]:
    """Return the passwords in inventories/local's vault."""
    path = CHECKOUT / "inventories" / "local" / "group_vars" / "pg_nodes" / "vault.yml"
    argv = [str(VENV_BIN / "ansible-vault"), "view", "--vault-id", VAULT_SCRIPT, str(path)]
    shown = subprocess.run(argv, env=cluster.environ(), capture_output=True, text=True, check=True).stdout
    return list(yaml.safe_load(shown).values())


def spellings(password: str) -> set[str]:
    """Return the password as it may stand in a log, a shell command, a URI, a JSON or YAML text, SQL, a passfile, a conninfo."""
    once = json.dumps(password)[1:-1]
    found = {
        password,
        once,
        json.dumps(once)[1:-1],
        json.dumps(password, ensure_ascii=False)[1:-1],
        repr(password)[1:-1],
        shlex.quote(password),
        urllib.parse.quote(password),
        urllib.parse.quote(password, safe=""),
        urllib.parse.quote_plus(password),
        base64.b64encode(password.encode()).decode(),
        password.replace("'", "''"),
        password.replace("\\", "\\\\").replace("'", "\\'"),
        password.replace("\\", "\\\\").replace(":", "\\:"),
        yaml.safe_dump(password, allow_unicode=True).strip(),
    }
    # The plain run of letters and digits at the end survives every spelling but base64.
    return found | {password.split()[-1]}


def leaks(text: str, passwords: list[str]) -> list[str]:
    """Return the lines that hold a password in any spelling."""
    wanted = [spelling for password in passwords for spelling in spellings(password)]
    return [line[:300] for line in text.splitlines() if any(spelling in line for spelling in wanted)]


@contextmanager
def sampled_command_lines(into: set[str]) -> Iterator[None]:
    """Collect the command lines of all processes, fifty times a second, while the block runs."""
    over = threading.Event()

    def sample() -> None:
        looks: dict[str, int] = {}  # by process: a few are enough, a process changes its command line only when it starts a program
        while not over.wait(SAMPLE_SECONDS):
            present = [name for name in os.listdir("/proc") if name.isdigit()]
            looks = {name: looks.get(name, 0) + 1 for name in present}
            for name in (name for name in present if looks[name] <= 5):
                try:
                    into.add(Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", errors="replace"))
                except OSError:
                    continue

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
