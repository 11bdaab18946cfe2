# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of connection strings, held against libpq, and of password files."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conninfo import (
    PassfileEntry,
    format_conninfo,
    format_passfile,
    parse_conninfo,
    parse_passfile,
    redact_conninfo,
)
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import ConninfoError

SECRET = "hunter2"
NASTY = "'\\ \t\n\r\v\f:%@/?#=&*,[]\"aé數\u2028\u00a0"
ACCEPTED = {
    "pairs": ("host=h port=5432", {"host": "h", "port": "5432"}),
    "blanks-around-equals": ("  host = h\tport\n=\r5432 ", {"host": "h", "port": "5432"}),
    "quoted": ("host='a b' user=''", {"host": "a b", "user": ""}),
    "quoted-without-blank-after": ("host='a'port=1", {"host": "a", "port": "1"}),
    "escapes-in-quotes": (r"password='it\'s \\ \n'", {"password": "it's \\ n"}),
    "escapes-without-quotes": (r"password=a\ b\'c", {"password": "a b'c"}),
    "quote-inside-a-bare-value": ("user=a'b", {"user": "a'b"}),
    "backslash-at-the-end": ("user=a\\", {"user": "a"}),
    "no-value-at-the-end": ("user=", {"user": ""}),
    "equals-in-value": ("options=-cgeqo=off", {"options": "-cgeqo=off"}),
    "keyword-twice": ("host=a port=1 host=b", {"host": "b", "port": "1"}),
    "non-ascii": ("user=bücher", {"user": "bücher"}),
    "empty": ("", {}),
    "blanks": (" \t\n", {}),
    "uri-bare": ("postgresql://", {}),
    "uri-short-scheme": ("postgres://h", {"host": "h"}),
    "uri-full": (
        "postgresql://u:p@h:1/d?application_name=x",
        {"user": "u", "password": "p", "host": "h", "port": "1", "dbname": "d", "application_name": "x"},
    ),
    "uri-percent": (
        "postgresql://%75:p%40%2F%3a%25@h/d%20b?user=%C3%A9",
        {"user": "é", "password": "p@/:%", "host": "h", "dbname": "d b"},
    ),
    "uri-percent-in-keyword": ("postgresql://h?pass%77ord=p", {"host": "h", "password": "p"}),
    "uri-plus-is-a-plus": ("postgresql://u+v@h", {"user": "u+v", "host": "h"}),
    "uri-many-hosts": (
        "postgresql://h1:1,h2,[::1]:3/d?target_session_attrs=any",
        {"host": "h1,h2,::1", "port": "1,,3", "dbname": "d", "target_session_attrs": "any"},
    ),
    "uri-many-hosts-no-port": ("postgresql://h1,h2", {"host": "h1,h2", "port": ","}),
    "uri-ipv6": ("postgresql://[2001:db8::1]/d", {"host": "2001:db8::1", "dbname": "d"}),
    "uri-socket": ("postgresql://%2Fvar%2Frun/d", {"host": "/var/run", "dbname": "d"}),
    "uri-host-in-query": ("postgresql:///d?host=/tmp&port=1", {"dbname": "d", "host": "/tmp", "port": "1"}),
    "uri-query-wins": ("postgresql://h/?host=k", {"host": "k"}),
    "uri-empty-parts": ("postgresql://:@h:/?", {"host": "h"}),
    "uri-empty-query-value": ("postgresql://h/?user=", {"host": "h", "user": ""}),
    "uri-ampersand-at-the-end": ("postgresql://h/?user=u&", {"host": "h", "user": "u"}),
    "uri-password-with-colon": ("postgresql://u:p:q@h", {"user": "u", "password": "p:q", "host": "h"}),
    "uri-password-with-question-mark": ("postgresql://u:p?q@h", {"user": "u", "password": "p?q", "host": "h"}),
    "uri-at-in-query": ("postgresql://h/?user=u@v", {"host": "h", "user": "u@v"}),
    "uri-jdbc-ssl": ("postgresql://h?ssl=true", {"host": "h", "sslmode": "require"}),
}
REFUSED = {
    "word": "host",
    "word-after-pair": f"host=h {SECRET}",
    "no-keyword": f"={SECRET}",
    "upper-case-keyword": f"HOST={SECRET}",
    "scheme-in-upper-case": f"POSTGRESQL://u:{SECRET}@h",
    "quote-not-closed": f"password='{SECRET}",
    "closing-quote-escaped": f"password='{SECRET}\\'",
    "uri-percent-short": f"postgresql://u:{SECRET}%4@h",
    "uri-percent-not-hexadecimal": f"postgresql://u:{SECRET}%zz@h",
    "uri-percent-nul": f"postgresql://u:{SECRET}%00@h",
    "uri-percent-not-utf-8": f"postgresql://u:{SECRET}%ff@h",
    "uri-query-no-equals": f"postgresql://h?{SECRET}",
    "uri-query-two-equals": f"postgresql://h?password={SECRET}=",
    "uri-query-empty-item": f"postgresql://h?user=u&&password={SECRET}",
    "uri-ipv6-not-closed": "postgresql://[::1",
    "uri-ipv6-empty": "postgresql://[]",
    "uri-ipv6-text-behind": "postgresql://[::1]x",
}
# libpq takes these, and connects elsewhere than was meant or takes a part of the password for something else.
REFUSED_UNLIKE_LIBPQ = {
    "nul": f"host=h password={SECRET}\0",
    "value-missing-before-next": f"host= password={SECRET}",
    "uri-blank": f"postgresql://u:{SECRET}@h/d b",
    "uri-at-in-password": f"postgresql://u:p@{SECRET}@h/d",
    "uri-slash-in-password": f"postgresql://u:p/{SECRET}@h/d",
    "uri-digits-then-slash-in-password": f"postgresql://u:12/{SECRET}@h/d",
    "uri-at-in-query-without-slash": "postgresql://h?user=u@v",
    "uri-port-not-a-number": "postgresql://h:x",
    "uri-bracket-inside-host": "postgresql://a[::1]",
}


