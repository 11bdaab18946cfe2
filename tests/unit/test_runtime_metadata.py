# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""meta/runtime.yml against the modules that there are."""

from __future__ import annotations

from pathlib import Path

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]


def test_action_group_server_holds_every_module_with_connection_options() -> None:
    group = yaml.safe_load((CHECKOUT / "meta" / "runtime.yml").read_text(encoding="utf-8"))["action_groups"]["server"]
    modules = (path for path in (CHECKOUT / "plugins" / "modules").glob("*.py"))
    connecting = [path.stem for path in modules if "  - pg_ops.replication.server\n" in path.read_text(encoding="utf-8")]
    assert group == sorted(connecting)
