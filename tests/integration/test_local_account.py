# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The account of the local clusters, made by several processes at once; a real account, so as root only."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import local_clusters
import pytest

ACCOUNT = f"pgopstest{os.getpid()}"
MAKE = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import local_clusters
base = pathlib.Path(sys.argv[3])
local_clusters.ACCOUNT, local_clusters.ACCOUNT_BASE, local_clusters.CLAIMS = sys.argv[2], base, base / "states"
print(local_clusters.ensure_account(pathlib.Path(sys.argv[4])).pw_uid)
"""


@pytest.fixture(autouse=True)
def account() -> Iterator[None]:
    yield
    subprocess.run(["userdel", ACCOUNT], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes accounts")
def test_the_account_is_made_once_however_many_ask_for_it(tmp_path: Path) -> None:
    scripts = str(Path(local_clusters.__file__).parent)
    argv = [sys.executable, "-c", MAKE, scripts, ACCOUNT, str(tmp_path / "base"), str(tmp_path)]
    makers = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _number in range(6)]
    answers = [(*maker.communicate(timeout=60), maker.returncode) for maker in makers]
    assert [answer[2] for answer in answers] == [0] * 6, answers
    assert {int(answer[0]) for answer in answers} == {pwd.getpwnam(ACCOUNT).pw_uid}, answers


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of an account of the test's own."""
    made = tmp_path / "base"
    for name, value in (("ACCOUNT", ACCOUNT), ("ACCOUNT_BASE", made), ("CLAIMS", made / "states")):
        monkeypatch.setattr(local_clusters, name, value)
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes accounts")
@pytest.mark.parametrize(("seconds", "kept"), [(1, False), (60, True)])
def test_the_account_goes_when_its_last_process_has_ended(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, kept: bool
) -> None:
    monkeypatch.setattr(local_clusters, "ENDED_SECONDS", 3)
    gone = tmp_path / "gone"
    local_clusters.ensure_account(gone)
    with subprocess.Popen(["sleep", str(seconds)], cwd="/", user=pwd.getpwnam(ACCOUNT).pw_uid) as process:
        waiting = threading.Thread(target=process.wait)  # it is there until its parent has taken note of the end
        waiting.start()
        local_clusters.clean(gone)
        found = local_clusters.existing_account()
        process.kill()
        waiting.join()
    assert (found is not None) is kept
    assert base.exists() is kept


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes accounts")
def test_the_account_stays_while_clusters_elsewhere_need_it(base: Path, tmp_path: Path) -> None:
    state, other = tmp_path / "state", tmp_path / "other"
    state.mkdir()
    local_clusters.ensure_account(state)
    local_clusters.clean(other)
    assert local_clusters.existing_account() is not None
    state.rmdir()
    local_clusters.clean(other)
    assert local_clusters.existing_account() is None
    assert not base.exists()
