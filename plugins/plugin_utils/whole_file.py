# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files on the controller that a reader sees as they were or as they are, and never in between."""

from __future__ import annotations

import os
import tempfile

PREFIX = ".new."


def write_whole(path: str, content: bytes, *, mode: int = 0o600, aside: str = "") -> None:
    """Put the content at path in one step; where that fails it is as it was, and nothing is left. Raises OSError.

    The draft, its name beginning with PREFIX, lies in the directory `aside`, which has to be on the same file system: by default the one of path.
    """
    descriptor, draft = tempfile.mkstemp(prefix=PREFIX, dir=aside or os.path.dirname(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        os.replace(draft, path)
    except OSError:
        os.unlink(draft)
        raise
