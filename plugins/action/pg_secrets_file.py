# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Make fresh random secrets into a new vault file, without a secret ever leaving this process in plain text."""

from __future__ import annotations

import json
import os
import re
import secrets
import typing as t

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.parsing.vault import VaultLib, match_encrypt_secret
from ansible.plugins.action import ActionBase

SECRET_BYTES = 32


class Refusal(AnsibleActionFail):
    """The file is not made; message says why and what to do, reason is its stable code."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, result={"reason": reason})


class ActionModule(ActionBase):
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        dummy, arguments = self.validate_argument_spec(
            {
                "path": {"type": "str", "required": True},
                "names": {"type": "list", "elements": "str", "required": True},
            }
        )
        path = os.path.abspath(os.path.expanduser(arguments["path"]))
        names = arguments["names"]
        check_names(names)
        check_new(path)
        # DataLoader has no public way to encrypt with the passwords that the command line gave.
        vault_id, secret = choose_secret(self._loader._vault.secrets)  # pylint: disable=protected-access
        if not self._task.check_mode:
            plain = "---\n" + "".join(f"{name}: {json.dumps(secrets.token_urlsafe(SECRET_BYTES))}\n" for name in names)
            write_new(path, VaultLib().encrypt(plain, secret, vault_id=None if vault_id == "default" else vault_id))
        return {**result, "changed": True, "path": path, "names": names}


def check_names(names: list[str]) -> None:
    """Raise Refusal unless names are distinct names of variables."""
    odd = [name for name in names if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
    if odd or not names or len(set(names)) != len(names):
        raise Refusal(f"Cannot draw secrets for {names}: required are distinct names of variables.", reason="bad_names")


def check_new(path: str) -> None:
    """Raise Refusal if path exists, also as a dangling link."""
    if os.path.lexists(path):
        raise Refusal(
            f"Cannot make {path}: it exists and is never overwritten. Name another vault_file, or move this one away first.",
            reason="file_exists",
        )


def choose_secret(vault_secrets: t.Sequence[tuple[str | None, t.Any]]) -> tuple[str | None, t.Any]:
    """Return the vault id and password to encrypt with. Raises Refusal when there is none, or more than one and none is named."""
    named = C.config.get_config_value("DEFAULT_VAULT_ENCRYPT_IDENTITY")
    ids = sorted({str(vault_id) for vault_id, dummy in vault_secrets or ()})
    if not ids:
        raise Refusal(
            "Cannot encrypt: no vault password was given. Add --ask-vault-pass, or --vault-id with a script.",
            reason="no_vault_password",
        )
    if named is None and len(ids) > 1:
        raise Refusal(
            f"Cannot encrypt: vault passwords {', '.join(ids)} were given. Give one, or name one in ANSIBLE_VAULT_ENCRYPT_IDENTITY.",
            reason="several_vault_passwords",
        )
    if named is not None and named not in ids:
        raise Refusal(
            f"Cannot encrypt by vault id {named}: given were {', '.join(ids)}. Add --vault-id {named}@SOURCE.",
            reason="unknown_vault_id",
        )
    return t.cast("tuple[str | None, t.Any]", match_encrypt_secret(vault_secrets, encrypt_vault_id=named))


def write_new(path: str, content: bytes) -> None:
    """Write content to path, mode 0600; raises Refusal rather than overwrite or leave half a file."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Refusal(f"Cannot make {path}: {error.strerror}.", reason="not_writable") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
    except OSError as error:
        os.unlink(path)
        raise Refusal(f"Cannot write {path}: {error.strerror}.", reason="not_writable") from error
