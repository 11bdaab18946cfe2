# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the filter set_conf, with the places that a copied configuration must not keep."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.pg_ops.replication.plugins.filter.set_conf import FilterModule, set_conf

OWN = {"data_directory": "/srv/b", "external_pid_file": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("data_directory = '/srv/a'\t# use data in\n", "data_directory = '/srv/b'\t# use data in\n", id="quoted, with a comment"),
        pytest.param("#data_directory = 'ConfigDir'\nport=1\n", "#data_directory = 'ConfigDir'\nport=1\ndata_directory = '/srv/b'\n", id="commented"),
        pytest.param("data_directory '/srv/b'\nData_Directory='/srv/a'\nport=1\n", "Data_Directory='/srv/b'\nport=1\n", id="several, the last wins"),
        pytest.param("data_directory = '/srv/b'\n", "data_directory = '/srv/b'\n", id="the same already"),
        pytest.param("external_pid_file = '/run/a.pid'\ndata_directory = '/srv/b'\n", "data_directory = '/srv/b'\n", id="what this host has none of"),
        pytest.param("", "data_directory = '/srv/b'\n", id="empty"),
    ],
)
def test_set_conf_keeps_the_rest_of_the_file(text: str, expected: str) -> None:
    assert set_conf(text, OWN) == expected
    assert set_conf(expected, OWN) == expected


def test_set_conf_without_values_takes_names_out() -> None:
    assert set_conf("hba_file = '/srv/a/pg_hba.conf'\nwork_mem = 5MB\n", {"hba_file": None, "data_directory": None}) == "work_mem = 5MB\n"


def test_set_conf_of_a_file_that_cannot_be_read_does_not_show_it() -> None:
    with pytest.raises(AnsibleFilterError, match="line 2 of the configuration file") as refusal:
        set_conf("port = 1\nhunter2 = = 2\n", OWN)
    assert "hunter2" not in str(refusal.value)


def test_filter_is_offered() -> None:
    assert FilterModule().filters() == {"set_conf": set_conf}
