# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A shell and an SQL session that stay open, so that a measured step costs no start of a program."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import subprocess
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self


class SessionError(Exception):
    """A command failed, its session ended, or it took longer than it may."""


class _Session:
    """A program that reads commands from its standard input and marks the end of each answer."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._name = " ".join(argv)
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._mark = secrets.token_hex(8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the session; one that does not end at once is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)

    def _exchange(self, request: str, timeout_seconds: float) -> tuple[str, str]:
        """Send a request; return the answer and what stands behind the mark that ends it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SessionError(f"{self._name} has ended.") from error
        received = b""
        while True:
            answer, mark, rest = received.decode(errors="replace").partition(f"{self._mark} ")
            if mark and rest.endswith("\n"):
                return answer.rstrip("\n"), rest.rstrip("\n")
            poller = select.poll()
            poller.register(self._process.stdout, select.POLLIN)
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise SessionError(f"{self._name} did not answer within {timeout_seconds:g} s, it said {answer!r}.")
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise SessionError(f"{self._name} has ended, it said {answer!r}.")
            received += chunk


class PersistentShell(_Session):
    """An open `sh`; `argv` starts it, for example `lxc exec pgsql1 -- sh`."""

    def run(self, script: str, *, timeout_seconds: float = 30.0) -> str:
        """Run a script and return what it printed; raises SessionError if its last command fails or it is late."""
        request = f"(\n{script}\n) </dev/null 2>&1; echo {self._mark} $?\n"
        output, status = self._exchange(request, timeout_seconds)
        if status != "0":
            raise SessionError(f"A script failed with status {status} in {self._name}: {output!r}.")
        return output


class PersistentSql(_Session):
    """An open `psql -XAtq`; `argv` starts it."""

    def query(self, statement: str, *, timeout_seconds: float = 30.0) -> str:
        """Run one statement and return its unaligned rows; raises SessionError if it fails or is late."""
        request = f"{statement};\n\\echo {self._mark} :ERROR\n"
        output, failed = self._exchange(request, timeout_seconds)
        if failed != "false":
            raise SessionError(f"A statement failed in {self._name}: {output!r}.")
        return output
