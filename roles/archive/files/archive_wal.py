# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts PostgreSQL's WAL files into an archive directory, and gets them back.

    archive_wal.py push DIRECTORY PATH NAME      as archive_command, with "%p" "%f"
    archive_wal.py fetch DIRECTORY NAME PATH     as restore_command, with "%f" "%p"

Exit status 0 when the file is safe in the archive, or was fetched; 1 otherwise, with the reason on standard error, which is the server's log.

A file in the archive is never overwritten. The same file once more is a success, as PostgreSQL's documentation asks for: a server that
crashed after the copy sends it again. Another file of that name is a failure, for it is another server's or another history's.

Stands alone: Python's standard library. It runs under the server's account.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
import time

# Segments, also the partial one of a timeline that ended; timeline histories; backup history files.
WAL_FILE = re.compile(r"[0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup)?|[0-9A-F]{8}\.history")
# Nobody writes that long on one file: whoever did has died.
ABANDONED_SECONDS = 3600
CHUNK_BYTES = 1 << 20


class ArchiveError(Exception):
    """The archive cannot do what is asked; the text says what was seen and what is required."""


def require_directory(directory: str) -> None:
    """Raise ArchiveError unless the directory is there and the server's account alone can look into it.

    It is never made here: where a file system is not mounted, its mount point would fill up instead.
    """
    try:
        found = os.stat(directory)
    except OSError as error:
        raise ArchiveError("the archive directory {0} cannot be reached: {1}".format(directory, error.strerror)) from error
    if not stat.S_ISDIR(found.st_mode):
        raise ArchiveError("{0} is no directory".format(directory))
    if found.st_mode & 0o077:
        raise ArchiveError(
            "the archive directory {0} has mode {1:04o}, and 0700 is required: WAL holds all data".format(directory, stat.S_IMODE(found.st_mode))
        )
    if found.st_uid != os.geteuid():
        raise ArchiveError("the archive directory {0} belongs to account {1}, and {2} is required".format(directory, found.st_uid, os.geteuid()))


def sync(path: str) -> None:
    """Flush a file or a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def same_content(one: str, other: str) -> bool:
    """Whether two files have the same bytes."""
    with open(one, "rb") as left, open(other, "rb") as right:
        while True:
            chunk = left.read(CHUNK_BYTES)
            if chunk != right.read(CHUNK_BYTES):
                return False
            if not chunk:
                return True


def _copy_aside(directory: str, path: str, name: str) -> str:
    """Return a flushed copy of the file in the archive directory, under a name that no other process has."""
    handle, aside = tempfile.mkstemp(dir=directory, prefix=".{0}.".format(name))
    try:
        with os.fdopen(handle, "wb") as target, open(path, "rb") as source:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        os.unlink(aside)
        raise
    return aside


def _sweep(directory: str, name: str) -> None:
    """Remove what killed runs left behind of this very file."""
    for entry in os.listdir(directory):
        path = os.path.join(directory, entry)
        try:
            if entry.startswith(".{0}.".format(name)) and os.stat(path).st_mtime < time.time() - ABANDONED_SECONDS:
                os.unlink(path)
        except FileNotFoundError:
            continue


def push(directory: str, path: str, name: str) -> str:
    """Put a file into the archive and return how it went; raises ArchiveError, or OSError of the file system."""
    if not WAL_FILE.fullmatch(name):
        raise ArchiveError("{0!r} is no name of a WAL file".format(name))
    require_directory(directory)
    target = os.path.join(directory, name)
    if not os.path.lexists(target):
        _sweep(directory, name)
        aside = _copy_aside(directory, path, name)
        try:
            # A hard link, for a rename would replace what another process put there in the meantime.
            os.link(aside, target)
        except FileExistsError:
            pass
        else:
            sync(directory)
            return "archived"
        finally:
            os.unlink(aside)
    if not same_content(path, target):
        raise ArchiveError(
            "{0} is in the archive with other content, and is not overwritten. Two servers, or two histories of one, write into {1}; "
            "find out whose it is before you move it away".format(name, directory)
        )
    # Whoever put it there may have died before it was flushed.
    sync(target)
    sync(directory)
    return "was archived before"


def fetch(directory: str, name: str, path: str) -> str:
    """Copy a file out of the archive; raises ArchiveError when it is not there."""
    if not WAL_FILE.fullmatch(name):
        raise ArchiveError("{0!r} is no name of a WAL file".format(name))
    source = os.path.join(directory, name)
    if not os.path.exists(source):
        raise ArchiveError("{0} is not in the archive {1}".format(name, directory))
    shutil.copyfile(source, path)
    return "fetched"


def main(arguments: list[str]) -> int:
    """Run one command and return its exit status; never above 125, which would stop a server that recovers."""
    commands = {"push": push, "fetch": fetch}
    if len(arguments) != 4 or arguments[0] not in commands:
        print("usage: archive_wal.py push DIRECTORY PATH NAME | fetch DIRECTORY NAME PATH", file=sys.stderr)
        return 2
    try:
        commands[arguments[0]](*arguments[1:])
    except ArchiveError as error:
        print("archive_wal: {0}".format(error), file=sys.stderr)
        return 1
    except OSError as error:
        print("archive_wal: {0} failed: {1}".format(arguments[0], error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
