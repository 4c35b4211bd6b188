"""The plugin that a command is about: a module's file, or a plugin's folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_router.devkit.project import read_project
from sgl_router.errors import ConfigError
from sgl_router.testing.settings import golden_folder, settings_for
from sgl_router.wasm.config import WasmPolicyConfig


@dataclass(frozen=True, slots=True)
class Target:
    """A plugin that is built.

    Attributes:
        module: its file.
        config: its settings.
        tests: where its golden decisions are, if it has any.
    """

    module: Path
    config: WasmPolicyConfig
    tests: Path


def find_target(path: Path, settings: Mapping[str, Any] | None = None) -> Target:
    """What a file, or a folder with a `plugin.toml`, stands for.

    Args:
        settings: they go before those of the plugin's project.

    Raises ConfigError where there is no module.
    """
    name = None
    if path.is_dir():
        project = read_project(path)
        path, name = project.module, project.name
        if not path.is_file():
            raise ConfigError(
                f"{str(path)!r} is not there yet: run sgl-router plugin build "
                f"{str(project.folder)!r}"
            )
    elif not path.is_file():
        raise ConfigError(
            f"there is no {str(path)!r}; expected a compiled module, or a folder with a plugin.toml"
        )
    return Target(path, settings_for(path, settings, name), golden_folder(path))
