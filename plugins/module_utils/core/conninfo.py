# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""libpq connection strings and password files.

Connection strings are read as conninfo_parse and conninfo_uri_parse of libpq 13 to 18 do, and refused where libpq
would silently take something else than what was meant. No error shows any part of a string: it may be a password.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import ConninfoError

_BLANK = r"[ \t\n\v\f\r]"
_KEYWORD = re.compile(r"[a-z][a-z0-9_]*")
_KEYWORD_AND_EQUALS = re.compile(rf"([^= \t\n\v\f\r]*){_BLANK}*=({_BLANK}*)")
_VALUE = re.compile(
    r"'(?P<quoted>(?:[^'\\]|\\.)*)'|(?!')(?P<bare>(?:[^\\ \t\n\v\f\r]|\\.)*)\\?",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_NEEDS_NO_QUOTES = re.compile(r"[A-Za-z0-9_./:,@%+*-]+")
_URI = re.compile(r"postgres(?:ql)?://")
# The first @ ends the user and password, unless a slash comes before it; a password may have a bare question mark.
_USER = re.compile(r"([^:@/?]*)(?::([^@/]*))?@")
_HOST = re.compile(r"(?:\[([^\]]+)\]|([^:/?,\[\]]*))(?::([^/?,]*))?")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_MASK = "***"
# Keywords whose values are shown. Any other is masked: it may be a secret, or the tail of an unquoted password.
_PUBLIC = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "fallback_application_name",
        "gssencmode",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "options",
        "passfile",
        "port",
        "replication",
        "require_auth",
        "service",
        "sslcert",
        "sslcertmode",
        "sslcompression",
        "sslcrl",
        "sslcrldir",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "sslsni",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    }
)


@dataclass(frozen=True)
class PassfileEntry:
    """One line of a password file; `*` in any field but the password matches everything."""

    host: str
    port: str
    database: str
    user: str
    password: str = field(repr=False)


def parse_conninfo(text: str) -> dict[str, str]:
    """Return the parameters of a connection string, in order of first appearance; the last value of a keyword wins.

    Takes `keyword=value` pairs and `postgresql://` URIs; hosts and ports of a multi-host URI become comma-separated
    lists, as in libpq. Keywords are not checked against a list, only for their form. Raises ConninfoError.
    """
    if "\0" in text:
        raise _refusal("it has a NUL character", "text without NUL")
    prefix = _URI.match(text)
    parameters = _parse_pairs(text) if prefix is None else _parse_uri(text[prefix.end() :])
    for keyword in parameters:
        _require_keyword(keyword)
    return parameters


def format_conninfo(parameters: Mapping[str, str]) -> str:
    """Return `keyword=value` pairs in the order given, quoted where libpq needs it. Raises ConninfoError."""
    pairs = []
    for keyword, value in parameters.items():
        _require_keyword(keyword)
        if "\0" in value:
            raise _refusal(f"the value of {keyword} has a NUL character", "a value without NUL")
        if not _NEEDS_NO_QUOTES.fullmatch(value):
            value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        pairs.append(f"{keyword}={value}")
    return " ".join(pairs)


def redact_conninfo(text: str) -> str:
    """Return the connection string as `keyword=value` pairs that may be shown: every secret is `***`.

    A string that cannot be read becomes `***` as a whole. Never raises.
    """
    try:
        parameters = parse_conninfo(text)
    except ConninfoError:
        return _MASK
    return format_conninfo({keyword: value if keyword in _PUBLIC else _MASK for keyword, value in parameters.items()})


def parse_passfile(text: str) -> tuple[PassfileEntry, ...]:
    """Return the entries of a password file in order; the first that matches is the one libpq uses.

    Raises ConninfoError where libpq would skip the line or cut the password: too few fields, a bare colon in the
    password, or an escaped `\\*`, which would become a wildcard when written again.
    """
    entries = []
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.rstrip("\r")
        if not content or content.startswith("#"):
            continue
        raw = _split_passfile_line(content)
        if len(raw) != 5:
            raise _bad_passfile(f"line {number} of the password file has {len(raw)} fields")
        if "\\*" in raw[:4]:
            raise _bad_passfile(f"line {number} of the password file has an escaped *")
        entries.append(PassfileEntry(*[_ESCAPE.sub(r"\1", each) for each in raw]))
    return tuple(entries)


def format_passfile(entries: Iterable[PassfileEntry]) -> str:
    """Return a password file, one line per entry. Raises ConninfoError on what a line cannot hold."""
    return "".join(_passfile_line(entry) for entry in entries)


