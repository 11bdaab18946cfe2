# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""pg_passfile: what it writes is what libpq reads, and no password is in what it says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.basic import AnsibleModule
from real_servers import ACCOUNT, Node, Pair, Ports, as_account, copy_pair, digest, end_below

NASTY = [
    "plain", "it's", 'dou"ble', "back\\slash", "end\\", "co:lon", ":", "sp ace ", " ", "per%cent%s", "Grüße ß 雪", "#hash", "{{ jinja }}", "$HOME`id`",
    "a\\:b\\\\c", "x" * 500,
]


@pytest.fixture(scope="module")
def server(template: Pair, place: Path, ports: Ports) -> Iterator[Node]:
    made = copy_pair(template, place / "passfile", ports)
    made.primary.start()
    yield made.primary
    end_below(place / "passfile")


def options(server: Node, user: str, password: str, **more: Any) -> dict[str, Any]:
    return {"peers": [{"address": "127.0.0.1", "port": server.port}], "passwords": {user: password}, **more}


@pytest.mark.parametrize("password", NASTY, ids=range(len(NASTY)))
def test_passfile_nasty_password_authenticates(server: Node, password: str) -> None:
    role = 'Ro:l\\e "ü'
    server.sql("SELECT 1")
    quoted = '"' + role.replace('"', '""') + '"'
    server.sql(f"DROP ROLE IF EXISTS {quoted}")
    server.sql(f"CREATE ROLE {quoted} LOGIN SUPERUSER PASSWORD %s", password)
    (server.data / "pg_hba.conf").write_text("host all all 127.0.0.1/32 scram-sha-256\n", encoding="utf-8")
    server.sql("SELECT pg_reload_conf()")
    answer = server.call("pg_passfile", **options(server, role, password))
    assert answer.changed
    assert password.strip() in ("", ":", "plain") or password not in answer.text
    assert not server.call("pg_passfile", **options(server, role, password)).changed
    user = role.replace("\\", "\\\\").replace("'", "\\'")
    conninfo = f"host=127.0.0.1 port={server.port} user='{user}' dbname=postgres passfile={answer['path']}"
    done = as_account([f"{server.programs.directory}/psql", "-wXAtc", "SELECT current_user", conninfo])
    assert done.stdout.strip() == role, done.stderr


