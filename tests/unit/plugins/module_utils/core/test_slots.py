# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of slot names."""

from __future__ import annotations

import random
import re

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import SlotNameError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import application_name_for, slot_name_for, validate_slot_name

LONGEST = "a" * 63


@pytest.mark.parametrize("host", ["pgsql2", "db_1", "_", "0", LONGEST, "db_deadbeef"])
def test_slot_name_for_legal_host_is_the_host(host: str) -> None:
    assert slot_name_for(host) == host


@pytest.mark.parametrize(
    ("host", "pattern"),
    [
        pytest.param("db-1", r"db_1__[0-9a-f]{10}", id="hyphen"),
        pytest.param("db1.example.com", r"db1_example_com__[0-9a-f]{10}", id="domain"),
        pytest.param("DB1", r"db1__[0-9a-f]{10}", id="upper-case"),
        pytest.param("10.0.0.1", r"10_0_0_1__[0-9a-f]{10}", id="ipv4"),
        pytest.param("fe80::1%eth0", r"fe80_1_eth0__[0-9a-f]{10}", id="ipv6"),
        pytest.param("bücher", r"b_cher__[0-9a-f]{10}", id="non-ascii"),
        pytest.param("數據", r"host__[0-9a-f]{10}", id="nothing-legal"),
        pytest.param("a" * 64, r"a{51}__[0-9a-f]{10}", id="one-too-long"),
    ],
)
def test_slot_name_for_illegal_host_is_readable_and_hashed(host: str, pattern: str) -> None:
    name = slot_name_for(host)

    assert re.fullmatch(pattern, name)
    validate_slot_name(name)


def test_slot_name_for_hyphen_is_stable_between_versions() -> None:
    assert slot_name_for("db-1") == "db_1__68150cfc45"


def test_slot_name_for_similar_hosts_never_collides() -> None:
    rng = random.Random(3)
    hosts = {"".join(rng.choices("aA1-._é", k=rng.randint(1, 70))) for dummy in range(2000)}
    hosts |= {"db-1", "db.1", "db_1", "DB-1", "db--1", "a" * 64, "a" * 65}
    # A host named like the slot of another must not get that slot.
    hosts |= {slot_name_for(host) for host in hosts}
    names = {slot_name_for(host) for host in hosts}

    assert len(names) == len(hosts)
    for name in names:
        validate_slot_name(name)


def test_slot_name_for_empty_host_raises() -> None:
    with pytest.raises(SlotNameError):
        slot_name_for("")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("a" * 64, id="too-long"),
        pytest.param("A", id="upper-case"),
        pytest.param("a-b", id="hyphen"),
        pytest.param("a\n", id="line-feed"),
        pytest.param("é", id="non-ascii"),
        pytest.param("\u0661", id="non-ascii-digit"),
    ],
)
def test_validate_slot_name_illegal_raises(name: str) -> None:
    with pytest.raises(SlotNameError) as caught:
        validate_slot_name(name)
    assert (caught.value.reason, caught.value.observed) == ("bad_slot_name", name)


@pytest.mark.parametrize("name", ["a", "_", "0", "pgsql_2", LONGEST])
def test_validate_slot_name_legal_passes(name: str) -> None:
    validate_slot_name(name)


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        pytest.param("pgsql1", True, id="plain"),
        pytest.param("it's a \"host\" \\ %s", True, id="odd but printable ASCII"),
        pytest.param("h" * 63, True, id="longest"),
        pytest.param("h" * 64, False, id="too long"),
        pytest.param("müller", False, id="not ASCII"),
        pytest.param("tab\there", False, id="not printable"),
    ],
)
def test_application_name_for_host_is_its_name_where_the_server_keeps_that(host: str, kept: bool) -> None:
    assert application_name_for(host) == (host if kept else slot_name_for(host))
