# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""PostgreSQL configuration files: postgresql.conf and postgresql.auto.conf.

The rules are those of guc-file.l (PostgreSQL 13 to 18). A name is matched without regard to ASCII case; the last
setting of a name wins. Lines end with a line feed and nothing else: other characters that Python takes for line ends
may stand inside a value. No error shows a line's content, because primary_conninfo may hold a password.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import ConfFileError

# What is not another ASCII character: a range up to U+10FFFF took re 8 ms to compile, three times in every module.
_LETTER = r"[^\x00-@\[-^`{-\x7f]"
_LETTER_OR_DIGIT = r"[^\x00-/:-@\[-^`{-\x7f]"
_ID = rf"{_LETTER}{_LETTER_OR_DIGIT}*"
_WORD = rf"{_LETTER}(?:{_LETTER_OR_DIGIT}|[-._:/])*"
_INTEGER = r"[-+]?(?:0x[0-9a-fA-F]+|[0-9]+)[a-zA-Z]*"
_REAL = r"[-+]?[0-9]*\.[0-9]*(?:[Ee][-+]?[0-9]+)?"
_NAME = re.compile(rf"{_ID}(?:\.{_ID})?")
_QUALIFIED_NAME = re.compile(rf"{_ID}\.{_ID}")
_FIRST_WORD = re.compile(rf"[ \t\r]*({_WORD})")
_VALUE = re.compile(
    r"[ \t\r]*=?[ \t\r]*"
    rf"(?P<raw>'(?P<quoted>(?:[^'\\]|\\.|'')*)'|(?P<bare>{_WORD}|{_INTEGER}|{_REAL}))"
    r"[ \t\r]*(?:\#.*)?",
    re.DOTALL,
)
_EMPTY = re.compile(r"[ \t\r]*(?:\#.*)?", re.DOTALL)
_ESCAPE = re.compile(r"((?:\\[0-7]{1,3})+)|\\(.)|''", re.DOTALL)
_CONTROL_CHARACTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_INCLUDES = frozenset({"include", "include_if_exists", "include_dir"})
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@dataclass(frozen=True)
class _Setting:
    """One setting; its value as written, quotes included, is line[start:end]."""

    name: str
    value: str
    start: int
    end: int


def parse_conf(text: str) -> dict[str, str]:
    """Return the settings of a configuration file: name in lower case to value without quotes, the last one wins.

    Include directives are read past: what they name is not opened. Raises ConfFileError where PostgreSQL finds a
    syntax error, and on an escaped NUL character, at which PostgreSQL cuts the value.
    """
    settings = [_read_line(line, number) for number, line in enumerate(text.split("\n"), start=1)]
    return {each.name: each.value for each in settings if each is not None and each.name not in _INCLUDES}


def set_conf(text: str, values: Mapping[str, str | None]) -> str:
    """Return the file with each name set to its value, or without it where the value is None.

    The last setting of a name keeps its place, its spelling and the comment behind it; earlier ones go, as they have
    no effect. New names are appended in the order given. A line that already has the value stays as it is, so
    that setting twice changes nothing. Raises ConfFileError for a file, name or value that PostgreSQL cannot read.
    """
    wanted = _by_folded_name(values)
    lines = text.split("\n")
    settings = [_read_line(line, number) for number, line in enumerate(lines, start=1)]
    last = {each.name: index for index, each in enumerate(settings) if each is not None}
    kept = []
    for index, (line, setting) in enumerate(zip(lines, settings)):
        if setting is None or setting.name not in wanted:
            kept.append(line)
            continue
        value = wanted[setting.name][1]
        if value is not None and last[setting.name] == index:
            kept.append(_with_value(line, setting, value))
    new = [f"{name} = {quote_conf_value(value)}" for folded, (name, value) in wanted.items() if value is not None and folded not in last]
    return "\n".join(_with_appended(kept, new))


