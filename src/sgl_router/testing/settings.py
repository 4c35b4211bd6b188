"""With what a plugin is loaded to be tried, and what stands beside its file."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sgl_router.errors import ConfigError
from sgl_router.policies.builtin import BUILTIN_POLICIES
from sgl_router.testing.project_file import PROJECT_FILE, not_json, read_project_file
from sgl_router.wasm.config import WasmPolicyConfig

BUILTIN_NAMES = tuple(policy.name for policy in BUILTIN_POLICIES)

_OF_A_PLUGIN = ("name", "module_path")
SETTING_NAMES = [field.name for field in fields(WasmPolicyConfig) if field.name not in _OF_A_PLUGIN]
"""Of the settings that an author may give."""


def settings_for(
    module: Path, settings: Mapping[str, Any] | None = None, name: str | None = None
) -> WasmPolicyConfig:
    """A plugin's settings.

    Args:
        module: its file.
        settings: as in `--plugin-config`. They go before those of its project, where the file is
            one that is built there (`FOLDER/build/NAME.wasm`, beside `FOLDER/plugin.toml`).
        name: the plugin's; None: the file's.

    Raises ConfigError for a setting that there is not.
    """
    given = {**_of_project(module), **(settings or {})}
    return config_of(module, name or module.stem, given)


def config_of(module: Path, name: str, settings: Mapping[str, Any]) -> WasmPolicyConfig:
    """A plugin as a router would load it, with these settings and no others.

    Raises ConfigError for a setting that there is not.
    """
    if unknown := sorted(settings.keys() - set(SETTING_NAMES)):
        raise ConfigError(
            f"there is no setting {', '.join(map(ascii, unknown))}; known: "
            f"{', '.join(SETTING_NAMES)}"
        )
    given = dict(settings)
    if isinstance(given.get("allowed_syscalls"), list):
        given["allowed_syscalls"] = tuple(given["allowed_syscalls"])
    return WasmPolicyConfig(**given, module_path=str(module), name=name)


def with_config(settings: WasmPolicyConfig, config: Mapping[str, Any]) -> WasmPolicyConfig:
    """The same settings with another configuration."""
    return replace(settings, config=config)


def golden_folder(module: Path) -> Path:
    """Where the golden decisions of a module are: `tests`, beside it or beside its `build`."""
    folder = module.absolute().parent
    return (folder.parent if _project_of(module) else folder) / "tests"


def _project_of(module: Path) -> Path | None:
    """The `plugin.toml` of the project that a module was built in, if it was."""
    folder = module.absolute().parent
    project = folder.parent / PROJECT_FILE
    return project if folder.name == "build" and project.is_file() else None


def _of_project(module: Path) -> Mapping[str, Any]:
    project = _project_of(module)
    if project is None:
        return {}
    try:
        said = read_project_file(project)
    except OSError as error:
        raise ConfigError(f"cannot read {project}: {error.strerror}") from error
    settings = said.get("settings", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"{project}: settings is no table")
    if odd := list(not_json(settings, "settings")):
        raise ConfigError(f"{project}: {odd[0]} is a value that JSON does not have")
    return settings
