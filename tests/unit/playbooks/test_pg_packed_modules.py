# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of the callback that keeps packed modules: what is taken is what was kept, of these sources, whole, and nobody else's."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import os
import pickle
import resource
import signal
import stat
import time
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[3] / "playbooks" / "callback_plugins" / "pg_packed_modules.py"
SOURCES = ("plugins/modules/pg_one.py", "plugins/module_utils/core/two.py", "meta/runtime.yml")
THESE, OTHERS = "1" * 64, "2" * 64
PACKED = "ansible_collections.pg_ops.replication.plugins.modules.pg_promote-ZIP_DEFLATED-none"


@pytest.fixture(scope="module")
def loaded() -> ModuleType:
    specification = importlib.util.spec_from_file_location("pg_packed_modules", PATH)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def keep(kept: Any, cache: Path) -> None:
    """Keep what a run left where Ansible puts what it has packed."""
    new = kept.new_in(cache)
    if new:
        kept.keep(new)


def packed_in(directory: Path, content: bytes = b"what Ansible packed", name: str = PACKED) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(content)
    return directory


def taken(loaded: ModuleType, home: Path, digest: str = THESE) -> dict[str, bytes]:
    """Return what a new run finds where Ansible looks."""
    cache = home.parent / "taken"
    loaded.Kept(home, digest, compiled=False).take(cache)
    found = {path.name: path.read_bytes() for path in cache.iterdir()} if cache.exists() else {}
    for name in found:
        (cache / name).unlink()
    return found


@pytest.fixture
def home(loaded: ModuleType, tmp_path: Path) -> Path:
    """Return an ANSIBLE_HOME in which one module is kept."""
    made = tmp_path / "home"
    keep(loaded.Kept(made, THESE, compiled=False), packed_in(tmp_path / "cache"))
    return made


def test_the_next_run_takes_what_was_kept(loaded: ModuleType, home: Path) -> None:
    assert taken(loaded, home) == {PACKED: b"what Ansible packed"}


def test_of_other_sources_nothing_is_taken(loaded: ModuleType, home: Path) -> None:
    assert taken(loaded, home, OTHERS) == {}


def test_what_was_packed_from_four_other_sources_stays_and_what_was_used_longest_ago_goes(loaded: ModuleType, home: Path, tmp_path: Path) -> None:
    root, digests = home / "pg_ops.replication", [digit * 64 for digit in "23456"]
    for age_seconds, digest in enumerate([THESE, *digests[:4]]):
        keep(loaded.Kept(home, digest, compiled=False), tmp_path / "cache")
        os.utime(root / digest, times=(time.time() - 3600 + age_seconds,) * 2)
    assert taken(loaded, home) == {PACKED: b"what Ansible packed"}  # what is taken is in use

    keep(loaded.Kept(home, digests[4], compiled=False), tmp_path / "cache")

    assert sorted(path.name for path in root.iterdir()) == [THESE, *digests[1:]]
    assert taken(loaded, home, digests[4]) == {PACKED: b"what Ansible packed"}


def test_what_has_byte_code_gets_no_other(loaded: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.module_common, "_CachedModule", None, raising=False)
    once = loaded.with_byte_code(zipped({"one.py": "x = 1\n"}))

    with zipfile.ZipFile(io.BytesIO(base64.b64decode(loaded.with_byte_code(once)))) as packed:
        assert packed.namelist() == ["one.py", "one.pyc"]


def test_nothing_else_that_lies_there_is_removed_but_what_a_killed_run_left(loaded: ModuleType, home: Path, tmp_path: Path) -> None:
    root = home / "pg_ops.replication"
    (root / "somebody's").mkdir()
    for name, age_seconds in ((".new.at work", 60), (".new.left", 7200)):
        (root / name).write_bytes(b"half")
        os.utime(root / name, times=(time.time() - age_seconds,) * 2)

    keep(loaded.Kept(home, OTHERS, compiled=False), tmp_path / "cache")

    assert sorted(path.name for path in root.iterdir()) == [".new.at work", THESE, OTHERS, "somebody's"]


