# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is known of one server: the inventory's words about it and what was observed on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import most_advanced
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import application_name_for, slot_name_for

RUNNING = "running"  # accepts connections
STARTING = "starting"  # a postmaster is there and refuses connections for now
UNRESPONSIVE = "unresponsive"  # a postmaster is there and does not answer
STOPPED = "stopped"  # not running, shut down cleanly according to its control file
CRASHED = "crashed"  # not running, not shut down cleanly
ABSENT = "absent"  # there is no data directory
UNREACHABLE = "unreachable"  # nothing could be observed on the host

# Why nothing was, where somebody wanted it so.
OUTSIDE_RUN = "it is outside this run (--limit)"
# Why a server that runs could not be asked, where initial_setup can do something about it.
NO_PSYCOPG2 = "Python on this host has no psycopg2"

PRIMARY = "primary"
STANDBY = "standby"

# A message younger than this when the standby is asked is a sign of life; where the last one is older, the standby asks the server itself. A playbook
# needs longer than this from its start to that question: a server that died before is refused only by a standby that is behind with reading what
# it was sent, and then once; a repeat goes through.
SIGN_OF_LIFE_SECONDS = 0.2

# The major version that a Debian or Ubuntu release installs, by its code name.
PLATFORM_MAJORS = {
    "bullseye": 13,
    "bookworm": 15,
    "trixie": 17,
    "forky": 18,
    "sid": 18,
    "jammy": 14,
    "noble": 16,
}


@dataclass(frozen=True)
class Member:
    """A host's part in a cluster, as the inventory names it."""

    host: str
    cluster: str = "main"
    address: str = ""
    port: int = 5432
    initial_role: str = ""
    upstream: str = ""
    priority: int = 100
    slot: str = ""

    @property
    def slot_name(self) -> str:
        """The physical slot that this node uses on its upstream: `slot` where it was given another than its host's."""
        return self.slot or slot_name_for(self.host)

    @property
    def application_name(self) -> str:
        """What this node's WAL receiver calls itself at its upstream."""
        return application_name_for(self.host)


@dataclass(frozen=True)
class Receiver:
    """The WAL receiver of a standby (pg_stat_wal_receiver).

    `silent_seconds` is how long ago the last message came from the sender, 0 where that was long ago and it answered, or sent, when it was asked.
    """

    status: str = ""
    sender_host: str = ""
    sender_port: int = 0
    slot_name: str = ""
    received_timeline: int = 0
    silent_seconds: Optional[float] = None


@dataclass(frozen=True)
class Sender:
    """A connection that takes WAL from a server (pg_stat_replication); lags in bytes and seconds."""

    application_name: str = ""
    client_address: str = ""
    state: str = ""
    sync_state: str = ""
    sent_lsn: str = ""
    flush_lsn: str = ""
    replay_lsn: str = ""
    replay_lag_seconds: Optional[float] = None


@dataclass(frozen=True)
class Slot:
    """A replication slot (pg_replication_slots)."""

    name: str = ""
    type: str = "physical"
    active: bool = False
    restart_lsn: str = ""
    wal_status: str = ""
    retained_bytes: int = 0
    plugin: str = ""
    temporary: bool = False
    failover: bool = False
    synced: bool = False
    invalidation_reason: str = ""


@dataclass(frozen=True)
class Upstream:
    """Where a server would stream from: primary_conninfo without any secret, and primary_slot_name."""

    host: str = ""
    port: int = 5432
    user: str = ""
    application_name: str = ""
    slot_name: str = ""


@dataclass(frozen=True)
class Pending:
    """A role change that was begun and whose end was not proven yet (written on the old primary)."""

    operation: str = ""
    source: str = ""
    target: str = ""
    phase: str = ""


