#!/bin/sh
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Vault password for automation: ansible-playbook --vault-id scripts/vault_password_env-client.sh
# Ansible calls it with --vault-id NAME; there is one password, so the name does not matter.
if [ -z "${PG_OPS_VAULT_PASSWORD:-}" ]; then
    echo "PG_OPS_VAULT_PASSWORD is not set: export it, or use --ask-vault-pass instead of this script." >&2
    exit 1
fi
printf '%s\n' "$PG_OPS_VAULT_PASSWORD"
