# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A running server's place in the topology: its upstream, its slots, its downstreams."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import STANDBY, Member, node_from_mapping, orphaned_slots
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import application_name_for, slot_name_for
from ansible_collections.pg_ops.replication.plugins.module_utils.core.synchronous import format_set, wanted_set
from ansible_collections.pg_ops.replication.plugins.module_utils.handover import disarm
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import SYNCHRONOUS, observe
from ansible_collections.pg_ops.replication.plugins.module_utils.promoting import read_state
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError
from ansible_collections.pg_ops.replication.plugins.module_utils.slot_sql import SlotError, SlotPlan, SlotWish, apply_slots, plan_slots, read_slots
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import (
    SYNCHRONIZED,
    Peer,
    Waker,
    is_pointed_at,
    point_at,
    refused_login,
    wait_until_replayed,
)

# A WAL receiver that its upstream refuses ends after one round trip, and the next one comes after wal_retrieve_retry_interval.
STEADY_SECONDS = 1.0

# The note that says whose synchronous_standby_names is.
CONFIRMS = "synchronous"
# The settings that a server is given here, each in force with a reload.
WRITTEN = ("primary_conninfo", "primary_slot_name", SYNCHRONIZED, SYNCHRONOUS)


@dataclass(frozen=True)
class SynchronousWish:
    """How the commits of this server are confirmed while it is primary: `names` may, `num` of them must; see core/synchronous.py."""

    mode: str
    num: int
    names: tuple[str, ...]
    degrade: str


@dataclass(frozen=True)
class Place:
    """Where a server belongs; `upstream` is None on the primary. Times in seconds."""

    host_name: str
    slot_name: str
    upstream: Optional[Peer]
    slots_present: tuple[str, ...]
    slots_absent: tuple[str, ...]
    downstreams: tuple[str, ...]
    synchronized: tuple[str, ...]
    waits: bool
    synchronous: Optional[SynchronousWish]
    timeline: int
    mark_lsn: str
    timeout_seconds: float

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Place:
        """Return the place that the module's options describe."""
        up = params["upstream"]
        peer = Peer(up["name"], up["address"], up["port"], params["replication_user"], "") if up else None
        return cls(
            host_name=params["host_name"],
            slot_name=params["slot_name"],
            upstream=peer,
            slots_present=tuple(params["slots_present"]),
            slots_absent=tuple(params["slots_absent"]),
            downstreams=tuple(params["downstreams"]),
            synchronized=tuple(params["synchronized_slots"]),
            waits=params["waits"],
            synchronous=_synchronous_wish(params["synchronous"]),
            timeline=params["timeline"],
            mark_lsn=params["mark_lsn"],
            timeout_seconds=params["timeout_seconds"],
        )


def _synchronous_wish(params: Optional[Mapping[str, Any]]) -> Optional[SynchronousWish]:
    return SynchronousWish(params["mode"], params["num"], tuple(params["names"]), params["degrade"]) if params else None


@dataclass(frozen=True)
class PlacePlan:
    """What has to change, and how it shows in a diff.

    `synchronized` is what synchronized_standby_slots becomes, `synchronous` what synchronous_standby_names does; None takes the line away.
    `disarm` is a primary that would start as a standby, `unread` a server that was not told of what a run that died had written.
    """

    point: bool
    slots: SlotPlan
    orphans: tuple[str, ...]
    synchronized: Optional[str]
    synchronize: bool
    synchronous: Optional[str]
    confirm: bool
    disarm: bool
    unread: bool
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def changed(self) -> bool:
        """Whether anything has to."""
        return self.point or self.slots.changed or bool(self.orphans) or self.synchronize or self.confirm or self.disarm or self.unread


def _slot_plan(place: Place, present: list[dict[str, Any]]) -> SlotPlan:
    # A slot that should go may still be in use by a sibling that is just being re-pointed: the drop waits for it.
    wishes = [SlotWish(name) for name in place.slots_present]
    return plan_slots(present, wishes, _own_unwanted(present, place), force=True)


def _own_unwanted(present: list[dict[str, Any]], place: Place) -> list[str]:
    """Return the slots that must go: physical ones. A logical slot that has a member's name, as a subscription's of that host may, is somebody's."""
    logical = {slot["name"] for slot in present if slot["type"] != "physical"}
    return [name for name in place.slots_absent if name not in logical]


def _copies_slots(session: sql.Session) -> bool:
    return bool(session.value("SELECT current_setting('sync_replication_slots', true)") == "on")


