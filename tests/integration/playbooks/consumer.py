# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A consumer of a failover slot that follows the primary: pgoutput, protocol 1, one line "END_OF_COMMIT NUMBER" for each inserted row.

    python consumer.py CONNINFO SLOT PUBLICATION

It remembers where the last commit that it printed ends and asks the next server to go on there, as subscriptions do: what a server repeats
because it had not yet heard of that position is cut off by the protocol. Nothing else guards against rows that come twice or not at all.
"""

from __future__ import annotations

import select
import struct
import sys
import time

import psycopg2
import psycopg2.extras


def integer_of(insert: bytes) -> int:
    """Return the first column of an Insert message: relation, 'N', column count, then 't', length, text."""
    assert insert[5:6] == b"N" and insert[8:9] == b"t"
    (length,) = struct.unpack_from(">I", insert, 9)
    return int(insert[13 : 13 + length])


class Consumer:
    def __init__(self) -> None:
        self.position = 0
        self.rows: list[int] = []

    def take(self, message: psycopg2.extras.ReplicationMessage) -> None:
        kind = message.payload[:1]
        if kind == b"B":
            self.rows = []
        elif kind == b"I":
            self.rows.append(integer_of(message.payload))
        elif kind == b"C":
            _flags, _commit, end = struct.unpack_from(">BQQ", message.payload, 1)
            for number in self.rows:
                print(f"{end:X} {number}", flush=True)
            self.position = end
            message.cursor.send_feedback(flush_lsn=end)

    def read(self, conninfo: str, slot: str, publication: str) -> None:
        """Read until the server ends the connection."""
        connection = psycopg2.connect(
            conninfo, target_session_attrs="read-write", connect_timeout=2, connection_factory=psycopg2.extras.LogicalReplicationConnection
        )
        cursor = connection.cursor()
        options = {"proto_version": "1", "publication_names": publication}
        cursor.start_replication(slot_name=slot, start_lsn=self.position, options=options, decode=False, status_interval=1)
        while True:
            message = cursor.read_message()
            if message is None:
                select.select([cursor], [], [], 0.5)
            else:
                self.take(message)


def main(conninfo: str, slot: str, publication: str) -> None:
    consumer = Consumer()
    while True:
        try:
            consumer.read(conninfo, slot, publication)
        except psycopg2.Error as error:
            print(str(error).strip(), file=sys.stderr, flush=True)
            time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
