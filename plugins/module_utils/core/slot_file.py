# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The state file of a replication slot, pg_replslot/NAME/state, of a server that does not run."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Optional

_MAGIC = 0x1051CA1
# magic, checksum, version, length; then the slot's name, database, persistency, xmin, catalog_xmin and restart_lsn (ReplicationSlotOnDisk in slot.c,
# 13 to 18).
_HEAD = struct.Struct("=IIII64sIiIIQ")
_PERSISTENT = 0


@dataclass(frozen=True)
class SlotOnDisk:
    """A persistent slot; `restart_lsn` is where the WAL begins that it keeps, 0 when it keeps none."""

    name: str
    is_logical: bool
    restart_lsn: int


def read_slot(content: bytes) -> Optional[SlotOnDisk]:
    """Return the persistent slot that a state file describes; None for any other slot and for what is no such file."""
    if len(content) < _HEAD.size:
        return None
    magic, _checksum, _version, _length, name, database, persistency, _xmin, _catalog_xmin, restart_lsn = _HEAD.unpack_from(content)
    if magic != _MAGIC or persistency != _PERSISTENT:
        return None
    return SlotOnDisk(bytes(name).split(b"\0", 1)[0].decode("ascii", "replace"), bool(database), restart_lsn)
