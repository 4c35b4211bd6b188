"""Reads a `plugin.toml`; what it may say is checked elsewhere."""

import math
import tomllib
from collections.abc import Iterator
from datetime import date, time
from pathlib import Path
from typing import Any

from sgl_router.errors import ConfigError
from sgl_router.testing.files import read_regular

PROJECT_FILE = "plugin.toml"
MAX_PROJECT_BYTES = 64 * 1024

_MAX_DEPTH = 100
_MAX_DOTS = 2_000
"""Of one line: reading a dotted key takes time by the square of its parts."""


def read_project_file(path: Path) -> dict[str, Any]:
    """What a `plugin.toml` says.

    Raises ConfigError where it is no TOML, too large or nested too deeply, and OSError.
    """
    content = read_regular(path, MAX_PROJECT_BYTES)
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.count(b".") > _MAX_DOTS:
            raise ConfigError(f"{path}: line {number} has more than {_MAX_DOTS:,} dots")
    try:
        said = tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if _deeper_than(said, _MAX_DEPTH):
        raise ConfigError(f"{path} is nested more than {_MAX_DEPTH} deep")
    return said


def not_json(value: object, key: str = "") -> Iterator[str]:
    """The keys of values that TOML has and JSON does not: times, infinity, numbers of 65 bits."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from not_json(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from not_json(item, f"{key}[{index}]")
    elif (
        isinstance(value, date | time)
        or (isinstance(value, float) and not math.isfinite(value))
        or (isinstance(value, int) and not -(2**63) <= value < 2**64)
    ):
        yield key


def _deeper_than(value: object, depth: int) -> bool:
    level = [value]
    while level and depth >= 0:
        level = [item for one in level for item in _items(one)]
        depth -= 1
    return bool(level)


def _items(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
