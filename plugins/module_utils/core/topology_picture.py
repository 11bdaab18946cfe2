# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where each node and each stream of WAL stands in a picture of the cluster: numbers and texts, no drawing."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PRIMARY, UNREACHABLE, Node
from ansible_collections.pg_ops.replication.plugins.module_utils.core.status import format_bytes, format_seconds, status_rows
from ansible_collections.pg_ops.replication.plugins.module_utils.core.topology import Topology, problems

# In the units of the picture. A box holds NAME_COLUMNS letters of its name; DROP leaves room for the two lines beside an arrow.
BOX_WIDTH = 208
BOX_HEIGHT = 76
GAP = 28
DROP = 84
MARGIN = 12
NAME_COLUMNS = 22
# More standbys than this below one node stand in two staggered rows; the arrows of the lower row run between the boxes of the upper one.
WIDEST_ROW = 5

# What a node looks like.
LEADS = "leads"  # the one primary
FOLLOWS = "follows"  # a standby that streams and has no problem
TROUBLED = "troubled"  # up, and something is wrong with it or it does not stream
RIVAL = "rival"  # one of several primaries
DOWN = "down"  # does not run, or could not be seen


@dataclass(frozen=True)
class Box:
    """One node: the upper left corner of its box, its short and full name, its lines below the name."""

    host: str
    label: str
    x: int
    y: int
    kind: str
    lines: tuple[str, ...]

    @property
    def middle(self) -> int:
        """The x of the middle, where arrows begin and end."""
        return self.x + BOX_WIDTH // 2


@dataclass(frozen=True)
class Arrow:
    """One stream of WAL from the lower edge of the upstream's box down, across and down to the upper edge of the standby's box."""

    source: str
    target: str
    flows: bool
    path: str
    head: str
    label_x: int
    label_y: int
    lines: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class Picture:
    """Boxes from top to bottom, primaries first, and the arrows between them."""

    width: int
    height: int
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    description: str


