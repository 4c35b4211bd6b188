"""One decision, to look at."""

from pathlib import Path

import orjson
import pytest

from sgl_router.devkit.single import decide_once, made_up_input
from sgl_router.devkit.target import find_target
from sgl_router.errors import ConfigError
from sgl_router.testing import DecisionCase
from sgl_router.wasm.manifest import KNOWN_NEEDS
from tests.devkit.projects import project
from tests.testing.guests import sound, sound_table, traps_on
from tests.testing.test_case import PLAIN, said_again
from tests.wasm.guests import PRINT, guest, text_at

WRITES = "(drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 16)))"
VECTOR = text_at(8, b"\x00\x02\0\0\x05\0\0\0") + text_at(512, "hello")


def test_an_input_is_made_up(tmp_path: Path) -> None:
    target = find_target(project(tmp_path / "mine", sound(state='{"n": 1}')), {"config": {"a": 1}})
    run = decide_once(target, None, None)
    assert run.made_up
    assert run.given["config"] == {"a": 1}
    assert run.answer.selected_worker == 0
    assert run.answer.state == {"n": 1}
    assert run.unsaid == () and run.output is None


def test_what_is_made_up_is_what_a_router_says() -> None:
    given = made_up_input(KNOWN_NEEDS)
    case = DecisionCase.from_input(given)
    assert case.exact
    again = said_again(case)
    for worker in again["workers"]:
        del worker["id"]  # of its URL
    assert again == {**given, "config": {}}
    assert not any("queued" in worker for worker in made_up_input(frozenset())["workers"])


def test_an_input_that_is_given(tmp_path: Path) -> None:
    target = find_target(project(tmp_path / "mine"))
    workers = [{**PLAIN["workers"][0], "healthy": False}, {**PLAIN["workers"][1], "healthy": True}]
    run = decide_once(target, {**PLAIN, "workers": workers}, {"m": 2})
    assert not run.made_up
    assert run.answer.selected_worker == 1
    assert run.answer.state == {"m": 2}


def test_a_golden_decisions_input(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    given = orjson.loads((folder / "tests" / "first.json").read_bytes())
    assert decide_once(find_target(folder), given, None).given == PLAIN


def test_what_it_wrote(tmp_path: Path) -> None:
    wasm = guest(select_worker=f"{WRITES} (i32.const 1024)", imports=PRINT, extra=VECTOR)
    target = find_target(project(tmp_path / "mine", wasm), {"allowed_syscalls": ["wasi:stdio"]})
    assert decide_once(target, None, None).output == "hello"


def test_a_failure_is_an_answer(tmp_path: Path) -> None:
    run = decide_once(find_target(project(tmp_path / "mine", traps_on("u42"))), None, None)
    assert run.answer.failure is not None and run.answer.failure.kind == "trap"


def test_what_the_table_abi_is_not_told(tmp_path: Path) -> None:
    target = find_target(project(tmp_path / "mine", sound_table()))
    assert decide_once(target, {**PLAIN, "later": 1}, None).unsaid == ("later",)
    with pytest.raises(ConfigError, match=r"entropy.*--input"):
        decide_once(target, {**PLAIN, "entropy": -1}, None)
