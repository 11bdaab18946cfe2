# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A standby's tie to its upstream: configuration, waiting, and what a peer says of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conninfo import format_conninfo
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.slots import application_name_for
from ansible_collections.pg_ops.replication.plugins.module_utils.server import POLL_SECONDS, Server, ServerError

# For programs that read from a peer for hours: one that died without a word ends them after a minute, where the system's default is two hours.
SIGNS_OF_LIFE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3", "tcp_user_timeout": "60000"}

# How long a standby is without a WAL receiver before its postmaster is woken, at first and at the most (seconds).
WAKE_SECONDS, WAKE_AT_MOST_SECONDS = 0.5, 10.0


@dataclass(frozen=True)
class Peer:
    """A server elsewhere: its inventory name, where it listens, and the roles that we use there."""

    name: str
    address: str
    port: int
    replication_user: str
    rewind_user: str

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Peer:
        """Return the peer that a module's `peer_` options name."""
        return cls(params["peer_name"], params["peer_address"], params["peer_port"], params["replication_user"], params["rewind_user"])


PEER_OPTIONS: dict[str, dict[str, Any]] = {
    "peer_name": {"type": "str", "required": True},
    "peer_address": {"type": "str", "required": True},
    "peer_port": {"type": "int", "default": 5432},
    "replication_user": {"type": "str", "default": "replicator"},
    "rewind_user": {"type": "str", "default": "rewinder"},
    "host_name": {"type": "str", "required": True},
    "slot_name": {"type": "str", "required": True},
}


# The physical slots whose standbys must have a change before logical consumers get it (17 and newer).
SYNCHRONIZED = "synchronized_standby_slots"


def upstream_settings(server: Server, peer: Peer, *, host_name: str, slot_name: str) -> dict[str, Optional[str]]:
    """Return the settings that tie this server to `peer`; the password stays in the passfile."""
    conninfo = format_conninfo(
        {
            "host": peer.address,
            "port": str(peer.port),
            "user": peer.replication_user,
            "dbname": server.database,
            "passfile": str(server.passfile),
            "application_name": application_name_for(host_name),
            "connect_timeout": "5",
            **server.peer_encryption(),
        }
    )
    # The last is a primary's alone; a node that was one, or a copy of one, has it still.
    return {"primary_conninfo": conninfo, "primary_slot_name": slot_name, "recovery_target_timeline": None, SYNCHRONIZED: None}


def point_at(server: Server, peer: Peer, *, host_name: str, slot_name: str) -> bool:
    """Make `peer` the upstream of this server, running or not; returns whether anything changed."""
    changed = server.set_auto_conf(upstream_settings(server, peer, host_name=host_name, slot_name=slot_name))
    return server.write_standby_signal() or changed


def is_pointed_at(server: Server, peer: Peer, *, host_name: str, slot_name: str) -> bool:
    """Whether this server is configured as a standby of `peer` already."""
    present = server.read_auto_conf()
    wanted = upstream_settings(server, peer, host_name=host_name, slot_name=slot_name)
    return server.standby_signal.exists() and all(present.get(name) == value for name, value in wanted.items())


def connect_peer(server: Server, peer: Peer, *, timeout_seconds: Optional[float] = None) -> sql.Session:
    """Open a session at the peer as the rewind role; raises ServerError that names the peer and the remedy."""
    parameters = server.peer(peer.address, peer.port, peer.rewind_user)
    return _open(server, peer, parameters, peer.rewind_user, timeout_seconds=timeout_seconds)


def connect_replication(server: Server, peer: Peer, *, timeout_seconds: Optional[float] = None) -> sql.Session:
    """Open a physical replication connection at the peer; raises ServerError that names the peer and the remedy."""
    parameters = server.peer(peer.address, peer.port, peer.replication_user)
    return _open(server, peer, parameters, peer.replication_user, replication=True, timeout_seconds=timeout_seconds)


def _open(
    server: Server, peer: Peer, parameters: dict[str, Any], user: str, *, timeout_seconds: Optional[float], replication: bool = False
) -> sql.Session:
    account = server.account()
    uid = account.pw_uid if account else None
    try:
        return sql.connect(parameters, timeout_seconds=timeout_seconds or server.timeout_seconds, replication=replication, as_uid=uid)
    except sql.SqlError as error:
        raise ServerError(
            "cannot connect to {0} ({1} port {2}) as {3}: {4}".format(peer.name, peer.address, peer.port, user, error.message),
            reason=_connect_reason(error.message), observed=error.message, required="a connection", hint=_connect_hint(error.message, peer, user),
        ) from error


def _is_turned_away(message: str) -> bool:
    """Whether a line of pg_hba.conf that is not ours decided: `reject`, or another method than that of our lines, which ask for a password."""
    return "pg_hba.conf rejects" in message or ("authentication failed" in message and "password authentication failed" not in message)


def _connect_reason(message: str) -> str:
    if "password" in message or "no pg_hba.conf entry" in message or _is_turned_away(message):
        return "authentication"
    return "peer_unreachable"