def _parse_pairs(text: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    position = len(text) - len(text.lstrip(" \t\n\v\f\r"))
    while position < len(text):
        name = _KEYWORD_AND_EQUALS.match(text, position)
        if name is None:
            raise _refusal(f"after {len(parameters)} parameters a keyword has no =", "keyword=value pairs")
        value = _VALUE.match(text, name.end())
        if value is None:
            raise _refusal(f"the quoted value after {len(parameters)} parameters has no end", "a closing quote")
        bare = value.group("bare")
        # libpq takes `host= port=1` for a host called "port=1".
        if bare is not None and name.group(2) and re.match(rf"{_KEYWORD.pattern}=", bare):
            raise _refusal(f"after {len(parameters)} parameters a keyword has no value", "'' for an empty value")
        parameters[name.group(1)] = _ESCAPE.sub(r"\1", value.group("quoted") if bare is None else bare)
        rest = text[value.end() :]
        position = len(text) - len(rest.lstrip(" \t\n\v\f\r"))
    return parameters


def _parse_uri(text: str) -> dict[str, str]:
    """Return the parameters of what follows `postgresql://`."""
    if re.search(_BLANK, text):
        # libpq up to 17 takes it as part of a name, 18 refuses or trims it.
        raise _refusal("its URI has a blank", "%20 for a blank in a URI")
    parameters: dict[str, str] = {}
    user = _USER.match(text)
    if user is not None:
        _store(parameters, {"user": user.group(1), "password": user.group(2)})
        text = text[user.end() :]
    address, _question, query = text.partition("?")
    hosts, slash, database = address.partition("/")
    # Without a slash before it, libpq takes an @ in the query for the end of the user.
    if "@" in address or (user is None and not slash and "@" in query):
        raise _refusal("its URI has an @ that does not end the user and password", "%40 for an @ in a URI")
    _store(parameters, _parse_hosts(hosts))
    _store(parameters, {"dbname": database})
    parameters.update(_parse_query(query))
    return parameters


def _parse_hosts(text: str) -> dict[str, str]:
    """Return host and port of the comma-separated hosts; both lists have the same number of commas, as in libpq."""
    hosts, ports = [], []
    for item in text.split(","):
        match = _HOST.fullmatch(item)
        if match is None:
            raise _refusal("its URI has a host that cannot be read", "host, host:port or [IPv6 address]:port")
        port = match.group(3) or ""
        if not re.fullmatch(r"[0-9]*", port):
            raise _refusal("its URI has a port that is not a number", "a number, and %2F for a / in a password")
        hosts.append(match.group(1) or match.group(2) or "")
        ports.append(port)
    return {"host": ",".join(hosts), "port": ",".join(ports)}


def _parse_query(text: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    items = text.split("&")
    # libpq allows one & at the end.
    for item in items if items[-1] else items[:-1]:
        if item.count("=") != 1:
            raise _refusal("its URI has a query parameter without exactly one =", "keyword=value")
        keyword, value = (_percent_decoded(each) for each in item.split("="))
        if (keyword, value) == ("ssl", "true"):  # JDBC's spelling, which libpq translates
            keyword, value = "sslmode", "require"
        parameters[keyword] = value
    return parameters


def _store(parameters: dict[str, str], encoded: Mapping[str, str | None]) -> None:
    """Add the values that are not empty, decoded."""
    parameters.update({keyword: _percent_decoded(value) for keyword, value in encoded.items() if value})


def _percent_decoded(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise _refusal("its URI has a percent sign that is not followed by two digits, or by 00", "%25 for a percent sign in a URI")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _refusal("its URI has percent escapes that are not UTF-8", "UTF-8") from None


def _require_keyword(keyword: str) -> None:
    if not _KEYWORD.fullmatch(keyword):
        raise _refusal("a keyword is not one of libpq's", "lower case letters, digits and underscores")


def _refusal(problem: str, required: str) -> ConninfoError:
    return ConninfoError(
        f"Cannot use the connection string: {problem}.",
        observed=problem,
        required=required,
        hint="Write it as keyword=value pairs, values in single quotes, with ' and \\ escaped by \\.",
    )


def _split_passfile_line(line: str) -> list[str]:
    """Return the fields of a line, still escaped."""
    return re.findall(r"(?:^|:)((?:[^:\\]|\\.|\\$)*)", line, re.DOTALL)


def _passfile_line(entry: PassfileEntry) -> str:
    fields = (entry.host, entry.port, entry.database, entry.user, entry.password)
    if not all(fields):
        raise _bad_passfile("an entry has an empty field")
    if any(character in each for each in fields for character in "\n\r\0"):
        raise _bad_passfile("an entry has a line break or NUL character")
    escaped = [each.replace("\\", "\\\\").replace(":", "\\:") for each in fields]
    # A # at the start would make the line a comment.
    return re.sub(r"^#", r"\\#", ":".join(escaped)) + "\n"


def _bad_passfile(problem: str) -> ConninfoError:
    return ConninfoError(
        f"Cannot use the password file: {problem}.",
        reason="bad_passfile",
        observed=problem,
        required="host:port:database:user:password on one line, : and \\ escaped by \\, * alone for any",
        hint="Write the entry again; choose a password without line breaks.",
    )
