"""Guests that could end the process, run in a process of their own: rows 8 and 9."""

import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hostile.deadly import AT_A_DECISION, AT_LOAD

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECS = 120.0
"""When the child is given up; no case is about how long it takes."""


@dataclass(frozen=True)
class Ended:
    """What came of a child: its exit status, its verdicts by case, and what else it said."""

    status: int
    verdicts: dict[str, str]
    said: str


@functools.cache
def child(handler: str) -> Ended:
    """Run all the deadly guests, once for each time at which the handlers are installed."""
    ran = subprocess.run(
        [sys.executable, "-m", "tests.hostile.child", handler],
        cwd=ROOT,
        env={**os.environ, "PYTHONFAULTHANDLER": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECS,
        check=False,
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    return Ended(ran.returncode, {line["case"]: line["verdict"] for line in lines}, ran.stderr)


@pytest.mark.parametrize("handler", ["never", "before", "after"])
@pytest.mark.parametrize("case", [*AT_A_DECISION, *AT_LOAD])
def test_a_trap_and_nothing_worse(case: str, handler: str) -> None:
    ended = child(handler)
    assert ended.verdicts.get(case, f"died with status {ended.status}: {ended.said}") == "trap"


@pytest.mark.parametrize("handler", ["never", "before", "after"])
def test_the_process_lives(handler: str) -> None:
    ended = child(handler)
    assert ended.status == 0, ended.said
    assert "Fatal Python error" not in ended.said


def test_a_death_would_be_seen() -> None:
    ended = child("dies")
    assert ended.status == -signal.SIGSEGV
    assert not ended.verdicts
