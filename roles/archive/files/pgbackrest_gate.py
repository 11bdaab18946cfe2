# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The only program that the other side's SSH key may start: pgBackRest, in one part, for one stanza.

    pgbackrest_gate.py PART STANZA CONFIG

It stands as the forced command in authorized_keys. PART is this host's: `repo` where the backups are, `pg` where a server is. What the other
side asks for is in SSH_ORIGINAL_COMMAND. No shell sees it. Stands alone: Python's standard library.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from typing import Optional

PROGRAM = "/usr/bin/pgbackrest"
# The remote parts of pgBackRest's commands that the other side's own commands need.
COMMANDS = {
    "repo": ("archive-get", "archive-push", "check", "info", "restore", "verify"),
    "pg": ("backup", "check", "stanza-create", "stanza-upgrade"),
}
# What would lead the program to other files, other hosts or other programs than this host's own configuration names.
ELSEWHERE = re.compile(r"--(no-|reset-)?(repo[0-9]*-|pg[0-9]*-host|cmd|config-|lock-path|log-path|spool-path|tls-)")


def refusal(words: list[str], part: str, stanza: str, config: str) -> Optional[str]:
    """Return why this command is not run, None when it is; `words` begins with the program's name."""
    if not words or os.path.basename(words[0]) != "pgbackrest":
        return "is not pgbackrest"
    options, commands = [word for word in words[1:] if word.startswith("-")], [word for word in words[1:] if not word.startswith("-")]
    if len(commands) != 1 or commands[0] not in ["{0}:remote".format(name) for name in COMMANDS[part]]:
        return "is none of the commands that this key may run"
    for name, value in (("stanza", stanza), ("remote-type", part)):
        if [word for word in options if word.split("=", 1)[0] == "--" + name] != ["--{0}={1}".format(name, value)]:
            return "is for another {0} than {1}".format(name, value)
    if any(word.split("=", 1)[0] == "--config" and word != "--config=" + config for word in options):
        return "names another configuration than {0}".format(config)
    if any(ELSEWHERE.match(word) for word in options):
        return "has options that this key may not give"
    return None


def main(arguments: list[str]) -> int:
    """Become pgBackRest, or say why not."""
    if len(arguments) != 3 or arguments[0] not in COMMANDS:
        print("usage: pgbackrest_gate.py repo|pg STANZA CONFIG", file=sys.stderr)
        return 2
    part, stanza, config = arguments
    try:
        words = shlex.split(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    except ValueError:
        words = []
    why = refusal(words, part, stanza, config)
    if why is not None:
        print("pgbackrest_gate: the command {0}".format(why), file=sys.stderr)
        return 1
    rest = [word for word in words[1:] if not word.startswith("--config=")]
    os.execv(PROGRAM, [PROGRAM, "--config=" + config, *rest])
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
