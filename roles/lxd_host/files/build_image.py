# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build a systemd container image with debootstrap and import it into LXD, once per alias.

Usage: build_image.py --alias ALIAS --work-directory DIRECTORY --recipe JSON
Prints "built ALIAS in N s from MIRROR", or "present ALIAS" when another run was first.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, Optional

APT_DIRECTORY = pathlib.Path("/etc/apt")
ARCHIVE_ORIGINS = ("Debian", "Ubuntu")
COMMAND_TIMEOUT_SECONDS = 900
PROBE_TIMEOUT_SECONDS = 15

# Debian and Ubuntu start services when packages are installed; 101 means "not allowed".
POLICY_RC_D = "#!/bin/sh\nexit 101\n"
INTERFACES = "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n"
# Without this file the package makes a cluster, and all containers would share its system identifier.
CREATECLUSTER_CONF = "create_main_cluster = false\n"
# Documentation, translations and plain-text package lists are a third of the tree, which every launch unpacks.
DPKG_EXCLUDES = """path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
"""
APT_SMALL = 'Acquire::GzipIndexes "true";\nAcquire::Languages "none";\n'
APT_EXPIRED = 'Acquire::Check-Valid-Until "false";\n'
HOSTS_TEMPLATE = "127.0.0.1 localhost\n127.0.1.1 {{ container.name }}\n::1 localhost ip6-localhost ip6-loopback\n"


class BuildError(Exception):
    """The image cannot be built; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What goes into the image. Empty `mirror`, `script`, `keyring` mean: find it, the release's, debootstrap's own."""

    release: str
    mirror: str
    keyring: str
    script: str
    components: tuple[str, ...]
    base_packages: tuple[str, ...]
    packages: tuple[str, ...]
    masked_units: tuple[str, ...]
    check_valid_until: bool


@dataclasses.dataclass(frozen=True)
class Archive:
    """Where one suite's packages come from."""

    uri: str
    suite: str


def recipe_from(text: str) -> Recipe:
    """Read a recipe from JSON. Raises BuildError for what is no recipe."""
    try:
        fields = json.loads(text)
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        return Recipe(**values)
    except (ValueError, TypeError, AttributeError) as error:
        raise BuildError(f"The recipe cannot be read: {error}.") from error


def uris_of_one_line(text: str) -> Iterator[str]:
    """Yield the URIs of `deb` lines in the one-line format of sources.list(5)."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+\S+", line)
        if match:
            yield match.group(1)


def uris_of_deb822(text: str) -> Iterator[str]:
    """Yield the URIs of enabled `deb` stanzas in the deb822 format of sources.list(5)."""
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", without_comments):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = fields.get(name, "") + " " + line.strip()
            elif ":" in line:
                name, _colon, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        enabled = fields.get("enabled", "yes").lower() not in ("no", "false", "0", "off", "without", "disable")
        if enabled and "deb" in fields.get("types", "").split():
            yield from fields.get("uris", "").split()


def host_uris(directory: pathlib.Path = APT_DIRECTORY) -> list[str]:
    """Return the http(s) URIs of this host's apt sources, sources.list first, each once."""
    parts = directory / "sources.list.d"
    found: list[str] = []
    for path in [directory / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]:
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            found += uris_of_deb822(text) if path.suffix == ".sources" else uris_of_one_line(text)
    return list(dict.fromkeys(uri.rstrip("/") for uri in found if uri.startswith(("http://", "https://"))))


def without_password(uri: str) -> str:
    """Return the URI as it may be printed."""
    return re.sub(r"//[^/@]*@", "//", uri)


def release_text(archive: Archive) -> str:
    """Return the head of the suite's InRelease or Release file; empty when the archive has no such suite."""
    for name in ("InRelease", "Release"):
        try:
            with urllib.request.urlopen(f"{archive.uri}/dists/{archive.suite}/{name}", timeout=PROBE_TIMEOUT_SECONDS) as answer:
                return str(answer.read(4096).decode("utf-8", errors="replace"))
        except (urllib.error.URLError, OSError, ValueError):
            continue
    return ""


def is_distribution(text: str) -> bool:
    """Whether this Release file is Debian's or Ubuntu's own, not that of a vendor who uses the same suite names."""
    return any(re.search(rf"^(Origin|Label): {origin}\b", text, re.MULTILINE) for origin in ARCHIVE_ORIGINS)


