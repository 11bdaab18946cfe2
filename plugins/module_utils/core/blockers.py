# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A reason why something must not be done, as data: every decision returns these, never a bool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Blocker:
    """One refusal: the stable code `reason`, the host it is about, observed against required, the next step."""

    reason: str
    host: str
    problem: str
    observed: str = ""
    required: str = ""
    hint: str = ""

    @property
    def message(self) -> str:
        """The refusal as one line for people."""
        facts = ""
        if self.observed or self.required:
            facts = " (observed: {0}; required: {1})".format(self.observed or "-", self.required or "-")
        hint = " " + self.hint if self.hint else ""
        return "{0}: {1}{2}.{3}".format(self.host, self.problem, facts, hint)

    def as_result(self) -> dict[str, str]:
        """Return the refusal as plain data."""
        return {
            "reason": self.reason,
            "host": self.host,
            "message": self.message,
            "observed": self.observed,
            "required": self.required,
            "hint": self.hint,
        }


def refusal(what: str, blockers: Iterable[Blocker], changed: str = "Nothing was changed.") -> str:
    """Return the text that refuses `what`, one blocker a line; `changed` says what the run has done before."""
    lines: list[str] = ["Refused: {0}. {1}".format(what, changed)]
    lines.extend("  - " + blocker.message for blocker in blockers)
    return "\n".join(lines)
