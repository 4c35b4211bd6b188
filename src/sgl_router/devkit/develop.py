"""Builds and tests a plugin whenever its sources are saved. `sgl-router plugin dev` runs it."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from watchfiles import Change, DefaultFilter, watch

from sgl_router.devkit.build import BuiltPlugin
from sgl_router.devkit.project import PluginProject, read_project
from sgl_router.devkit.target import Target, find_target
from sgl_router.devkit.trial import Trial, try_plugin
from sgl_router.errors import RouterError

MADE = frozenset(
    {
        "build",
        "target",
        "node_modules",
        "zig-cache",
        "zig-out",
        "__pycache__",
        "dist",
        "venv",
        "wit_world",
        "componentize_py_runtime",
    }
)
"""Folders that tools make; those whose names begin with a dot are not looked at either."""

WATCHED_DOT_FOLDERS = frozenset({".cargo"})
LOOK_EVERY_MS = 5_000
"""After so long without a change, whoever watches is told that there was none."""

_MAX_FILES = 10_000
_MAX_FILE_BYTES = 16 * 1024 * 1024

Build = Callable[[PluginProject], BuiltPlugin]


@dataclass(frozen=True, slots=True)
class Round:
    """What came of one save.

    Attributes:
        built: None where it was not built.
        trial: of its tests; None where there was nothing to test.
        target: what was tested.
        error: why one of these is not there.
    """

    built: BuiltPlugin | None = None
    trial: Trial | None = None
    target: Target | None = None
    error: RouterError | OSError | None = None

    @property
    def passed(self) -> bool:
        """Whether there is a module that passes its tests."""
        return self.trial is not None and self.trial.passed


def rounds(folder: Path, build: Build, changes: Iterable[object]) -> Iterator[Round | None]:
    """Build and test a plugin, at once and then whenever a source is not as it was.

    Args:
        folder: the plugin's, with its `plugin.toml`.
        build: builds it.
        changes: yields whenever something in the folder may have changed; see `saves`.

    Yields what came of it; None where nothing had changed. What sources hold is compared, so that
    a build that touches them does not begin another round.
    """
    known = b""
    for _ in chain([None], changes):
        found = _digest(folder)
        if found == known:
            yield None
            continue
        known = found  # as it was before the build: what is saved meanwhile is built next
        yield one_round(folder, build)


def one_round(folder: Path, build: Build) -> Round:
    """Build and test once; whatever fails is told in what is returned."""
    built = target = None
    try:
        built = build(read_project(folder))
        target = find_target(folder)
        return Round(built, try_plugin(target), target)
    except (RouterError, OSError) as error:
        return Round(built, None, target, error)


def saves(folder: Path) -> Iterator[Literal["changed", "quiet"]]:
    """Wait for changes of sources in a folder, for ever; ends by KeyboardInterrupt."""
    folder = folder.resolve()
    for changes in watch(
        folder,
        watch_filter=SourceFilter(folder),
        rust_timeout=LOOK_EVERY_MS,
        yield_on_timeout=True,
        raise_interrupt=True,
    ):
        yield "changed" if changes else "quiet"


class SourceFilter(DefaultFilter):
    """Lets through what an author writes, and nothing that tools make."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __call__(self, change: Change, path: str) -> bool:
        try:
            inside = Path(path).relative_to(self._folder)
        except ValueError:
            return False
        return _is_source(inside) and super().__call__(change, path)


def _is_source(inside: Path) -> bool:
    """Whether an author writes this file, by its path within the folder."""
    return not any(
        part in MADE or (part.startswith(".") and part not in WATCHED_DOT_FOLDERS)
        for part in inside.parts
    )


def _digest(folder: Path) -> bytes:
    """Of all sources and their paths; a file that goes while it is read counts as empty."""
    digest = hashlib.sha256()
    for path in _sources(folder):
        digest.update(f"{path.relative_to(folder)}\0".encode("utf-8", "surrogateescape"))
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            digest.update(b"-")
    return digest.digest()


def _sources(folder: Path) -> Iterator[Path]:
    pending, count = [folder], 0
    while pending:
        for path in _entries(pending.pop()):
            if not _is_source(path.relative_to(folder)) or path.is_symlink():
                continue
            if path.is_dir():
                pending.append(path)
            elif path.is_file() and path.stat().st_size <= _MAX_FILE_BYTES:
                count += 1
                if count > _MAX_FILES:
                    return
                yield path


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # it has gone
        return []
