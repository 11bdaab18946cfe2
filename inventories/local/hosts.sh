#!/bin/sh
# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Dynamic inventory of the clusters on this machine's loopback; scripts/local_clusters.py prepare makes their places.
exec python3 "$(dirname "$0")/../../scripts/local_clusters.py" inventory
