#!/usr/bin/python
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Module pg_cluster_init."""

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_cluster_init
short_description: Make a new, empty PostgreSQL server with data checksums and SCRAM
version_added: 0.1.0
description:
  - Makes the server with C(pg_createcluster) where Debian keeps the configuration in C(/etc/postgresql), otherwise with C(initdb).
  - A data directory that exists is left alone, one that a killed run left unfinished is set aside. The server is not started.
author: pg_ops.replication contributors (@pg-ops)
extends_documentation_fragment:
  - pg_ops.replication.server
  - pg_ops.replication.attributes
options:
  config_only:
    description: Make only the configuration directory that Debian needs for a standby, whose data comes from its primary.
    type: bool
    default: false
  encoding:
    description: Encoding of the databases.
    type: str
    default: UTF8
  locale:
    description: Locale of the databases.
    type: str
    default: C.UTF-8
"""

EXAMPLES = r"""
- name: Make the primary's server
  pg_ops.replication.pg_cluster_init:
    encoding: UTF8
    locale: C.UTF-8
"""

RETURN = r"""
data_directory:
  description: The data directory.
  returned: success
  type: str
  sample: /var/lib/postgresql/15/main
places:
  description: The settings that name this server's own files; null where it has none. A configuration that is copied from another server must have these.
  returned: success
  type: dict
  sample:
    data_directory: /var/lib/postgresql/15/main
    hba_file: /etc/postgresql/15/main/pg_hba.conf
    ident_file: /etc/postgresql/15/main/pg_ident.conf
    external_pid_file: /var/run/postgresql/15-main.pid
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pg_ops.replication.plugins.module_utils.initialising import (
    has_configuration,
    is_interrupted,
    make_configuration,
    make_server,
    own_places,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.running import mapping_diff, run_module
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server


def work(module: AnsibleModule, server: Server) -> dict[str, Any]:
    """Make the server, or just its configuration, unless it is there."""
    config_only = module.params["config_only"]
    present = has_configuration(server) if config_only else server.exists() and not is_interrupted(server)
    diff = mapping_diff(server.data_directory, {"exists": present}, {"exists": True})
    if not present and not module.check_mode:
        make = make_configuration if config_only else make_server
        make(server, encoding=module.params["encoding"], locale=module.params["locale"])
    return {"changed": not present, "diff": diff, "data_directory": server.data_directory, "places": own_places(server)}


def main() -> None:
    """Run the module."""
    run_module(
        work,
        config_only={"type": "bool", "default": False},
        encoding={"type": "str", "default": "UTF8"},
        locale={"type": "str", "default": "C.UTF-8"},
    )


if __name__ == "__main__":
    main()