def table(cases: Mapping[str, object]) -> list[object]:
    return [pytest.param(*(case if isinstance(case, tuple) else (case,)), id=name) for name, case in cases.items()]


def nasty_text(rng: random.Random, longest: int = 12) -> str:
    return "".join(rng.choices(NASTY, k=rng.randint(0, longest)))


@pytest.mark.parametrize(("text", "parameters"), table(ACCEPTED))
def test_parse_conninfo_legal_returns_parameters_as_libpq_does(text: str, parameters: dict[str, str]) -> None:
    extensions = pytest.importorskip("psycopg2.extensions")

    assert parse_conninfo(text) == parameters
    assert extensions.parse_dsn(text) == parameters


@pytest.mark.parametrize("text", table(REFUSED))
def test_parse_conninfo_malformed_raises_as_libpq_does(text: str) -> None:
    psycopg2 = pytest.importorskip("psycopg2")
    extensions = pytest.importorskip("psycopg2.extensions")

    with pytest.raises(ConninfoError):
        parse_conninfo(text)
    # ValueError: psycopg2 cannot decode what libpq made of it.
    with pytest.raises((psycopg2.ProgrammingError, ValueError)):
        extensions.parse_dsn(text)


@pytest.mark.parametrize("text", table(REFUSED_UNLIKE_LIBPQ))
def test_parse_conninfo_misleading_raises(text: str) -> None:
    with pytest.raises(ConninfoError):
        parse_conninfo(text)


@pytest.mark.parametrize("text", table({**REFUSED, **REFUSED_UNLIKE_LIBPQ}))
def test_parse_conninfo_error_shows_no_secret(text: str) -> None:
    with pytest.raises(ConninfoError) as caught:
        parse_conninfo(text)
    shown = f"{caught.value} {caught.value.as_result()} {caught.value.__cause__}"
    assert SECRET not in shown