def test_of_a_file_that_the_disk_has_no_room_for_nothing_is_left(loaded: ModuleType, home: Path, tmp_path: Path) -> None:
    keep(loaded.Kept(home, OTHERS, compiled=False), packed_in(tmp_path / "cache", bytes(1 << 20)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            loaded.Kept(home, OTHERS, compiled=False).take(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)

    assert list((tmp_path / "full").iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ansible.modules.command-ZIP_DEFLATED-none", id="Ansible's own"),
        pytest.param("ansible_collections.community.postgresql.plugins.modules.postgresql_ping-ZIP_DEFLATED-none", id="another collection's"),
        pytest.param(PACKED + ".lock", id="a lock"),
        pytest.param(PACKED + "-part", id="half a file"),
    ],
)
def test_nothing_else_is_kept(loaded: ModuleType, tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    keep(loaded.Kept(home, THESE, compiled=False), packed_in(tmp_path / "cache", name=name))

    assert not home.exists()


def zipped(sources: dict[str, str]) -> bytes:
    """Return packed sources as Ansible packs them."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, source in sources.items():
            packed.writestr(name, source)
    return base64.b64encode(made.getvalue())


def test_sources_get_byte_code_that_python_takes(loaded: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.module_common, "_CachedModule", None, raising=False)
    path = tmp_path / "packed.zip"
    path.write_bytes(base64.b64decode(loaded.with_byte_code(zipped({"pg_kept/__init__.py": "", "pg_kept/one.py": "answer = 42\n"}))))
    monkeypatch.syspath_prepend(path)

    one = importlib.import_module("pg_kept.one")

    assert one.answer == 42
    assert str(one.__file__).endswith("one.pyc")


def test_with_byte_code_and_without_are_kept_beside_each_other(loaded: ModuleType, home: Path, tmp_path: Path) -> None:
    keep(loaded.Kept(home, THESE, compiled=True), tmp_path / "cache")

    assert sorted(path.name for path in (home / "pg_ops.replication" / THESE).iterdir()) == ["compiled", "plain"]


@pytest.mark.parametrize(
    ("variables", "near"),
    [
        pytest.param({"ansible_connection": "local"}, True, id="local"),
        pytest.param({"ansible_connection": "pg_ops.replication.lxd", "ansible_lxd_remote": "local"}, True, id="LXD"),
        pytest.param({"ansible_connection": "pg_ops.replication.lxd", "ansible_lxd_remote": "elsewhere"}, False, id="LXD elsewhere"),
        pytest.param({"ansible_connection": "ssh"}, False, id="SSH"),
        pytest.param({}, False, id="default"),
    ],
)
def test_byte_code_is_for_hosts_on_this_machine(loaded: ModuleType, variables: dict[str, str], near: bool) -> None:
    assert loaded.is_near(variables) is near


def test_all_else_of_what_ansible_packed_stays(loaded: ModuleType) -> None:
    kind = getattr(loaded.module_common, "_CachedModule", None)
    if kind is None:
        pytest.skip("before ansible-core 2.19 it is the zip file alone")
    cached = kind(zip_data=zipped({"one.py": "x = 1\n"}), metadata=None, source_mapping={"/here/one.py": "one.py"})

    found = pickle.loads(loaded.with_byte_code(pickle.dumps(cached)))

    with zipfile.ZipFile(io.BytesIO(base64.b64decode(found.zip_data))) as packed:
        assert (packed.namelist(), packed.read("one.py")) == (["one.py", "one.pyc"], b"x = 1\n")
    assert (found.metadata, found.source_mapping) == (None, {"/here/one.py": "one.py"})


@pytest.mark.parametrize("cached", [b"", b"what another release packs", pickle.dumps({"zip_data": b""}), zipped({"one.py": "no python"})])
@pytest.mark.parametrize("raw", [False, True])
def test_what_cannot_be_read_is_kept_as_it_is(loaded: ModuleType, monkeypatch: pytest.MonkeyPatch, cached: bytes, raw: bool) -> None:
    if raw:
        monkeypatch.setattr(loaded.module_common, "_CachedModule", None, raising=False)
    assert loaded.with_byte_code(cached) == cached


def kept_file(home: Path) -> Path:
    return home / "pg_ops.replication" / THESE / "plain" / PACKED


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda whole: whole[:-1], id="cut off"),
        pytest.param(lambda whole: b"", id="empty"),
        pytest.param(lambda whole: bytes(len(whole)), id="zeroes"),
    ],
)
def test_what_a_power_cut_left_is_not_taken(loaded: ModuleType, home: Path, content: object) -> None:
    assert callable(content)
    kept_file(home).write_bytes(content(kept_file(home).read_bytes()))

    assert taken(loaded, home) == {}


@pytest.mark.parametrize("which", ["pg_ops.replication", f"pg_ops.replication/{THESE}", f"pg_ops.replication/{THESE}/plain"])
def test_what_others_can_write_to_is_not_taken(loaded: ModuleType, home: Path, which: str) -> None:
    (home / which).chmod(0o770)

    assert taken(loaded, home) == {}


def test_what_another_account_owns_is_not_taken(loaded: ModuleType, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)

    assert taken(loaded, home) == {}


def test_a_link_that_somebody_laid_is_neither_taken_nor_written_through(loaded: ModuleType, home: Path, tmp_path: Path) -> None:
    (home / "pg_ops.replication").rename(tmp_path / "elsewhere")
    (home / "pg_ops.replication").symlink_to(tmp_path / "elsewhere")

    assert taken(loaded, home) == {}
    keep(loaded.Kept(home, OTHERS, compiled=False), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == [THESE]


def test_kept_files_are_readable_for_their_owner_only(home: Path) -> None:
    root = home / "pg_ops.replication"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (root, root / THESE, root / THESE / "plain", kept_file(home))}

    assert modes == {root: 0o700, root / THESE: 0o700, root / THESE / "plain": 0o700, kept_file(home): 0o600}


@pytest.mark.parametrize("name", SOURCES)
def test_any_source_of_the_collection_makes_another_digest(loaded: ModuleType, tmp_path: Path, name: str) -> None:
    for each in SOURCES:
        (tmp_path / each).parent.mkdir(parents=True)
        (tmp_path / each).write_text("x = 1\n", encoding="utf-8")
    before = loaded.sources_digest(tmp_path)
    assert loaded.sources_digest(tmp_path) == before

    (tmp_path / name).write_text("x = 2\n", encoding="utf-8")

    assert loaded.sources_digest(tmp_path) != before


def test_a_source_of_ansible_core_that_a_user_replaced_makes_another_digest(
    loaded: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded.module_utils_loader, "_get_paths", lambda subdirs: [str(tmp_path / "absent"), str(tmp_path / "own")])
    before = loaded.sources_digest(tmp_path / "collection")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "basic.py").write_text("x = 1\n", encoding="utf-8")

    assert loaded.sources_digest(tmp_path / "collection") != before


@pytest.mark.parametrize("edited", [False, True])
def test_a_run_in_which_a_source_was_edited_keeps_nothing(loaded: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: bool) -> None:
    source, home = tmp_path / "collection" / SOURCES[0], tmp_path / "home"
    source.parent.mkdir(parents=True)
    source.write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(loaded.importlib, "import_module", lambda name: SimpleNamespace(__path__=[str(tmp_path / "collection")]))
    monkeypatch.setattr(loaded.constants.config, "get_config_value", lambda name: str(home))
    monkeypatch.setattr(loaded.CallbackModule, "get_option", lambda self, name: True)
    callback = loaded.CallbackModule()
    callback._cache = tmp_path / "cache"

    callback.v2_runner_on_start(SimpleNamespace(name="pg1", vars={}), None)
    if edited:
        source.write_text("x = 2\n", encoding="utf-8")
    packed_in(callback._cache)
    callback.v2_playbook_on_stats(None)

    assert home.exists() is not edited
