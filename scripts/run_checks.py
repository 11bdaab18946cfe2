# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the project's checks: one line a step, the output of a step that fails, then on with the others.

    python scripts/run_checks.py fast|all [STEP ...]

fast is lint, sanity, unit tests and tests on local servers, without those that are marked thorough; all has those too, and adds the playbooks, the
molecule scenarios on LXD and the fault suite's subset. STEP names the steps to run, all if none is named.
Every step's output is kept in .cache/checks/.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
CACHE = CHECKOUT / ".cache"
LOGS = CACHE / "checks"
CALLBACKS = CHECKOUT / "tests" / "integration" / "playbooks" / "callback_plugins"
COPY = CACHE / "ansible_collections" / "pg_ops" / "replication"
CORE = "ansible_collections.pg_ops.replication.plugins.module_utils.core"
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
STEP_TIMEOUT_SECONDS = 3000
TELLING_LINES = 80
COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# ansible-test downloads get-pip for the environments of its sanity tests. This stands in for it: the Python at hand has pip.
GET_PIP = "import ensurepip\nensurepip.bootstrap()\n"


@dataclass(frozen=True)
class Step:
    """One check: a name, the command, where it runs, what it adds to the environment."""

    name: str
    argv: tuple[str, ...]
    directory: Path = CHECKOUT
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a step ended."""

    step: Step
    returncode: int
    seconds: float
    output: str


def tracked_files() -> list[str]:
    """Return the files of the checkout that git knows or would add."""
    argv = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(argv, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True).stdout
    return sorted({name for name in listed.split("\0") if name and os.path.lexists(CHECKOUT / name)})


def copy_collection() -> None:
    """Copy the files to where ansible-test wants a collection: really below ansible_collections/, a link will not do."""
    shutil.rmtree(COPY, ignore_errors=True)
    for name in tracked_files():
        target = COPY / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(CHECKOUT / name, target, follow_symlinks=False)


def sanity_environment() -> tuple[tuple[str, str], ...]:
    """Return an environment with a home of its own, so that the stand-in for get-pip serves nobody else; pip's settings are linked in."""
    home = CACHE / "home"
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in ("24_2", "25_2"):  # ansible-core 2.19, 2.21
        (cache / f"get_pip_{version}.py").write_text(GET_PIP, encoding="utf-8")
    for name in (".config/pip", ".pip"):
        (home / name).parent.mkdir(exist_ok=True)
        if (Path.home() / name).is_dir() and not os.path.lexists(home / name):
            (home / name).symlink_to(Path.home() / name)
    # Without the root it would take the checkout above, where .cache is ignored.
    return (("ANSIBLE_TEST_CONTENT_ROOT", str(COPY)), ("HOME", str(home)), ("PYTHONDONTWRITEBYTECODE", "1"))


