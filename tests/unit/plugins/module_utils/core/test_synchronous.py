# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of synchronous_standby_names: written, read back, and what a primary's should be."""

from __future__ import annotations

from typing import Optional

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import (
    ASYNCHRONOUS,
    NOBODY,
    SynchronousSet,
    format_set,
    needed_in_sight,
    parse_set,
    wanted_set,
)

SETS = [
    pytest.param(SynchronousSet("first", 1, ("a",)), 'FIRST 1 ("a")', id="one"),
    pytest.param(SynchronousSet("any", 2, ("a", "b", "c")), 'ANY 2 ("a", "b", "c")', id="any"),
    pytest.param(SynchronousSet("first", 1, ('odd "name"', "db-1.example", "*")), 'FIRST 1 ("odd ""name""", "db-1.example", "*")', id="quoted"),
    pytest.param(ASYNCHRONOUS, "", id="asynchronous"),
]


@pytest.mark.parametrize(("found", "text"), SETS)
def test_format_set_and_parse_set_are_each_other_s_inverse(found: SynchronousSet, text: str) -> None:
    assert format_set(found) == text
    assert parse_set(text) == found


def test_format_set_without_a_name_makes_commits_wait() -> None:
    assert format_set(SynchronousSet("any", 1, ())) == f'ANY 1 ("{NOBODY}")'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("a", SynchronousSet("first", 1, ("a",)), id="one_bare"),
        pytest.param(" a , b ", SynchronousSet("first", 1, ("a", "b")), id="list"),
        pytest.param("*", SynchronousSet("first", 1, ("*",)), id="star"),
        pytest.param("2 (a, b)", SynchronousSet("first", 2, ("a", "b")), id="number"),
        pytest.param("any 1 (A, \"B\")", SynchronousSet("any", 1, ("A", "B")), id="lower_case"),
        pytest.param("first", SynchronousSet("first", 1, ("first",)), id="a_standby_called_first"),
        pytest.param("first, any", SynchronousSet("first", 1, ("first", "any")), id="keywords_as_names"),
        pytest.param("FIRST 1 (", None, id="open"),
        pytest.param("a b", None, id="no_comma"),
        pytest.param("a,", None, id="trailing_comma"),
        pytest.param("a; b", None, id="odd_sign"),
        pytest.param('"a', None, id="open_quote"),
    ],
)
def test_parse_set_of_what_people_write(text: str, expected: Optional[SynchronousSet]) -> None:
    assert parse_set(text) == expected


@pytest.mark.parametrize(("name", "expected"), [("a", True), ("A", True), ("b", False)])
def test_has_compares_without_regard_to_case(name: str, expected: bool) -> None:
    assert SynchronousSet("first", 1, ("a",)).has(name) is expected
    assert SynchronousSet("first", 1, ("*",)).has(name)


@pytest.mark.parametrize(
    ("num", "degrade", "here", "asked"),
    [
        (1, "wait", ("a", "b"), 1),
        (1, "wait", (), 1),
        (2, "wait", ("a",), 2),
        (1, "async", ("a", "b"), 1),
        (2, "async", ("a", "b"), 2),
        (2, "async", ("a",), 1),
        (2, "async", ("stranger",), 0),
        (1, "async", (), 0),
    ],
)
def test_wanted_set_asks_for_less_only_when_it_may(num: int, degrade: str, here: tuple[str, ...], asked: int) -> None:
    found = wanted_set("any", num, degrade, ("a", "b"), here)
    assert found == (SynchronousSet("any", asked, ("a", "b")) if asked else ASYNCHRONOUS)


@pytest.mark.parametrize(("num", "size", "needed"), [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 2, 1), (2, 3, 2), (2, 4, 3), (3, 2, 1)])
def test_needed_in_sight_overlaps_with_every_confirmation(num: int, size: int, needed: int) -> None:
    assert needed_in_sight(num, size) == needed
