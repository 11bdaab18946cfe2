# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe's control pipe and its end where no server ever answers."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("psycopg2")

from benchmarks import acks, probe


@pytest.fixture
def pipe() -> Iterator[tuple[io.FileIO, io.FileIO]]:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as requests, os.fdopen(write_end, "wb", buffering=0) as sender:
        yield requests, sender


@pytest.fixture
def frozen_dsn() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"host=127.0.0.1 port={listener.getsockname()[1]} user=u dbname=d"


def test_control_answers_status_and_remembers_half_a_request(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    requests, sender = pipe
    answers = io.BytesIO()
    control = probe.Control(requests, answers)
    control.record(acks.Ack(7, 1.5, "a:1"))
    sender.write(b"status\nsta")
    assert control.serve() is False
    sender.write(b"tus\n")
    assert control.serve() is False
    expected = {"acknowledged": 1, "last": {"number": 7, "at_seconds": 1.5, "host": "a:1"}}
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [expected, expected]


@pytest.mark.parametrize("ending", ["stop", "closed"])
def test_control_stops_on_request_and_when_the_pipe_closes(ending: str, pipe: tuple[io.FileIO, io.FileIO]) -> None:
    requests, sender = pipe
    control = probe.Control(requests, io.BytesIO())
    sender.write(b"stop\n") if ending == "stop" else sender.close()
    control.wait(1)
    assert control.stop_requested


def test_control_wait_without_request_ends(pipe: tuple[io.FileIO, io.FileIO]) -> None:
    control = probe.Control(pipe[0], io.BytesIO())
    began = time.monotonic()
    control.wait(0.02)
    assert not control.stop_requested and time.monotonic() - began < 1


def test_start_without_a_server_that_answers_ends_in_time(frozen_dsn: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(probe.ProbeError, match="No commit was acknowledged"):
        probe.ProbeProcess.start(probe.ProbeSpec(frozen_dsn, "t", str(tmp_path / "acks")), timeout_seconds=0.3)
    assert time.monotonic() - began < 5


def test_start_with_an_existing_log_does_not_overwrite_it(frozen_dsn: str, tmp_path: Path) -> None:
    log = tmp_path / "acks"
    log.write_text("earlier", encoding="utf-8")
    with pytest.raises(probe.ProbeError, match="status 2"):
        probe.ProbeProcess.start(probe.ProbeSpec(frozen_dsn, "t", str(log)), timeout_seconds=5)
    assert log.read_text(encoding="utf-8") == "earlier"


def test_command_line_run_ends_after_its_seconds(frozen_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "--dsn", frozen_dsn, "--table", "t", "--acks", str(tmp_path / "acks"), "--seconds", "0.2"]
    monkeypatch.setattr(probe.signal, "signal", lambda *_handler: None)
    parsed = probe.parse_arguments(arguments)
    assert parsed.action(parsed) == 1  # nothing was acknowledged


def test_report_names_gaps_and_rows() -> None:
    log = acks.AckLog(0.0, None, (acks.Ack(1, 1.0, "a"), acks.Ack(2, 3.0, "b")))
    figures = probe.report(log, acks.RowCheck(2, (2,), (), (9,)))
    assert figures["longest_gap"]["seconds"] == figures["handover_gap"]["seconds"] == 2.0
    assert (figures["lost_rows"], figures["rows_present_twice"], figures["unacknowledged_rows_present"]) == ([2], [], 1)
