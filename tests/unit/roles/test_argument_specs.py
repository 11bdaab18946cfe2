# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""meta/argument_specs.yml of every role against its defaults and against the variables that its tasks use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

CHECKOUT = Path(__file__).resolve().parents[3]
ROLES = sorted(path.name for path in (CHECKOUT / "roles").iterdir() if path.is_dir())
SECRETS = {"pg_replication_password", "pg_rewind_password", "pg_tls_ca_passphrase", "pg_monitoring_receivers"}
MAGIC = {"inventory_dir": "/inventory", "__pg_observed": {"paths": {"version": "15"}}}  # what Ansible and an earlier task set
OURS = re.compile(r"^(pg|lxd)_")
# Keys of a task whose value is an expression without braces.
BARE = {"when", "that", "until", "failed_when", "changed_when"}
CONVERTED = {"int": int, "float": (int, float), "bool": bool, "str": str, "path": str, "list": list, "dict": dict, "raw": object}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def defaults_of(role: str) -> dict[str, Any]:
    return load(CHECKOUT / "roles" / role / "defaults" / "main.yml") or {}


@cache
def entry_points(role: str) -> dict[str, Any]:
    return load(CHECKOUT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]


def options_of(role: str) -> dict[str, Any]:
    """Return the options of the role's entry points, all in one."""
    return {name: option for entry in entry_points(role).values() for name, option in entry["options"].items()}


@cache
def all_defaults() -> dict[str, Any]:
    return {name: value for role in ROLES for name, value in defaults_of(role).items()}


def is_template(value: Any) -> bool:
    return isinstance(value, str) and "{{" in value


def expressions(value: Any, *, bare: bool = False) -> Iterator[str]:
    """Return the templates in a task or variable file; a bare expression gets its braces."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from expressions(inner, bare=key in BARE)
    elif isinstance(value, list):
        for inner in value:
            yield from expressions(inner, bare=bare)
    elif isinstance(value, str):
        yield "{{ " + value + " }}" if bare and "{{" not in value else value


class AnyName(dict[str, Any]):
    """Filters or tests by name: there is one for every name, for only the variables beside them matter."""

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(key, bool)


def variables_in(template: str) -> set[str]:
    environment = jinja2.Environment()
    environment.filters, environment.tests = AnyName(), AnyName()
    found = jinja2.meta.find_undeclared_variables(environment.parse(template))
    return {name for name in found if OURS.match(name)}


def used_variables(role: str) -> set[str]:
    """Return the pg_ and lxd_ variables in the role's tasks, handlers, templates, variables and defaults."""
    found: set[str] = set()
    for path in (CHECKOUT / "roles" / role).rglob("*"):
        if path.suffix == ".j2":
            found |= variables_in(path.read_text(encoding="utf-8"))
        elif path.suffix == ".yml" and path.parent.name in ("tasks", "handlers", "vars", "defaults"):
            for template in expressions(load(path)):
                found |= variables_in(template)
    return found


def variables_of_inventory_plugin() -> set[str]:
    """Return the variables that the inventory plugin lxd documents as its own."""
    text = (CHECKOUT / "plugins" / "inventory" / "lxd.py").read_text(encoding="utf-8").partition("EXAMPLES =")[0]
    return set(re.findall(r"C\((lxd_\w+)\)", text))


def test_every_role_has_a_specification_of_main() -> None:
    assert [role for role in ROLES if "main" not in entry_points(role)] == []


@pytest.mark.parametrize("role", ROLES)
def test_default_in_file_is_default_in_specification(role: str) -> None:
    for entry in entry_points(role).values():
        documented = {name: option["default"] for name, option in entry["options"].items() if "default" in option}
        assert documented == defaults_of(role)
        assert {name: type(value) for name, value in documented.items()} == {name: type(value) for name, value in defaults_of(role).items()}


@pytest.mark.parametrize("role", ROLES)
def test_option_without_default_is_a_secret_or_another_roles(role: str) -> None:
    without = {name for name, option in options_of(role).items() if "default" not in option}
    assert without - SECRETS - set(all_defaults()) == set()


@pytest.mark.parametrize("role", ROLES)
def test_variable_in_role_is_documented_there_or_in_common(role: str) -> None:
    assert used_variables(role) - set(options_of(role)) - set(options_of("common")) - variables_of_inventory_plugin() == set()


