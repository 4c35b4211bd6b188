"""Makes a plugin's module of its folder: what `sgl-router plugin build` runs."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sgl_router.devkit.language import Language, Run
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.manifest_section import with_manifest
from sgl_router.devkit.project import PluginProject
from sgl_router.devkit.toolchains import check_tools
from sgl_router.errors import BuildError
from sgl_router.testing.settings import BUILTIN_NAMES
from sgl_router.wasm.binary import MalformedModule
from sgl_router.wasm.module import check_module


@dataclass(frozen=True, slots=True)
class BuiltPlugin:
    """A module that a router would load.

    Attributes:
        path: where it is.
        wasm: its bytes, with the manifest.
        seconds: how long building took.
    """

    path: Path
    wasm: bytes
    seconds: float

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.wasm)


def build(
    project: PluginProject, run: Run, languages: Sequence[Language] = LANGUAGES
) -> BuiltPlugin:
    """Build a plugin's module, check it as a router would, and put it at `project.module`.

    What stands there from before is replaced in one step, and only by a module that passes.

    Raises BuildError where a tool is missing or fails, PluginRefused where a router with the
    settings of its `plugin.toml` would refuse the module, OSError where it cannot be written.
    """
    started = time.monotonic()
    (language,) = (one for one in languages if one.name == project.language)
    check_tools(language)
    made = language.build(project.folder.resolve(), project.name, run)
    try:
        wasm = with_manifest(made.read_bytes(), project.manifest)
    except (OSError, MalformedModule) as error:
        raise BuildError(
            f"{language.name} was to make a module at {str(made)!r}, which cannot be read: {error}",
            tool=language.name,
        ) from error
    check_module(project.config(), wasm, BUILTIN_NAMES)
    project.module.parent.mkdir(exist_ok=True)
    _replace(project.module, wasm)
    return BuiltPlugin(project.module, wasm, time.monotonic() - started)


def _replace(path: Path, content: bytes) -> None:
    """In one step, so that whoever watches the file never reads half of it."""
    temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):  # it has its place
            temporary.unlink()
