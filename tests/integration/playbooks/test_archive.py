# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_archive=directory on real servers: agreed to, written by whoever is primary, read by standbys, watched, ended.

The tests build on each other, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.playbooks.cluster import Cluster, unchanged, wait_for

pytestmark = pytest.mark.chained

NEXT_SEGMENT = "SELECT pg_logical_emit_message(false, 'archive', 'test'); SELECT pg_walfile_name(pg_switch_wal())"


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Cluster:
    return set_up(2)


def archive(cluster: Cluster) -> Path:
    """A path with what a shell, a configuration file and PostgreSQL's own %f make something else of."""
    return cluster.state / "wal 'archive' 100%f"


def archiving(cluster: Cluster, **more: object) -> tuple[str, str]:
    wanted = {"pg_archive": "directory", "pg_archive_directory": str(archive(cluster)), "pg_archive_shared": True}
    return ("-e", json.dumps({**wanted, **more}))


def assert_archives(cluster: Cluster, name: str) -> None:
    segment = cluster.sql(name, NEXT_SEGMENT).splitlines()[-1]
    wait_for((archive(cluster) / segment).exists, f"{segment} of {name} in the archive")
    live = cluster.data(name) / "pg_wal" / segment
    assert not live.exists() or live.read_bytes() == (archive(cluster) / segment).read_bytes()


def test_setup_on_running_servers_refuses_without_consent_to_a_restart(cluster: Cluster) -> None:
    with unchanged(cluster):
        done = cluster.run("initial_setup", *archiving(cluster))
    assert done.returncode == 2
    assert "pgsql1 and pgsql2 must be restarted to archive WAL (observed: archive_mode off; required: on" in done.text
    assert not archive(cluster).exists()


@pytest.mark.parametrize(("directory", "seen"), [("", "pg_archive_directory is ''"), ("wal", "An absolute path"), ("{data}/wal", "outside of")])
def test_setup_refuses_a_directory_that_cannot_be_one(cluster: Cluster, directory: str, seen: str) -> None:
    path = directory.format(data=cluster.data(cluster.primary()))
    with unchanged(cluster):
        done = cluster.run("initial_setup", *archiving(cluster, pg_archive_directory=path, pg_primary_restart=True))
    assert done.returncode == 2 and seen in done.text


@pytest.mark.long
def test_setup_in_check_mode_changes_nothing(cluster: Cluster) -> None:
    with unchanged(cluster):
        cluster.play("initial_setup", *archiving(cluster, pg_primary_restart=True), "--check", "--diff")
    assert not archive(cluster).exists()


def test_setup_with_consent_archives(cluster: Cluster) -> None:
    cluster.play("initial_setup", *archiving(cluster, pg_primary_restart=True))
    assert archive(cluster).stat().st_mode & 0o777 == 0o700
    for name in cluster.names:
        assert cluster.sql(name, "SHOW archive_mode") == "on", "the standby may be primary next"
    assert_archives(cluster, cluster.primary())
    cluster.play("status")


@pytest.mark.long
def test_setup_again_changes_nothing(cluster: Cluster) -> None:
    again = cluster.play("initial_setup", *archiving(cluster))
    assert set(again.changed.values()) == {0}, again.output


def test_switchover_has_the_new_primary_archive_its_timeline(cluster: Cluster) -> None:
    old = cluster.primary()
    cluster.play("switchover")
    assert cluster.primary() != old
    assert_archives(cluster, cluster.primary())
    wait_for((archive(cluster) / "00000002.history").exists, "the history of timeline 2 in the archive")
    cluster.play("switchover")
    assert_archives(cluster, old)
    assert (archive(cluster) / "00000003.history").exists()
    cluster.assert_replicating(old)
    assert cluster.sql(old, "SELECT failed_count FROM pg_stat_archiver") == "0", "a file was sent twice, with other content"


def test_setup_does_not_make_an_archive_anew_that_was_there(cluster: Cluster) -> None:
    """Its file system is not mounted: what is archived in its place would be hidden once it is."""
    archive(cluster).rename(archive(cluster).with_name("unmounted"))
    with unchanged(cluster):
        done = cluster.run("initial_setup", *archiving(cluster))
    assert done.returncode == 2 and "is gone (observed: no such directory" in done.text
    assert not archive(cluster).exists()
    archive(cluster).with_name("unmounted").rename(archive(cluster))
    assert_archives(cluster, cluster.primary())