@pytest.mark.parametrize("role", ROLES)
def test_option_is_used_somewhere(role: str) -> None:
    used = used_variables(role)
    plugins = "".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "plugins").rglob("*.py"))
    unused = {name for name in options_of(role) if name not in used and f'"{name}"' not in plugins}
    others = {name for other in ROLES for name in used_variables(other)} if role == "common" else set()
    assert unused - others == set()


@pytest.mark.parametrize("role", ROLES)
def test_option_has_type_and_description_and_secrets_are_not_logged(role: str) -> None:
    for name, option in options_of(role).items():
        assert option["type"] in CONVERTED, name
        assert option["description"], name
        assert bool(option.get("no_log")) == (name in SECRETS), name


@pytest.mark.parametrize("role", ROLES)
def test_default_has_the_type_that_it_is_documented_with(role: str) -> None:
    for name, option in options_of(role).items():
        if "default" in option and not is_template(option["default"]):
            assert isinstance(option["default"], CONVERTED[option["type"]]), name


@pytest.mark.parametrize("name", sorted(name for role in ROLES for name in options_of(role) if name.endswith(("_seconds", "_bytes"))))
def test_description_of_time_and_size_names_the_unit(name: str) -> None:
    option = next(options_of(role)[name] for role in ROLES if name in options_of(role))
    unit = "seconds" if name.endswith("_seconds") else "bytes"
    if not name.startswith("lxd_"):
        assert unit in str(option["description"])


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("given", [{}, {"pg_version": 17, "pg_port": "5433", "pg_priority": "0", "pg_host_available": "false", "pg_status_fail": "no"}])
def test_templated_defaults_and_texts_for_numbers_validate(role: str, given: dict[str, Any]) -> None:
    variables = {name: deep_trust(value) for name, value in {**all_defaults(), **MAGIC, **given}.items()}
    templar = Templar(loader=DataLoader(), variables=variables)
    for entry in entry_points(role).values():
        arguments = {name: templar.template(variables[name]) for name in entry["options"] if name in variables}
        result = ArgumentSpecValidator({name: without_text(option) for name, option in entry["options"].items()}).validate(arguments)
        assert result.error_messages == []


def deep_trust(value: Any) -> Any:
    """Return the value as a variable file gives it to Ansible: its texts are templates."""
    if isinstance(value, dict):
        return {key: deep_trust(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [deep_trust(inner) for inner in value]
    return trust_as_template(value) if isinstance(value, str) else value


def without_text(option: dict[str, Any]) -> dict[str, Any]:
    """Return an option as the validator takes it, without description."""
    kept = {key: value for key, value in option.items() if key not in ("description", "default", "options")}
    if "options" in option:
        kept["options"] = {name: without_text(inner) for name, inner in option["options"].items()}
    return kept


@pytest.mark.parametrize(
    ("role", "name", "wrong"),
    [("common", "pg_initial_role", "master"), ("common", "pg_failover_unfenced", "yes"), ("common", "pg_port", "postgres"),
     ("common", "pg_service_manager", "upstart"), ("verify", "pg_verify_timeout_seconds", "soon")],
)  # fmt: skip
def test_wrong_value_is_refused(role: str, name: str, wrong: str) -> None:
    result = ArgumentSpecValidator({name: without_text(options_of(role)[name])}).validate({name: wrong})
    assert name in " ".join(result.error_messages)


def test_inventories_set_only_documented_variables() -> None:
    documented = {name for role in ROLES for name in options_of(role)}
    example = load(CHECKOUT / "inventories" / "example" / "hosts.yml")["pg_nodes"]
    named = set(example["vars"]).union(*example["hosts"].values())
    for path in (CHECKOUT / "inventories").glob("*/group_vars/pg_nodes/vars.yml"):
        named |= set(load(path))
    for path in (CHECKOUT / "scripts" / "local_clusters.py", CHECKOUT / "plugins" / "inventory" / "lxd.py"):
        named |= set(re.findall(r'^ +"(pg_\w+)":', path.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for name in named if name.startswith("pg_")} - documented - {"pg_nodes"} == set()