def test_passfile_life_in_check_mode_for_real_and_again(absent: Node) -> None:
    wanted = {
        "peers": [{"name": "one", "address": "::1"}, {"address": "192.0.2.2", "port": 6543}],
        "passwords": {"replicator": "first secret", "rewinder": "second secret"},
    }
    checked = absent.call("pg_passfile", check_mode=True, **wanted)
    assert checked.changed and not absent.state.exists()
    answer = absent.call("pg_passfile", **wanted)
    assert answer.changed and answer["diff"] == checked["diff"]
    path = Path(answer["path"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_uid == ACCOUNT.pw_uid
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4
    assert "\\:\\:1:5432:" in path.read_text(encoding="utf-8")
    assert not absent.call("pg_passfile", **wanted).changed
    wanted["passwords"]["replicator"] = "third secret"
    modified = absent.call("pg_passfile", **wanted)
    assert modified.changed
    for each in (checked, answer, modified):
        assert "secret" not in each.text
    assert not list(path.parent.glob(".pg_ops.*"))


def test_passfile_what_ansible_logs_on_the_host_holds_no_password(absent: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It logs every module's options; a backslash or both kinds of quotes stand escaped in a list's text, where it looks for passwords in vain."""
    logged = tmp_path / "log"

    def log(_module: Any, text: str, **_more: Any) -> None:
        with logged.open("a", encoding="utf-8") as stream:
            stream.write(text)

    monkeypatch.setattr(AnsibleModule, "log", log)
    passwords = {str(number): f"begin{password}secret" for number, password in enumerate(NASTY)}
    assert absent.call("pg_passfile", peers=[{"address": "192.0.2.2"}], passwords=passwords).changed
    text = logged.read_text(encoding="utf-8")
    assert "192.0.2.2" in text and "begin" not in text and "secret" not in text, text


def test_passfile_that_is_to_follow_goes_when_it_has(absent: Node) -> None:
    def wanted(password: str, **more: Any) -> dict[str, Any]:
        return {"peers": [{"address": "192.0.2.2"}], "passwords": {"replicator": password}, **more}

    path = Path(absent.call("pg_passfile", **wanted("of today"))["path"])
    coming = path.with_name("passfile.next")
    checked = absent.call("pg_passfile", check_mode=True, **wanted("of tomorrow", next=True))
    assert checked.changed and not coming.exists()
    assert absent.call("pg_passfile", **wanted("of tomorrow", next=True)).changed
    assert not absent.call("pg_passfile", **wanted("of tomorrow", next=True)).changed
    assert stat.S_IMODE(coming.stat().st_mode) == 0o600 and coming.stat().st_uid == ACCOUNT.pw_uid
    assert "of today" in path.read_text(encoding="utf-8") and "of tomorrow" in coming.read_text(encoding="utf-8")
    assert absent.call("pg_passfile", **wanted("of tomorrow")).changed
    assert "of tomorrow" in path.read_text(encoding="utf-8") and not coming.exists()
    assert not absent.call("pg_passfile", **wanted("of tomorrow", next=True)).changed and not coming.exists()
    # Changes that were cut off may have reached the servers: what they left stays until the passfile is written.
    assert absent.call("pg_passfile", **wanted("of next week", next=True)).changed
    assert absent.call("pg_passfile", **wanted("of next month", next=True)).changed
    assert absent.call("pg_passfile", **wanted("of next year", next=True)).changed
    assert not absent.call("pg_passfile", **wanted("of tomorrow", next=True)).changed
    assert "of next year" in coming.read_text(encoding="utf-8")
    for number, words in ((1, "of next week"), (2, "of next month")):
        assert words in path.with_name(f"passfile.next.{number}").read_text(encoding="utf-8")
    assert absent.call("pg_passfile", check_mode=True, **wanted("of tomorrow")).changed and coming.exists()
    assert absent.call("pg_passfile", **wanted("of tomorrow")).changed
    assert sorted(each.name for each in path.parent.glob("passfile*")) == ["passfile"]


def test_passfile_open_to_others_is_closed(absent: Node) -> None:
    wanted = options(absent, "replicator", "secret")
    path = Path(absent.call("pg_passfile", **wanted)["path"])
    path.chmod(0o644)
    assert absent.call("pg_passfile", **wanted).changed
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_passfile_of_another_owner_is_taken_back(absent: Node) -> None:
    """libpq, as the server's account, could not read it."""
    wanted = options(absent, "replicator", "secret")
    path = Path(absent.call("pg_passfile", **wanted)["path"])
    os.chown(path, 0, 0)
    assert absent.call("pg_passfile", **wanted).changed
    assert path.stat().st_uid == ACCOUNT.pw_uid


@pytest.mark.parametrize("password", ["new\nline", "carriage\rreturn"], ids=["newline", "return"])
def test_passfile_password_that_no_passfile_holds_is_refused(absent: Node, password: str) -> None:
    before = digest(absent.home)
    answer = absent.call("pg_passfile", **options(absent, "replicator", password))
    assert answer.failed and answer["reason"]
    assert password not in answer["msg"] and password.encode("unicode_escape").decode() not in answer.text.replace("\\\\", "\\")
    assert digest(absent.home) == before


def test_passfile_broken_file_is_replaced(absent: Node) -> None:
    path = Path(absent.call("pg_passfile", **options(absent, "replicator", "secret"))["path"])
    path.write_bytes(b"\xff\xfe not utf-8\n")
    assert absent.call("pg_passfile", **options(absent, "replicator", "secret")).changed
    assert "secret" in path.read_text(encoding="utf-8")


def test_passfile_where_the_system_refuses_is_one_clear_error(absent: Node) -> None:
    message = absent.call("pg_passfile", **options(absent, "replicator", "secret"), state_directory="/dev/null/state").refusal("system")
    assert message.startswith("Not a directory: /dev/null/state")
