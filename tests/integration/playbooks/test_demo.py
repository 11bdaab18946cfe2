# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo` as an ordinary account types it: a checkout of its own, an empty home, nothing installed but what the machine has."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.run_checks import CHECKOUT, tracked_files
from tests.integration.playbooks.cluster import wait_for

ACCOUNT = "pgops-newcomer"


@dataclass(frozen=True)
class Newcomer:
    """An account that has nothing but a checkout and an empty home."""

    account: pwd.struct_passwd
    checkout: Path
    home: Path

    def types(self, command: str) -> str:
        """Run a command line in the checkout as the account; return all that it prints."""
        # Where packages come from is the machine's business: what pip and proxies are told stays.
        kept = {name: value for name, value in os.environ.items() if name in ("LANG", "PATH") or name.lower().endswith("_proxy") or name.startswith("PIP_")}
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.checkout,
            env={**kept, "HOME": str(self.home), "USER": self.account.pw_name},
            user=self.account.pw_uid,
            group=self.account.pw_gid,
            extra_groups=(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout


def alter_accounts(*argv: str) -> None:
    """Run useradd or userdel; each locks the files of accounts, and another test may be at it."""
    wait_for(lambda: subprocess.run(argv, stdout=subprocess.DEVNULL, check=False).returncode == 0, " ".join(argv), timeout_seconds=30)


@contextmanager
def ordinary_account(home: Path) -> Iterator[pwd.struct_passwd]:
    if any(each.pw_name == ACCOUNT for each in pwd.getpwall()):  # of a run that was killed
        alter_accounts("userdel", ACCOUNT)
    alter_accounts("useradd", "--system", "--no-create-home", "--home-dir", str(home), "--user-group", "--shell", "/bin/sh", ACCOUNT)
    try:
        yield pwd.getpwnam(ACCOUNT)
    finally:
        alter_accounts("userdel", ACCOUNT)


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    with tempfile.TemporaryDirectory(prefix="pg_ops_demo_") as directory, ordinary_account(Path(directory) / "home") as account:
        os.chmod(directory, 0o755)
        made = Newcomer(account, Path(directory) / "checkout", Path(directory) / "home")
        for name in tracked_files():
            target = made.checkout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, target, follow_symlinks=False)
        made.home.mkdir()
        subprocess.run(["chown", "-R", f"{account.pw_uid}:{account.pw_gid}", directory], check=True)
        yield made
        made.types("make demo-clean")


def test_demo_as_an_ordinary_account_ends_with_a_replicated_cluster_that_its_last_lines_lead_to(newcomer: Newcomer) -> None:
    shown = newcomer.types("make demo")
    assert re.search(r"^Cluster \S+: healthy", shown, re.MULTILINE), shown[-4000:]
    connect = re.search(r"^Connect to the primary, whichever it is:\n  (.+)$", shown, re.MULTILINE)
    look = re.search(r"^Look at the topology:\n  (.+)$", shown, re.MULTILINE)
    assert connect and look, shown[-2000:]
    in_recovery = newcomer.types(f"{connect[1]} -XAtc 'SELECT pg_is_in_recovery(), (SELECT count(*) FROM pg_stat_replication)'")
    assert in_recovery.split() == ["f|2"]
    assert ": healthy" in newcomer.types(look[1])
