"""Makes a plugin's folder from the templates: what `sgl-router plugin new` runs."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from sgl_router.devkit.language import Language
from sgl_router.errors import ConfigError
from sgl_router.testing.project_file import PROJECT_FILE
from sgl_router.testing.settings import BUILTIN_NAMES
from sgl_router.wasm.config import name_problems

POLICIES = ("least_connections", "weighted_random", "sticky_session", "lmetric")
"""Those that a plugin can begin from."""

TEMPLATES = Path(str(files("sgl_router.devkit"))) / "templates"

_OF_POLICIES = "policies"
_LEFT_OUT = "__pycache__"  # pip compiles what it installs, the templates in Python too

_COMPONENTS = frozenset({"python"})
_CONTRACT = Path("wit", "policy.wit")

_NOT_A_PACKAGE = frozenset({"cmd", "std", "serde", "serde-json", "assemblyscript", "node-modules"})
"""Go's own, and what the templates depend on: no package depends on one of its own name."""

_SETTINGS = b"\n[settings]\n"


def new_plugin(folder: Path, name: str, language: Language, policy: str) -> list[Path]:
    """Make a plugin's folder.

    Args:
        folder: where; an empty one may be there.
        name: the plugin's.
        policy: one of `POLICIES`.

    Returns the files made, as paths within the folder, sorted.

    Raises ConfigError where the name or the folder cannot be used, and OSError.
    """
    if name.startswith("-"):
        raise ConfigError(f"{name!a:.80} begins as an option does; expected a letter, a digit or _")
    if problems := name_problems(name, BUILTIN_NAMES):
        raise ConfigError(f"no plugin can be named {name!a:.80}: {problems[0].text}")
    contents = _contents(language, policy)
    words = {"name": name, "crate": crate_name(name), "language": language.name}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(
                f"{str(folder)!r} is not empty; expected a folder that is, or none there (another "
                "one: option --dir)"
            )
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{error.filename!r} is there and is no folder (option --dir)") from error
    made = {Path(_filled(str(path), words)): content for path, content in contents.items()}
    for path, content in made.items():
        whole = folder / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(_filled_bytes(content, words))
    return sorted(made)


def crate_name(name: str) -> str:
    """A plugin's name as a package of Cargo, npm and Go may have it."""
    lower = name.lower()
    if not lower[0].isalpha() or lower.replace("_", "-") in _NOT_A_PACKAGE:
        return f"plugin_{lower}"
    return lower


def _contents(language: Language, policy: str) -> dict[Path, bytes]:
    """A plugin's files before its name is in them; a policy's own come over the language's."""
    of_language = TEMPLATES / language.name
    contents = {
        path: content for path, content in _files(of_language) if path.parts[0] != _OF_POLICIES
    }
    contents.update(_files(TEMPLATES / "shared" / policy))
    contents.update(_files(of_language / _OF_POLICIES / policy))
    if language.name in _COMPONENTS:
        contract = Path(str(files("sgl_router.wasm"))) / "wit" / "policy.wit"
        contents[_CONTRACT] = contract.read_bytes()
    project = Path(PROJECT_FILE)
    contents[project] = _with_settings(contents[project], language.settings)
    return contents


def _with_settings(project: bytes, settings: Mapping[str, Any]) -> bytes:
    """A `plugin.toml` with a language's settings; numbers, texts and lists of them, as in JSON."""
    before, heading, after = project.partition(_SETTINGS)
    assert heading, "each template has the table"
    lines = [f"{key} = {json.dumps(value)}\n".encode() for key, value in settings.items()]
    return before + heading + b"".join(lines) + after


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and _LEFT_OUT not in path.parts:
            yield path.relative_to(folder), path.read_bytes()


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"{{{{{word}}}}}", value)
    return text


def _filled_bytes(content: bytes, words: Mapping[str, str]) -> bytes:
    for word, value in words.items():
        content = content.replace(b"{{%b}}" % word.encode(), value.encode())
    return content
