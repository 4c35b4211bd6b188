"""Settings, sizes, imports and configurations with which a module is refused, all in one report."""

import hashlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import orjson
import pytest
import wasmtime

from sgl_router.policies import WasmPolicyConfig
from sgl_router.wasm.grants import GROUPS, WASI_MODULE
from sgl_router.wasm.manifest import SECTION
from sgl_router.wasm.module import (
    MAX_COMPONENT_BYTES,
    MAX_MODULE_BYTES,
    check_module,
    read_file,
    read_module,
)
from sgl_router.wasm.wasi_types import WASI_TYPES
from tests.wasm.component_guests import component
from tests.wasm.guests import BUILTIN_NAMES, assemble, guest, leb128, wasi
from tests.wasm.refusals import (
    PAGE,
    TYPES,
    exports,
    read,
    reason,
    reasons,
)

# ---- settings and module are refused together


def test_settings_exports_and_imports_are_refused_together(tmp_path: Path) -> None:
    wasm = assemble('(module (import "env" "f" (func)) (func (export "init") (param i32)))')
    found = reasons(
        tmp_path,
        wasm,
        max_memory_bytes=0,
        allowed_syscalls=["wasi:clocks", 7],
        fallback="nobody",
        sha256="0" * 64,
    )
    for part in ("max_memory_bytes", "lists 7", "nobody", "0" * 64, "env.f", "init", "memory"):
        assert any(part in text for text in found), part


@pytest.mark.parametrize("syscalls", [7, None, "wasi:clocks", ["wasi:clocks", None, [], "x"]])
def test_what_is_granted_beside_what_cannot_be(tmp_path: Path, syscalls: Any) -> None:
    """The name that can be granted is; the others are refused, and nothing is raised by them."""
    wasm = guest(imports=wasi("sched_yield", ""))
    found = reasons(tmp_path, wasm, allowed_syscalls=syscalls)
    is_granted = isinstance(syscalls, list)
    assert any("sched_yield" in text for text in found) is not is_granted
    assert any(text.startswith("allowed_syscalls") for text in found)


@pytest.mark.parametrize("limit", ["1", None, 1.5, True])
def test_a_memory_limit_that_is_no_number(tmp_path: Path, limit: Any) -> None:
    assert "max_memory_bytes" in reasons(tmp_path, guest(), max_memory_bytes=limit)[0]


def test_what_is_checked_is_what_was_read() -> None:
    """The module need not be in a file."""
    config = WasmPolicyConfig("", "plugin")
    wasm = guest()
    module = check_module(config, wasm, BUILTIN_NAMES)
    assert module.wasm == wasm
    assert module.digest == hashlib.sha256(wasm).hexdigest()


def test_a_file_is_read_no_further_than_it_may_go(tmp_path: Path) -> None:
    path = tmp_path / "plugin.wasm"
    path.write_bytes(bytes(MAX_MODULE_BYTES + 10))
    assert len(read_file(str(path))) == MAX_MODULE_BYTES + 1


def test_a_component_is_read_further(tmp_path: Path) -> None:
    """What a file holds shows in its first eight bytes."""
    path = tmp_path / "plugin.wasm"
    with path.open("wb") as file:
        file.write(b"\0asm\x0d\0\x01\0")
        file.truncate(MAX_COMPONENT_BYTES + 10)
    assert len(read_file(str(path))) == MAX_COMPONENT_BYTES + 1


def test_a_file_takes_no_more_room_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "plugin.wasm"
    path.write_bytes(component())
    tracemalloc.start()
    try:
        assert read_file(str(path)) == component()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_COMPONENT_BYTES / 10


# ---- a pinned digest


def test_a_pinned_digest_that_matches(tmp_path: Path) -> None:
    path = tmp_path / "plugin.wasm"
    path.write_bytes(guest())
    digest = hashlib.sha256(guest()).hexdigest()
    config = WasmPolicyConfig(str(path), "plugin", sha256=digest)
    assert read_module(config, BUILTIN_NAMES).digest == digest


@pytest.mark.parametrize("wasm", [guest(), b"<html>", b""])
def test_a_pinned_digest_that_does_not_match_is_shown_with_what_was_found(
    tmp_path: Path, wasm: bytes
) -> None:
    (text,) = [text for text in reasons(tmp_path, wasm, sha256="ab" * 32) if "ab" * 32 in text]
    assert hashlib.sha256(wasm).hexdigest() in text
    assert "sha256" in text


def test_of_a_file_that_was_not_read_to_its_end_there_is_no_digest(tmp_path: Path) -> None:
    assert f"{MAX_MODULE_BYTES:,}" in reason(
        tmp_path, bytes(MAX_MODULE_BYTES + 1), sha256="ab" * 32
    )


# ---- sizes


@pytest.mark.parametrize("where", ["data", "custom"])
def test_a_hundred_megabytes_are_refused_by_their_size(tmp_path: Path, where: str) -> None:
    """Written sparsely: a section's head, and nothing but zeros."""
    size = 100 * 1024 * 1024
    body = b"\x01\x01" + leb128(size) if where == "data" else b"\x01x"
    head = bytes([11 if where == "data" else 0]) + leb128(len(body) + size) + body
    path = tmp_path / "plugin.wasm"
    path.write_bytes(guest() + head)
    os.truncate(path, path.stat().st_size + size)
    (text,) = read(path).reasons
    assert f"{MAX_MODULE_BYTES:,}" in text


