# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bringing a server back as a standby of the present primary: start, rewind or re-clone, with a report of what is lost first."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.cloning import (
    CloneTerms,
    clone,
    finish_interrupted,
    require_room,
    restore_node_files,
    save_node_files,
    utc_stamp,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core import rejoin as decisions
from ansible_collections.pg_ops.replication.plugins.module_utils.core.archived_wal import asked_files, missing_segments
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conninfo import format_conninfo
from ansible_collections.pg_ops.replication.plugins.module_utils.core.copy_source import AUTO, REPOSITORY
from ansible_collections.pg_ops.replication.plugins.module_utils.core.copy_source import PRIMARY as COPY_PRIMARY
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.lsn import format_lsn, parse_lsn
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, RUNNING, Member, Node, node_from_mapping
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.plugins.module_utils.divergence import OwnTransactions, own_transactions
from ansible_collections.pg_ops.replication.plugins.module_utils.fencing import lay_as_standby, write_fence
from ansible_collections.pg_ops.replication.plugins.module_utils.fetching import undelivered
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import observe
from ansible_collections.pg_ops.replication.plugins.module_utils.server import Server, ServerError, sync_directory
from ansible_collections.pg_ops.replication.plugins.module_utils.standby import (
    SIGNS_OF_LIFE,
    Peer,
    connect_peer,
    connect_replication,
    identify,
    point_at,
    timeline_history,
    wait_until_replayed,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.wal_pages import dump_arguments, is_end_of_wal, segment_positions

# A report keeps the WAL that is rewound away, as far as that is sensible: 64 segments of 16 MiB are 1 GiB.
MAX_KEPT_SEGMENTS = 64
REPORT_TIMEOUT_SECONDS = 600.0

# What pg_rewind writes into backup_label: where recovery of the rewound server starts.
START_OF_RECOVERY = re.compile(r"^START WAL LOCATION: ([0-9A-F]+/[0-9A-F]+) ", re.MULTILINE)


@dataclass(frozen=True)
class RejoinTerms:
    """How a node is brought back; times in seconds. `oldest_wal_lsn`: where the WAL that the primary still has begins."""

    host_name: str
    slot_name: str
    oldest_wal_lsn: str
    start_timeout_seconds: float
    rewind_timeout_seconds: float
    clone_timeout_seconds: float
    max_rate: str = ""
    repository_command: tuple[str, ...] = ()
    copy_from: str = AUTO


def observe_primary(server: Server, peer: Peer, oldest_wal_lsn: str) -> tuple[Node, str]:
    """Return the present primary as a node, and a mark: an LSN that a standby must replay to prove that it follows.

    Raises ServerError when the peer is no primary.
    """
    with connect_replication(server, peer) as replication:
        found = identify(replication)
        history = timeline_history(replication, int(found["timeline"]))
    with connect_peer(server, peer) as session:
        row = session.row(
            "SELECT pg_is_in_recovery() AS in_recovery, (SELECT timeline_id FROM pg_control_checkpoint()) AS control_timeline,"
            " current_setting('server_version_num')::int AS version"
        )
        if row["in_recovery"]:
            raise ServerError("{0} is not primary".format(peer.name), reason="no_primary", observed="standby", required="primary")
        mark = str(session.value("SELECT pg_current_wal_lsn()::text"))
    node = Node(
        Member(peer.name, address=peer.address, port=peer.port), state=RUNNING, role=PRIMARY, major=int(row["version"]) // 10000,
        system_identifier=str(found["systemid"]), timeline=int(found["timeline"]), control_timeline=int(row["control_timeline"]),
        current_lsn=mark, timeline_history=history, oldest_wal_lsn=oldest_wal_lsn,
    )
    return node, mark


def without_checkpoint(primary: Node) -> Optional[ServerError]:
    """Return, as an error, that the primary has not yet written the checkpoint of its promotion; None when it has.

    Before that its control file names the old timeline, pg_rewind sees 'no rewind required', and the rewound server would fork.
    """
    if primary.control_timeline == primary.timeline:
        return None
    return ServerError(
        "{0} has not written the checkpoint of its promotion".format(primary.host), reason="no_checkpoint",
        observed="control file on timeline {0}".format(primary.control_timeline), required="timeline {0}".format(primary.timeline),
        hint="Run CHECKPOINT on {0}, then repeat.".format(primary.host),
    )


def observe_here(server: Server, terms: RejoinTerms) -> Node:
    """Return this server as a node."""
    return node_from_mapping(Member(terms.host_name, port=server.port, slot=terms.slot_name), observe(server))


def plan(server: Server, here: Node, primary: Node) -> decisions.RejoinPlan:
    """Return what is done with this server; the same plan for check mode and for the real run.

    The control file of a standby that is down does not tell what it had received and not yet replayed. At its next start it
    would replay that too, and if the primary lacks it, fork off.
    """
    chosen = decisions.plan_rejoin(Topology("", (primary, here)), here)
    if chosen.missing_lsn:
        missing = missing_segments(primary, chosen.missing_lsn, segment_bytes=server.control_data().wal_segment_bytes)
        asked = asked_files(missing, own_timeline=here.timeline, timeline=primary.timeline)
        chosen = decisions.answered_by_archive(chosen, here, undelivered(server, asked))
    past = decisions.shared_past(here, primary) if chosen.action == decisions.START else None
    if past is not None and past[1] is not None and _has_wal_behind(server, here, past[1]):
        return decisions.plan_with_own_wal(here, primary)
    return chosen


def _has_wal_behind(server: Server, here: Node, lsn: int) -> bool:
    segment_bytes = server.control_data().wal_segment_bytes
    argv = [server.program("pg_waldump"), "-n", "1", *dump_arguments(server.data("pg_wal"), here.timeline, lsn, 0, segment_bytes)]
    if "rmgr: " in server.run(argv, timeout_seconds=60, check=False).stdout:
        return True
    # pg_waldump fails where WAL ends, and where it cannot be read.
    return not is_end_of_wal(server.data("pg_wal"), here.timeline, lsn, segment_bytes)


def _own_segments(server: Server, fork_lsn: str, end_lsn: str, segment_bytes: int) -> list[Path]:
    """Return the WAL segments from the fork to the end of WAL, empty for not known: behind it lie recycled ones that are yet to be written."""
    start, end = parse_lsn(fork_lsn), parse_lsn(end_lsn) if end_lsn else math.inf
    found = sorted(segment_positions(server.data("pg_wal"), segment_bytes).items())
    return [paths[0] for position, paths in found if position + segment_bytes > start and position < end]


def _keep_wal(server: Server, directory: Path, segments: Sequence[Path]) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)  # a run that was killed in this very second
    server.own(directory)
    for path in segments:
        shutil.copy2(str(path), str(directory / path.name))
        server.own(directory / path.name)