@dataclass(frozen=True)
class Node:
    """One server of a cluster. LSNs are texts such as 0/3000148, empty when unknown; sizes in bytes."""

    member: Member
    state: str = UNREACHABLE
    role: str = ""
    problem: str = ""
    major: int = 0
    server_version_num: int = 0
    installed_major: int = 0
    system_identifier: str = ""
    timeline: int = 0
    control_timeline: int = 0
    control_state: str = ""
    checkpoint_lsn: str = ""
    redo_lsn: str = ""
    min_recovery_lsn: str = ""
    current_lsn: str = ""
    receive_lsn: str = ""
    replay_lsn: str = ""
    wal_end_lsn: str = ""
    oldest_wal_lsn: str = ""
    replay_paused: bool = False
    settings_too_low: Mapping[str, int] = field(default_factory=dict)
    replay_delay_ms: int = 0
    replay_age_seconds: Optional[float] = None
    timeline_history: str = ""
    standby_signal: bool = False
    has_restore_command: bool = False
    fenced: bool = False
    fenced_standby: bool = False
    rewind_unfinished: bool = False
    upstream: Upstream = field(default_factory=Upstream)
    receiver: Receiver = field(default_factory=Receiver)
    senders: tuple[Sender, ...] = ()
    slots: tuple[Slot, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    pending_restart: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    client_connections: int = 0
    sessions_waiting_for_standby: int = 0
    data_checksums: bool = False
    wal_log_hints: bool = False
    archive_ready_files: int = 0
    archive_failing: bool = False
    archive_failed_wal: str = ""
    prepared_transactions: int = 0
    longest_transaction_seconds: float = 0.0
    backup_in_progress: bool = False
    disk_free_bytes: int = 0
    data_bytes: int = 0
    port_taken_by: str = ""
    pending: Pending = field(default_factory=Pending)

    @property
    def host(self) -> str:
        """The inventory's name of the host."""
        return self.member.host

    @property
    def seen(self) -> str:
        """What was seen of it in three words; why nothing was, when nothing was."""
        why = " ({0})".format(self.problem) if self.state == UNREACHABLE and self.problem else ""
        return "{0} {1} {2}{3}".format(self.host, self.role or "-", self.state, why)

    @property
    def is_running_primary(self) -> bool:
        """Whether this server accepts writes as far as could be seen."""
        return self.state == RUNNING and self.role == PRIMARY

    @property
    def is_running_standby(self) -> bool:
        """Whether this server is up and in recovery."""
        return self.state == RUNNING and self.role == STANDBY

    @property
    def lies_as_standby(self) -> bool:
        """Whether it is down as a standby leaves it; a primary that was fenced, or armed by a switchover, has standby.signal too."""
        standby = self.fenced_standby if self.fenced else self.pending.operation != "switchover"
        return self.has_server_down and self.standby_signal and standby

    @property
    def has_server_down(self) -> bool:
        """Whether the host was seen, has a data directory and no server that could be asked runs on it."""
        return self.state in (STOPPED, CRASHED, UNRESPONSIVE, STARTING)

    @property
    def was_primary(self) -> bool:
        """Whether this server is down as a primary leaves it: its next start would open it read-write.

        pg_rewind takes standby.signal away from a standby-to-be.
        """
        return self.has_server_down and not (self.standby_signal or self.fenced or self.rewind_unfinished)

    @property
    def replays_at_once(self) -> bool:
        """Whether it replays what it receives. One that is paused or delayed cannot follow onto a new timeline before its replay gets there."""
        return not self.replay_paused and self.replay_delay_ms == 0

    @property
    def to_resume(self) -> str:
        """What lets a paused replay go on. Where it stopped at a setting that is lower than the primary's, resuming would end the server."""
        if not self.settings_too_low:
            return "Run SELECT pg_wal_replay_resume() on that host, as the database superuser."
        wanted = ", ".join("{0} to {1}".format(*each) for each in sorted(self.settings_too_low.items()))
        return "It has less than the primary: set {0} on that host and restart its server; pg_wal_replay_resume() would stop it.".format(wanted)

    @property
    def to_start(self) -> str:
        """What starts a server that is down, and keeps what it has: the boot guard refuses one that is fenced, and it would open read-only."""
        if not self.fenced:
            return "start {0} again".format(self.host)
        return (
            "touch boot_guard/allow in the state directory of {0}, which is fenced, start it (it opens read-only),"
            " then failover.yml -e pg_failover_unfenced=accept".format(self.host)
        )

    @property
    def is_streaming(self) -> bool:
        """Whether its WAL receiver says that it streams on the timeline that it replays."""
        return self.receiver.status == "streaming" and self.receiver.received_timeline >= self.timeline

    @property
    def position_lsn(self) -> str:
        """How far this server's WAL reaches: GREATER of receive and replay on a standby.

        After a restart the receive LSN falls back to the start of a segment, so neither is enough alone.
        """
        if self.role == PRIMARY and self.current_lsn:
            return self.current_lsn
        return most_advanced(self.receive_lsn or None, self.replay_lsn or None, self.min_recovery_lsn or None) or ""


def orphaned_slots(node: Node) -> tuple[Slot, ...]:
    """Return the failover slots on a standby that are left from its time as primary.

    The slot sync worker stops at each, because it would have to make one of that name. A standby cannot create a slot with failover, so
    these are nobody else's; whoever made them meant them to follow the primary.
    """
    if node.role != STANDBY or node.settings.get("sync_replication_slots") != "on":
        return ()
    return tuple(slot for slot in node.slots if slot.type == "logical" and slot.failover and not slot.synced)


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass of `kind` from the entries of `values` that it knows."""
    known = {f.name for f in fields(kind)}
    return kind(**{key: value for key, value in values.items() if key in known and value is not None})


def node_from_mapping(member: Member, observed: Mapping[str, Any]) -> Node:
    """Return the node for what pg_node_info answered; an empty mapping means that nothing was observed."""
    values = dict(observed)
    nested = {
        "upstream": _build(Upstream, values.pop("upstream", None) or {}),
        "receiver": _build(Receiver, values.pop("receiver", None) or {}),
        "pending": _build(Pending, values.pop("pending", None) or {}),
        "senders": tuple(_build(Sender, item) for item in values.pop("senders", None) or ()),
        "slots": tuple(_build(Slot, item) for item in values.pop("slots", None) or ()),
    }
    for name in ("pending_restart", "roles"):
        values[name] = tuple(values.get(name) or ())
    values.pop("member", None)
    node: Node = _build(Node, {**values, **nested, "member": member})
    address = str(observed.get("address") or "")
    if address and not member.address:
        return replace(node, member=replace(member, address=address))
    return node
