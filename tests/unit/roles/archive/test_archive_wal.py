# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive program on real files: nothing is overwritten, nothing is half there."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[4] / "roles" / "archive" / "files" / "archive_wal.py"
SPEC = importlib.util.spec_from_file_location("pg_ops_archive_wal", PROGRAM)
archive_wal = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = archive_wal
SPEC.loader.exec_module(archive_wal)

SEGMENT = "000000010000000000000003"


@pytest.fixture(name="archive")
def archive_directory(tmp_path: Path) -> Path:
    path = tmp_path / "archive"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(name="segment")
def wal_segment(tmp_path: Path) -> Path:
    path = tmp_path / SEGMENT
    path.write_bytes(os.urandom(3 << 20))
    return path


def test_push_copies_the_file_for_its_owner_alone_and_leaves_nothing_else(archive: Path, segment: Path) -> None:
    assert archive_wal.main(["push", str(archive), str(segment), SEGMENT]) == 0
    assert [path.name for path in archive.iterdir()] == [SEGMENT]
    assert (archive / SEGMENT).read_bytes() == segment.read_bytes()
    assert (archive / SEGMENT).stat().st_mode & 0o777 == 0o600


def test_push_flushes_the_file_before_it_gets_its_name_and_the_directory_behind_that(
    archive: Path, segment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, bool]] = []
    flush = os.fsync

    def noted(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        flushed.append(("directory" if path == archive else "file" if path.parent == archive else str(path), (archive / SEGMENT).exists()))
        flush(handle)

    monkeypatch.setattr(os, "fsync", noted)
    archive_wal.push(str(archive), str(segment), SEGMENT)
    assert flushed[0] == ("file", False) and flushed[-1] == ("directory", True), flushed


def test_push_of_the_same_file_again_succeeds(archive: Path, segment: Path) -> None:
    archive_wal.push(str(archive), str(segment), SEGMENT)
    before = (archive / SEGMENT).stat()
    assert archive_wal.main(["push", str(archive), str(segment), SEGMENT]) == 0
    assert (archive / SEGMENT).stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("change", ["byte", "shorter", "longer"])
def test_push_of_another_file_of_that_name_fails_and_keeps_the_first(
    archive: Path, segment: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive_wal.push(str(archive), str(segment), SEGMENT)
    first = segment.read_bytes()
    segment.write_bytes({"byte": first[:-1] + bytes([first[-1] ^ 1]), "shorter": first[:-1], "longer": first + b"x"}[change])
    assert archive_wal.main(["push", str(archive), str(segment), SEGMENT]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert (archive / SEGMENT).read_bytes() == first
    assert [path.name for path in archive.iterdir()] == [SEGMENT]


def test_push_that_loses_the_race_for_the_name_does_not_overwrite(archive: Path, segment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process puts its file there between the look and the link."""
    really_copy = archive_wal._copy_aside

    def copy_then_lose(directory: str, path: str, name: str) -> str:
        aside = really_copy(directory, path, name)
        (archive / SEGMENT).write_bytes(b"another server's")
        return aside

    monkeypatch.setattr(archive_wal, "_copy_aside", copy_then_lose)
    with pytest.raises(archive_wal.ArchiveError, match="not overwritten"):
        archive_wal.push(str(archive), str(segment), SEGMENT)
    assert (archive / SEGMENT).read_bytes() == b"another server's"
    assert [path.name for path in archive.iterdir()] == [SEGMENT]


@pytest.mark.parametrize("name", ["00000002.history", SEGMENT + ".partial", SEGMENT + ".00000028.backup", SEGMENT])
def test_push_and_fetch_take_every_kind_of_file(archive: Path, segment: Path, tmp_path: Path, name: str) -> None:
    assert archive_wal.main(["push", str(archive), str(segment), name]) == 0
    target = tmp_path / "RECOVERYXLOG"
    assert archive_wal.main(["fetch", str(archive), name, str(target)]) == 0
    assert target.read_bytes() == segment.read_bytes()


@pytest.mark.parametrize("name", ["../passwd", "x", SEGMENT.lower() + "x", "", SEGMENT + "\n", "." + SEGMENT])
def test_push_and_fetch_refuse_other_names(archive: Path, segment: Path, tmp_path: Path, name: str) -> None:
    assert archive_wal.main(["push", str(archive), str(segment), name]) == 1
    assert archive_wal.main(["fetch", str(archive), name, str(tmp_path / "x")]) == 1
    assert list(archive.iterdir()) == []


def test_push_makes_no_directory(tmp_path: Path, segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mount point of a file system that is not there must not fill up in its place."""
    assert archive_wal.main(["push", str(tmp_path / "gone"), str(segment), SEGMENT]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()


def test_push_refuses_a_directory_that_others_can_read(archive: Path, segment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive.chmod(0o750)
    assert archive_wal.main(["push", str(archive), str(segment), SEGMENT]) == 1
    assert "has mode 0750, and 0700 is required" in capsys.readouterr().err
    assert list(archive.iterdir()) == []


def test_push_of_a_file_that_is_gone_fails_and_leaves_nothing(archive: Path) -> None:
    assert archive_wal.main(["push", str(archive), "/nonexistent/" + SEGMENT, SEGMENT]) == 1
    assert list(archive.iterdir()) == []


def test_push_sweeps_what_a_killed_run_left_long_ago_and_no_other_file(archive: Path, segment: Path) -> None:
    old, fresh, foreign = archive / f".{SEGMENT}.old", archive / f".{SEGMENT}.fresh", archive / ".000000010000000000000004.old"
    for path in (old, fresh, foreign):
        path.write_bytes(b"half")
    for path in (old, foreign):
        os.utime(path, (time.time() - 7200, time.time() - 7200))
    archive_wal.push(str(archive), str(segment), SEGMENT)
    assert sorted(path.name for path in archive.iterdir()) == sorted([fresh.name, foreign.name, SEGMENT])


def test_fetch_of_what_is_not_there_fails_below_126(archive: Path, tmp_path: Path) -> None:
    """Above 125 a server that recovers would stop."""
    assert archive_wal.main(["fetch", str(archive), SEGMENT, str(tmp_path / "x")]) == 1
    assert archive_wal.main(["fetch", str(tmp_path / "gone"), SEGMENT, str(tmp_path / "x")]) == 1
    assert archive_wal.main(["fetch", str(archive)]) == 2