def own_part(server: Server, here: Node, fork_lsn: str) -> tuple[OwnTransactions, list[Path]]:
    """Return what exists only here, and the WAL with it, as much of both as a report holds; nothing is written.

    Where the fork cannot be told (it is empty), nothing can be listed, and that is a problem. So are more transactions than are listed with more WAL than
    is kept; one of the two is enough.
    """
    # Autovacuum's ANALYZE commits by itself, and nobody misses that: such transactions are counted apart.
    found = own_transactions(server, here.timeline, here.timeline_history, fork_lsn, timeout_seconds=REPORT_TIMEOUT_SECONDS)
    # Without a fork nobody knows which WAL that would be; all of it stays in the old data directory.
    if not fork_lsn or not (found.transactions or found.problem):
        return found, []
    wal = _own_segments(server, fork_lsn, here.wal_end_lsn, server.control_data().wal_segment_bytes)
    if found.transactions > len(found.listed) and len(wal) > MAX_KEPT_SEGMENTS and not found.problem:
        found.problem = "only the first {0} of {1} transactions are listed, and not all WAL is kept".format(len(found.listed), found.transactions)
    return found, wal[:MAX_KEPT_SEGMENTS]


def write_report(
    server: Server, here: Node, primary: Node, fork_lsn: str, found: OwnTransactions, wal: Sequence[Path]
) -> dict[str, Any]:
    """Write what will be lost into the state directory before anything is thrown away; returns path, count and what is missing in it."""
    server.ensure_state_directory()
    name = "{0}-lost-transactions".format(utc_stamp())
    if wal:
        _keep_wal(server, server.state("reports", name + ".wal"), wal)
    report = {
        "host": here.host, "new_primary": primary.host, "timeline": here.timeline, "fork_lsn": fork_lsn, "wal_end_lsn": here.wal_end_lsn,
        "new_timeline": primary.timeline, "kept_wal_segments": len(wal), "transactions": [commit.as_result() for commit in found.listed],
        "transaction_count": found.transactions, "statistics_transactions": found.statistics, "problem": found.problem,
    }
    path = server.state("reports", name + ".json")
    server.write(path, json.dumps(report, indent=2, sort_keys=True) + "\n")
    return {
        "report": str(path), "lost_transactions": found.transactions, "listed_transactions": len(found.listed), "report_problem": found.problem,
    }


