# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the filter slot_name."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.pg_ops.replication.plugins.filter.slot_name import FilterModule, slot_name
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import slot_name_for, validate_slot_name


def test_filters_offer_slot_name() -> None:
    assert FilterModule().filters() == {"slot_name": slot_name}


@pytest.mark.parametrize("host", ["pgsql1", "db-1.example.com", "Ärger", "a b'c\"d\\e%f:g", "192.0.2.1", "x" * 80])
def test_slot_name_is_the_decisions_and_legal(host: str) -> None:
    assert slot_name(host) == slot_name_for(host)
    validate_slot_name(slot_name(host))


def test_slot_name_of_nothing_is_a_filter_error() -> None:
    with pytest.raises(AnsibleFilterError, match="the host has no name"):
        slot_name("")
