# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the filter hba_rules."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.filter.hba_rules import address_of, hba_rules, user_token


@pytest.mark.parametrize(
    ("host", "expected"),
    [("192.0.2.11", "192.0.2.11/32"), ("2001:db8::1", "2001:db8::1/128"), ("db2.example.org", "db2.example.org"), ("1.db", "1.db")],
)
def test_address_of_gives_an_ip_address_the_mask_of_one_host(host: str, expected: str) -> None:
    assert address_of(host) == expected


def test_hba_rules_admits_each_role_from_each_address() -> None:
    roles = [{"databases": "replication", "users": "a"}, {"databases": "postgres", "users": "b"}]
    found = hba_rules(roles, ["192.0.2.1", "db2"], "hostssl")
    assert [(rule["contype"], rule["users"], rule["address"]) for rule in found] == [
        ("hostssl", "a", "192.0.2.1/32"), ("hostssl", "b", "192.0.2.1/32"), ("hostssl", "a", "db2"), ("hostssl", "b", "db2"),
    ]  # fmt: skip
    assert roles[0] == {"databases": "replication", "users": "a"}


def test_hba_rules_without_addresses_are_none() -> None:
    assert hba_rules([{"users": "a"}], []) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("replicator", "replicator"), ("a b", 'a" "b'), ("a  #b c", 'a"  #"b" "c'), ("strea:mer's", "strea:mer's"), ("a ", 'a" "'), ("Re\\er", "Re\\er")],
)
def test_user_token_quotes_what_ends_a_name_in_the_file(name: str, expected: str) -> None:
    assert user_token(name) == expected
    assert hba_rules([{"users": name}], ["db2"])[0]["users"] == expected
