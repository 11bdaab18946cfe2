# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections with deadlines, against hosts that accept TCP and never answer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

psycopg2 = pytest.importorskip("psycopg2")

from psycopg2 import extensions

from benchmarks import connect


@pytest.fixture
def frozen_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def frozen(port: int) -> tuple[connect.Endpoint, ...]:
    return connect.split_hosts(f"host=127.0.0.1 port={port} user=u dbname=d")


@pytest.mark.parametrize(
    ("dsn", "names"),
    [
        ("host=a,b port=1,2", ["a:1", "b:2"]),
        ("host=a,b", ["a:5432", "b:5432"]),
        ("host=a,b port=7", ["a:7", "b:7"]),
        ("postgresql://u:p%40ss@a:1,b:2/d?target_session_attrs=read-write", ["a:1", "b:2"]),
    ],
    ids=["ports", "default_port", "one_port", "uri"],
)
def test_split_hosts_gives_each_host_its_own_string(dsn: str, names: list[str]) -> None:
    endpoints = connect.split_hosts(dsn)
    assert [endpoint.name for endpoint in endpoints] == names
    assert all("target_session_attrs" not in extensions.parse_dsn(endpoint.dsn) for endpoint in endpoints)


@pytest.mark.parametrize("dsn", ["dbname=d", "host=a,b,c port=1,2", "host=a hostaddr=10.0.0.1"])
def test_split_hosts_unusable_string_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError):
        connect.split_hosts(dsn)


def test_connect_writable_frozen_host_ends_at_the_deadline(frozen_port: int) -> None:
    began = time.monotonic()
    with pytest.raises(connect.DeadlineError, match="no answer"):
        connect.connect_writable(frozen(frozen_port), timeout_seconds=0.3, pace=connect.Pace(0.1, 0.01))
    assert 0.2 < time.monotonic() - began < 2


def test_connect_writable_closed_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(connect.DeadlineError, match=rf"127\.0\.0\.1:{port}.*refused"):
        connect.connect_writable(frozen(port), timeout_seconds=0.1)


def test_connect_writable_stops_when_asked(frozen_port: int) -> None:
    read_end, write_end = os.pipe()
    try:
        os.write(write_end, b"stop\n")
        with pytest.raises(connect.StoppedError):
            connect.connect_writable(frozen(frozen_port), timeout_seconds=5, wake=read_end, stopped=lambda: True)
    finally:
        os.close(read_end)
        os.close(write_end)
