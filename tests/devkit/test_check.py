"""What is said of a module that is not run."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.devkit.check import CheckedModule, check_target
from sgl_router.devkit.target import Target, find_target
from sgl_router.errors import ConfigError
from sgl_router.policies import shipped_plugins
from sgl_router.testing import settings_for
from sgl_router.wasm.refusals import RefusalCode
from tests.devkit.projects import project
from tests.testing.guests import sound
from tests.wasm.guests import PRINT, custom, guest, wasi


def checked(folder: Path, wasm: bytes, **settings: object) -> CheckedModule:
    path = folder / "mine.wasm"
    path.write_bytes(wasm)
    return check_target(find_target(path, settings))


def codes(found: CheckedModule) -> list[str]:
    return [problem.code for problem in found.problems]


@pytest.mark.parametrize("plugin", shipped_plugins())
def test_the_shipped_plugins_are_accepted(plugin: str) -> None:
    found = check_target(find_target(shipped_plugins()[plugin]))
    assert found.accepted
    assert found.kind == "core module"
    assert found.abi == ("table_v1" if plugin.endswith("table") else "json_v1")
    assert found.manifest is not None and found.manifest["name"] == plugin
    assert found.named
    assert not found.imports
    assert found.memory_bytes is not None and found.memory_bytes >= 65_536


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    wasm = guest(imports=wasi("random_get", "i32 i32"), memory='(memory (export "memory") 33)')
    found = checked(tmp_path, wasm, fallback="nobody")
    assert set(codes(found)) == {"memory_at_start", "import_not_granted", "fallback_unknown"}
    assert found.abi is None and not found.accepted
    assert found.memory_bytes == 33 * 65_536
    assert all(problem.remedy and problem.text for problem in found.problems)


def test_imports_against_grants(tmp_path: Path) -> None:
    wasm = guest(imports=wasi("random_get", "i32 i32") + PRINT)
    found = checked(tmp_path, wasm, allowed_syscalls=["wasi:stdio"])
    assert [(one.name.partition(".")[2], one.granted, one.group) for one in found.imports] == [
        ("random_get", False, "wasi:random"),
        ("fd_write", True, "wasi:stdio"),
    ]
    assert codes(found) == ["import_not_granted"]


def test_what_is_imported_twice_is_told_once(tmp_path: Path) -> None:
    wasm = guest(imports=PRINT + PRINT.replace("$fd_write", "$again"))
    found = checked(tmp_path, wasm)
    assert [one.name for one in found.imports] == ["wasi_snapshot_preview1.fd_write"]
    assert codes(found) == ["import_not_granted"]


def test_what_is_no_module_is_no_crash(tmp_path: Path) -> None:
    for wasm in (b"", b"\0asm", b"\0asm\1\0\0\0", b"\0asm\x0d\0\1\0", b"<html>", b"\x7fELF"):
        found = checked(tmp_path, wasm)
        assert not found.accepted
        assert set(codes(found)) <= set(get_args(RefusalCode))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\0asm\1\0\0\0", b"\0asm\x0d\0\1\0"]))
def test_any_bytes_are_told_of(
    tmp_path_factory: pytest.TempPathFactory, rest: bytes, head: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.wasm"
    path.write_bytes(head + rest)
    found = check_target(Target(path, settings_for(path), path.parent))
    assert not found.accepted
    assert found.size == len(head + rest)


def test_names_of_functions(tmp_path: Path) -> None:
    stripped = _stripped(sound())
    assert checked(tmp_path, sound()).named
    assert not checked(tmp_path, stripped).named
    assert checked(tmp_path, stripped + custom("name", b"")).named


def _stripped(wasm: bytes) -> bytes:
    """Without its last section, which holds the names."""
    at = wasm.rindex(b"\x04name")
    start = wasm.rindex(b"\0", 0, at - 1)
    return wasm[:start]


def test_a_manifest_that_is_wrong_is_a_problem(tmp_path: Path) -> None:
    found = checked(tmp_path, sound(manifest=b'{"needs": ["everything"]}'))
    assert codes(found) == ["manifest_need_unknown"]
    assert found.manifest == {"needs": ["everything"]}
    assert checked(tmp_path, sound(manifest=b"{")).manifest is None
    assert checked(tmp_path, sound(manifest=b"[]")).manifest is None


def test_nothing_of_the_plugin_runs(tmp_path: Path) -> None:
    assert checked(
        tmp_path, sound(init="unreachable", extra="(start $s) (func $s unreachable)")
    ).accepted


def test_a_folder_stands_for_what_was_built_in_it(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine", settings="max_memory_bytes = 600_000")
    target = find_target(folder)
    assert target.module == folder / "build" / "mine.wasm"
    assert target.config.name == "mine"
    assert target.config.max_memory_bytes == 600_000
    assert target.tests == folder.absolute() / "tests"
    assert find_target(folder, {"max_memory_bytes": 5}).config.max_memory_bytes == 5
    assert find_target(target.module).config.max_memory_bytes == 600_000


def test_what_is_not_there_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = project(tmp_path / "mine")
    (folder / "build" / "mine.wasm").unlink()
    with pytest.raises(ConfigError, match="plugin build"):
        find_target(folder)
    with pytest.raises(ConfigError, match=r"plugin\.toml"):
        find_target(tmp_path)
    with pytest.raises(ConfigError, match=r"nowhere\.wasm"):
        find_target(tmp_path / "nowhere.wasm")
    (folder / "plugin.toml").write_text("name = 5")
    with pytest.raises(ConfigError, match="language"):
        find_target(folder)