def _orphans(session: sql.Session, place: Place, present: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the failover slots of a standby that it made as primary."""
    if place.upstream is None or not _copies_slots(session):
        return ()
    observed = {"role": STANDBY, "slots": present, "settings": {"sync_replication_slots": "on"}}
    return tuple(slot.name for slot in orphaned_slots(node_from_mapping(Member(place.host_name), observed)))


def _synchronized(session: sql.Session, place: Place, present: list[dict[str, Any]]) -> Optional[str]:
    """Return synchronized_standby_slots of a primary whose failover slots are copied: its standbys that are here, or come in this run.

    One that is away would hold up every logical consumer until it is back.
    """
    if place.upstream is not None or not _copies_slots(session):
        return None
    here = {slot["name"] for slot in present if slot["active"]} | {slot_name_for(host) for host in place.downstreams}
    return ",".join(sorted(name for name in place.synchronized if name in here)) or None


def _confirmed_by(session: sql.Session, place: Place) -> Optional[str]:
    """Return synchronous_standby_names for this server: of a primary by who streams, or comes in this run.

    A standby has its own as well. So it asks for confirmations from the moment of its promotion on, whoever promotes it.
    """
    wish = place.synchronous
    if wish is None:
        return None
    here = set(wish.names)
    if place.upstream is None:
        here = {row[0] for row in session.rows("SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")}
        here |= {application_name_for(host) for host in place.downstreams}
    return format_set(wanted_set(wish.mode, wish.num, wish.degrade, wish.names, here))


def _is_to_confirm(server: Server, place: Place, wanted: Optional[str]) -> bool:
    """Whether the setting has to change. One that this collection did not write stays where no synchronous mode is asked for."""
    present = server.read_auto_conf().get(SYNCHRONOUS)
    if place.synchronous is None:
        return present is not None and bool(server.read_note(CONFIRMS))
    return present != wanted


def _is_unread(server: Server, session: sql.Session) -> bool:
    """Whether the server does not have yet what stands in its file of the settings that are written here: a run died before it could say so."""
    written = server.read_auto_conf()
    rows = session.rows(
        "SELECT name, setting, coalesce(sourcefile, '') FROM pg_settings WHERE name = ANY(%s) AND source <> 'command line'", (list(WRITTEN),)
    )
    return any(written[name] != setting if name in written else source.endswith("/postgresql.auto.conf") for name, setting, source in rows)


def plan_place(server: Server, place: Place) -> PlacePlan:
    """Return what has to change on this server; raises SqlError when it does not run."""
    with server.connect() as session:
        present = read_slots(session)
        synchronized = _synchronized(session, place, present)
        orphans = _orphans(session, place, present)
        synchronous = _confirmed_by(session, place)
        unread = _is_unread(server, session)
        disarm_it = place.upstream is None and server.standby_signal.exists() and not read_state(session)["in_recovery"]
    plan = _slot_plan(place, present)
    confirm = _is_to_confirm(server, place, synchronous)
    before = server.read_auto_conf()
    before_synchronized, before_synchronous = before.get(SYNCHRONIZED), before.get(SYNCHRONOUS)
    point = place.upstream is not None and not is_pointed_at(
        server, place.upstream, host_name=place.host_name, slot_name=place.slot_name
    )
    names = sorted(slot["name"] for slot in present)
    after = sorted((set(names) - set(plan.drop) - set(orphans)) | {wish.name for wish in plan.create})
    upstream = place.upstream.name if place.upstream else "-"
    return PlacePlan(
        point, plan, orphans, synchronized, before_synchronized != synchronized, synchronous, confirm, disarm_it, unread,
        {
            "slots": names, "upstream": "other" if point else upstream, SYNCHRONIZED: before_synchronized, SYNCHRONOUS: before_synchronous,
            **({"standby.signal": "present"} if disarm_it else {}), **({"settings": "not read since they were written"} if unread else {}),
        },
        {
            "slots": after, "upstream": upstream, SYNCHRONIZED: synchronized,
            SYNCHRONOUS: synchronous if confirm else before_synchronous,
        },
    )


def _drop_idle(session: sql.Session, place: Place, deadline: float) -> None:
    """Drop the slots that nobody needs, once those that still use them have gone elsewhere; raises SlotError."""
    while True:
        try:
            present = read_slots(session)
            apply_slots(session, plan_slots(present, [], _own_unwanted(present, place)))
            return
        except SlotError as error:
            if time.monotonic() > deadline:
                hint = "What streams through it belongs below another server. Run status.yml, then start_new_standby.yml."
                raise SlotError(error.message, reason=error.reason, observed=error.observed, required=error.required, hint=hint) from error
        time.sleep(0.05)


def _await_downstreams(session: sql.Session, place: Place, deadline: float) -> None:
    """Wait until every downstream streams from here through its slot; raises ServerError that names those that do not."""
    statement = (
        "SELECT application_name FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid WHERE state = 'streaming'"
    )
    while True:
        streaming = {row[0] for row in session.rows(statement)}
        missing = sorted(host for host in place.downstreams if application_name_for(host) not in streaming)
        if not missing:
            return
        if time.monotonic() > deadline:
            raise ServerError(
                "{0} does not stream from this server".format(", ".join(missing)), reason="not_streaming", observed="no sender",
                required="streaming", hint="Run status.yml, then start_new_standby.yml.",
            )
        time.sleep(0.05)


def _await_upstream(
    server: Server, session: sql.Session, place: Place, upstream: Peer, *, steady_seconds: float, deadline: float
) -> None:
    """Wait until the WAL receiver has had the upstream and the slot that it should for `steady_seconds`. Raises ServerError.

    After a reload the old receiver streams on for a moment. A new one says `streaming` before the upstream has agreed, and ends when
    its slot is not there yet.
    """
    wanted = (upstream.address, upstream.port, place.slot_name)
    asked = "SELECT coalesce(sender_host, ''), coalesce(sender_port, 0), coalesce(slot_name, ''), pid FROM pg_stat_wal_receiver"
    pid, since = 0, time.monotonic()
    waker = Waker(server)
    while True:
        found = session.rows(asked)
        right = bool(found) and found[0][:3] == wanted
        now = time.monotonic()
        if not right or found[0][3] != pid:
            pid, since = (found[0][3] if right else 0), now
        if right and now - since >= steady_seconds:
            return
        if now > deadline:
            seen = "{0} port {1}, slot {2}".format(*found[0][:3]) if found else "no WAL receiver"
            wrong_slot = bool(found) and found[0][:2] == wanted[:2]
            raise ServerError(
                "the standby does not stream from {0} through its slot".format(upstream.name), reason="wrong_slot" if wrong_slot else "not_streaming",
                observed=seen, required="{0} port {1}, slot {2}".format(*wanted), hint="Look at the server's log, then run heal.yml.",
            )
        waker.saw(bool(found))
        time.sleep(0.05)


@contextmanager
def _login_problem_named(server: Server, upstream: Peer) -> Iterator[None]:
    """Where a standby does not stream because its upstream does not let it in, have the error say that: nothing else mends it."""
    try:
        yield
    except ServerError as error:
        refused = refused_login(server, upstream) if error.reason == "not_streaming" else None
        if refused is None:
            raise
        raise refused from error


def _confirm(server: Server, wanted: Optional[str]) -> None:
    """Write synchronous_standby_names, and a note that it is ours to take away."""
    if wanted is None:
        server.set_auto_conf({SYNCHRONOUS: None})
        server.remove_note(CONFIRMS)
    else:
        server.write_note(CONFIRMS, {"written": wanted})
        server.set_auto_conf({SYNCHRONOUS: wanted})
    server.reload()


def _require_recovery(server: Server, upstream: Peer) -> None:
    """Raise ServerError when this server is not in recovery: it was promoted since its place was decided, and its next start would undo that."""
    with server.connect() as session:
        if session.value("SELECT pg_is_in_recovery()"):
            return
    raise ServerError(
        "this server accepts writes and is not made a standby of {0}".format(upstream.name), reason="runs_as_primary", observed="primary",
        required="a standby", hint="Run status.yml to see who is primary; where there are two, heal.yml mends that.",
    )


def settle(server: Server, place: Place, plan: PlacePlan, *, check_mode: bool) -> dict[str, Any]:
    """Carry the plan out, wait until the server is in its place, and return what is then observed of it; raises ServerError."""
    if place.upstream is not None:
        _require_recovery(server, place.upstream)
    if check_mode:
        return observe(server)
    if plan.disarm:
        disarm(server)
    deadline = time.monotonic() + place.timeout_seconds
    if plan.unread:
        server.reload()
    with server.connect() as session:
        made = {wish.name for wish in plan.slots.create}
        # Here only what is made, with the lost slots that are made anew; the rest is dropped once nobody uses it.
        apply_slots(session, SlotPlan(plan.slots.create, tuple(name for name in plan.slots.drop if name in made)))
        # Behind the slots, for the server takes no name that it does not know, and before the waiting: a new primary's consumers read already.
        if plan.synchronize and server.set_auto_conf({SYNCHRONIZED: plan.synchronized}):
            server.reload()
        if plan.confirm:
            _confirm(server, plan.synchronous)
        if place.upstream is not None and plan.point:
            point_at(server, place.upstream, host_name=place.host_name, slot_name=place.slot_name)
            server.reload()
        if place.upstream is not None and place.waits:
            # A mark that is replayed came from there; without one only time tells.
            steady = STEADY_SECONDS if (plan.point or plan.unread) and not place.mark_lsn else 0.0
            with _login_problem_named(server, place.upstream):
                _await_upstream(server, session, place, place.upstream, steady_seconds=steady, deadline=deadline)
                wait_until_replayed(server, mark_lsn=place.mark_lsn, timeline=place.timeline, timeout_seconds=place.timeout_seconds)
            server.remove_note("fenced")  # of a pg_rejoin that died behind its last step
        apply_slots(session, SlotPlan(drop=plan.orphans))
        try:
            _drop_idle(session, place, deadline)
            if place.upstream is None:
                server.remove_note("fenced")  # of one that somebody promoted by hand
            _await_downstreams(session, place, deadline)
        finally:
            # Whoever did not come confirms nothing: with degrade=async commits go on without.
            if place.upstream is None and place.synchronous is not None and place.downstreams:
                arrived = replace(place, downstreams=())
                wanted = _confirmed_by(session, arrived)
                if _is_to_confirm(server, arrived, wanted):
                    _confirm(server, wanted)
    return observe(server)
