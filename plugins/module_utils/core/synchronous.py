# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""synchronous_standby_names: what it should be, and what it says (its grammar: src/backend/replication/syncrep_gram.y)."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Optional

FIRST = "first"
ANY = "any"
WAIT = "wait"
ASYNC = "async"
MODES = (FIRST, ANY)
DEGRADES = (WAIT, ASYNC)

# The setting on a primary without a standby that may confirm: it cannot name nobody, for an empty list means asynchronous.
# No WAL receiver calls itself so, and with it commits wait until a standby is put there.
NOBODY = "pg_ops_nobody"

_WORD = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([A-Za-z_\x80-\U0010ffff][A-Za-z_0-9$\x80-\U0010ffff]*)|([0-9]+)|([*(),]))')


@dataclass(frozen=True)
class SynchronousRule:
    """How a cluster replicates synchronously: `num` standbys confirm each commit, the first that stream or any of `members` (hosts).

    `degrade`: with fewer standbys commits wait, or a playbook asks for fewer confirmations until heal.yml finds enough again.
    """

    mode: str
    num: int
    members: tuple[str, ...]
    degrade: str = WAIT


@dataclass(frozen=True)
class SynchronousSet:
    """What a server's synchronous_standby_names says; num 0 means that no commit waits."""

    mode: str = FIRST
    num: int = 0
    names: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a standby of that application_name may confirm; PostgreSQL compares without regard to case."""
        return "*" in self.names or name.lower() in {each.lower() for each in self.names}


ASYNCHRONOUS = SynchronousSet()


def format_set(wanted: SynchronousSet) -> str:
    """Return the setting's text: FIRST 1 ("a", "b"); empty when no commit is to wait."""
    if wanted.num == 0:
        return ""
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in wanted.names or (NOBODY,))
    return "{0} {1} ({2})".format(wanted.mode.upper(), wanted.num, names)


def parse_set(text: str) -> Optional[SynchronousSet]:
    """Return what the setting says; None when it cannot be read. A bare list of names means FIRST 1, as in PostgreSQL 9.5."""
    words: list[tuple[str, str]] = []
    position = 0
    while text[position:].strip():
        found = _WORD.match(text, position)
        if found is None:
            return None
        quoted, bare, number, sign = found.groups()
        words.append(("name", quoted.replace('""', '"')) if quoted is not None else ("bare", bare) if bare else ("number", number) if number else (sign, sign))
        position = found.end()
    if not words:
        return ASYNCHRONOUS
    kinds = [kind for kind, _word in words]
    mode, num = FIRST, 1
    if kinds[:3] == ["bare", "number", "("] and words[0][1].lower() in MODES and kinds[-1] == ")":
        mode, num, words = words[0][1].lower(), int(words[1][1]), words[3:-1]
    elif kinds[:2] == ["number", "("] and kinds[-1] == ")":
        num, words = int(words[0][1]), words[2:-1]
    names, separators = words[::2], words[1::2]
    if any(kind not in ("name", "bare", "number", "*") for kind, _word in names) or any(kind != "," for kind, _word in separators):
        return None
    return SynchronousSet(mode, num, tuple(word for _kind, word in names)) if len(names) > len(separators) else None


def wanted_set(mode: str, num: int, degrade: str, listed: Sequence[str], here: Collection[str]) -> SynchronousSet:
    """Return the set of a primary: `listed` names may confirm, those in `here` stream from it or come in this run.

    With `degrade` async no more confirmations are asked for than there are standbys to give them.
    """
    able = len([name for name in listed if name in here])
    asked = min(num, able) if degrade == ASYNC else num
    return SynchronousSet(mode, asked, tuple(listed)) if asked else ASYNCHRONOUS


def needed_in_sight(rule_num: int, set_size: int) -> int:
    """Return how many standbys of a set must be seen so that the most advanced of them certainly has every confirmed commit.

    A commit is on `rule_num` of them; of any set_size - rule_num + 1 at least one has it (the quorum of Patroni's quorum commit).
    """
    return max(1, set_size - rule_num + 1)
