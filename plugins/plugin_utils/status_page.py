# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The state of all clusters as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import (
    DEGRADED,
    EXIT_STATUSES,
    HEALTHY,
    NO_SINGLE_PRIMARY,
    format_bytes,
    headline,
    status_document,
    worst,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology_picture import BOX_HEIGHT, BOX_WIDTH, picture
from ansible_collections.pg_ops.replication.plugins.plugin_utils.whole_file import write_whole
from jinja2 import Environment, StrictUndefined

MARKS = {HEALTHY: "\u2713", DEGRADED: "!", NO_SINGLE_PRIMARY: "\u2715"}
WORDS = {HEALTHY: "healthy", DEGRADED: "degraded", NO_SINGLE_PRIMARY: "NO SINGLE PRIMARY"}
MODE = 0o644


def render_page(template: str, topologies: Sequence[Topology], *, observed_at: str) -> str:
    """Return the page of all clusters, the worst first; every value is escaped, whatever a host or cluster is called."""
    clusters: list[dict[str, Any]] = []
    for topology in topologies:
        document = status_document(topology, observed_at=observed_at)
        clusters.append({"document": document, "headline": headline(document), "picture": picture(topology)})
    clusters.sort(key=lambda each: -int(EXIT_STATUSES[each["document"]["severity"]]))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["bytes"] = lambda count: "{0} B".format(count) if count < 1024 else format_bytes(count) + "B"
    page: str = environment.from_string(template).render(
        clusters=clusters,
        severity=worst(each["document"]["severity"] for each in clusters),
        observed_at=observed_at,
        marks=MARKS,
        words=WORDS,
        box_width=BOX_WIDTH,
        box_height=BOX_HEIGHT,
    )
    return page


def write_page(path: str, page: str) -> None:
    """Put the page at path, behind a link too, in one step and readable for everybody. Raises OSError."""
    write_whole(os.path.realpath(path), page.encode("utf-8", errors="replace"), mode=MODE)
