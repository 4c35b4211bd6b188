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
from sgl_router.devkit.sources import is_source, sources
from sgl_router.devkit.target import Target, find_target
from sgl_router.devkit.trial import Trial, try_plugin
from sgl_router.errors import RouterError

LOOK_EVERY_MS = 5_000
"""After so long without a change, whoever watches is told that there was none."""

_READ_BYTES = 16 * 1024 * 1024
"""Of a file: whether a larger one has changed is told by its size and its time."""

Build = Callable[[PluginProject], BuiltPlugin]
Attempt = Callable[[Target], Trial]


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


def rounds(
    folder: Path, build: Build, changes: Iterable[object], trial: Attempt = try_plugin
) -> Iterator[Round | None]:
    """Build and test a plugin, at once and then whenever a source is not as it was.

    Args:
        folder: the plugin's, with its `plugin.toml`.
        build: builds it.
        changes: yields whenever something in the folder may have changed; see `saves`.
        trial: tests it.

    Yields what came of it; None where nothing had changed. What sources hold is compared, so that
    a build that touches them does not begin another round. Raises ConfigError where the folder has
    more files than can be watched.
    """
    known = b""
    for _ in chain([None], changes):
        found = _digest(folder)
        if found == known:
            yield None
            continue
        known = found  # as it was before the build: what is saved meanwhile is built next
        yield one_round(folder, build, trial)


def one_round(folder: Path, build: Build, trial: Attempt = try_plugin) -> Round:
    """Build and test once; whatever fails is told in what is returned."""
    built = target = None
    try:
        built = build(read_project(folder))
        target = find_target(folder)
        return Round(built, trial(target), target)
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
        return is_source(inside) and super().__call__(change, path)


def _digest(folder: Path) -> bytes:
    """Of all sources and their paths; a file that goes while it is read counts as empty."""
    digest = hashlib.sha256()
    for path, known in sources(folder):
        digest.update(f"{path.relative_to(folder)}\0".encode("utf-8", "surrogateescape"))
        if known.st_size > _READ_BYTES:
            digest.update(f"{known.st_size} {known.st_mtime_ns}\0".encode())
            continue
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:
            digest.update(b"-")
    return digest.digest()
