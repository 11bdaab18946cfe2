#!/bin/sh
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
exec python3 "$(dirname "$0")/../addresses.py" "$@"
