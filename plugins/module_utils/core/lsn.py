# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Write-ahead log positions (LSN), as text `16/B374D848` and as a number of bytes."""

from __future__ import annotations

import re

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import LsnError

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")
_MAX_LSN = 2**64 - 1
_MAX_TIMELINE = 2**32 - 1
_MIB = 1024 * 1024


def parse_lsn(text: str) -> int:
    """Return the LSN as a byte position, 0 to 2**64 - 1.

    Accepts what pg_lsn_in accepts: two hexadecimal numbers of 1 to 8 digits and no blanks.
    Raises LsnError for anything else.
    """
    match = _LSN.fullmatch(text)
    if match is None:
        raise LsnError(
            f"Cannot read LSN {text!r}: it is not two hexadecimal numbers joined by a slash.",
            observed=text,
            required="two hexadecimal numbers of 1 to 8 digits, such as 16/B374D848",
            hint="Pass the LSN as PostgreSQL prints it.",
        )
    return int(match.group(1), 16) << 32 | int(match.group(2), 16)


def format_lsn(position: int) -> str:
    """Return a byte position as PostgreSQL 13 to 18 print it: upper case, not padded.

    Raises LsnError if the position does not fit into 64 bits.
    """
    if not 0 <= position <= _MAX_LSN:
        raise LsnError(
            f"Cannot write {position} as an LSN: it does not fit into 64 bits.",
            observed=str(position),
            required=f"0 to {_MAX_LSN}",
        )
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def lag_bytes(ahead: str, behind: str) -> int:
    """Return how far `behind` trails `ahead`, in bytes; 0 when level.

    Raises LsnError, reason `lsn_ahead`, if `behind` is the further one.
    """
    distance = parse_lsn(ahead) - parse_lsn(behind)
    if distance < 0:
        raise LsnError(
            f"Cannot measure a lag: {behind} is {-distance} bytes ahead of {ahead}, which it should trail.",
            reason="lsn_ahead",
            observed=behind,
            required=f"at most {ahead}",
            hint="Check which server is the primary and whether both are on one timeline.",
        )
    return distance


def most_advanced(*lsns: str | None) -> str | None:
    """Return the greatest of the LSNs that are known, or None when none is.

    A standby holds WAL up to the greater of its receive and its replay LSN: after a restart the receive LSN falls
    back to the start of a segment, and before the first streaming it is NULL (PostgreSQL 13 to 18).
    """
    known = [parse_lsn(lsn) for lsn in lsns if lsn is not None]
    return format_lsn(max(known)) if known else None


def segment_name(lsn: str, timeline: int, *, segment_bytes: int = 16 * _MIB) -> str:
    """Return the name of the WAL segment file that holds the byte at `lsn`.

    At the first byte of a segment that is this segment, as pg_walfile_name has it since PostgreSQL 17 (older
    servers name the one before). `segment_bytes` is a power of two from 1 MiB to 1 GiB.
    Raises LsnError if the LSN, the timeline or the segment size is not possible.
    """
    position = parse_lsn(lsn)
    if not _MIB <= segment_bytes <= 1024 * _MIB or segment_bytes & (segment_bytes - 1):
        raise LsnError(
            f"Cannot name a WAL segment: {segment_bytes} bytes is not a segment size.",
            reason="bad_segment_size",
            observed=str(segment_bytes),
            required="a power of two from 1048576 to 1073741824",
        )
    if not 1 <= timeline <= _MAX_TIMELINE:
        raise LsnError(
            f"Cannot name a WAL segment: {timeline} is not a timeline.",
            reason="bad_timeline",
            observed=str(timeline),
            required=f"1 to {_MAX_TIMELINE}",
        )
    high, low = divmod(position // segment_bytes, 2**32 // segment_bytes)
    return f"{timeline:08X}{high:08X}{low:08X}"
