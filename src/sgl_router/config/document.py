"""YAML files, read so that no message holds a line of them: a key may stand there."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sgl_router.errors import ConfigError


def read_yaml(path: str, option: str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises ConfigError, naming the file and the option, where it cannot be read, is not YAML or
    something else than a mapping, or names a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path!r} is not text in UTF-8 (option {option})") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror} (option {option})") from error
    try:
        data = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:
        # Not chained: its text quotes the file.
        raise ConfigError(f"{path!r} is not YAML: {_place(error)} (option {option})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path!r} holds a {type(data).__name__}; expected a mapping (option {option})"
        )
    return data


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem="a key stands here that stood before", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _place(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "a character or a value in it cannot be read"
    mark = error.problem_mark
    # What PyYAML says ends in a quotation of what it found.
    said = (error.problem or "").partition("'")[0].partition('"')[0].strip(" ,")
    return f"line {mark.line + 1}, column {mark.column + 1}: {said}"
