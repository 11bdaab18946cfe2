# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One PostgreSQL server on this host: its paths, its files, its processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ansible_collections.pg_ops.replication.plugins.module_utils import sql
from ansible_collections.pg_ops.replication.plugins.module_utils.core.conf_file import parse_conf, set_conf
from ansible_collections.pg_ops.replication.plugins.module_utils.core.control_data import ControlData, parse_control_data
from ansible_collections.pg_ops.replication.plugins.module_utils.core.errors import PgOpsError
from ansible_collections.pg_ops.replication.plugins.module_utils.core.node import PLATFORM_MAJORS

DEBIAN_BIN = "/usr/lib/postgresql"
DEBIAN_ETC = "/etc/postgresql"
DEBIAN_DATA = "/var/lib/postgresql"
POLL_SECONDS = 0.01
# A run that lost its controller ends by its own time-outs.
LOCK_TIMEOUT_SECONDS = 180.0


class ServerError(PgOpsError):
    """A server's program failed, or the server is not where it must be."""

    def __init__(self, message: str, *, reason: str = "server", observed: str = "", required: str = "", hint: str = "") -> None:
        super().__init__(message, reason=reason, observed=observed, required=required, hint=hint)


def platform_major() -> str:
    """Return the major version that this host's distribution installs; empty when unknown."""
    try:
        text = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return ""
    names = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return str(PLATFORM_MAJORS.get(names.get("VERSION_CODENAME", ""), ""))


def _newest(pattern_root: str, tail: str) -> str:
    found = [path.relative_to(pattern_root).parts[0] for path in Path(pattern_root).glob("*/" + tail)]
    majors = sorted((int(name) for name in found if name.isdigit()), reverse=True)
    return str(majors[0]) if majors else ""


