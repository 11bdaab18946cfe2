# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planned hand-over, run on the primary's host in one process: between the stop and the promotion nothing else happens.

check -> slots on the candidate -> CHECKPOINT -> arm the fence -> stop -> shutdown checkpoint -> the candidate has it -> promote.
Until pg_promote is sent everything can be taken back, and the primary is; after it nothing is, because the candidate may
become primary at any moment. A note keeps the phase for the run that takes up an interrupted one: 'armed', then 'promoting'.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.control_data import ControlData
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError, of_system
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.promoting import await_primary, read_state, require_promotable
from ansible_collections.pg_ops.replication.plugins.module_utils.server import POLL_SECONDS, Server, ServerError, deaf_to_hangups
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import (
    SYNCHRONIZED,
    Peer,
    connect_peer,
    connect_replication,
    identify,
    is_pointed_at,
    point_at,
    wait_until_replayed,
)

ARMED = "armed"  # nothing was promoted yet
PROMOTING = "promoting"  # the candidate may have been told to promote


@dataclass(frozen=True)
class HandOver:
    """The terms of one hand-over; times in seconds."""

    host_name: str
    slot_name: str
    candidate_slots: tuple[str, ...]
    max_lag_bytes: int
    stop_timeout_seconds: float
    catch_up_timeout_seconds: float
    promote_timeout_seconds: float
    start_timeout_seconds: float


# What can go wrong on either host and in between: OSError is a full disk or one that has become read-only, which a note of ours may be the first to meet.
HITCHES = (PgOpsError, OSError, subprocess.SubprocessError)


class NotTakenBack(ServerError):
    """The hand-over failed after the promotion was asked for: the old primary stays fenced."""


def _require_same_cluster(server: Server, peer: Peer, system_identifier: str) -> None:
    with connect_replication(server, peer) as replication:
        found = identify(replication)
    if str(found.get("systemid")) != system_identifier:
        raise ServerError(
            "{0} belongs to another cluster".format(peer.name), reason="foreign_system", observed=str(found.get("systemid")),
            required=system_identifier, hint="Check pg_address of {0}.".format(peer.name),
        )


def require_candidate(server: Server, peer: Peer, *, system_identifier: str) -> None:
    """Raise ServerError unless the candidate is this cluster's standby and would obey; changes nothing."""
    _require_same_cluster(server, peer, system_identifier)
    with connect_peer(server, peer) as session:
        state = read_state(session)
        if not state["in_recovery"]:
            raise ServerError("{0} is not a standby".format(peer.name), reason="not_a_standby", observed="primary", required="standby")
        require_promotable(state)
        if not session.value("SELECT has_function_privilege('pg_promote(boolean, integer)', 'EXECUTE')"):
            raise ServerError(
                "{0} may not call pg_promote on {1}".format(peer.rewind_user, peer.name), reason="privilege", observed="no EXECUTE",
                required="EXECUTE on pg_promote", hint="Run initial_setup.yml.",
            )


def _create_slots(server: Server, peer: Peer, names: Sequence[str]) -> tuple[str, ...]:
    """Make the slots that the others will need on the candidate; returns those that were missing."""
    made: list[str] = []
    with connect_replication(server, peer) as replication:
        for name in names:
            try:
                replication.rows('CREATE_REPLICATION_SLOT "{0}" PHYSICAL RESERVE_WAL'.format(name))
                made.append(name)
            except sql.SqlError as error:
                if error.sqlstate == "42710":  # duplicate_object
                    continue
                _drop_slots(server, peer, made)
                raise ServerError(
                    "cannot make slot {0} on {1}: {2}".format(name, peer.name, error.message), reason="slot", observed=error.message,
                    required="a slot", hint="Look at pg_replication_slots and max_replication_slots there.",
                ) from error
    return tuple(made)


def _drop_slots(server: Server, peer: Peer, names: Sequence[str]) -> None:
    with connect_replication(server, peer) as replication:
        for name in names:
            replication.rows('DROP_REPLICATION_SLOT "{0}"'.format(name))


def _candidate_position(session: sql.Session) -> tuple[int, int]:
    row = session.row("SELECT pg_last_wal_receive_lsn()::text AS received, pg_last_wal_replay_lsn()::text AS replayed")
    return parse_lsn(row["received"] or "0/0"), parse_lsn(row["replayed"] or "0/0")


