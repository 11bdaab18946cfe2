# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a new copy is made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.copy_source import AUTO, PRIMARY, REPOSITORY, choose_source
from ansible_collections.pg_ops.replication.plugins.module_utils.core.restore import Backup

MB = 1024**2
# 100 MB of databases that take 30 MB in the repository; it ended at 0/5000000, on timeline 2.
BACKUP = Backup("20261121-185729F", "full", 1, 2, "0/4000028", "0/5000000", 100 * MB, 30 * MB, 2)
OLDER = replace(BACKUP, label="20261120-185729F", stop=1, timeline=1, repository_bytes=MB)
HERE: dict[str, Any] = {"database_bytes": 100 * MB, "current_lsn": "0/6000000", "timeline": 2, "has_tablespaces": False}


@pytest.mark.parametrize(
    ("wish", "backups", "here", "source", "why"),
    [
        pytest.param(PRIMARY, [BACKUP], {}, PRIMARY, "asked for", id="primary"),
        pytest.param(REPOSITORY, [BACKUP], {}, REPOSITORY, "asked for", id="repository"),
        pytest.param(REPOSITORY, [], {}, PRIMARY, "no backup", id="repository without a backup"),
        pytest.param(REPOSITORY, [BACKUP], {"timeline": 3, "current_lsn": "9/0"}, REPOSITORY, "asked for", id="repository, though it is the longer way"),
        pytest.param(AUTO, [], {}, PRIMARY, "no backup", id="no backup"),
        pytest.param(AUTO, [BACKUP], {}, REPOSITORY, "takes 30M and the WAL since then 16M, the databases take 100M", id="shorter"),
        pytest.param(AUTO, [OLDER, BACKUP], {}, REPOSITORY, "30M", id="the newest backup counts"),
        pytest.param(AUTO, [BACKUP], {"current_lsn": "0/9600000"}, PRIMARY, "70M, the databases take 100M", id="as long"),
        pytest.param(AUTO, [BACKUP], {"current_lsn": "1/0"}, PRIMARY, "the WAL since then 3.9G", id="much WAL since"),
        pytest.param(AUTO, [BACKUP], {"current_lsn": "0/45000000", "database_bytes": 9000 * MB}, REPOSITORY, "1.0G", id="no more WAL than is soon replayed"),
        pytest.param(AUTO, [BACKUP], {"current_lsn": "0/45000001", "database_bytes": 9000 * MB}, PRIMARY, "1.0G", id="a byte more"),
        pytest.param(AUTO, [BACKUP], {"current_lsn": "0/4000000"}, REPOSITORY, "the WAL since then 0", id="asked just before the backup's end"),
        pytest.param(AUTO, [BACKUP], {"has_tablespaces": True}, PRIMARY, "tablespaces", id="tablespaces"),
        pytest.param(AUTO, [BACKUP], {"timeline": 3}, PRIMARY, "timeline 2, and it is on 3", id="a role change since"),
        pytest.param(AUTO, [replace(BACKUP, timeline=0)], {}, PRIMARY, "timeline unknown", id="timeline not told"),
        pytest.param(AUTO, [replace(BACKUP, repository_bytes=0)], {}, PRIMARY, "does not say", id="size not told"),
        pytest.param(AUTO, [replace(BACKUP, stop_lsn="")], {}, PRIMARY, "does not say", id="position not told"),
    ],
)
def test_choose_source(wish: str, backups: list[Backup], here: dict[str, Any], source: str, why: str) -> None:
    found = choose_source(wish, backups, **{**HERE, **here})
    assert found.name == source and why in found.why, found
