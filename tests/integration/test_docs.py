# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What README and docs tell people to type, and the names that they use, against what there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml
from run_checks import tracked_files

CHECKOUT = Path(__file__).resolve().parents[2]
VENV_BIN = Path(sys.executable).parent
DOCUMENTS = sorted(
    str(path.relative_to(CHECKOUT))
    for pattern in ("README.md", "CONTRIBUTING.md", "docs/*.md", "roles/*/README.md", "benchmarks/README.md")
    for path in CHECKOUT.glob(pattern)
)
BOOKS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((CHECKOUT / "playbooks").glob("*.yml"))}
# Those that people call, not those that are only imported.
PLAYBOOKS = [name for name in BOOKS if not any(f"import_playbook: {name}.yml" in text for text in BOOKS.values())]
# Options of ansible-playbook that take a value, and those that take none.
WITH_VALUE = {"-i", "-e", "--vault-id", "--limit"}
ALONE = {"--ask-vault-pass", "--check", "--diff"}
# Names that are not ours: PostgreSQL's programs, functions, files and views, and a group.
FOREIGN = {
    "pg_basebackup", "pg_controldata", "pg_ctl", "pg_rewind", "pg_promote", "pg_stat_replication", "pg_nodes", "pg_ops", "pg_lsclusters",
    "pg_wal_replay_resume", "pg_wal", "pg_monitor", "pg_backup", "pg_create_restore_point", "pg_dump", "pg_stat_archiver",
}  # fmt: skip
# Files that lie on hosts or come into being.
MADE = {"pending.json", "fenced.json", "rewind.json", "clone.json", "restore.json", "vault.yml", "vars.yml", "argument_specs.yml", "hosts.yml"}


def text_of(document: str) -> str:
    return (CHECKOUT / document).read_text(encoding="utf-8")


@cache
def commands(document: str) -> tuple[tuple[str, ...], ...]:
    """Return what a document has people type: the lines of its sh blocks, indented lines, and code spans that begin like a command."""
    text = text_of(document)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"^ {4}((?:ansible|make)\S* .*)$", text, re.MULTILINE)
    lines += [span for span in spans(document) if re.match(r"(ansible-\w+|make) ", span)]
    split = (shlex.split(line, comments=True) for line in lines)
    return tuple(dict.fromkeys(tuple(words) for words in split if words))


@cache
def spans(document: str) -> tuple[str, ...]:
    """Return the code spans outside of blocks."""
    prose = re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    return tuple(re.findall(r"`([^`\n]+)`", prose))


def without_assignments(words: tuple[str, ...]) -> tuple[str, ...]:
    kept = list(words)
    while kept and re.match(r"^[A-Z_]+=", kept[0]):
        del kept[0]
    return tuple(kept)


def playbook_commands(document: str) -> Iterator[tuple[str, ...]]:
    for words in map(without_assignments, commands(document)):
        if words and Path(words[0]).name == "ansible-playbook":
            # Where its output goes is the shell's.
            ends = [index for index, word in enumerate(words) if word in ("|", ">")]
            yield words[: min(ends, default=len(words))]


