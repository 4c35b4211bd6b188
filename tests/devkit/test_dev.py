"""Building and testing at each save."""

import os
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from watchfiles import Change

from sgl_router.devkit import develop
from sgl_router.devkit.develop import Round, SourceFilter, one_round, rounds, saves
from sgl_router.errors import BuildError, ConfigError
from tests.devkit.projects import SOURCE, build, golden, project
from tests.testing.guests import sound, traps_on


def test_a_round(tmp_path: Path) -> None:
    done = one_round(project(tmp_path / "mine"), build)
    assert done.passed
    assert done.built is not None and done.target is not None
    assert done.target.module == done.built.path


def test_rounds_follow_what_sources_hold(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    source = folder / SOURCE

    def author() -> Iterator[str]:
        yield "nothing"
        source.write_bytes(source.read_bytes())
        yield "saved as it was"
        (folder / "build" / "other").write_text("made")
        (folder / ".cache").mkdir()
        (folder / ".cache" / "x").write_text("made")
        yield "a tool has made files"
        source.write_bytes(traps_on('"model":null'))
        yield "changed"
        source.write_bytes(sound())
        yield "changed back"
        golden(folder, "second", 1)
        yield "another golden decision"

    found = list(rounds(folder, build, author()))
    assert [None if one is None else one.passed for one in found] == [
        True,
        None,
        None,
        None,
        False,
        True,
        False,
    ]


def test_what_was_saved_while_it_was_built_is_built_next(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    count = 0

    def slow(of: object) -> object:
        nonlocal count
        count += 1
        if count == 1:
            (folder / SOURCE).write_bytes(traps_on("u42"))
        return build(of)  # type: ignore[arg-type]

    found = list(rounds(folder, slow, ["saved", "quiet"]))  # type: ignore[arg-type]
    assert count == 2
    assert found[1] is not None and found[2] is None


def test_whatever_fails_is_told_and_the_next_save_is_built(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    toml = (folder / "plugin.toml").read_text()

    def author() -> Iterator[None]:
        (folder / SOURCE).write_bytes(b"error")
        yield
        (folder / "plugin.toml").write_text("name = 5")
        yield
        (folder / "plugin.toml").unlink()
        yield
        (folder / "plugin.toml").write_text(toml)
        (folder / SOURCE).write_bytes(sound())
        (folder / "tests" / "broken.json").write_text("{")
        yield
        (folder / "tests" / "broken.json").unlink()
        yield

    found = list(rounds(folder, build, author()))
    errors = [None if one is None else type(one.error) for one in found]
    assert errors == [type(None), BuildError, ConfigError, ConfigError, ConfigError, type(None)]
    assert isinstance(found[-1], Round) and found[-1].passed


def test_the_folder_may_go_and_come_back(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    aside = tmp_path / "aside"

    def author() -> Iterator[None]:
        folder.rename(aside)
        yield
        aside.rename(folder)
        yield

    found = list(rounds(folder, build, author()))
    assert [one is not None and one.passed for one in found] == [True, False, True]


def test_a_large_file_is_watched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(develop, "_READ_BYTES", 4)
    folder = project(tmp_path / "mine")
    table = folder / "src" / "table.bin"
    table.write_bytes(b"12345")

    def author() -> Iterator[None]:
        yield
        table.write_bytes(b"123456")
        yield
        os.utime(table, (1, 1))
        yield

    found = list(rounds(folder, build, author()))
    assert [one is not None for one in found] == [True, False, True, True]


def test_which_files_are_sources(tmp_path: Path) -> None:
    is_source = SourceFilter(tmp_path)
    for name in ("plugin.toml", "src/lib.rs", "tests/one.json", ".cargo/config.toml", "policy.py"):
        assert is_source(Change.modified, str(tmp_path / name)), name
    for name in (
        "build/mine.wasm",
        "target/release/deps/mine.d",
        "node_modules/json/index.js",
        ".zig-cache/o/1",
        "src/__pycache__/policy.cpython-311.pyc",
        ".git/index",
        "src/.lib.rs.swp",
    ):
        assert not is_source(Change.modified, str(tmp_path / name)), name
    assert not is_source(Change.modified, "/somewhere/else.rs")


def test_a_save_is_noticed(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    done = threading.Event()

    def author() -> None:
        """Saves until it is noticed: there is no telling when the watch has begun."""
        for number in range(1_000):
            (folder / SOURCE).write_bytes(b"%d" % number)
            (folder / "build" / "x").write_bytes(b"%d" % number)
            if done.wait(0.05):
                return

    thread = threading.Thread(target=author)
    thread.start()
    try:
        assert "changed" in islice(saves(folder), 20)
    finally:
        done.set()
        thread.join()