@dataclass(frozen=True)
class Server:
    """Where a server lives and how it is started. All paths are absolute; the state directory is ours."""

    version: str
    bin_directory: str
    data_directory: str
    config_directory: str
    state_directory: str
    log_file: str
    owner: str
    service_manager: str
    service_name: str
    superuser: str
    database: str
    port: int
    socket_directory: str
    timeout_seconds: float
    peer_ssl_mode: str = ""

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Server:
        """Return the server that the module's options name; empty ones are filled in from the platform."""
        cluster = params["debian_cluster"]
        version = params["version"] or _newest(DEBIAN_ETC, cluster) or platform_major() or _newest(DEBIAN_BIN, "bin/postgres")
        etc = "{0}/{1}/{2}".format(DEBIAN_ETC, version, cluster)
        data = params["data_directory"]
        debian = not data
        if debian:
            data = "{0}/{1}/{2}".format(DEBIAN_DATA, version, cluster)
            with contextlib.suppress(OSError):
                data = parse_conf(read_verbatim(Path(etc, "postgresql.conf"))).get("data_directory", data)
        return cls(
            version=version,
            bin_directory=params["bin_directory"] or "{0}/{1}/bin".format(DEBIAN_BIN, version),
            data_directory=data,
            config_directory=params["config_directory"] or (etc if debian else data),
            state_directory=params["state_directory"] or data + ".pg_ops",
            log_file=params["log_file"] or data + ".log",
            owner=params["owner"],
            service_manager=params["service_manager"],
            service_name=params["service_name"] or "postgresql@{0}-{1}".format(version, cluster),
            superuser=params["login_user"],
            database=params["login_db"],
            port=params["login_port"],
            socket_directory=params["login_unix_socket"] or "/var/run/postgresql",
            timeout_seconds=params["connect_timeout_seconds"],
            peer_ssl_mode=params["peer_ssl_mode"],
        )

    # -- paths ---------------------------------------------------------------------------------------------------------

    def data(self, *parts: str) -> Path:
        """Return a path below the data directory."""
        return Path(self.data_directory, *parts)

    def state(self, *parts: str) -> Path:
        """Return a path below the state directory."""
        return Path(self.state_directory, *parts)

    @property
    def config_file(self) -> Path:
        """The server's postgresql.conf."""
        return Path(self.config_directory, "postgresql.conf")

    @property
    def hba_file(self) -> Path:
        """The server's pg_hba.conf."""
        return Path(self.config_directory, "pg_hba.conf")

    @property
    def passfile(self) -> Path:
        """The passfile with the passwords for the peers (mode 0600, the server user's)."""
        return self.state("passfile")

    @property
    def coming_passfile(self) -> Path:
        """The passfile that is to follow while passwords are changed."""
        return self.state("passfile.next")

    def next_passfiles(self) -> list[Path]:
        """Return the passfiles that are to follow: that of the change under way, and passfile.next.1 and so on of changes before it that were cut off.

        roles/boot_guard/files/boot_guard.py looks for the same names.
        """
        near = self.coming_passfile.parent
        return sorted(path for path in near.glob("passfile.next*") if re.fullmatch(r"passfile\.next(\.\d+)?", path.name))

    @property
    def config_is_in_data(self) -> bool:
        """Whether a copy of the data directory would bring another node's configuration along."""
        return Path(self.config_directory).resolve() == Path(self.data_directory).resolve()

    def program(self, name: str) -> str:
        """Return the path of one of PostgreSQL's programs; raises ServerError when it is not installed."""
        path = os.path.join(self.bin_directory, name)
        if not os.access(path, os.X_OK):
            raise ServerError(
                "PostgreSQL's program {0} is not installed".format(name), reason="program_missing", observed=path,
                hint="Run initial_setup.yml or set pg_bin_directory.",
            )
        return path

    def exists(self) -> bool:
        """Whether there is a data directory with a server in it."""
        return self.data("PG_VERSION").is_file()

    # -- the account ---------------------------------------------------------------------------------------------------

    def account(self) -> Optional[pwd.struct_passwd]:
        """Return the operating system account of the server; None when it does not exist yet."""
        try:
            return pwd.getpwnam(self.owner)
        except KeyError:
            return None

    def _switch(self) -> dict[str, Any]:
        """Return the arguments that make a child process run as the server's account; ours must be root or that account."""
        account = self.account()
        if account is None:
            raise ServerError("there is no account {0}".format(self.owner), reason="no_account", hint="Install PostgreSQL or set pg_owner.")
        if os.geteuid() == account.pw_uid:
            return {}
        if os.geteuid() != 0:
            raise ServerError(
                "this must run as root or as {0}".format(self.owner), reason="wrong_account",
                observed=pwd.getpwuid(os.geteuid()).pw_name, hint="Set become for this host.",
            )
        groups = os.getgrouplist(account.pw_name, account.pw_gid)
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}

    def run(
        self, argv: Sequence[str], *, timeout_seconds: float, check: bool = True, stdin: str = "", environment: Optional[Mapping[str, str]] = None,
        directory: str = "/",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as the server's account with LC_ALL=C; raises ServerError when it fails or does not end in time."""
        account = self.account()
        env = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "HOME": account.pw_dir if account else "/", **(environment or {})}
        try:
            done = subprocess.run(
                list(argv), input=stdin, capture_output=True, text=True, errors="replace", timeout=timeout_seconds, check=False,
                cwd=directory, env=env, **self._switch(),
            )
        except subprocess.TimeoutExpired as error:
            raise ServerError(
                "{0} did not end within {1} s".format(os.path.basename(argv[0]), timeout_seconds), reason="program_timeout"
            ) from error
        if check and done.returncode != 0:
            raise ServerError(
                "{0} failed: {1}".format(os.path.basename(argv[0]), (done.stderr or done.stdout).strip()[-2000:]),
                reason="program_failed", observed="rc {0}".format(done.returncode),
            )
        return done

    @contextlib.contextmanager
    def reading(self, argv: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        """Start a program as the server's account and hand its output on line by line; it is dead when the block ends.

        Its complaints are a pipe too, for a program that has few: whoever reads its output to the end may read them then.
        """
        account = self.account()
        env = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "HOME": account.pw_dir if account else "/"}
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", cwd="/",
            env=env, **self._switch(),
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def own(self, path: Path) -> None:
        """Give a file to the server's account when we are root."""
        account = self.account()
        if os.geteuid() == 0 and account is not None:
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)

    def ensure_state_directory(self) -> None:
        """Create the state directory, readable by the server's account only."""
        for path in (self.state(), self.state("reports")):
            if not path.is_dir():
                path.mkdir(mode=0o700, parents=True)
                self.own(path)

    def write(self, path: Path, text: str, *, mode: int = 0o600) -> None:
        """Write a file of the server durably: a new file, flushed, then renamed over the old one."""
        handle, name = tempfile.mkstemp(dir=str(path.parent), prefix=".pg_ops.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, mode)
            self.own(Path(name))
            os.replace(name, str(path))
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        sync_directory(path.parent)

    @contextlib.contextmanager
    def alone(self, *, timeout_seconds: float = LOCK_TIMEOUT_SECONDS) -> Iterator[None]:
        """Wait until no other run changes the role of this server, and keep others from it; the kernel ends that with the process.

        A run outlives its controller, so that the operator's next one may meet it. Raises ServerError when it does not end in time.
        The lock is on the state directory itself: nothing is written, also where the run goes on to refuse.
        """
        self.ensure_state_directory()
        deadline = time.monotonic() + timeout_seconds
        handle = os.open(self.state_directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            while not _locked(handle):
                if time.monotonic() > deadline:
                    raise ServerError(
                        "another run is still at work on this server", reason="busy", observed="{0} is locked".format(self.state_directory),
                        required="one run at a time", hint="Wait until it has ended, look with status.yml, then repeat.",
                    )
                time.sleep(POLL_SECONDS)
            yield
        finally:
            os.close(handle)

    # -- notes that outlive a run ------------------------------------------------------------------------------------------

    def read_note(self, name: str) -> dict[str, Any]:
        """Return a note from the state directory; empty when there is none."""
        try:
            found = json.loads(self.state(name + ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_note(self, name: str, note: Mapping[str, Any]) -> None:
        """Keep a note in the state directory until it is removed; a run that starts again finds it."""
        self.ensure_state_directory()
        self.write(self.state(name + ".json"), json.dumps(dict(note), sort_keys=True) + "\n")

    def remove_note(self, name: str) -> bool:
        """Remove a note; returns whether there was one."""
        try:
            self.state(name + ".json").unlink()
        except FileNotFoundError:
            return False
        return True

    # -- what the files say --------------------------------------------------------------------------------------------

    def control_data(self) -> ControlData:
        """Return what pg_controldata prints of the data directory; raises ServerError or ControlDataError."""
        done = self.run([self.program("pg_controldata"), "-D", self.data_directory], timeout_seconds=30)
        # 17 and later warn of a corrupt file on stderr only.
        return parse_control_data(done.stdout + done.stderr)

    def configured(self, name: str) -> str:
        """Return what a setting would be at a start, read from all configuration files by PostgreSQL itself; empty where it cannot read them."""
        argv = [self.program("postgres"), "-D", self.data_directory, "-c", "config_file={0}".format(self.config_file), "-C", name]
        done = self.run(argv, timeout_seconds=30, check=False)
        return done.stdout.rstrip("\n") if done.returncode == 0 else ""

    @property
    def auto_conf(self) -> Path:
        """The file that ALTER SYSTEM writes; it wins over every other configuration file."""
        return self.data("postgresql.auto.conf")

    def read_auto_conf(self) -> dict[str, str]:
        """Return the settings in postgresql.auto.conf."""
        return parse_conf(read_verbatim(self.auto_conf))

    def set_auto_conf(self, settings: Mapping[str, Optional[str]]) -> bool:
        """Set or remove (None) entries of postgresql.auto.conf; returns whether the file changed.

        The file works the same for a running and for a stopped server, so that there is one path for both.
        """
        before = read_verbatim(self.auto_conf)
        after = set_conf(before, dict(settings))
        if after == before:
            return False
        self.write(self.auto_conf, after)
        return True

    @property
    def standby_signal(self) -> Path:
        """The file that makes a server start as a standby."""
        return self.data("standby.signal")

    def write_standby_signal(self) -> bool:
        """Make sure that the next start is a standby's; returns whether the file was missing."""
        if self.standby_signal.exists():
            return False
        self.write(self.standby_signal, "")
        return True

    def remove_standby_signal(self) -> bool:
        """Let the next start open read-write; returns whether the file was there."""
        try:
            self.standby_signal.unlink()
        except FileNotFoundError:
            return False
        sync_directory(self.data())
        return True

    # -- processes -----------------------------------------------------------------------------------------------------

    def postmaster_pid(self) -> int:
        """Return the process id of the running postmaster of this data directory; 0 when there is none."""
        try:
            pid = int(self.data("postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
        except (OSError, ValueError):
            return 0
        return pid if self._is_postmaster(pid) else 0

    def _told_by_postmaster(self, line: int) -> str:
        """Return a line of the running postmaster's postmaster.pid, counted from 1; empty when none runs or it has not come so far."""
        if not self.postmaster_pid():
            return ""
        lines = read_verbatim(self.data("postmaster.pid")).splitlines()
        return lines[line - 1].strip() if len(lines) >= line else ""

    def running_port(self) -> int:
        """Return the port of the running postmaster; 0 when none runs or it has not written it yet."""
        port = self._told_by_postmaster(4)
        return int(port) if port.isdigit() else 0

    def running_since(self) -> int:
        """Return when the running postmaster was started, in seconds of the epoch; 0 when none runs."""
        started = self._told_by_postmaster(3)
        return int(started) if started.isdigit() else 0

    def running_status(self) -> str:
        """Return what the running postmaster says of itself, which is what pg_ctl waits for: starting, standby, ready or stopping; empty when none runs.

        With hot_standby=off it says standby as soon as recovery has begun, though it accepts no connections, and ready when recovery has ended.
        """
        return self._told_by_postmaster(8)

    def _is_postmaster(self, pid: int) -> bool:
        """Whether that process works in our data directory: a stale postmaster.pid may name a stranger."""
        try:
            with open("/proc/{0}/stat".format(pid), encoding="utf-8", errors="replace") as stream:
                if stream.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return False
            return os.path.realpath("/proc/{0}/cwd".format(pid)) == os.path.realpath(self.data_directory)
        except (OSError, IndexError):
            return False

    def _await_reaping(self) -> None:
        """Wait until the postmaster that was killed is gone even as a zombie: a new one takes that for a running one."""
        deadline = time.monotonic() + 10
        try:
            pid = int(self.data("postmaster.pid").read_text(encoding="utf-8").split("\n", 1)[0])
            while time.monotonic() < deadline:
                if Path("/proc/{0}/stat".format(pid)).read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[0] != "Z":
                    return
                time.sleep(POLL_SECONDS)
        except (OSError, ValueError, IndexError):
            return

    def _remove_empty_lock(self) -> None:
        """Remove a postmaster.pid that its postmaster had no time to write into; neither pg_ctl nor a postmaster starts beside one.

        A postmaster makes it from within the data directory, so one that may still write works there.
        """
        lock = self.data("postmaster.pid")
        try:
            if lock.stat().st_size > 0 or any(self._is_postmaster(int(name)) for name in os.listdir("/proc") if name.isdigit()):
                return
            if lock.stat().st_size == 0:
                lock.unlink()
        except FileNotFoundError:
            return

    def _systemctl(self, *words: str, timeout_seconds: float) -> None:
        argv = ["systemctl", *words, self.service_name]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_seconds, check=False)
        if done.returncode != 0:
            raise ServerError(
                "{0} failed: {1}".format(" ".join(argv), done.stderr.strip()), reason="service_failed",
                observed="rc {0}".format(done.returncode), hint="Look at: journalctl -u {0} -n 50".format(self.service_name),
            )

    def start(self, *, timeout_seconds: float = 60) -> None:
        """Start the server through its service manager and wait until it is up; raises ServerError with the log's end."""
        self._remove_empty_lock()
        if self.service_manager == "systemd":
            with contextlib.suppress(ServerError):  # nothing had failed
                self._systemctl("reset-failed", timeout_seconds=20)
            self._start_unit(timeout_seconds)
            return
        if not self.exists():
            raise ServerError(
                "there is no server in {0}".format(self.data_directory), reason="no_data", observed="no PG_VERSION", required="a data directory",
                hint="Run initial_setup.yml.",
            )
        self._await_reaping()
        self._ask_boot_guard()
        # A copy of another server brings that one's port and socket along where the configuration lies in the data directory.
        # pg_ctl passes these options through a shell.
        words = ["-c", "config_file={0}".format(self.config_file), "-p", str(self.port), "-k", self.socket_directory]
        argv = [
            self.program("pg_ctl"), "start", "-w", "-s", "-t", str(int(timeout_seconds)), "-D", self.data_directory, "-l", self.log_file,
            "-o", " ".join(shlex.quote(word) for word in words),
        ]
        try:
            self.run(argv, timeout_seconds=timeout_seconds + 5)
        except ServerError as error:
            raise ServerError(
                "the server on port {0} did not start: {1}. Its log ends: {2}".format(self.port, " ".join(error.message[-300:].split()), self.log_end()),
                reason="start_failed", observed="not up", required="up", hint="Look at {0}.".format(self.log_file),
            ) from error

    @contextlib.contextmanager
    def guard_allowing(self) -> Iterator[None]:
        """Have the boot guard allow one start within: of a server that its caller has just seen or proven to be the primary.

        Alone, it would be kept down where pg_boot_guard_alone is refuse. A newer timeline and a primary beside it weigh more than the permission.
        """
        allow = self.state("boot_guard", "allow")
        if not allow.with_name("config.json").is_file():
            yield
            return
        self.write(allow, "")
        try:
            yield
        finally:
            with contextlib.suppress(FileNotFoundError):  # the guard takes it
                allow.unlink()

    def _ask_boot_guard(self) -> None:
        """Ask the guard that the role boot_guard has put beside the server; raises ServerError when it refuses the start."""
        program, config = self.state("boot_guard", "boot_guard.py"), self.state("boot_guard", "config.json")
        if not (program.is_file() and config.is_file()):
            return
        words = ["-I", "-S", str(program), str(config)]
        begun = time.time() - 1  # file systems keep coarser time
        try:
            done = self.run([sys.executable, *words], timeout_seconds=60, check=False)
        except PermissionError:  # our Python may be one that only root can reach
            done = self.run(["/usr/bin/python3", *words], timeout_seconds=60, check=False)
        if done.returncode != 0:
            raise self._guard_refusal(since=begun) or ServerError(
                "the boot guard failed: {0}".format(done.stderr.strip()[-1000:]), reason="boot_guard", hint="Run initial_setup.yml."
            )

    def _guard_refusal(self, *, since: float) -> Optional[ServerError]:
        """Return why the guard refused a start after `since` (seconds of the epoch), None when it gave no such verdict."""
        path = self.state("boot_guard", "verdict.json")
        try:
            if path.stat().st_mtime < since:
                return None
            verdict = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if verdict.get("action") == "start":
            return None
        return ServerError(
            "the boot guard keeps the server from starting: {0}".format(verdict.get("message")), reason="boot_guard",
            observed=str(verdict.get("reason")), required="no other primary",
        )

    def _start_unit(self, timeout_seconds: float) -> None:
        """Start the systemd unit and wait until the server is up; raises ServerError as soon as the unit has given up.

        Debian's pg_ctlcluster takes two seconds to notice that the server is up, so it is not systemd that is waited for.
        """
        begun = time.time() - 1  # file systems keep coarser time
        self._systemctl("start", "--no-block", timeout_seconds=20)
        deadline = time.monotonic() + timeout_seconds
        while not self._is_up():
            if self._unit_gave_up() or time.monotonic() > deadline:
                raise self._guard_refusal(since=begun) or ServerError(
                    "{0} did not start".format(self.service_name), reason="start_failed", observed="not up after {0} s".format(timeout_seconds),
                    required="up", hint="Look at: journalctl -u {0} -n 50".format(self.service_name),
                )
            time.sleep(0.05)

    def _is_up(self) -> bool:
        """Whether the postmaster says that it accepts connections."""
        return self.running_status() in ("ready", "standby")

    def _unit_gave_up(self) -> bool:
        """Whether the unit neither runs nor has a job under way that may still start it."""
        argv = ["systemctl", "show", "--property=ActiveState,Job", self.service_name]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        shown = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        return shown.get("ActiveState") in ("failed", "inactive") and shown.get("Job", "0") in ("", "0")

    def log_end(self, lines: int = 8) -> str:
        """Return the last lines of the server's log, joined by ' | '."""
        try:
            text = Path(self.log_file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "no log"
        return " | ".join(text.splitlines()[-lines:])

    def signal_stop(self, how: int) -> None:
        """Send the postmaster a shutdown signal, and let systemd know that the stop is meant."""
        pid = self.postmaster_pid()
        if not pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, how)
        if self.service_manager == "systemd":
            with contextlib.suppress(subprocess.TimeoutExpired):  # the postmaster has its signal
                subprocess.run(["systemctl", "stop", "--no-block", self.service_name], capture_output=True, timeout=20, check=False)

    def wait_stopped(self, *, timeout_seconds: float, poll_seconds: float = POLL_SECONDS) -> bool:
        """Wait until there is no postmaster; returns False when it still runs at the deadline."""
        deadline = time.monotonic() + timeout_seconds
        while self.postmaster_pid():
            if time.monotonic() > deadline:
                return False
            time.sleep(poll_seconds)
        return True

    def stop(self, *, timeout_seconds: float = 60) -> None:
        """Stop the server fast; raises ServerError when it does not stop in time."""
        self.signal_stop(signal.SIGINT)
        if not self.wait_stopped(timeout_seconds=timeout_seconds):
            raise ServerError(
                "the server did not stop within {0} s".format(timeout_seconds), reason="stop_timeout", observed="running", required="stopped",
                hint="A client, the archiver or a standby holds it up, or it is frozen.",
            )

    def kill(self) -> None:
        """End the server without its help: SIGQUIT, then SIGKILL for the postmaster and its children (a hung host)."""
        self.signal_stop(signal.SIGQUIT)
        if self.wait_stopped(timeout_seconds=2):
            return
        pid = self.postmaster_pid()
        for victim in [pid, *children_of(pid)] if pid else []:  # 0 would be this module's own process group
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        if not self.wait_stopped(timeout_seconds=10):
            raise ServerError("the server survives SIGKILL", reason="kill_failed", hint="Restart the host.")

    def outliving(self) -> list[int]:
        """Return the ids of the server's processes that work on although the postmaster is dead.

        Each ends when it next waits for something. One in the middle of a long statement does not wait, and may commit what it did.
        """
        return [] if self.postmaster_pid() else [pid for pid in all_processes() if self._is_of_this_server(pid)]

    def _is_of_this_server(self, pid: int) -> bool:
        # By inode: in a container's mount namespace another server's directory may have the same name.
        try:
            program = os.path.basename(os.readlink("/proc/{0}/exe".format(pid)))
            return program.startswith("postgres") and os.path.samefile("/proc/{0}/cwd".format(pid), self.data_directory)
        except OSError:  # it has ended, a zombie included, or is not ours to look at
            return False

    def end_outliving(self, *, timeout_seconds: float = 10, hanging_counts: bool = True) -> bool:
        """Kill what outlived a postmaster, and return whether there was any; raises ServerError when it survives that.

        One that hangs in the kernel, at a disk that does not answer, ends when it comes back from there, and tells no client of a commit any more: where that
        is enough, `hanging_counts` is false, and nothing is raised.
        """
        found = self.outliving()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + timeout_seconds
        while any(self._is_of_this_server(pid) for pid in found) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if hanging_counts and any(self._is_of_this_server(pid) for pid in found):
            raise ServerError("a process of the server survives SIGKILL", reason="kill_failed", hint="Restart the host.")
        return bool(found)

    def end_leftover(self, program: str, directory: str) -> None:
        """Kill a program of ours that works on a directory and outlived the run that started it."""
        leftovers = [pid for pid in processes_of(program) if directory in command_line(pid)]
        for pid in leftovers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while any(command_line(pid) for pid in leftovers) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def reload(self) -> None:
        """Make the running server read its configuration again."""
        pid = self.postmaster_pid()
        if pid:
            os.kill(pid, signal.SIGHUP)

    # -- SQL -----------------------------------------------------------------------------------------------------------

    def connect(self, *, timeout_seconds: Optional[float] = None) -> sql.Session:
        """Open a session as the superuser over the local socket; raises SqlError, and ServerError where another server than that of our files answers."""
        account = self.account()
        session = sql.connect(
            {"host": self.socket_directory, "port": self.port, "user": self.superuser, "dbname": self.database},
            timeout_seconds=timeout_seconds or self.timeout_seconds,
            as_uid=account.pw_uid if account and os.geteuid() == 0 else None,
        )
        answering = str(session.value("SELECT current_setting('data_directory')"))
        if os.path.realpath(answering) == os.path.realpath(self.data_directory):
            return session
        session.close()
        # What is asked by SQL and what is done to files would be two servers': one is stopped, and the other one goes on writing.
        raise ServerError(
            "the server that answers on port {0} is another one than that in {1}".format(self.port, self.data_directory), reason="another_server",
            observed=answering, required=self.data_directory,
            hint="The host has several clusters: name one with pg_version, pg_debian_cluster and pg_port (elsewhere than on Debian pg_data_directory, "
            "pg_config_directory and pg_port).",
        )

    def knock(self) -> None:
        """Connect to the socket and hang up: that wakes a postmaster. Without a login, so that it neither waits nor raises."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as knocking:
            knocking.settimeout(0.2)
            knocking.connect("{0}/.s.PGSQL.{1}".format(self.socket_directory, self.port))

    def wait_for_sql(self, *, timeout_seconds: float) -> sql.Session:
        """Open a session as soon as the server accepts one; raises SqlError at the deadline."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                return self.connect()
            except sql.SqlError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def peer(self, host: str, port: int, user: str, **more: Any) -> dict[str, Any]:
        """Return libpq's parameters for a connection to a peer; the password comes from the passfile alone."""
        # No certificate of a client's: libpq would look for one below root's HOME, which the server's account must not read, and fail.
        secrets = {"passfile": str(self.passfile), "sslcert": str(self.state("tls", "client.crt"))}
        return {"host": host, "port": port, "user": user, "dbname": self.database, **secrets, **self.peer_encryption(), **more}

    @property
    def ca_file(self) -> Path:
        """The certificate of the authority that signed the peers' certificates."""
        return self.state("tls", "ca.crt")

    def peer_encryption(self) -> dict[str, str]:
        """Return libpq's parameters that protect a connection to a peer; empty as long as initial_setup.yml has made no certificates here."""
        if not self.peer_ssl_mode or not self.ca_file.is_file():
            return {}
        if self.peer_ssl_mode != "verify-full":
            return {"sslmode": self.peer_ssl_mode}
        return {"sslmode": self.peer_ssl_mode, "sslrootcert": str(self.ca_file)}


def clone_directory(server: Server) -> Path:
    """Return where a copy grows: beside the data directory, on the same file system."""
    return Path(server.data_directory.rstrip("/") + ".clone")


def _locked(handle: int) -> bool:
    """Lock an open file; False while another process has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_verbatim(path: Path) -> str:
    """Return a configuration file's text byte for byte (carriage returns, other encodings); empty when it is missing."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def command_line(pid: int) -> list[str]:
    """Return a process's arguments; empty when it has ended."""
    try:
        words = Path("/proc/{0}/cmdline".format(pid)).read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words if word]


def all_processes() -> list[int]:
    """Return the ids of all processes that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def processes_of(program: str) -> list[int]:
    """Return the ids of the processes whose program has that name."""
    return [pid for pid in all_processes() if os.path.basename((command_line(pid) or [""])[0]) == program]


def children_of(pid: int) -> list[int]:
    """Return the process ids of the direct children of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            if int(path.read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def sync_directory(path: Path) -> None:
    """Flush a directory, so that a rename in it survives a crash."""
    handle = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def deaf_to_hangups() -> Iterator[None]:
    """Ignore what a dying controller sends while servers change roles: half a hand-over is worse than a whole one."""
    # A handler that does nothing, not SIG_IGN: the latter would be inherited by the server that is started meanwhile.
    ignored = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_unused: None) for number in ignored}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
