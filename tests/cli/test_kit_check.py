"""`sgl-router plugin check`, and what is said of a folder whose sources are not built."""

import os
from pathlib import Path

import orjson
import pytest

from sgl_router.cli.main import main
from sgl_router.wasm.refusals import refusals
from tests.devkit.projects import SOURCE, project
from tests.wasm.guests import PRINT, guest, wasi

NEEDS_RANDOM = guest(imports=wasi("random_get", "i32 i32"))


def status_of(*arguments: object) -> object:
    """The exit status of `sgl-router plugin`."""
    return main(["plugin", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return project(tmp_path / "mine")


@pytest.mark.parametrize("command", ["check", "test", "bench", "run"])
def test_a_source_that_is_not_built_is_told(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--decisions", "1"] if command == "bench" else []
    built_ns = (folder / "build" / "mine.wasm").stat().st_mtime_ns
    os.utime(folder / SOURCE, ns=(built_ns, built_ns))
    assert status_of(command, folder, *more) == 0
    assert capsys.readouterr().err == ""
    os.utime(folder / SOURCE, ns=(built_ns + 1, built_ns + 1))
    assert status_of(command, folder, *more) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert SOURCE in line and f"sgl-router plugin build {folder}" in line


def test_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("check", folder) == 0
    said = capsys.readouterr().out
    assert "json_v1" in said and "takes it" in said
    (folder / "build" / "mine.wasm").write_bytes(NEEDS_RANDOM)
    assert status_of("check", folder) == 1
    said = capsys.readouterr().out
    assert "import_not_granted" in said and "wasi:random" in said
    assert status_of("check", folder, "--settings", '{"allowed_syscalls": ["wasi:random"]}') == 0


def test_check_tells_each_remedy_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wasm = guest(imports=wasi("random_get", "i32 i32") + PRINT)
    (folder / "build" / "mine.wasm").write_bytes(wasm)
    assert status_of("check", folder) == 1
    said = capsys.readouterr().out
    assert said.count("import_not_granted  it imports") == 2
    assert said.count(refusals()["import_not_granted"].remedy) == 1
    assert said.rindex("it imports") < said.index(refusals()["import_not_granted"].remedy)


def test_check_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "build" / "mine.wasm").write_bytes(NEEDS_RANDOM)
    assert status_of("check", folder, "--json") == 1
    found = orjson.loads(capsys.readouterr().out)
    assert [problem["code"] for problem in found["problems"]] == ["import_not_granted"]
    assert found["imports"][0]["group"] == "wasi:random"
    assert found["size"] == len(NEEDS_RANDOM)
