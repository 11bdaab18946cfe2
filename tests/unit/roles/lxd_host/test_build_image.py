# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image builder's choice of an archive, and what it writes into the image."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).parents[4] / "roles" / "lxd_host"


def load_program() -> ModuleType:
    """The program is no package's module: it is copied to the LXD host and run there."""
    spec = importlib.util.spec_from_file_location("lxd_host_build_image", ROLE / "files" / "build_image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build_image = load_program()

RECIPE = {
    "release": "bookworm",
    "mirror": "",
    "keyring": "",
    "script": "",
    "components": ["main"],
    "base_packages": ["systemd"],
    "packages": [],
    "masked_units": [],
    "check_valid_until": True,
}


def recipe(**fields: Any) -> Any:
    return build_image.recipe_from(json.dumps({**RECIPE, **fields}))


ONE_LINE = """# deb http://commented.example/debian bookworm main
deb http://first.example/debian bookworm main contrib
deb [arch=amd64 signed-by=/usr/share/keyrings/a.gpg] https://second.example/debian/ bookworm main
deb-src http://source.example/debian bookworm main
  deb\thttp://tab.example/debian bookworm main
"""
DEB822 = """Types: deb deb-src
# a comment inside a stanza
URIs: http://one.example/debian
 https://two.example/debian
Suites: bookworm
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm

types: deb
uris: cdrom:[Debian]/
suites: bookworm
"""


def test_uris_of_one_line_takes_deb_lines_with_and_without_options() -> None:
    assert list(build_image.uris_of_one_line(ONE_LINE)) == ["http://first.example/debian", "https://second.example/debian/", "http://tab.example/debian"]


def test_uris_of_deb822_takes_enabled_binary_stanzas() -> None:
    assert list(build_image.uris_of_deb822(DEB822)) == ["http://one.example/debian", "https://two.example/debian", "cdrom:[Debian]/"]


def test_host_uris_reads_both_formats_once_each_and_http_only(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://two.example/debian/ bookworm main\n")
    (parts / "a.list").write_text(ONE_LINE)
    (parts / "debian.sources").write_text(DEB822 + "\nTypes: deb\nURIs: http://two.example/debian\nSuites: bookworm\n")
    (parts / "a.sources.save").write_text("Types: deb\nURIs: http://saved.example/debian\n")
    assert build_image.host_uris(tmp_path) == [
        "http://two.example/debian",
        "http://first.example/debian",
        "https://second.example/debian",
        "http://tab.example/debian",
        "http://one.example/debian",
        "https://two.example/debian",
    ]


def test_host_uris_without_sources_are_none(tmp_path: Path) -> None:
    assert build_image.host_uris(tmp_path) == []


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture(name="archives")
def fixture_archives(tmp_path: Path) -> Iterator[str]:
    """A web server with a vendor's repository, Debian's archive and its security archive. None has an InRelease but a Release file."""
    for path, origin in {
        "vendor/dists/bookworm": "Docker",
        "debian/dists/bookworm": "Debian",
        "debian/dists/bookworm-updates": "Debian",
        "debian-security/dists/bookworm-security": "Debian",
        "mine/dists/bookworm": "A company",
    }.items():
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "Release").write_text(f"Origin: {origin}\nSuite: stable\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_find_archives_passes_by_a_vendor_that_uses_the_suite_names(archives: str) -> None:
    found = build_image.find_archives(recipe(), [f"{archives}/vendor", f"{archives}/debian", f"{archives}/debian-security"])
    assert [(one.uri.replace(archives, ""), one.suite) for one in found] == [
        ("/debian", "bookworm"),
        ("/debian", "bookworm-updates"),
        ("/debian-security", "bookworm-security"),
    ]


def test_find_archives_takes_the_mirror_that_is_named_whoever_it_is(archives: str) -> None:
    found = build_image.find_archives(recipe(mirror=f"{archives}/mine/"), [f"{archives}/debian"])
    assert found[0] == build_image.Archive(f"{archives}/mine", "bookworm")


@pytest.mark.parametrize("candidates", [[], ["/vendor", "/nothing"]])
def test_find_archives_without_the_release_names_the_variables(archives: str, candidates: list[str]) -> None:
    with pytest.raises(build_image.BuildError, match="lxd_image_mirror") as caught:
        build_image.find_archives(recipe(), [archives.replace("//", "//user:secret@") + path for path in candidates])
    assert "secret" not in str(caught.value)


def test_sources_list_has_a_line_an_archive() -> None:
    archives = [build_image.Archive("http://a.example/debian", "trixie"), build_image.Archive("http://s.example/debian-security", "trixie-security")]
    text = build_image.sources_list(recipe(components=["main", "contrib"]), archives)
    assert list(build_image.uris_of_one_line(text)) == [archive.uri for archive in archives]
    assert "trixie-security main contrib\n" in text


@pytest.mark.parametrize("text", ["", "[]", "{", '{"release": "sid"}', json.dumps({**RECIPE, "colour": "red"})])
def test_recipe_from_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(build_image.BuildError, match="cannot be read"):
        build_image.recipe_from(text)


def test_configure_writes_an_image_without_identity_or_cluster(tmp_path: Path) -> None:
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    (tmp_path / "etc/machine-id").write_text("0123\n")
    build_image.configure(recipe(masked_units=["a.service"], check_valid_until=False), [build_image.Archive("http://a.example", "sid")], tmp_path)
    assert (tmp_path / "etc/machine-id").read_text() == ""
    assert (tmp_path / "etc/postgresql-common/createcluster.conf").read_text() == "create_main_cluster = false\n"
    assert (tmp_path / "etc/systemd/system/a.service").readlink() == Path("/dev/null")
    assert "Check-Valid-Until" in (tmp_path / "etc/apt/apt.conf.d/90pg-ops").read_text()
    assert (tmp_path / "usr/sbin/policy-rc.d").stat().st_mode & 0o111


def test_remove_excluded_keeps_licences(tmp_path: Path) -> None:
    for name in ("usr/share/doc/a/copyright", "usr/share/doc/a/changelog.gz", "usr/share/man/man1/a.1.gz", "usr/share/locale/locale.alias", "var/log/a.log"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    build_image.remove_excluded(tmp_path)
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert kept == ["usr/share/doc/a/copyright", "usr/share/locale/locale.alias"]


def test_run_failed_command_shows_its_output_without_passwords() -> None:
    with pytest.raises(build_image.BuildError, match="exit status 3") as caught:
        build_image.run(["sh", "-c", "echo E: http://user:secret@a.example/debian; exit 3"])
    assert "http://a.example/debian" in str(caught.value)


def test_run_missing_program_is_named() -> None:
    with pytest.raises(build_image.BuildError, match="no-such-program"):
        build_image.run(["no-such-program"])


def test_role_recipe_has_the_fields_that_the_program_reads() -> None:
    contents = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["__lxd_host_image_contents"]
    assert set(contents) | {"mirror", "keyring"} == set(RECIPE)
