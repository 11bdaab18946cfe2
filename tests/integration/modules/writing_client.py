# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client that commits row after row at whichever server is primary and prints the number of each commit that was acknowledged.

    python3 writing_client.py <port>,<port> <password>     ends at SIGTERM
"""

from __future__ import annotations

import signal
import sys
import time

import psycopg2


def main(ports: str, password: str) -> None:
    running = [True]
    signal.signal(signal.SIGTERM, lambda *_unused: running.clear())
    number, connection = 1_000_000, None
    while running:
        try:
            if connection is None:
                connection = psycopg2.connect(
                    host=",".join("127.0.0.1" for _each in ports.split(",")), port=ports, user="tester", password=password, dbname="postgres",
                    target_session_attrs="read-write", connect_timeout=2, gssencmode="disable",
                )
                connection.autocommit = True
            number += 1
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO written VALUES (%s, 'client')", [number])
            print(number, flush=True)
            time.sleep(0.001)
        except psycopg2.Error:
            connection = None
            time.sleep(0.005)


if __name__ == "__main__":
    main(*sys.argv[1:])