def _connect_hint(message: str, peer: Peer, user: str) -> str:
    if _is_turned_away(message):
        return "An earlier line of pg_hba.conf on {0} matches first: move the lines of {1} that initial_setup.yml has added above it; they stay there.".format(
            peer.name, user
        )
    if "password" in message:
        return "Check the vault's password of {0}, then run rotate_secrets.yml (initial_setup.yml, where the cluster is being set up).".format(user)
    if "no pg_hba.conf entry" in message:
        return "Run initial_setup.yml, which admits the peers in pg_hba.conf of {0}.".format(peer.name)
    return "Check that the server runs there and that the port is open between the hosts."


def refused_login(server: Server, peer: Peer) -> Optional[ServerError]:
    """Return why the peer does not let this server in, as its WAL receiver would log in; None when that is not what is wrong."""
    try:
        connect_replication(server, peer).close()
    except ServerError as error:
        return error if error.reason == "authentication" else None
    return None


def identify(session: sql.Session) -> dict[str, Any]:
    """Return what IDENTIFY_SYSTEM answers on a replication connection: systemid, timeline, xlogpos."""
    return session.row("IDENTIFY_SYSTEM")


def timeline_history(session: sql.Session, timeline: int) -> str:
    """Return the history file of a timeline over a replication connection; empty for timeline 1, which has none."""
    if timeline <= 1:
        return ""
    content = session.row("TIMELINE_HISTORY {0:d}".format(timeline)).get("content", "")
    return bytes(content).decode("utf-8") if not isinstance(content, str) else content


class Waker:
    """Wakes a postmaster that sleeps over the wish for a WAL receiver.

    Up to PostgreSQL 15 a wish that comes while the old receiver is about to end is kept until the postmaster wakes, and what could have
    woken it may come a moment too early: it sleeps for up to a minute then, and the startup process wishes anew after 15 s only (it looks
    every 5 s whether WALRCV_STARTUP_TIMEOUT, 10 s, is over). Seen with 15 in 7 of 8500 reloads that changed the slot. Every new connection
    wakes it, and whoever waits in one session makes none.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._rest()

    def _rest(self) -> None:
        self._since, self._patience = time.monotonic(), WAKE_SECONDS

    def saw(self, receiver: bool) -> None:
        """Take note of whether there is a receiver, and wake the postmaster when there was none for long; neither waits nor raises."""
        if receiver:
            self._rest()
        elif time.monotonic() - self._since >= self._patience:
            self._server.knock()
            self._since, self._patience = time.monotonic(), min(2 * self._patience, WAKE_AT_MOST_SECONDS)


def wait_until_replayed(
    server: Server, *, mark_lsn: str, timeline: int, timeout_seconds: float, patience_seconds: float = 0
) -> dict[str, Any]:
    """Wait until this standby streams on `timeline` and has replayed `mark_lsn`; raises ServerError at the deadline.

    Where recovery_min_apply_delay holds the replay up, waiting is in vain: it is enough then that the server is up and in recovery. It asks its
    upstream for nothing before it has replayed the WAL on its own disk.
    For `patience_seconds` the deadline is put off as long as the replay advances: an archive may have much WAL for it. Behind the mark that goes on
    for as long again at the most: where it cannot stream, an archive that keeps up with the primary would make it advance for ever.
    The state 'streaming' alone proves nothing: a standby that has forked off flickers through it in a loop.
    """
    begun = time.monotonic()
    deadline, reached = begun + timeout_seconds, 0
    mark = parse_lsn(mark_lsn) if mark_lsn else 0
    seen: dict[str, Any] = {}
    session = server.wait_for_sql(timeout_seconds=timeout_seconds)
    waker = Waker(server)
    with session:
        while True:
            seen = _progress(session)
            replayed = parse_lsn(seen["replay_lsn"]) if seen["replay_lsn"] else 0
            if seen["held_up"]:
                return seen
            if seen["status"] == "streaming" and seen["timeline"] >= timeline and replayed >= mark:
                return seen
            now = time.monotonic()
            if reached < mark <= replayed:
                patience_seconds = min(patience_seconds, 2 * (now - begun) + timeout_seconds)
            if replayed > reached:
                reached, deadline = replayed, max(deadline, min(now + timeout_seconds, begun + patience_seconds))
            if now > deadline:
                break
            waker.saw(bool(seen["status"]))
            time.sleep(POLL_SECONDS if now - begun < timeout_seconds else 1)
    raise ServerError(
        "the standby does not stream past {0} on timeline {1}".format(mark_lsn or "-", timeline), reason="not_streaming",
        observed="{0}, timeline {1}, replayed {2}".format(seen["status"] or "no WAL receiver", seen["timeline"], seen["replay_lsn"] or "-"),
        required="streaming, timeline {0}, replayed {1}".format(timeline, mark_lsn or "-"),
        hint="Look at the server's log, then run start_new_standby.yml.",
    )


def _progress(session: sql.Session) -> dict[str, Any]:
    return session.row(
        "SELECT coalesce((SELECT status FROM pg_stat_wal_receiver), '') AS status,"
        " coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0) AS timeline,"
        " coalesce(pg_last_wal_replay_lsn()::text, '') AS replay_lsn,"
        " EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup' AND wait_event = 'RecoveryApplyDelay') AS held_up"
    )
