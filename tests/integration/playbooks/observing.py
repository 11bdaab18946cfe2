# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the standbys of a cluster, and whoever logs in there, notice of a playbook."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.integration.playbooks.cluster import HERE, Cluster

ENDED = "terminating connection due to administrator command"  # what pg_terminate_backend says
LOUD = re.compile(r"\b(ERROR|FATAL|PANIC|WARNING):")
IMPATIENT = "canceling "  # the client that writes waits two seconds for a commit, less than a busy machine may need


@dataclass
class Observation:
    """What observer.py printed, and what each server logged meanwhile; filled at the end of the block."""

    found: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    @property
    def reconnects(self) -> dict[str, int]:
        """How often another WAL receiver streamed than before, by standby."""
        return {name: len(seen["receivers"]) - 1 for name, seen in self.found["standbys"].items()}

    @property
    def away(self) -> list[str]:
        """The standbys that did not stream when the playbook had ended."""
        return [name for name, seen in self.found["standbys"].items() if seen["away"]]

    @property
    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of standbys between whose interruptions there was no round in which both streamed."""
        gaps = [(name, *gap) for name, seen in self.found["standbys"].items() for gap in seen["gaps"]]
        pairs = itertools.combinations(gaps, 2)
        return [(one[0], other[0]) for one, other in pairs if one[0] != other[0] and one[1] < other[2] and other[1] < one[2]]

    @property
    def failed_logins(self) -> list[str]:
        return [f"{name}: {text.strip()}" for _at, name, text in self.found["failed_logins"]]

    def loud_lines(self, name: str) -> list[str]:
        """What a server logged beyond messages of severity LOG, and what belongs to them."""
        return [line for line in self.logs[name].splitlines() if LOUD.search(line) and IMPATIENT not in line]

    def summary(self) -> str:
        gaps = {name: [round(until - since, 3) for since, until in seen["gaps"]] for name, seen in self.found["standbys"].items()}
        standstill = max(seen["standstill_seconds"] for seen in self.found["standbys"].values())
        failed = [at for at, _name, _text in self.found["failed_logins"]]
        return (
            f"without a streaming receiver at most {gaps} s; longest standstill of replay {standstill:.3f} s, of the client's commits "
            f"{self.found['commit_seconds']:.3f} s; {self.found['logins']} logins, {len(failed)} failed"
            + (f" within {max(failed) - min(failed):.1f} s" if failed else "")
            + f"; {self.found['rounds']} rounds"
        )


def login(cluster: Cluster, source: str, target: str) -> str:
    """Return the conninfo with which a node's WAL receiver would log in at another one, its certificate checked."""
    own = cluster.own_state(source)
    parameters = {
        "host": "127.0.0.1", "port": cluster.local.nodes[target].port, "user": "replicator", "passfile": own / "passfile",
        "sslmode": "verify-full", "sslrootcert": own / "tls" / "ca.crt", "sslcert": own / "tls" / "client.crt", "application_name": "observer",
    }  # fmt: skip
    return " ".join(f"{key}={value}" for key, value in parameters.items())


@contextmanager
def observing(cluster: Cluster) -> Iterator[Observation]:
    """Observe every standby, log in from each node at each other one, and read all logs, while the block runs."""
    primary, seen = cluster.primary(), Observation()
    nodes = {name: cluster.local.nodes[name] for name in cluster.names}
    wanted = {
        "standbys": {name: f"host={node.socket_directory} port={node.port} dbname=postgres" for name, node in nodes.items() if name != primary},
        "logins": {f"{source} at {target}": login(cluster, source, target) for source, target in itertools.permutations(nodes, 2)},
        "acknowledged": str(cluster.state / "acknowledged"),
    }
    logs = {name: cluster.place(name) / "postgresql.log" for name in nodes}
    begun = {name: path.stat().st_size for name, path in logs.items()}
    program = (HERE / "observer.py").read_text(encoding="utf-8")  # as with the client that writes
    argv = [cluster.local.interpreter, "-c", program, json.dumps(wanted)]
    observer = subprocess.Popen(
        argv, cwd="/", env={"PATH": "/usr/bin:/bin"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **cluster.switch
    )
    try:
        assert observer.stdout and observer.stdout.readline() == "observing\n"
        yield seen
        output, _errors = observer.communicate(timeout=60)
        seen.found = json.loads(output)
    finally:
        observer.kill()
        observer.wait()
    for name, path in logs.items():
        with path.open("rb") as stream:
            stream.seek(begun[name])
            seen.logs[name] = stream.read().decode("utf-8", errors="replace")
