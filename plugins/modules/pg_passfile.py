#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_passfile."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_passfile
short_description: The passfile with which a server reaches its peers
version_added: 0.1.0
description:
  - Writes a libpq passfile of mode 0600 that belongs to the server's account. Passwords are in no other place on the host.
  - Neither the diff nor any output holds a password; a changed password shows as a changed fingerprint of the file.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  peers:
    description: Every server of the cluster.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Inventory name, for people only.
        type: str
        default: ""
      address:
        description: Address as it stands in connection strings.
        type: str
        required: true
      port:
        description: Port.
        type: int
        default: 5432
  next:
    description:
      - Write it beside the passfile, because the roles are about to get these passwords. The boot guard takes it where the passfile's do not serve.
      - One that differs and is there from a change that was cut off is kept as well. Both go when the passfile itself is written.
    type: bool
    default: false
    version_added: 0.2.0
  passwords:
    description: The password of each database role that is used at the peers, by the role's name.
    type: dict
    required: true
    version_added: 0.2.0
"""

EXAMPLES = r"""
- name: Keep the passwords for the peers
  pg_ops.replication.pg_passfile:
    peers:
      - address: 192.0.2.11
      - address: 192.0.2.12
    passwords:
      replicator: "{{ pg_replication_password }}"
"""

RETURN = r"""
path:
  description: The passfile.
  returned: success
  type: str
  sample: /var/lib/postgresql/15/main.pg_ops/passfile
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conninfo import PassfileEntry, format_passfile
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, read_verbatim


def wanted_text(params: dict[str, Any]) -> str:
    """Return the passfile's text; raises ConninfoError for a password that no passfile can hold."""
    return format_passfile(
        [
            PassfileEntry(host=peer["address"], port=str(peer["port"]), database="*", user=user, password=str(password))
            for peer in params["peers"]
            for user, password in params["passwords"].items()
        ]
    )


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Write the passfile, or the one that is to follow it, when its text or its mode differs."""
    after = wanted_text(module.params)
    if not module.params["next"]:
        return drop_next(module, server, write(module, server, server.passfile, after))
    # One that an earlier change left stays until the passwords are set: the peers may have those.
    if read_verbatim(server.passfile) == after:
        return {"changed": False, "diff": mapping_diff(str(server.passfile), {}, {}), "path": str(server.passfile)}
    coming = server.coming_passfile
    if not module.check_mode and coming.exists() and read_verbatim(coming) != after:
        number = 1 + sum(path != coming for path in server.next_passfiles())
        coming.replace(coming.with_name("{0}.{1}".format(coming.name, number)))
    return write(module, server, coming, after)


def write(module: AnsibleModule, server: Server, path: Path, after: str) -> dict[str, Any]:
    """Write one file when its text, its mode or its owner differs."""
    present = path.is_file()
    before = read_verbatim(path)
    mode = path.stat().st_mode & 0o777 if present else 0
    account = server.account()
    # libpq reads it as the server's account.
    owned = not present or account is None or path.stat().st_uid == account.pw_uid
    changed = before != after or mode != 0o600 or not owned
    lines = len(after.splitlines())
    found = {
        "entries": len(before.splitlines()), "mode": "{0:04o}".format(mode), "owner": "as wanted" if owned else "other",
        "content": "as wanted" if before == after else "other",
    }
    wanted = {"entries": lines, "mode": "0600", "owner": "as wanted", "content": "as wanted"}
    if changed and not module.check_mode:
        server.ensure_state_directory()
        server.write(path, after, mode=0o600)
    return {"changed": changed, "diff": mapping_diff(str(path), found, wanted), "path": str(path)}


def drop_next(module: AnsibleModule, server: Server, answer: dict[str, Any]) -> dict[str, Any]:
    """Remove what was to follow: the servers have the passwords of the passfile now."""
    left = server.next_passfiles()
    if not module.check_mode:
        for path in left:
            path.unlink()
    return {**answer, "changed": answer["changed"] or bool(left)}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        peers={
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {"name": {"type": "str", "default": ""}, "address": {"type": "str", "required": True}, "port": {"type": "int", "default": 5432}},
        },
        next={"type": "bool", "default": False},
        # An option of its own: of a list Ansible logs the text on the host, and finds no password in it that is escaped there.
        passwords={"type": "dict", "required": True, "no_log": True},
    )


if __name__ == "__main__":
    main()
