"""The conformance checks: sound plugins pass all, and each check has one that fails it alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgl_router.core.policy import Outcome
from sgl_router.errors import ConfigError
from sgl_router.policies import shipped_plugins
from sgl_router.testing import (
    Answer,
    CheckResult,
    DecisionCase,
    Failure,
    check_conformance,
    check_names,
)
from sgl_router.testing.checks import CHECKS
from sgl_router.testing.conformance import HostMaker
from tests.testing.conftest import patient
from tests.testing.guests import GROW, HOSTILE, KEEP, LISTENS, sound, sound_table
from tests.wasm.guests import LOOP

SOUND: dict[str, tuple[bytes, dict[str, object]]] = {
    "json": (sound(), {}),
    "table": (sound_table(), {}),
    "with a state": (sound(state='{"n":1}'), {}),
    "told of outcomes": (sound(extra=LISTENS), {}),
    "an instance for each decision": (sound(), {"isolation": "per_call"}),
}


def failed(wasm: bytes, settings: dict[str, object], host: HostMaker) -> set[str]:
    report = check_conformance(wasm, settings=patient(settings), host=host)
    return {result.name for result in report.failed}


@pytest.mark.parametrize("plugin", SOUND)
def test_a_sound_plugin_passes_them_all(plugin: str, hosted: HostMaker) -> None:
    wasm, settings = SOUND[plugin]
    report = check_conformance(wasm, settings=patient(settings), host=hosted)
    assert report.conforms, str(report)
    assert [result.name for result in report.results] == check_names()


@pytest.mark.parametrize("plugin", shipped_plugins())
def test_the_shipped_plugins_pass_them_all(plugin: str, hosted: HostMaker) -> None:
    path = shipped_plugins()[plugin]
    report = check_conformance(path, settings=patient({}), host=hosted)
    assert report.conforms, str(report)


def test_each_check_has_a_plugin_that_fails_it() -> None:
    assert list(HOSTILE) == check_names()


@pytest.mark.parametrize("check", HOSTILE)
def test_a_plugin_that_fails_one_check(check: str, hosted: HostMaker) -> None:
    wasm, settings = HOSTILE[check]
    assert failed(wasm, settings, hosted) == {check}


def test_nothing_else_is_checked_of_one_that_does_not_load(hosted: HostMaker) -> None:
    wasm, settings = HOSTILE["loads"]
    report = check_conformance(wasm, settings=patient(settings), host=hosted)
    assert [result.outcome for result in report.results] == ["failed"] + ["skipped"] * len(CHECKS)
    assert report.abi is None


def test_every_reason_of_a_refusal_is_told(hosted: HostMaker) -> None:
    report = check_conformance(
        sound(pages=17), settings=patient({"max_request_text_bytes": 0}), host=hosted
    )
    detail = report.results[0].detail
    assert detail is not None
    assert "max_memory_bytes" in detail and "max_request_text_bytes" in detail


def test_a_leak_is_found_by_the_renewal_too(hosted: HostMaker) -> None:
    leaks = sound(alloc=GROW, dealloc=KEEP)
    assert failed(leaks, {"max_memory_bytes": 2 * 2**20}, hosted) == {"memory"}


def test_one_that_never_answers_fails_and_does_not_hang(hosted: HostMaker) -> None:
    report = check_conformance(
        sound(LOOP),
        settings=patient({"max_execution_time_ms": 20}),
        host=hosted,
        only=["decides", "nulls"],
    )
    assert [result.outcome for result in report.results] == ["passed", "failed", "failed"]
    assert "timeout" in str(report)


def test_a_check_that_does_not_concern_a_plugin_says_why(hosted: HostMaker) -> None:
    report = check_conformance(sound_table(), settings=patient({}), host=hosted)
    skipped = {result.name: result.detail for result in report.results if result.detail}
    assert skipped.keys() == {
        "unknown_keys",
        "malformed_input",
        "foreign_state",
        "frees_results",
        "outcomes",
    }


def test_results_are_told_as_they_come(hosted: HostMaker) -> None:
    told: list[CheckResult] = []
    report = check_conformance(sound(), settings=patient({}), host=hosted, on_result=told.append)
    assert told == list(report.results)


def test_an_unknown_check_or_setting_is_refused(hosted: HostMaker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sleeps"):
        check_conformance(sound(), host=hosted, only=["sleeps"])
    path = tmp_path / "plugin.wasm"
    path.write_bytes(sound())
    with pytest.raises(ConfigError, match="max_memory"):
        check_conformance(path, settings={"max_memory": 1}, host=hosted)


def test_a_file_is_loaded_with_the_settings_of_its_project(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    path = tmp_path / "build" / "mine.wasm"
    path.write_bytes(sound(pages=17))
    (tmp_path / "plugin.toml").write_text("[settings]\nmax_memory_bytes = 2_000_000\n")
    assert check_conformance(path, only=[]).conforms
    (tmp_path / "plugin.toml").unlink()
    assert not check_conformance(path, only=[]).conforms


class AnotherHost:
    """Not this router's: what it hosts is a Python function."""

    abi = "table_v1"
    config: Mapping[str, Any] = {}
    per_call = False
    wants_outcomes = True
    instances = 1

    def __init__(self) -> None:
        self.starts = 0
        self.closed = False

    def start(self, config: Mapping[str, Any] | None = None) -> None:
        self.starts += 1

    def allows(self, config: Mapping[str, Any]) -> bool:
        return False

    def decide(self, case: DecisionCase) -> Answer:
        return Answer(case.workers.eligible[0], case.state, None, None, 1.0, 65_536)

    def ask(self, payload: bytes, case: DecisionCase) -> Answer:
        raise AssertionError("it has no input as bytes")

    def complete(self, outcome: Outcome) -> Failure | None:
        return None

    def renew(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Fickle(AnotherHost):
    """Each of its instances has an opinion of its own."""

    def decide(self, case: DecisionCase) -> Answer:
        answer = super().decide(case)
        return replace(answer, selected_worker=None) if self.starts % 2 else answer


def test_another_host_can_be_tried() -> None:
    host = AnotherHost()
    report = check_conformance(b"", host=lambda _wasm, _config: host)
    assert report.conforms, str(report)
    assert host.closed


def test_instances_that_disagree_are_found() -> None:
    report = check_conformance(b"", host=lambda _wasm, _config: Fickle())
    assert [result.name for result in report.failed] == ["deterministic"]
