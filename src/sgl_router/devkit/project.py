"""A plugin's folder: what its `plugin.toml` says, read and checked in one go."""

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, time
from pathlib import Path
from typing import Any

import orjson

from sgl_router.devkit.language import Language
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.errors import ConfigError
from sgl_router.policies import BUILTIN_POLICIES
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.manifest import HOST_ABI, config_problems, read_manifest

PROJECT_FILE = "plugin.toml"
MAX_PROJECT_BYTES = 256 * 1024

BUILTIN_NAMES = frozenset(policy.name for policy in BUILTIN_POLICIES)

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

_REQUIRED = ("name", "language")
_IN_MANIFEST = ("name", "version", "description", "needs", "reads_body", "config_schema")
_SETTINGS = [
    field.name for field in fields(WasmPolicyConfig) if field.name not in ("name", "module_path")
]


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
        return _config(self.module, self.name, self.settings)


def read_project(folder: Path, languages: Sequence[Language] = LANGUAGES) -> PluginProject:
    """Read a plugin's `plugin.toml`.

    Args:
        languages: those that a plugin may be written in.

    Raises ConfigError with all that is wrong with it.
    """
    path = folder / PROJECT_FILE
    raw = _read_toml(path)
    problems = [
        f"{key} is a value that JSON does not have; write it as a text" for key in _not_json(raw)
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
        with path.open("rb") as file:
            content = file.read(MAX_PROJECT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"there is no {PROJECT_FILE} in {str(path.parent)!r}; expected a plugin's folder, as "
            "`sgl-router plugin new NAME --lang LANG` makes one"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_PROJECT_BYTES:
        raise ConfigError(f"{path} has more than {MAX_PROJECT_BYTES:,} bytes")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _not_json(value: object, key: str = "") -> Iterator[str]:
    """The keys of values that TOML has and JSON does not: times, infinity, numbers of 65 bits."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _not_json(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_json(item, f"{key}[{index}]")
    elif (
        isinstance(value, date | time)
        or (isinstance(value, float) and not math.isfinite(value))
        or (isinstance(value, int) and not -(2**63) <= value < 2**64)
    ):
        yield key


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
            problems.append(f"{key} is {raw[key]!a:.80}; expected {expected}")
    return problems


def _language_problems(language: str, languages: Sequence[str]) -> list[str]:
    if language in languages:
        return []
    return [f"language is {language!a:.80}; expected one of {', '.join(languages)}"]


def _setting_problems(folder: Path, raw: Mapping[str, Any]) -> list[str]:
    settings = raw.get("settings", {})
    if unknown := sorted(settings.keys() - set(_SETTINGS)):
        return [
            f"settings.{key} is no setting of a plugin; expected: {', '.join(_SETTINGS)}"
            for key in unknown
        ]
    config = _config(folder / f"{raw['name']}.wasm", raw["name"], settings)
    return [reason.text for reason in config.problems(BUILTIN_NAMES)]


def _config(module: Path, name: str, settings: Mapping[str, Any]) -> WasmPolicyConfig:
    given = dict(settings)
    if isinstance(given.get("allowed_syscalls"), list):
        given["allowed_syscalls"] = tuple(given["allowed_syscalls"])
    return WasmPolicyConfig(**given, module_path=str(module), name=name)


def _manifest(raw: Mapping[str, Any]) -> bytes:
    """What is not given is left out, so that the router's own default holds; but for the needs.

    A module without a manifest is given the request's text; an author who names no needs has none.
    """
    said = {key: raw[key] for key in _IN_MANIFEST if key in raw}
    return orjson.dumps({"abi": HOST_ABI, "needs": [], **said})
