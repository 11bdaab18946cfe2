# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the peers before a PostgreSQL server that is not marked as standby opens read-write.

    boot_guard.py CONFIG

Run before each start of the server: by systemd (ExecStartPre) or by the modules of pg_ops.replication. Exit status 0 lets the server
start, 1 keeps it down; the reason is on standard error, which is the journal under systemd, and in verdict.json beside CONFIG.

Stands alone: Python's standard library, and psql and pg_controldata of the server. Its password for the peers is in the passfile.
Under root it becomes the owner of the data directory before it reads anything.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any, Optional

START = "start"
REFUSE = "refuse"
FENCE = "fence"  # refuse, and see to it that no later start opens read-write

ALLOW_SECONDS = 600
RETRY_SECONDS = 0.2
# Of a standby, only IDENTIFY_SYSTEM knows the timeline at once: its control file lags by a restartpoint.
QUESTION = ("IDENTIFY_SYSTEM", "SHOW in_hot_standby")
QUESTION_BEFORE_14 = ("IDENTIFY_SYSTEM", "SHOW transaction_read_only")


@dataclass(frozen=True)
class Answer:
    """What a peer said of itself."""

    name: str
    in_recovery: bool
    system_identifier: str
    timeline: int


@dataclass(frozen=True)
class Files:
    """What the server's own files say before it starts."""

    standby_signal: bool
    follows: bool
    fenced: bool
    rewind_unfinished: bool
    allowed: bool
    system_identifier: str = ""
    timeline: int = 0


@dataclass(frozen=True)
class Verdict:
    """Whether the server may start; `reason` is a stable code, `message` says what was seen and what to do."""

    action: str
    reason: str
    message: str


def judge_files(files: Files) -> Optional[Verdict]:
    """Return the verdict that the server's own files allow without asking anybody; None when the peers must be asked."""
    if files.rewind_unfinished:
        return Verdict(REFUSE, "rewind_unfinished", "a rewind of its data did not finish, so they cannot be trusted. Run start_new_standby.yml.")
    if files.fenced and files.standby_signal and files.allowed:
        return Verdict(START, "allowed", "somebody allowed this start. It is fenced, so it opens read-only; failover.yml makes it primary.")
    if files.fenced and not (files.standby_signal and files.follows):
        return Verdict(REFUSE, "fenced", "it is fenced. Run start_new_standby.yml.")
    if files.standby_signal:
        return Verdict(START, "standby", "it starts as a standby.")
    return None


def judge(files: Files, answers: list[Answer], silent: list[str], alone: str) -> Verdict:
    """Return whether a server that would open read-write may, from what its peers said; `silent` ones did not answer in time."""
    ours = [answer for answer in answers if answer.system_identifier == files.system_identifier]
    newer = [answer for answer in ours if answer.timeline > files.timeline]
    if newer:
        seen = ", ".join("{0} is on timeline {1}".format(answer.name, answer.timeline) for answer in newer)
        return Verdict(
            FENCE,
            "newer_timeline",
            "another server was promoted since: {0}, this one on {1}. It is fenced now; run start_new_standby.yml.".format(seen, files.timeline),
        )
    primaries = [answer for answer in ours if not answer.in_recovery]
    beside = [answer.name for answer in primaries if answer.timeline == files.timeline]
    if beside:
        return Verdict(
            FENCE,
            "primary_beside",
            "{0} accepts writes on timeline {1}, which is this server's. It is fenced now; run start_new_standby.yml.".format(
                ", ".join(beside), files.timeline
            ),
        )
    if files.allowed:
        return Verdict(START, "allowed", "somebody allowed this start.")
    if primaries:
        names = ", ".join(answer.name for answer in primaries)
        return Verdict(
            REFUSE,
            "older_primary",
            "{0} accepts writes on an older timeline than this server's {1}; there would be two primaries. Stop the server there, then start this one.".format(
                names, files.timeline
            ),
        )
    if not ours and silent and alone == REFUSE:
        return Verdict(REFUSE, "alone", "no peer answers ({0}), and pg_boot_guard_alone is refuse.".format(", ".join(silent)))
    heard = ", ".join("{0} (timeline {1})".format(answer.name, answer.timeline) for answer in ours) or "nobody"
    unheard = "; no answer from {0}".format(", ".join(silent)) if silent else ""
    return Verdict(START, "alone" if silent and not ours else "peers_agree", "asked {0}{1}.".format(heard, unheard))


