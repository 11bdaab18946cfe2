# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of what every module supports."""

from __future__ import annotations


class ModuleDocFragment:
    """Check mode and diff."""

    DOCUMENTATION = r"""
attributes:
  check_mode:
    description: Reports what would be done, from the same plan as the real run, and changes nothing.
    support: full
  diff_mode:
    description: Shows what changes, without any secret.
    support: full
"""
