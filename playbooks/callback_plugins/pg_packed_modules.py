# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keeps this collection's modules packed from one run to the next, so that nobody waits for that in a failover.

Ansible packs a module and all that it imports anew in every run, and never puts arguments into it. Each host then compiles all of it for each task; where
the hosts are on this machine they compile for the same processors, and what is kept has the byte code in it. Elsewhere it has not, for that is three times as
much to send.
This plugin lies beside the playbooks because Ansible loads callbacks from there without being told to, in a checkout as in the installed collection.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import importlib
import importlib.util
import io
import marshal
import os
import pickle
import re
import shutil
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import ansible
from ansible import constants
from ansible.executor import module_common
from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import module_utils_loader
from ansible_collections.pg_ops.replication.plugins.plugin_utils.whole_file import PREFIX, write_whole

DOCUMENTATION = r"""
name: pg_packed_modules
type: aggregate
short_description: Keep packed modules for the next run
description:
  - What Ansible packed of this collection's modules is kept in C(pg_ops.replication) below C(ANSIBLE_HOME), for its owner only, and taken by the next run.
  - It is taken while no source has changed, neither the collection's nor ansible-core's, and while its checksum is right. Otherwise Ansible packs
    as it does without this plugin.
  - Where the first host is a container or a directory of the controller's machine, each source in it gets its byte code beside it. A host whose Python
    is of another version than the controller's takes the source.
options:
  keep_packed_modules:
    description: Whether modules are kept and taken.
    type: bool
    default: true
    env:
      - name: PG_OPS_KEEP_PACKED_MODULES
"""

COLLECTION = "ansible_collections.pg_ops.replication"
# Connections to hosts that are on this machine.
NEAR = ("local", "pg_ops.replication.lxd", "community.general.lxd")
PARTS = ("plugins/modules", "plugins/module_utils")
# What pickle, base64, zipfile and compile say to what they cannot read.
UNREADABLE = (
    AttributeError, EOFError, ImportError, IndexError, SyntaxError, TypeError, ValueError, binascii.Error, pickle.PickleError, zipfile.BadZipFile,
    zlib.error,
)
DIGEST_BYTES = hashlib.sha256().digest_size
DIGEST = re.compile(r"[0-9a-f]{64}")
# A file that is being written is younger than this.
LEFT_BEHIND_SECONDS = 3600
# Other collections, virtual environments and checkouts of one account, each with what it packed.
OTHER_STATES = 4


