# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The state file of a replication slot, pg_replslot/NAME/state, of a server that does not run."""

from __future__ import annotations

import struct

_MAGIC = 0x1051CA1
# magic, checksum, version, length; then the slot's name, database and persistency (ReplicationSlotOnDisk in slot.c, 13 to 18).
_HEAD = struct.Struct("=IIII64sIi")
_PERSISTENT = 0


def logical_slot_name(content: bytes) -> str:
    """Return the name of the persistent logical slot that a state file describes; empty for any other slot and for what is no such file."""
    if len(content) < _HEAD.size:
        return ""
    magic, _checksum, _version, _length, name, database, persistency = _HEAD.unpack_from(content)
    if magic != _MAGIC or not database or persistency != _PERSISTENT:
        return ""
    return bytes(name).split(b"\0", 1)[0].decode("ascii", "replace")
