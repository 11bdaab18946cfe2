# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and certificates of a running cluster change, also by runs that are killed on the way; a client writes all the time.

The tests build on each other, in this order.
"""

from __future__ import annotations

import json
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from tests.integration.playbooks.cluster import CHECKOUT, Cluster, Done, unchanged, wait_for, writing
from tests.integration.playbooks.watching import leaks

# Each has a last word that stands nowhere else: it is looked for in what is printed.
PASSPHRASE = "nobody's business"
FIRST = "first 'new\\ \"one\" é tail-7f"
KILLED_AFTER = 45  # tasks, about half of them
SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # SSLRequest, in the documentation's chapter on message formats


def let_make_keys(cluster: Cluster) -> None:
    """Give the Python of the nodes what community.crypto needs."""
    own = str(CHECKOUT / ".venv" / "bin" / "python")
    if cluster.local.interpreter != own:
        pip = [own, "-m", "pip", "--python", cluster.local.interpreter, "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, "install", "--quiet", "cryptography", "-c", str(CHECKOUT / "constraints.txt")], check=True, timeout=120)


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Iterator[Cluster]:
    """Two nodes, set up without encryption; their Python can make keys."""
    made = set_up(2)
    let_make_keys(made)
    with writing(made):
        yield made


def secrets(cluster: Cluster, **more: object) -> tuple[str, str]:
    """Return the arguments that encrypt the cluster, as if the vault had these values; a command line would be everybody's to read."""
    path = cluster.state / "secrets.json"
    path.touch(mode=0o600)
    authority = {"pg_tls_ca_directory": str(cluster.state / "authority"), "pg_tls_ca_passphrase": PASSPHRASE}
    path.write_text(json.dumps({"pg_tls": "verify-full", "pg_tls_packages": [], **authority, **more}), encoding="utf-8")
    return "-e", f"@{path}"


def rotate(cluster: Cluster, password: str, *, kill_after: int = 0) -> Done:
    """Run rotate_secrets.yml as if the vault had these passwords."""
    passwords = {"pg_replication_password": password, "pg_rewind_password": password + "-of-rewind"}
    done = cluster.run("rotate_secrets", "-vvv", *secrets(cluster, **passwords), kill_after=kill_after)
    assert leaks(done.output, [password, passwords["pg_rewind_password"], PASSPHRASE]) == []
    return done


def logs_in(cluster: Cluster, name: str, password: str) -> bool:
    """Whether the replication role gets in with this password, over TCP as a peer does."""
    port = cluster.local.nodes[name].port
    conninfo = f"host=127.0.0.1 port={port} user=replicator replication=true dbname=postgres connect_timeout=3"
    script = 'IFS= read -r PGPASSWORD; export PGPASSWORD; exec "$0" -XAtqw -d "$1" -c IDENTIFY_SYSTEM'
    done = cluster.run_as_owner("sh", "-c", script, cluster.program("psql"), conninfo, stdin=password + "\n")
    return done.returncode == 0


def certificate(cluster: Cluster, name: str) -> x509.Certificate:
    """Return what a running server shows whoever connects, checked against the authority's certificate."""
    context = ssl.create_default_context(cafile=str(cluster.state / "authority" / "ca.crt"))
    with socket.create_connection(("127.0.0.1", cluster.local.nodes[name].port), timeout=5) as plain:
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S", f"{name} does not encrypt"
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
            shown = encrypted.getpeercert(binary_form=True)
    assert shown
    return x509.load_der_x509_certificate(shown)


def serials(cluster: Cluster) -> dict[str, int]:
    return {name: certificate(cluster, name).serial_number for name in cluster.names}


def senders(cluster: Cluster) -> str:
    """The connection that the standby streams through, with whether it is encrypted."""
    return cluster.sql(cluster.primary(), "SELECT pid, application_name, ssl FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)")


def test_a_running_cluster_is_encrypted_without_a_restart(cluster: Cluster) -> None:
    started = {name: cluster.pid(name) for name in cluster.names}
    cluster.play("initial_setup", *secrets(cluster))
    assert {name: cluster.pid(name) for name in cluster.names} == started
    cluster.assert_replicating("pgsql1")
    shown = certificate(cluster, "pgsql2")
    assert "pgsql2" in shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert timedelta(days=395) < shown.not_valid_after_utc - datetime.now(UTC) < timedelta(days=398)


