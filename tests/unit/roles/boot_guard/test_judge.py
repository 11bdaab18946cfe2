# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The boot guard's decisions as truth tables."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[4] / "roles" / "boot_guard" / "files" / "boot_guard.py"
SPEC = importlib.util.spec_from_file_location("pg_ops_boot_guard", PROGRAM)
guard = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = guard  # dataclasses look their module up
SPEC.loader.exec_module(guard)

FILES = guard.Files(False, False, False, False, False, "77", 2)


def answer(name: str = "b", *, standby: bool, timeline: int, system: str = "77") -> guard.Answer:
    return guard.Answer(name, standby, system, timeline)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"standby_signal": True}, ("start", "standby"), id="standby"),
        pytest.param({"standby_signal": True, "follows": True}, ("start", "standby"), id="standby-that-follows"),
        pytest.param({"standby_signal": True, "follows": True, "fenced": True}, ("start", "standby"), id="being-rejoined"),
        pytest.param({"standby_signal": True, "fenced": True}, ("refuse", "fenced"), id="fenced-with-nobody-to-follow"),
        pytest.param({"follows": True, "fenced": True}, ("refuse", "fenced"), id="fenced-and-disarmed-for-its-recovery"),
        pytest.param({"fenced": True}, ("refuse", "fenced"), id="fenced-and-disarmed"),
        pytest.param({"rewind_unfinished": True}, ("refuse", "rewind_unfinished"), id="half-rewound"),
        pytest.param({"rewind_unfinished": True, "standby_signal": True, "follows": True}, ("refuse", "rewind_unfinished"), id="half-rewound-standby"),
        pytest.param({"rewind_unfinished": True, "allowed": True}, ("refuse", "rewind_unfinished"), id="half-rewound-even-if-allowed"),
        pytest.param({}, None, id="primary-asks"),
        pytest.param({"follows": True}, None, id="primary-that-was-a-standby-once-asks"),
    ],
)  # fmt: skip
def test_judge_files_each_state_decides_without_peers(changes: dict[str, bool], expected: tuple[str, str] | None) -> None:
    verdict = guard.judge_files(replace(FILES, **changes))
    assert (verdict and (verdict.action, verdict.reason)) == expected


@pytest.mark.parametrize(
    ("answers", "silent", "alone", "allowed", "expected"),
    [
        pytest.param([answer(standby=True, timeline=2)], [], "start", False, ("start", "peers_agree"), id="its-standby"),
        pytest.param([answer(standby=True, timeline=1)], [], "start", False, ("start", "peers_agree"), id="a-standby-behind"),
        pytest.param([answer(standby=False, timeline=3)], [], "start", False, ("fence", "newer_timeline"), id="a-newer-primary"),
        pytest.param([answer(standby=True, timeline=3)], [], "start", False, ("fence", "newer_timeline"), id="a-standby-of-a-newer-primary"),
        pytest.param([answer(standby=False, timeline=3)], [], "start", True, ("fence", "newer_timeline"), id="a-newer-primary-even-if-allowed"),
        pytest.param([answer(standby=False, timeline=2)], [], "start", False, ("fence", "primary_beside"), id="a-primary-of-the-same-number"),
        pytest.param([answer(standby=False, timeline=2)], [], "start", True, ("fence", "primary_beside"), id="of-the-same-number-even-if-allowed"),
        pytest.param([answer(standby=False, timeline=1)], [], "start", False, ("refuse", "older_primary"), id="an-older-primary"),
        pytest.param([answer(standby=False, timeline=1)], [], "start", True, ("start", "allowed"), id="an-older-primary-allowed"),
        pytest.param(
            [answer("b", standby=True, timeline=2), answer("c", standby=False, timeline=3)],
            [],
            "start",
            False,
            ("fence", "newer_timeline"),
            id="one-of-two-is-newer",
        ),
        pytest.param([answer(standby=True, timeline=2)], ["c"], "refuse", False, ("start", "peers_agree"), id="one-answers-one-does-not"),
        pytest.param([], ["b", "c"], "start", False, ("start", "alone"), id="alone-starts"),
        pytest.param([], ["b", "c"], "refuse", False, ("refuse", "alone"), id="alone-refused"),
        pytest.param([], ["b", "c"], "refuse", True, ("start", "allowed"), id="alone-allowed"),
        pytest.param([], [], "refuse", False, ("start", "peers_agree"), id="a-cluster-of-one"),
        pytest.param([answer(standby=False, timeline=9, system="66")], [], "start", False, ("start", "peers_agree"), id="a-stranger"),
        pytest.param([answer(standby=False, timeline=9, system="66")], ["c"], "refuse", False, ("refuse", "alone"), id="a-stranger-is-no-company"),
    ],
)
def test_judge_each_company_decides(answers: list, silent: list[str], alone: str, allowed: bool, expected: tuple[str, str]) -> None:
    verdict = guard.judge(replace(FILES, allowed=allowed), answers, silent, alone)
    assert (verdict.action, verdict.reason) == expected


def test_judge_refusal_names_the_peer_and_the_next_step() -> None:
    verdict = guard.judge(FILES, [answer("pgsql2", standby=False, timeline=3)], [], "start")
    assert "pgsql2 is on timeline 3, this one on 2" in verdict.message and "start_new_standby.yml" in verdict.message