class Guard:
    """One start of one server; `config` is what the role boot_guard wrote."""

    def __init__(self, config: dict[str, Any], directory: str) -> None:
        self.config = config
        self.directory = directory
        self.data = str(config["data_directory"])
        self.state = str(config["state_directory"])

    def _has(self, *parts: str) -> bool:
        return os.path.exists(os.path.join(*parts))

    def _program(self, name: str) -> str:
        return os.path.join(str(self.config["bin_directory"]), name)

    @property
    def _auto_conf(self) -> str:
        return os.path.join(self.data, "postgresql.auto.conf")

    def _auto_lines(self) -> list[str]:
        try:
            with open(self._auto_conf, encoding="utf-8", errors="surrogateescape", newline="") as stream:
                return stream.readlines()
        except FileNotFoundError:
            return []

    def _take_permission(self) -> bool:
        """Whether somebody left the file `allow` in the last minutes; it serves once."""
        path = os.path.join(self.directory, "allow")
        try:
            age = time.time() - os.stat(path).st_mtime
            os.unlink(path)
        except FileNotFoundError:
            return False
        return age < ALLOW_SECONDS

    def own_files(self) -> Files:
        """Return what the data and state directories say, without the control file, which costs a process."""
        standby, fenced = self._has(self.data, "standby.signal"), self._has(self.state, "fenced.json")
        return Files(
            standby_signal=standby,
            follows=any(re.match(r"\s*primary_conninfo\s*=?\s*'.", line) for line in self._auto_lines()),
            fenced=fenced,
            rewind_unfinished=self._has(self.state, "rewind.json"),
            # Where the peers are asked, the permission is taken there.
            allowed=standby and fenced and self._take_permission(),
        )

    def with_control_file(self, files: Files) -> Files:
        """Return the same with identity and timeline. A server that crashed soon after its promotion has the new one as its recovery's."""
        argv = [self._program("pg_controldata"), "-D", self.data]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=20, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"})
        values = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        timelines = ("Latest checkpoint's TimeLineID", "Min recovery ending loc's timeline")
        return Files(
            **{
                **asdict(files),
                "allowed": self._take_permission(),
                "system_identifier": values["Database system identifier"].strip(),
                "timeline": max(int(values[name]) for name in timelines),
            }
        )

    def _question(self, peer: dict[str, Any], passfile: str) -> subprocess.Popen[str]:
        words = {
            "host": peer["address"],
            "port": peer["port"],
            "user": self.config["user"],
            "replication": "true",
            "passfile": passfile,
            "connect_timeout": "2",
            "application_name": "boot_guard",
            **self._encryption(),
        }
        conninfo = " ".join("{0}='{1}'".format(key, str(value).replace("\\", "\\\\").replace("'", "\\'")) for key, value in words.items())
        question = QUESTION if int(self.config["major"]) >= 14 else QUESTION_BEFORE_14
        argv = [self._program("psql"), "-X", "-A", "-t", "-w", "-F", "|", "-d", conninfo, *(word for part in question for word in ("-c", part))]
        environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "HOME": "/"}
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)

    def _encryption(self) -> dict[str, str]:
        """Return libpq's parameters that protect the connection, as the modules have them (module_utils/server.py)."""
        mode, authority = str(self.config.get("ssl_mode", "")), os.path.join(self.state, "tls", "ca.crt")
        if mode != "verify-full":
            return {"sslmode": mode} if mode else {}
        return {"sslmode": mode, "sslrootcert": authority} if os.path.isfile(authority) else {}

    def _passfiles(self) -> list[str]:
        """Return the passfile, and those that were to follow it where changes of passwords were cut off: the peers may have the new ones."""
        coming = sorted(name for name in os.listdir(self.state) if re.fullmatch(r"passfile\.next(\.\d+)?", name))
        return [os.path.join(self.state, name) for name in ("passfile", *coming)]

    def _ask_once(self, peers: list[dict[str, Any]], deadline: float) -> list[Answer]:
        """Ask the peers at the same time, with every passfile: one of them that is gone must not use up the others' time.

        What has not answered by the deadline is left out.
        """
        asked = [(peer, self._question(peer, passfile)) for passfile in self._passfiles() for peer in peers]
        answers: list[Answer] = []
        for peer, process in asked:
            try:
                output, _unused = process.communicate(timeout=max(0.01, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                continue
            found = re.fullmatch(r"(\d+)\|(\d+)\|[^\n]*\n(on|off)\s*", output)
            if process.returncode == 0 and found and not any(answer.name == peer["name"] for answer in answers):
                answers.append(Answer(str(peer["name"]), found.group(3) == "on", found.group(1), int(found.group(2))))
        return answers

    def ask(self) -> tuple[list[Answer], list[str]]:
        """Return the peers' answers and who did not answer; one that is just starting is asked again until the time is over."""
        deadline = time.monotonic() + float(self.config["timeout_seconds"])
        open_peers, answers = list(self.config["peers"]), []
        while open_peers:
            answers += self._ask_once(open_peers, deadline)
            known = {answer.name for answer in answers}
            open_peers = [peer for peer in open_peers if peer["name"] not in known]
            if time.monotonic() + RETRY_SECONDS > deadline:
                break
            if open_peers:
                time.sleep(RETRY_SECONDS)
        return answers, [str(peer["name"]) for peer in open_peers]

    def _write(self, path: str, text: str) -> None:
        handle, name = tempfile.mkstemp(dir=os.path.dirname(path))
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
        handle = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def fence(self, verdict: Verdict) -> None:
        """Do what pg_fence does to a server that is down: a note, standby.signal, and nobody to follow."""
        self._write(os.path.join(self.state, "fenced.json"), json.dumps({"by": "boot_guard", "why": verdict.message}) + "\n")
        self._write(os.path.join(self.data, "standby.signal"), "")
        kept = [line for line in self._auto_lines() if not re.match(r"\s*primary_(conninfo|slot_name)\b", line)]
        self._write(self._auto_conf, "".join(kept))

    def decide(self) -> Verdict:
        """Return the verdict on this start."""
        files = self.own_files()
        return judge_files(files) or self._with_peers(files)

    def _with_peers(self, files: Files) -> Verdict:
        files = self.with_control_file(files)
        answers, silent = self.ask()
        return judge(files, answers, silent, str(self.config["alone"]))

    def run(self) -> int:
        """Decide, fence where it must be, say it; returns the exit status."""
        started = time.monotonic()
        verdict = self.decide()
        if verdict.action == FENCE:
            self.fence(verdict)
        seconds = round(time.monotonic() - started, 3)
        self._write(os.path.join(self.directory, "verdict.json"), json.dumps({**asdict(verdict), "seconds": seconds}) + "\n")
        may = verdict.action == START
        words = "may start" if may else "is kept from starting"
        print("boot guard: {0} {1}: {2}".format(self.config["host_name"], words, verdict.message), file=sys.stderr)
        if verdict.reason == "fenced":
            allow = os.path.join(self.directory, "allow")
            print("boot guard: if no other server of the cluster is left: touch {0}, start it, then run failover.yml".format(allow), file=sys.stderr)
        if verdict.reason in ("alone", "older_primary") and not may:
            print("boot guard: to start it all the same, once: touch {0}".format(os.path.join(self.directory, "allow")), file=sys.stderr)
        return 0 if may else 1


def become_owner_of(path: str) -> None:
    """Give root's rights up for those of the file's owner."""
    if os.geteuid() == 0:
        owner = pwd.getpwuid(os.stat(path).st_uid)
        os.initgroups(owner.pw_name, owner.pw_gid)
        os.setgid(owner.pw_gid)
        os.setuid(owner.pw_uid)


def main(arguments: list[str]) -> int:
    """Run the guard; a guard that is not set up, or whose server has no data yet, is in nobody's way. One that is broken is."""
    path = arguments[0]
    if not os.path.exists(path):
        return 0
    try:
        become_owner_of(path)
        with open(path, encoding="utf-8") as stream:
            config = json.load(stream)
        if not os.path.exists(os.path.join(str(config["data_directory"]), "PG_VERSION")):
            return 0
        return Guard(config, os.path.dirname(os.path.abspath(path))).run()
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print("boot guard: cannot decide, so the server is kept down: {0!r} ({1})".format(error, path), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