@pytest.mark.long
def test_a_certificate_that_is_good_for_long_enough_stays(cluster: Cluster) -> None:
    """In check mode neither one that ends soon is replaced."""
    cluster.play("initial_setup", *secrets(cluster))
    before = serials(cluster)
    enough = cluster.play("initial_setup", *secrets(cluster, pg_tls_renew_days=390))
    assert serials(cluster) == before
    assert not any(enough.changed.values()), enough.output
    with unchanged(cluster):
        checked = cluster.play("initial_setup", "--check", *secrets(cluster, pg_tls_renew_days=398))
    assert all(checked.changed[name] for name in cluster.names), checked.output


def test_new_passwords_and_certificates_replace_the_old_ones_and_nothing_stops_though_it_was_killed(cluster: Cluster) -> None:
    before, rows = serials(cluster), len(cluster.acknowledged_rows())
    with unchanged(cluster):
        cluster.play("rotate_secrets", "--check", "--diff", *secrets(cluster, pg_replication_password="another one", pg_rewind_password="another, too"))
    killed = rotate(cluster, FIRST, kill_after=KILLED_AFTER)
    assert killed.returncode == -signal.SIGKILL, killed.output
    cluster.assert_replicating("pgsql1")
    cluster.pg_ctl("pgsql2", "restart", "-m", "fast")  # a key and a certificate that do not belong together would keep it down
    done = rotate(cluster, FIRST)
    assert done.returncode == 0, done.output
    assert "proven" in done.text
    assert logs_in(cluster, "pgsql1", FIRST)
    assert not logs_in(cluster, "pgsql1", "first")
    after = serials(cluster)
    assert all(after[name] != before[name] for name in cluster.names)
    assert senders(cluster).endswith("|pgsql2|t")
    cluster.assert_replicating("pgsql1")
    assert len(cluster.acknowledged_rows()) > rows
    cluster.play("switchover", *secrets(cluster))
    cluster.play("switchover", *secrets(cluster))


def test_a_certificate_that_ends_soon_is_renewed_and_nothing_is_interrupted(cluster: Cluster) -> None:
    before, connections = serials(cluster), senders(cluster)
    passwords = {"pg_replication_password": FIRST, "pg_rewind_password": FIRST + "-of-rewind"}
    cluster.play("initial_setup", *secrets(cluster, **passwords, pg_tls_renew_days=398))  # it is good for 397
    after = serials(cluster)
    assert all(after[name] != before[name] for name in cluster.names)
    assert senders(cluster) == connections
    cluster.pg_ctl("pgsql2", "restart", "-m", "fast")
    cluster.assert_replicating("pgsql1")
    assert senders(cluster).endswith("|pgsql2|t")


@pytest.mark.long
@pytest.mark.parametrize("every", [4, 30])
def test_killed_on_the_way_it_is_repeated(cluster: Cluster, every: int) -> None:
    """Killed after so many tasks more each time. The standby's key and certificate always belong together: it can be restarted."""
    if not (cluster.state / "authority" / "ca.crt").exists():  # this test alone was asked for
        cluster.play("initial_setup", *secrets(cluster))
    for number in range(every // 2, 200, every):
        password = f"secret number-{number}-of-every-{every}"
        killed = rotate(cluster, password, kill_after=number)
        if killed.returncode != -signal.SIGKILL:
            assert killed.returncode == 0, killed.output
            break
        cluster.assert_replicating("pgsql1")
        cluster.pg_ctl("pgsql2", "restart", "-m", "fast")
        done = rotate(cluster, password)
        assert done.returncode == 0, f"after {number} tasks:\n{done.output}"
        assert logs_in(cluster, "pgsql1", password)
    cluster.assert_replicating("pgsql1")
    assert senders(cluster).endswith("|pgsql2|t")


def test_a_server_that_is_down_is_brought_back_first(cluster: Cluster) -> None:
    cluster.pg_ctl("pgsql2", "stop", "-m", "fast")
    before = cluster.snapshot()
    refused = rotate(cluster, "too soon-7f")
    assert refused.returncode != 0
    assert "pgsql2 stopped" in refused.text and "start_new_standby.yml" in refused.text
    assert cluster.snapshot() == before
    cluster.play("start_new_standby", *secrets(cluster))


def test_rotations_lost_no_acknowledged_row(cluster: Cluster) -> None:
    """The last test of this file: the client wrote through all of the above."""
    acknowledged = cluster.acknowledged_rows()
    for name in cluster.names:
        wait_for(lambda name=name: acknowledged <= cluster.stored_rows(name), f"{name} to hold {len(acknowledged)} acknowledged rows")
