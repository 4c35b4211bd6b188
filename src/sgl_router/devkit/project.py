"""A plugin's folder: what its `plugin.toml` says, read and checked in one go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sgl_router.devkit.language import Language
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.errors import ConfigError
from sgl_router.testing.project_file import PROJECT_FILE, not_json, read_project_file
from sgl_router.testing.settings import BUILTIN_NAMES, SETTING_NAMES, config_of
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.manifest import HOST_ABI, config_problems, read_manifest

_KEYS: Mapping[str, tuple[type, str]] = {
    "name": (str, "a text"),
    "version": (str, "a text"),
    "description": (str, "a text"),
    "language": (str, "a text"),
    "needs": (list, "a list of names"),
    "reads_body": (bool, "true or false"),
    "config_schema": (dict, "a table"),
    "settings": (dict, "a table"),
}
"""A key -> what it holds. Only the name and the language have to be there."""

_KINDS = {dict: "a table", list: "a list"}
_REQUIRED = ("name", "language")
_IN_MANIFEST = ("name", "version", "description", "needs", "reads_body", "config_schema")


@dataclass(frozen=True, slots=True)
class PluginProject:
    """A plugin's folder, with all that is said in its `plugin.toml`.

    Attributes:
        folder: with the author's files.
        name, version, description: the plugin's.
        language: what it is written in, as in `--lang`.
        manifest: JSON, as it stands in the custom section of the module.
        settings: with what the plugin is loaded, those that are given.
    """

    folder: Path
    name: str
    version: str
    description: str
    language: str
    manifest: bytes
    settings: Mapping[str, Any]

    @property
    def module(self) -> Path:
        """Where the built module is, once there is one."""
        return self.folder / "build" / f"{self.name}.wasm"

    def config(self) -> WasmPolicyConfig:
        """The plugin as a router would load it."""
        return config_of(self.module, self.name, self.settings)


def read_project(folder: Path, languages: Sequence[Language] = LANGUAGES) -> PluginProject:
    """Read a plugin's `plugin.toml`.

    Args:
        languages: those that a plugin may be written in.

    Raises ConfigError with all that is wrong with it.
    """
    path = folder / PROJECT_FILE
    raw = _read_toml(path)
    problems = [
        f"{key} is a value that JSON does not have; write it as a text" for key in not_json(raw)
    ]
    problems += _key_problems(raw)
    if not problems:
        problems += _language_problems(raw["language"], [one.name for one in languages])
        problems += _setting_problems(folder, raw)
    manifest = b"" if problems else _manifest(raw)
    if not problems:
        said, found = read_manifest(manifest)
        found += config_problems(said, raw.get("settings", {}).get("config", {}))
        problems = [reason.text for reason in found]
    if problems:
        raise ConfigError("\n".join([f"{path} cannot be used:", *(f"  {p}" for p in problems)]))
    return PluginProject(
        folder=folder,
        name=raw["name"],
        version=raw.get("version", ""),
        description=raw.get("description", ""),
        language=raw["language"],
        manifest=manifest,
        settings=raw.get("settings", {}),
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return read_project_file(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"there is no {PROJECT_FILE} in {str(path.parent)!r}; expected a plugin's folder, as "
            "`sgl-router plugin new NAME --lang LANG` makes one"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _key_problems(raw: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{key!a:.80} is no key of it; expected: {', '.join(_KEYS)}"
        for key in sorted(raw.keys() - _KEYS.keys())
    ]
    problems += [
        f"it has no {key}; expected {_KEYS[key][1]}" for key in _REQUIRED if key not in raw
    ]
    for key, (kind, expected) in _KEYS.items():
        if key in raw and type(raw[key]) is not kind:
            problems.append(f"{key} is {_shown(raw[key])}; expected {expected}")
    return problems


def _shown(value: object) -> str:
    """In short; a number may have more digits than Python writes."""
    if isinstance(value, dict | list):
        return _KINDS[type(value)]
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    return f"{value!a:.80}"


def _language_problems(language: str, languages: Sequence[str]) -> list[str]:
    if language in languages:
        return []
    return [f"language is {language!a:.80}; expected one of {', '.join(languages)}"]


def _setting_problems(folder: Path, raw: Mapping[str, Any]) -> list[str]:
    settings = raw.get("settings", {})
    if unknown := sorted(settings.keys() - set(SETTING_NAMES)):
        return [
            f"settings.{key} is no setting of a plugin; expected: {', '.join(SETTING_NAMES)}"
            for key in unknown
        ]
    config = config_of(folder / f"{raw['name']}.wasm", raw["name"], settings)
    return [reason.text for reason in config.problems(BUILTIN_NAMES)]


def _manifest(raw: Mapping[str, Any]) -> bytes:
    """What is not given is left out, so that the router's own default holds; but for the needs.

    A module without a manifest is given the request's text; an author who names no needs has none.
    """
    said = {key: raw[key] for key in _IN_MANIFEST if key in raw}
    return orjson.dumps({"abi": HOST_ABI, "needs": [], **said})