def pytest(directory: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-u", "-m", "pytest", directory, *arguments)  # -u: what a killed run had printed is seen


def quick_steps(*, thorough: bool) -> list[Step]:
    """Return what needs neither servers nor containers; any two of these may run at once. Less thorough, sanity looks at what hosts run, not at tests."""
    excluded = () if thorough else tuple(f"--exclude={name}/" for name in ("tests", "scripts", "benchmarks"))
    yaml = tuple(name for name in tracked_files() if name.endswith((".yml", ".yaml")))
    return [
        Step(
            "sanity",
            ("ansible-test", "sanity", "--local", "--python", PYTHON_VERSION, "--color", "no", *excluded),
            COPY,
            sanity_environment(),
        ),
        Step("ansible-lint", ("ansible-lint", "--profile", "production", "--offline", "--strict")),
        Step("ruff", ("ruff", "check", "--no-cache", "--output-format", "concise", ".")),
        Step("mypy core", ("mypy", "--strict", "-p", CORE)),
        Step("mypy scripts", ("mypy", "--strict", "scripts", *sorted(str(path) for path in CHECKOUT.glob("roles/*/files/*.py")))),
        Step("yamllint", ("yamllint", "--strict", *yaml)),
        # rstcheck would read the pages that can be generated from all this once more; nobody generates them here.
        Step("antsibull-docs", ("antsibull-docs", "lint-collection-docs", "--plugin-docs", "--skip-rstcheck", "."), COPY),
        Step("changelog", ("antsibull-changelog", "lint")),
        Step("unit tests", pytest("tests/unit")),
    ]


def server_steps(*, thorough: bool) -> list[Step]:
    """Return the tests that start PostgreSQL servers of their own; one at a time, they watch the clock."""
    elsewhere = [f"--ignore=tests/integration/{name}" for name in ("playbooks", "containers")]
    marked = () if thorough else ("-m", "not thorough")
    return [Step("server tests", pytest("tests/integration", *elsewhere, *marked, "-n", "4", "--dist", "worksteal"))]  # they wait much of the time


def playbook_steps() -> list[Step]:
    """Return the tests that run whole playbooks on local servers, each killed at every task among them: minutes, so not for `fast`."""
    workers = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")  # in the order that their conftest.py gives
    return [Step("playbook tests", pytest("tests/integration/playbooks", "-m", "not long", *workers, "--durations=12"))]


def launch_steps() -> list[Step]:
    """Return the tests of the playbooks that make containers; the first of them installs LXD and builds the first image."""
    return [Step("container tests", pytest("tests/integration/containers"))]


# The scenarios that take longest; begun first, none of them runs alone at the end.
LONGEST_SCENARIOS = ("default", "archive", "ssh_sync", "pg18", "pg17")


def container_steps(payloads: str) -> list[Step]:
    """Return one step for each molecule scenario and the fixed part of the fault suite; each has containers of its own, so any two may run at once.

    What Ansible packs for its hosts is kept in the directory `payloads` from run to run; a user's runs pack it anew, as the launching tests do.
    """
    kept = (("ANSIBLE_CALLBACK_PLUGINS", str(CALLBACKS)), ("ANSIBLE_CALLBACKS_ENABLED", "shared_payloads"), ("PG_OPS_TEST_PAYLOADS", payloads))
    scenarios = {path.parent.name for path in CHECKOUT.glob("molecule/*/molecule.yml")}
    ordered = [*LONGEST_SCENARIOS, *sorted(scenarios.difference(LONGEST_SCENARIOS))]
    steps = [Step(f"molecule {name}", ("scripts/molecule.sh", name), environment=kept) for name in ordered]
    return [*steps, Step("chaos subset", pytest("tests/chaos", "-m", "subset"), environment=kept)]


def environment(step: Step) -> dict[str, str]:
    """Return the environment of a step: .venv first, no colours, a UTF-8 locale (Ansible refuses others)."""
    present = {**os.environ, "NO_COLOR": "1", "PY_COLORS": "0"}
    # With the first Python reads the program that Ansible pipes to it byte by byte; with the other each process compiles our plugins again.
    for slow in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
        present.pop(slow, None)
    locale = present.get("LC_ALL") or present.get("LC_CTYPE") or present.get("LANG", "")
    if "utf" not in locale.lower():
        present["LC_ALL"] = "C.UTF-8"
    present["PATH"] = f"{CHECKOUT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**present, **dict(step.environment)}


# Under load LXD 5.0 sometimes loses what a program in a container has printed, and Ansible then does not find its own directory there, or what a
# module has answered. Nothing of the project's is wrong; a person types the command again. So do we, once, and say so: what is wrong fails again.
LOST_OUTPUT = ("failed to resolve remote temporary directory", "No start of json char found")


def lost_output(text: str) -> bool:
    """Whether a playbook's output says that LXD lost what a program had printed."""
    joined = " ".join(text.split())
    return any(words in joined for words in LOST_OUTPUT)


def run_in_containers(step: Step) -> Outcome:
    """Run a step in containers; again when LXD lost a program's output."""
    outcome = run_step(step)
    if outcome.returncode == 0 or not lost_output(outcome.output):
        return outcome
    print(f"again: {step.name}, because LXD lost a program's output", flush=True)
    return run_step(step)


def run_step(step: Step) -> Outcome:
    """Run one step, report it, and return how it ended; it is killed with all its children when its time is over."""
    started = time.monotonic()
    log = LOGS / f"{step.name.replace(' ', '-')}.log"
    with log.open("w", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                step.argv,
                cwd=step.directory,
                env=environment(step),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"{error}\n")
            returncode = 127
        else:
            returncode = wait(process)
            if returncode < 0:
                output.write(f"\nended by {signal.Signals(-returncode).name} after {time.monotonic() - started:.0f} s\n")
    text = log.read_text(encoding="utf-8", errors="replace")
    outcome = Outcome(step, returncode, time.monotonic() - started, COLOURS.sub("", text).rstrip())
    report(outcome)
    return outcome


def wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit status of process; kill its process group when it takes too long or this program ends."""
    try:
        return process.wait(timeout=STEP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        raise


def telling_part(output: str) -> str:
    """Return what is worth reading of a failed scenario's thousands of lines: the first task that failed, with what is around it, and the end."""
    lines = output.splitlines()
    if len(lines) <= 2 * TELLING_LINES:
        return output
    first = next((number for number, line in enumerate(lines) if line.startswith(("fatal: ", "failed: "))), None)
    around = [] if first is None else ["[...]", *lines[max(0, first - 20) : first + TELLING_LINES - 20]]
    return "\n".join([*around, "[...]", *lines[-(TELLING_LINES if first is None else 20) :]])


def report(outcome: Outcome) -> None:
    """Print a step's line; its output when it failed, pytest's closing line in any case."""
    lines = [f"{'ok    ' if outcome.returncode == 0 else 'FAILED'} {outcome.seconds:6.1f} s  {outcome.step.name}"]
    if outcome.returncode != 0:
        output = telling_part(outcome.output) if outcome.step.name.startswith("molecule ") else outcome.output
        lines += [f"$ {' '.join(outcome.step.argv)[:300]}", output, f"(exit status {outcome.returncode}; all of it: .cache/checks/)", ""]
    elif "pytest" in outcome.step.argv:
        lines += outcome.output.splitlines()[-1:]
    print("\n".join(lines), flush=True)


def chosen(steps: list[Step], names: Sequence[str]) -> list[Step]:
    return [step for step in steps if not names or step.name in names]


def run_together(run: Callable[[Step], Outcome], steps: Sequence[Step], at_once: int = 2) -> list[Outcome]:
    """Run steps, so many at a time, and return how each ended."""
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return list(pool.map(run, steps))


def run_all(kind: str, names: Sequence[str]) -> list[Outcome]:
    """Run the steps and return how each ended: the quick ones and those in containers two at a time."""
    if kind != "all":
        steps = (quick_steps(thorough=False), server_steps(thorough=False))
        return run_together(run_step, chosen(steps[0], names)) + run_together(run_step, chosen(steps[1], names), 1)
    # Downloads and waiting leave room beside the tests that launch containers.
    outcomes = run_together(run_step, chosen(launch_steps() + quick_steps(thorough=True), names), 3)
    outcomes += run_together(run_step, chosen(server_steps(thorough=True) + playbook_steps(), names), 1)
    with tempfile.TemporaryDirectory(prefix="pg_ops_payloads.") as payloads:
        return outcomes + run_together(run_in_containers, chosen(container_steps(payloads), names))


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in ("fast", "all"):
        print("usage: run_checks.py fast|all [STEP ...]", file=sys.stderr)
        return 2
    kind, names = arguments[0], arguments[1:]
    if kind == "all" and os.geteuid() != 0:
        print("make test needs root: it sets LXD up and starts containers. Run it as root, or run make test-fast.", file=sys.stderr)
        return 2
    started = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    copy_collection()
    outcomes = run_all(kind, names)
    failed = [outcome.step.name for outcome in outcomes if outcome.returncode != 0]
    print(f"{len(outcomes)} steps in {time.monotonic() - started:.1f} s; {'failed: ' + ', '.join(failed) if failed else 'all passed'}")
    return 1 if failed or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