@pytest.mark.parametrize(
    ("offset", "size", "fits"),
    [
        (PAGE - 4, 4, True),
        (PAGE - 4, 5, False),
        (PAGE, 1, False),
        (PAGE, 0, True),
        (0x7FFFFFFF, 1, False),
        (-1, 1, False),
        (-(2**31), 1, False),
        (63, 1, True),
        (64, 1, True),
        (8191, 1, True),
    ],
)
def test_data_beyond_the_end_of_memory(tmp_path: Path, offset: int, size: int, fits: bool) -> None:
    wasm = guest(extra=f'(data (i32.const {offset}) "{"x" * size}")')
    if fits:
        check_module(WasmPolicyConfig("", "plugin"), wasm, BUILTIN_NAMES)
        return
    text = reason(tmp_path, wasm)
    assert f"{(offset & 0xFFFFFFFF) + size:,}" in text
    assert f"{PAGE:,}" in text


@pytest.mark.parametrize(
    "segment",
    [
        '(data "passive")',
        '(global $g i32 (i32.const 9)) (data (global.get $g) "x")',
        '(data (i32.add (i32.const 1) (i32.mul (i32.const 2) (i32.const 3))) "x")',
        '(data (memory 0) (i32.const 7) "x")',
    ],
)
def test_data_whose_place_has_to_be_computed_is_left_to_wasmtime(segment: str) -> None:
    check_module(WasmPolicyConfig("", "plugin"), guest(extra=segment), BUILTIN_NAMES)


# ---- imports


def test_each_wasi_function_has_its_type() -> None:
    """wasmtime's own WASI takes a module that imports them all with these types."""
    assert WASI_TYPES.keys() == {
        f"{WASI_MODULE}.{name}" for names in GROUPS.values() for name in names
    }
    imports = "".join(
        f'(import "{WASI_MODULE}" "{full.partition(".")[2]}" (func '
        f"(param {' '.join(of.params)}) (result {' '.join(of.results)})))"
        for full, of in WASI_TYPES.items()
    )
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    linker.instantiate_pre(wasmtime.Module(engine, assemble(f"(module {imports})")))


def test_the_right_name_with_the_wrong_type(tmp_path: Path) -> None:
    imports = wasi("random_get", "i32") + wasi("fd_write", "i32 i32 i32 i32", "(result i64)")
    found = reasons(
        tmp_path, guest(imports=imports), allowed_syscalls=["wasi:random", "wasi:stdio"]
    )
    assert len(found) == 2
    for text, name, wrong, right in zip(
        found,
        ("random_get", "fd_write"),
        ("(i32) -> (i32)", "(i32, i32, i32, i32) -> (i64)"),
        ("(i32, i32) -> (i32)", "(i32, i32, i32, i32) -> (i32)"),
        strict=True,
    ):
        for part in (name, wrong, right):
            assert part in text


def test_a_type_with_a_thousand_parameters_is_cut(tmp_path: Path) -> None:
    field = f"(func (export {{}}) (param {'i64 ' * 999}))"
    text = reason(tmp_path, exports(init=field))
    assert "() -> ()" in text
    assert len(text) < 300


def test_all_that_is_wrong_with_imports_is_in_one_report(tmp_path: Path) -> None:
    imports = """
      (import "env" "memory" (memory 1)) (import "env" "table" (table 1 funcref))
      (import "env" "global" (global i32)) (import "env" "function" (func))"""
    found = reasons(tmp_path, guest(imports=imports + wasi("random_get", "i64")))
    for part in ("env.memory", "env.table", "env.global", "env.function", "random_get"):
        assert sum(part in text for text in found) == 1, part


# ---- names


def test_names_of_a_hundred_kilobytes_are_nobodys_business(tmp_path: Path) -> None:
    """Exports that the contract does not know are ignored, and so is the section of names."""
    name = "\\1b[31m\\e2\\80\\ae" + "x" * 100_000
    wasm = guest(
        extra=f'(func (export "{name}"))', sections={"name": b"\xff" * 1000, "\u202e": b""}
    )
    module = check_module(WasmPolicyConfig("", "plugin"), wasm, BUILTIN_NAMES)
    assert module.exports == TYPES.keys()


# ---- the configuration


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"a": "x" * (10 * 1024 * 1024)}, "65,536"),
        ([1], "list"),
        ("text", "str"),
        (None, "NoneType"),
        ({"a": {1, 2}}, "JSON"),
    ],
)
def test_a_configuration_that_is_none(tmp_path: Path, config: Any, found: str) -> None:
    schema = {"type": "object", "additionalProperties": False}
    wasm = guest(sections={SECTION: orjson.dumps({"config_schema": schema})})
    (text,) = reasons(tmp_path, wasm, config=config)
    assert text.startswith("config is")
    assert found in text
    assert len(text) < 400


def test_a_configuration_that_does_not_match_is_told_beside_the_rest(tmp_path: Path) -> None:
    schema = {"properties": {"a": {"properties": {"b": {"type": "integer"}}}}}
    wasm = guest(
        imports='(import "env" "f" (func))',
        sections={SECTION: orjson.dumps({"config_schema": schema})},
    )
    found = reasons(tmp_path, wasm, config={"a": {"b": "x"}}, sha256="ab" * 32)
    assert len(found) == 3
    assert any("config.a.b" in text for text in found)
