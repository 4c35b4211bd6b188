"""Plugins' folders whose modules need no toolchain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from sgl_router.devkit.build import BuiltPlugin
from sgl_router.devkit.project import PluginProject
from sgl_router.errors import BuildError
from tests.testing.guests import sound
from tests.testing.test_case import PLAIN

SOURCE = "src/policy.wat"
"""What the author writes: the module itself, or `error` where building fails."""


def project(folder: Path, wasm: bytes | None = None, settings: str = "") -> Path:
    """A plugin's folder, named `mine`, that is built; with one golden decision, which it passes."""
    (folder / "src").mkdir(parents=True)
    (folder / "build").mkdir()
    (folder / "plugin.toml").write_text(
        'name = "mine"\nlanguage = "rust"\n[settings]\nmax_execution_time_ms = 5_000\n'
        f"inline_budget_ms = 100\n{settings}\n"
    )
    golden(folder, "first", 0)
    (folder / SOURCE).write_bytes(sound() if wasm is None else wasm)
    built = folder / "build" / "mine.wasm"
    built.write_bytes((folder / SOURCE).read_bytes())
    return folder


def golden(folder: Path, name: str, worker: int | None, **given: Any) -> None:
    """A golden decision of a plugin's folder."""
    (folder / "tests").mkdir(exist_ok=True)
    said: Mapping[str, Any] = {
        "description": f"of {name}",
        "input": {**PLAIN, **given},
        "output": {"selected_worker": worker},
    }
    (folder / "tests" / f"{name}.json").write_bytes(orjson.dumps(said))


def build(of: PluginProject) -> BuiltPlugin:
    """What building is for the tests: the source is the module."""
    wasm = (of.folder / SOURCE).read_bytes()
    if wasm == b"error":
        raise BuildError("cc failed, saying:", tool="cc", output="policy.wat:1: no policy")
    of.module.write_bytes(wasm)
    return BuiltPlugin(of.module, wasm, 0.5)
