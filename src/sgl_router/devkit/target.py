"""The plugin that a command is about: a module's file, or a plugin's folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_router.devkit.project import read_project
from sgl_router.devkit.sources import newest_unbuilt
from sgl_router.errors import ConfigError
from sgl_router.testing.project_file import PROJECT_FILE
from sgl_router.testing.settings import config_of, golden_folder, settings_for
from sgl_router.wasm.config import WasmPolicyConfig


@dataclass(frozen=True, slots=True)
class Target:
    """A plugin that is built.

    Attributes:
        module: its file.
        config: its settings.
        tests: where its golden decisions are, if it has any.
        unbuilt: the newest of a folder's sources that were saved after it was built, or None.
    """

    module: Path
    config: WasmPolicyConfig
    tests: Path
    unbuilt: Path | None = None


def find_target(path: Path, settings: Mapping[str, Any] | None = None) -> Target:
    """What a file, or a folder with a `plugin.toml`, stands for.

    Args:
        settings: they go before those of the plugin's project.

    Raises ConfigError where there is no module.
    """
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(
                f"there is no {str(path)!r}; expected a compiled module, or a folder with a "
                f"{PROJECT_FILE}"
            )
        return Target(path, settings_for(path, settings), golden_folder(path))
    project = read_project(path)
    module = project.module
    if not module.is_file():
        raise ConfigError(
            f"{str(module)!r} is not there yet: run sgl-router plugin build {str(path)!r}"
        )
    config = config_of(module, project.name, {**project.settings, **(settings or {})})
    return Target(module, config, path / "tests", newest_unbuilt(project))