def quote_conf_value(value: str) -> str:
    """Return the value in quotes, as ALTER SYSTEM writes it: `'` and backslash doubled.

    Raises ConfFileError on a line feed or NUL. A line feed could be escaped, but ALTER SYSTEM refuses it too: when it
    rewrites postgresql.auto.conf it would write it bare, and the server would not start again.
    """
    if "\n" in value or "\0" in value:
        raise ConfFileError(
            "Cannot write a configuration value: it contains a line feed or a NUL character.",
            reason="bad_conf_value",
            observed=f"{len(value)} characters with a line feed or NUL",
            required="a value on one line",
            hint="Remove the line break from the value.",
        )
    doubled = value.replace("\\", "\\\\").replace("'", "''")
    return f"'{doubled}'"


def _read_line(line: str, number: int) -> _Setting | None:
    """Return the setting on a line, or None where there is none. Raises ConfFileError."""
    if _EMPTY.fullmatch(line):
        return None
    # The longest word first, as flex does: `a.b.c` is one word and not a name.
    word = _FIRST_WORD.match(line)
    if word is None or _NAME.fullmatch(word.group(1)) is None:
        raise _syntax_error(number, "a line starts with the name of a setting")
    match = _VALUE.fullmatch(line, word.end())
    bare = None if match is None else match.group("bare")
    # `a.b` without quotes is the token of a name, not of a value; `a` and `a.b.c` are values.
    if match is None or (bare is not None and _QUALIFIED_NAME.fullmatch(bare)):
        raise _syntax_error(number, "one value, quoted unless it is a plain word or number, ends the line")
    value = bare if bare is not None else _unquoted(match.group("quoted"), number)
    return _Setting(word.group(1).translate(_ASCII_LOWER), value, match.start("raw"), match.end("raw"))


def _unquoted(quoted: str, number: int) -> str:
    """Return the text between quotes with '' and backslash escapes resolved (DeescapeQuotedString)."""

    def resolve(match: re.Match[str]) -> str:
        octal, escaped = match.group(1), match.group(2)
        if octal is not None:
            codes = bytes(int(digits, 8) & 0xFF for digits in octal.split("\\")[1:])
            return codes.decode("utf-8", "surrogateescape")
        return "'" if escaped is None else _CONTROL_CHARACTERS.get(escaped, escaped)

    value = _ESCAPE.sub(resolve, quoted)
    if "\0" in value:
        raise _syntax_error(number, "a value has no NUL character")
    return value


def _by_folded_name(values: Mapping[str, str | None]) -> dict[str, tuple[str, str | None]]:
    """Return name in lower case to (name as given, value). Raises ConfFileError."""
    wanted: dict[str, tuple[str, str | None]] = {}
    for name, value in values.items():
        folded = name.translate(_ASCII_LOWER)
        if _NAME.fullmatch(name) is None or folded in _INCLUDES or folded in wanted:
            raise ConfFileError(
                f"Cannot set {name!r}: it is not the name of one setting, or is given twice.",
                reason="bad_conf_name",
                observed=name,
                required="letters, digits and underscores, with at most one dot; each name once; no include directive",
                hint="Check the spelling of the setting.",
            )
        wanted[folded] = (name, value)
    return wanted


def _with_value(line: str, setting: _Setting, value: str) -> str:
    quoted = quote_conf_value(value)
    return line if setting.value == value else line[: setting.start] + quoted + line[setting.end :]


def _with_appended(lines: list[str], new: list[str]) -> list[str]:
    """Return the lines with new ones at the end, and a line feed behind them."""
    if not new:
        return lines
    complete = lines[:-1] if lines and not lines[-1] else lines
    return [*complete, *new, ""]


def _syntax_error(number: int, required: str) -> ConfFileError:
    return ConfFileError(
        f"Cannot read line {number} of the configuration file: PostgreSQL requires that {required}.",
        observed=f"line {number}",
        required=required,
        hint="Correct the line; pg_file_settings shows what the server makes of it.",
    )
