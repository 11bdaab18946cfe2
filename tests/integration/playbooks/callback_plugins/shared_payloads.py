# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Callback of the tests: runs that follow each other share what Ansible packs for its hosts, a quarter of a second for each module."""

from __future__ import annotations

import os

from ansible import constants
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: shared_payloads
type: aggregate
short_description: Keep packed modules for the next run
description:
  - PG_OPS_TEST_PAYLOADS names a directory that lives as long as nobody changes a source; the tests make one for each of their runs.
  - Ansible packs each module once for each run, and never puts arguments into that.
author: pg_ops.replication contributors
"""


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