def _sources(root: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    for part in parts:
        yield from sorted((root / part).rglob("*.py"))


def sources_digest(collection: Path) -> str:
    """Return what tells apart all that can be in a packed module: the collection's sources, ansible-core's, and what a user put in place of these."""
    core = Path(ansible.__file__).parent
    found = hashlib.sha256(repr((ansible.__version__, str(core), sys.version, str(collection))).encode())
    for path in (*_sources(collection, PARTS), *(collection / "meta").glob("runtime.yml")):
        found.update(repr((str(path), path.read_bytes())).encode())
    # Where Ansible looks for module_utils: a user's directories, those beside playbooks and in roles, and its own.
    utilities = (path for directory in module_utils_loader._get_paths(subdirs=False) for path in _sources(Path(directory), (".",)))
    for path in (*_sources(core, ("executor",)), *utilities):
        known = path.stat()
        found.update(repr((str(path), known.st_size, known.st_mtime_ns)).encode())
    return found.hexdigest()


def own_directory(path: Path) -> bool:
    """Whether this account alone can write there. Ansible unpickles what it finds, so nobody else may have put it there."""
    known = path.lstat()
    return stat.S_ISDIR(known.st_mode) and known.st_uid == os.geteuid() and not known.st_mode & 0o077


def _compiled_beside(packed: bytes) -> bytes:
    """Return a zip file, in base64 like the given one, in which each source has its byte code beside it, bound to no time (PEP 552)."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(packed, validate=True))) as plain, zipfile.ZipFile(made, "w") as both:
        for known in plain.infolist():
            source = plain.read(known)
            both.writestr(known, source)
            if known.filename.endswith(".py") and known.filename + "c" not in plain.namelist():
                head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
                code = marshal.dumps(compile(source, known.filename, "exec", dont_inherit=True, optimize=0))
                both.writestr(known.filename + "c", head + code, known.compress_type)
    return base64.b64encode(made.getvalue())


def with_byte_code(cached: bytes) -> bytes:
    """Return what Ansible has packed with byte code in it, or as it is where this release of Ansible packs otherwise."""
    kind = getattr(module_common, "_CachedModule", None)
    try:
        if kind is None:  # before ansible-core 2.19
            return _compiled_beside(cached)
        found = pickle.loads(cached)
        return pickle.dumps(dataclasses.replace(found, zip_data=_compiled_beside(found.zip_data)))
    except UNREADABLE:
        return cached


def _changed(path: Path) -> float:
    """Return when a file or directory changed, in seconds since 1970; now where it has gone meanwhile, for other runs tidy up too."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


class Kept:
    """The packed modules of one state of all sources, with byte code or without.

    A file is the SHA-256 of what follows it, for what a power cut left of one must not fail a failover.
    """

    def __init__(self, home: Path, digest: str, *, compiled: bool) -> None:
        self._root = home / "pg_ops.replication"
        self._state = self._root / digest
        self._directory = self._state / ("compiled" if compiled else "plain")
        self._compiled = compiled

    def take(self, cache: Path) -> None:
        """Put what is kept where Ansible looks for what it has packed: whole files only, for it fails on others."""
        if not (self._directory.is_dir() and all(own_directory(path) for path in (self._root, self._state, self._directory))):
            return
        cache.mkdir(exist_ok=True)
        os.utime(self._state)  # it is in use
        for path in self._directory.iterdir():
            content = path.read_bytes()
            packed = content[DIGEST_BYTES:]
            if hashlib.sha256(packed).digest() == content[:DIGEST_BYTES]:
                write_whole(str(cache / path.name), packed)
            else:
                path.unlink()

    def new_in(self, cache: Path) -> list[Path]:
        """Return what this run has packed itself."""
        packed = [path for path in cache.glob(COLLECTION + ".*") if path.suffix != ".lock" and not path.name.endswith("-part")]
        return [path for path in packed if not (self._directory / path.name).exists()]

    def keep(self, new: list[Path]) -> None:
        """Keep this for the next run, and forget what was packed from other sources long ago."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not own_directory(self._root):
            return
        self._state.mkdir(exist_ok=True, mode=0o700)
        self._directory.mkdir(exist_ok=True, mode=0o700)
        self._forget_others()
        for path in new:
            content = with_byte_code(path.read_bytes()) if self._compiled else path.read_bytes()
            write_whole(str(self._directory / path.name), hashlib.sha256(content).digest() + content, aside=str(self._root))

    def _forget_others(self) -> None:
        others = [path for path in self._root.iterdir() if DIGEST.fullmatch(path.name) and path != self._state]
        for other in sorted(others, key=_changed, reverse=True)[OTHER_STATES:]:
            shutil.rmtree(other, ignore_errors=True)
        for part in self._root.glob(PREFIX + "*"):
            if _changed(part) < time.time() - LEFT_BEHIND_SECONDS:
                part.unlink(missing_ok=True)


def is_near(variables: Mapping[str, Any]) -> bool:
    """Whether a host with these variables is on the controller's machine."""
    return variables.get("ansible_connection") in NEAR and variables.get("ansible_lxd_remote", "local") == "local"


class CallbackModule(CallbackBase):
    """Takes before the first task of a host, keeps after the last play. Whatever goes wrong, Ansible packs by itself."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "pg_packed_modules"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: Optional[Kept] = None
        self._root, self._digest = Path(), ""
        self._looked = False
        self._cache = Path(constants.DEFAULT_LOCAL_TMP) / "ansiballz_cache"

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Take what an earlier run packed from the same sources."""
        if self._looked or host.name in constants.LOCALHOST:
            return
        self._looked = True
        if not self.get_option("keep_packed_modules") or self._cache.is_symlink():
            return
        try:
            # Where Ansible itself takes the collection from; these playbooks may be another copy of it.
            self._root = Path(next(iter(importlib.import_module(COLLECTION).__path__)))
            self._digest = sources_digest(self._root)
            home = Path(constants.config.get_config_value("ANSIBLE_HOME"))
            self._kept = Kept(home, self._digest, compiled=is_near(host.vars))
            self._kept.take(self._cache)
        except (ImportError, OSError) as error:
            self._display.vv("pg_packed_modules: {0}".format(error))

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Keep what this run packed, unless a source was changed since it began: some was packed before that, some behind it."""
        if self._kept is None:
            return
        try:
            new = self._kept.new_in(self._cache)
            if new and sources_digest(self._root) == self._digest:
                self._kept.keep(new)
        except OSError as error:
            self._display.vv("pg_packed_modules: {0}".format(error))
