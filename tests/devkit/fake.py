"""A language that is built by a shell script, so that what the kit does is tested without tools."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.policies import shipped_plugins

SHIPPED = shipped_plugins()["weighted_random"].read_bytes()
"""A module that does what it should, with a manifest of its own."""


def fake_language(
    name: str = "fake", *, tool: str | None = "/bin/sh", settings: Mapping[str, Any] | None = None
) -> Language:
    """`build.sh` in the folder makes `out.wasm`; `tool`: None where the shell is missing."""

    def build(folder: Path, plugin: str, run: Run) -> Path:
        assert tool is not None
        run([tool, "build.sh", plugin], folder, {"MADE_BY": "the kit"})
        return folder / "out.wasm"

    shell = Tool("a shell", "apt install dash", lambda: None if tool is None else [tool])
    return Language(name, "policy.sh", (shell,), build, settings or {})


FAKE = fake_language()


def fake_project(folder: Path, *, script: str = "cp module.wasm out.wasm", more: str = "") -> Path:
    """A plugin's folder; `more` stands at the beginning of its `plugin.toml`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plugin.toml").write_text(f'name = "my-plugin"\nlanguage = "fake"\n{more}\n')
    (folder / "build.sh").write_text(script)
    (folder / "module.wasm").write_bytes(SHIPPED)
    return folder
