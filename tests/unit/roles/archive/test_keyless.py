# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The repository's host is told of all nodes of the cluster, or of none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).resolve().parents[4] / "roles"
KEY = {"__pg_archive_identity": {"public_key": "ssh-ed25519 AAAA"}}
REPOSITORY = {"pg_archive": "pgbackrest"}


def templar_of(first: dict[str, Any], second: dict[str, Any]) -> Templar:
    loader = DataLoader()
    own = loader.load_from_file(str(ROLES / "archive" / "vars" / "main.yml"), trusted_as_template=True)
    members = {"members": [{"name": "pg1"}, {"name": "pg2"}]}
    return Templar(loader=loader, variables={**own, "__pg_setup": members, "hostvars": {"pg1": first, "pg2": second}})


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        pytest.param({**REPOSITORY, **KEY}, [], id="has-its-key"),
        pytest.param(REPOSITORY, ["pg2"], id="failed-before-or-tag-skipped"),
        pytest.param({**REPOSITORY, "__pg_archive_identity": {"failed": True}}, ["pg2"], id="failed-at-its-key"),
        pytest.param({"pg_archive": False}, [], id="does-not-archive"),
        pytest.param({}, [], id="says-nothing"),
    ],
)
def test_node_without_key_is_known(second: dict[str, Any], expected: list[str]) -> None:
    templar = templar_of({**REPOSITORY, **KEY}, second)
    assert templar.template(trust_as_template("{{ __pg_archive_keyless }}")) == expected


@pytest.mark.parametrize("role", ["archive", "backup"])
def test_nothing_is_written_on_the_repositorys_host_before_that_is_asked(role: str) -> None:
    first = yaml.safe_load((ROLES / role / "tasks" / "repository.yml").read_text(encoding="utf-8"))[0]
    assert first["ansible.builtin.assert"]["that"] == "__pg_archive_keyless | length == 0"
    assert first["when"] == "not ansible_check_mode"
