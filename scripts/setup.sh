#!/usr/bin/env bash
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# setup.sh [user|dev]: create .venv from the pinned requirements and the link that lets playbooks find this checkout as a
# collection. A stamp that holds the checksum of the requirements makes the second run cost nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-user}
case $kind in
    user) requirements="requirements.txt" ;;
    dev) requirements="requirements-dev.txt" ;;
    *) echo "setup.sh: unknown kind '$kind'; say user or dev." >&2; exit 2 ;;
esac

stop() { printf 'setup: %s\n' "$1" >&2; exit 1; }

can_run() { # whether this is a Python of the versions that the pinned set is for, with these modules
    "$1" -c "import ${2:-sys}, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null
}

find_python() { # the first Python 3.11, 3.12 or 3.13
    local name
    # A distribution's Python is built with profile-guided optimisation, one built at home mostly not: 186 against 302 ms for one module of Ansible.
    if [ -z "${PYTHON:-}" ] && can_run /usr/bin/python3 ensurepip,venv; then
        echo /usr/bin/python3
        return
    fi
    for name in ${PYTHON:-python3 /usr/bin/python3 python3.13 python3.12 python3.11}; do
        if can_run "$name"; then
            command -v "$name"
            return
        fi
    done
    stop "no Python 3.11, 3.12 or 3.13 found, observed: $("${PYTHON:-python3}" --version 2>&1 | tail -n 1). Name one: make setup PYTHON=/path/to/python3.12"
}

install_ensurepip() { # Debian ships venv without ensurepip; root gets the package, anybody else the command
    local python=$1 package
    package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    command -v apt-get >/dev/null || stop "$python has no ensurepip module. Install it, then run this again."
    [ "$(id -u)" = 0 ] || stop "$python has no ensurepip module. Type: sudo apt-get install $package"
    echo "setup: installing $package, which .venv needs"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -qq -y "$package" >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -qq -y "$package" >/dev/null; } ||
        stop "apt-get could not install $package; see above."
}

create_venv() {
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_ensurepip "$python"
    echo "setup: creating .venv with $python ($("$python" --version))"
    "$python" -m venv --clear .venv
}

link_collection() { # playbooks, ansible.cfg: both find pg_ops.replication through this link
    local parent=playbooks/collections/ansible_collections/pg_ops
    mkdir -p "$parent"
    ln -sfn ../../../.. "$parent/replication"
    [ -L collections ] || ln -s playbooks/collections collections
}

stamp_is_current() { [ -f ".venv/.setup-$1" ] && [ "$(cat ".venv/.setup-$1")" = "$checksum" ]; }

link_collection
checksum=$(cat requirements.txt requirements-dev.txt constraints.txt | cksum)
if .venv/bin/python -c '' 2>/dev/null; then
    if stamp_is_current dev || stamp_is_current "$kind"; then
        exit 0
    fi
else
    create_venv
fi
echo "setup: installing $requirements into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --no-compile -r "$requirements" -c constraints.txt ||
    stop "pip could not install $requirements; see above."
# Ansible compiles collections from their sources in every run; 15,000 compiled files of theirs would serve nobody.
.venv/bin/python -m compileall -q -j0 -x ansible_collections .venv/lib || true
printf '%s\n' "$checksum" >".venv/.setup-$kind"
echo "setup: .venv is ready for $kind after $SECONDS s"
