# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and certificates of a running cluster change, also by runs that are killed on the way; a client writes all the time.

Its commits wait for one of two standbys. What the standbys and those who log in notice is observed; with -s it is printed.
The authority is in its default place, beside the inventory: every playbook after the first reads that inventory with the authority in it.
The tests build on each other, in this order.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import struct
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from tests.integration.playbooks.cluster import CHECKOUT, Cluster, Done, unchanged, wait_for, writing
from tests.integration.playbooks.observing import ENDED, Observation, observing
from tests.integration.playbooks.watching import leaks

# Each has a last word that stands nowhere else: it is looked for in what is printed.
PASSPHRASE = "nobody's business"
FIRST = "first 'new\\ \"one\" é tail-7f"
WHILE_DOWN, HALF_WAY = "set while one is down-7f", "half of the way-7f"
PAIR_MADE = "Configure | Make the pair the server's"
# Tasks between which the hosts differ most in what they have.
DECISIVE = (
    "Configure | Make the server's key, which stays on the host",
    "Configure | Sign the certificate on the controller",
    "Configure | Put the certificate beside its key",
    PAIR_MADE,
    "Service | Have a running server read its certificate",
    "Prove | End the connection of a standby",
)
SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # SSLRequest, in the documentation's chapter on message formats


def let_encrypt(cluster: Cluster) -> Cluster:
    """Return a cluster with an inventory of its own whose nodes can make keys; skips where the servers cannot encrypt."""
    answer = cluster.run_as_owner(cluster.program("postgres"), "-C", "ssl_library", "-D", "/", "-c", "config_file=/dev/null")
    if not answer.stdout.strip():
        pytest.skip(f"PostgreSQL in {cluster.local.bin_directory} is built without TLS, as the pip package's is")
    let_make_keys(cluster)
    return cluster.with_own_inventory()


