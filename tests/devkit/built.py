"""Plugins built from the kit's templates, once for all tests that want them."""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from sgl_router.devkit.build import build
from sgl_router.devkit.language import Language
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.project import PluginProject, read_project
from sgl_router.devkit.scaffold import TEMPLATES, new_plugin
from sgl_router.devkit.toolchains import check_tools, runner
from sgl_router.errors import BuildError
from tests.conftest import leave_out

_KEPT = ("target", "node_modules", ".zig-cache")
"""What tools make beside a plugin: kept from one policy to the next, and not copied."""

_MAKES_DIFFERENCE = ("scaffold", "project", "build", "toolchains", "manifest_section")
"""Files of the kit to what is built."""

_PACKAGE = TEMPLATES.parent.parent


@cache
def built(language: str, policy: str) -> Path:
    """The module of a policy of the kit, in a plugin's folder of its own: `FOLDER/build/NAME.wasm`.

    It is built by the first test that asks for it, in whichever process, and again where a
    template, a tool or the kit has changed. Where this machine lacks a tool, the test is left out.
    """
    one = _language(language)
    finished = _home(one) / policy
    if not finished.exists():
        with workshop(language, policy) as project:
            if not finished.exists():
                _make(project, finished)
    return finished / "build" / f"{_name(one, policy)}.wasm"


@contextmanager
def workshop(language: str, policy: str) -> Iterator[PluginProject]:
    """A new plugin's folder, with what the language's tools have made of others in it.

    All of a language are built in one folder, so that what they depend on is built once; one
    process at a time, pytest-xdist's among them.
    """
    one = _language(language)
    home = _home(one)
    home.parent.mkdir(exist_ok=True)
    with (home.parent / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for old in home.parent.glob("v-*"):
            if old != home:
                shutil.rmtree(old)
        work = home / "work"
        work.mkdir(parents=True, exist_ok=True)
        for entry in work.iterdir():
            if entry.name in _KEPT:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        with tempfile.TemporaryDirectory(dir=home) as folder:
            new_plugin(Path(folder) / "made", _name(one, policy), one, policy)
            shutil.copytree(Path(folder) / "made", work, dirs_exist_ok=True)
        yield read_project(work)


def _make(project: PluginProject, finished: Path) -> None:
    build(project, runner())
    with tempfile.TemporaryDirectory(dir=finished.parent) as folder:
        copy = Path(folder) / "built"
        shutil.copytree(project.folder, copy, ignore=shutil.ignore_patterns(*_KEPT))
        copy.rename(finished)


def _language(name: str) -> Language:
    (language,) = (one for one in LANGUAGES if one.name == name)
    try:
        check_tools(language)
    except BuildError as error:
        leave_out(str(error))
    return language


def _name(language: Language, policy: str) -> str:
    """One that is no identifier of any language."""
    return f"2nd-{policy}_{language.name}"


def _home(language: Language) -> Path:
    """Of this user and this copy of the kit."""
    copy = hashlib.sha256(os.fsencode(_PACKAGE)).hexdigest()[:8]
    top = Path(tempfile.gettempdir()) / f"sgl-router-kit-{os.geteuid()}-{copy}"
    top.mkdir(mode=0o700, exist_ok=True)
    return top / language.name / _digest(language)


def _digest(language: Language) -> str:
    digest = hashlib.sha256()
    folders = [TEMPLATES / "shared", TEMPLATES / language.name, _PACKAGE / "wasm" / "wit"]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    files += [_PACKAGE / "devkit" / f"{name}.py" for name in _MAKES_DIFFERENCE]
    files.append(_PACKAGE / "devkit" / "languages" / f"{language.name}.py")
    for path in files:
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for tool in language.tools:
        digest.update(_version(tool.find() or ()))
    return f"v-{digest.hexdigest()[:16]}"


def _version(command: Sequence[str]) -> bytes:
    """Of a tool: its words, and what can be told of its files without running it."""
    files = [path for path in map(Path, command) if path.is_absolute()]
    if "-m" in command:
        found = importlib.util.find_spec(command[-1])
        files += [Path(found.origin)] if found is not None and found.origin else []
    stats = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return repr((list(command), stats)).encode()
