"""A plugin's tests: conformance, and its golden decisions."""

from pathlib import Path

import pytest

from sgl_router.devkit.target import find_target
from sgl_router.devkit.trial import try_plugin
from sgl_router.errors import ConfigError
from sgl_router.testing import check_names
from tests.devkit.projects import golden, project
from tests.testing.guests import sound, traps_on


def test_all_of_it_is_made_and_told(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    folder = project(tmp_path / "mine")
    trial = try_plugin(find_target(folder), lambda what, total: told.append((what, total)))
    assert trial.passed
    assert [result.name for result in trial.report.results] == check_names()
    assert [one.golden.name for one in trial.golden] == ["first"]
    assert [what for what, _ in told] == ["compiling", *check_names(), "first"]
    assert {total for _, total in told} == {len(check_names()) + 1}
    assert trial.count("failed") == 0
    assert trial.count("passed") + trial.count("skipped") == len(check_names()) + 1


def test_a_golden_decision_that_is_not_met_fails(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    golden(folder, "second", 1)
    trial = try_plugin(find_target(folder))
    assert trial.report.conforms
    assert [one.outcome for one in trial.golden] == ["passed", "failed"]
    assert not trial.passed
    assert trial.count("failed") == 1


def test_a_check_that_fails_fails_all(tmp_path: Path) -> None:
    trial = try_plugin(find_target(project(tmp_path / "mine", traps_on('"model":null'))))
    assert [result.name for result in trial.report.failed] == ["nulls"]
    assert not trial.passed


def test_one_that_does_not_load_has_no_golden_decisions(tmp_path: Path) -> None:
    trial = try_plugin(find_target(project(tmp_path / "mine", sound(pages=17))))
    assert trial.golden == []
    assert trial.report.results[0].outcome == "failed"


def test_a_golden_decision_that_cannot_be_read_is_told_first(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    (folder / "tests" / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        try_plugin(find_target(folder))
