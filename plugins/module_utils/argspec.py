# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The options that every module which works on a server takes."""

from __future__ import annotations

from typing import Any

# Empty texts mean "the platform's": they are resolved on the host (see server.py), because only there is it known.
SERVER_OPTIONS: dict[str, dict[str, Any]] = {
    "version": {"type": "str", "default": ""},
    "debian_cluster": {"type": "str", "default": "main"},
    "bin_directory": {"type": "str", "default": ""},
    "data_directory": {"type": "str", "default": ""},
    "config_directory": {"type": "str", "default": ""},
    "state_directory": {"type": "str", "default": ""},
    "log_file": {"type": "str", "default": ""},
    "owner": {"type": "str", "default": "postgres"},
    "service_manager": {"type": "str", "default": "systemd", "choices": ["systemd", "pg_ctl"]},
    "service_name": {"type": "str", "default": ""},
    "login_user": {"type": "str", "default": "postgres"},
    "login_db": {"type": "str", "default": "postgres"},
    "login_port": {"type": "int", "default": 5432},
    "login_unix_socket": {"type": "str", "default": ""},
    "connect_timeout_seconds": {"type": "float", "default": 3.0},
    "peer_ssl_mode": {"type": "str", "default": "", "choices": ["", "require", "verify-full"]},
}


def server_argument_spec(**more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the argument spec of a module that works on a server, with its own options added."""
    return {**{name: dict(option) for name, option in SERVER_OPTIONS.items()}, **more}
