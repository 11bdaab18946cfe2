# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What libpq says of a server that was asked for a sign of life: its own words, and those of a server behind them."""

from __future__ import annotations

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.observe import ANSWERED

FAILED = 'connection to server at "192.0.2.1", port 5432 failed: '


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("FATAL:  sorry, too many clients already", id="no connection left"),
        pytest.param("FATAL:  tut mir leid, schon zu viele Verbindungen", id="in another language"),
        pytest.param("fe_sendauth: no password supplied", id="wants a password"),
        pytest.param("could not fork new process for connection: Resource temporarily unavailable", id="no process left"),
        pytest.param("server sent an error response during SSL exchange", id="no process left for TLS"),
        pytest.param("SSL error: certificate verify failed", id="certificate"),
        pytest.param("server does not support SSL, but SSL was required", id="no TLS"),
    ],
)
def test_answer_of_a_live_server_counts(said: str) -> None:
    assert ANSWERED.search(FAILED + said)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?", id="refused"),
        pytest.param("No route to host", id="no route"),
        pytest.param("server closed the connection unexpectedly", id="closed, as a proxy does"),
        pytest.param("timeout expired", id="timeout"),
    ],
)
def test_what_the_network_says_does_not_count(said: str) -> None:
    assert not ANSWERED.search(FAILED + said)
