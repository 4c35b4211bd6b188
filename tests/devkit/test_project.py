"""What a `plugin.toml` says, and all that is refused of one."""

import os
from pathlib import Path

import orjson
import pytest

from sgl_router.devkit.project import PluginProject, read_project
from sgl_router.errors import ConfigError
from sgl_router.testing import settings_for
from sgl_router.testing.project_file import MAX_PROJECT_BYTES
from sgl_router.wasm.manifest import read_manifest
from tests.devkit.fake import FAKE, fake_language

WHOLE = """\
name = "My-plugin_2"
version = "1.2.3"
description = "…"
language = "fake"
needs = ["outcomes", "worker_info"]
reads_body = false

[config_schema]
type = "object"
[config_schema.properties]
weights = { type = "object" }

[settings]
max_memory_bytes = 4_194_304
allowed_syscalls = ["wasi:clocks"]

[settings.config.weights]
"http://127.0.0.1:8001" = 2.5
"""


def project_of(folder: Path, text: str | bytes) -> PluginProject:
    (folder / "plugin.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_project(folder, [FAKE, fake_language("other")])


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as refused:
        project_of(folder, text)
    return str(refused.value)


def test_all_that_it_may_say(tmp_path: Path) -> None:
    project = project_of(tmp_path, WHOLE)
    assert (project.name, project.version, project.description) == ("My-plugin_2", "1.2.3", "…")
    assert (project.folder, project.language) == (tmp_path, "fake")
    assert project.module == tmp_path / "build" / "My-plugin_2.wasm"
    assert orjson.loads(project.manifest) == {
        "abi": 1,
        "name": "My-plugin_2",
        "version": "1.2.3",
        "description": "…",
        "needs": ["outcomes", "worker_info"],
        "reads_body": False,
        "config_schema": {"type": "object", "properties": {"weights": {"type": "object"}}},
    }
    assert project.settings == {
        "max_memory_bytes": 4_194_304,
        "allowed_syscalls": ["wasi:clocks"],
        "config": {"weights": {"http://127.0.0.1:8001": 2.5}},
    }
    config = project.config()
    assert (config.name, config.max_memory_bytes) == ("My-plugin_2", 4_194_304)
    assert config.allowed_syscalls == ("wasi:clocks",)


def test_the_least_that_it_must_say(tmp_path: Path) -> None:
    project = project_of(tmp_path, 'name = "p"\nlanguage = "other"')
    manifest, problems = read_manifest(project.manifest)
    assert (manifest.needs, manifest.reads_body, problems) == (frozenset(), True, [])
    assert project.settings == {}
    assert project.config().max_execution_time_ms == 100


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("need = []", "need", "needs"),
        ("version = 1", "version", "a text"),
        ("description = []", "description", "a text"),
        ('needs = "outcomes"', "needs", "a list"),
        ("needs = [1]", "needs", "list of names"),
        ('needs = ["outcome"]', "outcome", "outcomes"),
        ("reads_body = 0", "reads_body", "true or false"),
        ('needs = ["request_text"]\nreads_body = false', "reads_body", "request_text"),
        ("config_schema = true", "config_schema", "a table"),
        ("config_schema = { type = 5 }", "config_schema", "JSON Schema"),
        ("settings = 5", "settings", "a table"),
        ("[settings]\nmax_memory = 1", "settings.max_memory", "max_memory_bytes"),
        ('[settings]\nname = "p"', "settings.name", "max_memory_bytes"),
        ("[settings]\nmax_memory_bytes = 0", "max_memory_bytes", "from 1 to"),
        ('[settings]\nallowed_syscalls = "wasi:clocks"', "allowed_syscalls", "list"),
        ("[settings]\nallowed_syscalls = [1]", "allowed_syscalls", "wasi:clocks"),
        ("[settings]\nconfig = []", "config", "object"),
        ("[settings.config]\nsince = 2026-01-31", "settings.config.since", "text"),
        ("[settings.config]\nof = [1, { a = 07:30:00 }]", "settings.config.of[1].a", "text"),
        ("[settings.config]\nmost = inf", "settings.config.most", "text"),
        ("[settings.config]\nmost = 18446744073709551616", "settings.config.most", "text"),
        (
            'config_schema.properties.a = { type = "string" }\n[settings.config]\na = 1',
            "config.a",
            "string",
        ),
    ],
)
def test_what_is_refused(line: str, key: str, expected: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, f'name = "p"\nlanguage = "fake"\n{line}\n')
    assert str(tmp_path / "plugin.toml") in told
    assert key in told
    assert expected in told


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a" * 65, "round_robin", "none", "ü", "a\\n"])
def test_names_that_no_plugin_has(name: str, tmp_path: Path) -> None:
    assert "name" in refusal(tmp_path, f'name = "{name}"\nlanguage = "fake"\n')


def test_a_language_that_the_kit_does_not_have(tmp_path: Path) -> None:
    told = refusal(tmp_path, 'name = "p"\nlanguage = "cobol"\n')
    assert "cobol" in told
    assert "fake, other" in told


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    told = refusal(tmp_path, "version = 5\nneed = []\nreads_body = 1\nconfig_schema.a = inf")
    words = ("name", "language", "version", "need", "reads_body", "config_schema.a")
    assert all(word in told for word in words)
    told = refusal(
        tmp_path,
        'name = "none"\nlanguage = "cobol"\n[settings]\nmax_memory_bytes = 0\nisolation = "no"',
    )
    assert all(word in told for word in ("none", "cobol", "max_memory_bytes", "isolation"))


def test_no_folder_of_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(ConfigError) as refused:
            read_project(folder, [FAKE])
        assert str(folder) in str(refused.value)
        assert "plugin new" in str(refused.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "plugin.toml").mkdir()
    with pytest.raises(ConfigError):
        read_project(tmp_path, [FAKE])
    (tmp_path / "plugin.toml").rmdir()
    os.mkfifo(tmp_path / "plugin.toml")
    with pytest.raises(ConfigError, match="regular"):
        read_project(tmp_path, [FAKE])


@pytest.mark.parametrize(
    "text", [b"name", b"\xff", b"a = " + b"[" * 5_000, b"# " + bytes(MAX_PROJECT_BYTES)]
)
def test_what_is_no_toml(text: bytes, tmp_path: Path) -> None:
    assert str(tmp_path / "plugin.toml") in refusal(tmp_path, text)


def test_a_manifest_that_is_too_large(tmp_path: Path) -> None:
    text = f'name = "p"\nlanguage = "fake"\ndescription = "{"a" * 70_000}"'
    assert "65,536" in refusal(tmp_path, text)


HOSTILE = {
    "a number of many digits": "name = " + "9" * 5_000,
    "a number of many hexadecimal digits": "name = 0x" + "f" * 50_000,
    "one in a list": "description = [0x" + "f" * 50_000 + "]",
    "one in the settings": "[settings]\nmax_memory_bytes = 0x" + "f" * 50_000,
    "a deep table": "config_schema." + "a." * 900 + "b = 1",
    "a very deep table": "a." * 32_000 + "b = 1",
    "a deep list": "[settings.config]\na = " + "[" * 200 + "]" * 200,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    assert str(tmp_path / "plugin.toml") in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "name", ["a number of many digits", "one in the settings", "a very deep table", "a deep list"]
)
def test_a_module_beside_a_hostile_file_is_not_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / "plugin.toml").write_text(HOSTILE[name])
    with pytest.raises(ConfigError, match=r"plugin\.toml"):
        settings_for(tmp_path / "build" / "p.wasm")