def _require_close(local: sql.Session, candidate: sql.Session, terms: HandOver, peer: Peer) -> None:
    """Wait, before the window opens, until the candidate is within the allowed lag; raises ServerError."""
    deadline = time.monotonic() + terms.catch_up_timeout_seconds
    while True:
        now = parse_lsn(str(local.value("SELECT pg_current_wal_lsn()::text")))
        lag = now - min(_candidate_position(candidate))
        if lag <= terms.max_lag_bytes:
            return
        if time.monotonic() > deadline:
            raise ServerError(
                "{0} does not catch up".format(peer.name), reason="lag", observed="{0} bytes behind".format(lag),
                required="at most {0}".format(terms.max_lag_bytes), hint="Wait for replay or raise pg_max_lag_bytes.",
            )
        time.sleep(0.1)


def _await_everything(candidate: sql.Session, wanted: int, terms: HandOver, peer: Peer) -> None:
    """Wait until the candidate has replayed all that this server wrote; raises ServerError."""
    deadline = time.monotonic() + terms.catch_up_timeout_seconds
    while True:
        received, replayed = _candidate_position(candidate)
        if replayed >= wanted:
            return
        if time.monotonic() > deadline:
            raise ServerError(
                "{0} did not get all WAL of this server".format(peer.name), reason="candidate_incomplete",
                observed="received {0}, replayed {1}".format(format_lsn(received), format_lsn(replayed)),
                required="replayed {0}".format(format_lsn(wanted)),
            )
        time.sleep(POLL_SECONDS / 2)


def _position(server: Server) -> int:
    """Return how far the WAL of a server reaches that runs as a standby; 0 when it is down or primary."""
    if not server.postmaster_pid():
        return 0
    with server.connect() as session:
        state = read_state(session)
    return parse_lsn(state["position_lsn"] or "0/0") if state["in_recovery"] else 0


def _stop(server: Server, terms: HandOver) -> ControlData:
    """Stop the server fast and return what its control file says then; raises ServerError unless the stop was clean."""
    server.signal_stop(signal.SIGINT)
    if not server.wait_stopped(timeout_seconds=terms.stop_timeout_seconds, poll_seconds=POLL_SECONDS / 2):
        raise ServerError(
            "the server did not stop within {0} s".format(terms.stop_timeout_seconds), reason="stop_timeout",
            hint="A client, the archiver or a standby holds it up.",
        )
    control = server.control_data()
    if control.cluster_state not in ("shut down", "shut down in recovery"):
        raise ServerError("the server did not shut down cleanly", reason="unclean_stop", observed=control.cluster_state, required="shut down")
    return control


def _wal_end(control: ControlData) -> int:
    """Return a position that a standby must reach to have all WAL of a cleanly stopped server.

    A shutdown checkpoint is a primary's last record, and any position behind its start means having all of it. A standby, which
    an interrupted hand-over may have made of this server, writes none: its last checkpoint may lie far behind its last commit.
    """
    return max(parse_lsn(control.checkpoint_lsn) + 1, parse_lsn(control.min_recovery_lsn))


def _write_phase(server: Server, peer: Peer, terms: HandOver, phase: str) -> None:
    server.write_note("pending", {"operation": "switchover", "source": terms.host_name, "target": peer.name, "phase": phase})


def _arm(server: Server, peer: Peer, terms: HandOver) -> dict[str, Optional[str]]:
    """Make sure that whatever starts this server from now on starts a standby; returns what to put back."""
    before = server.read_auto_conf()
    _write_phase(server, peer, terms, ARMED)
    point_at(server, peer, host_name=terms.host_name, slot_name=terms.slot_name)
    return {name: before.get(name) for name in ("primary_conninfo", "primary_slot_name", "recovery_target_timeline", SYNCHRONIZED)}


def forget(server: Server) -> None:
    """Remove the note of a hand-over, so that nobody takes it up again; a failover's stays."""
    if server.read_note("pending").get("operation") == "switchover":
        server.remove_note("pending")


def disarm(server: Server) -> None:
    """Take from a primary what a hand-over that died has left: its next start would be a standby's, and nobody would be primary.

    One that lost only its controller has the lock and is waited for. Raises ServerError where it has made a standby of this server.
    """
    with server.alone():
        with server.connect() as session:
            if read_state(session)["in_recovery"]:
                raise ServerError(
                    "this server has handed its role over meanwhile", reason="superseded", observed="standby", required="primary",
                    hint="Run status.yml to see who is primary, then repeat.",
                )
        server.remove_standby_signal()
        server.set_auto_conf({"primary_conninfo": None, "primary_slot_name": None})
        server.reload()
        forget(server)


def _is_superseded(server: Server, peer: Peer) -> bool:
    """Whether somebody else has decided about this server since this hand-over was armed: failover.yml fences it, another run ends ours."""
    return bool(server.read_note("fenced")) or server.read_note("pending").get("target") != peer.name


