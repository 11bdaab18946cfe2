# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Physical and logical replication slots of a running server: one plan for check mode, diff and the real run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError

QUERY = """
SELECT slot_name::text AS name, slot_type AS type, coalesce(plugin::text, '') AS plugin, coalesce(database::text, '') AS database, active,
       temporary, coalesce((to_jsonb(s) ->> 'failover')::bool, false) AS failover,
       coalesce((to_jsonb(s) ->> 'synced')::bool, false) AND pg_is_in_recovery() AS synced,
       coalesce(to_jsonb(s) ->> 'invalidation_reason', '') AS invalidation_reason,
       coalesce(restart_lsn::text, '') AS restart_lsn, coalesce(wal_status, '') AS wal_status,
       CASE WHEN restart_lsn IS NULL THEN 0
            ELSE greatest(0, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                                             restart_lsn))::bigint END AS retained_bytes
FROM pg_replication_slots s ORDER BY slot_name
"""
# A connection that is told to end does so a little later, and a standby comes back at once.
DROP_TIMEOUT_SECONDS = 10


class SlotError(PgOpsError):
    """A slot is not what was asked for, or is in use."""


@dataclass(frozen=True)
class SlotWish:
    """A slot that should exist, or not."""

    name: str
    type: str = "physical"
    plugin: str = ""
    reserve_wal: bool = True
    failover: bool = False
    database: str = ""

    @property
    def kind(self) -> str:
        """What the slot is, in words."""
        return _kind(self.type, self.plugin, self.database, self.failover)


def _kind(slot_type: str, plugin: str, database: str, failover: bool) -> str:
    words = [slot_type, plugin, "in database " + database if database else "", "with failover" if failover else ""]
    return " ".join(word for word in words if word)


@dataclass(frozen=True)
class SlotPlan:
    """What is created and what is dropped."""

    create: tuple[SlotWish, ...] = ()
    drop: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything is to be done."""
        return bool(self.create or self.drop)


def read_slots(session: sql.Session) -> list[dict[str, Any]]:
    """Return every slot of the server as plain data; sizes in bytes."""
    return session.dicts(QUERY)


def plan_slots(present: Sequence[dict[str, Any]], wanted: Sequence[SlotWish], unwanted: Sequence[str], *, force: bool = False) -> SlotPlan:
    """Return what to create and drop. Raises SlotError for a slot of the wrong kind and for an active one that should go.

    A physical slot whose WAL is lost can never be used again; it is made anew.
    """
    by_name = {slot["name"]: slot for slot in present}
    create: list[SlotWish] = []
    drop: list[str] = []
    for wish in wanted:
        slot = by_name.get(wish.name)
        if slot is None:
            create.append(wish)
            continue
        _refuse_other_kind(slot, wish)
        if slot["wal_status"] == "lost" and slot["type"] == "physical" and not slot["active"]:
            drop.append(wish.name)
            create.append(wish)
    for name in unwanted:
        slot = by_name.get(name)
        if slot is None:
            continue
        if slot["active"] and not force:
            raise SlotError(
                "slot {0} is in use and cannot be dropped".format(name), reason="slot_active", observed="active", required="inactive",
                hint="Stop what streams from it first.",
            )
        drop.append(name)
    return SlotPlan(tuple(create), tuple(drop))


def _refuse_other_kind(slot: dict[str, Any], wish: SlotWish) -> None:
    observed = _kind(slot["type"], slot["plugin"], slot["database"] if wish.database else "", slot["failover"])
    if observed != wish.kind:
        raise SlotError(
            "slot {0} exists as something else".format(wish.name), reason="slot_kind", observed=observed, required=wish.kind,
            hint="Drop it or choose another name.",
        )


def _drop(session: sql.Session, name: str) -> None:
    """Drop a slot, ending the connection that uses it as often as somebody comes back."""
    deadline = time.monotonic() + DROP_TIMEOUT_SECONDS
    while True:
        session.rows("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [name])
        try:
            session.rows("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", [name])
            return
        except sql.SqlError as error:
            if error.sqlstate != "55006" or time.monotonic() > deadline:  # object_in_use
                raise
        time.sleep(0.02)


def apply_slots(session: sql.Session, plan: SlotPlan) -> None:
    """Carry the plan out. Dropping an active slot first ends the connection that uses it."""
    for name in plan.drop:
        _drop(session, name)
    for wish in plan.create:
        if wish.type == "physical":
            session.rows("SELECT pg_create_physical_replication_slot(%s, %s)", [wish.name, wish.reserve_wal])
        elif wish.failover:
            # The fifth argument, failover, came with PostgreSQL 17.
            session.rows("SELECT pg_create_logical_replication_slot(%s, %s, false, false, true)", [wish.name, wish.plugin])
        else:
            session.rows("SELECT pg_create_logical_replication_slot(%s, %s)", [wish.name, wish.plugin])