def let_make_keys(cluster: Cluster) -> None:
    """Give the Python of the nodes what community.crypto needs."""
    own = str(CHECKOUT / ".venv" / "bin" / "python")
    if cluster.local.interpreter != own:
        pip = [own, "-m", "pip", "--python", cluster.local.interpreter, "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, "install", "--quiet", "cryptography", "-c", str(CHECKOUT / "constraints.txt")], check=True, timeout=120)


@pytest.fixture(scope="module")
def cluster(set_up: Callable[[int], Cluster]) -> Iterator[Cluster]:
    """Three nodes, set up without encryption; their Python can make keys."""
    made = let_encrypt(set_up(3))
    with writing(made):
        yield made


def secrets(cluster: Cluster, **more: object) -> tuple[str, str]:
    """Return the arguments that encrypt the cluster, as if the vault had these values; a command line would be everybody's to read."""
    path = cluster.state / "secrets.json"
    path.touch(mode=0o600)
    settings = {"pg_tls": "verify-full", "pg_tls_packages": [], "pg_tls_ca_passphrase": PASSPHRASE, "pg_synchronous_mode": "any"}
    path.write_text(json.dumps({**settings, **more}), encoding="utf-8")
    return "-e", f"@{path}"


def authority(cluster: Cluster) -> Path:
    return cluster.inventory_directory / ".tls" / "main"


def rotate(cluster: Cluster, password: str, *, kill_after: int = 0, kill_in: str = "", **more: object) -> Done:
    """Run rotate_secrets.yml as if the vault had these passwords."""
    passwords = {"pg_replication_password": password, "pg_rewind_password": password + "-of-rewind"}
    done = cluster.run("rotate_secrets", "-vvv", *secrets(cluster, **passwords, **more), kill_after=kill_after, kill_in=kill_in)
    assert leaks(done.output, [password, passwords["pg_rewind_password"], PASSPHRASE]) == []
    return done


def logs_in(cluster: Cluster, name: str, password: str) -> bool:
    """Whether the replication role gets in with this password, over TCP as a peer does."""
    port = cluster.local.nodes[name].port
    conninfo = f"host=127.0.0.1 port={port} user=replicator replication=true dbname=postgres connect_timeout=3"
    script = 'IFS= read -r PGPASSWORD; export PGPASSWORD; exec "$0" -XAtqw -d "$1" -c IDENTIFY_SYSTEM'
    done = cluster.run_as_owner("sh", "-c", script, cluster.program("psql"), conninfo, stdin=password + "\n")
    return done.returncode == 0


def coming(cluster: Cluster, name: str) -> Path:
    """The passfile that is to follow, with which a boot guard asks while passwords change."""
    return cluster.own_state(name) / "passfile.next"


def certificate(cluster: Cluster, name: str) -> x509.Certificate:
    """Return what a running server shows whoever connects, checked against the authority's certificate."""
    context = ssl.create_default_context(cafile=str(authority(cluster) / "ca.crt"))
    with socket.create_connection(("127.0.0.1", cluster.local.nodes[name].port), timeout=5) as plain:
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S", f"{name} does not encrypt"
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
            shown = encrypted.getpeercert(binary_form=True)
    assert shown
    return x509.load_der_x509_certificate(shown)


def serials(cluster: Cluster) -> dict[str, int]:
    return {name: certificate(cluster, name).serial_number for name in cluster.names}


def senders(cluster: Cluster) -> list[str]:
    """The connections that the standbys stream through, with whether they are encrypted."""
    return cluster.sql(
        cluster.primary(), "SELECT application_name, pid, ssl FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) ORDER BY 1"
    ).splitlines()


def assert_encrypted(cluster: Cluster, primary: str = "pgsql1") -> None:
    """Every standby streams from the primary, and only after a look at its certificate."""
    cluster.assert_replicating(primary)
    assert [line.rsplit("|", 1)[1] for line in senders(cluster)] == ["t"] * (len(cluster.names) - 1)
    for name in cluster.names:
        if name != primary:
            assert "sslmode=verify-full" in cluster.sql(name, "SHOW primary_conninfo")


def restart_each(cluster: Cluster) -> None:
    """Restart one server after the other: a key and a certificate that do not belong together would keep it down, or its standbys away."""
    for name in cluster.names:
        cluster.pg_ctl(name, "restart", "-m", "fast")
        assert_encrypted(cluster)


def leave_half_a_copy(cluster: Cluster, name: str) -> None:
    """Leave what a host that loses its power leaves where /tmp is another file system: Ansible copies beside the file first."""
    half = cluster.own_state(name) / "tls" / "pair" / ".ansible_tmp8x2k1f0z10_key.pem"
    half.write_text("-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg\n", encoding="ascii")


def assert_undisturbed(seen: Observation, *, reconnects: int) -> None:
    """Each standby came back by itself so many times, one at a time, because it was told to; nobody was kept out."""
    print(seen.summary())
    assert set(seen.reconnects.values()) == {reconnects}, seen.found
    assert seen.away == []
    assert seen.overlaps == []
    primary = next(name for name in seen.logs if name not in seen.reconnects)
    for name in seen.logs:
        loud = seen.loud_lines(name)
        assert all(ENDED in line for line in loud), loud
        assert len(loud) == (reconnects * len(seen.reconnects) if name == primary else reconnects), loud


def test_programs_without_tls_are_refused_before_there_is_a_server(make: Callable[..., Cluster]) -> None:
    """With ssl = on they make a server that does not start."""
    plain = make(2, programs="pip").with_own_inventory()
    with unchanged(plain):
        done = plain.run("initial_setup", *secrets(plain))
    assert done.returncode == 2, done.output
    assert f"PostgreSQL of pgsql1 ({plain.program('postgres')}), pgsql2 ({plain.program('postgres')}) is built without TLS" in done.text
    assert not authority(plain).exists()


def test_a_running_cluster_is_encrypted_without_a_restart(cluster: Cluster) -> None:
    started = {name: cluster.pid(name) for name in cluster.names}
    cluster.play("initial_setup", *secrets(cluster))
    assert {name: cluster.pid(name) for name in cluster.names} == started
    cluster.assert_replicating("pgsql1")
    shown = certificate(cluster, "pgsql2")
    assert "pgsql2" in shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert timedelta(days=395) < shown.not_valid_after_utc - datetime.now(UTC) < timedelta(days=398)
    assert sorted(path.name for path in authority(cluster).iterdir()) == ["ca.crt", "ca.key"]
    cluster.play("status", *secrets(cluster))


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
    """Killed when one host has its new certificate on disk, no server has read it, and the others have the old one."""
    before, rows = serials(cluster), len(cluster.acknowledged_rows())
    with unchanged(cluster):
        cluster.play("rotate_secrets", "--check", "--diff", *secrets(cluster, pg_replication_password="another one", pg_rewind_password="another, too"))
    with observing(cluster) as seen:
        killed = rotate(cluster, FIRST, kill_in=PAIR_MADE)
    assert killed.returncode == -signal.SIGKILL, killed.output
    print(seen.summary())
    assert set(seen.reconnects.values()) == {0} and seen.away == []
    # From the new password's first moment to the passfile's a login may fail; nothing else is wrong, also not after it.
    assert [text for text in seen.failed_logins if "password authentication failed" not in text] == []

    assert serials(cluster) == before
    restart_each(cluster)
    half = serials(cluster)
    assert [name for name in cluster.names if half[name] != before[name]] == ["pgsql1"]
    leave_half_a_copy(cluster, "pgsql2")

    with observing(cluster) as seen:
        done = rotate(cluster, FIRST, pg_tls_valid_days=20)
    assert done.returncode == 0, done.output
    assert "proven" in done.text
    assert_undisturbed(seen, reconnects=1)
    assert seen.failed_logins == [] and seen.found["logins"] > 0
    assert logs_in(cluster, "pgsql1", FIRST)
    assert not logs_in(cluster, "pgsql1", "first")
    after = serials(cluster)
    assert all(after[name] not in (before[name], half[name]) for name in cluster.names)
    assert_encrypted(cluster)
    assert len(cluster.acknowledged_rows()) > rows
    cluster.play("switchover", "-e", "pg_switchover_to=pgsql2", *secrets(cluster))
    cluster.play("switchover", "-e", "pg_switchover_to=pgsql1", *secrets(cluster))


def test_a_certificate_that_ends_soon_is_renewed_once_and_nothing_is_interrupted(cluster: Cluster) -> None:
    """With the default of 30 days before its end; the rotation above made it for 20."""
    passwords = {"pg_replication_password": FIRST, "pg_rewind_password": FIRST + "-of-rewind"}
    before = {name: certificate(cluster, name) for name in cluster.names}
    assert all(shown.not_valid_after_utc - datetime.now(UTC) < timedelta(days=20) for shown in before.values())
    with observing(cluster) as seen:
        cluster.play("initial_setup", *secrets(cluster, **passwords))
    assert_undisturbed(seen, reconnects=0)
    assert seen.failed_logins == []
    after = {name: certificate(cluster, name) for name in cluster.names}
    assert all(after[name].serial_number != before[name].serial_number for name in cluster.names)
    assert all(shown.not_valid_after_utc - datetime.now(UTC) > timedelta(days=395) for shown in after.values())
    again = cluster.play("initial_setup", *secrets(cluster, **passwords))
    assert not any(again.changed.values()), again.output
    assert serials(cluster) == {name: shown.serial_number for name, shown in after.items()}
    cluster.pg_ctl("pgsql2", "restart", "-m", "fast")
    assert_encrypted(cluster)


@pytest.mark.long
def test_killed_where_hosts_differ_in_their_certificates_everybody_still_gets_in_everywhere(cluster: Cluster) -> None:
    """The passwords stay as they are here: from the first kill to the last repetition no login at any node fails."""
    if not (authority(cluster) / "ca.crt").exists():  # this test alone was asked for
        cluster.play("initial_setup", *secrets(cluster))
    assert rotate(cluster, FIRST).returncode == 0
    for task in DECISIVE:
        before = serials(cluster)
        with observing(cluster) as seen:
            killed = rotate(cluster, FIRST, kill_in=task)
        assert killed.returncode == -signal.SIGKILL, f"in {task}:\n{killed.output}"
        print(f"killed in {task}: {seen.summary()}")
        assert seen.failed_logins == [] and seen.away == [], task
        assert sorted(seen.reconnects.values()) == ([0, 1] if task == DECISIVE[-1] else [0, 0]), task
        restart_each(cluster)
        with observing(cluster) as seen:
            done = rotate(cluster, FIRST)
        assert done.returncode == 0, f"after a kill in {task}:\n{done.output}"
        assert_undisturbed(seen, reconnects=1)
        assert seen.failed_logins == [], task
        after = serials(cluster)
        assert all(after[name] != before[name] for name in cluster.names), task
        assert_encrypted(cluster)


def test_a_controller_without_the_authority_changes_nothing(cluster: Cluster) -> None:
    """Neither are passwords set, which comes before certificates."""
    if not authority(cluster).exists():  # this test alone was asked for
        cluster.play("initial_setup", *secrets(cluster))
    kept = authority(cluster).rename(authority(cluster).parent / "elsewhere")
    for name in ("rotate_secrets", "initial_setup"):
        with unchanged(cluster):
            done = cluster.run(name, *secrets(cluster, pg_replication_password="not this one", pg_rewind_password="nor this one"))
        assert done.returncode == 2, done.output
        assert "pgsql1: the controller does not have the authority of cluster main" in done.text
        assert not authority(cluster).exists()
    kept.rename(authority(cluster))


@pytest.mark.long
def test_another_authority_as_the_documentation_has_it_keeps_no_standby_out(cluster: Cluster) -> None:
    """pg_tls is `on` meanwhile; killed when every host trusts the new authority and every server shows a certificate of the old one."""
    passwords = {"pg_replication_password": FIRST, "pg_rewind_password": FIRST + "-of-rewind"}
    cluster.play("initial_setup", *secrets(cluster, **passwords))
    before = (authority(cluster) / "ca.crt").read_bytes()
    cluster.play("initial_setup", *secrets(cluster, **passwords, pg_tls="on"))
    shutil.rmtree(authority(cluster))
    another = {**passwords, "pg_tls": "on", "pg_tls_replace_authority": True}
    killed = cluster.run("initial_setup", *secrets(cluster, **another), kill_in=PAIR_MADE)
    assert killed.returncode == -signal.SIGKILL, killed.output
    for name in cluster.names:
        cluster.pg_ctl(name, "restart", "-m", "fast")
        cluster.assert_replicating("pgsql1")
    cluster.play("initial_setup", *secrets(cluster, **another))
    cluster.play("initial_setup", *secrets(cluster, **passwords))
    assert (authority(cluster) / "ca.crt").read_bytes() != before
    assert len(set(serials(cluster).values())) == len(cluster.names)  # looked at with the new authority's certificate
    assert_encrypted(cluster)


@pytest.mark.long
@pytest.mark.parametrize("every", [4, 30])
def test_killed_on_the_way_it_is_repeated(cluster: Cluster, every: int) -> None:
    """Killed after so many tasks more each time. The standby's key and certificate always belong together: it can be restarted."""
    if not (authority(cluster) / "ca.crt").exists():  # this test alone was asked for
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
    assert_encrypted(cluster)


def test_a_host_that_does_not_answer_is_refused(cluster: Cluster) -> None:
    """It would come back with the old secrets."""
    password = {"pg_replication_password": "too soon-7f", "pg_rewind_password": "too soon-7f"}
    with unchanged(cluster):
        refused = cluster.run("rotate_secrets", *secrets(cluster, **password), inventory={"pgsql2": {"pg_host_available": False}})
    assert refused.returncode != 0
    assert "pgsql2: cannot be observed" in refused.text and "Nothing was changed" in refused.text


@pytest.mark.long
def test_a_server_that_is_down_gets_the_new_secrets_too(cluster: Cluster) -> None:
    cluster.pg_ctl("pgsql2", "stop", "-m", "fast")
    done = rotate(cluster, WHILE_DOWN)
    assert done.returncode == 0, done.output
    assert "pgsql2: does not run and gets them too; bring it back afterwards: start_new_standby.yml" in done.text
    cluster.play("start_new_standby", *secrets(cluster))
    assert_encrypted(cluster)
    assert logs_in(cluster, "pgsql1", WHILE_DOWN)


@pytest.mark.long
def test_a_rotation_that_was_killed_before_the_primary_died_is_ended_behind_the_failover(cluster: Cluster) -> None:
    """The primary has the new passwords and no host the new passfile: the other two keep each other out."""
    killed = rotate(cluster, HALF_WAY, kill_in="Passwords | Go no further where the primary did not take them")
    assert killed.returncode == -signal.SIGKILL, killed.output
    assert all(coming(cluster, name).exists() for name in cluster.names)
    cluster.pg_ctl("pgsql1", "stop", "-m", "immediate")
    refused = rotate(cluster, HALF_WAY)
    assert refused.returncode != 0 and "Run failover.yml" in refused.text, refused.output

    failed = cluster.run("failover", "-e", "pg_start_timeout_seconds=5", *secrets(cluster))
    assert failed.returncode != 0, failed.output
    assert "password authentication failed" in failed.text and "then run rotate_secrets.yml" in failed.text
    primary = cluster.primary()
    assert primary != "pgsql1"
    done = rotate(cluster, HALF_WAY)
    assert done.returncode == 0, done.output
    assert "pgsql1: does not run and gets them too" in done.text and f"Cluster main: proven. Primary {primary}" in done.text
    assert not any(coming(cluster, name).exists() for name in cluster.names)
    cluster.play("start_new_standby", *secrets(cluster))
    assert_encrypted(cluster, primary)


def test_rotations_lost_no_acknowledged_row(cluster: Cluster) -> None:
    """The last test of this file: the client wrote through all of the above."""
    acknowledged = cluster.acknowledged_rows()
    for name in cluster.names:
        wait_for(lambda name=name: acknowledged <= cluster.stored_rows(name), f"{name} to hold {len(acknowledged)} acknowledged rows")
