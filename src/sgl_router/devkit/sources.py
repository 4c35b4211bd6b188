"""Which files of a plugin's folder its author writes, and whether they were built since."""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sgl_router.devkit.project import PluginProject
from sgl_router.errors import ConfigError
from sgl_router.testing.project_file import PROJECT_FILE

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

MAX_FILES = 10_000


def is_source(inside: Path) -> bool:
    """Whether an author writes this file, by its path within the folder."""
    return not any(
        part in MADE or (part.startswith(".") and part not in WATCHED_DOT_FOLDERS)
        for part in inside.parts
    )


def sources(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """What an author writes, with what is known of each file; always in the same order.

    A link is not followed. Raises ConfigError after `MAX_FILES`.
    """
    pending, count = [folder], 0
    while pending:
        for path in _entries(pending.pop()):
            if not is_source(path.relative_to(folder)):
                continue
            try:
                known = path.lstat()
            except OSError:  # it has gone
                continue
            if stat.S_ISDIR(known.st_mode):
                pending.append(path)
            elif stat.S_ISREG(known.st_mode):
                count += 1
                if count > MAX_FILES:
                    raise ConfigError(
                        f"{str(folder)!r} has more than {MAX_FILES:,} files that are no tool's; "
                        "expected a plugin's sources: move what else is there out of it, or into "
                        "a folder whose name begins with a dot"
                    )
                yield path, known


def newest_unbuilt(project: PluginProject) -> Path | None:
    """Of the sources that were saved after the module was built, the newest; else None.

    `plugin.toml` counts where the manifest in the module is another one: its settings are not
    built. Tests and what is read by people or given as an input do not count. Of very many files,
    the first `MAX_FILES` are looked at.

    Raises OSError where the module cannot be read.
    """
    built_ns = project.module.stat().st_mtime_ns
    newer: list[tuple[int, Path]] = []
    for path, known in islice(sources(project.folder), MAX_FILES):
        saved_ns = known.st_mtime_ns
        if saved_ns > built_ns and _is_built(path.relative_to(project.folder), project):
            newer.append((saved_ns, path))
    return max(newer)[1] if newer else None


def _is_built(inside: Path, project: PluginProject) -> bool:
    """Whether it makes a difference to the module."""
    if inside == Path(PROJECT_FILE):
        return not _ends_with(project.module, project.manifest)
    alone = len(inside.parts) == 1
    return not (
        inside.parts[0] == "tests" or inside.suffix == ".md" or (alone and inside.suffix == ".json")
    )


def _ends_with(module: Path, manifest: bytes) -> bool:
    """As a build writes a module: the manifest is the last that is in it."""
    with module.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - len(manifest), 0))
        return file.read() == manifest


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # it has gone
        return []