@pytest.mark.long
def test_archive_that_fails_degrades_status_and_is_mended_by_setup(cluster: Cluster) -> None:
    primary = cluster.primary()
    archive(cluster).chmod(0o755)
    segment = cluster.sql(primary, NEXT_SEGMENT).splitlines()[-1]
    wait_for(lambda: cluster.sql(primary, "SELECT failed_count > 0 FROM pg_stat_archiver") == "t", "the archiver to fail")
    done = cluster.run("status")
    assert done.returncode == 2
    assert f"! {primary}: does not archive its WAL (observed: archive_command fails for {segment}" in done.text
    assert "has mode 0755, and 0700 is required" in (cluster.place(primary) / "postgresql.log").read_text(encoding="utf-8")
    assert not (archive(cluster) / segment).exists()
    cluster.play("verify")  # replication is well
    cluster.play("initial_setup", *archiving(cluster))
    assert_archives(cluster, primary)  # which wakes the archiver; by itself it tries again after a minute
    assert (archive(cluster) / segment).exists()
    cluster.play("status")


def leave_behind(cluster: Cluster) -> str:
    """Stop the standby and have the primary archive and recycle the WAL that it needs; returns the first segment of it."""
    primary, standby = cluster.primary(), cluster.standby()
    cluster.pg_ctl(standby, "stop", "-m", "fast")
    cluster.sql(primary, f"SELECT pg_drop_replication_slot('{standby}')")
    needed = cluster.sql(primary, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    for _each in range(4):
        last = cluster.sql(primary, NEXT_SEGMENT).splitlines()[-1]
    wait_for((archive(cluster) / last).exists, f"{last} in the archive")

    def is_gone() -> bool:
        # A segment that the archiver has missed, one of an older timeline for example, is archived after one checkpoint and removed by the next.
        cluster.sql(primary, "CHECKPOINT")
        return cluster.sql(primary, f"SELECT min(substr(name, 9)) > '{needed[8:]}' FROM pg_ls_waldir() WHERE length(name) = 24") == "t"

    wait_for(is_gone, "the primary to recycle the WAL that the standby needs")
    return needed


def test_standby_whose_wal_is_gone_from_the_primary_gets_it_from_the_archive(cluster: Cluster) -> None:
    primary, standby = cluster.primary(), cluster.standby()
    leave_behind(cluster)
    directory, gone = cluster.data(standby), f"the WAL that it needs is no longer on {primary}"
    inode = directory.stat().st_ino
    with unchanged(cluster):
        checked = cluster.play("start_new_standby", "--check")
    done = cluster.play("start_new_standby")
    for text in (checked.text, done.text):
        assert f"{standby}: reclone, because {gone}, unless its restore_command fetches that WAL" in text
        assert f"{standby}: start, because {gone}, but its archive has it" in text
    assert directory.stat().st_ino == inode and not list(directory.parent.glob(f"{directory.name}.kept.*"))
    cluster.assert_replicating(primary)


def test_standby_whose_wal_the_archive_lacks_is_copied_anew(cluster: Cluster) -> None:
    primary, standby = cluster.primary(), cluster.standby()
    needed = leave_behind(cluster)
    (archive(cluster) / needed).unlink()
    done = cluster.play("start_new_standby")
    gone = f"the WAL that it needs is no longer on {primary}"
    assert f"{standby}: reclone, because {gone}, nor does its restore_command fetch it ({needed}: exit status 1)" in done.text
    assert list(cluster.data(standby).parent.glob("data.kept.*"))
    cluster.assert_replicating(primary)


def test_setup_with_archiving_off_refuses_to_leave_the_server_without_a_command(cluster: Cluster) -> None:
    with unchanged(cluster):
        done = cluster.run("initial_setup")
    assert done.returncode == 2 and "without a restart it would keep all its WAL" in done.text


@pytest.mark.long
def test_setup_with_archiving_off_and_consent_ends_it_and_keeps_the_archive(cluster: Cluster) -> None:
    """The boot guard is switched off in the same run."""
    unwanted = {"pg_archive": False, "pg_primary_restart": True, "pg_boot_guard": False}
    kept = sorted(path.name for path in archive(cluster).iterdir())
    cluster.play("initial_setup", "-e", json.dumps(unwanted))
    for name in cluster.names:
        assert cluster.sql(name, "SELECT setting FROM pg_settings WHERE name IN ('archive_mode', 'archive_command') ORDER BY 1") in ("(disabled)\noff", "\noff")
        assert not (cluster.own_state(name) / "boot_guard").exists()
    assert {path.name for path in archive(cluster).iterdir()} >= set(kept)


@pytest.mark.long
def test_setup_with_archiving_off_again_changes_nothing(cluster: Cluster) -> None:
    unwanted = {"pg_archive": False, "pg_boot_guard": False}
    again = cluster.play("initial_setup", "-e", json.dumps(unwanted))
    assert set(again.changed.values()) == {0}, again.output