def _recover_alone(server: Server, *, timeout_seconds: float) -> None:
    """Let a crashed server end its crash recovery in single-user mode, because pg_rewind wants a clean shutdown.

    standby.signal must be away for it: single-user mode refuses to run as a standby. The fence note stays meanwhile. The checkpoint
    at its end must not recycle the WAL back to the fork, which pg_rewind reads.
    """
    server.remove_standby_signal()
    try:
        server.run(
            [server.program("postgres"), "--single", "-F", "-D", server.data_directory, "-c", "config_file={0}".format(server.config_file),
             "-c", "archive_mode=off", "-c", "wal_keep_size=1TB", "template1"],
            timeout_seconds=timeout_seconds,
        )
    finally:
        server.write_standby_signal()


def _require_clean(server: Server, terms: RejoinTerms) -> None:
    # As a standby it may have stopped before all that it had received was replayed, and pg_rewind looks no further than replay.
    if server.control_data().cluster_state != "shut down":
        _recover_alone(server, timeout_seconds=terms.rewind_timeout_seconds)


def _drop_wal_aside(server: Server) -> None:
    shutil.rmtree(str(server.state("rewind-wal")), ignore_errors=True)


def _put_wal_aside(server: Server, fork_lsn: str, segment_bytes: int) -> None:
    """Keep this server's WAL segments before the fork: pg_rewind removes what its source has recycled.

    The rewound server recovers from the redo point of the last checkpoint that both share. Newer minor releases of pg_rewind keep the
    WAL from that checkpoint's record on, but the redo point may lie segments before it. A segment that the source still has is emptied
    and written again by pg_rewind; such a link is of no use and never put back.
    """
    _drop_wal_aside(server)
    aside = server.state("rewind-wal")
    aside.mkdir(mode=0o700)
    server.own(aside)
    for position, paths in segment_positions(server.data("pg_wal"), segment_bytes).items():
        if position + segment_bytes > parse_lsn(fork_lsn):
            continue
        for path in paths:
            try:
                _link_or_copy(path, aside / path.name)
                server.own(aside / path.name)
            except OSError:  # No space for copies: most rewinds do without, and _require_wal notices when this one does not.
                _drop_wal_aside(server)
                return


def _link_or_copy(path: Path, target: Path) -> None:
    try:
        os.link(str(path), str(target))
    except OSError:  # pg_wal may lie on a file system of its own
        shutil.copy2(str(path), str(target))


def _put_wal_back(server: Server) -> None:
    aside = server.state("rewind-wal")
    for path in aside.iterdir() if aside.is_dir() else ():
        target = server.data("pg_wal", path.name)
        if not target.exists():
            shutil.move(str(path), str(target))
            server.own(target)
    sync_directory(server.data("pg_wal"))
    _drop_wal_aside(server)