def _columns(text: str) -> int:
    """Return how many columns of a fixed-width font a text takes."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 0 if unicodedata.combining(letter) else 1 for letter in text)


def shortened(text: str, columns: int = NAME_COLUMNS) -> str:
    """Return the text in at most so many columns, its middle left out: names of one cluster differ at their beginning or end."""
    if _columns(text) <= columns:
        return text
    head, tail = "", ""
    for front, back in zip(text, reversed(text)):
        if _columns(head + front + tail) >= columns:
            break
        head += front
        if _columns(head + back + tail) >= columns:
            break
        tail = back + tail
    return head + "\u2026" + tail


def labels_of(hosts: Sequence[str]) -> dict[str, str]:
    """Return a short name for each host: without the domain where all have the same, and no longer than a box is wide."""
    domains = {host.partition(".")[2] for host in hosts}
    same = len(hosts) > 1 and len(domains) == 1 and len({host.partition(".")[0] for host in hosts}) == len(set(hosts))
    address = all(host.replace(".", "").isdigit() for host in hosts)
    return {host: shortened(host.partition(".")[0] if same and not address else host) for host in hosts}


def tree_of(topology: Topology) -> dict[str, Optional[str]]:
    """Return the upstream of each host, None for those that stand on top or alone; primaries have none, and circles are cut."""
    above: dict[str, Optional[str]] = {}
    for node in topology.nodes:
        up = None if node.role == PRIMARY else topology.upstream_of(node)
        above[node.host] = up.host if up is not None and up.host != node.host else None
    for host in list(above):
        seen = {host}
        current = host
        while True:
            parent = above[current]
            if parent is None:
                break
            if parent in seen:
                above[current] = None
                break
            seen.add(parent)
            current = parent
    return above


def _order(topology: Topology, above: Mapping[str, Optional[str]]) -> list[str]:
    """Return those that follow nobody: running primaries, dead primaries, others with standbys below them, then those that stand alone."""
    followed = set(above.values())

    def rank(node: Node) -> tuple[bool, bool, bool]:
        return (not node.is_running_primary, node.role != PRIMARY, node.host not in followed)

    return [node.host for node in sorted(topology.nodes, key=rank) if above[node.host] is None]


def _place(topology: Topology, above: Mapping[str, Optional[str]]) -> dict[str, tuple[int, int]]:
    """Return column (in half boxes) and level of each host: leaves side by side, each upstream above the middle of what follows it.

    A node that follows nobody and is no primary stands one level below the primaries where there are any.
    """
    places: dict[str, tuple[int, int]] = {}
    leading = {host for host in above.values() if host is not None}
    has_top = any(node.role == PRIMARY for node in topology.nodes)
    free = 0

    def put(host: str, level: int) -> int:
        nonlocal free
        below = [node.host for node in topology.nodes if above[node.host] == host]
        if len(below) > WIDEST_ROW and not leading.intersection(below):
            middles = [free + number for number in range(len(below))]
            places.update((other, (middle, level + 1 + number % 2)) for number, (other, middle) in enumerate(zip(below, middles)))
            free = middles[-1] + 2
        else:
            middles = [put(other, level + 1) for other in below]
        if middles:
            column = (middles[0] + middles[-1]) // 2
        else:
            column = free
            free += 2
        places[host] = (column, level)
        return column

    for host in _order(topology, above):
        node = topology.node(host)
        put(host, 1 if has_top and node is not None and node.role != PRIMARY else 0)
    return places


def _kind(topology: Topology, node: Node, troubled: set[str]) -> str:
    if node.is_running_primary:
        return LEADS if topology.primary is not None and node.host not in troubled else RIVAL if topology.primary is None else TROUBLED
    if not node.is_running_standby:
        return DOWN
    return FOLLOWS if node.is_streaming and node.host not in troubled else TROUBLED


def _box(node: Node, label: str, row: Mapping[str, Any], *, at: tuple[int, int], kind: str) -> Box:
    mark = {RIVAL: "! ", TROUBLED: "! ", DOWN: "\u2715 "}.get(kind, "")
    role = node.state if node.state == UNREACHABLE else "{0} \u00b7 {1}".format(row["role"], row["state"])
    where = "timeline {0} \u00b7 {1}".format(row["timeline"], row["lsn"]) if row["timeline"] and row["lsn"] else "nothing known"
    x = MARGIN + at[0] * (BOX_WIDTH + GAP) // 2
    return Box(node.host, label, x, MARGIN + at[1] * (BOX_HEIGHT + DROP), kind, (mark + role, where))


def _lag_lines(row: Mapping[str, Any], *, flows: bool) -> tuple[str, ...]:
    lag = ""
    if row["lag_bytes"] is not None:
        lag = "{0} B".format(row["lag_bytes"]) if row["lag_bytes"] < 1024 else format_bytes(row["lag_bytes"]) + "B"
        if row["lag_seconds"] is not None:
            lag += " \u00b7 " + format_seconds(row["lag_seconds"])
    if not flows:
        return ("\u2715 broken", lag) if lag else ("\u2715 broken",)
    return ("lag " + lag, row["sync_state"]) if lag else ("lag unknown", row["sync_state"])


def _arrow(source: Box, target: Box, row: Mapping[str, Any], *, flows: bool) -> Arrow:
    start, end = source.y + BOX_HEIGHT, target.y - 2
    bend = start + DROP // 4
    path = "M{0} {1}V{2}H{3}V{4}".format(source.middle, start, bend, target.middle, end - 8)
    head = "M{0} {1}l-6 -11h12z".format(target.middle, end)
    lines = tuple(line for line in _lag_lines(row, flows=flows) if line)
    meaning = "{0} {1} {2}: {3}".format(target.host, "streams from" if flows else "does not stream from", source.host, ", ".join(lines))
    return Arrow(source.host, target.host, flows, path, head, target.middle + 9, target.y - DROP + DROP // 4 + 22, lines, meaning)


def _described(topology: Topology, boxes: Sequence[Box], arrows: Sequence[Arrow]) -> str:
    names = ", ".join(node.host for node in topology.primaries)
    first = "{0} primaries: {1}.".format(len(topology.primaries), names) if len(topology.primaries) > 1 else "Primary: {0}.".format(names or "none")
    linked = {arrow.target for arrow in arrows}
    alone = ["{0}: {1}.".format(box.host, box.lines[0]) for box in boxes if box.host not in linked and box.kind not in (LEADS, RIVAL)]
    return " ".join([first, *(arrow.meaning + "." for arrow in arrows), *alone])


def picture(topology: Topology) -> Picture:
    """Return the picture of a cluster: primaries on top, what streams from a node below it."""
    above = tree_of(topology)
    places = _place(topology, above)
    rows = {str(row["node"]): row for row in status_rows(topology)}
    troubled = {problem.host for problem in problems(topology)}
    labels = labels_of([node.host for node in topology.nodes])
    boxes = {
        node.host: _box(node, labels[node.host], rows[node.host], at=places[node.host], kind=_kind(topology, node, troubled))
        for node in topology.nodes
    }
    arrows = []
    for node in topology.nodes:
        source = boxes.get(above[node.host] or "")
        if source is not None:
            flows = node.is_running_standby and node.is_streaming and source.kind != DOWN
            arrows.append(_arrow(source, boxes[node.host], rows[node.host], flows=flows))
    arrows.sort(key=lambda arrow: arrow.flows)  # what flows is drawn over what does not where both share a line
    ordered = sorted(boxes.values(), key=lambda box: (box.y, box.x))
    right = max((box.x + BOX_WIDTH for box in ordered), default=0)
    bottom = max((box.y + BOX_HEIGHT for box in ordered), default=0)
    return Picture(right + MARGIN, bottom + MARGIN, tuple(ordered), tuple(arrows), _described(topology, ordered, arrows))
