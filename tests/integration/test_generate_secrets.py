# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/generate_secrets.yml as a user runs it."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
VAULT_SCRIPT = str(CHECKOUT / "scripts" / "vault_password_env-client.sh")
PASSWORD = "opens this vault only"
NAMES = ["vault_pg_replication_password", "vault_pg_rewind_password", "vault_pg_tls_ca_passphrase"]


def environment(password: str | None) -> dict[str, str]:
    present = {key: value for key, value in os.environ.items() if key != "PG_OPS_VAULT_PASSWORD"}
    present["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{present['PATH']}"
    return present if password is None else {**present, "PG_OPS_VAULT_PASSWORD": password}


def run(*argv: str, password: str | None = PASSWORD) -> subprocess.CompletedProcess[str]:
    """Run one of .venv's programs in the checkout; password None leaves PG_OPS_VAULT_PASSWORD unset."""
    return subprocess.run(argv, cwd=CHECKOUT, env=environment(password), capture_output=True, text=True, check=False)


def generate(vault_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run("ansible-playbook", "playbooks/generate_secrets.yml", "-e", f"vault_file={vault_file}", *arguments)


def generate_at_a_terminal(vault_file: Path, *, typed: str) -> tuple[int, str]:
    """Run it with --ask-vault-pass as a person at a terminal does, who types when asked; return the exit status and what is on the screen."""
    keyboard, terminal = pty.openpty()
    argv = ["ansible-playbook", "playbooks/generate_secrets.yml", "--ask-vault-pass", "-e", f"vault_file={vault_file}"]
    # getpass asks at /dev/tty, which is the session's own terminal: setsid makes it that.
    process = subprocess.Popen(["setsid", "--ctty", *argv], cwd=CHECKOUT, env=environment(None), stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    screen, asked = b"", False
    try:
        while select.select([keyboard], [], [], 60)[0]:
            try:
                screen += os.read(keyboard, 65536)
            except OSError:  # nobody has the terminal open any more
                break
            if not asked and b"Vault password: " in screen:
                asked = True
                os.write(keyboard, f"{typed}\n".encode())
        return process.wait(timeout=10), screen.decode()
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)


def decrypt(path: Path, password: str = PASSWORD) -> dict[str, str]:
    shown = run("ansible-vault", "view", "--vault-id", VAULT_SCRIPT, str(path), password=password)
    assert shown.returncode == 0, shown.stderr
    return yaml.safe_load(shown.stdout)


def test_generate_secrets_makes_an_encrypted_private_file_and_shows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "group_vars" / "pg_nodes" / "vault.yml"
    done = generate(path, "--vault-id", VAULT_SCRIPT, "-vvvvv")
    assert done.returncode == 0, done.stdout
    secrets = decrypt(path)
    assert sorted(secrets) == sorted(NAMES)
    assert len(set(secrets.values())) == len(NAMES)
    assert all(len(secret) >= 32 for secret in secrets.values())
    assert path.stat().st_mode & 0o777 == 0o600
    for hidden in (*secrets.values(), PASSWORD):
        assert hidden not in done.stdout + done.stderr
    assert not any(secret in path.read_text(encoding="utf-8") for secret in secrets.values())


def test_generate_secrets_twice_draws_others(tmp_path: Path) -> None:
    for name in ("one.yml", "two.yml"):
        assert generate(tmp_path / name, "--vault-id", VAULT_SCRIPT).returncode == 0
    assert set(decrypt(tmp_path / "one.yml").values()).isdisjoint(decrypt(tmp_path / "two.yml").values())


def test_generate_secrets_with_a_label_encrypts_for_that_id(tmp_path: Path) -> None:
    assert generate(tmp_path / "vault.yml", "--vault-id", f"production@{VAULT_SCRIPT}").returncode == 0
    assert (tmp_path / "vault.yml").read_text(encoding="utf-8").startswith("$ANSIBLE_VAULT;1.2;AES256;production\n")
    assert sorted(decrypt(tmp_path / "vault.yml")) == sorted(NAMES)


@pytest.mark.parametrize("dangling", [False, True], ids=["file", "dangling link"])
def test_generate_secrets_over_an_existing_file_refuses(tmp_path: Path, *, dangling: bool) -> None:
    path = tmp_path / "vault.yml"
    if dangling:
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("mine", encoding="utf-8")
    done = generate(path, "--vault-id", VAULT_SCRIPT)
    assert done.returncode != 0
    assert "file_exists" in done.stdout
    assert dangling or path.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_generate_secrets_without_a_vault_password_refuses_and_writes_nothing(tmp_path: Path) -> None:
    done = generate(tmp_path / "vault.yml")
    assert done.returncode != 0
    assert "--ask-vault-pass" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_generate_secrets_takes_the_password_that_is_typed_and_does_not_show_it(tmp_path: Path) -> None:
    status, screen = generate_at_a_terminal(tmp_path / "vault.yml", typed=PASSWORD)
    assert status == 0, screen
    assert screen.count("Vault password: ") == 1
    assert PASSWORD not in screen
    assert sorted(decrypt(tmp_path / "vault.yml")) == sorted(NAMES)


def test_generate_secrets_with_nothing_typed_refuses_and_writes_nothing(tmp_path: Path) -> None:
    status, screen = generate_at_a_terminal(tmp_path / "vault.yml", typed="")
    assert status != 0, screen
    assert list(tmp_path.iterdir()) == []


def test_generate_secrets_in_check_mode_writes_nothing(tmp_path: Path) -> None:
    done = generate(tmp_path / "vault.yml", "--vault-id", VAULT_SCRIPT, "--check")
    assert done.returncode == 0, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_vault_script_without_its_variable_says_what_to_set() -> None:
    done = run(VAULT_SCRIPT, password=None)
    assert done.returncode == 1
    assert "PG_OPS_VAULT_PASSWORD is not set" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("inventory", ["local", "lxd", "example"])
def test_vault_of_each_inventory_holds_prefixed_secrets_only(inventory: str) -> None:
    secrets = decrypt(CHECKOUT / "inventories" / inventory / "group_vars" / "pg_nodes" / "vault.yml", "replicate-safely")
    assert sorted(secrets) == sorted(NAMES)