def test_parse_conninfo_what_libpq_writes_is_read_back() -> None:
    extensions = pytest.importorskip("psycopg2.extensions")
    rng = random.Random(7)
    for dummy in range(300):
        parameters = {"host": nasty_text(rng), "user": nasty_text(rng), "password": nasty_text(rng)}
        assert parse_conninfo(extensions.make_dsn(**parameters)) == parameters


def test_format_conninfo_round_trip_keeps_nasty_values() -> None:
    extensions = pytest.importorskip("psycopg2.extensions")
    rng = random.Random(8)
    for dummy in range(300):
        parameters = {"password": nasty_text(rng), "host": nasty_text(rng), "dbname": nasty_text(rng)}
        text = format_conninfo(parameters)
        assert list(parse_conninfo(text).items()) == list(parameters.items())
        assert extensions.parse_dsn(text) == parameters


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"port": "5432", "host": "10.0.0.1"}, "port=5432 host=10.0.0.1", id="order-kept"),
        pytest.param({"host": "/var/run/postgresql"}, "host=/var/run/postgresql", id="path-needs-no-quotes"),
        pytest.param({"user": ""}, "user=''", id="empty"),
        pytest.param({"user": "a b"}, "user='a b'", id="blank"),
        pytest.param({"password": "it's \\"}, r"password='it\'s \\'", id="quote-and-backslash"),
    ],
)
def test_format_conninfo_legal_quotes_where_needed(parameters: dict[str, str], text: str) -> None:
    assert format_conninfo(parameters) == text


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"": "x"}, id="no-keyword"),
        pytest.param({"host name": "x"}, id="blank-in-keyword"),
        pytest.param({"host=a port": "x"}, id="equals-in-keyword"),
        pytest.param({"host\n": "x"}, id="line-feed-in-keyword"),
        pytest.param({"Host": "x"}, id="upper-case-keyword"),
        pytest.param({"host": "a\0b"}, id="nul-in-value"),
    ],
)
def test_format_conninfo_impossible_raises(parameters: dict[str, str]) -> None:
    with pytest.raises(ConninfoError):
        format_conninfo(parameters)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param(f"host=h password={SECRET} port=1", "host=h password=*** port=1", id="pairs"),
        pytest.param(f"password = '{SECRET} x' user='a b'", "password=*** user='a b'", id="quoted"),
        pytest.param(f"host=h sslpassword={SECRET}", "host=h sslpassword=***", id="key-password"),
        pytest.param(f"oauth_client_secret={SECRET}", "oauth_client_secret=***", id="oauth-secret"),
        pytest.param(f"password=my {SECRET}=x", "password=*** hunter2=***", id="unquoted-password-with-blank"),
        pytest.param(f"postgresql://u:{SECRET}@h/d", "user=u password=*** host=h dbname=d", id="uri"),
        pytest.param(f"postgresql://h?pass%77ord={SECRET}", "host=h password=***", id="uri-escaped-keyword"),
        pytest.param("host=h", "host=h", id="no-password"),
        pytest.param("", "", id="empty"),
    ],
)
def test_redact_conninfo_legal_masks_secrets(text: str, shown: str) -> None:
    assert redact_conninfo(text) == shown


@pytest.mark.parametrize("text", table({**REFUSED, **REFUSED_UNLIKE_LIBPQ}))
def test_redact_conninfo_malformed_masks_everything(text: str) -> None:
    assert redact_conninfo(text) == "***"


def test_redact_conninfo_random_password_never_shows() -> None:
    rng = random.Random(9)
    for dummy in range(300):
        password = nasty_text(rng, 5) + SECRET + nasty_text(rng, 5)
        assert SECRET not in redact_conninfo(format_conninfo({"host": "h", "password": password, "user": "u"}))
        assert SECRET not in redact_conninfo(f"postgresql://u:{password}@h:1/d")


