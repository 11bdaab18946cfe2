# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the options that name another server of the cluster."""

from __future__ import annotations


class ModuleDocFragment:
    """The options of module_utils/standby.py."""

    DOCUMENTATION = r"""
options:
  peer_name:
    description: Inventory name of the other server.
    type: str
    required: true
  peer_address:
    description: Its address as this host reaches it.
    type: str
    required: true
  peer_port:
    description: Its port.
    type: int
    default: 5432
  replication_user:
    description: Role that streams WAL. Its password comes from the passfile alone.
    type: str
    default: replicator
  rewind_user:
    description: Role that may call what pg_rewind needs, and pg_promote. Its password comes from the passfile alone.
    type: str
    default: rewinder
  host_name:
    description: Inventory name of this host, which becomes the application_name of its WAL receiver.
    type: str
    required: true
  slot_name:
    description: The physical slot that this server uses at the other one.
    type: str
    required: true
"""
