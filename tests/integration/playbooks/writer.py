# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that writes to whichever server is primary and prints each number once its commit was acknowledged.

    python writer.py CONNINFO

Runs under the servers' account, with the Python that Ansible's modules use.
"""

from __future__ import annotations

import sys
import time

import psycopg2


def main(conninfo: str) -> None:
    number = 0
    while True:
        try:
            connection = psycopg2.connect(conninfo, target_session_attrs="read-write", connect_timeout=2, options="-c statement_timeout=2000")
            connection.autocommit = True
            cursor = connection.cursor()
            while True:
                number += 1  # also after a failure: whether that row was committed is not known
                cursor.execute("INSERT INTO acknowledged VALUES (%s)", (number,))
                print(number, flush=True)
                time.sleep(0.02)
        except psycopg2.Error:
            time.sleep(0.1)


if __name__ == "__main__":
    main(sys.argv[1])