def find_archives(recipe: Recipe, candidates: Sequence[str]) -> tuple[Archive, ...]:
    """Return the archive of the release, then those of its updates and security suites where there are any.

    Raises BuildError when no candidate has the release.
    """
    mirrors = [recipe.mirror.rstrip("/")] if recipe.mirror else list(candidates)
    for mirror in mirrors:
        main = Archive(mirror, recipe.release)
        text = release_text(main)
        if text and (recipe.mirror or is_distribution(text)):
            break
    else:
        tried = ", ".join(without_password(mirror) for mirror in mirrors) or "no http(s) URI at all"
        raise BuildError(
            f"No archive has the release {recipe.release!r} (tried {tried}). "
            "Set lxd_image_mirror to one that has it, or lxd_image_release to one that the mirror has."
        )
    found = [main]
    for suite in (f"{recipe.release}-updates", f"{recipe.release}-security"):
        for mirror_uri in dict.fromkeys([mirror, *candidates]):
            if is_distribution(release_text(Archive(mirror_uri, suite))):
                found.append(Archive(mirror_uri, suite))
                break
    return tuple(found)


def sources_list(recipe: Recipe, archives: Sequence[Archive]) -> str:
    """Return the container's sources.list."""
    components = " ".join(recipe.components)
    return "".join(f"deb {archive.uri} {archive.suite} {components}\n" for archive in archives)


