# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a module runs: options in, one plan, one result, and refusals as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.argspec import server_argument_spec
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError, of_system
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server

Work = Callable[[AnsibleModule, Server], dict[str, Any]]


def run_module(work: Work, **options: dict[str, Any]) -> None:
    """Run a module on a server: `work` returns the result; a PgOpsError becomes a failure with its data."""
    module = AnsibleModule(argument_spec=server_argument_spec(**options), supports_check_mode=True)
    try:
        result = work(module, Server.from_params(module.params))
    except PgOpsError as error:
        result = failure(error)
    except OSError as error:
        result = failure(of_system(error))
    if result.get("failed"):
        module.fail_json(**result)
    module.exit_json(**result)


def failure(error: PgOpsError, **more: Any) -> dict[str, Any]:
    """Return what a module returns for an error, with what else it knows."""
    return {"failed": True, "msg": _with_hint(error), **error.as_result(), **more}


def _with_hint(error: PgOpsError) -> str:
    if error.hint and error.hint not in error.message:
        return "{0} {1}".format(error.message.rstrip(".") + ".", error.hint)
    return error.message


def text_diff(name: str, before: str, after: str) -> dict[str, str]:
    """Return Ansible's diff of a file or of a server's state as text."""
    return {"before_header": name, "after_header": name, "before": before, "after": after}


def mapping_diff(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Return Ansible's diff of facts, one a line."""

    def lines(values: Mapping[str, Any]) -> str:
        return "".join("{0}: {1}\n".format(key, values[key]) for key in sorted(values))

    return text_diff(name, lines(before), lines(after))