def _superseded(peer: Peer) -> NotTakenBack:
    return NotTakenBack(
        "another run has changed this server's role meanwhile; {0} was not told to promote by this one".format(peer.name), reason="superseded",
        observed="a fence, or another note", required="the note of this switchover", hint="Run status.yml to see who is primary.",
    )


def _take_back(server: Server, peer: Peer, before: dict[str, Optional[str]], terms: HandOver) -> None:
    """Make the old primary the primary again: nothing was promoted, so nobody else can have written."""
    if _is_superseded(server, peer):
        raise _superseded(peer)
    with contextlib.suppress(OSError):  # so that a run after this one, if this one gets no further, may take it back too
        _write_phase(server, peer, terms, ARMED)
    server.remove_standby_signal()
    written = _put_back(server, before)
    if server.postmaster_pid() and not server.wait_stopped(timeout_seconds=1):
        server.kill()
    if _is_superseded(server, peer):  # looked at again, for it may open read-write now
        server.write_standby_signal()
        raise _superseded(peer)
    if not server.postmaster_pid():
        with server.guard_allowing():  # the candidate may be dead, and nobody else there
            server.start(timeout_seconds=terms.start_timeout_seconds)
    server.wait_for_sql(timeout_seconds=terms.start_timeout_seconds).close()
    server.remove_note("pending")
    if not written and _put_back(server, before):
        server.reload()


def _put_back(server: Server, before: Mapping[str, Optional[str]]) -> bool:
    """Give postgresql.auto.conf back what it had, where the disk takes it; what it has now is idle on a primary, whom nothing may keep from its start."""
    try:
        server.set_auto_conf(before)
    except OSError:
        return False
    return True


def _as_refusal(error: Exception) -> PgOpsError:
    return of_system(error) if isinstance(error, OSError) else error if isinstance(error, PgOpsError) else PgOpsError(repr(error), reason="unexpected")


def _unconfirmed(peer: Peer, error: Exception) -> NotTakenBack:
    said = _as_refusal(error).message
    return NotTakenBack(
        "{0} was told to promote and did not confirm it: {1}".format(peer.name, said), reason="promotion_unconfirmed",
        observed=said, required="{0} accepts writes".format(peer.name),
        hint="This server stays fenced (a standby), so no data can split. Run status.yml, then switchover.yml or failover.yml.",
    )


def _window(server: Server, peer: Peer, candidate: sql.Session, terms: HandOver) -> dict[str, Any]:
    """Stop here, promote there. The only code that runs while nobody accepts writes."""
    opened = time.monotonic()
    position = _position(server)
    control = _stop(server, terms)
    stopped = time.monotonic()
    _write_phase(server, peer, terms, PROMOTING)  # while the candidate replays the rest
    _await_everything(candidate, max(position, _wal_end(control)), terms, peer)
    caught_up = time.monotonic()
    if _is_superseded(server, peer) or not server.standby_signal.exists():
        raise _superseded(peer)
    try:
        candidate.rows("SELECT pg_promote(false)")
        state = await_primary(candidate, timeout_seconds=terms.promote_timeout_seconds)
    except Exception as error:  # whatever it is: it is not known to be no primary
        raise _unconfirmed(peer, error) from error
    done = time.monotonic()
    return {
        "shutdown_checkpoint_lsn": control.checkpoint_lsn,
        "timeline": state["timeline"],
        "mark_lsn": state["position_lsn"],
        "stop_seconds": round(stopped - opened, 3),
        "catch_up_seconds": round(caught_up - stopped, 3),
        "promote_seconds": round(done - caught_up, 3),
        "window_seconds": round(done - opened, 3),
    }


def _return_as_standby(server: Server, result: dict[str, Any], terms: HandOver) -> None:
    """Start the old primary as a standby of the new one and wait until it has replayed the new timeline."""
    if not server.postmaster_pid():
        server.start(timeout_seconds=terms.start_timeout_seconds)
    wait_until_replayed(
        server, mark_lsn=result["mark_lsn"], timeline=result["timeline"], timeout_seconds=terms.start_timeout_seconds
    )


