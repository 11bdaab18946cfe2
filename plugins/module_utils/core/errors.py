# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Errors of the core: a message for people and the same facts as data."""

from __future__ import annotations

from typing import ClassVar


class PgOpsError(Exception):
    """A refusal: what is wrong, what was observed, what is required, what to do next.

    `reason` is a stable snake_case code that callers may branch on. No field may hold a secret.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        observed: str = "",
        required: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.observed = observed
        self.required = required
        self.hint = hint

    def as_result(self) -> dict[str, str]:
        """Return the error as the data that a module returns next to its message."""
        return {
            "reason": self.reason,
            "observed": self.observed,
            "required": self.required,
            "hint": self.hint,
        }


def of_system(error: OSError) -> PgOpsError:
    """Return what the operating system refused as one of our errors: a full disk, a file system that has become read-only."""
    place = " or ".join(str(name) for name in (error.filename, error.filename2) if name)
    return PgOpsError(
        "{0}{1}".format(error.strerror or error, ": " + place if place else ""), reason="system", observed=error.strerror or str(error),
        hint="Mend that and repeat: what was begun is noted and taken up again.",
    )


class _DefaultReasonError(PgOpsError):
    """Base of the errors that have a reason of their own."""

    default_reason: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        observed: str = "",
        required: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(
            message,
            reason=self.default_reason if reason is None else reason,
            observed=observed,
            required=required,
            hint=hint,
        )


class LsnError(_DefaultReasonError):
    """A WAL position is malformed, out of range, or not where it must be."""

    default_reason = "bad_lsn"


class TimelineError(_DefaultReasonError):
    """A timeline history is malformed or contradicts itself."""

    default_reason = "bad_timeline_history"


class ControlDataError(_DefaultReasonError):
    """The output of pg_controldata lacks a field or holds a value that cannot be read."""

    default_reason = "bad_control_data"


class ConninfoError(_DefaultReasonError):
    """A connection string or passfile cannot be read or written."""

    default_reason = "bad_conninfo"


class ConfFileError(_DefaultReasonError):
    """A PostgreSQL configuration file, name or value cannot be read or written."""

    default_reason = "bad_conf_file"


class SlotNameError(_DefaultReasonError):
    """A replication slot name is not one that PostgreSQL accepts."""

    default_reason = "bad_slot_name"


class InventoryError(_DefaultReasonError):
    """The inventory describes a cluster that cannot exist."""

    default_reason = "bad_inventory"
