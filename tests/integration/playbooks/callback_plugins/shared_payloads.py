# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Callback of the tests: runs that follow each other share what Ansible packs for its hosts, and hosts need not compile it for each task.

To pack a module takes a quarter of a second, to compile it and what it imports about a tenth, on each host for each task.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import types
import zipfile

from ansible import constants
from ansible.executor import module_common
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: shared_payloads
type: aggregate
short_description: Keep packed modules for the next run
description:
  - PG_OPS_TEST_PAYLOADS names a directory that lives as long as nobody changes a source; the tests make one for each of their runs.
  - Ansible packs each module once for each run, and never puts arguments into that.
  - Each source that it packs gets its byte code beside it. A Python of another version than this one takes the source.
author: pg_ops.replication contributors
"""


class WithByteCode(zipfile.ZipFile):
    """A packed module in which each source has its byte code beside it, bound to no time and no file (PEP 552)."""

    def writestr(self, zinfo_or_arcname, data, *more):
        """Write one file, and its byte code behind it."""
        super().writestr(zinfo_or_arcname, data, *more)
        name = getattr(zinfo_or_arcname, "filename", zinfo_or_arcname)
        if name.endswith(".py"):
            source = data.encode("utf-8") if isinstance(data, str) else bytes(data)
            code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
            unchecked = (1).to_bytes(4, "little")
            super().writestr(name + "c", importlib.util.MAGIC_NUMBER + unchecked + importlib.util.source_hash(source) + code, self.compression)


class CallbackModule(CallbackBase):
    """Puts the directory where Ansible looks for what it has packed."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "shared_payloads"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        kept = os.environ.get("PG_OPS_TEST_PAYLOADS", "")
        if kept:
            os.symlink(kept, os.path.join(constants.DEFAULT_LOCAL_TMP, "ansiballz_cache"))
            packing = types.ModuleType("zipfile")
            packing.__dict__.update(zipfile.__dict__, ZipFile=WithByteCode)
            module_common.zipfile = packing
