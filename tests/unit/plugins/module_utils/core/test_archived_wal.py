# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of which segments an archive is asked for, and by what command."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.archived_wal import (
    MOST_ASKED,
    asked_files,
    missing_segments,
    shell_command,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import Node
from ansible_collections.pg_ops.replication.tests.unit.plugins.module_utils.core.builders import HISTORIES, MIB, member

IN_A_SEGMENT = "1\t0/5000100\tone\n"
TWICE_IN_A_SEGMENT = "1\t0/5000100\tone\n\n2\t0/5000200\ttwo\n"
# Recovered to a point before the fork of timeline 2, and promoted.
BACK_IN_TIME = "1\t0/5000000\tone\n\n2\t0/3000100\ttwo\n"

MISSING = [
    pytest.param(1, "", "0/2000000", "0/3000000", ["1-2"], id="one"),
    pytest.param(1, "", "0/2FFFFFF", "0/5000000", ["1-2", "1-3", "1-4"], id="from its last byte"),
    pytest.param(1, "", "0/2000000", "0/2000000", [], id="none"),
    pytest.param(1, "", "0/FF000000", "1/1000000", ["1-FF", "1-100"], id="into the next file number"),
    pytest.param(2, HISTORIES[2], "0/4000000", "0/6000000", ["1-4", "2-5"], id="a fork where a segment begins"),
    pytest.param(2, IN_A_SEGMENT, "0/4000000", "0/7000000", ["1-4", "2-5", "2-6"], id="a fork within a segment"),
    pytest.param(2, IN_A_SEGMENT, "0/5000000", "0/6000000", ["2-5"], id="its end and the fork in one segment"),
    pytest.param(3, HISTORIES[3], "0/4000000", "0/8000000", ["1-4", "2-5", "2-6", "3-7"], id="two forks"),
    pytest.param(3, TWICE_IN_A_SEGMENT, "0/4000000", "0/7000000", ["1-4", "3-5", "3-6"], id="two forks within a segment"),
    pytest.param(3, BACK_IN_TIME, "0/2000000", "0/6000000", ["1-2", "3-3", "3-4", "3-5"], id="a fork before an older one"),
]


@pytest.mark.parametrize(("timeline", "history", "first", "oldest", "wanted"), MISSING)
def test_missing_segments_are_those_that_recovery_asks_for(timeline: int, history: str, first: str, oldest: str, wanted: list[str]) -> None:
    primary = Node(member("pg2"), timeline=timeline, timeline_history=history, oldest_wal_lsn=oldest)
    names = missing_segments(primary, first, segment_bytes=16 * MIB)
    numbers = [(int(name[:8], 16), int(name[8:16], 16) * 256 + int(name[16:], 16)) for name in names]
    assert [f"{line:X}-{number:X}" for line, number in numbers] == wanted


def test_missing_segments_of_another_size() -> None:
    primary = Node(member("pg2"), timeline=1, oldest_wal_lsn="0/400000")
    assert missing_segments(primary, "0/2FFFFF", segment_bytes=MIB) == ("000000010000000000000002", "000000010000000000000003")


@pytest.mark.parametrize(("many", "wanted"), [(0, []), (1, [0]), (8, list(range(8))), (9, [0, 1, 2, 3, 4, 5, 6, 8]), (701, list(range(0, 701, 100)))])
def test_asked_files_are_all_segments_or_some_with_both_ends(many: int, wanted: list[int]) -> None:
    asked = asked_files(tuple(map(str, range(many))), own_timeline=2, timeline=2)
    assert asked == tuple(map(str, wanted))
    assert len(asked) <= MOST_ASKED


def test_asked_files_begin_with_the_history_of_a_newer_timeline() -> None:
    assert asked_files(("a", "b"), own_timeline=1, timeline=26) == ("0000001A.history", "a", "b")


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        pytest.param('cp "/wal/%f" "%p"', 'cp "/wal/NAME" "../a b/RECOVERYXLOG"', id="usual"),
        pytest.param("get %f %f %p %r", "get NAME NAME ../a b/RECOVERYXLOG 000000000000000000000000", id="twice, restart point"),
        pytest.param("get '/100%%f/%f' %%%p", "get '/100%f/NAME' %../a b/RECOVERYXLOG", id="percent signs"),
        pytest.param("get %x %", "get %x %", id="no placeholders"),
    ],
)
def test_shell_command_replaces_what_postgresql_replaces(command: str, wanted: str) -> None:
    assert shell_command(command, segment="NAME", path="../a b/RECOVERYXLOG") == wanted
