"""Which source, if any, was saved after a plugin was built."""

import os
from pathlib import Path

import pytest

from sgl_router.devkit import sources as sources_module
from sgl_router.devkit.build import build
from sgl_router.devkit.project import PluginProject, read_project
from sgl_router.devkit.sources import newest_unbuilt, sources
from sgl_router.devkit.target import find_target
from sgl_router.devkit.toolchains import runner
from sgl_router.errors import ConfigError
from tests.devkit.fake import FAKE, fake_project
from tests.devkit.projects import SOURCE, project


@pytest.fixture
def plugin(tmp_path: Path) -> PluginProject:
    """A plugin that is built."""
    made = read_project(fake_project(tmp_path / "mine"), [FAKE])
    build(made, runner(), [FAKE])
    return made


def save(plugin: PluginProject, name: str, secs: float) -> Path:
    """Touch a file, so many seconds after the build."""
    path = plugin.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    saved = plugin.module.stat().st_mtime + secs
    os.utime(path, (saved, saved))
    return path


def test_what_was_built_last_is_not_stale(plugin: PluginProject) -> None:
    for path in list(plugin.folder.iterdir()):
        if path.is_file():
            save(plugin, path.name, -5)
    assert newest_unbuilt(plugin) is None


def test_the_newest_source_is_told(plugin: PluginProject) -> None:
    save(plugin, "build.sh", 5)
    assert newest_unbuilt(plugin) == plugin.folder / "build.sh"
    newest = save(plugin, "src/a/policy.rs", 7)
    save(plugin, ".cargo/config.toml", 6)
    assert newest_unbuilt(plugin) == newest


@pytest.mark.parametrize(
    "name",
    ["tests/one.json", "README.md", "input.json", "target/x.rs", ".git/index", "build/x.wasm"],
)
def test_what_is_not_built_makes_nothing_stale(plugin: PluginProject, name: str) -> None:
    for path in list(plugin.folder.iterdir()):
        if path.is_file():
            save(plugin, path.name, -5)
    save(plugin, name, 5)
    assert newest_unbuilt(plugin) is None


def test_of_plugin_toml_only_the_manifest_is_built(plugin: PluginProject) -> None:
    toml = plugin.folder / "plugin.toml"
    said = toml.read_text()
    toml.write_text(f"{said}[settings]\nmax_execution_time_ms = 7\n")
    save(plugin, "plugin.toml", 5)
    assert newest_unbuilt(read_project(plugin.folder, [FAKE])) is None
    toml.write_text(f'version = "2"\n{said}')
    save(plugin, "plugin.toml", 5)
    assert newest_unbuilt(read_project(plugin.folder, [FAKE])) == toml


def test_a_folder_is_looked_at_and_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    module = folder / "build" / "mine.wasm"
    for name in (SOURCE, "plugin.toml"):
        os.utime(folder / name, (1, 1))
    assert find_target(folder).unbuilt is None
    os.utime(module, (0, 0))
    os.utime(folder / SOURCE, (2, 2))
    assert find_target(folder).unbuilt == folder / SOURCE
    assert find_target(module).unbuilt is None


def test_a_file_that_goes_while_the_folder_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.rs", "b.rs", "c.rs"):
        (tmp_path / name).touch()
    (tmp_path / "link.rs").symlink_to(tmp_path / "a.rs")
    os.mkfifo(tmp_path / "pipe.rs")
    (tmp_path / "b.rs").unlink()
    listed = [tmp_path / name for name in ("a.rs", "b.rs", "c.rs", "link.rs", "pipe.rs")]
    monkeypatch.setattr(sources_module, "_entries", lambda _: listed)
    assert [path.name for path, _ in sources(tmp_path)] == ["a.rs", "c.rs"]


def test_more_files_than_are_looked_at(
    plugin: PluginProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(list(sources(plugin.folder)))
    monkeypatch.setattr(sources_module, "MAX_FILES", count)
    assert len(list(sources(plugin.folder))) == count
    (plugin.folder / "z.sh").touch()
    with pytest.raises(ConfigError, match=plugin.folder.name):
        list(sources(plugin.folder))
    newest_unbuilt(plugin)  # a command that only warns goes on


def test_a_folders_settings_are_read_once_and_are_those_of_its_project(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine", settings='allowed_syscalls = ["wasi:clocks"]')
    target = find_target(folder, {"inline_budget_ms": 7})
    assert target.config.allowed_syscalls == ("wasi:clocks",)
    assert (target.config.inline_budget_ms, target.config.max_execution_time_ms) == (7, 5_000)
    assert (target.config.name, target.tests) == ("mine", folder / "tests")
    with pytest.raises(ConfigError, match="max_memory_bytes"):
        find_target(folder, {"max_memory": 7})