def run(argv: Sequence[str], *, environment: Optional[dict[str, str]] = None) -> str:
    """Run a command to its end and return its standard output. Raises BuildError with the output's tail when it fails.

    Standard error is kept apart: the first `lxc` of an account greets it there.
    """
    try:
        done = subprocess.run(
            list(argv),
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildError(f"The program {argv[0]} is missing. Install it.") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{argv[0]} did not end within {COMMAND_TIMEOUT_SECONDS} s.") from error
    if done.returncode != 0:
        tail = without_password("\n".join((done.stdout + done.stderr).splitlines()[-30:]))
        raise BuildError(f"{argv[0]} failed with exit status {done.returncode}:\n{tail}")
    return done.stdout


def has_image(alias: str) -> bool:
    """Whether LXD has an image by this alias."""
    listed = json.loads(run(["lxc", "image", "list", f"local:{alias}", "--format", "json"]))
    return any(one["name"] == alias for image in listed for one in image.get("aliases", []))


def bootstrap(recipe: Recipe, main: Archive, root: pathlib.Path) -> None:
    """Install the base system."""
    argv = ["debootstrap", "--variant=minbase", "--force-check-gpg"]
    argv += [f"--components={','.join(recipe.components)}", f"--include={','.join(recipe.base_packages)}"]
    if recipe.keyring:
        argv.append(f"--keyring={recipe.keyring}")
    argv += [recipe.release, str(root), main.uri]
    if recipe.script:
        argv.append(recipe.script)
    run(argv, environment=proxy_environment())


def proxy_environment() -> dict[str, str]:
    """Return the proxy that apt uses on this host as variables that debootstrap's wget reads."""
    if "http_proxy" in os.environ or shutil.which("apt-config") is None:
        return {}
    text = run(["apt-config", "dump", "--format", "%f %v%n", "Acquire::http::Proxy"])
    match = re.match(r"Acquire::http::Proxy (http\S+)", text)
    return {"http_proxy": match.group(1), "https_proxy": match.group(1)} if match else {}


def configure(recipe: Recipe, archives: Sequence[Archive], root: pathlib.Path) -> None:
    """Write what makes the tree a container that reaches `running`, and what the installation of packages needs."""
    files = {
        "etc/apt/sources.list": sources_list(recipe, archives),
        "etc/apt/apt.conf.d/90pg-ops": APT_SMALL + ("" if recipe.check_valid_until else APT_EXPIRED),
        "etc/dpkg/dpkg.cfg.d/90pg-ops": DPKG_EXCLUDES,
        "etc/network/interfaces": INTERFACES,
        "etc/postgresql-common/createcluster.conf": CREATECLUSTER_CONF,
        "etc/machine-id": "",
        "usr/sbin/policy-rc.d": POLICY_RC_D,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    for unit in recipe.masked_units:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")


def install(recipe: Recipe, root: pathlib.Path) -> None:
    """Bring the tree up to date, install the extra packages, and remove what belongs to the build."""
    apt = ["chroot", str(root), "apt-get", "-qq", "-y", "-o", "Acquire::Retries=3", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-confold"]
    quiet = {"DEBIAN_FRONTEND": "noninteractive", **proxy_environment()}
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    run(["mount", "-t", "proc", "proc", str(root / "proc")])  # systemd-tmpfiles, which packages call, wants it
    try:
        run([*apt, "update"], environment=quiet)
        run([*apt, "upgrade"], environment=quiet)
        if recipe.packages:
            run([*apt, "--no-install-recommends", "install", *recipe.packages], environment=quiet)
        run([*apt, "clean"])
    finally:
        run(["umount", "--lazy", str(root / "proc")])
    for name in ("usr/sbin/policy-rc.d", "etc/hostname", "etc/resolv.conf", "var/lib/dbus/machine-id"):
        (root / name).unlink(missing_ok=True)
    remove_excluded(root)


def remove_excluded(root: pathlib.Path) -> None:
    """Remove what debootstrap unpacked before dpkg knew of DPKG_EXCLUDES, and the build's logs."""
    for directory in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/log"):
        for path in (root / directory).rglob("*"):
            if path.is_file() and path.name not in ("copyright", "locale.alias"):
                path.unlink()


def metadata(recipe: Recipe, *, created: int) -> str:
    """Return metadata.yaml (as JSON, which is YAML): /etc/hosts and /etc/hostname follow the container's name."""
    template = {"when": ["create", "copy", "rename"], "create_only": False}
    return json.dumps(
        {
            "architecture": os.uname().machine,
            "creation_date": created,
            "properties": {
                "release": recipe.release,
                "description": f"{recipe.release} for PostgreSQL replication",
                "user.pg_ops": "built by role lxd_host",
            },
            "templates": {
                "/etc/hostname": {**template, "template": "hostname.tpl"},
                "/etc/hosts": {**template, "template": "hosts.tpl"},
            },
        },
        indent=2,
    )


def pack_and_import(recipe: Recipe, alias: str, directory: pathlib.Path, root: pathlib.Path) -> None:
    """Pack the tree as a split image and hand it to LXD. Level 1: packing and unpacking count, size does not."""
    templates = directory / "templates"
    templates.mkdir()
    (templates / "hostname.tpl").write_text("{{ container.name }}\n", encoding="utf-8")
    (templates / "hosts.tpl").write_text(HOSTS_TEMPLATE, encoding="utf-8")
    (directory / "metadata.yaml").write_text(metadata(recipe, created=int(time.time())), encoding="utf-8")
    meta, rootfs = directory / "meta.tar.gz", directory / "rootfs.tar.zst"
    run(["tar", "-C", str(directory), "-czf", str(meta), "metadata.yaml", "templates"])
    run(["tar", "--numeric-owner", "--xattrs", "--acls", "-I", "zstd -1 -T0", "-C", str(root), "-cf", str(rootfs), "."])
    run(["lxc", "image", "import", str(meta), str(rootfs), "local:", "--alias", alias])


def build(recipe: Recipe, alias: str, work: pathlib.Path) -> str:
    """Build the image unless it is there, and say which. One build at a time: the others wait and find it."""
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(work / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if has_image(alias):
            return f"present {alias}"
        started = time.monotonic()
        for stale in work.glob("build-*"):  # a killed build's; its mounts died with their namespace
            run(["rm", "-rf", "--one-file-system", str(stale)])
        archives = find_archives(recipe, host_uris())
        directory = pathlib.Path(tempfile.mkdtemp(prefix="build-", dir=work))
        try:
            root = directory / "rootfs"
            bootstrap(recipe, archives[0], root)
            configure(recipe, archives, root)
            install(recipe, root)
            pack_and_import(recipe, alias, directory, root)
        finally:
            run(["rm", "-rf", "--one-file-system", str(directory)])
        return f"built {alias} in {time.monotonic() - started:.0f} s from {without_password(archives[0].uri)}"


def main(arguments: Sequence[str]) -> int:
    """Read the command line, build, print one line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alias", required=True)
    parser.add_argument("--work-directory", required=True, type=pathlib.Path)
    parser.add_argument("--recipe", required=True)
    options = parser.parse_args(arguments)
    try:
        print(build(recipe_from(options.recipe), options.alias, options.work_directory))
    except BuildError as error:
        print(f"Cannot build the image {options.alias}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
