"""What the store of uploaded plugins keeps of each, and how it is written down.

A manifest is JSON: `{"format": 1, "name", "current", "previous", "replaces"}`, with `current` and
`previous` as `{"sha256", "settings", "stored_at_ms"}`; `previous` and `replaces` may be null.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson

from sgl_router.errors import RouterError
from sgl_router.wasm.config import is_digest, name_problems
from sgl_router.wasm.printable import shown

FORMAT = 1
"""Of the manifests."""

MAX_SETTINGS_BYTES = 256 * 1024
"""Of a version, as JSON; `config` alone may have 64 KiB."""

MAX_MANIFEST_BYTES = 1024 * 1024
"""Room for the settings of both versions."""


class StoreError(RouterError):
    """The store cannot be used, or does not hold what was asked for; the text is a sentence."""


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """A module with its settings.

    Attributes:
        sha256: of the module, hexadecimal.
        settings: JSON, as it was given to `PluginStore.put`.
        stored_at_ms: Unix time.
    """

    sha256: str
    settings: Mapping[str, Any]
    stored_at_ms: int


@dataclass(frozen=True, slots=True)
class StoredPlugin:
    """What a manifest says.

    Attributes:
        name: the plugin's.
        current: the version in use.
        previous: the version to which a rollback returns, or None.
        replaces: the SHA-256 of the plugin's file that the upload took the place of, or None.
    """

    name: str
    current: StoredVersion
    previous: StoredVersion | None
    replaces: str | None


def is_manifest(entry: str) -> bool:
    """Whether a file of this name says what a plugin is."""
    return entry.endswith(".json") and not entry.startswith(".")


def check_name(name: str) -> None:
    """Raises StoreError where no plugin may have it."""
    if problems := name_problems(name, ()):
        raise StoreError(problems[0].text)


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they will be read back; raises StoreError where they are not JSON."""
    text = _dumped(dict(settings))
    if len(text) > MAX_SETTINGS_BYTES:
        raise StoreError(
            f"the settings are {len(text):,} bytes of JSON; at most {MAX_SETTINGS_BYTES:,} are kept"
        )
    plain: dict[str, Any] = orjson.loads(text)
    return plain


def _dumped(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError as error:
        raise StoreError(f"the settings are not JSON: {error}") from error


def same(one: StoredVersion, other: StoredVersion) -> bool:
    """Whether module and settings are the same; as bytes, because Python takes 1 and True so."""
    ordered = orjson.OPT_SORT_KEYS
    return one.sha256 == other.sha256 and (
        orjson.dumps(one.settings, option=ordered) == orjson.dumps(other.settings, option=ordered)
    )


def encode(plugin: StoredPlugin) -> bytes:
    """The manifest; raises StoreError where its settings are nested too deeply for it."""
    return _dumped({"format": FORMAT, **asdict(plugin)})


def decode(name: str, raw: bytes) -> StoredPlugin:
    """What the manifest of that plugin says; raises StoreError with what is wrong with it."""
    check_name(name)
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise StoreError(f"it is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"it is {shown(found)}; expected an object")
    if found.get("format") != FORMAT:
        raise StoreError(f"its format is {shown(found.get('format'))}; expected {FORMAT}")
    if found.get("name") != name:
        raise StoreError(f"its name is {shown(found.get('name'))}; expected {name!r}")
    replaces = found.get("replaces")
    if replaces is not None and not is_digest(replaces):
        raise StoreError(f"its replaces is {shown(replaces)}; expected null or a SHA-256")
    previous = found.get("previous")
    return StoredPlugin(
        name,
        _version("current", found.get("current")),
        None if previous is None else _version("previous", previous),
        replaces,
    )


def _version(key: str, found: object) -> StoredVersion:
    if not isinstance(found, dict):
        raise StoreError(f"its {key} is {shown(found)}; expected an object")
    sha256, settings, at = (found.get(key) for key in ("sha256", "settings", "stored_at_ms"))
    if not is_digest(sha256) or not isinstance(settings, dict) or type(at) is not int:
        raise StoreError(
            f"its {key} has sha256 {shown(sha256)}, settings {shown(settings)} and stored_at_ms "
            f"{shown(at)}; expected 64 digits (0-9 a-f), an object and a whole number"
        )
    return StoredVersion(str(sha256), settings, at)
