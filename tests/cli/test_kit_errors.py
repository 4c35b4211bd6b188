"""What the kit's commands say of files that no plugin should have."""

from pathlib import Path

import orjson
import pytest

from sgl_router.cli import kit_runs
from sgl_router.cli.main import main
from tests.devkit.projects import project
from tests.testing.test_case import PLAIN


def status_of(*arguments: object) -> int:
    """The exit status of `sgl-router plugin`."""
    return main(["plugin", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return project(tmp_path / "mine")


def test_an_input_that_is_too_much(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = orjson.dumps(PLAIN)
    (folder / "input.json").write_bytes(given)
    monkeypatch.setattr(kit_runs, "MAX_INPUT_BYTES", len(given))
    assert status_of("run", folder, "--input", folder / "input.json") == 0
    capsys.readouterr()
    (folder / "input.json").write_bytes(given + b" ")
    assert status_of("run", folder, "--input", folder / "input.json") == 1
    assert f"{len(given):,} bytes" in capsys.readouterr().err
    deep = '{"a":' * 900 + "1" + "}" * 900
    assert status_of("run", folder, "--state", deep) == 1
    assert "--state" in capsys.readouterr().err


def test_an_error_moves_no_cursor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = folder / "plugin.toml"
    said = toml.read_text()
    for line in ('"\\u001b[31m" = 1', '"a\\rb" = 2026-01-31', 'config = { "\\u001b[2J" = inf }'):
        toml.write_text(f"{said}\n{line}\n")
        assert status_of("test", folder) == 1
        told = capsys.readouterr().err
        assert "cannot be used:\n  " in told, "lines are kept"
        assert "\x1b" not in told and "\r" not in told
    toml.write_text(said)
    (folder / "tests" / "\x1b[31m.json").write_text('{"input": {}, "output": {"\\u001b[1m": 1}}')
    assert status_of("test", folder) == 1
    assert "\x1b" not in capsys.readouterr().err