def _require_wal(server: Server, fork_lsn: str, segment_bytes: int) -> None:
    """Raise ServerError where WAL between the start of recovery and the fork is missing: the server would wait for it for ever.

    The fork's own segment comes from the primary, which had it when the rewind was planned.
    """
    label = server.data("backup_label")
    start = START_OF_RECOVERY.search(label.read_text(encoding="utf-8")) if label.exists() else None
    if start is None:  # no rewind was required
        return
    present = segment_positions(server.data("pg_wal"), segment_bytes)
    first, last = (parse_lsn(lsn) // segment_bytes * segment_bytes for lsn in (start.group(1), fork_lsn))
    missing = next((position for position in range(first, last, segment_bytes) if position not in present), None)
    if missing is not None:
        raise ServerError(
            "pg_rewind left a server that lacks WAL", reason="wal_missing", observed="no WAL segment of {0}".format(format_lsn(missing)),
            required="all WAL from {0} to {1}".format(start.group(1), fork_lsn),
        )


def _rewind(server: Server, peer: Peer, terms: RejoinTerms, fork_lsn: str) -> None:
    """Run pg_rewind. A note stays if it dies: its target then has files of two servers and must never be started."""
    save_node_files(server)
    segment_bytes = server.control_data().wal_segment_bytes
    _put_wal_aside(server, fork_lsn, segment_bytes)
    source = format_conninfo(
        {
            "host": peer.address, "port": str(peer.port), "user": peer.rewind_user, "dbname": server.database,
            "passfile": str(server.passfile), "connect_timeout": "5", **SIGNS_OF_LIFE, **server.peer_encryption(),
        }
    )
    server.write_note("rewind", {"source": peer.name, "started": utc_stamp()})
    server.run(
        [server.program("pg_rewind"), "-D", server.data_directory, "--source-server", source, "--no-ensure-shutdown"],
        timeout_seconds=terms.rewind_timeout_seconds,
    )
    _put_wal_back(server)
    _require_wal(server, fork_lsn, segment_bytes)
    restore_node_files(server, server.data())
    # pg_rewind takes standby.signal away, because its source has none. Whoever starts the server from here on starts a standby.
    point_at(server, peer, host_name=terms.host_name, slot_name=terms.slot_name)
    server.remove_note("rewind")


def _start_and_prove(
    server: Server, peer: Peer, terms: RejoinTerms, primary: Node, mark: str, *, recovery_seconds: float = 0, patience_seconds: float = 0
) -> None:
    point_at(server, peer, host_name=terms.host_name, slot_name=terms.slot_name)
    if server.postmaster_pid():
        server.reload()
    else:
        server.start(timeout_seconds=max(terms.start_timeout_seconds, recovery_seconds))
    wait_until_replayed(
        server, mark_lsn=mark, timeline=primary.timeline, timeout_seconds=terms.start_timeout_seconds, patience_seconds=patience_seconds
    )


def _start_from_archive(server: Server, peer: Peer, terms: RejoinTerms, primary: Node, mark: str) -> None:
    """Start a server that fetches WAL from its archive first, for as long as a copy would have been given, if only its replay advances.

    Before it accepts connections it fetches even what it has itself, from its last restart point on: that is given the time of a crash recovery.
    """
    more = {"recovery_seconds": terms.rewind_timeout_seconds, "patience_seconds": terms.clone_timeout_seconds}
    try:
        _start_and_prove(server, peer, terms, primary, mark, **more)
    except PgOpsError as error:
        if error.reason == "boot_guard":
            raise
        raise ServerError(
            error.message, reason=error.reason, observed=error.observed, required=error.required,
            hint="Its log says what became of the WAL from the archive. What it has replayed stays: repeat, and it goes on from there, or is copied"
            " anew where the archive lacks the next segment. If it ends where it ended before, stop it, move {0} aside and repeat: then it is copied"
            " anew.".format(server.data_directory),
        ) from error


def _reclone(server: Server, peer: Peer, terms: RejoinTerms, chosen: decisions.RejoinPlan) -> dict[str, Any]:
    if server.postmaster_pid():
        server.stop(timeout_seconds=terms.start_timeout_seconds)
    return clone(
        server, peer,
        CloneTerms(
            terms.host_name, terms.slot_name, max_rate=terms.max_rate, timeout_seconds=terms.clone_timeout_seconds,
            repository_command=terms.repository_command, copy_from=COPY_PRIMARY if chosen.archive_lacks and terms.copy_from == AUTO else terms.copy_from,
        ),
    )


def _throw_away(server: Server, peer: Peer, terms: RejoinTerms, chosen: decisions.RejoinPlan, here: Node, primary: Node) -> dict[str, Any]:
    """Rewind or re-clone, the report first; a rewind that cannot be done becomes a re-clone."""
    result: dict[str, Any] = {}
    if server.postmaster_pid():
        server.stop(timeout_seconds=terms.start_timeout_seconds)
    # Before crash recovery: its checkpoint may recycle segments that the report reads.
    if chosen.own_wal and not here.rewind_unfinished:
        found, wal = own_part(server, here, chosen.fork_lsn)
        if found.problem:
            require_room(server, peer)  # it will be a new copy; a repeat that has no room for it must not write one report more
        result.update(write_report(server, here, primary, chosen.fork_lsn, found, wal))
    if result.get("report_problem") and chosen.action == decisions.REWIND:
        # What nobody could list must not be thrown away: the old directory is kept.
        result["rewind_failed"] = "what exists only here could not be listed: " + result["report_problem"]
        result["action"] = decisions.RECLONE
    elif chosen.action == decisions.REWIND:
        try:
            _require_clean(server, terms)
            _rewind(server, peer, terms, chosen.fork_lsn)
            return result
        except ServerError as error:
            result["rewind_failed"] = error.message
            result["action"] = decisions.RECLONE
    _drop_wal_aside(server)
    result.update(_reclone(server, peer, terms, chosen))
    return result


def _lift_fence(server: Server) -> None:
    """Remove the notes that do not hold for a server that follows the primary: of a fence, and of a role change that was cut off."""
    server.remove_note("fenced")
    server.remove_note("pending")


def keeps_serving(chosen: decisions.RejoinPlan, here: Node) -> bool:
    """Whether a standby answers readers until it is copied anew: it goes on doing so where the copy has no room. A primary is fenced in any case."""
    return chosen.action == decisions.RECLONE and here.is_running_standby


def rejoin(
    server: Server, peer: Peer, terms: RejoinTerms, chosen: decisions.RejoinPlan, here: Node, primary: Node, mark: str
) -> dict[str, Any]:
    """Carry the plan out and prove it as wait_until_replayed() does. Raises ServerError or SqlError."""
    started = time.monotonic()
    result: dict[str, Any] = {"action": chosen.action}
    if chosen.action == decisions.NOTHING:  # an earlier run died behind its last step
        _lift_fence(server)
        return result
    kept = finish_interrupted(server)
    if kept is not None:
        here = observe_here(server, terms)
        chosen = plan(server, here, primary)
        refusal = refused(chosen)
        if refusal is not None:
            raise refusal
        result.update(action=chosen.action, kept_directory=kept)
    if keeps_serving(chosen, here):
        require_room(server, peer)
    write_fence(server, "pg_rejoin", lay_as_standby(server))
    if chosen.action == decisions.RECLONE and not server.postmaster_pid():
        require_room(server, peer)  # before the report, or each repeat would write one more; the note alone costs nothing, and keeps it down
    if chosen.action in (decisions.REWIND, decisions.RECLONE):
        result.update(_throw_away(server, peer, terms, chosen, here, primary))
    prove = _start_from_archive if chosen.missing_lsn or result.get("copied_from") == REPOSITORY else _start_and_prove
    prove(server, peer, terms, primary, mark)
    _lift_fence(server)
    result["seconds"] = round(time.monotonic() - started, 3)
    return result


def mapping_of(chosen: decisions.RejoinPlan) -> dict[str, Any]:
    """Return the plan as plain data."""
    return {"action": chosen.action, "why": chosen.why, "fork_lsn": chosen.fork_lsn, "blockers": [b.as_result() for b in chosen.blockers]}


def refused(chosen: decisions.RejoinPlan) -> Optional[ServerError]:
    """Return the plan's refusal as an error, None when it refuses nothing."""
    if chosen.action != decisions.REFUSE:
        return None
    if not chosen.blockers:
        return ServerError(chosen.why, reason="refused")
    first = chosen.blockers[0]
    return ServerError(first.message, reason=first.reason, observed=first.observed, required=first.required, hint=first.hint)