def hand_over(server: Server, peer: Peer, terms: HandOver) -> dict[str, Any]:
    """Hand the primary role of this server to `peer`; returns times, LSNs and the new timeline. Raises ServerError.

    A failure before the promotion leaves this server as primary, one after it leaves it fenced.
    """
    if server.read_note("fenced"):
        raise ServerError(
            "this server accepts writes and is noted as fenced", reason="fenced", observed="a note of a fence", required="none",
            hint="Somebody promoted it by hand, or fences it now. Run status.yml; start_new_standby.yml removes a note that is left.",
        )
    with server.connect() as local:
        identifier = str(local.value("SELECT system_identifier::text FROM pg_control_system()"))
        require_candidate(server, peer, system_identifier=identifier)
        candidate = connect_peer(server, peer)
        local.rows("CHECKPOINT", timeout_seconds=terms.stop_timeout_seconds)
        _require_close(local, candidate, terms, peer)
        made = _create_slots(server, peer, terms.candidate_slots)
    with deaf_to_hangups(), candidate:
        before = _arm(server, peer, terms)
        try:
            result = _window(server, peer, candidate, terms)
        except NotTakenBack:
            raise
        except HITCHES as error:
            why = _as_refusal(error)
            with _nobody_is_primary(peer, why):
                _undo(server, peer, before, made, terms)
            raise ServerError(
                "Switchover to {0} was taken back, this server is primary again: {1}".format(peer.name, why.message), reason=why.reason,
                observed=why.observed, required=why.required, hint=why.hint or "Mend the cause and run switchover.yml again.",
            ) from error
        _return_as_standby(server, result, terms)
        return result


@contextlib.contextmanager
def _nobody_is_primary(peer: Peer, why: PgOpsError) -> Iterator[None]:
    """Have a failure to take a hand-over back say so: nobody accepts writes then."""
    try:
        yield
    except NotTakenBack:
        raise
    except HITCHES as failed:
        more = _as_refusal(failed)
        raise ServerError(
            "NOBODY IS PRIMARY. {0} was not told to promote: {1}. And this server could not be made primary again: {2}".format(
                peer.name, why.message, more.message
            ),
            reason="not_taken_back", observed=more.observed or more.message, required="this server is primary again",
            hint="Nothing is lost. Mend that and run switchover.yml again, which takes it up or back; or failover.yml.",
        ) from failed


def _undo(server: Server, peer: Peer, before: dict[str, Optional[str]], made: Sequence[str], terms: HandOver) -> None:
    _take_back(server, peer, before, terms)
    # When the candidate is away, max_slot_wal_keep_size bounds what these slots keep, and the next run drops them.
    with contextlib.suppress(sql.SqlError, ServerError):
        _drop_slots(server, peer, made)


def has_handed_over(server: Server, peer: Peer, terms: HandOver) -> Optional[dict[str, Any]]:
    """Return the peer's timeline and position where it is primary and this server streams from it, the end that a hand-over has; None where not."""
    if not server.postmaster_pid() or not is_pointed_at(server, peer, host_name=terms.host_name, slot_name=terms.slot_name):
        return None
    try:
        with connect_peer(server, peer) as session:
            state = read_state(session)
        if state["in_recovery"]:
            return None
        wait_until_replayed(server, mark_lsn=state["position_lsn"], timeline=state["timeline"], timeout_seconds=server.timeout_seconds)
    except (sql.SqlError, ServerError):
        return None
    return {"timeline": state["timeline"], "mark_lsn": state["position_lsn"]}


def _finish(server: Server, peer: Peer, terms: HandOver) -> dict[str, Any]:
    """Do what is left of an interrupted hand-over; a candidate that is primary was promoted by it."""
    identifier = server.control_data().system_identifier
    with connect_peer(server, peer) as candidate:
        _require_same_cluster(server, peer, identifier)
        state = read_state(candidate)
        if state["in_recovery"]:
            require_candidate(server, peer, system_identifier=identifier)
        _create_slots(server, peer, terms.candidate_slots)
        if state["in_recovery"]:
            return _window(server, peer, candidate, terms)
    return {"timeline": state["timeline"], "mark_lsn": state["position_lsn"]}


def resume(server: Server, peer: Peer, terms: HandOver) -> dict[str, Any]:
    """Take up a hand-over that was cut off after the fence was armed: the server is down, or runs as a fenced standby.

    It is taken back only when the interrupted run cannot have told the candidate to promote.
    """
    may_be_promoted = server.read_note("pending").get("phase") != ARMED
    before: dict[str, Optional[str]] = {"primary_conninfo": None, "primary_slot_name": None, "recovery_target_timeline": None}
    with deaf_to_hangups():
        # A run that died while it took the hand-over back has lifted the fence already.
        point_at(server, peer, host_name=terms.host_name, slot_name=terms.slot_name)
        try:
            result = _finish(server, peer, terms)
        except NotTakenBack:
            raise
        except HITCHES as error:
            if may_be_promoted:
                raise _unconfirmed(peer, error) from error
            why = _as_refusal(error)
            with _nobody_is_primary(peer, why):
                _take_back(server, peer, before, terms)
            raise ServerError(
                "The interrupted switchover to {0} was taken back, this server is primary again: {1}".format(peer.name, why.message),
                reason=why.reason, observed=why.observed, required=why.required, hint=why.hint,
            ) from error
        _return_as_standby(server, result, terms)
        return result
