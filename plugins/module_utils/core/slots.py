# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names of replication slots."""

from __future__ import annotations

import hashlib
import re

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import SlotNameError

_LEGAL = re.compile(r"[a-z0-9_]{1,63}")
_HASH_DIGITS = 10
# A host that itself ends like this is hashed too, or it could take the slot of another host.
_HASHED = re.compile(rf".*__[0-9a-f]{{{_HASH_DIGITS}}}")


def slot_name_for(host: str) -> str:
    """Return the name of the physical slot that serves a host, [a-z0-9_]{1,63}.

    A host name that is a legal slot name is used as it is; any other keeps its legal characters and gets two
    underscores and ten hexadecimal digits of its SHA-256, so that `db-1`, `db.1` and `db_1` never share a slot.
    Raises SlotNameError for an empty host.
    """
    if not host:
        raise SlotNameError(
            "Cannot name a replication slot: the host has no name.",
            observed="an empty name",
            required="a host name",
        )
    if _LEGAL.fullmatch(host) and not _HASHED.fullmatch(host):
        return host
    digest = hashlib.sha256(host.encode("utf-8", "surrogateescape")).hexdigest()[:_HASH_DIGITS]
    room = 63 - len("__") - _HASH_DIGITS
    readable = re.sub(r"[^a-z0-9]+", "_", host.lower()).strip("_")[:room].rstrip("_")
    return f"{readable or 'host'}__{digest}"


def validate_slot_name(name: str) -> None:
    """Raise SlotNameError unless PostgreSQL accepts the name for a slot (ReplicationSlotValidateName)."""
    if _LEGAL.fullmatch(name) is None:
        raise SlotNameError(
            f"Cannot use {name!r} as a replication slot name: PostgreSQL does not accept it.",
            observed=name,
            required="1 to 63 characters, each a lower case letter, a digit or an underscore",
            hint="Choose another name or leave it out to have one made from the host name.",
        )


def application_name_for(host: str) -> str:
    """Return the application_name of a host's WAL receiver: its name, or its slot's where PostgreSQL would rewrite or cut the name.

    The server replaces what is not printable ASCII (by '?' before 16, by hexadecimal escapes since) and keeps 63 bytes.
    """
    plain = all(" " <= letter <= "~" for letter in host) and len(host) <= 63
    return host if plain else slot_name_for(host)
