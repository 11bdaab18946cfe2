#!/usr/bin/env bash
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# molecule.sh SCENARIO [COMMAND]: run one molecule scenario as make test does; COMMAND is molecule's, test if none is given.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: molecule.sh SCENARIO [COMMAND]" >&2; exit 2; }
[ -f "molecule/$1/molecule.yml" ] || { echo "molecule.sh: there is no scenario '$1' in molecule/." >&2; exit 2; }
export PATH="$PWD/.venv/bin:$PATH"
export NO_COLOR=1
export ANSIBLE_COLLECTIONS_PATH="$PWD/collections"
export PG_OPS_VAULT_PASSWORD="${PG_OPS_VAULT_PASSWORD:-replicate-safely}"
exec molecule --base-config molecule/shared/base.yml "${2:-test}" -s "$1"
