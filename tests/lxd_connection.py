# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection plugin made as Ansible's loader makes it, for a test that runs commands through it."""

from __future__ import annotations

from typing import Any

import yaml
from ansible import constants
from ansible.playbook.play_context import PlayContext
from ansible_collections.pg_ops.replication.plugins.connection.lxd import DOCUMENTATION, Connection

NAME = "pg_ops.replication.lxd"


def connection_to(host: str, **variables: Any) -> Connection:
    """Return the connection to a host of that name with these variables of Ansible's."""
    constants.config.initialize_plugin_configuration_definitions("connection", NAME, yaml.safe_load(DOCUMENTATION)["options"])
    connection = Connection(PlayContext(), None)
    connection._load_name = NAME
    connection.set_options(var_options={"inventory_hostname": host, **variables})
    return connection