def arguments_of(words: tuple[str, ...]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the playbooks of a command and its options; an option that we do not know is an error."""
    books: list[str] = []
    options: dict[str, list[str]] = {}
    rest = list(words[1:])
    while rest:
        word = rest.pop(0)
        if word in WITH_VALUE:
            options.setdefault(word, []).append(rest.pop(0))
        elif word in ALONE:
            options.setdefault(word, [])
        else:
            assert not word.startswith("-"), f"unknown option {word} in {' '.join(words)}"
            books.append(word)
    return books, options


@cache
def documented_variables() -> frozenset[str]:
    found: set[str] = set()
    for path in CHECKOUT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            found |= set(entry["options"])
    return frozenset(found)


@cache
def metrics() -> frozenset[str]:
    """Return the metrics that the exporter's queries make: a namespace and a column each."""
    queries = yaml.safe_load((CHECKOUT / "roles" / "monitoring" / "files" / "queries.yml").read_text(encoding="utf-8"))
    return frozenset(f"{namespace}_{name}" for namespace, query in queries.items() for metric in query["metrics"] for name in metric)


@cache
def sources() -> str:
    """Return the text of all plugins and roles, on one line and without the quotes that join pieces of a message."""
    files = [*(CHECKOUT / "plugins").rglob("*.py"), *(CHECKOUT / "roles").rglob("tasks/*.yml"), *(CHECKOUT / "roles").rglob("files/*.py")]
    return " ".join(" ".join(path.read_text(encoding="utf-8").split()) for path in files)


def environment(**more: str) -> dict[str, str]:
    present = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PG"))}
    return {**present, "PATH": f"{VENV_BIN}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8", "ANSIBLE_NOCOLOR": "1", **more}


def run(*argv: str, cwd: Path = CHECKOUT, **more: str) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env=environment(**more), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_target_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = {word for words in commands(document) if words[0] == "make" for word in words[1:] if "=" not in word}
    named |= {word for words in map(without_assignments, commands(document)) if words[:1] == ("make",) for word in words[1:] if "=" not in word}
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_playbook_command_names_what_there_is(document: str) -> None:
    for words in playbook_commands(document):
        books, options = arguments_of(words)
        assert len(books) == 1, words
        # Bare commands are typed in playbooks/, those of .venv/bin in the checkout.
        directory = CHECKOUT if words[0].startswith(".venv") else CHECKOUT / "playbooks"
        if books[0].startswith("pg_ops.replication."):
            assert books[0].rpartition(".")[2] in PLAYBOOKS
        else:
            assert (directory / books[0]).is_file(), words
        for inventory in options.get("-i", []):
            assert (directory / inventory.replace("production", "example")).exists(), words
        for variable in options.get("-e", []):
            assert variable.partition("=")[0] in documented_variables() | {"vault_file", "lxd_delete_images"}, words
        for script in options.get("--vault-id", []):
            assert os.access(directory / script, os.X_OK), words


@pytest.mark.parametrize("inventory", ["lxd", "example"])
def test_every_playbook_passes_syntax_check(inventory: str) -> None:
    password = {"PG_OPS_VAULT_PASSWORD": "replicate-safely", "ANSIBLE_VAULT_PASSWORD_FILE": "../scripts/vault_password_env-client.sh"}
    books = [f"{name}.yml" for name in PLAYBOOKS]
    said = run("ansible-playbook", "--syntax-check", "-i", f"../inventories/{inventory}", *books, cwd=CHECKOUT / "playbooks", **password)
    assert len(re.findall(r"^playbook: ", said, re.MULTILINE)) == len(books)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout as a user has it after make setup and a copy of inventories/example, to type in."""
    made = tmp_path / "checkout"
    for name in tracked_files():
        target = made / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, target, follow_symlinks=False)
    link = made / "playbooks" / "collections" / "ansible_collections" / "pg_ops" / "replication"
    link.parent.mkdir(parents=True)
    link.symlink_to("../../../..")
    (made / "collections").symlink_to("playbooks/collections")
    (made / ".venv").symlink_to(VENV_BIN.parent)
    shutil.copytree(made / "inventories" / "example", made / "inventories" / "production")
    return made


def test_installed_collection_runs_its_playbooks_by_name(checkout: Path, tmp_path: Path) -> None:
    """README's own words, but that nobody is there to type a password, and no host to ask."""
    [block] = re.findall(r"^### Without the checkout\n.*?^```sh\n(.*?)^```", text_of("README.md"), re.MULTILINE | re.DOTALL)
    assert block.count("--ask-vault-pass") == 1
    typed = block.replace("--ask-vault-pass", f"--vault-id {checkout}/scripts/vault_password_env-client.sh --syntax-check")
    said = run("/bin/sh", "-exc", typed, cwd=checkout, HOME=str(tmp_path), PG_OPS_VAULT_PASSWORD="replicate-safely")
    installed = tmp_path / ".ansible" / "collections" / "ansible_collections" / "pg_ops" / "replication"
    assert f"playbook: {installed}/playbooks/status.yml" in said
    assert os.readlink(checkout / "playbooks" / "collections" / "ansible_collections" / "pg_ops" / "replication") == "../../../.."
    names = [f"pg_ops.replication.{name}" for name in PLAYBOOKS]
    said = run("ansible-playbook", "--syntax-check", "-i", "localhost,", *names, cwd=tmp_path, HOME=str(tmp_path))
    assert said.count(f"playbook: {installed}/playbooks/") == len(names)
    assert (installed / "docs" / "architecture.md").is_file()


# What a user has in inventories/ beside what is shipped, and authorities wherever they are or were.
PRIVATE = (
    "production/hosts.yml", "production/group_vars/pg_nodes/vault.yml", "production/.tls/main/ca.key", "production/tls/main/ca.key",
    "example/.tls/main/ca.key", "local/.tls/main/ca.key", "lxd/tls/main/ca.key", "hosts", "hosts.yml", "e", "Staging/hosts.yml", "10/hosts.yml",
    ".hidden/hosts.yml", "eu/hosts.yml", "exam/hosts.yml", "example.old/hosts.yml", "examples/hosts.yml", "lab/hosts.yml", "locale/hosts.yml",
    "local2/hosts.yml", "london/hosts.yml", "lx/hosts.yml", "lxd-test/hosts.yml",
)  # fmt: skip


def test_private_inventories_are_neither_in_the_artifact_nor_in_git(tmp_path: Path) -> None:
    for name in ("galaxy.yml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy2(CHECKOUT / name, tmp_path / name)
    shipped = {name for name in tracked_files() if name.startswith("inventories/")}
    private = {f"inventories/{name}" for name in PRIVATE}
    for name in shipped | private:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one's own", encoding="ascii")
    run("ansible-galaxy", "collection", "build", "--output-path", str(tmp_path / ".cache"), cwd=tmp_path)
    with tarfile.open(next((tmp_path / ".cache").glob("*.tar.gz"))) as artifact:
        built = {member.name for member in artifact.getmembers() if member.isfile()}
    run("git", "init", "--quiet", cwd=tmp_path)
    kept = set(run("git", "ls-files", "--others", "--exclude-standard", cwd=tmp_path).splitlines())
    for found in (built, kept):
        assert {name for name in found if name.startswith("inventories/")} == shipped


@pytest.mark.parametrize("kind", ["role", "module", "inventory"])
def test_ansible_doc_command_answers(kind: str) -> None:
    named = {words[-1] for document in DOCUMENTS for words in commands(document) if Path(words[0]).name == "ansible-doc" and kind in words}
    if kind == "inventory":
        named.add("pg_ops.replication.lxd")
    assert named
    said = json.loads(run("ansible-doc", "--json", "-t", kind, *sorted(named)))
    assert set(said) == named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_other_command_is_one_that_is_known(document: str) -> None:
    known = {f"ansible-{name}" for name in ("playbook", "doc", "galaxy", "inventory", "vault")}
    known |= {"make", "cd", "export", "lxc", "cp", "mkdir", "mv", "rm", "rmdir", "python"}
    for words in map(without_assignments, commands(document)):
        program = words[0] if words else "export"
        assert Path(program).name in known or (CHECKOUT / program).is_file(), words


@pytest.mark.parametrize("document", DOCUMENTS)
def test_file_that_is_named_exists(document: str) -> None:
    patterns = ("playbooks", "inventories/*", "roles/*/tasks", "plugins/module_utils")
    places = [CHECKOUT, (CHECKOUT / document).parent, *(place for pattern in patterns for place in CHECKOUT.glob(pattern))]
    for span in spans(document):
        if not re.fullmatch(r"[\w./*-]+(\.(yml|py|md|sh|cfg)|/)", span) or span in MADE or span.startswith(("DATA", "TIME", "/", "inventories/production")):
            continue
        if span.startswith((".cache/", "changelogs/fragments/")):
            continue
        assert any(next(place.glob(span.rstrip("/")), None) for place in places), span


@pytest.mark.parametrize("document", DOCUMENTS)
def test_link_leads_somewhere(document: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", text_of(document)):
        assert (CHECKOUT / document).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_name_of_ours_exists(document: str) -> None:
    modules = {path.stem for path in (CHECKOUT / "plugins" / "modules").glob("*.py")}
    roles = {path.name for path in (CHECKOUT / "roles").iterdir()}
    for span in spans(document):
        name = re.match(r"^((?:pg|lxd)_\w+)(?:[:=].*)?$", span)
        if name:
            assert name[1] in documented_variables() | modules | roles | metrics() | FOREIGN, span


@pytest.mark.parametrize("document", DOCUMENTS)
def test_function_that_is_named_exists(document: str) -> None:
    for span in spans(document):
        if re.fullmatch(r"\w+\(\)", span) and span[:-2] not in FOREIGN:
            assert f"def {span[:-1]}" in sources(), span


def test_function_stands_in_the_file_that_is_named_before_it() -> None:
    prose = text_of("docs/architecture.md")
    pairs = re.findall(r"`(\w+)\(\)`[^`]{1,12}`(plugins/[\w/]+\.py)`", prose)
    pairs += [(function, "plugins/module_utils/handover.py") for function in re.findall(r"^\| `(\w+)\(\)`", prose, re.MULTILINE)]
    assert len(pairs) > 8
    for function, path in pairs:
        assert f"def {function}(" in text_of(path), (function, path)


def test_message_that_readme_explains_is_one_that_is_printed() -> None:
    section = text_of("README.md").partition("## At 3 a.m.")[2].partition("| exit status")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    messages = [span for cell in cells for span in re.findall(r"`([^`]+)`", cell) if " " in span]
    assert len(messages) > 8
    for message in messages:
        assert re.sub(r"pgsql\d", "{0}", message) in sources(), message


def test_readme_has_every_playbook_and_role_its_readme() -> None:
    assert [name for name in PLAYBOOKS if f"{name}.yml" not in text_of("README.md")] == []
    assert [path.name for path in (CHECKOUT / "roles").iterdir() if path.is_dir() and not (path / "README.md").is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tag_that_is_named_exists(document: str) -> None:
    tasks = " ".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "roles").rglob("tasks/*.yml"))
    if document.startswith("roles/") and "lxd_host" not in document:
        role = Path(document).parent.name
        for tag in re.findall(rf"`({role}_[a-z]+)`", text_of(document)):
            assert re.search(rf"tags: \[.*\b{tag}\b.*\]", tasks), tag