def test_passfile_entry_repr_shows_no_password() -> None:
    assert SECRET not in repr(PassfileEntry("h", "5432", "*", "u", SECRET))


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        pytest.param("", (), id="empty"),
        pytest.param("# h:1:d:u:p\n\n\r\n", (), id="comment-and-blank-lines"),
        pytest.param("h:5432:*:u:p\n", (PassfileEntry("h", "5432", "*", "u", "p"),), id="one"),
        pytest.param("*:*:*:*:p", (PassfileEntry("*", "*", "*", "*", "p"),), id="no-line-feed"),
        pytest.param("h:1:d:u:p\r\n", (PassfileEntry("h", "1", "d", "u", "p"),), id="carriage-return"),
        pytest.param(r"\:\:1:1:d:a\\b:p\:q\\" + "\n", (PassfileEntry("::1", "1", "d", "a\\b", "p:q\\"),), id="escapes"),
        pytest.param("h:1:d:u: p #\n", (PassfileEntry("h", "1", "d", "u", " p #"),), id="blank-and-hash-in-password"),
        pytest.param("h:1:d:u:*\n", (PassfileEntry("h", "1", "d", "u", "*"),), id="star-password"),
        pytest.param("h:1:d:u:p\\\n", (PassfileEntry("h", "1", "d", "u", "p\\"),), id="backslash-at-the-end"),
        pytest.param(":1:d:u:p\n", (PassfileEntry("", "1", "d", "u", "p"),), id="empty-field"),
        pytest.param(
            "h:1:d:u:p\nh:1:d:u:q\n",
            (PassfileEntry("h", "1", "d", "u", "p"), PassfileEntry("h", "1", "d", "u", "q")),
            id="order-kept",
        ),
    ],
)
def test_parse_passfile_legal_returns_entries(text: str, entries: tuple[PassfileEntry, ...]) -> None:
    assert parse_passfile(text) == entries


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(f"h:1:d:{SECRET}", id="four-fields"),
        pytest.param(f"h:1:d:u:p:{SECRET}", id="bare-colon-in-password"),
        pytest.param(f"h:1:\\*:u:{SECRET}", id="escaped-star"),
        pytest.param(f"{SECRET}", id="one-field"),
    ],
)
def test_parse_passfile_malformed_raises_without_showing_it(line: str) -> None:
    with pytest.raises(ConninfoError, match="line 2") as caught:
        parse_passfile(f"# comment\n{line}\n")
    assert caught.value.reason == "bad_passfile"
    assert SECRET not in f"{caught.value} {caught.value.as_result()}"


def test_format_passfile_round_trip_keeps_nasty_values() -> None:
    rng = random.Random(10)
    alphabet = NASTY.replace("\n", "").replace("\r", "").replace("*", "")
    for dummy in range(300):
        entries = tuple(
            PassfileEntry(*("".join(rng.choices(alphabet, k=rng.randint(1, 8))) for _field in range(5)))
            for _line in range(rng.randint(0, 3))
        )
        assert parse_passfile(format_passfile(entries)) == entries


def test_format_passfile_hash_first_is_not_a_comment() -> None:
    entry = PassfileEntry("#h", "1", "d", "u", "#p")

    assert format_passfile([entry]) == "\\#h:1:d:u:#p\n"
    assert parse_passfile(format_passfile([entry])) == (entry,)


@pytest.mark.parametrize("bad", ["", "a\nb", "a\r", "a\0"], ids=["empty", "line-feed", "carriage-return", "nul"])
@pytest.mark.parametrize("position", range(5), ids=["host", "port", "database", "user", "password"])
def test_format_passfile_impossible_field_raises(position: int, bad: str) -> None:
    fields = ["h", "1", "d", "u", SECRET]
    fields[position] = bad

    with pytest.raises(ConninfoError) as caught:
        format_passfile([PassfileEntry(*fields)])
    assert caught.value.reason == "bad_passfile"
    assert SECRET not in f"{caught.value} {caught.value.as_result()}"
