# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Modules that connect to peers, with certificates: the right one, none yet, another authority's, another host's."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from real_servers import Answer, Node, Pair, own, wait_for

VERIFY = {"peer_ssl_mode": "verify-full"}
PEM = serialization.Encoding.PEM


class Authority:
    """An authority of a test's own."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        extension = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = self._sign(self.name, self.key.public_key(), extension)

    def _sign(self, name: x509.Name, public_key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(public_key).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        return builder.add_extension(extension, critical=False).sign(self.key, hashes.SHA256())

    def pair_for(self, address: str) -> bytes:
        """Return a key and its certificate for an address, in one text as the role tls makes it."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        certificate = self._sign(x509.Name([]), key.public_key(), names)
        text = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return text + certificate.public_bytes(PEM)


def encrypt(node: Node, authority: Authority, *, address: str = "127.0.0.1", trusts: Authority | None = None) -> None:
    """Give a stopped server a certificate, and have it admit the peers' roles encrypted only."""
    if not node.program("postgres", "-C", "ssl_library", "-D", str(node.data)).strip():
        pytest.skip(f"PostgreSQL in {node.programs.directory} is built without TLS, as the pip package's is")
    directory = node.state / "tls"
    directory.mkdir(parents=True)
    (directory / "server.pem").write_bytes(authority.pair_for(address))
    (directory / "server.pem").chmod(0o600)
    trust(node, trusts or authority)
    node.append_conf(f"ssl = on\nssl_cert_file = '{directory}/server.pem'\nssl_key_file = '{directory}/server.pem'")
    hba = node.data / "pg_hba.conf"
    lines = hba.read_text(encoding="utf-8").splitlines(keepends=True)
    ours = ("replicator", "rewinder")
    hba.write_text("".join(f"hostssl{line[4:]}" if line.startswith("host") and any(role in line for role in ours) else line for line in lines))
    own(node.home)


def trust(node: Node, authority: Authority) -> None:
    (node.state / "tls" / "ca.crt").write_bytes(authority.certificate.public_bytes(PEM))
    own(node.state)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("the cluster's")


@pytest.fixture
def encrypted(stopped_pair: Pair, authority: Authority) -> Pair:
    """A running pair with certificates, the standby not streaming over TLS on purpose yet."""
    pair = Pair(*(replace(node, extra=VERIFY) for node in (stopped_pair.primary, stopped_pair.standby, stopped_pair.spare)))
    for node in (pair.primary, pair.standby):
        encrypt(node, authority)
        node.start()
    return pair


def settle(pair: Pair) -> Answer:
    place = {"name": pair.primary.name, "address": "127.0.0.1", "port": pair.primary.port}
    return pair.standby.call("pg_settle", host_name="beta", slot_name=pair.standby.slot, upstream=place, timeout_seconds=8)


def streams_encrypted(primary: Node) -> bool:
    return bool(primary.sql("SELECT count(*) = 1 AND bool_and(ssl) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid) WHERE state = 'streaming'"))


def test_standby_checks_the_certificate_and_again_changes_nothing(encrypted: Pair) -> None:
    assert settle(encrypted).changed
    conninfo = encrypted.standby.sql("SHOW primary_conninfo")
    assert "sslmode=verify-full" in conninfo and f"{encrypted.standby.state}/tls/ca.crt" in conninfo
    wait_for(lambda: streams_encrypted(encrypted.primary), "encrypted streaming")
    assert not settle(encrypted).changed


def test_switchover_and_rewind_run_encrypted(encrypted: Pair) -> None:
    settle(encrypted)
    wait_for(lambda: streams_encrypted(encrypted.primary), "encrypted streaming")
    assert encrypted.primary.call_towards("pg_switchover", encrypted.standby, candidate_slots=[encrypted.primary.slot]).changed
    wait_for(lambda: streams_encrypted(encrypted.standby), "the old primary to stream encrypted")
    encrypted.primary.stop()
    encrypted.standby.write_row(1)  # nobody else has it: only a rewind brings this server back
    encrypted.standby.crash()
    encrypted.primary.start()
    assert encrypted.primary.call("pg_promote", slots=[encrypted.standby.slot]).changed
    answer = encrypted.standby.call_towards("pg_rejoin", encrypted.primary)
    assert answer.changed and answer["action"] == "rewind" and answer["lost_transactions"] == 1
    wait_for(lambda: streams_encrypted(encrypted.primary), "the rewound server to stream encrypted")


@pytest.mark.parametrize("who", ["authority", "address"])
def test_connection_to_a_server_that_cannot_prove_its_name_is_refused(stopped_pair: Pair, authority: Authority, who: str) -> None:
    """The module itself connects before it changes anything, and says why it cannot."""
    pair = Pair(*(replace(node, extra=VERIFY) for node in (stopped_pair.primary, stopped_pair.standby, stopped_pair.spare)))
    signer = Authority("somebody else's") if who == "authority" else authority
    encrypt(pair.primary, signer, address="127.0.0.1" if who == "authority" else "192.0.2.1")
    pair.primary.start()
    (pair.spare.state / "tls").mkdir(parents=True)
    trust(pair.spare, authority)
    message = pair.spare.call_towards("pg_basebackup_standby", pair.primary).refusal("peer_unreachable")
    assert ("certificate verify failed" in message) if who == "authority" else ("192.0.2.1" in message or "does not match" in message)


@pytest.mark.parametrize("mode", ["verify-full", "require"])
def test_before_the_certificates_are_made_connections_are_as_they_were(pair: Pair, mode: str) -> None:
    """A failover must not fail because pg_tls was set and initial_setup.yml has not run since."""
    standby = replace(pair.standby, extra={"peer_ssl_mode": mode})
    assert not Path(standby.state, "tls").exists()
    assert not settle(Pair(pair.primary, standby, pair.spare)).changed
