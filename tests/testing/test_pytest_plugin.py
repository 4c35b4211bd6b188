"""The pytest plugin, in a pytest of its own with warnings as errors."""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from sgl_router.policies import shipped_plugins
from sgl_router.testing import check_names
from tests.testing.guests import sound, traps_on
from tests.testing.test_case import PLAIN

LIGHT = """
import sys
import sgl_router.testing.pytest_plugin
heavy = {"wasmtime", "orjson", "jsonschema", "sgl_router.core", "sgl_router.wasm"}
print(sorted(heavy & sys.modules.keys()))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a plugin, two golden decisions of which one is wrong, and nothing else."""
    (tmp_path / "mine.wasm").write_bytes(sound())
    (tmp_path / "tests").mkdir()
    for name, expected in (("right", 0), ("wrong", 1)):
        said = {"description": name, "input": PLAIN, "output": {"selected_worker": expected}}
        (tmp_path / "tests" / f"{name}.json").write_bytes(orjson.dumps(said))
    return tmp_path


def pytest_in(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit status, and what was said."""
    done = subprocess.run(
        [
            sys.executable,
            *("-W", "error", "-m", "pytest", "-p", "sgl_router.testing.pytest_plugin"),
            *("-W", "error", "-v", "-rA", "-p", "no:cacheprovider", "--rootdir", str(folder)),
            *arguments,
        ],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_module_where_the_kit_builds_it(folder: Path) -> None:
    """pytest does not look into `build` by itself."""
    (folder / "build").mkdir()
    (folder / "mine.wasm").rename(folder / "build" / "mine.wasm")
    (folder / "plugin.toml").write_text('name = "mine"\nlanguage = "rust"\n')
    _, said = pytest_in(folder, "--policy-plugin", "build/mine.wasm")
    assert "mine.wasm::loads PASSED" in said, said
    assert "mine.wasm::golden:right PASSED" in said, said


def test_a_test_for_each_check_and_golden_decision(folder: Path) -> None:
    status, said = pytest_in(folder, "--policy-plugin", "mine.wasm")
    assert status == 1
    for name in check_names():
        assert f"mine.wasm::{name} " in said, said
    assert "mine.wasm::golden:right PASSED" in said
    assert "mine.wasm::golden:wrong FAILED" in said
    assert "expected 1; found 0" in said
    assert "1 failed" in said


def test_tests_are_chosen_as_others_are(folder: Path) -> None:
    status, said = pytest_in(folder, "--policy-plugin", "./mine.wasm", "-k", "right or nulls")
    assert status == 0, said
    assert "2 passed" in said
    status, said = pytest_in(folder, "mine.wasm::decides", "--policy-plugin", "mine.wasm")
    assert "mine.wasm::decides PASSED" in said


def test_several_plugins(folder: Path) -> None:
    shipped = shipped_plugins()["power_of_two_table"]
    options = ["--policy-plugin", "mine.wasm", "--policy-plugin", str(shipped), "-k", "loads"]
    status, said = pytest_in(folder, *options)
    assert status == 0, said
    assert "2 passed" in said


def test_modules_that_are_not_named_are_no_tests(folder: Path) -> None:
    (folder / "other.wasm").write_bytes(b"nothing")
    status, said = pytest_in(folder, "--policy-plugin", "mine.wasm", "-k", "loads")
    assert status == 0, said
    assert "other" not in said
    assert pytest_in(folder)[0] == 5, "no tests are there without the option"


def test_the_reason_of_a_failure_is_told_without_a_traceback(folder: Path) -> None:
    (folder / "bad.wasm").write_bytes(traps_on('"model":null'))
    status, said = pytest_in(folder, "--policy-plugin", "bad.wasm", "-k", "nulls")
    assert status == 1
    assert "trap" in said and "may be null" in said
    assert "Traceback" not in said and "checks.py" not in said


def test_one_that_does_not_load_is_told_once(folder: Path) -> None:
    (folder / "large.wasm").write_bytes(sound(pages=20))
    status, said = pytest_in(folder, "--policy-plugin", "large.wasm")
    assert status == 1
    assert "1 failed" in said and "passed" not in said.splitlines()[-1]
    assert "large.wasm::loads FAILED" in said
    assert "large.wasm::decides SKIPPED" in said and "it does not load" in said
    assert "large.wasm::golden:right SKIPPED" in said
    assert pytest_in(folder, "--policy-plugin", "large.wasm", "-k", "decides")[0] == 1


def test_settings(folder: Path) -> None:
    (folder / "large.wasm").write_bytes(sound(pages=20))
    named = ["--policy-plugin", "large.wasm", "-k", "loads"]
    status, said = pytest_in(folder, *named)
    assert status == 1
    assert "max_memory_bytes" in said
    enough = '{"max_memory_bytes": 2000000}'
    status, said = pytest_in(folder, *named, "--policy-plugin-settings", enough)
    assert status == 0, said
    (folder / "settings.json").write_text(enough.replace(" ", "\n"))
    assert pytest_in(folder, *named, "--policy-plugin-settings", "settings.json")[0] == 0
    (folder / "list.json").write_text("[]")
    for wrong in ("list.json", "{", "nowhere.json", '{"max_memory": 1}'):
        status, said = pytest_in(folder, *named, "--policy-plugin-settings", wrong)
        assert status == 1
        assert "--policy-plugin-settings" in said


def test_the_fixture(folder: Path) -> None:
    (folder / "test_mine.py").write_text(
        "def test_it(policy_plugin):\n    assert policy_plugin.abi == 'json_v1'\n"
    )
    status, said = pytest_in(folder, "test_mine.py", "--policy-plugin", "mine.wasm", "-k", "it")
    assert status == 0, said
    assert "test_it[mine] PASSED" in said
    status, said = pytest_in(folder, "test_mine.py")
    assert status != 0
    assert "--policy-plugin FILE" in said


def test_it_is_light() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
