# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sessions of the benchmarks' probe on real servers: nobody writable, then the promoted one, in the session that said no before."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

import pytest
from real_servers import TESTER_PASSWORD, Node, Pair, wait_for

from benchmarks import connect

pytestmark = pytest.mark.thorough


def endpoints(pair: Pair) -> tuple[connect.Endpoint, ...]:
    ports = f"{pair.primary.port},{pair.standby.port}"
    return connect.split_hosts(f"host=127.0.0.1,127.0.0.1 port={ports} user=tester password={TESTER_PASSWORD} dbname=postgres sslmode=disable")


def sessions(node: Node) -> list[int]:
    return list(node.sql("SELECT array_agg(pid) FROM pg_stat_activity WHERE query = 'SHOW transaction_read_only'") or [])


def test_connect_writable_takes_the_primary(pair: Pair) -> None:
    endpoint, connection = connect.connect_writable(endpoints(pair), timeout_seconds=10)
    assert endpoint.name == f"127.0.0.1:{pair.primary.port}"
    connect.execute(connection, "CREATE TABLE probe ()", (), 10).close()
    connection.close()


class Looking:
    """Something that looks for a writable host until the standby is one."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._found: list[tuple[connect.Endpoint, connect.Connection]] = []
        self._thread = threading.Thread(target=lambda: self._found.append(connect.connect_writable(endpoints(pair), timeout_seconds=60)))
        self._thread.start()
        wait_for(lambda: sessions(pair.standby), "a session with the standby")

    def promote(self) -> tuple[str, int]:
        """Promote the standby; return the host that was found then and its session's process."""
        assert not self._found
        self._pair.standby.program("pg_ctl", "-D", str(self._pair.standby.data), "promote", "-w")
        self._thread.join(10)
        [(endpoint, connection)] = self._found
        with contextlib.closing(connection):
            return endpoint.name, connection.info.backend_pid


@pytest.mark.parametrize("lose", [Node.stop, Node.crash], ids=["stopped", "crashed"])
def test_connect_writable_takes_the_promoted_standby_in_the_session_that_said_no(pair: Pair, lose: Callable[[Node], None]) -> None:
    lose(pair.primary)
    looking = Looking(pair)
    [session] = sessions(pair.standby)
    time.sleep(0.2)
    assert sessions(pair.standby) == [session]
    assert looking.promote() == (f"127.0.0.1:{pair.standby.port}", session)


def test_connect_writable_begins_again_when_a_session_is_ended(pair: Pair) -> None:
    pair.primary.stop()
    looking = Looking(pair)
    [first] = sessions(pair.standby)
    pair.standby.sql("SELECT pg_terminate_backend(%s)", first)
    wait_for(lambda: sessions(pair.standby) not in ([], [first]), "another session with the standby")
    [second] = sessions(pair.standby)
    assert looking.promote() == (f"127.0.0.1:{pair.standby.port}", second)
