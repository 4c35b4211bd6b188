"""YAML files, read so that no message holds a line of them: a key may stand there."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sgl_router.errors import ConfigError

_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_TOKENS = frozenset(
    kind.id for kind in vars(yaml.tokens).values() if isinstance(getattr(kind, "id", None), str)
)
_WORDS = {"'<stream end>'": "the end of the file", r"'\t'": r"'\t' (a tab)"}


def read_yaml(path: str, given_by: str) -> dict[str, Any]:
    """The mapping in a YAML file; an empty file is an empty one.

    Raises ConfigError, naming the file and what it was given by, where it cannot be read, is not
    YAML or something else than a mapping, or names a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path!r} is not text in UTF-8 ({given_by})") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror} ({given_by})") from error
    try:
        data = yaml.load(text, _UniqueKeys)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Not chained: its text quotes the file.
        raise ConfigError(f"{path!r} is not YAML: {_problem(error)} ({given_by})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path!r} holds a {type(data).__name__}; expected a mapping ({given_by})"
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


def _problem(error: Exception) -> str:
    """What is wrong and where, without what stands there."""
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1} of it, U+{error.character:04X}, is not allowed"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "a value in it cannot be read"
    said = f"{_line(error.problem_mark)}: {_without_quotations(error.problem or 'not YAML')}"
    if error.context:
        said += f", {_without_quotations(error.context)}"
    if error.context and error.context_mark is not None:
        said += f" that begins in {_line(error.context_mark)}"
    return said


def _line(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


def _without_quotations(text: str) -> str:
    """PyYAML's words; of what it quotes, single characters and names of tokens are kept."""

    def shown(quoted: re.Match[str]) -> str:
        inner = quoted[0][1:-1]
        known = len(inner) == 1 or inner in _TOKENS or quoted[0] in _WORDS
        return _WORDS.get(quoted[0], quoted[0]) if known else "…"

    return _QUOTED.sub(shown, text)
